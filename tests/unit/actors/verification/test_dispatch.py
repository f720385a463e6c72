"""Jobs whose checks belong to several backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

import pytest

from actors.verification.backends import BACKENDS, BackendSource, imported, known_kinds
from actors.verification.dispatch import Dispatcher, merge_replies, split_job
from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from common.config import VerifierConfig
from common.errors import FatalError
from common.metrics import Metrics
from common.reward_config_rules import CHECK_KINDS
from common.types import VerdictStatus

Answer = Callable[[VerifyJob], JobReply]


def _name_kinds(job: VerifyJob) -> JobReply:
    judgements = tuple(Judgement.graded(1.0, check.kind) for check in job.checks)
    return JobReply(judgements=judgements, seconds=0.5)


class RecordingBackend:
    """Answers by ``answer``; remembers its jobs and who entered and left it."""

    def __init__(self, answer: Answer = _name_kinds) -> None:
        self.answer = answer
        self.jobs: list[VerifyJob] = []
        self.life: list[tuple[str, asyncio.Task[object] | None]] = []
        self.num_restarts = 2

    async def __aenter__(self) -> RecordingBackend:
        self.life.append(("entered", asyncio.current_task()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.life.append(("left", asyncio.current_task()))

    async def judge(self, job: VerifyJob) -> JobReply:
        self.jobs.append(job)
        return self.answer(job)


def _source(
    name: str, backend: RecordingBackend, *kinds: str, needs_prompt: bool = False
) -> BackendSource:
    return BackendSource(name, frozenset(kinds), lambda _: backend, needs_prompt)


def _job(*kinds: str) -> VerifyJob:
    checks = tuple(Check(kind=kind, reference_json=f'"{kind}"') for kind in kinds)
    return VerifyJob(
        completion="answer",
        checks=checks,
        prompt="question",
        prompt_token_ids=b"\1\0\0\0",
        completion_token_ids=b"\2\0\0\0",
    )


def _judge(
    job: VerifyJob, rules: RecordingBackend, code: RecordingBackend, models: RecordingBackend
) -> JobReply:
    async def run() -> JobReply:
        sources = [
            _source("code", code, "code"),
            _source("models", models, "helpful", needs_prompt=True),
        ]
        default = _source("rules", rules)
        async with Dispatcher(VerifierConfig(), sources=sources, default=default) as dispatcher:
            return await dispatcher.judge(job)

    return asyncio.run(run())


def test_judgements_of_all_backends_come_back_in_the_order_of_the_checks() -> None:
    kinds = ("helpful", "format", "code", "math", "helpful")
    reply = _judge(_job(*kinds), RecordingBackend(), RecordingBackend(), RecordingBackend())
    assert tuple(judgement.reason for judgement in reply.judgements) == kinds
    assert (reply.failure, reply.seconds, reply.check_seconds) == (None, 0.5, (0.5,) * 5)


def test_each_backend_is_sent_its_own_checks_and_only_models_see_the_prompt() -> None:
    rules, code, models = RecordingBackend(), RecordingBackend(), RecordingBackend()
    job = _job("math", "code", "format", "helpful")
    _judge(job, rules, code, models)
    assert rules.jobs == [
        VerifyJob(completion="answer", checks=(job.checks[0], job.checks[2])),
    ]
    assert code.jobs == [VerifyJob(completion="answer", checks=(job.checks[1],))]
    assert models.jobs == [
        VerifyJob(
            completion="answer",
            checks=(job.checks[3],),
            prompt="question",
            prompt_token_ids=b"\1\0\0\0",
            completion_token_ids=b"\2\0\0\0",
        )
    ]


def test_a_backend_that_no_check_needs_is_never_made() -> None:
    def refuse(_: VerifierConfig) -> RecordingBackend:
        raise AssertionError("no check asked for it")

    async def run() -> JobReply:
        sources = [BackendSource("code", frozenset({"code"}), refuse)]
        default = _source("rules", RecordingBackend())
        async with Dispatcher(VerifierConfig(), sources=sources, default=default) as dispatcher:
            return await dispatcher.judge(_job("math"))

    assert [judgement.value for judgement in asyncio.run(run()).judgements] == [1.0]


def test_a_backend_is_entered_once_and_left_by_the_task_that_entered_it() -> None:
    backend = RecordingBackend()

    async def run() -> int:
        async with Dispatcher(
            VerifierConfig(), sources=[], default=_source("rules", backend)
        ) as dispatcher:
            await asyncio.gather(*(dispatcher.judge(_job("math")) for _ in range(5)))
            return dispatcher.num_restarts

    assert asyncio.run(run()) == 2
    assert [what for what, _ in backend.life] == ["entered", "left"]
    assert len({task for _, task in backend.life}) == 1
    assert len(backend.jobs) == 5


def test_parts_of_a_job_are_judged_at_the_same_time() -> None:
    class Waiting(RecordingBackend):
        """Answers only once the other backend has been asked as well."""

        def __init__(self, barrier: asyncio.Barrier) -> None:
            super().__init__()
            self.barrier = barrier

        async def judge(self, job: VerifyJob) -> JobReply:
            await self.barrier.wait()
            return await super().judge(job)

    async def run() -> JobReply:
        barrier = asyncio.Barrier(2)
        sources = [_source("code", Waiting(barrier), "code")]
        default = _source("rules", Waiting(barrier))
        async with (
            asyncio.timeout(20.0),
            Dispatcher(VerifierConfig(), sources=sources, default=default) as dispatcher,
        ):
            return await dispatcher.judge(_job("math", "code"))

    assert len(asyncio.run(run()).judgements) == 2


@pytest.mark.parametrize(
    ("first", "second", "failure"),
    [
        (VerdictStatus.LIMIT_EXCEEDED, VerdictStatus.INFRA_ERROR, VerdictStatus.INFRA_ERROR),
        (VerdictStatus.INFRA_ERROR, VerdictStatus.LIMIT_EXCEEDED, VerdictStatus.INFRA_ERROR),
        (VerdictStatus.LIMIT_EXCEEDED, None, VerdictStatus.LIMIT_EXCEEDED),
        (None, VerdictStatus.INFRA_ERROR, VerdictStatus.INFRA_ERROR),
    ],
)
def test_the_gravest_failure_is_the_failure_of_the_job(
    first: VerdictStatus | None, second: VerdictStatus | None, failure: VerdictStatus
) -> None:
    backend = RecordingBackend()
    sources = {"math": _source("rules", backend), "code": _source("code", backend)}
    parts = split_job(_job("math", "code"), lambda kind: sources[kind])
    replies = [
        JobReply(judgements=(Judgement.graded(1.0),), seconds=0.1)
        if status is None
        else JobReply(failure=status, reason=status.value, seconds=2.0)
        for status in (first, second)
    ]
    merged = merge_replies(parts, replies)
    assert (merged.failure, merged.reason, merged.judgements) == (failure, failure.value, ())
    assert merged.seconds == 2.0


def test_a_backend_with_metrics_of_its_own_is_given_the_verifiers() -> None:
    metrics, given = Metrics(), list[object]()

    def open_backend(*arguments: object) -> RecordingBackend:
        given.extend(arguments)
        return RecordingBackend()

    async def run() -> int:
        config = VerifierConfig()
        source = BackendSource(
            "models", frozenset({"judge"}), open_backend, takes_metrics=True, jobs_at_once=64
        )
        async with Dispatcher(config, sources=[source], metrics=metrics) as dispatcher:
            await dispatcher.start(["judge"])
            assert given == [config, metrics]
            return dispatcher.num_workers

    assert asyncio.run(run()) == 64


def test_observers_are_told_of_each_part_and_of_each_start() -> None:
    told: list[tuple[tuple[str, ...], int]] = []
    started = list[str]()

    def observe(job: VerifyJob, reply: JobReply) -> None:
        told.append((tuple(check.kind for check in job.checks), len(reply.judgements)))

    async def run() -> None:
        sources = [_source("code", RecordingBackend(), "code")]
        default = _source("rules", RecordingBackend())
        async with Dispatcher(VerifierConfig(), sources=sources, default=default) as dispatcher:
            dispatcher.observer, dispatcher.on_start = observe, started.append
            await dispatcher.judge(_job("math", "code", "format"))

    asyncio.run(run())
    assert sorted(started) == ["code", "rules"]
    assert sorted(told) == [(("code",), 1), (("math", "format"), 2)]


def test_a_backend_that_cannot_start_fails_every_job_that_needs_it() -> None:
    class Broken(RecordingBackend):
        async def __aenter__(self) -> RecordingBackend:
            raise FatalError("no sandbox on this machine")

    async def run() -> list[BaseException | JobReply]:
        sources = [_source("code", Broken(), "code")]
        default = _source("rules", RecordingBackend())
        async with Dispatcher(VerifierConfig(), sources=sources, default=default) as dispatcher:
            jobs = [_job("code"), _job("code"), _job("math")]
            return await asyncio.gather(*map(dispatcher.judge, jobs), return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert [str(first), str(second)] == ["no sandbox on this machine"] * 2
    assert isinstance(third, JobReply)


def test_a_kind_whose_libraries_are_missing_says_so() -> None:
    with pytest.raises(FatalError, match="needs no_such_library, which is not installed here"):
        imported("no_such_library.judge:code_judge")(VerifierConfig())


def test_a_run_file_may_name_every_kind_that_some_backend_answers_and_no_other() -> None:
    assert known_kinds() == CHECK_KINDS


def test_no_kind_belongs_to_two_backends() -> None:
    kinds = [kind for source in BACKENDS for kind in source.kinds]
    assert sorted(kinds) == sorted(set(kinds))
    assert "code" in kinds
