"""Honest and hostile jobs side by side: are honest verdicts unchanged, is nothing left behind?"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from actors.verification.code.judge import CodeJudge, CodeSettings
from actors.verification.judgement import Check, VerifyJob
from actors.verification.sandbox.limits import BoxLimits, Tier
from actors.verification.sandbox.sandbox import Sandbox
from tests.integration.sandbox.host import completion_of
from tests.integration.sandbox.hostile import ALL, Hostile
from tests.integration.sandbox.problems import PROBLEMS

HOSTILE_RATIO = 0.2
MIN_SERVICE_RATIO = 0.9
_LIMITS = BoxLimits(cpu_s=2.5, wall_s=5.0)
_CHUNK = 50


@dataclass(frozen=True)
class Expectation:
    """A job, and the value that it must get."""

    job: VerifyJob
    value: float
    is_honest: bool
    name: str


@dataclass
class Findings:
    """What a campaign found."""

    num_honest: int = 0
    num_hostile: int = 0
    wrong_verdicts: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    num_restarts: int = 0
    clean_seconds: list[float] = field(default_factory=list)
    """In a box, of each honest job among honest ones."""
    mixed_seconds: list[float] = field(default_factory=list)
    """In a box, of each honest job among hostile ones."""

    @property
    def service_ratio(self) -> float:
        """Honest throughput of a box that is serving one: beside hostile neighbours over clean."""
        return statistics.median(self.clean_seconds) / statistics.median(self.mixed_seconds)

    def summary(self) -> dict[str, Any]:
        """For printing."""
        return {
            "num_honest": self.num_honest,
            "num_hostile": self.num_hostile,
            "wrong_verdicts": self.wrong_verdicts[:20],
            "left_behind": self.left_behind,
            "num_restarts": self.num_restarts,
            "honest_ms_clean": 1000 * statistics.median(self.clean_seconds),
            "honest_ms_mixed": 1000 * statistics.median(self.mixed_seconds),
            "honest_throughput_ratio": self.service_ratio,
        }


def plan(num_jobs: int, seed: int, hostile_ratio: float) -> list[Expectation]:
    """``num_jobs`` jobs in a random order; right and wrong solutions count as honest."""
    chance = random.Random(seed)
    hostile = [item for item in ALL if not item.row.startswith(("35 a huge", "12 a list"))]
    return [
        _hostile(chance.choice(hostile)) if chance.random() < hostile_ratio else _honest(chance)
        for _ in range(num_jobs)
    ]


def _honest(chance: random.Random) -> Expectation:
    problem, is_right = chance.choice(PROBLEMS), chance.random() < 0.5
    program = problem.right if is_right else problem.wrong
    return Expectation(_job(program, problem.task()), float(is_right), True, problem.name)


def _hostile(item: Hostile) -> Expectation:
    return Expectation(_job(item.program, item.task), item.value, False, item.row)


def _job(program: str, task: dict[str, Any]) -> VerifyJob:
    check = Check(kind="code", reference_json=json.dumps(task))
    return VerifyJob(completion=completion_of(program), checks=(check,))


async def run_campaign(num_jobs: int, seed: int = 0, num_boxes: int = 2) -> Findings:
    """Chunks of honest jobs and chunks with hostile ones take turns, so that drift hits both."""
    findings = Findings()
    sandbox = Sandbox(_LIMITS, num_boxes, tier=Tier.NAMESPACES)
    async with CodeJudge(CodeSettings(_LIMITS, num_boxes), sandbox) as judge:
        await _run(judge, plan(num_boxes * 4, seed + 1, 0.0), [], Findings())
        before = _without_processes(_held(sandbox))
        before = await _settled(sandbox, before)
        mixed = plan(num_jobs, seed, HOSTILE_RATIO)
        clean = plan(num_jobs // 4, seed + 2, 0.0)
        for start in range(0, num_jobs, _CHUNK):
            quarter = slice(start // 4, (start + _CHUNK) // 4)
            await _run(judge, clean[quarter], findings.clean_seconds, findings)
            chunk = mixed[start : start + _CHUNK]
            await _run(judge, chunk, findings.mixed_seconds, findings)
        findings.num_restarts = sandbox.num_restarts
        after = await _settled(sandbox, before)
        findings.left_behind = [
            f"{name}: {before[name]} -> {after[name]}"
            for name in before
            if after[name] != before[name]
        ]
    return findings


async def _run(
    judge: CodeJudge, jobs: Sequence[Expectation], seconds: list[float], findings: Findings
) -> None:
    free = asyncio.Semaphore(2)

    async def one(expected: Expectation) -> None:
        async with free:
            reply = await judge.judge(expected.job)
        values = [item.value for item in reply.judgements]
        if values != [expected.value]:
            why = reply.reason or reply.judgements[0].reason
            findings.wrong_verdicts.append(f"{expected.name}: {values}, {why}")
        findings.num_honest += expected.is_honest
        findings.num_hostile += not expected.is_honest
        if expected.is_honest:
            seconds.append(reply.seconds)

    await asyncio.gather(*(one(job) for job in jobs))


def _held(sandbox: Sandbox) -> dict[str, int]:
    """Descriptors, processes and mounts of this process and of the launchers."""
    held = {"host descriptors": len(os.listdir("/proc/self/fd"))}
    for number, pid in enumerate(sandbox.pids):
        launcher = psutil.Process(pid)
        held[f"launcher {number} descriptors"] = launcher.num_fds()
        held[f"launcher {number} processes"] = len(launcher.children(recursive=True))
        mounts = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8")
        held[f"launcher {number} mounts"] = len(mounts.splitlines())
    return held


def _without_processes(held: dict[str, int]) -> dict[str, int]:
    """A launcher reports what has ended while the kernel still takes its last process apart."""
    return {name: 0 if name.endswith("processes") else count for name, count in held.items()}


async def _settled(sandbox: Sandbox, before: dict[str, int]) -> dict[str, int]:
    """What is held once the kernel has had a second to take apart what has ended."""
    deadline_s = time.monotonic() + 1.0
    while (held := _held(sandbox)) != before and time.monotonic() < deadline_s:
        await asyncio.sleep(0.02)
    return held
