"""Answers that were made up to fool the verifier, each with the gold answer that it must not earn.

Beside them the honest spellings that the rule against the cheat could have hit.
"""

from __future__ import annotations

import pytest

from actors.verification.math.verifier import compare, judge_math
from common.types import VerdictStatus

_CHEATS: dict[str, list[str]] = {
    "2": [
        "x",
        "x=x",
        "x=y=2=3",
        "2_1",
        "2:1",
        "2 3",
        "2\\\\3",
        "2\\,3",
        "2\\quad 3",
        "2\\text{ not}",
        "\\text{not }2",
        "2 maybe",
        "2 if x",
        "about 2",
        "2 \\text{ mod } 3",
        "2\\text{ dozen}",
        "2\\text{ k}",
        "2\\text{ M}",
        "2 pairs",
        "2 thousand",
        "2 squared",
        "2 \\ne 3",
        "x \\ne 2",
        "x \\in 2",
        "2 \\in \\{1,2,3\\}",
        "2\\approx 2.4",
        "3 \\approx 2",
        "x\\approx 3 = 2",
        "x=2 \\approx 2.4",
        "2_2",
        "\\overline{2}2",
        "\\not 2",
        "2'",
        "2...",
        "2!!",
        "\\frac{1}{2}\\%",
        "2 + \\frac{1}{\\infty}",
        "2 + 0\\cdot\\infty",
        "e^{-\\infty}+2",
        "0^0+1",
        "1^\\infty+1",
        "\\max(2,x)",
        "\\min(2,x+100)",
        "\\max(2,\\infty)",
        "\\lfloor 2+\\frac{x}{10}\\rfloor",
        "\\gcd(2,x)",
        "2+\\frac{|x-1000|-(1000-x)}{x}",
        "\\{2\\}\\cup\\{2\\}",
        "\\{2\\}\\cup\\{3\\}",
        "\\text{two}",
        "\\phantom{3}2",
        "\\color{white}{1}2",
        "\\cancel{3}2",
        "\\newcommand{\\a}{2}\\a",
        "\\def\\a{2}\\a",
        "% 3\n2",
        "2 % 3",
        "<b>2</b>",
        "**2**",
        "2\u0338",
        "2\\begin{comment}3\\end{comment}",
    ],
    "x": [
        "X",
        "x=3",
        "x=y",
        "x_1",
        "x,y",
        "|x|",
        "\\arcsin(\\sin x)",
        "\\lfloor x\\rfloor",
        "f(x)",
    ],
    "A": ["a", "A, B", "A=B", "ABC", "A or B", "\\text{A or B}", "(A)(B)", "A: 5", "AB/C"],
    "(1,3)": [
        "1<x\\le3",
        "x>1 \\text{ or } x<3",
        "(1,2)\\cup(2,3)",
        "(3,1)",
        "(1,3,3)",
        "((1,3))",
        "y=1,x=3",
        "(1,3)\\cup\\emptyset\\cup[3,4)",
    ],
    "\\text{yes}": ["no", "yes, no", "\\text{yes or no}", "\\text{not yes}", "y e s"],
    "\\emptyset": [
        "0",
        "\\{\\emptyset\\}",
        "\\{0\\}",
        "()",
        "(1,1)",
        "\\text{}",
        "x \\in \\mathbb{R}",
    ],
    "x=5": ["2x=10", "x-5=0", "x=5,x=6", "x=5 or x=6", "y=5", "x\\ge5", "x=x", "x=5=x+0"],
    "y=2x+3": ["0=0", "y=y", "x(y-2x-3)=0", "(y-2x-3)^2=0", "y=2x+4", "y<2x+3", "y=2x+3+10^{-90}"],
    "50\\%": ["0.5\\%", "5000\\%", "50\\text{ cm}"],
    "\\sqrt{2}": [
        "1.41421",
        "\\frac{665857}{470832}",
        "\\sqrt{2}+10^{-100}",
        "\\sqrt{2.0000001}",
        "\\pm\\sqrt2",
        "1.414 \\approx \\sqrt2",
        "2\\sin 45",
    ],
    "0": [
        "10^{-1000}",
        "e^{-9000}",
        "0.0000001",
        "\\emptyset",
        "\\sin(10^{-50}\\pi)",
        "\\sqrt2-1.41421356237309504880168872420969807856967187537694",
        "\\frac{x-x}{x-x}",
    ],
    "\\{1,2\\}": ["\\{\\{1,2\\}\\}", "(1,2)", "[1,2]", "\\{1,2\\}\\cup\\mathbb{R}", "1,2,3"],
    "x=1,y=2": ["2,1", "(2,1)", "x=2,y=1", "x=1", "x=1,2", "1,y=2", "a=1,b=2"],
    "[2, 2+10^{-50}]": ["[2,2]", "[2, 2+10^{-51}]", "\\{2\\}"],
    "x<-2 \\text{ or } x>3": ["x<-2 \\text{ and } x>3", "x<-2", "\\mathbb{R}", "3<x<-2"],
    "12": [
        "1 2",
        "1\\text{}2",
        "\\text{1}2",
        "12-13",
        "12\\text{--}13",
        "12/13",
        "\\dot{12}",
        "1,2",
    ],
}

_HONEST: dict[str, list[str]] = {
    "2": [
        "2!",
        "x=2",
        "1+1=2",
        "\\{2\\}",
        "2 units",
        "x \\in \\{2\\}",
    ],
    "x": ["y=x", "\\ln e^x", "\\sqrt[3]{x^3}", "\\frac{x^2}{x}"],
    "|x-1000|": ["|1000-x|", "\\sqrt{(x-1000)^2}"],
    "(1,3)": ["1<x<3", "x>1,x<3", "x>1 \\text{ and } x<3", "(1,2)\\cup[2,3)", "x=1,y=3"],
    "x=1,y=2": ["y=2,x=1", "(1,2)", "1,2", "x=1\\text{ and }y=2"],
    "1, 2": ["x_1=2, x_2=1", "x=1 \\text{ or } x=2"],
    "[-1,1]": ["x\\ge-1,x\\le1", "1\\ge x\\ge-1", "(-1,1)\\cup\\{-1,1\\}"],
    "y=2x+3": ["y-2x-3=0", "2x+3", "3+2x=y"],
    "e^{x^3}": ["\\exp(x^3)", "(e^x)^{x^2}"],
    "a<b": ["b>a", "-a>-b", "2a<2b", "0<b-a"],
    "3:00": ["3:00 \\text{ p.m.}"],
}


def _pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, answers in table.items() for answer in answers]


@pytest.mark.parametrize(("gold", "answer"), _pairs(_CHEATS))
def test_a_cheat_earns_nothing(gold: str, answer: str) -> None:
    judgement = compare(answer, gold)
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 0.0)


@pytest.mark.parametrize(("gold", "answer"), _pairs(_HONEST))
def test_an_honest_spelling_earns_the_reward(gold: str, answer: str) -> None:
    assert compare(answer, gold).value == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{1 \\boxed{2}}",
        "\\boxed{3}, \\boxed{2}",
        "\\boxed{2} and \\boxed{3}",
        "<answer>2</answer><answer>3</answer>",
        "<answer>2 or \\boxed{3}</answer>",
        "<answer>\\boxed{2} or \\boxed{3}</answer>",
        "\\boxed{2}</think> \\boxed{3}",
        "The final answer is 2 or 3.",
        "The final answer is 3. The final answer is not 2.",
        "<think>\\boxed{2}</think> It follows.",
        "\\boxed{}",
        "\\boxed{\\boxed{}}",
        "\\fbox{2}",
        "\\boxed2",
    ],
)
def test_a_second_answer_beside_the_right_one_earns_nothing(completion: str) -> None:
    assert judge_math(completion, '{"gold":"2"}').value == 0.0


def test_a_repeated_pair_is_judged_once() -> None:
    compare.cache_clear()
    assert compare("4/2", "2") == compare("4/2", "2")
    assert compare.cache_info().hits == 1


@pytest.mark.parametrize(
    ("extract", "value"),
    [(["boxed"], 1.0), (["final-answer", "boxed"], 0.0), (["answer-tag"], 0.0)],
)
def test_the_task_chooses_the_conventions_and_their_order(extract: list[str], value: float) -> None:
    completion = "The final answer is 3. So \\boxed{2}"
    extracted = ",".join(f'"{name}"' for name in extract)
    assert judge_math(completion, f'{{"gold":"2","extract":[{extracted}]}}').value == value
