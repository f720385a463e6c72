"""A run as pure arithmetic, without the broker: what any schedule under the hard bound comes to.

The same world as :mod:`broker.simulation.run` (slots, lengths, a learner that is busy for the
tokens, the bound), but every choice is open: the order of the prompts, which admitted completion a
free slot takes, how many groups are outstanding, which verified group the learner takes. Choices
may know all lengths beforehand. Where they are the broker's, the times are the broker's, to the
last bit; a test holds the two together.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.simulation.lengths import Workload
from broker.simulation.setting import Setting

SlotKey = Callable[["Problem", int, int], float]
"""(problem, group, index) -> what a free slot takes first, smallest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A setting with all its lengths drawn."""

    setting: Setting
    lengths: tuple[tuple[float, ...], ...]
    train_s: tuple[float, ...]

    @classmethod
    def of(cls, setting: Setting) -> Problem:
        """All groups that the run of ``setting`` trains."""
        workload = Workload(setting.lengths, setting.group_size, setting.seed)
        num_groups = setting.num_steps * setting.groups_per_step
        lengths = tuple(workload.group(group_id) for group_id in range(num_groups))
        return cls(
            setting=setting, lengths=lengths, train_s=tuple(setting.train_s(g) for g in lengths)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One schedule, as choices; the default is the broker's."""

    name: str = "as the broker"
    order: Sequence[int] | None = None
    """Groups in order of admission; as they come, if None."""
    slot_key: SlotKey | None = None
    """Which admitted completion starts next; first come first served, if None."""
    max_outstanding: float = 1.0
    """Share of the ``(eta + 1) * P`` groups that the bound allows."""
    is_eager: bool = False
    """Admission does not wait for a free slot, so that there is more to choose from."""
    hold_s: float = 0.0
    """Admission waits so long after each publish."""
    hand_over_first: SlotKey | None = None
    """Among groups of one deadline: which the learner takes first; the first verified, if None."""
    max_chunk: int = 1 << 30
    """Groups that the learner takes at once."""


class ScheduleModel:
    """Runs one plan; :meth:`end_s` is when the last batch is committed."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        setting = problem.setting
        self._problem, self._plan, self._setting = problem, plan, setting
        self._order = plan.order if plan.order is not None else range(len(problem.lengths))
        self._step = 0
        self._version = 0
        self._num_admitted = 0
        self._num_handed_over = 0
        self._open: dict[int, int] = {}
        self._verified: dict[int, list[tuple[float, int, int]]] = {}
        self._num_verified = 0
        self._deadline: dict[int, int] = {}
        self._unfinished: dict[int, int] = {}
        self._backlog: list[tuple[float, int, int, int]] = []
        self._num_queued = 0
        self._free = setting.num_slots
        self._num_trained = 0
        self._is_busy = False
        self._now_s = 0.0
        self._agenda: list[tuple[float, int, Callable[[int], None], int]] = []
        self._num_planned = 0
        self._limit = int(
            max(1.0, plan.max_outstanding * setting.groups_per_step * (setting.max_policy_lag + 1))
        )
        # A batch must be able to fill, or nothing would ever move.
        self._limit = max(self._limit, setting.groups_per_step)

    def end_s(self) -> float:
        """Run to the end and return when that was."""
        self._offer(0)
        while self._step < self._setting.num_steps:
            self._now_s, _, action, argument = heapq.heappop(self._agenda)
            action(argument)
        return self._now_s

    def _after(self, delay_s: float, action: Callable[[int], None], argument: int) -> None:
        self._num_planned += 1
        heapq.heappush(self._agenda, (self._now_s + delay_s, self._num_planned, action, argument))

    # --- admission and generation -----------------------------------------------------------------

    def _offer(self, _: int) -> None:
        """Admit while slots are free (if they matter) and the bound allows it."""
        if self._plan.is_eager:
            while self._may_admit():
                self._admit()
        self._fill()
        while self._free > 0 and self._may_admit():
            self._admit()
            self._fill()

    def _may_admit(self) -> bool:
        """As :func:`broker.admission.may_admit`, for the largest deadline there is."""
        if self._num_admitted >= len(self._order):
            return False
        setting = self._setting
        outstanding = self._num_admitted - self._num_trained
        last = min(self._version + setting.max_policy_lag, setting.num_steps - 1)
        room = (last - self._step + 1) * setting.groups_per_step
        return outstanding < min(room, self._limit)

    def _admit(self) -> None:
        group_id = self._order[self._num_admitted]
        self._num_admitted += 1
        setting = self._setting
        deadline = min(self._version + setting.max_policy_lag, setting.num_steps - 1)
        self._deadline[group_id] = deadline
        self._open[deadline] = self._open.get(deadline, 0) + 1
        self._unfinished[group_id] = setting.group_size
        key = self._plan.slot_key
        for index in range(setting.group_size):
            first = 0.0 if key is None else key(self._problem, group_id, index)
            self._num_queued += 1
            heapq.heappush(self._backlog, (first, self._num_queued, group_id, index))

    def _fill(self) -> None:
        """Start what is admitted while slots are free."""
        while self._free > 0 and self._backlog:
            _, _, group_id, index = heapq.heappop(self._backlog)
            self._free -= 1
            length = self._problem.lengths[group_id][index]
            self._after(length * self._setting.latency_s, self._finish, group_id)

    def _finish(self, group_id: int) -> None:
        self._free += 1
        self._offer(0)
        self._unfinished[group_id] -= 1
        if not self._unfinished[group_id]:
            self._after(self._setting.verify_s, self._verify, group_id)

    # --- training ---------------------------------------------------------------------------------

    def _verify(self, group_id: int) -> None:
        key = self._plan.hand_over_first
        first = 0.0 if key is None else key(self._problem, group_id, 0)
        self._num_verified += 1
        ready = self._verified.setdefault(self._deadline[group_id], [])
        heapq.heappush(ready, (first, self._num_verified, group_id))
        self._poke()

    def _poke(self) -> None:
        """An idle learner takes what it may have, earliest deadline first."""
        if self._is_busy or self._step >= self._setting.num_steps:
            return
        taken: list[int] = []
        lacking = self._setting.groups_per_step - self._num_handed_over
        for deadline in sorted(self._verified):
            ready = self._verified[deadline]
            while ready and len(taken) < min(lacking, self._plan.max_chunk):
                if not self._may_hand_over(deadline):
                    break
                taken.append(heapq.heappop(ready)[2])
                self._open[deadline] -= 1
                self._num_handed_over += 1
        if taken:
            self._is_busy = True
            train_s = sum(self._problem.train_s[group_id] for group_id in taken)
            self._after(train_s, self._trained, len(taken))

    def _may_hand_over(self, deadline: int) -> bool:
        """As :func:`broker.admission.may_hand_over`."""
        total = 0
        places = self._setting.groups_per_step - self._num_handed_over
        if places <= 0:
            return False
        for step in range(self._step, deadline):
            total += self._open.get(step, 0)
            if total >= places:
                return False
            places += self._setting.groups_per_step
        return True

    def _trained(self, _: int) -> None:
        self._is_busy = False
        if self._num_handed_over == self._setting.groups_per_step:
            self._num_trained += self._num_handed_over
            self._num_handed_over = 0
            self._step += 1
            self._after(self._setting.publish_s, self._publish, self._step)
        self._poke()

    def _publish(self, step: int) -> None:
        self._version = step
        if self._plan.hold_s:
            self._after(self._plan.hold_s, self._offer, 0)
        else:
            self._offer(0)
