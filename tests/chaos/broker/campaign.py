"""One run under fire: a broker and clients that suffer some trouble, and an oracle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.messages import CommitCheckpoint, EndRun
from common.types import Role
from tests.broker_process import REPOSITORY, BrokerProcess
from tests.chaos.broker.clients import Judge, Learner, Sampler
from tests.chaos.broker.diary import read_diaries
from tests.chaos.broker.knife import Cut
from tests.chaos.broker.oracle import History
from tests.chaos.broker.zygote import Life, Zygote

ENDLESS = 1_000_000
LAST_STEPS = 3
"""Steps that the run must still take once all trouble is over: liveness."""
LIFE_LIMIT_S = 30.0
_FENCED = ("rollout late", "rollout duplicate", "verdict late", "verdict duplicate")
_READY_S = 20.0
_POLL_S = 0.002


@dataclass
class Outcome:
    """What a campaign did and found."""

    name: str
    seed: int
    num_trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    num_steps: int = 0
    num_acknowledged: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """Answers to rollouts and verdicts, by outcome."""
    recovery_s: list[float] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def blame(self, kind: str, what: object) -> None:
        """Note one broken promise."""
        self.violations.append(f"{kind}: {what}"[:400])


class Campaign:
    """A broker under a zygote, its clients and their history."""

    def __init__(
        self, folder: Path, name: str, seed: int, broker: BrokerProcess | None = None
    ) -> None:
        self.folder = folder
        self.broker = broker or BrokerProcess(folder, num_steps=ENDLESS)
        self.history = History()
        self.outcome = Outcome(name, seed)
        self.dice = random.Random(seed)
        self.log = folder / "broker.log"
        self.at_end = contextlib.ExitStack()
        """What to close after the run."""
        self._zygote = Zygote(REPOSITORY)
        self._pid = 0
        self.was_killed = False
        """Whether the present life was ended by :meth:`kill`."""
        self._stop = asyncio.Event()

    def run(self, trouble: Trouble, cast: Cast | None = None) -> Outcome:
        """Let ``trouble`` happen to a run, then let the run end well and judge it.

        ``cast`` are the actors and verifiers; by default two and one in this process.
        """
        started_s = time.monotonic()
        try:
            asyncio.run(self._run(trouble, cast or usual_cast))
        finally:
            self.close()
        self.history.check()
        outcome = self.outcome
        outcome.violations += self.history.violations
        outcome.num_steps = len(self.history.steps)
        outcome.num_acknowledged = len(self.history.rollouts)
        outcome.answers = self.history.outcomes
        outcome.measures["fenced"] = sum(outcome.answers[answer] for answer in _FENCED)
        outcome.wall_s = time.monotonic() - started_s
        return outcome

    def close(self) -> None:
        """End everything that was started."""
        self.at_end.close()
        self.kill()
        self._zygote.close()

    # --- the broker -------------------------------------------------------------------------------

    def start(self, cut: Cut | None = None) -> None:
        """Begin a life of the broker."""
        life = Life(str(self.broker.run_file), str(self.log), cut)
        self._pid = self._zygote.start(life)
        self.was_killed = False

    def kill(self) -> None:
        """SIGKILL."""
        self.was_killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def until_dead(self, limit_s: float | None = LIFE_LIMIT_S) -> int:
        """The exit code; a life that does not reach its end in time is ended, and is a finding."""
        waiting = asyncio.ensure_future(asyncio.to_thread(self._zygote.wait))
        done, _ = await asyncio.wait({waiting}, timeout=limit_s)
        if not done:
            self.kill()
            await waiting
            raise TimeoutError("a broker did not get anywhere")
        return waiting.result()

    async def until_ready(self) -> float:
        """Seconds until the broker of this life serves."""
        started_s = time.monotonic()
        async with asyncio.timeout(_READY_S):
            while not self.is_ready():
                await asyncio.sleep(_POLL_S)
        return time.monotonic() - started_s

    def is_ready(self) -> bool:
        """Whether this life of the broker says that it serves."""
        file = self.broker.paths.ready / "broker.json"
        try:
            state = json.loads(file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return bool(state["pid"] == self._pid and state["state"] == "ready")

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """What the broker logged under ``event``, over all its lives."""
        if not self.log.exists():
            return []
        lines = [line for line in self.log.read_text().splitlines() if event in line]
        return [json.loads(line) for line in lines if line.startswith("{")]

    # --- the run ----------------------------------------------------------------------------------

    async def _run(self, trouble: Trouble, cast: Cast) -> None:
        self.start()
        learner = await Learner.connect(self.broker)
        workers = [asyncio.create_task(work) for work in cast(self)]
        training = asyncio.create_task(learner.go_on(self.history, self._stop))
        suffering = asyncio.create_task(self._suffer(trouble, learner, training))
        tasks = {*workers, training, suffering}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            self.kill()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                self.history.blame("stopped", repr(ended))
        await learner.channel.close()

    async def _suffer(
        self, trouble: Trouble, learner: Learner, training: asyncio.Task[None]
    ) -> None:
        """All the trouble, some steps in peace, the end of the run and its books."""
        try:
            await trouble(self)
            goal = len(self.history.steps) + LAST_STEPS
            async with asyncio.timeout(LIFE_LIMIT_S):
                while len(self.history.steps) < goal:
                    await asyncio.sleep(0.01)
        finally:
            self._stop.set()
        await training
        await self._end(learner)

    async def _end(self, learner: Learner) -> None:
        """With everybody idle: is all that was acknowledged and not trained still there?"""
        probe = await self.broker.connect(Role.SUPERVISOR, "probe")
        await probe.close()
        read_diaries(self.folder, self.history)
        self.history.dead = self._dead_lettered()
        evicted = (await learner.status()).groups.evicted
        await learner.check_kept(self.history.untrained(), num_evicted=evicted)
        await learner.channel.request(CommitCheckpoint(policy_step=len(learner.steps)))
        await learner.channel.request(EndRun())
        self.history.dead = self._dead_lettered()  # workers went on until here
        self.history.check_end(await learner.status())

    def _dead_lettered(self) -> set[int]:
        """Groups that were given up, as the log tells."""
        return {line["group"] for line in self.log_lines("group dead-lettered")}


Trouble = Callable[[Campaign], Awaitable[None]]
Cast = Callable[[Campaign], list[Coroutine[Any, Any, None]]]


def usual_cast(campaign: Campaign) -> list[Coroutine[Any, Any, None]]:
    """Two actors and a verifier, in this process."""
    connect, history, dice = campaign.broker.connect, campaign.history, campaign.dice
    return [
        Sampler(connect, "actor-0", history, random.Random(dice.random())).run(),
        Sampler(connect, "actor-1", history, random.Random(dice.random())).run(),
        Judge(connect, "verifier-0", history, random.Random(dice.random())).run(),
    ]
