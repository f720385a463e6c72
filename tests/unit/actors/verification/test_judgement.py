"""Running the checks of a job, and reading what a child says about them."""

from __future__ import annotations

import pytest

from actors.verification.judgement import (
    Check,
    JobReply,
    Judgement,
    Verifier,
    VerifyJob,
    parse_reply,
    run_checks,
)
from common.codec import pack
from common.errors import DataError, DecodeError
from common.types import VerdictStatus


def _longer_than(completion: str, reference_json: str) -> Judgement:
    if not reference_json.isdigit():
        raise DataError("malformed task: no length")
    return Judgement.graded(float(len(completion) > int(reference_json)))


_VERIFIERS: dict[str, Verifier] = {"longer-than": _longer_than}


def _values(*references: str, kind: str = "longer-than") -> list[float | None]:
    checks = tuple(Check(kind=kind, reference_json=reference) for reference in references)
    reply = run_checks(VerifyJob(completion="abc", checks=checks), _VERIFIERS)
    return [judgement.value for judgement in reply.judgements]


def test_checks_are_judged_in_order_and_a_bad_task_spoils_only_its_own() -> None:
    assert _values("2", "x", "3") == [1.0, None, 0.0]


def test_an_unknown_kind_is_bad_input() -> None:
    assert _values("2", kind="chess") == [None]


def test_each_check_is_timed() -> None:
    ticks = iter([0.0, 0.5, 2.0])
    checks = (Check(kind="longer-than", reference_json="2"),) * 2
    job = VerifyJob(completion="abc", checks=checks)
    assert run_checks(job, _VERIFIERS, lambda: next(ticks)).check_seconds == (0.5, 1.5)


def test_a_reply_comes_back_as_it_was_sent() -> None:
    reply = JobReply(judgements=(Judgement.graded(1.0), Judgement.wrong_format("no <think>")))
    assert parse_reply(pack(reply), 2) == reply


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", pack(JobReply()), pack(JobReply(judgements=(Judgement.graded(1.0),) * 2))],
)
def test_a_reply_that_does_not_answer_every_check_is_malformed(frame: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_reply(frame, 1)


def test_a_failure_answers_for_all_checks() -> None:
    failure = JobReply(failure=VerdictStatus.INFRA_ERROR, reason="died")
    assert parse_reply(pack(failure), 3) == failure
