"""Decisions about prompts and rollouts. Pure: read the ledger, return events.

Effectively once: an attempt is granted once and never again, the first complete rollout of an index
wins, and whatever comes later is answered without changing the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from broker import events
from broker.admission import may_admit, may_admit_unbounded, may_move
from broker.events import AnyEvent, Counter
from broker.groups import GroupRecord, IndexRecord, Phase, Place
from broker.ledger import Ledger
from broker.ledger_state import Decision
from common.errors import RefusedError
from common.messages import Lease, PromptLease
from common.types import (
    EvictReason,
    Prompt,
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

MAX_REASON = 4000


def lease_prompt(
    ledger: Ledger,
    owner: str,
    serving: WeightVersion,
    prompt_at: Callable[[int], Prompt | None],
) -> Decision[PromptLease | None]:
    """Work for an actor that proved that it serves ``serving``: a waiting group, else a new one.

    ``prompt_at`` maps the prompt cursor to a prompt, or None when the source is used up.
    """
    if not may_sample(ledger, serving):
        return Decision((), None)
    for group_id in ledger.index.waiting.firsts():
        group = ledger.groups[group_id]
        deadline_step = _deadline_for_lease(ledger, group, serving)
        if deadline_step is not None:
            return _leased(ledger, group.prompt, group, owner, serving, deadline_step)
    return _admitted(ledger, owner, serving, prompt_at)


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
    prompt_at: Callable[[int], Prompt | None],
) -> Decision[PromptLease | None]:
    deadline_step = ledger.deadline_of(serving)
    if ledger.is_train:
        room = may_admit(ledger.window(), deadline_step)
    else:
        room = may_admit_unbounded(len(ledger.groups), ledger.rules.max_outstanding_groups)
    prompt = prompt_at(ledger.state.next_group_id) if room else None
    if prompt is None:
        return Decision((), None)
    group_id, size = ledger.state.next_group_id, ledger.rules.group_size
    admitted = events.Admitted(group_id=group_id, prompt=prompt, size=size)
    fresh = GroupRecord(group_id, prompt, [IndexRecord() for _ in range(size)])
    lease = _leased(ledger, prompt, fresh, owner, serving, deadline_step)
    return Decision((admitted, *lease.events), lease.outcome)


def _leased(
    ledger: Ledger,
    prompt: Prompt,
    group: GroupRecord,
    owner: str,
    serving: WeightVersion,
    deadline_step: int,
) -> Decision[PromptLease | None]:
    indices = tuple(group.in_phase(Phase.WAITING))
    attempt = ledger.state.next_attempt
    event = events.Leased(
        group_id=group.group_id,
        indices=indices,
        attempt=attempt,
        owner=owner,
        version=serving,
        deadline_step=deadline_step,
    )
    lease = Lease(group_id=group.group_id, indices=indices, attempt=attempt)
    return Decision((event,), PromptLease(prompt=prompt, lease=lease))


def _deadline_for_lease(ledger: Ledger, group: GroupRecord, serving: WeightVersion) -> int | None:
    """Deadline of a waiting group once ``serving`` samples it, or None when it could be missed.

    A group without tokens starts afresh and may get a later deadline; one with tokens keeps the
    deadline of its oldest token.
    """
    fresh = ledger.deadline_of(serving)
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
    if group.place is not Place.OPEN:
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
    released = events.Released(
        group_id=lease.group_id, indices=held, attempt=lease.attempt, lost=lost, error=error
    )
    poison = [group.indices[index] for index in held]
    return Decision((released, *dead_letter(ledger, group, poison, lost, error)), None)


def _is_held(item: IndexRecord, attempt: int) -> bool:
    return item.phase is Phase.GENERATING and item.attempt == attempt


def dead_letter(
    ledger: Ledger, group: GroupRecord, items: Sequence[IndexRecord], lost: bool, error: str
) -> tuple[AnyEvent, ...]:
    """The dead letter of a group whose worst index has used up its deliveries, or nothing."""
    limit = ledger.rules.max_attempts
    spent = any(
        (item.num_errors + bool(error)) * LOST_PER_ERROR + item.num_lost + lost
        >= limit * LOST_PER_ERROR
        for item in items
    )
    if not spent:
        return ()
    told = [*group.errors, error] if error else [*group.errors, "its holders vanished"]
    return (events.DeadLettered(group_id=group.group_id, reason="; ".join(told)[:MAX_REASON]),)
