"""Decisions about prompts and rollouts. Pure: read the ledger, return events.

Effectively once: an attempt is granted once and never again, the first complete rollout of an index
wins, and whatever comes later is answered without changing the group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from broker import events
from broker.admission import may_admit, may_admit_unbounded, may_move
from broker.dead_letters import cap_error, dead_letter_of, describe_error
from broker.events import AnyEvent, Counter
from broker.groups import GENERATING, OPEN, WAITING, GroupRecord, IndexRecord
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.prompt_rules import admission
from broker.prompts.mixture import PromptSource
from common.errors import RefusedError
from common.messages import Lease, PromptLease
from common.types import (
    EvictReason,
    RolloutHeader,
    RolloutId,
    WeightVersion,
)

Outcome = Literal["accepted", "duplicate", "late", "quarantined"]

LOST_PER_ERROR = 4
"""Deliveries lost with their owner weigh a quarter of an error.

A prompt that kills its actor must not do so for ever, but a fleet that is preempted often must not
dead-letter its prompts.
"""


def lease_prompt(
    ledger: Ledger,
    owner: str,
    serving: WeightVersion,
    source: PromptSource,
    peers: Collection[str] = (),
) -> Decision[PromptLease | None]:
    """Work for an actor that proved that it serves ``serving``: a waiting group, else a new one.

    Answers at which ``owner`` failed go to one of its ``peers`` while it has any.
    """
    if not may_sample(ledger, serving):
        return Decision((), None)

    def permits(group_id: int) -> bool:
        return bool(_open_to(ledger.groups[group_id], owner, peers))

    for group_id in ledger.index.waiting.firsts(permits):
        group = ledger.groups[group_id]
        deadline_step = _deadline_for_lease(ledger, group, serving)
        if deadline_step is not None:
            indices = _open_to(group, owner, peers)
            return _leased(ledger, group, indices, owner, serving, deadline_step)
    return _admitted(ledger, owner, serving, source)


def may_sample(ledger: Ledger, serving: WeightVersion) -> bool:
    """Whether answers sampled under ``serving`` could be of use.

    In a training run the learner must have announced these weights or newer ones, and the actor
    must have left the branch of a lost incarnation.
    """
    if ledger.state.sealed:
        return False
    if not ledger.is_train:
        return True
    newest = ledger.newest_version
    current = ledger.state.timeline.incarnation
    return newest is not None and serving <= newest and serving.incarnation == current


def _admitted(
    ledger: Ledger,
    owner: str,
    serving: WeightVersion,
    source: PromptSource,
) -> Decision[PromptLease | None]:
    deadline_step = ledger.deadline_of(serving)
    if ledger.is_train:
        room = may_admit(ledger.window(), deadline_step)
    else:
        room = may_admit_unbounded(len(ledger.groups), ledger.rules.max_outstanding_groups)
    draw = source.draw(ledger.state.prompts) if room else None
    if draw is None:
        return Decision((), None)
    indices = [IndexRecord() for _ in range(ledger.rules.group_size)]
    fresh = GroupRecord(ledger.state.next_group_id, draw.prompt, indices)
    lease = _leased(ledger, fresh, range(len(indices)), owner, serving, deadline_step)
    return Decision((*admission(ledger, draw), *lease.events), lease.outcome)


def _open_to(group: GroupRecord, owner: str, peers: Collection[str]) -> list[int]:
    """Waiting indices of ``group`` that ``owner`` may sample."""
    waiting = group.in_phase(WAITING)
    return [index for index in waiting if not group.indices[index].is_barred_to(owner, peers)]


def _leased(
    ledger: Ledger,
    group: GroupRecord,
    indices: Sequence[int],
    owner: str,
    serving: WeightVersion,
    deadline_step: int,
) -> Decision[PromptLease | None]:
    attempt = ledger.state.next_attempt
    event = events.Leased(
        group_id=group.group_id,
        indices=tuple(indices),
        attempt=attempt,
        owner=owner,
        version=serving,
        deadline_step=deadline_step,
    )
    lease = Lease(group_id=group.group_id, indices=event.indices, attempt=attempt)
    return Decision((event,), PromptLease(prompt=group.prompt, lease=lease))


def _deadline_for_lease(ledger: Ledger, group: GroupRecord, serving: WeightVersion) -> int | None:
    """Deadline of a waiting group once ``serving`` samples it, or None when it could be missed.

    A group without tokens starts afresh and may get a later deadline; one with tokens keeps the
    deadline of its oldest token.
    """
    fresh = ledger.deadline_of(serving)
    if ledger.is_train and fresh < ledger.state.policy_step:
        return None
    deadline_step = fresh if group.is_untouched else min(fresh, group.deadline_step)
    return deadline_step if _may_move(ledger, group, deadline_step) else None


def _may_move(ledger: Ledger, group: GroupRecord, deadline_step: int) -> bool:
    return not ledger.is_train or may_move(ledger.window(), group.deadline_step, deadline_step)


def submit_rollout(ledger: Ledger, rollout: RolloutHeader, content_hash: str) -> Decision[Outcome]:
    """Take one finished rollout; see the module docstring for what wins.

    Raises :class:`RefusedError` for an attempt that was never granted for this group.
    """
    rollout_id = rollout.rollout_id
    group = ledger.groups.get(rollout_id.group_id)
    if group is None:
        return group_ended(ledger, rollout_id.group_id)
    if rollout_id.attempt not in group.versions or rollout_id.index >= len(group.indices):
        raise RefusedError("unknown_lease", f"{rollout_id} was never leased")
    _check_spans(rollout)
    item = group.indices[rollout_id.index]
    if item.phase.has_rollout:
        return _second_result(group, item, rollout_id, content_hash)
    oldest = min(ledger.deadline_of(span.version) for span in rollout.version_spans)
    deadline_step = min(group.deadline_step, oldest)
    if not _may_move(ledger, group, deadline_step):
        return _too_old(group, item, rollout_id)
    event = events.Generated(
        rollout=rollout, content_hash=content_hash, deadline_step=deadline_step
    )
    return Decision((event,), "accepted")


def _check_spans(rollout: RolloutHeader) -> None:
    """Every token needs exactly one version, or its age could not be told."""
    starts = [span.start for span in rollout.version_spans]
    if starts[0] != 0 or starts != sorted(starts):
        raise RefusedError(
            "malformed",
            f"{rollout.rollout_id}: version spans must start at token 0 and ascend, got {starts}",
        )


def _too_old(group: GroupRecord, item: IndexRecord, rollout_id: RolloutId) -> Decision[Outcome]:
    """Older tokens than the lease promised and no batch left for them: sample the index again."""
    late = events.Counted(what=Counter.LATE)
    if not _is_held(item, rollout_id.attempt):
        return Decision((late,), "late")
    released = events.Released(
        group_id=group.group_id, indices=(rollout_id.index,), attempt=rollout_id.attempt
    )
    return Decision((late, released), "late")


def _second_result(
    group: GroupRecord, item: IndexRecord, rollout_id: RolloutId, content_hash: str
) -> Decision[Outcome]:
    if rollout_id.attempt == item.attempt:
        if content_hash == item.content_hash:
            return Decision((), "accepted")
        return _quarantined(group)
    if rollout_id.attempt > item.attempt:
        return counted(Counter.DUPLICATE, "duplicate")
    return counted(Counter.LATE, "late")


def _quarantined(group: GroupRecord) -> Decision[Outcome]:
    """Two contents under one id: neither is believed; the group goes unless it is handed over."""
    counted = events.Counted(what=Counter.QUARANTINED)
    if group.place is not OPEN:
        return Decision((counted,), "quarantined")
    evicted = events.Evicted(group_ids=(group.group_id,), reason=EvictReason.QUARANTINED)
    return Decision((counted, evicted), "quarantined")


def group_ended(ledger: Ledger, group_id: int) -> Decision[Outcome]:
    """The answer to a result for a group that is not live; refused if it never was."""
    if group_id >= ledger.state.next_group_id:
        raise RefusedError("unknown_lease", f"group {group_id} was never admitted")
    return counted(Counter.LATE, "late")


def counted(what: Counter, outcome: Outcome) -> Decision[Outcome]:
    """An answer that changes no group."""
    return Decision((events.Counted(what=what),), outcome)


def release_prompt(
    ledger: Ledger, lease: Lease, *, lost: bool = False, error: str = ""
) -> Decision[None]:
    """Let unfinished indices of a generation lease wait again; a stale lease changes nothing."""
    group = ledger.groups.get(lease.group_id)
    if group is None:
        return Decision((), None)
    held = tuple(
        index
        for index in lease.indices
        if index < len(group.indices) and _is_held(group.indices[index], lease.attempt)
    )
    if not held:
        return Decision((), None)
    error = cap_error(error)
    released = events.Released(
        group_id=lease.group_id, indices=held, attempt=lease.attempt, lost=lost, error=error
    )
    poison = [group.indices[index] for index in held]
    latest = [describe_error(index, group.indices[index].owner, error) for index in held if error]
    return Decision((released, *dead_letter(ledger, group, poison, lost, latest)), None)


def _is_held(item: IndexRecord, attempt: int) -> bool:
    return item.phase is GENERATING and item.attempt == attempt


def dead_letter(
    ledger: Ledger,
    group: GroupRecord,
    items: Sequence[IndexRecord],
    lost: bool,
    latest: Sequence[str],
) -> tuple[AnyEvent, ...]:
    """The dead letter of a group whose worst index has used up its deliveries, or nothing.

    ``items`` have just been lost, or have ended in the errors of ``latest``.
    """
    worst = max(
        (item.num_errors + bool(latest)) * LOST_PER_ERROR + item.num_lost + lost for item in items
    )
    if worst < ledger.rules.max_attempts * LOST_PER_ERROR:
        return ()
    num_errors = len(group.errors) + len(latest)
    reason = f"it ended in an error {num_errors} times and was lost {_num_lost(group) + lost} times"
    return (dead_letter_of(group, reason, latest),)


def _num_lost(group: GroupRecord) -> int:
    return sum(item.num_lost for item in group.indices)


def give_up(ledger: Ledger, group_id: int, limit_s: float) -> Decision[None]:
    """Dead-letter a group that was not verified within ``limit_s``; another stays as it is."""
    group = ledger.groups.get(group_id)
    if group is None or group.place is not OPEN or group.is_verified:
        return Decision((), None)
    reason = f"not verified within broker.max_group_s ({limit_s:g} s) of its first lease"
    counted = events.Counted(what=Counter.TIMED_OUT)
    return Decision((counted, dead_letter_of(group, reason)), None)
