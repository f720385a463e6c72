"""Which data a term is for, and which tasks a prompt file may name for it."""

from __future__ import annotations

import pytest

from common.config import RewardWeight
from common.errors import PromptFileError
from common.prompt_file import parse_prompt
from common.reward_terms import MODEL_TERMS, applies_to, data_kind


@pytest.mark.parametrize(
    ("task", "kind"),
    [("math", "reasoning"), ("judge", "reasoning"), ("helpful", "general"), ("safety", "general")],
)
def test_data_is_general_where_a_preference_model_judges_it(task: str, kind: str) -> None:
    assert data_kind(task) == kind


@pytest.mark.parametrize(
    ("term", "task", "prompt_set", "applies"),
    [
        (RewardWeight(name="a"), "math", "x", True),
        (RewardWeight(name="a", data="reasoning"), "math", "x", True),
        (RewardWeight(name="a", data="reasoning"), "safety", "x", False),
        (RewardWeight(name="a", data="general"), "safety", "x", True),
        (RewardWeight(name="a", prompt_sets=("x", "y")), "math", "y", True),
        (RewardWeight(name="a", prompt_sets=("x", "y")), "math", "z", False),
        (RewardWeight(name="a", data="general", prompt_sets=("x",)), "math", "x", False),
    ],
)
def test_a_term_is_for_its_data_and_its_sets(
    term: RewardWeight, task: str, prompt_set: str, applies: bool
) -> None:
    assert applies_to(term, task, prompt_set) is applies


@pytest.mark.parametrize("task", sorted(MODEL_TERMS))
def test_a_prompt_may_be_for_a_model_to_judge(task: str) -> None:
    line = b'{"prompt_id": "1", "prompt": "Say hello.", "task": "%s"}' % task.encode()
    assert parse_prompt(line, "prompts.jsonl:1").task == task


def test_a_gold_that_is_no_answer_is_found_when_prompts_are_read() -> None:
    line = b'{"prompt_id": "1", "prompt": "Why?", "task": "judge", "gold": [1]}'
    with pytest.raises(PromptFileError, match=r"prompts\.jsonl:1: malformed task"):
        parse_prompt(line, "prompts.jsonl:1")
