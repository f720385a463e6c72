"""The backend of checks that need a model: scorers with weights on disk, judges at endpoints.

Models that share a device share one process. Nothing here waits on the event loop's thread: text is
tokenised in worker threads, and forwards run in the model process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

import msgspec
import numpy as np

from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from actors.verification.models.conversation import ConversationEncoder
from actors.verification.models.directory import check_classifier, check_packages
from actors.verification.models.frames import ModelSpec
from actors.verification.models.memory import AnswerMemory
from actors.verification.models.runner import BatchRecord, ModelRunner
from actors.verification.models.scorers import SCORERS, Scorer, ScoringInput
from actors.verification.models.work import RunnerLimits, Work
from common.arrays import Float32Array
from common.config import VerifierConfig, VerifierModelConfig
from common.errors import ConfigError, DataError, InfraError
from common.metrics import Metrics
from common.types import VerdictStatus


class CheckJudge(AbstractAsyncContextManager[object, None], Protocol):
    """What answers the checks of one kind; an asynchronous context manager."""

    async def judge(self, job: VerifyJob, check: Check) -> Judgement:
        """Judge one check; raises :class:`InfraError` where that is not possible now."""
        ...


class ModelBackend:
    """Answers checks by the judges of their kinds, all at the same time."""

    def __init__(self, judges: Mapping[str, CheckJudge], runners: Sequence[ModelRunner]) -> None:
        self._judges = dict(judges)
        self._runners = tuple(runners)
        self._stack = contextlib.AsyncExitStack()

    @property
    def num_restarts(self) -> int:
        """Model processes that were replaced."""
        return sum(runner.num_restarts for runner in self._runners)

    @property
    def pids(self) -> list[int]:
        """Process ids of the model processes."""
        return [runner.pid for runner in self._runners if runner.pid is not None]

    async def __aenter__(self) -> ModelBackend:
        """Start what the models need; weights are loaded when they are first asked for."""
        async with contextlib.AsyncExitStack() as stack:
            for runner in self._runners:
                await stack.enter_async_context(runner)
            for judge in self._judges.values():
                await stack.enter_async_context(judge)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def judge(self, job: VerifyJob) -> JobReply:
        """One judgement for each check; a model that cannot answer is an ``infra-error``."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        answers = await asyncio.gather(
            *(self._judge_check(job, check) for check in job.checks), return_exceptions=True
        )
        seconds = clock() - started_s
        judgements = []
        for answer in answers:
            if isinstance(answer, InfraError):
                reason = str(answer)[:4096]
                return JobReply(failure=VerdictStatus.INFRA_ERROR, reason=reason, seconds=seconds)
            if isinstance(answer, BaseException):
                raise answer
            judgements.append(answer)
        return JobReply(judgements=tuple(judgements), seconds=seconds)

    async def _judge_check(self, job: VerifyJob, check: Check) -> Judgement:
        judge = self._judges.get(check.kind)
        if judge is None:
            known = ", ".join(sorted(self._judges)) or "none"
            return Judgement.bad_input(f"no model for {check.kind!r} (known: {known})")
        try:
            return await judge.judge(job, check)
        except DataError as error:
            return Judgement.bad_input(str(error))


class ScoringJudge:
    """One scoring model: text to tokens, tokens through the runner, outputs to a judgement."""

    def __init__(self, name: str, scorer: Scorer, runner: ModelRunner) -> None:
        self._name = name
        self._scorer = scorer
        self._runner = runner
        self._memory: AnswerMemory[Float32Array] = AnswerMemory()

    async def __aenter__(self) -> ScoringJudge:
        return self

    async def __aexit__(self, *_: object) -> None:
        """The runner belongs to the backend."""

    async def judge(self, job: VerifyJob, check: Check) -> Judgement:
        """Score the answer; raises :class:`InfraError` when the model could not answer."""
        prepared = await asyncio.to_thread(self._scorer.prepare, job)
        if isinstance(prepared, Judgement):
            return prepared
        outputs = await self._memory.get(
            _digest(prepared), lambda: self._compute(prepared, job.prompt)
        )
        judgement = self._scorer.judge(outputs)
        return msgspec.structs.replace(judgement, step_ends=prepared.step_ends)

    async def _compute(self, prepared: ScoringInput, share: str) -> Float32Array:
        outputs = await self._runner.run(
            Work(
                model=self._name,
                token_ids=prepared.token_ids,
                positions=prepared.positions,
                share=share,
            )
        )
        if not np.isfinite(outputs).all():
            raise InfraError(f"the {self._name} model answered with a number that is not finite")
        return outputs


def model_backend(config: VerifierConfig, metrics: Metrics | None = None) -> ModelBackend:
    """The backend of ``[[verifier.models]]``.

    Raises :class:`ConfigError` where none is configured, :class:`ModelDirectoryError` where a
    directory is no causal classifier with a tokenizer and :class:`FatalError` without torch.
    """
    if not config.models:
        raise ConfigError(
            "verifier.rewards names a model's reward, but there is no [[verifier.models]] "
            "(add its table, see docs/reward-models.md)"
        )
    scoring = [model for model in config.models if model.kind != "judge"]
    runners = _runners(scoring, config, metrics)
    judges: dict[str, CheckJudge] = {}
    for model in scoring:
        encoder = ConversationEncoder(model.path, model.template)
        scorer = SCORERS[model.kind](model, encoder)
        judges[model.kind] = ScoringJudge(model.kind, scorer, runners[model.device])
    for model in config.models:
        if model.kind == "judge":
            from actors.verification.models.judge import judge_at_endpoint

            judges[model.kind] = judge_at_endpoint(model, metrics)
    return ModelBackend(judges, tuple(runners.values()))


def _runners(
    models: Sequence[VerifierModelConfig], config: VerifierConfig, metrics: Metrics | None
) -> dict[str, ModelRunner]:
    """One runner for each device that the models name."""
    limits = RunnerLimits.under(config)
    if models:
        check_packages()
    specs: dict[str, list[ModelSpec]] = {}
    for model in models:
        check_classifier(model)
        specs.setdefault(model.device, []).append(_spec(model))
    return {
        device: ModelRunner(found, limits, batch_observer(metrics))
        for device, found in specs.items()
    }


def batch_observer(metrics: Metrics | None) -> Callable[[BatchRecord], None]:
    """Counts batches in ``metrics``; ``scorer`` is a kind of model, of which there are few."""

    def observe(record: BatchRecord) -> None:
        if metrics is None:
            return
        scorer = record.model
        outcome = "lost" if record.failure else "scored"
        metrics.inc("headrace_model_batches_total", scorer=scorer, outcome=outcome)
        if record.failure:
            return
        metrics.observe("headrace_model_batch_tokens", record.num_tokens, scorer=scorer)
        metrics.observe("headrace_model_batch_seconds", record.seconds, scorer=scorer)
        metrics.inc("headrace_model_sequences_total", record.num_sequences, scorer=scorer)
        metrics.inc("headrace_model_tokens_total", record.num_tokens, scorer=scorer)
        metrics.inc("headrace_model_compute_seconds_total", record.compute_s, scorer=scorer)
        metrics.set("headrace_model_weight_bytes", record.weight_bytes, scorer=scorer)

    return observe


def _spec(model: VerifierModelConfig) -> ModelSpec:
    return ModelSpec(
        name=model.kind,
        path=model.path,
        head="score",
        device=model.device,
        dtype=model.dtype,
        max_tokens=model.max_tokens,
    )


def _digest(prepared: ScoringInput) -> tuple[int, bytes]:
    digest = hashlib.blake2b(prepared.token_ids.data, digest_size=16)
    digest.update(prepared.positions.data)
    return len(prepared.token_ids), digest.digest()
