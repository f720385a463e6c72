"""One rollout -> its checks -> one verdict, told to metrics, log and monitor."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from actors.verification.backends import known_kinds
from actors.verification.dispatch import Dispatcher
from actors.verification.judgement import VerifyJob
from actors.verification.reward import compose_verdict, plan_checks, terms_for
from actors.verification.steps import with_steps
from actors.verification.telemetry import CheckMetrics, RewardWatch
from common.arrays import RolloutArrays
from common.completions import decode_completion
from common.config import VerifierConfig
from common.metrics import Metrics
from common.references.math import with_conventions
from common.text_tokenizer import TextTokenizer
from common.types import Prompt, Verdict

_MEAN_DECAY = 0.95


class RolloutJudge:
    """Judges rollouts by the terms of ``[verifier]``; ``on_hacking`` is what a pause calls."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tokenizer: TextTokenizer,
        config: VerifierConfig,
        *,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._dispatcher = dispatcher
        self._tokenizer = tokenizer
        self._terms = config.rewards
        self._extract = config.extract
        self._inside_thought = config.inside_thought
        self._metrics = metrics
        self._log = log
        self._checks = CheckMetrics(metrics, known_kinds())
        self._watch = RewardWatch(
            config.monitor, metrics=metrics, log=log, pause=lambda reason: self.on_hacking(reason)
        )
        self.on_hacking: Callable[[str], None] = lambda reason: None
        self.mean_seconds: float | None = None
        """Recent mean wall time of a verification, None before the first."""
        dispatcher.observer = self._checks.observe
        dispatcher.on_start = self._log_backend

    @property
    def num_workers(self) -> int:
        """Rollouts that are judged at the same time."""
        return self._dispatcher.num_workers

    async def judge(self, prompt: Prompt, arrays: RolloutArrays) -> Verdict:
        """The verdict on one rollout; never raises for its content."""
        terms = terms_for(self._terms, prompt)
        token_ids = arrays.completion_token_ids.tolist()
        completion = decode_completion(self._tokenizer, arrays, self._inside_thought)
        checks = plan_checks(terms, with_conventions(prompt, self._extract))
        job = VerifyJob(
            completion=completion.text,
            checks=checks,
            prompt=prompt.text,
            prompt_token_ids=arrays.prompt_token_ids.tobytes(),
            completion_token_ids=arrays.completion_token_ids.tobytes(),
            inside_thought=completion.inside_thought,
        )
        reply = await self._dispatcher.judge(job)
        verdict = compose_verdict(terms, reply, token_ids)
        verdict = with_steps(verdict, reply.judgements, self._tokenizer, token_ids)
        self._record(verdict, reply.seconds)
        self._watch.see(verdict, completion.response, prompt.task, token_ids)
        return verdict

    def _record(self, verdict: Verdict, seconds: float) -> None:
        previous = self.mean_seconds
        self.mean_seconds = (
            seconds if previous is None else _MEAN_DECAY * previous + (1 - _MEAN_DECAY) * seconds
        )
        self._metrics.inc("headrace_verdicts_total", status=verdict.status.value)
        self._metrics.inc("headrace_busy_seconds_total", seconds, stage="verify")
        self._checks.count_processes(self._dispatcher)
        if not verdict.status.is_judged:
            self._log.warning("not judged", status=verdict.status.value, reason=verdict.reason)

    def _log_backend(self, name: str) -> None:
        notes = "; ".join(self._dispatcher.notes)
        self._log.info("verification backend started", backend=name, notes=notes)
