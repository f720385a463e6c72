"""Weighted totals and the status of a verdict."""

from __future__ import annotations

import pytest

from actors.verification.judgement import JobReply, Judgement
from actors.verification.reward import check_rewards, compose_verdict, plan_job
from common.config import RewardWeight
from common.errors import ConfigError
from common.types import VerdictStatus

_BOTH = (RewardWeight(name="accuracy"), RewardWeight(name="format"))
_RIGHT = Judgement.graded(1.0)
_WRONG = Judgement.graded(0.0)
_NO_FORM = Judgement.wrong_format("needs <think> exactly once, found 0")


def _reply(*judgements: Judgement) -> JobReply:
    return JobReply(judgements=judgements)


def test_the_seeds_example_sums_to_one_one_two() -> None:
    replies = [_reply(_WRONG, _RIGHT), _reply(_RIGHT, _NO_FORM), _reply(_RIGHT, _RIGHT)]
    assert [compose_verdict(_BOTH, reply).reward for reply in replies] == [1.0, 1.0, 2.0]


def test_components_and_weights_stand_in_the_verdict_and_make_its_sum() -> None:
    rewards = (RewardWeight(name="accuracy", weight=2.0), RewardWeight(name="format", weight=0.25))
    verdict = compose_verdict(rewards, _reply(_RIGHT, _RIGHT))
    assert verdict.reward == 2.25
    assert [(part.name, part.value, part.weight) for part in verdict.components] == [
        ("accuracy", 1.0, 2.0),
        ("format", 1.0, 0.25),
    ]


def test_a_right_answer_in_the_wrong_form_is_judged_and_keeps_its_accuracy() -> None:
    verdict = compose_verdict(_BOTH, _reply(_RIGHT, _NO_FORM))
    assert verdict.status is VerdictStatus.WRONG_FORMAT
    assert (verdict.component("accuracy"), verdict.component("format")) == (1.0, 0.0)
    assert verdict.reason == "needs <think> exactly once, found 0"


def test_a_malformed_task_carries_no_reward_and_only_its_own_reason() -> None:
    verdict = compose_verdict(_BOTH, _reply(Judgement.bad_input("malformed task: gold"), _NO_FORM))
    assert (verdict.status, verdict.reward) == (VerdictStatus.BAD_INPUT, None)
    assert (verdict.components, verdict.reason) == ((), "malformed task: gold")


def test_a_limit_is_the_answers_fault_and_worth_zero() -> None:
    reply = JobReply(failure=VerdictStatus.LIMIT_EXCEEDED, reason="wall limit")
    verdict = compose_verdict(_BOTH, reply)
    assert (verdict.status, verdict.reward) == (VerdictStatus.LIMIT_EXCEEDED, 0.0)
    assert [part.value for part in verdict.components] == [0.0, 0.0]


def test_an_infrastructure_failure_is_never_a_reward() -> None:
    reply = JobReply(failure=VerdictStatus.INFRA_ERROR, reason="the verifier process died")
    verdict = compose_verdict(_BOTH, reply)
    assert (verdict.status, verdict.reward) == (VerdictStatus.INFRA_ERROR, None)


def test_accuracy_asks_the_verifier_of_the_tasks_kind_and_format_the_r1_zero_form() -> None:
    job = plan_job("text", "countdown", '{"target":1}', _BOTH)
    assert [(check.kind, check.reference_json) for check in job.checks] == [
        ("countdown", '{"target":1}'),
        ("format", '{"template":"r1-zero"}'),
    ]


def test_an_unknown_reward_term_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="accuracy or format, got 'style'"):
        check_rewards([RewardWeight(name="accuracy"), RewardWeight(name="style")])
