"""Run one program against the hidden tests of its task, and judge what comes out.

Expected values stay on this side: a box gets a test's input and nothing else. The order of the
tests is shuffled from a seed, so that a program cannot count on it.
"""

from __future__ import annotations

import json
import random
import time
import zlib
from dataclasses import replace

from actors.verification.code.checking import Checker
from actors.verification.code.comparison import equals, outputs_equal, read_returned
from actors.verification.code.outcomes import CaseOutcome, Outcome
from actors.verification.code.programs import Program, is_syntax_error
from actors.verification.sandbox.limits import BoxLimits, BoxResult, Limit
from actors.verification.sandbox.sandbox import Sandbox
from common.references.code import CodeReference, CodeTest

_RIGHT = CaseOutcome(Outcome.RIGHT)


def lowered(limits: BoxLimits, reference: CodeReference) -> BoxLimits:
    """The verifier's limits, or the task's where those are lower."""
    wanted = reference.limits
    return replace(
        limits,
        cpu_s=min(limits.cpu_s, wanted.cpu_s or limits.cpu_s),
        wall_s=min(limits.wall_s, wanted.wall_s or limits.wall_s),
        memory_bytes=min(limits.memory_bytes, wanted.memory_bytes or limits.memory_bytes),
    )


class HiddenTestRun:
    """All tests of one program; :meth:`outcomes` runs them."""

    def __init__(
        self,
        sandbox: Sandbox,
        program: Program,
        reference: CodeReference,
        checker: Checker | None,
        *,
        seed: int,
        deadline_s: float,
    ) -> None:
        """``deadline_s`` on the monotonic clock: tests that would start later count as limited."""
        self._sandbox = sandbox
        self._program = program
        self._reference = reference
        self._checker = checker
        self._limits = lowered(sandbox.limits, reference)
        self._deadline_s = deadline_s
        self._tests = list(reference.tests)
        if len(self._tests) > 1:
            random.Random(f"{seed}:{zlib.crc32(program.content)}").shuffle(self._tests)

    async def outcomes(self) -> list[CaseOutcome]:
        """One outcome a test, in the shuffled order; all or nothing stops at the first failure."""
        done: list[CaseOutcome] = []
        while len(done) < len(self._tests):
            if time.monotonic() > self._deadline_s:
                done.append(CaseOutcome(Outcome.LIMIT, "the time for all tests together"))
            elif self._reference.function is None:
                done.append(await self._run_program(self._tests[len(done)]))
            else:
                done += await self._call_function(self._reference.function, len(done))
            if self._reference.all_or_nothing and done[-1].outcome is not Outcome.RIGHT:
                break
        return done

    async def _run_program(self, test: CodeTest) -> CaseOutcome:
        stdin = str(test.input).encode("utf-8", "replace")
        result = await self._sandbox.run(self._program.job(stdin), self._limits)
        failure = failed(result)
        if failure is not None:
            return failure
        if self._checker is not None:
            outcome = await self._checker.ask(str(test.input), result.stdout, str(test.output))
        else:
            same = outputs_equal(result.stdout, str(test.output), self._reference.tolerance)
            outcome = _RIGHT if same else CaseOutcome(Outcome.WRONG)
        return self._in_time(outcome, result.cpu_s)

    async def _call_function(self, name: str, first: int) -> list[CaseOutcome]:
        """Outcomes of the tests from ``first`` on, up to and with the one that ended the box.

        A box that ended early has answered fewer inputs than it was given: whatever its exit code
        says, the input that it owes an answer to has failed.
        """
        tests = self._tests[first:]
        inputs = tuple(json.dumps(test.args).encode() for test in tests)
        result = await self._sandbox.run(self._program.calls(name, inputs), self._limits)
        if result.load_error:
            kind = Outcome.SYNTAX_ERROR if is_syntax_error(result.load_error) else None
            return [CaseOutcome(kind or Outcome.RUNTIME_ERROR, result.load_error[:200])] * len(
                tests
            )
        outcomes = []
        for test, frame, seconds in zip(tests, result.frames, result.call_s, strict=False):
            outcomes.append(self._in_time(await self._judge_call(test, frame), seconds))
        if result.protocol_error and not result.limit:
            broken = CaseOutcome(Outcome.WRONG, result.protocol_error)
            return [broken] * len(tests)
        if len(outcomes) < len(tests):
            outcomes.append(
                failed(result) or CaseOutcome(Outcome.WRONG, "it ended without a value")
            )
        return outcomes

    async def _judge_call(self, test: CodeTest, frame: bytes) -> CaseOutcome:
        returned = read_returned(frame)
        if returned.raised.startswith("MemoryError"):
            return CaseOutcome(Outcome.LIMIT, Limit.MEMORY.value)
        if returned.raised:
            return CaseOutcome(Outcome.RUNTIME_ERROR, returned.raised)
        if returned.malformed:
            return CaseOutcome(Outcome.WRONG, returned.malformed)
        if self._checker is not None:
            texts = [json.dumps(item) for item in (test.args, returned.value, test.expected)]
            return await self._checker.ask(texts[0], texts[1].encode(), texts[2])
        right = equals(returned.value, test.expected, self._reference.tolerance)
        return _RIGHT if right else CaseOutcome(Outcome.WRONG)

    def _in_time(self, outcome: CaseOutcome, seconds: float) -> CaseOutcome:
        allowed_s = self._reference.limits.time_s
        if outcome.outcome is Outcome.RIGHT and allowed_s is not None and seconds > allowed_s:
            return CaseOutcome(Outcome.TOO_SLOW, f"{seconds:.2f} s of {allowed_s:g} s")
        return outcome


def failed(result: BoxResult) -> CaseOutcome | None:
    """How an execution failed; None where it ended with exit code 0."""
    if result.limit is not None:
        return CaseOutcome(Outcome.LIMIT, result.limit.value)
    if result.signal is not None:
        return CaseOutcome(Outcome.RUNTIME_ERROR, f"signal {result.signal}")
    if result.exit_code == 0:
        return None
    text = result.stderr[-4000:].decode("utf-8", "replace")
    if is_syntax_error(text):
        return CaseOutcome(Outcome.SYNTAX_ERROR, text.strip().splitlines()[-1][:200])
    return CaseOutcome(Outcome.RUNTIME_ERROR, f"exit code {result.exit_code}")


def not_built(result: BoxResult) -> CaseOutcome:
    """Why a compiler made no program."""
    failure = failed(result)
    if failure is None or failure.outcome is Outcome.LIMIT:
        return failure or CaseOutcome(Outcome.SYNTAX_ERROR, "the compiler wrote no program")
    errors = (line for line in result.stderr.decode("utf-8", "replace").splitlines())
    first = next((line for line in errors if "error" in line), "the compiler failed")
    return CaseOutcome(Outcome.SYNTAX_ERROR, first[:200])
