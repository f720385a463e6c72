"""What a lease asks for is computed, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import structlog

from actors.verification.grading import GradedRollout, Grader, ReferenceLogprobs
from common.arrays import RolloutArrays
from common.errors import DataError, InfraError
from common.messages import RolloutLease
from common.types import Prompt, RolloutHeader, Verdict, VerdictStatus, WeightVersion
from tests.builders import prompt, rollout_arrays, rollout_header, version

GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)
ARRAYS = rollout_arrays(num_prompt=3, num_completion=5, seed=1)


class Reference:
    """Answers with the step of the reference, or fails."""

    def __init__(self, fails: Callable[[], Exception] | None = None) -> None:
        self.fails = fails
        self.asked: list[WeightVersion] = []

    async def of_rollout(
        self, header: RolloutHeader, arrays: RolloutArrays, version: WeightVersion
    ) -> ReferenceLogprobs:
        self.asked.append(version)
        if self.fails is not None:
            raise self.fails()
        return ReferenceLogprobs(version, np.full(5, -version.policy_step, dtype=np.float32))


class Judge:
    """Counts what it judges."""

    def __init__(self, verdict: Verdict = GRADED) -> None:
        self.verdict = verdict
        self.num_judged = 0

    async def judge(self, prompt: Prompt, arrays: RolloutArrays) -> Verdict:
        self.num_judged += 1
        return self.verdict


def _lease(reference: WeightVersion | None = None, verdict: Verdict | None = None) -> RolloutLease:
    return RolloutLease(
        prompt=prompt(),
        rollout=rollout_header(),
        verify_attempt=3,
        reference_version=reference,
        verdict=verdict,
    )


def _grade(lease: RolloutLease, judge: Judge, reference: Reference | None) -> GradedRollout:
    grader = Grader(judge.judge, reference, structlog.stdlib.get_logger())
    return asyncio.run(grader.grade(lease, ARRAYS))


def test_a_plain_lease_is_judged_and_computes_no_reference() -> None:
    judge, reference = Judge(), Reference()
    assert _grade(_lease(), judge, reference) == GradedRollout(GRADED)
    assert (judge.num_judged, reference.asked) == (1, [])


def test_a_lease_with_a_reference_gets_both() -> None:
    judge, reference = Judge(), Reference()
    graded = _grade(_lease(version(4)), judge, reference)
    assert graded.verdict == GRADED
    assert graded.reference is not None
    assert graded.reference.version == version(4)
    assert graded.reference.header.num_tokens == 5
    assert bytes(graded.reference.frame()) == np.full(5, -4, dtype="<f4").tobytes()


def test_a_rollout_with_its_verdict_is_not_judged_again() -> None:
    judge, reference = Judge(), Reference()
    known = Verdict(status=VerdictStatus.WRONG_FORMAT, reward=0.25)
    graded = _grade(_lease(version(4), known), judge, reference)
    assert graded.verdict is known
    assert (judge.num_judged, reference.asked) == (0, [version(4)])


def test_an_answer_that_could_not_be_judged_brings_no_reference() -> None:
    judge = Judge(Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died"))
    assert _grade(_lease(version(4)), judge, Reference()).reference is None


@pytest.mark.parametrize("error", [InfraError, DataError])
def test_a_failed_reference_costs_no_verdict(error: type[Exception]) -> None:
    judge, reference = Judge(), Reference(lambda: error("the model is away"))
    assert _grade(_lease(version(4)), judge, reference) == GradedRollout(GRADED)
    with pytest.raises(error, match="the model is away"):
        _grade(_lease(version(4), GRADED), judge, reference)


def test_a_verifier_without_a_reference_says_so_when_nothing_else_is_asked() -> None:
    judge = Judge()
    assert _grade(_lease(version(4)), judge, None) == GradedRollout(GRADED)
    with pytest.raises(DataError, match="start every role from one configuration"):
        _grade(_lease(version(4), GRADED), judge, None)
