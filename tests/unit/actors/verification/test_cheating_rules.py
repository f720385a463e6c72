"""Answers that were tried on the small rules: choice, countdown, format and language.

Beside what must earn nothing stand honest spellings that a rule was once too strict for.
"""

from __future__ import annotations

import json

import pytest

from actors.verification.choice import judge_choice, read_choice
from actors.verification.countdown import judge_countdown
from actors.verification.format_reward import judge_format
from actors.verification.language import judge_language

_CITIES = dict(zip("ABCD", ["London", "Paris", "Rome", "Lima"], strict=True))


@pytest.mark.parametrize(
    "answer",
    [
        "**(B)** Paris",
        "**B.** Paris",
        "**B**) Paris",
        "**Answer:** B",
        "**Answer:** (B) Paris",
        "$\\textbf{(B)}\\ Paris$",
        "\\textbf{(B)}\\ \\text{Paris}",
        "\\textbf{(B)}~Paris",
        "\\text{(B)}\\quad\\text{Paris}",
        "\\underline{B}",
        "\\texttt{B}",
        "\\emph{Paris}",
    ],
)
def test_a_choice_in_bold_or_in_spaced_latex_is_read(answer: str) -> None:
    assert read_choice(answer, "ABCD", _CITIES) == ("B", "")


@pytest.mark.parametrize(
    "answer",
    [
        "**B** or **C**",
        "**A** **B**",
        "**(A)** **(B)**",
        "**B** not **C**",
        "B\\ C",
        "B~C",
        "B\\quad C",
        "(B)\\ (C)\\ (D)",
        "B\u0336",
        "B\u20e0",
        "\\sout{A} B",
        "A\u2028B",
        "B\x00C",
        "\u200bA\u200bB",
        "\u1d2e",
        "B\u00b2",
        "\U0001f171",
        "[A-D]",
        "(ABCD)",
        "A\u2228B",
        "\\{A,B,C,D\\}",
        "any of them",
        "all of the above",
        "1) B",
        "**B) London**",
        "**(B)** London",
        "(B)\\ London",
    ],
)
def test_more_or_less_than_one_choice_is_none(answer: str) -> None:
    assert read_choice(answer, "ABCD", _CITIES)[0] is None


@pytest.mark.parametrize(
    ("answer", "letter"), [("10\u00b2", "A"), ("102", "B"), ("H\u2082O", "C"), ("H2O", "D")]
)
def test_a_raised_or_lowered_digit_is_another_text(answer: str, letter: str) -> None:
    texts = dict(zip("ABCD", ["10\u00b2", "102", "H\u2082O", "H2O"], strict=True))
    assert read_choice(answer, "ABCD", texts) == (letter, "")


def test_thinking_that_is_opened_anew_takes_the_answer_back() -> None:
    for completion in (
        "<think></think><answer>B</answer><think>or C?",
        "<think></think><think><answer>B</answer>",
        "</think><think>\\boxed{B}",
    ):
        assert judge_choice(completion, '{"gold":"B"}').value == 0.0
    closed = "<think></think><think>C?</think><answer>B</answer>"
    assert judge_choice(closed, '{"gold":"B"}').value == 1.0


_TASK = '{"numbers":[3,8],"target":24}'


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("3 \\times 8", 1.0),
        ("8\\cdot3", 1.0),
        ("\\left(3\\right)\\times\\left(8\\right)", 1.0),
        ("3\\times", 0.0),
        ("3\\timesx8", 0.0),
        ("3\\left8", 0.0),
        ("\\frac{24}{1}", 0.0),
        ("3 \\times 8 = 24", 0.0),
        ("3 x 8", 0.0),
        ("(3)(8)", 0.0),
        ("3*8+0", 0.0),
        ("3*8*1", 0.0),
        ("+3*8", 0.0),
        ("03*8", 0.0),
        ("3*8.0", 0.0),
        ("\uff13*8", 0.0),
        ("3*\u00b2\u2074", 0.0),
        ("3*8 # 24", 0.0),
        ("3*8\n3*8", 0.0),
        ("24*(8-3)/(8-3)", 0.0),
        ("[3*8]", 0.0),
    ],
)
def test_only_the_numbers_themselves_make_the_target(answer: str, value: float) -> None:
    assert judge_countdown(f"<answer>{answer}</answer>", _TASK).value == value


def test_digits_are_not_joined_by_what_latex_does_not_show() -> None:
    task = '{"numbers":[83,1],"target":83}'
    assert judge_countdown("<answer>8\\left3*1</answer>", task).value == 0.0
    assert judge_countdown("<answer>8\\right 3*1</answer>", task).value == 0.0


@pytest.mark.parametrize(
    "blank",
    [
        "\ufe0f",
        "\u0301",
        "\u20dd",
        "\u200b",
        "\u2060\u200d",
        "\ufeff",
        "\u00ad",
        "\u3164",
        "\u2800",
        "\x00",
        "\x1b",
        "\ue000",
    ],
)
def test_an_answer_that_nobody_sees_is_empty(blank: str) -> None:
    zero = f"<think>r</think><answer>{blank}</answer>"
    assert judge_format(zero, '{"template":"r1-zero"}').value == 0.0
    token = f"|special_token|r|special_token|{blank}"
    assert judge_format(token, '{"template":"special-token"}').value == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "```<think>r</think><answer>1</answer>```",
        "<!--<think>r</think><answer>1</answer>-->",
        "<think>r</think><answer>1</answer>\u200b",
        "<think>the tag <answer> comes next</think><answer>1</answer>",
        "<think>r</think ><answer>1</answer>",
        "<think>r</think><answer id=1>1</answer>",
        "<\u200bthink>r</think><answer>1</answer>",
        "\uff1cthink\uff1er</think><answer>1</answer>",
        "<think>r<\\/think><answer>1</answer>",
        "<think>r</think></answer>1<answer>",
    ],
)
def test_tags_in_disguise_are_no_form(completion: str) -> None:
    assert judge_format(completion, '{"template":"r1-zero"}').value == 0.0


def _share(completion: str, target: str, rivals: str = "") -> float | None:
    return judge_language(completion, json.dumps({"target": target, "rivals": rivals})).value


_CHINESE = "先把两个数相加然后检查结果"
_FRENCH = "Nous devons. Calculer la. Somme des. Deux nombres."


@pytest.mark.parametrize(
    "completion",
    [
        f"<think>Yes ${_CHINESE}$</think>",
        f"<think>Yes $$\\text{{{_CHINESE}}}$$</think>",
        f"<think>Yes\n```\n{_CHINESE}\n```</think>",
        f"<think>Yes `{_CHINESE}`</think>",
        f"<think>Yes \\begin{{array}}{_CHINESE}\\end{{array}}</think>",
        f"<think>Yes https://{_CHINESE}</think>",
        f"{_CHINESE}<think>Yes</think><answer>1</answer>",
        f"<think>Yes</think>{_CHINESE}<think>so</think><answer>1</answer>",
        f"<think>Yes</think><think>{_CHINESE}</think><answer>1</answer>",
        f"<think>Yes</think><answer>1</answer><think>{_CHINESE}",
        f"Yes <answer></answer>{_CHINESE}<answer>1</answer>",
    ],
)
def test_reasoning_in_another_language_is_seen_wherever_it_stands(completion: str) -> None:
    value = _share(completion, "en")
    assert value is not None
    assert value < 0.2


@pytest.mark.parametrize(
    ("thought", "target"),
    [
        ("\U0001d401\U0001d428\U0001d427\U0001d423\U0001d428\U0001d42e\U0001d42b", "zh"),
        ("$\\text{first we add the two}$", "zh"),
        ("\u24d7\u24d4\u24db\u24db\u24de", "zh"),
        ("t\u200bh\u200be\u200bn w\u2060e a\u00add\u00add", "zh"),
        ("\uff46\uff49\uff52\uff53\uff54", "zh"),
        ("\u0442h\u0435 \u0430nswer", "en"),
    ],
)
def test_words_in_disguise_are_words_of_their_own_script(thought: str, target: str) -> None:
    honest = "好" if target == "zh" else "so"
    value = _share(f"<think>{honest} {thought}</think>", target)
    assert value is not None
    assert value < 1.0


def test_sentences_cut_short_are_identified_together() -> None:
    assert _share(f"<think>{_FRENCH}</think>", "en", "fr de") == 0.0
    assert _share(f"<think>{_FRENCH}</think>", "fr", "en de") == 1.0
    assert _share("<think>First we. Add both. Numbers and. Check them.</think>", "en", "fr") == 1.0


@pytest.mark.parametrize(
    "completion", ["<answer>one</answer>", "<think></think><answer>one</answer>", "</think>one"]
)
def test_an_answer_is_no_reasoning(completion: str) -> None:
    assert _share(completion, "en") == 0.0


@pytest.mark.parametrize(
    "thought", ["面积是 $5\\text{ cm}$", "用 `total += item` 计算", "设 $\\text{if } x > 0$ 则成立"]
)
def test_units_and_code_inside_of_chinese_reasoning_cost_nothing(thought: str) -> None:
    assert _share(f"<think>{thought}</think>", "zh") == 1.0
