"""The best schedules that a search finds under the hard bound, in two classes.

*Realisable*: no choice depends on a length that is not known yet. Admission (share of the bound,
delay, ahead of free slots or not), order of completions for slots, order and size of what the
learner takes; the best is picked afterwards on the very lengths it is measured on.

*Clairvoyant*: all lengths are known in advance. Longest first in the slots, and the prompts
themselves put in another order, so that long groups share a step. No scheduler can do this; the
distance is the worth of a perfect length predictor that may also reorder the prompts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from broker.simulation.schedule_model import Plan, Problem, ScheduleModel


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule and when it ends."""

    plan: Plan
    end_s: float


def evaluate(problem: Problem, plan: Plan) -> Found:
    """Run one plan."""
    return Found(plan, ScheduleModel(problem, plan).end_s())


def best_realisable(problem: Problem, num_random: int) -> Found:
    """The best plan that knows no length in advance."""
    plans = [*_plain_plans(), *_random_plans(num_random)]
    return _best(evaluate(problem, plan) for plan in plans)


def best_clairvoyant_slots(problem: Problem) -> Found:
    """The best plan that knows all lengths and keeps the order of the prompts."""
    keys = {
        "longest completion first": _longest_first,
        "longest completion first within each deadline": _longest_in_cohort,
        "group with the longest completion first within each deadline": _longest_group_in_cohort,
    }
    return _best(
        evaluate(problem, Plan(name=name, slot_key=key, is_eager=True))
        for name, key in keys.items()
    )


def best_clairvoyant_order(problem: Problem) -> Found:
    """The best plan that knows all lengths and may train the prompts in any order."""
    return _best(evaluate(problem, plan) for plan in _ordered_plans(problem))


def _best(found: Iterator[Found]) -> Found:
    return min(found, key=lambda item: item.end_s)


def _plain_plans() -> list[Plan]:
    """Each choice alone."""
    return [
        Plan(),
        Plan(name="eager", is_eager=True),
        Plan(name="first members first, eager", slot_key=_by_index, is_eager=True),
        Plan(name="newest group first", slot_key=_newest_first, is_eager=True),
        Plan(name="one group at a time", max_chunk=1),
        Plan(name="nine tenths outstanding", max_outstanding=0.9),
    ]


def _random_plans(number: int) -> Iterator[Plan]:
    source = random.Random("plans")
    for n in range(number):
        slot_key = source.choice([None, _by_index, _newest_first, _shuffled])
        yield Plan(
            name=f"random {n}",
            slot_key=slot_key,
            max_outstanding=source.choice([1.0, 1.0, source.uniform(0.7, 1.0)]),
            is_eager=source.random() < 0.5,
            hold_s=source.choice([0.0, 0.0, source.uniform(0.0, 0.1)]),
            hand_over_first=source.choice([None, _newest_first, _shuffled]),
            max_chunk=source.choice([1, 2, 4, 1 << 30]),
        )


def _ordered_plans(problem: Problem) -> Iterator[Plan]:
    """Prompts sorted by their longest completion inside windows of some batches."""
    num_groups = len(problem.lengths)
    for batches in (3, problem.setting.num_steps):
        window = batches * problem.setting.groups_per_step
        for rising in (False, True):
            order: list[int] = []
            for first in range(0, num_groups, window):
                members = range(first, min(first + window, num_groups))
                order += sorted(members, key=lambda g: max(problem.lengths[g]), reverse=not rising)
            direction = "rising" if rising else "falling"
            yield Plan(
                name=f"prompts sorted, {direction}, over {batches} batches, longest first",
                order=order,
                slot_key=_longest_first,
                is_eager=True,
            )


def _by_index(problem: Problem, group_id: int, index: int) -> float:
    return index


def _newest_first(problem: Problem, group_id: int, index: int) -> float:
    return -group_id


def _shuffled(problem: Problem, group_id: int, index: int) -> float:
    return hash((group_id * 2654435761 + index * 40503) & 0xFFFFFFFF) % 1_000_003


def _longest_first(problem: Problem, group_id: int, index: int) -> float:
    return -problem.lengths[group_id][index]


def _longest_in_cohort(problem: Problem, group_id: int, index: int) -> float:
    return 1000.0 * (group_id // problem.setting.groups_per_step) - problem.lengths[group_id][index]


def _longest_group_in_cohort(problem: Problem, group_id: int, index: int) -> float:
    cohort = group_id // problem.setting.groups_per_step
    return 1000.0 * cohort - max(problem.lengths[group_id])
