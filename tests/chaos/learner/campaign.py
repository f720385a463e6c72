"""A learner under fire: lives that end by kill, halt or stop one after the other, and an oracle."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import EXIT_INFRA
from tests.chaos.learner.knife import WAYS, Cut
from tests.chaos.learner.oracle import check_checkpoints, check_groups, check_same
from tests.chaos.learner.rank import PEER_LIMIT_S, Life, RankEnd, Zygote, joined_file
from tests.chaos.learner.remote_broker import BrokerServer
from tests.unit.learner.small_run import small_broker

STOP_LIMIT_S = 25.0
"""A learner that is asked to stop ends within that (``learner.stop_grace_s``)."""
LAST_STEPS = 3
"""Steps that the run must still take once all trouble is over."""
_POLL_S = 0.01
_LIFE_LIMIT_S = 120.0


@dataclass(frozen=True)
class Death:
    """How one life is to end: at an operation, or by a signal to one rank (-1: to all)."""

    cut: Cut | None = None
    after_s: float = 0.0
    rank: int = 0
    signal: int = signal.SIGKILL

    @property
    def kind(self) -> str:
        """A name for the report."""
        if self.cut is not None:
            return f"kill {self.cut.how} an operation"
        return {signal.SIGSTOP: "halt", signal.SIGTERM: "stop"}.get(
            signal.Signals(self.signal), "kill at a moment"
        )


@dataclass
class Outcome:
    """What a campaign did and found."""

    name: str
    seed: int
    world_size: int
    num_trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    num_steps: int = 0
    num_groups: int = 0
    num_checkpoints_checked: int = 0
    exits: Counter[str] = field(default_factory=Counter)
    """How the ranks that nobody had touched ended."""
    noticed_s: list[float] = field(default_factory=list)
    """From the death or halt of one rank to the end of the last other."""
    stopped_s: list[float] = field(default_factory=list)
    """From SIGTERM to the end of the last rank."""
    is_judged: bool = False
    """The run was brought to its end and compared with one left alone."""
    wall_s: float = 0.0
    violations: list[str] = field(default_factory=list)


def numbered_deaths(numbers: Sequence[int], world_size: int) -> Iterator[Death]:
    """Each operation of ``numbers``, before, half-way or after it, on one rank after the other."""
    for place, number in enumerate(numbers):
        yield Death(cut=Cut(place % world_size, number, WAYS[place // world_size % len(WAYS)]))


def random_deaths(number: int, world_size: int, dice: random.Random) -> Iterator[Death]:
    """Signals at moments from the first import to some steps on; most of them kill."""
    for turn in range(number):
        after_s = dice.uniform(0.0, 1.5 + world_size)
        rank = dice.randrange(world_size)
        if turn % 5 == 4:
            yield Death(after_s=after_s, rank=-1, signal=signal.SIGTERM)
        elif turn % 5 == 2 and world_size > 1:
            yield Death(after_s=dice.uniform(0.0, 1.0), rank=rank, signal=signal.SIGSTOP)
        else:
            yield Death(after_s=after_s, rank=rank)


class Campaign:
    """One run directory, its broker and all lives of its learner."""

    def __init__(
        self,
        folder: Path,
        name: str,
        seed: int,
        world_size: int,
        zygote: Zygote,
        on_trial: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """``on_trial`` is told the outcome so far after each death."""
        self._folder = folder
        self._root = folder / "run"
        self._world_size = world_size
        self._root.mkdir()
        self._zygote = zygote
        self._on_trial = on_trial
        shutil.copytree(zygote.model, self._root / "model")
        self.outcome = Outcome(name, seed, world_size)
        self._num_whole = 0

    def run(self, deaths: Sequence[Death]) -> Outcome:
        """Let all of ``deaths`` happen, let the run end well, and judge it."""
        begin_s = time.monotonic()
        outcome = self.outcome
        server = self._server(self._root)
        try:
            for death in deaths:
                outcome.num_trials += 1
                outcome.faults[death.kind] += 1
                self._live_and_die(death)
                self._check_checkpoints()
                outcome.wall_s = time.monotonic() - begin_s
                self._on_trial(outcome)
            outcome.num_steps = server.broker.policy_step + LAST_STEPS
            self._finish(self._root)
            outcome.violations += server.violations
            outcome.violations += check_groups(self._root, server, num_steps=outcome.num_steps)
            outcome.num_groups = len(server.broker.trained)
            self._compare()
            outcome.is_judged = True
        except (OSError, RuntimeError, TimeoutError) as error:
            outcome.violations.append(f"the run did not get anywhere: {error!r}")
        finally:
            server.close()
        outcome.wall_s = time.monotonic() - begin_s
        return outcome

    def _server(self, root: Path) -> BrokerServer:
        return BrokerServer(root / "broker", small_broker(chunk_sizes=(1, 2)))

    def _live_and_die(self, death: Death) -> None:
        life = Life(str(self._root), self._world_size, cut=death.cut)
        pids = self._zygote.start(life)
        if death.cut is None:
            if death.signal == signal.SIGSTOP:
                self._wait_joined(pids)
            time.sleep(death.after_s)  # the moment is what the trial varies
            for rank, pid in enumerate(pids):
                if death.rank in (rank, -1):
                    _send(pid, death.signal)
        sent_s = time.monotonic()
        with _limit(pids) as is_over:
            ends = self._zygote.wait()
        if is_over.is_set():
            self._blame(f"{death.kind}: it did not happen, or the others did not notice")
        self._judge(death, sent_s, ends)

    def _judge(self, death: Death, sent_s: float, ends: Sequence[RankEnd]) -> None:
        """How long the others took to notice, and whether everybody ended as it should."""
        last_s = max(end.at_s for end in ends)
        if death.signal == signal.SIGTERM and death.cut is None:
            self.outcome.stopped_s.append(last_s - sent_s)
            self._judge_exits(range(self._world_size), ends, allowed=(EXIT_INFRA, -signal.SIGTERM))
            if last_s - sent_s > STOP_LIMIT_S:
                self._blame(f"a stop took {last_s - sent_s:.1f} s")
            return
        victim = death.rank if death.cut is None else death.cut.rank
        others = [rank for rank in range(self._world_size) if rank != victim]
        if ends[victim].exit_code != -signal.SIGKILL:
            self._blame(f"the victim ended with {ends[victim].exit_code}")
        if not all(end.had_joined for end in ends):
            return  # torchrun's to notice
        died_s = sent_s if death.signal == signal.SIGSTOP else ends[victim].at_s
        noticed_s = max((ends[rank].at_s for rank in others), default=died_s) - died_s
        if others:
            self.outcome.noticed_s.append(noticed_s)
        if noticed_s > PEER_LIMIT_S:
            self._blame(f"{death.kind} of rank {victim} was noticed after {noticed_s:.1f} s")
        self._judge_exits(others, ends, allowed=(EXIT_INFRA,))

    def _wait_joined(self, pids: Sequence[int]) -> None:
        """Until every rank has met the others."""
        deadline_s = time.monotonic() + _LIFE_LIMIT_S / 2
        while not all(joined_file(self._root, pid).exists() for pid in pids):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the ranks did not meet")
            time.sleep(_POLL_S)  # a process that starts can only be asked again and again

    def _judge_exits(
        self, ranks: Sequence[int], ends: Sequence[RankEnd], *, allowed: Sequence[int]
    ) -> None:
        for rank in ranks:
            self.outcome.exits[str(ends[rank].exit_code)] += 1
            if ends[rank].exit_code not in allowed:
                self._blame(f"rank {rank} ended with {ends[rank].exit_code}")

    def _check_checkpoints(self) -> None:
        directory = self._root / "run/learner/checkpoints"
        self.outcome.violations += check_checkpoints(directory, at_least=self._num_whole)
        names = [path for path in directory.glob("*") if path.name.isdigit()]
        self.outcome.num_checkpoints_checked += len(names)
        self._num_whole = max(self._num_whole, min(2, len(names)))

    def _finish(self, root: Path) -> None:
        life = Life(str(root), self._world_size, num_steps=self.outcome.num_steps)
        with _limit(self._zygote.start(life)):
            ends = self._zygote.wait()
        if any(end.exit_code for end in ends):
            raise RuntimeError(f"{ends}, see {_tail(root / 'learner.log')}")

    def _compare(self) -> None:
        """Take the same steps once more, undisturbed."""
        alone = self._folder / "alone"
        alone.mkdir()
        server = self._server(alone)
        shutil.copytree(self._zygote.model, alone / "model")
        try:
            self._finish(alone)
        finally:
            server.close()
        self.outcome.violations += check_same(self._root, alone)

    def _blame(self, what: str) -> None:
        self.outcome.violations.append(f"{what} (trial {self.outcome.num_trials})")


@contextlib.contextmanager
def _limit(pids: Sequence[int]) -> Iterator[threading.Event]:
    """End a life that lasts too long, and then say so."""
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        for pid in pids:
            _send(pid, signal.SIGKILL)

    timer = threading.Timer(_LIFE_LIMIT_S, end)
    timer.start()
    try:
        yield is_over
    finally:
        timer.cancel()


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _tail(log: Path) -> str:
    return log.read_text()[-1500:] if log.exists() else "nothing"
