"""Decisions about a learner that starts again. Pure: read the ledger, return events.

A learner starts from a checkpoint and replays the step records that follow it. Where it cannot
reproduce what it had published it forks: the groups of the lost steps wait again, tokens of the
lost branch grow older, and groups that can meet no deadline any more are evicted.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from broker import events
from broker.admission import Window, choose_evictions
from broker.events import AnyEvent
from broker.groups import GroupRecord, Place
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.timeline import Fork, Timeline
from common.errors import RefusedError
from common.messages import ResumeLearner
from common.types import EvictReason


def resume(ledger: Ledger, message: ResumeLearner) -> Decision[None]:
    """A learner starts at a checkpoint; see :class:`common.messages.ResumeLearner`.

    Raises :class:`RefusedError` when it would need groups that have ended.
    """
    forked = _is_fork(ledger, message)
    covered = _covered_by_checkpoint(ledger, message.policy_step)
    _check_resume(ledger, message, forked, covered)
    held = [
        group.group_id
        for group in ledger.groups.values()
        if group.place is not Place.OPEN and group.group_id not in covered
    ]
    resumed = events.Resumed(
        incarnation=message.incarnation,
        checkpoint_step=message.policy_step,
        policy_step=message.policy_step,
        forked=forked,
    )
    stepped = [
        events.Stepped(policy_step=batch.policy_step, group_ids=batch.group_ids)
        for batch in message.stepped
    ]
    timeline = ledger.state.timeline
    if forked:
        timeline = timeline.forked(message.incarnation, message.policy_step)
    listed = {group_id for batch in message.stepped for group_id in batch.group_ids}
    returned = [group_id for group_id in held if group_id not in listed]
    stale = evict_stale(
        ledger, message.policy_step + len(stepped), returned, timeline, excluded=listed
    )
    trained = (events.Trained(policy_step=message.policy_step),) if covered else ()
    return Decision((*trained, *put_back(held), resumed, *stepped, *stale), None)


def refuse_older_journal(message: ResumeLearner, num_events: int) -> None:
    """Raise :class:`RefusedError` where ``num_events`` are fewer than the checkpoint knows of.

    What the learner was told is durable, so its journal can never get shorter: this is an older
    copy, or another journal of the same run id, that may not know which groups were trained.
    """
    if num_events < message.num_journal_events:
        raise RefusedError(
            "older_journal",
            f"the journal must have the {message.num_journal_events} events that the checkpoint "
            f"of step {message.policy_step} knows of, it has {num_events}: groups could be trained "
            "twice (look at the journal with headrace journal check and restore the newest copy, "
            "or delete the checkpoints that are newer than it)",
        )


def _is_fork(ledger: Ledger, message: ResumeLearner) -> bool:
    """Whether the learner opens an incarnation that the ledger does not know yet.

    A newer incarnation is a fork even if the learner does not say so: it died before it could. A
    fork that is known already was sent again, or nothing has come of it.
    """
    timeline = ledger.state.timeline
    if message.incarnation > timeline.incarnation:
        return True
    known = Fork(incarnation=message.incarnation, policy_step=message.policy_step)
    next_step = message.policy_step + len(message.stepped)
    is_repeated = timeline.forks[-1:] == (known,) and ledger.state.policy_step == next_step
    return message.forked and not is_repeated


def _covered_by_checkpoint(ledger: Ledger, policy_step: int) -> set[int]:
    """Stepped groups that are trained because the learner starts from a checkpoint after them."""
    stepped = ledger.state.stepped.items()
    return {group_id for step, members in stepped if step < policy_step for group_id in members}


def _check_resume(
    ledger: Ledger, message: ResumeLearner, forked: bool, covered: Container[int]
) -> None:
    state = ledger.state
    if message.incarnation < state.timeline.incarnation + forked:
        raise RefusedError(
            "stale_incarnation",
            f"incarnation {state.timeline.incarnation} is known, so {message.incarnation} "
            f"cannot be {'a new' if forked else 'the current'} one",
        )
    if message.policy_step < state.checkpoint_step and not message.forked:
        raise RefusedError(
            "trained",
            f"the groups of steps {message.policy_step}..{state.checkpoint_step - 1} are trained "
            f"(restore checkpoint {state.checkpoint_step}, or fork)",
        )
    steps = [batch.policy_step for batch in message.stepped]
    first = message.policy_step
    if steps != list(range(first, first + len(steps))):
        raise RefusedError("malformed", f"step records must follow step {first}, got {steps}")
    listed = [group_id for batch in message.stepped for group_id in batch.group_ids]
    _check_replayable(ledger, listed, covered)


def _check_replayable(ledger: Ledger, group_ids: Sequence[int], covered: Container[int]) -> None:
    if len(set(group_ids)) != len(group_ids):
        raise RefusedError("malformed", "a group is in two step records")
    for group_id in group_ids:
        group = ledger.groups.get(group_id)
        if group is None or group_id in covered or not group.is_verified:
            raise RefusedError(
                "gone", f"group {group_id} cannot be replayed: it has ended (resume with a fork)"
            )


def put_back(group_ids: Sequence[int]) -> tuple[AnyEvent, ...]:
    """The event that takes groups from the consumer, if there are any."""
    return (events.PutBack(group_ids=tuple(group_ids)),) if group_ids else ()


def evict_stale(
    ledger: Ledger,
    policy_step: int,
    returned: Iterable[int],
    timeline: Timeline,
    excluded: Iterable[int] = (),
) -> tuple[AnyEvent, ...]:
    """Evict and restamp open groups as the policy demands, now that ``policy_step`` is computed.

    ``returned`` are groups that the consumer no longer holds, ``excluded`` open ones that it will,
    ``timeline`` is about to be the current one. ``wait`` restores its invariant, ``drop_group``
    drops what is overdue, ``mask_tokens`` drops nothing.
    """
    taken, back = set(excluded), set(returned)
    moved_on = timeline != ledger.state.timeline or bool(taken or back)
    if not ledger.is_train or not (moved_on or _has_overdue(ledger, policy_step)):
        return ()
    is_known = timeline == ledger.state.timeline
    return _stamp_anew(ledger, policy_step, back, timeline, taken, is_known=is_known)


def adopt_rules(ledger: Ledger) -> Decision[None]:
    """A broker starts: open groups were admitted under rules that may have changed since.

    A smaller ``max_policy_lag`` holds for them too, and fewer groups a step may leave some without
    a batch. Where the rules are those of before nothing happens.
    """
    state = ledger.state
    if not ledger.is_train:
        return Decision((), None)
    stamped = _stamp_anew(ledger, state.policy_step, (), state.timeline, (), is_known=False)
    return Decision(stamped, None)


def _stamp_anew(
    ledger: Ledger,
    policy_step: int,
    back: Container[int],
    timeline: Timeline,
    taken: Container[int],
    *,
    is_known: bool,
) -> tuple[AnyEvent, ...]:
    """``is_known``: deadlines stand as they were stamped, but for groups that start afresh."""
    groups = [
        group
        for group in ledger.groups.values()
        if (group.place is Place.OPEN or group.group_id in back) and group.group_id not in taken
    ]
    deadlines = {
        g.group_id: _deadline_under(ledger, g, timeline, policy_step, is_known=is_known)
        for g in groups
    }
    stale = _too_late(ledger, groups, deadlines, policy_step)
    gone = set(stale)
    restamped = [
        events.Restamped(group_id=g.group_id, deadline_step=deadlines[g.group_id])
        for g in groups
        if deadlines[g.group_id] != g.deadline_step and g.group_id not in gone
    ]
    evicted = events.Evicted(group_ids=tuple(stale), reason=EvictReason.STALE)
    return (*restamped, evicted) if stale else tuple(restamped)


def _has_overdue(ledger: Ledger, policy_step: int) -> bool:
    """Whether an open group should have been in a batch before ``policy_step``."""
    if ledger.rules.staleness == "mask_tokens":
        return False
    return min(ledger.index.num_by_deadline, default=policy_step) < policy_step


def _too_late(
    ledger: Ledger, groups: Sequence[GroupRecord], deadlines: Mapping[int, int], policy_step: int
) -> list[int]:
    """Which of ``groups`` are evicted as stale."""
    rules = ledger.rules
    if rules.staleness == "mask_tokens":
        return []
    if rules.staleness == "drop_group":
        return [group_id for group_id, deadline in deadlines.items() if deadline < policy_step]
    progress = {group.group_id: group.num_finished for group in groups}
    return choose_evictions(deadlines, progress, Window(policy_step, rules.groups_per_step, 0, {}))


def _deadline_under(
    ledger: Ledger,
    group: GroupRecord,
    timeline: Timeline,
    policy_step: int,
    *,
    is_known: bool,
) -> int:
    """The group's deadline once ``timeline`` is current; a group without tokens starts afresh.

    Its deadline is only its place in the queue. No open one may be below ``policy_step`` (I0 in
    :mod:`broker.admission`), except under ``mask_tokens``: there deadlines pass and shut nobody
    out, a group whose tokens were lost late may have such a one, and it stays first in the queue.
    """
    if group.is_untouched:
        may_pass = ledger.rules.staleness == "mask_tokens"
        return group.deadline_step if may_pass else max(group.deadline_step, policy_step)
    if is_known:
        return group.deadline_step
    versions = list(group.sampling_versions())
    return min(
        group.deadline_step, *(ledger.deadline_under(timeline, version) for version in versions)
    )
