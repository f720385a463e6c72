"""Decisions about verification. Pure: read the ledger, return events.

A verdict is typed: a judgement ends the work on a rollout, an infrastructure failure never becomes
a reward and sends the rollout to whoever asks next, and data that no verifier could judge drops
the group.
"""

from __future__ import annotations

from broker import events
from broker.events import Counter
from broker.groups import GroupRecord, IndexRecord, Phase
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.rollout_rules import MAX_REASON, Outcome, counted, dead_letter, group_ended
from common.errors import RefusedError
from common.messages import RolloutLease
from common.types import RolloutId, Verdict, VerdictStatus


def lease_rollout(ledger: Ledger, owner: str) -> Decision[RolloutLease | None]:
    """The most urgent rollout that no verifier holds."""
    group_id = next(ledger.index.generated.firsts(), None)
    if group_id is None or ledger.state.sealed:
        return Decision((), None)
    group = ledger.groups[group_id]
    index = group.in_phase(Phase.GENERATED)[0]
    rollout = group.indices[index].rollout
    if rollout is None:
        raise ValueError("a generated index has a rollout")
    attempt = ledger.state.next_attempt
    event = events.VerifyLeased(group_id=group_id, index=index, attempt=attempt, owner=owner)
    lease = RolloutLease(prompt=group.prompt, rollout=rollout, verify_attempt=attempt)
    return Decision((event,), lease)


def submit_verdict(
    ledger: Ledger, rollout_id: RolloutId, verify_attempt: int, verdict: Verdict
) -> Decision[Outcome]:
    """Take a verdict: a judgement, an infrastructure failure (verify again) or bad data (drop)."""
    group = ledger.groups.get(rollout_id.group_id)
    if group is None:
        return group_ended(ledger, rollout_id.group_id)
    if rollout_id.index >= len(group.indices) or verify_attempt >= ledger.state.next_attempt:
        raise RefusedError("unknown_lease", f"{rollout_id} was never leased for verification")
    item = group.indices[rollout_id.index]
    if item.rollout is None or item.attempt != rollout_id.attempt:
        return counted(Counter.LATE, "late")
    if item.phase is Phase.VERIFIED:
        if (verify_attempt, verdict) == (item.verify_attempt, item.verdict):
            return Decision((), "accepted")
        return counted(Counter.DUPLICATE, "duplicate")
    if verdict.status is VerdictStatus.INFRA_ERROR:
        return _verify_again(ledger, group, rollout_id.index, verify_attempt, verdict.reason)
    if not verdict.status.is_judged:
        reason = f"index {rollout_id.index}: {verdict.status.value}: {verdict.reason}"
        dead = events.DeadLettered(group_id=group.group_id, reason=reason[:MAX_REASON])
        return Decision((dead,), "accepted")
    verified = events.Verified(
        group_id=group.group_id, index=rollout_id.index, attempt=verify_attempt, verdict=verdict
    )
    return Decision((verified,), "accepted")


def _verify_again(
    ledger: Ledger, group: GroupRecord, index: int, verify_attempt: int, reason: str
) -> Decision[Outcome]:
    if not _is_verifying(group.indices[index], verify_attempt):
        return counted(Counter.LATE, "late")
    error = reason or "infrastructure error"
    decision = release_rollout(ledger, group.group_id, index, verify_attempt, error=error)
    return Decision(decision.events, "accepted")


def release_rollout(
    ledger: Ledger,
    group_id: int,
    index: int,
    verify_attempt: int,
    *,
    lost: bool = False,
    error: str = "",
) -> Decision[None]:
    """Let a rollout wait for a verifier again; a stale lease changes nothing."""
    group = ledger.groups.get(group_id)
    if group is None or not _is_verifying(group.indices[index], verify_attempt):
        return Decision((), None)
    released = events.VerifyReleased(
        group_id=group_id, index=index, attempt=verify_attempt, lost=lost, error=error
    )
    poison = [group.indices[index]]
    return Decision((released, *dead_letter(ledger, group, poison, lost, error)), None)


def _is_verifying(item: IndexRecord, verify_attempt: int) -> bool:
    return item.phase is Phase.VERIFYING and item.verify_attempt == verify_attempt
