"""Deadline-FIFO admission: the pure arithmetic that makes the bound on policy lag hard.

Vocabulary. ``s`` is the policy_step being computed, ``P`` the groups in a training batch and ``T``
the groups already handed to the learner for batch ``s``. A group whose oldest token was sampled at
step ``v`` has the deadline ``v + max_policy_lag``: it must be in a batch computed at or before that
step. ``U(<=d)`` counts the outstanding groups, not in ``T``, whose deadline is at most ``d``.

Invariant::

    for every d >= s:   U(<=d)  <=  (d - s + 1) * P - |T|

The right-hand side is the number of places left in the batches ``s .. d``.

*Start.* Nothing is outstanding: 0 <= (d - s + 1) * P.

*Admit* a group with deadline ``e``: ``U(<=d)`` rises by one for each ``d >= e``, so
:func:`may_admit` checks exactly those ``d``. Beyond the largest deadline ``U`` is constant while
the right-hand side grows, so the check ends there.

*Hand over* a group with deadline ``e``: ``|T|`` rises by one, and ``U(<=d)`` falls by one for each
``d >= e``. There the two cancel; for ``d < e`` :func:`may_hand_over` checks them. A later deadline
has more to check, so the earliest deadline can always go first.

*Leave* (evicted, dead-lettered): ``U`` or ``|T|`` falls, which keeps the invariant.

*Move* a deadline later: ``U(<=d)`` only falls. Earlier: :func:`may_move`.

*Commit* with ``|T| = P``: at ``d = s`` the invariant reads ``U(<=s) <= 0``, so no outstanding group
has the deadline ``s`` and none can outlive its deadline. With ``s' = s + 1`` and ``T' = {}`` the
bound for ``d`` is ``(d - s) * P``, which equals ``(d - s + 1) * P - |T|``: it still holds.

*Put back* at a rollback from ``s`` to ``c``: by then the batches ``c .. s - 1`` and ``T`` hold
``(s - c) * P + |T|`` groups. For ``d >= s`` adding them to both sides gives
``U(<=d) <= (d - c + 1) * P``; for ``c <= d < s`` every group with a deadline of at most ``d`` was
in one of the batches ``c .. d``, at most ``(d - c + 1) * P`` of them. Only ages that change at a
fork can break it, and :func:`choose_evictions` then drops as few groups as possible.

*No deadlock.* If the learner waits (``|T| < P``) then either more than ``P - |T|`` groups are
outstanding, and those with a tight deadline are being worked on and may be handed over when they
are verified; or fewer are, and :func:`may_admit` allows one more to an actor that serves step
``s``, because its deadline ``s + max_policy_lag`` is the largest there is.

Every function costs O(max_policy_lag): counts are kept by deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """What a decision depends on: ``s``, ``P``, ``|T|`` and the outstanding groups by deadline."""

    policy_step: int
    groups_per_step: int
    num_handed_over: int
    num_by_deadline: Mapping[int, int]

    def room(self, deadline_step: int) -> int:
        """Places left in the batches up to ``deadline_step``: the right-hand side."""
        batches = deadline_step - self.policy_step + 1
        return batches * self.groups_per_step - self.num_handed_over

    def slack(self, first_step: int, end_step: int | None = None) -> int:
        """Smallest ``room(d) - U(<=d)`` for ``first_step <= d < end_step``.

        Without ``end_step`` the range ends with the largest deadline outstanding, beyond which the
        slack only grows.
        """
        if end_step is None:
            end_step = max(max(self.num_by_deadline, default=first_step), first_step) + 1
        total = sum(n for d, n in self.num_by_deadline.items() if d < first_step)
        slacks = []
        for step in range(first_step, end_step):
            total += self.num_by_deadline.get(step, 0)
            slacks.append(self.room(step) - total)
        return min(slacks)

    def holds(self) -> bool:
        """Whether the invariant holds."""
        return self.slack(self.policy_step) >= 0


def may_admit(window: Window, deadline_step: int) -> bool:
    """Whether one more group with this deadline can still meet it, as can all others."""
    return deadline_step >= window.policy_step and window.slack(deadline_step) >= 1


def may_hand_over(window: Window, deadline_step: int) -> bool:
    """Whether a group with this deadline may take a place of the batch being computed."""
    if window.num_handed_over >= window.groups_per_step or deadline_step < window.policy_step:
        return False
    if deadline_step == window.policy_step:
        return True
    return window.slack(window.policy_step, deadline_step) >= 1


def may_move(window: Window, old_step: int, new_step: int) -> bool:
    """Whether an outstanding group may change its deadline from ``old_step`` to ``new_step``."""
    if new_step >= old_step:
        return True
    return new_step >= window.policy_step and window.slack(new_step, old_step) >= 1


def may_admit_unbounded(num_outstanding: int, max_outstanding: int) -> bool:
    """Admission of a ``collect`` run: no step, no deadline, only a bound on what is in flight."""
    return num_outstanding < max_outstanding


def choose_evictions(
    deadlines: Mapping[int, int], progress: Mapping[int, int], window: Window
) -> list[int]:
    """Fewest groups to drop so that all others can meet their deadlines.

    ``deadlines`` and ``progress`` (finished rollouts) are by group id; ``window`` gives ``s``,
    ``P`` and ``|T|``. Earliest deadline first is optimal for unit jobs (Moore 1968): where the
    places up to ``d`` do not suffice, any one group with a deadline of at most ``d`` has to go; the
    one with least progress goes, the newest among equals.
    """
    kept: list[int] = []
    evicted: list[int] = []
    for group_id in sorted(deadlines, key=lambda group: (deadlines[group], group)):
        if deadlines[group_id] < window.policy_step:
            evicted.append(group_id)
            continue
        kept.append(group_id)
        if len(kept) > window.room(deadlines[group_id]):
            worst = min(kept, key=lambda group: (progress[group], -group))
            kept.remove(worst)
            evicted.append(worst)
    return evicted
