"""Texts that are displayed as nothing, and short ones that are displayed as themselves."""

from __future__ import annotations

import time

import pytest

from actors.verification.format_reward import judge_format
from actors.verification.language import judge_language
from actors.verification.models.response import final_summary
from actors.verification.visible import shows_something

_NOTHING = [
    *("&nbsp;", "&#8203;", "&zwj;", "\u200b", "\u3164", "<br>", "<p> </p>", "</b>", "[](x)"),
    *("<!-- 42 -->", "<!-- a <!-- b -->", "```\n```", "```python\n\n```", "~~~\n~~~"),
    *("$$", "$ $", "$$ $$", "\\(\\)", "\\[ \\]", "\\ ", "\\quad", "\\,\\;~", "\\\\", "${}^{}$"),
    *("\\phantom{42}", "$\\phantom{\\frac{4}{2}}$", "\\hspace{1cm}", "\\mbox{\\hspace*{2em}}"),
    *("\\text{}", "\\boxed{}", "\\boxed{\\text{ }}", "\\textcolor{red}{}", "\\phantom{42"),
]
_SOMETHING = [
    *("42", "0", "$", "{}", "{ }", "~", "*", "#", ">", "<", ".", "-", "[]", "()", "&", "_", "^"),
    *("\\", "\\{\\}", "\\$", "\\emptyset", "\\pi", "\\text{yes}", "\\boxed{0}", "${}$x"),
    *("<x>", "a<b", "&lt;b&gt;", "<!-- open", "<hr>", "<img src=x>", "![](x)", "[a](x)"),
    *("`x`", "```\nx\n```", "```", "\\textcolor{red}{42}", "<b>42</b>", "\\phantom{4}2"),
]


@pytest.mark.parametrize("text", _NOTHING)
def test_what_is_displayed_as_nothing_is_no_answer_and_no_summary(text: str) -> None:
    assert not shows_something(text)
    completion = f"<think>r</think><answer>{text}</answer>"
    assert judge_format(completion, '{"template":"r1-zero"}').value == 0.0
    assert final_summary(f"<think>r</think>{text}") is None


@pytest.mark.parametrize("text", _SOMETHING)
def test_what_is_displayed_is_an_answer_however_short(text: str) -> None:
    assert shows_something(text)


@pytest.mark.parametrize(
    "unit",
    ["<!--", "`", "```\n", "\\phantom{", "<a ", "[ ", "{", "^ ", "\\", "&", "\\color", "_{", "[]("],
)
def test_markup_without_end_is_read_in_linear_time(unit: str) -> None:
    started_s = time.process_time()
    shows_something(unit * (1_000_000 // len(unit)))
    assert time.process_time() - started_s < 1.0


def test_a_summary_in_a_thought_that_was_opened_anew_is_none() -> None:
    assert final_summary("<think>a</think>so <think>let me see") is None


def test_letters_without_a_form_are_no_words() -> None:
    thought = "<think>one two \u3164 \uffa0 \u115f\u1160 \u3164\u3164</think>"
    assert judge_language(thought, '{"target":"ko"}').value == 0.0
