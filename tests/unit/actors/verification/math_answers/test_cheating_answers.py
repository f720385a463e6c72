"""Answers that one reader tried for an hour on the math verifier; those of no other list.

Beside them honest spellings that are near to the cheats.
"""

from __future__ import annotations

import pytest

from actors.verification.math.verifier import compare, judge_math

_CHEATS: dict[str, list[str]] = {
    "10^{-9}": ["0.000000", "0.00000000", "-0.000000", "0"],
    "\\frac{1}{1000003}": ["0.000001", "0.00000100", "10^{-6}", "9.99997e-7"],
    "\\frac{1}{3000}": ["0.000333", "0.00033333"],
    "\\frac{1}{30}": ["\\frac{1}{30} \\approx 0.0", "0.03333"],
    "CAB": ["ABC", "BCA", "ABC+0", "A^1BC", "C \\cdot B \\cdot A", "\\text{ABC}", "AB", "CAAB"],
    "\\text{CAB}": ["ABC", "CBA", "\\text{ABC}"],
    "2": [
        "2\\text{ fifths}",
        "2\\text{ dozens}",
        "2\\text{ myriads}",
        "2\\text{ hundredweight}",
        "2\\text{ e3}",
        "2\\pi/\\pi",
        "2i/i",
        "2e/e",
        "2 tens",
        "2\\text{ per cent}",
        "2\\text{ percentage points}",
        "2\\text{ ppm}",
        "2 per mille",
        "2 lakh",
        "2\\text{ reciprocal}",
        "2 inverse",
        "2 factorial",
        "2 imaginary",
        "2 mega",
        "2\\text{ x}",
        "2\\text{ n}",
        "2\\text{ y}",
        "2\\text{ remainder}",
        "2 \\mod 10",
        "2 \\equiv 2",
        "2 \\Rightarrow 2",
        "2_{10}",
        "2^{}",
        "=2",
        "?2",
        "2|3",
        "2;3",
        "n=2k",
        "(2)(3)",
        "[2,2]",
    ],
    "11/2": ["1 1/2", "\\frac{1}{1 1/2}"],
    "12345678.9": ["12345679", "1.234568\\times10^7"],
    "e": ["2.718281828459045235361", "E", "2.71828"],
    "x+1": [
        "\\frac{(x+1)(x-x)}{x-x}",
        "x+1+0\\cdot\\ln(x-x)",
        "\\arcsin(x^2+2)",
        "\\sqrt{-1-x^2}",
        "x+1+C",
        "1.0000001x+1",
        "x^{1.0000001}+1",
    ],
    "x^2+C": ["x^2", "x^2+5", "C", "x^2+2C"],
    "\\mathbb{R}": ["x=x", "0=0", "x<x+1", "x^2\\ge0", "x"],
    "(2,1)": ["\\{1,2\\}", "(1,2)", "1,2", "(2,1)\\cup\\{1\\}"],
    "(0,0)": ["0", "\\emptyset", "(0)"],
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}": ["\\binom{1}{2}", "[1,2]", "\\{1,2\\}", "1,2"],
    "7^{2018}": ["7^{2018}+1", "7^{2019}", "0"],
    "\\$10": [
        "\u20ac10",
        "\u00a310",
        "10 cents",
        "1000 cents",
        "10 pounds",
        "\\$10\\text{ cents}",
        "\\$10\u20ac",
        "\\$10\\%",
        "\\$1\\text{ dime}",
        "\\$10\\text{ k}",
        "10\\text{ dollars or more}",
    ],
    "\u20ac5": ["\\$5", "5 dollars", "5 cents", "\u00a35"],
    "10 cents": ["\\$10", "\\$0.10"],
    "2:30 \\text{ p.m.}": ["2:30 \\text{ a.m.}", "14:30", "2.5"],
}

_HONEST: dict[str, list[str]] = {
    "10^{-9}": ["0.000000001", "1e-9"],
    "\\frac{1}{3000}": ["0.000333333", "0.00033333333"],
    "\\frac{1}{30}": ["\\frac{1}{30} \\approx 0.03", "0.0333333"],
    "0": ["0.000000", "-0", "0.0"],
    "CAB": ["C A B", "C \\cdot A \\cdot B", "\\text{CAB}", "\\text{cab}"],
    "\\text{CAB}": ["CAB", "\\text{Cab}"],
    "AB": ["BA", "B \\cdot A"],
    "2ABC": ["2CBA", "2A \\cdot BC"],
    "2\\%": ["2\\text{ per cent}", "2", "0.02"],
    "2": ["2\\text{ m}", "2\\text{ points}", "2\\text{ rounds}", "2\\text{ s}"],
    "11/2": ["5\\frac12", "5 1/2"],
    "\\$10": ["\\$10", "10\\$", "$10", "10", "10 dollars", "10 USD"],
    "\u20ac5": ["5\u20ac", "5 euros", "5"],
    "\\$5\\text{ per hour}": ["\\$5", "5 dollars per hour", "5"],
    "3": ["3\\text{ roots}", "3\\text{ bits}", "\\$3", "3 cents"],
    "2:30 \\text{ p.m.}": ["2:30 p.m.", "2:30 pm", "2:30 P.M.", "2:30\\text{ PM}", "2:30p.m."],
    "(1,2),(3,4)": ["(3,4),(1,2)"],
}


def _pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, answers in table.items() for answer in answers]


@pytest.mark.parametrize(("gold", "answer"), _pairs(_CHEATS))
def test_what_only_looks_like_the_gold_answer_earns_nothing(gold: str, answer: str) -> None:
    assert compare(answer, gold).value == 0.0


@pytest.mark.parametrize(("gold", "answer"), _pairs(_HONEST))
def test_what_is_the_gold_answer_earns_the_reward(gold: str, answer: str) -> None:
    assert compare(answer, gold).value == 1.0


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("The final answer is $2$ or $3$.", 0.0),
        ("The final answer is $2$, or \\(3\\), or \\[4\\]", 0.0),
        ("The final answer is $2$, not $3$.", 0.0),
        ("The final answer is $2$ or $3", 0.0),
        ("The final answer is $2$ or $2$.", 0.0),
        ("The final answer is **2**", 1.0),
        ("The final answer is **2**.", 1.0),
        ("**The final answer is: 2.**", 1.0),
        ("The final answer is $2$. Or is $3$ meant?", 1.0),
        ("<think></think>\\boxed{2}<think>or \\boxed{3}?", 0.0),
        ("<think></think><think>\\boxed{2}", 0.0),
        ("</think>\\boxed{2}<think>", 0.0),
        ("\\boxed{2}</think></think>", 0.0),
        ("<think>\\boxed{3}</think></think>\\boxed{2}", 1.0),
        ("<answer>3</answer>\\boxed{2}", 0.0),
        ("<answer></answer>\\boxed{2}", 0.0),
        ("\\boxed{2}/\\boxed{3}", 0.0),
        ("\\boxed{2}%\\boxed{3}", 0.0),
        ("\\\\boxed{2}", 0.0),
        ("\\framebox{2}", 0.0),
    ],
)
def test_one_answer_after_all_thinking_is_the_answer(completion: str, value: float) -> None:
    assert judge_math(completion, '{"gold":"2"}').value == value


@pytest.mark.timeout(5)
def test_formulas_without_end_are_joined_in_linear_time() -> None:
    completion = "The final answer is " + "$2$ or " * 9_000
    assert judge_math(completion, '{"gold":"2"}').value == 0.0
