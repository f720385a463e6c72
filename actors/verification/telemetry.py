"""What one verifier tells of its work: metrics by kind of check, and what the monitor finds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import structlog

from actors.verification.dispatch import Dispatcher, check_seconds
from actors.verification.exploits import looks_like_exploit
from actors.verification.hacking_monitor import Alarm, Finding, HackingMonitor, Observation
from actors.verification.judgement import JobReply, VerifyJob
from actors.verification.shaping import repeat_ratio
from common.config import MonitorConfig
from common.metrics import Metrics
from common.types import Verdict, VerdictStatus

REPEATED_NGRAM = 4
_MAX_REPEAT_TOKENS = 2048
"""Repetition is looked for in the end of an answer, where loops are: it bounds the cost."""


_READ_AND_JUDGED = (VerdictStatus.GRADED, VerdictStatus.WRONG_FORMAT)


class CheckMetrics:
    """Times and failures by kind of check; kinds outside the table share one label."""

    def __init__(self, metrics: Metrics, kinds: Collection[str]) -> None:
        self._metrics = metrics
        self._kinds = frozenset(kinds)
        self._num_restarts = 0
        self._num_quarantined = 0

    def observe(self, job: VerifyJob, reply: JobReply) -> None:
        """Count one backend's part of a job; a failure counts for the kind of its first check."""
        if reply.failure is not None:
            kind = self._label(job.checks[0].kind)
            status = reply.failure.value
            self._metrics.inc("headrace_verify_failures_total", kind=kind, status=status)
            self._metrics.observe("headrace_verify_seconds", reply.seconds, kind=kind)
            return
        for check, judgement, seconds in zip(
            job.checks, reply.judgements, check_seconds(reply), strict=True
        ):
            kind = self._label(check.kind)
            self._metrics.observe("headrace_verify_seconds", seconds, kind=kind)
            if judgement.status not in _READ_AND_JUDGED:
                status = judgement.status.value
                self._metrics.inc("headrace_verify_failures_total", kind=kind, status=status)

    def count_processes(self, dispatcher: Dispatcher) -> None:
        """Add the processes replaced, and the jobs quarantined, since the last call."""
        restarts, quarantined = dispatcher.num_restarts, dispatcher.num_quarantined
        self._metrics.inc("headrace_verifier_restarts_total", restarts - self._num_restarts)
        self._metrics.inc(
            "headrace_verifier_quarantined_total", quarantined - self._num_quarantined
        )
        self._num_restarts, self._num_quarantined = restarts, quarantined

    def _label(self, kind: str) -> str:
        return kind if kind in self._kinds else "unknown"


class RewardWatch:
    """Feeds the monitor with verdicts and acts on what it finds: a warning, or a pause."""

    def __init__(
        self,
        config: MonitorConfig,
        *,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
        pause: Callable[[str], None],
    ) -> None:
        """``pause`` is called with the reason where ``action`` says so."""
        self._config = config
        self._monitor = HackingMonitor(config)
        self._metrics = metrics
        self._log = log
        self._pause = pause

    def see(self, verdict: Verdict, completion: str, task: str, token_ids: Sequence[int]) -> None:
        """Take one verdict into account; what was not judged says nothing about the policy."""
        if self._config.action == "off" or verdict.reward is None:
            return
        findings = self._monitor.observe(
            Observation(
                reward=verdict.reward,
                proxy=self._proxy(verdict),
                truth=verdict.component(self._config.truth) if self._config.truth else None,
                num_tokens=len(token_ids),
                repeat_ratio=repeat_ratio(token_ids[-_MAX_REPEAT_TOKENS:], REPEATED_NGRAM),
                is_exploit=looks_like_exploit(completion, task),
            )
        )
        if findings is not None:
            self._report(findings)

    def _proxy(self, verdict: Verdict) -> float:
        value = verdict.component(self._config.proxy or "accuracy")
        return (verdict.reward or 0.0) if value is None else value

    def _report(self, findings: Sequence[Finding]) -> None:
        raised = {finding.alarm: finding.evidence for finding in findings}
        for alarm in Alarm:
            active = float(alarm in raised)
            self._metrics.set("headrace_reward_hacking_alarm", active, alarm=alarm.value)
        for alarm, evidence in raised.items():
            self._log.warning("reward hacking suspected", alarm=alarm.value, evidence=evidence)
        if raised and self._config.action == "pause":
            alarm, evidence = next(iter(raised.items()))
            self._pause(f"{alarm.value}: {evidence}")
