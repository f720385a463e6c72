"""The backend of kind ``code``: completions in, judgements out, every program in a sandbox."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from actors.verification.code.checking import Checker
from actors.verification.code.extraction import extract_program
from actors.verification.code.outcomes import summarise
from actors.verification.code.programs import MAX_SOURCE_BYTES, build
from actors.verification.code.testing import HiddenTestRun, not_built
from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from actors.verification.sandbox.limits import BoxLimits, BoxResult, Tier
from actors.verification.sandbox.sandbox import Sandbox
from actors.verification.sandbox.self_test import TierReport
from common.config import VerifierConfig
from common.errors import DataError, InfraError
from common.references.code import CodeReference
from common.task_reference import read_reference
from common.types import VerdictStatus


@dataclass(frozen=True, slots=True)
class CodeSettings:
    """How programs are judged."""

    limits: BoxLimits = field(default_factory=BoxLimits)
    """Of one execution."""
    num_boxes: int = 1
    """Executions at the same time."""
    job_limit_s: float = 60.0
    """Wall seconds for all tests of one answer."""
    seed: int = 0
    """Of the order of the tests."""
    unsafe_no_sandbox: bool = False
    """Run programs without isolation where no tier of the sandbox holds."""


class CodeJudge:
    """Judges programs; ``async with`` tests the sandbox, and raises :class:`FatalError` when none
    holds on this machine.
    """

    def __init__(
        self, settings: CodeSettings | None = None, sandbox: Sandbox | None = None
    ) -> None:
        """``sandbox`` in place of the one that ``settings`` describe: for tests of one tier."""
        self._settings = settings or CodeSettings()
        self._sandbox = sandbox or Sandbox(
            self._settings.limits,
            self._settings.num_boxes,
            unsafe_no_sandbox=self._settings.unsafe_no_sandbox,
        )

    @property
    def num_restarts(self) -> int:
        """Launchers that were replaced."""
        return self._sandbox.num_restarts

    @property
    def tier(self) -> Tier:
        """How programs are isolated."""
        return self._sandbox.report.tier

    @property
    def tier_report(self) -> TierReport:
        """The tier with its reasons; its ``line`` belongs in every summary."""
        return self._sandbox.report

    async def __aenter__(self) -> CodeJudge:
        await self._sandbox.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._sandbox.__aexit__(kind, error, traceback)

    async def judge(self, job: VerifyJob) -> JobReply:
        """One judgement a check, all of kind ``code``; a failing machine is an infra-error."""
        started_s = time.monotonic()
        judgements, seconds = [], []
        for check in job.checks:
            began_s = time.monotonic()
            try:
                judgements.append(await self._judge_check(job.response, check))
            except DataError as error:
                judgements.append(Judgement.bad_input(str(error)))
            except InfraError as error:
                return JobReply(
                    failure=VerdictStatus.INFRA_ERROR,
                    reason=str(error)[:1000],
                    seconds=time.monotonic() - started_s,
                )
            seconds.append(time.monotonic() - began_s)
        return JobReply(
            judgements=tuple(judgements),
            seconds=time.monotonic() - started_s,
            check_seconds=tuple(seconds),
        )

    async def _judge_check(self, completion: str, check: Check) -> Judgement:
        reference = read_reference(check.reference_json, CodeReference)
        source = extract_program(completion, reference.language)
        if source is None:
            return Judgement.wrong_format(
                f"no closed {reference.language} block and no <answer> after the thinking"
            )
        if len(source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
            return Judgement.graded(0.0, f"the program has more than {MAX_SOURCE_BYTES} bytes")
        return await self._test(source, reference)

    async def _test(self, source: str, reference: CodeReference) -> Judgement:
        deadline_s = time.monotonic() + self._settings.job_limit_s
        judge = reference.judge
        checker = None if judge is None else await Checker.make(self._sandbox, judge)
        program = await build(self._sandbox, source, reference.language)
        if isinstance(program, BoxResult):
            outcomes = [not_built(program)] * len(reference.tests)
        else:
            run = HiddenTestRun(
                self._sandbox,
                program,
                reference,
                checker,
                seed=self._settings.seed,
                deadline_s=deadline_s,
            )
            outcomes = await run.outcomes()
        return summarise(outcomes, len(reference.tests), all_or_nothing=reference.all_or_nothing)


def code_judge(config: VerifierConfig) -> CodeJudge:
    """The judge that ``[verifier]`` describes: its limits, and as many boxes as workers."""
    limits = BoxLimits(
        wall_s=config.wall_limit_s,
        cpu_s=min(BoxLimits().cpu_s, config.wall_limit_s),
        memory_bytes=config.memory_limit_bytes,
    )
    settings = CodeSettings(limits, config.num_workers, unsafe_no_sandbox=config.unsafe_no_sandbox)
    return CodeJudge(settings)
