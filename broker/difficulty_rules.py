"""Decisions by difficulty: dropping groups that teach nothing, retiring prompts that are solved.

Pure: read the ledger, return events. *Dynamic sampling* is that of DAPO (Yu et al., arXiv
2503.14476, section 3.2): a group whose rewards are all equal has no advantage, so it leaves as soon
as it is judged and admission fills its place. *Retirement* takes a prompt out of later epochs once
its last groups were all solved.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker import events
from broker.events import AnyEvent
from broker.groups import GroupRecord, Place
from broker.ledger import Ledger
from broker.prompts.state import RETIRED
from common.errors import FatalError
from common.types import EvictReason, RolloutHeader, Verdict

Answer = tuple[RolloutHeader, Verdict]


def after_verdict(
    ledger: Ledger, group: GroupRecord, index: int, verdict: Verdict
) -> tuple[AnyEvent, ...]:
    """What follows when ``verdict`` is the last that ``group`` lacks; nothing before that."""
    last = group.indices[-1]
    if last.verdict is None and index + 1 != len(group.indices):  # so for most: they come in order
        return ()
    if [item.verdict for item in group.indices].count(None) > 1:
        return ()
    answers: list[Answer] = []
    for number, item in enumerate(group.indices):
        judged = verdict if number == index else item.verdict
        if item.rollout is None or judged is None:
            return ()
        answers.append((item.rollout, judged))
    return _after_group(ledger, group, answers)


def _after_group(ledger: Ledger, group: GroupRecord, answers: list[Answer]) -> tuple[AnyEvent, ...]:
    rules = ledger.rules
    dropped = rules.dynamic_sampling and has_equal_rewards(answers)
    gone = _evicted((group.group_id,), EvictReason.ZERO_ADVANTAGE) if dropped else ()
    if group.is_judged:  # one visit counts once
        return gone
    num_passed = sum(is_fully_rewarded(verdict) for _, verdict in answers)
    streak = _solved_in_a_row(ledger, group, num_passed / len(answers))
    retired = bool(streak) and streak >= rules.retire_after
    judged = events.GroupJudged(
        group_id=group.group_id,
        num_judged=len(answers),
        num_passed=num_passed,
        solved_in_a_row=streak,
        retired=retired,
        dropped=dropped,
    )
    idle = _untouched_groups_of(ledger, group) if retired else ()
    return (judged, *gone, *_evicted(idle, EvictReason.RETIRED))


def _solved_in_a_row(ledger: Ledger, group: GroupRecord, pass_ratio: float) -> int:
    """Visits in a row, this one included, at which the prompt was solved."""
    rate = ledger.rules.retire_pass_rate
    if group.position is None or not rate or pass_ratio < rate:
        return 0
    before = ledger.state.prompts.of(group.prompt.prompt_set).solved(group.position)
    return min(before + 1, RETIRED - 1)


def _untouched_groups_of(ledger: Ledger, judged: GroupRecord) -> tuple[int, ...]:
    """Groups of the same prompt that wait for an actor as a whole."""
    waiting = (ledger.groups[group_id] for group_id in ledger.index.waiting)
    return tuple(
        group.group_id
        for group in waiting
        if group.position == judged.position
        and group.prompt.prompt_set == judged.prompt.prompt_set
        and group.is_untouched
        and group.place is Place.OPEN
    )


def _evicted(group_ids: Iterable[int], reason: EvictReason) -> tuple[AnyEvent, ...]:
    gone = tuple(group_ids)
    return (events.Evicted(group_ids=gone, reason=reason),) if gone else ()


def is_fully_rewarded(verdict: Verdict) -> bool:
    """Whether the answer is right: its ``accuracy`` is 1, or without one its reward is the largest.

    The largest reward is the sum of the positive weights, for components are at most 1.
    """
    accuracy = verdict.component("accuracy")
    if accuracy is not None:
        return accuracy >= 1.0
    largest = sum(max(part.weight, 0.0) for part in verdict.components) or 1.0
    return verdict.reward is not None and verdict.reward >= largest


def has_equal_rewards(answers: Iterable[Answer]) -> bool:
    """Whether the summed rewards of all answers with a token are equal, compared exactly.

    That is when every advantage is exactly 0, whichever divisor the learner uses. A group without
    such an answer is left to the learner, which counts it as masked.
    """
    rewards = {verdict.reward for rollout, verdict in answers if rollout.num_completion_tokens}
    return len(rewards) == 1


def check_yield(ledger: Ledger) -> None:
    """Raise :class:`FatalError` when dynamic sampling has kept nothing for too long."""
    rules, streak = ledger.rules, ledger.state.prompts.drop_streak
    limit = rules.max_dropped_batches * rules.groups_per_step
    if not limit or streak.num_groups <= limit:
        return
    solved = streak.num_solved / streak.num_groups
    failed = streak.num_failed / streak.num_groups
    raise FatalError(
        f"learner.dynamic_sampling dropped {streak.num_groups} groups in a row for equal rewards "
        f"and kept none: {solved:.0%} solved by every answer, {failed:.0%} by none; at most "
        f"learner.max_dropped_batches ({rules.max_dropped_batches}) x groups_per_step "
        f"({rules.groups_per_step}) may go (give harder or easier prompts, check the verifier if "
        "all fail, or raise learner.max_dropped_batches)"
    )
