"""The state of a run for people: ``headrace status`` and the watchdog's last line. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from broker.groups import GroupRecord, Phase, Place
from broker.ledger import Ledger
from common.messages import NamedCount, Status


def run_status(ledger: Ledger, run_id: str, num_parked: Mapping[str, int]) -> Status:
    """``waiting`` counts held requests by message and live groups by what they wait for."""
    state = ledger.state
    waiting = {
        **{f"request_{kind}": count for kind, count in num_parked.items()},
        **{f"groups_{phase}": count for phase, count in tally_phases(ledger.groups.values())},
    }
    counted = {what.value: count for what, count in state.counters.items()}
    return Status(
        run_id=run_id,
        groups=ledger.counts,
        evicted=_named({reason.value: n for reason, n in state.num_evicted.items()}),
        policy_step=state.policy_step,
        incarnation=state.timeline.incarnation,
        newest_version=ledger.newest_version,
        waiting=_named(waiting),
        sealed=state.sealed,
        weight_syncs=counted.get("weight_sync", 0),
        weight_proofs_failed=counted.get("weight_proof_failed", 0),
        duplicates=counted.get("duplicate", 0),
        redelivered=state.num_redelivered,
    )


def who_waits(ledger: Ledger, num_parked: Mapping[str, int], num_leases: Mapping[str, int]) -> str:
    """What each side waits for, in one line; ``num_leases`` by owner."""
    status = run_status(ledger, "run", num_parked)
    waits = ", ".join(f"{item.name} {item.count}" for item in status.waiting) or "nobody"
    held = sorted(num_leases.items())
    holders = ", ".join(f"{owner} {count}" for owner, count in held) or "nobody"
    return (
        f"step {status.policy_step} is being computed; waiting: {waits}; "
        f"leases are held by: {holders}"
    )


def tally_phases(groups: Iterable[GroupRecord]) -> Iterable[tuple[str, int]]:
    """Groups by what they wait for first; O(all groups), so only on demand."""
    return Counter(_describe(group) for group in groups).items()


def _describe(group: GroupRecord) -> str:
    if group.place is not Place.OPEN:
        return group.place.name.lower()
    phases = {item.phase for item in group.indices}
    order = (Phase.GENERATING, Phase.WAITING, Phase.VERIFYING, Phase.GENERATED, Phase.VERIFIED)
    return next(phase.name.lower() for phase in order if phase in phases)


def _named(counts: Mapping[str, int]) -> tuple[NamedCount, ...]:
    return tuple(NamedCount(name=name, count=count) for name, count in sorted(counts.items()))
