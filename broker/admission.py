"""Deadline-FIFO admission: the pure arithmetic that makes the bound on policy lag hard.

Definitions
-----------
``s``       policy_step being computed; ``T`` the groups handed over for its batch
``P``       groups in a batch; ``eta`` the bound (``max_policy_lag``)
eff(w)      the step on the current branch that is as old as weights ``w`` (:mod:`broker.timeline`);
            a token of ``w`` has lag ``s - eff(w)`` in batch ``s``
deadline    of a group: the smallest eff(w) + eta over all its tokens, those that a lease is for
            included, and at most the run's last step; stamped with the version that the *leasing
            actor has proved* to serve, and lowered when a rollout names older weights than that
open        admitted and not ended, handed over or stepped; *untouched* if none of its tokens exist
            or are being sampled, its deadline is then only its place in the queue
U(<=d)      open groups with deadline at most ``d``; ``U`` all open groups
R(d)        ``(d - s + 1) * P - |T|``: places left in the batches ``s .. d``

Groups already accumulated count (``T`` until its step commits), and ``U`` counts from the oldest
open group on, however old: the two other rules that a simulation showed to cost a step each.

What each policy guarantees
---------------------------
(A) *Every policy*: no token of lag above ``eta`` contributes gradient.
(B) *Every policy*: no admission makes ``U + |T|`` exceed ``(eta + 1) * P``. The sum is above that
    only while groups that a rollback put back are being used up.
(C) ``wait``: no group leaves as stale, unless the learner forked or lost durable steps.
(D) ``drop_group``, ``mask_tokens``: the learner never waits while a verified group is there that
    may still contribute.
(E) *Every policy*: no deadlock.

``wait``: the invariant
-----------------------
::

    I(d), for every d >= s:   U(<=d) <= R(d)          and I0:   no open deadline is below s

*Start.* 0 <= (d + 1) * P.

*Admit* with deadline ``e``: ``U(<=d)`` rises by one for each ``d >= e`` and :func:`may_admit`
checks exactly those ``d``, and ``e >= s``. Beyond the largest deadline ``U(<=d)`` is constant while
R(d) grows, so the check ends there.

*Hand over* with deadline ``e``: ``|T|`` rises by one, so R(d) falls by one for every ``d``, and
``U(<=d)`` falls by one for each ``d >= e``, where the two cancel. For ``d < e``
:func:`may_hand_over` checks ``U(<=d) < R(d)``. For the earliest deadline there is nothing to
check: ``U(<=d) = 0`` for ``d < e``, and ``R(d) >= P - |T| >= 1``.

*Leave* (dead letter, eviction by the learner): ``U`` or ``|T|`` falls.

*Move* a deadline later (only an untouched group is leased anew): ``U(<=d)`` falls. Earlier, to
``e >= s``: :func:`may_move` checks the ``d`` that gain one. A late rollout that may not move its
group is refused and its index sampled again.

*Commit*, ``|T| = P``: I(s) reads ``U(<=s) <= 0``, which is I0 for ``s + 1``. With ``T = {}`` the
new R(d) is ``(d - s) * P``, the value of the old one, so I(d) stays for every ``d > s``.

*Resume without a fork* replays the durable records, so ``s`` is the step that was being computed
or, if a record was durable and its commit lost, the one after it with exactly ``T`` stepped.
Nothing changes but that ``T`` is put back: for ``d >= s`` both sides of I(d) gain at most ``|T|``.

*Resume with a fork at* ``c <= s``: lost tokens have grown older and the batches ``c .. s - 1`` and
``T`` are put back. Groups whose tokens did not age fit: for ``d >= s`` both sides of I(d) gain
``(s - c) * P + |T|``, and for ``c <= d < s`` a group with deadline at most ``d`` was in one of the
batches ``c .. d``. Those that aged may not, and :func:`choose_evictions` drops as few as possible:
the only stale evictions of ``wait``, (C).

(A): batch ``s`` takes only groups with ``deadline >= s``, by I0 or by the check in
:func:`may_hand_over`; each of their tokens has ``eff(w) + eta >= deadline >= s``. It is trained as
batch ``s`` or put back; eff changes only at a fork, which puts everything back.

(B): every actor serves ``v <= s``, so no deadline is above ``s + eta`` and I(s + eta) is (B). After
a fork an untouched group may keep a later place in the queue, which counts when it is leased.

*Late publishes.* While the newest published weights are ``v < s``, deadlines are at most ``v +
eta``: I admits only what the batches up to ``v + eta`` have room for, the learner computes those,
and then waits for its own publication as for a late group.

*Earliest deadline first is optimal.* Groups are unit jobs and a batch has ``P`` places. If any
schedule meets all deadlines then I(d) holds for every ``d``, for the groups counted by ``U(<=d)``
all sit in the R(d) places up to ``d``; and if I holds, filling places in order of deadline meets
them all. So I is not only sufficient: a group is refused, and a hand-over delayed, exactly where
going on would force some group to be discarded. No rule that discards nothing admits more.

The other policies
------------------
Admission checks the same ``d >= e`` and ``e >= s``; hand-over does not protect other groups, so
I(d) may fail for ``d < s + eta``. At the largest deadline the check still reads ``U + 1 + |T| <=
(eta + 1) * P``: (B). Hand-over, leaving and commit do not raise ``U + |T|``.

``drop_group``: a group goes to batch ``s`` if ``deadline >= s``: (A) as above. When ``s`` becomes
``s + 1`` every open group with tokens and a deadline of at most ``s`` is evicted, so that all
verified groups left may go: (D).

``mask_tokens``: any verified group may go. The hand-over for batch ``s`` masks each span of tokens
with ``eff(w) < s - eta``; the mask is part of the event, a replay of step ``s`` finds it again and
a hand-over for another batch makes another: (A). A group with no token left is evicted{all_masked}
and the next one is taken: (D).

No deadlock (E)
---------------
Suppose that some actor and verifier work, that every lease ends (in a result, an error or its
expiry, which dead-letter the group after a bounded number), and that the weights of step ``s`` are
published in the end. Let ``|T| < P``. One of these is possible until the batch is full:

1. some open group is verified. The earliest of them may go if all open groups are verified, by
   *hand over* above; in the other policies any may.
2. some open group is not verified: a part of it is held, and the lease ends; or waits for a
   verifier; or waits for an actor, and the one that serves ``s`` may take the earliest of those,
   for its deadline ``s + eta`` is not earlier than the group's. (After a fork it may be, for an
   untouched group. Let its deadline be the earliest above ``s + eta``: nothing else has a deadline
   in between, so moving it to ``s + eta`` needs the same room as admitting a group. If there is
   none, R(s + eta) groups with deadlines up to ``s + eta`` are open, and 1 and 2 hold for those.)
3. no group is open: :func:`may_admit` has R(s + eta) >= 1, or the prompts are used up and the run
   ends.

Every step of a group towards being verified uses up something finite, so the batch fills. With
``mask_tokens`` a group may turn out to be all masked. That needs a commit since it was admitted:
between two commits at most the groups open at the first are lost so, and later ones are not.

Every function here costs O(eta): counts are kept by deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Staleness = Literal["wait", "mask_tokens", "drop_group"]


@dataclass(frozen=True, slots=True)
class Window:
    """What a decision depends on: ``s``, ``P``, ``|T|`` and the open groups by deadline."""

    policy_step: int
    groups_per_step: int
    num_handed_over: int
    num_by_deadline: Mapping[int, int]
    staleness: Staleness = "wait"

    def room(self, deadline_step: int) -> int:
        """R(d): places left in the batches up to ``deadline_step``."""
        batches = deadline_step - self.policy_step + 1
        return batches * self.groups_per_step - self.num_handed_over

    def slack(self, first_step: int, end_step: int | None = None) -> int:
        """Smallest ``R(d) - U(<=d)`` for ``first_step <= d < end_step``.

        Without ``end_step`` the range ends with the largest deadline there is, beyond which the
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
        """Whether the invariant of ``wait`` holds: I(d) for every d, and I0."""
        oldest = min(self.num_by_deadline, default=self.policy_step)
        return oldest >= self.policy_step and self.slack(self.policy_step) >= 0


def may_admit(window: Window, deadline_step: int) -> bool:
    """Whether one more group with this deadline has room beside all that are open."""
    return deadline_step >= window.policy_step and window.slack(deadline_step) >= 1


def may_hand_over(window: Window, deadline_step: int) -> bool:
    """Whether a group with this deadline may take a place of the batch being computed."""
    if window.num_handed_over >= window.groups_per_step:
        return False
    if window.staleness == "mask_tokens":
        return True
    if deadline_step < window.policy_step:
        return False
    if window.staleness == "drop_group" or deadline_step == window.policy_step:
        return True
    return window.slack(window.policy_step, deadline_step) >= 1


def may_move(window: Window, old_step: int, new_step: int) -> bool:
    """Whether an open group may change its deadline from ``old_step`` to ``new_step``."""
    if new_step >= old_step or window.staleness == "mask_tokens":
        return True
    if new_step < window.policy_step:
        return False
    return window.staleness == "drop_group" or window.slack(new_step, old_step) >= 1


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
