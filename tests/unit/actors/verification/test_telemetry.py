"""What is counted of a check: its time, and every failure to read and judge an answer."""

from __future__ import annotations

import pytest

from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from actors.verification.telemetry import CheckMetrics
from common.metrics import Metrics

_JOB = VerifyJob(completion="", checks=(Check(kind="math", reference_json="{}"),))


@pytest.mark.parametrize(
    ("judgement", "status"),
    [
        (Judgement.limit_exceeded("processor limit"), "limit-exceeded"),
        (Judgement.bad_input("no gold"), "bad-input"),
        (Judgement.graded(0.0), None),
        (Judgement.wrong_format("no answer"), None),
    ],
)
def test_an_answer_that_used_up_its_limit_counts_as_a_failure_and_a_wrong_one_does_not(
    judgement: Judgement, status: str | None
) -> None:
    metrics = Metrics()
    CheckMetrics(metrics, {"math"}).observe(_JOB, JobReply(judgements=(judgement,)))
    sample = metrics.registry.get_sample_value
    failures = [
        known
        for known in ("limit-exceeded", "bad-input", "graded", "wrong-format")
        if sample("headrace_verify_failures_total", {"kind": "math", "status": known})
    ]
    assert failures == ([status] if status else [])
    assert sample("headrace_verify_seconds_count", {"kind": "math"}) == 1
