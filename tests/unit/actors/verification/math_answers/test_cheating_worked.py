"""Answers that copy the question's arithmetic, in many wrappings, and honest closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.math.verifier import compare

_UNWORKED = {
    "56088": [
        "123*456",
        "456 \\times 123",
        "123(456)",
        "(123)(456)",
        "\\left(123\\right)\\left(456\\right)",
        "123 \\cdot 456 \\cdot 1",
        "\\frac{123 \\cdot 456}{1}",
        "\\frac{123}{1/456}",
        "123 / 456^{-1}",
        "-123 \\cdot -456",
        "56088 + x - x",
        "56088 \\cdot \\frac{x}{x}",
        "(123 \\cdot 456)^1",
        "\\boxed{123 \\cdot 456}",
        "x = 123 \\cdot 456",
        "123 \\cdot 456 = x",
        "56088 = 123 \\cdot 456",
        "123 \\cdot 456 \\text{ units}",
        "\\{123 \\cdot 456\\}",
        "56087 + 1",
        "60000 - 3912",
        "\\max(56088, 1)",
        "|-56088|",
        "\\lfloor 56088.5 \\rfloor",
        "\\sqrt{3145863744}",
        "3145863744^{1/2}",
        "\\ln e^{56088}",
        "56088 \\sin 90^\\circ",
        "112176 \\div 2",
        "56088^{1+0}",
        "123 \\cdot 456^1",
        "123 \\cdot (1/456)^{-1}",
        "123 \\cdot 456^{2/2}",
        "123 \\cdot \\binom{456}{1}",
        "123 \\cdot \\binom{456}{455}",
        "\\binom{123}{1} \\cdot \\binom{456}{1}",
        "123 \\cdot \\frac{456!}{455!}",
        "\\frac{123 \\cdot 456!}{455!}",
        "\\frac{123}{455!/456!}",
        "\\frac{123 \\cdot 456^2}{456}",
        "123 \\cdot 456^3 \\cdot 456^{-2}",
        "123 \\cdot (456^2)^1 / 456",
        "123 \\cdot \\frac{912^2}{1824}",
        "123 \\cdot \\frac{228^2}{114}",
        "122 \\cdot \\frac{456^2 - 1}{455} + 456",
        "123 (2^2 + 452)",
        "(2^2 + 119)(2^2 + 452)",
        "1^5 \\cdot 123 \\cdot 456",
        "2^{10} + 55064 \\cdot 1^9",
        "0! \\cdot 56087 + 1!",
    ],
    "579": [
        "123 + \\binom{456}{1}",
        "\\binom{123}{1} + \\binom{456}{1}",
        "\\frac{123^2}{123} + \\frac{456^2}{456}",
        "0! \\cdot 123 + 1! \\cdot 456",
        "1^5 \\cdot 123 + \\frac{456}{1^5}",
        "2! \\cdot 61.5 + 456",
        "123^1 + 456^1",
        "123 - (2^2 - 460)",
        "-(-123 - 2^2) + 452",
        "\\frac{1}{1/123} + 456",
        "\\frac{12300}{10^2} + 456",
        "1.23 \\cdot 10^2 + 4.56 \\cdot 10^2",
        "\\frac{123 \\cdot 2^2}{2^2} + 456",
        "\\frac{57900}{10^2}",
    ],
    "90^\\circ": [
        "(45+45)^\\circ",
        "2 \\cdot 45^\\circ",
        "45+45",
        "180^\\circ - 90^\\circ",
        "180/2",
    ],
    "x > 5": ["x > 2+3", "2+3 < x", "(2+3, \\infty)"],
    "0 < x \\le 5": ["0 < x \\le 10/2", "x \\in (0, 2+3]"],
    "579, -333": ["(2^2 + 119) \\pm 456", "\\binom{123}{1} \\pm 456"],
    "456": [
        "\\frac{456!}{455!}",
        "\\binom{456}{455}",
        "\\frac{456^2}{456}",
        "\\frac{2^9 \\cdot 57}{2^6}",
    ],
    "1,2": ["1, 1+1", "\\{1, 4/2\\}", "3/2 \\pm 1/2"],
    "(1,2)": ["(1, 1+1)", "(2-1, 2)"],
    "28\\%": ["(14+14)\\%", "14 \\cdot 2\\%"],
    "\\$6": ["\\$2 \\cdot 3", "\\$(2+4)", "2 \\cdot 3 \\text{ dollars}"],
    "3:4": ["(1+2):4"],
    "\\begin{pmatrix}3\\\\6\\end{pmatrix}": ["\\begin{pmatrix}1+2\\\\2\\cdot 3\\end{pmatrix}"],
    "x=5": ["x=2+3", "x=5=2+3", "2+3"],
    "-1": ["i^2", "1-2", "e^{i\\pi}", "\\cos \\pi"],
    "0.5": ["0.25+0.25", "2 \\cdot 0.25"],
}
_CLOSED = {
    "1024": ["2^{10}", "4^5", "1024", "1{,}024", "1.024 \\times 10^3", "2^{10} \\cdot 1"],
    "1023": ["2^{10}-1", "-1+2^{10}"],
    "3628800": ["10!", "\\frac{10!}{1}"],
    "252": [
        "\\binom{10}{5}",
        "\\frac{10!}{5!5!}",
        "\\frac{10!}{(5!)^2}",
        "2^2 \\cdot 3^2 \\cdot 7",
    ],
    "45": ["3(2^4-1)", "\\binom{10}{2}", "\\frac{10!}{2!8!}"],
    "364": ["\\frac{3^6-1}{2}", "3^5+11^2"],
    "3360": ["\\frac{8!}{3!2!}", "\\frac{8!}{12}"],
    "7484400": ["\\frac{12!}{2^6}", "\\frac{12!}{(2!)^6}"],
    "1/221": ["\\frac{\\binom42}{\\binom{52}2}"],
    "671/1296": ["1 - (\\frac56)^4", "1 - \\frac{5^4}{6^4}"],
    "9/4": ["2\\frac14", "2 + \\frac14", "\\frac{18}{8}", "2.25", "(3/2)^2"],
    "1/8": ["2^{-3}", "(1/2)^3", "\\frac{1}{2^3}"],
    "2,-2": ["\\pm 2", "-2, 2"],
    "5": ["x=5", "2+3=5", "5.0", "+5"],
    "[0, \\infty)": ["[0, \\infty)", "x \\ge 0"],
    "90^\\circ": ["\\frac{\\pi}{2}", "90", "90.0^\\circ", "\\pi/2"],
    "x > 5": ["5 < x", "(5, \\infty)", "-x < -5", "2x > 10", "x \\in (5, \\infty)"],
    "x \\ne 1": ["\\mathbb{R} \\setminus \\{1\\}", "x \\neq 1"],
    "\\frac{\\sqrt2}{2}": ["\\frac{1}{\\sqrt2}", "\\sqrt{\\frac{1}{4}+\\frac{1}{4}}"],
}


@pytest.mark.parametrize(
    ("gold", "answer"), [(gold, answer) for gold, many in _UNWORKED.items() for answer in many]
)
def test_arithmetic_that_is_left_to_do_earns_nothing(gold: str, answer: str) -> None:
    assert compare(answer, gold).value == 0.0


@pytest.mark.parametrize(
    ("gold", "answer"), [(gold, answer) for gold, many in _CLOSED.items() for answer in many]
)
def test_a_closed_form_is_right(gold: str, answer: str) -> None:
    assert compare(answer, gold).value == 1.0


@given(st.integers(2, 10**6), st.integers(2, 10**6), st.sampled_from("+-*"))
def test_two_numbers_and_a_sign_are_a_question_and_no_answer(a: int, b: int, sign: str) -> None:
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert compare(f"{a} {sign} {b}", str(value)).value == 0.0
    assert compare(f"{a} {sign} {b} = {value}", str(value)).value == 1.0
