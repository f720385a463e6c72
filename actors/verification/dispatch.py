"""One job -> the backends that judge its checks, at the same time -> one reply in the job's order.

A backend is imported and started when the first check of one of its kinds is asked for, so a run
pays for nothing that its rewards and tasks do not use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from actors.verification.backends import BACKENDS, RULES, Backend, BackendSource
from actors.verification.judgement import JobReply, VerifyJob
from common.config import VerifierConfig
from common.errors import FatalError
from common.metrics import Metrics
from common.types import VerdictStatus

Observer = Callable[[VerifyJob, JobReply], None]
"""Told of each backend's part of a job and of its reply, for metrics."""


class Dispatcher:
    """Judges jobs whose checks may belong to several backends.

    ``async with`` starts nothing yet and ends all that was started; :meth:`start` starts what some
    kinds need, :meth:`judge` what its job needs. ``observer`` is told of every part that was
    judged, ``on_start`` of the name of every backend that has started.
    """

    def __init__(
        self,
        config: VerifierConfig,
        *,
        sources: Sequence[BackendSource] = BACKENDS,
        default: BackendSource = RULES,
        metrics: Metrics | None = None,
    ) -> None:
        self._sources = {kind: source for source in sources for kind in source.kinds}
        self._default = default
        self.observer: Observer | None = None
        self.on_start: Callable[[str], None] = lambda name: None
        self._config = config
        self._metrics = metrics
        self._running: dict[str, _Running] = {}

    @property
    def num_workers(self) -> int:
        """Jobs that the running backends judge at the same time, as far as they say."""
        workers = (
            getattr(run.backend, "num_workers", run.source.jobs_at_once)
            for run in self._running.values()
        )
        return max(workers, default=self._config.num_workers)

    @property
    def num_restarts(self) -> int:
        """Processes that the backends have replaced, over those that count them."""
        return sum(getattr(run.backend, "num_restarts", 0) for run in self._running.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each running backend that has something to say of how it works here."""
        serving = (run.backend for run in self._running.values() if run.is_serving)
        reports = (getattr(backend, "tier_report", None) for backend in serving)
        return tuple(str(report.line) for report in reports if report is not None)

    @property
    def num_quarantined(self) -> int:
        """Jobs that the backends will not try again, over those that count them."""
        return sum(getattr(run.backend, "num_quarantined", 0) for run in self._running.values())

    async def __aenter__(self) -> Dispatcher:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(run.stop() for run in self._running.values()))

    async def start(self, kinds: Iterable[str]) -> None:
        """Start the backends of ``kinds``; raises :class:`FatalError` when one cannot work here."""
        sources = {self._source(kind).name: self._source(kind) for kind in kinds}
        await asyncio.gather(*(self._backend(source) for source in sources.values()))

    async def judge(self, job: VerifyJob) -> JobReply:
        """Judge every check; a failure of one backend is the failure of the job."""
        parts = split_job(job, self._source)
        if not parts:
            return JobReply()
        if len(parts) == 1:
            return await self._judge_part(parts[0])
        tasks = [asyncio.ensure_future(self._judge_part(part)) for part in parts]
        try:
            replies = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return merge_replies(parts, replies)

    async def _judge_part(self, part: JobPart) -> JobReply:
        backend = await self._backend(part.source)
        reply = await backend.judge(part.job)
        if self.observer is not None:
            self.observer(part.job, reply)
        return reply

    def _source(self, kind: str) -> BackendSource:
        return self._sources.get(kind, self._default)

    async def _backend(self, source: BackendSource) -> Backend:
        if source.name not in self._running:
            also = (self._metrics,) if source.takes_metrics else ()
            self._running[source.name] = _Running(
                source, source.open(self._config, *also), self.on_start
            )
        running = self._running[source.name]
        await running.started()
        return running.backend


@dataclass(frozen=True, slots=True)
class JobPart:
    """The checks of a job that one backend answers, and their places in the job."""

    source: BackendSource
    places: tuple[int, ...]
    job: VerifyJob


def split_job(job: VerifyJob, source_of: Callable[[str], BackendSource]) -> list[JobPart]:
    """A part for each backend that ``job`` needs, with no more of the job than it needs."""
    places: dict[str, list[int]] = {}
    sources: dict[str, BackendSource] = {}
    for place, check in enumerate(job.checks):
        source = source_of(check.kind)
        sources[source.name] = source
        places.setdefault(source.name, []).append(place)
    return [_part(job, source, tuple(places[name])) for name, source in sources.items()]


def _part(job: VerifyJob, source: BackendSource, places: tuple[int, ...]) -> JobPart:
    checks = tuple(job.checks[place] for place in places)
    if not source.needs_prompt:
        return JobPart(source, places, job.about_completion(checks))
    whole = VerifyJob(
        completion=job.completion,
        checks=checks,
        prompt=job.prompt,
        prompt_token_ids=job.prompt_token_ids,
        completion_token_ids=job.completion_token_ids,
        inside_thought=job.inside_thought,
    )
    return JobPart(source, places, whole)


def merge_replies(parts: Sequence[JobPart], replies: Sequence[JobReply]) -> JobReply:
    """One reply for the whole job: judgements in its order, or the gravest failure.

    A failure of the machinery outranks a limit: the answer may be judged yet, elsewhere.
    ``seconds`` is the longest of the parts, which ran at the same time.
    """
    seconds = max((reply.seconds for reply in replies), default=0.0)
    for status in (VerdictStatus.INFRA_ERROR, VerdictStatus.LIMIT_EXCEEDED):
        for reply in replies:
            if reply.failure is status:
                return JobReply(failure=status, reason=reply.reason, seconds=seconds)
    answered = sorted(
        (place, judgement, took)
        for part, reply in zip(parts, replies, strict=True)
        for place, judgement, took in zip(
            part.places, reply.judgements, check_seconds(reply), strict=True
        )
    )
    return JobReply(
        judgements=tuple(judgement for _, judgement, _ in answered),
        seconds=seconds,
        check_seconds=tuple(took for *_, took in answered),
    )


def check_seconds(reply: JobReply) -> tuple[float, ...]:
    """Seconds of each judgement; the whole job's where the backend did not tell them apart."""
    return reply.check_seconds or (reply.seconds,) * len(reply.judgements)


class _Running:
    """A backend, and the one task that enters and leaves it."""

    def __init__(
        self, source: BackendSource, backend: Backend, on_start: Callable[[str], None]
    ) -> None:
        self.source = source
        self._on_start = on_start
        self.backend = backend
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._hold(), name="verification-backend")

    @property
    def is_serving(self) -> bool:
        """True once jobs may come."""
        return self._ready.done() and self._ready.exception() is None

    async def started(self) -> None:
        """Wait until jobs may come; raises what kept the backend from starting."""
        if self._ready.done():
            self._ready.result()
        else:
            await asyncio.shield(self._ready)

    async def stop(self) -> None:
        """Leave the backend."""
        self._end.set()
        if not self._ready.done():
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self) -> None:
        try:
            async with self.backend:
                self._ready.set_result(None)
                self._on_start(self.source.name)
                await self._end.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(_start_error(error))


def _start_error(error: BaseException) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        return FatalError("a verification backend was stopped while it started")
    return error
