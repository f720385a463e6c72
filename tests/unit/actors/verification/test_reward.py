"""Which terms make a reward, their checks, their sum and the status of a verdict."""

from __future__ import annotations

import json
import sys

import pytest

from actors.verification.judgement import JobReply, Judgement
from actors.verification.reward import (
    check_rewards,
    compose_verdict,
    needed_kinds,
    plan_checks,
    terms_for,
)
from common.config import RewardWeight, VerifierConfig
from common.errors import ConfigError
from common.reward_terms import PRESETS, resolved
from common.types import Prompt, Verdict, VerdictStatus

_BOTH = PRESETS["r1-zero"]
_RIGHT = Judgement.graded(1.0)
_WRONG = Judgement.graded(0.0)
_NO_FORM = Judgement.wrong_format("needs <think> exactly once, found 0")
_OVERLONG = RewardWeight(name="overlong", options={"max_tokens": 100, "cache_tokens": 20})
_COSINE = RewardWeight(name="cosine", options={"max_tokens": 100})


def _reply(*judgements: Judgement) -> JobReply:
    return JobReply(judgements=judgements)


def _prompt(task: str = "math", reference_json: str = "{}", prompt_set: str = "") -> Prompt:
    return Prompt(
        prompt_id="p", text="?", task=task, reference_json=reference_json, prompt_set=prompt_set
    )


def _values(verdict: Verdict) -> dict[str, float]:
    return {part.name: part.value for part in verdict.components}


def _stage(preset: str, prompt: Prompt, *values: float) -> float | None:
    """The reward of a stage when its judged terms have these values, in order."""
    terms = terms_for(PRESETS[preset], prompt)
    assert len(plan_checks(terms, prompt)) == len(values)
    return compose_verdict(terms, _reply(*map(Judgement.graded, values))).reward


def test_the_seeds_example_sums_to_one_one_two() -> None:
    replies = [_reply(_WRONG, _RIGHT), _reply(_RIGHT, _NO_FORM), _reply(_RIGHT, _RIGHT)]
    assert [compose_verdict(_BOTH, reply).reward for reply in replies] == [1.0, 1.0, 2.0]


def test_a_smaller_format_weight_ranks_right_and_unformatted_above_wrong_and_formatted() -> None:
    terms = (RewardWeight(name="accuracy"), RewardWeight(name="format", weight=0.2))
    wrong, right = _reply(_WRONG, _RIGHT), _reply(_RIGHT, _NO_FORM)
    assert [compose_verdict(terms, reply).reward for reply in (wrong, right)] == [0.2, 1.0]


@pytest.mark.parametrize(
    ("preset", "task", "values", "total"),
    [
        ("r1-zero", "math", (1, 1), 2.0),  # accuracy, format: equation 4
        ("r1-zero", "code", (0, 1), 1.0),
        ("r1-stage-1", "math", (1, 1, 0.75), 2.75),  # and language
        ("r1-stage-1", "math", (0, 0, 1), 1.0),
        ("r1-stage-2", "math", (1, 1, 0.5), 2.5),  # reasoning: equations 8 and 9
        ("r1-stage-2", "helpful", (0.25, 1, 1), 2.25),  # general: model, format: equation 10
        ("r1-stage-2", "safety", (-0.5, 0, 1), 0.5),
    ],
)
def test_each_stage_sums_its_own_terms(
    preset: str, task: str, values: tuple[float, ...], total: float
) -> None:
    assert _stage(preset, _prompt(task), *values) == pytest.approx(total)


def test_a_general_query_is_judged_by_the_model_that_its_data_set_names() -> None:
    for task in ("helpful", "safety"):
        terms = terms_for(PRESETS["r1-stage-2"], _prompt(task))
        assert [term.name for term in terms] == ["preference", "format", "language"]
        assert [check.kind for check in plan_checks(terms, _prompt(task))] == [
            task,
            "format",
            "language",
        ]


def test_a_term_may_be_kept_to_some_prompt_sets() -> None:
    terms = (RewardWeight(name="accuracy"), RewardWeight(name="format", prompt_sets=("chat",)))
    assert [len(terms_for(terms, _prompt(prompt_set=name))) for name in ("chat", "maths")] == [2, 1]


def test_a_prompt_to_which_no_term_applies_is_bad_input() -> None:
    terms = terms_for((RewardWeight(name="accuracy", data="reasoning"),), _prompt("helpful"))
    verdict = compose_verdict(terms, JobReply())
    assert (verdict.status, verdict.reward) == (VerdictStatus.BAD_INPUT, None)


def test_components_and_weights_stand_in_the_verdict_and_make_its_sum() -> None:
    rewards = (RewardWeight(name="accuracy", weight=2.0), RewardWeight(name="format", weight=0.25))
    verdict = compose_verdict(rewards, _reply(_RIGHT, _RIGHT))
    assert verdict.reward == 2.25
    assert [(part.name, part.value, part.weight) for part in verdict.components] == [
        ("accuracy", 1.0, 2.0),
        ("format", 1.0, 0.25),
    ]


def test_a_term_of_weight_0_is_judged_and_shown_and_does_not_count() -> None:
    terms = (*_BOTH, RewardWeight(name="strict", weight=0.0, kind="countdown"))
    verdict = compose_verdict(terms, _reply(_RIGHT, _RIGHT, _RIGHT))
    assert (verdict.reward, verdict.component("strict")) == (2.0, 1.0)


def test_shaping_is_computed_from_the_tokens_between_the_judged_terms() -> None:
    terms = (_BOTH[0], _OVERLONG, _BOTH[1])
    verdict = compose_verdict(terms, _reply(_RIGHT, _RIGHT), [5] * 90)
    assert _values(verdict) == {"accuracy": 1.0, "overlong": -0.5, "format": 1.0}
    assert verdict.reward == 1.5
    assert [check.kind for check in plan_checks(terms, _prompt())] == ["math", "format"]


def test_the_cosine_term_asks_whether_the_answer_is_right() -> None:
    terms = (RewardWeight(name="accuracy", weight=0.0), _COSINE)
    rewards = [compose_verdict(terms, _reply(item), [1]).reward for item in (_RIGHT, _WRONG)]
    assert rewards == [pytest.approx(1.0, abs=1e-3), pytest.approx(-1.0, abs=1e-3)]


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


def test_hanging_the_judge_does_not_escape_a_penalty() -> None:
    reply = JobReply(failure=VerdictStatus.LIMIT_EXCEEDED, reason="wall limit")
    verdict = compose_verdict((*_BOTH, _OVERLONG, _COSINE), reply, [5] * 200)
    assert verdict.reward == -2.0


def test_an_infrastructure_failure_is_never_a_reward() -> None:
    reply = JobReply(failure=VerdictStatus.INFRA_ERROR, reason="the verifier process died")
    verdict = compose_verdict(_BOTH, reply)
    assert (verdict.status, verdict.reward) == (VerdictStatus.INFRA_ERROR, None)


def test_accuracy_asks_the_verifier_of_the_tasks_kind_and_format_the_r1_zero_form() -> None:
    checks = plan_checks(_BOTH, _prompt("countdown", '{"target":1}'))
    assert [(check.kind, json.loads(check.reference_json)) for check in checks] == [
        ("countdown", {"target": 1}),
        ("format", {"template": "r1-zero", "token": "|special_token|"}),
    ]


@pytest.mark.parametrize(
    ("fields", "target"),
    [("{}", "ja"), ('{"answer_language":"ko"}', "ko"), ('{"language":"python"}', "ja")],
)
def test_a_prompt_may_name_the_language_of_its_own_answer(fields: str, target: str) -> None:
    (term,) = resolved(
        VerifierConfig(rewards=(RewardWeight(name="language"),), language="ja")
    ).rewards
    (check,) = plan_checks((term,), _prompt("code", fields))
    assert json.loads(check.reference_json) == {"target": target, "rivals": ""}


def test_a_term_with_a_kind_gets_the_prompts_fields_and_its_own_options() -> None:
    term = RewardWeight(name="strict", kind="countdown", options={"exact": True})
    (check,) = plan_checks((term,), _prompt("math", '{"target":6}'))
    assert (check.kind, json.loads(check.reference_json)) == (
        "countdown",
        {"target": 6, "exact": True},
    )


def test_only_the_kinds_that_every_prompt_needs_are_started_ahead() -> None:
    terms = (*PRESETS["r1-stage-2"], RewardWeight(name="judge"), _OVERLONG)
    assert needed_kinds(terms) == ("format", "language", "judge")


def test_a_term_that_no_verifier_judges_is_refused_by_name() -> None:
    check_rewards((*_BOTH, _OVERLONG), {"format", "math"})
    with pytest.raises(ConfigError, match=r"strict must be judged by a known kind.*got 'haiku'"):
        check_rewards([*_BOTH, RewardWeight(name="strict", kind="haiku")], {"format", "math"})


def test_rivals_that_cannot_be_told_apart_are_refused_before_anything_is_judged() -> None:
    for rivals, told in (("fr de", ""), ("fr km-Latn", "'km' cannot be told from others")):
        term = RewardWeight(name="language", options={"target": "en", "rivals": rivals})
        if told:
            with pytest.raises(ConfigError, match=told):
                check_rewards([term], {"language"})
        else:
            check_rewards([term], {"language"})


def test_rivals_without_the_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    term = RewardWeight(name="language", options={"target": "en", "rivals": "fr"})
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[language\]'"):
        check_rewards([term], {"language"})
