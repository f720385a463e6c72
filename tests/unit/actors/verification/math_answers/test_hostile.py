"""Answers that are made to hang, crash or deceive; the names count the rows of the threat list."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.verification.math import evaluation
from actors.verification.math.cpu_limit import CpuLimitError, cpu_limit
from actors.verification.math.verifier import CPU_LIMIT_S, compare, judge_math
from common.answers import MAX_CONCLUSION_CHARS, extract_answer
from common.errors import DataError
from common.math_answer import lexer
from common.math_answer.limits import MAX_TOKENS
from common.task_reference import check_task
from common.types import VerdictStatus

_GOLD_2 = '{"gold":"2"}'


def _seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Processor time of the fastest repeat: the collector of garbage may add to some."""
    found = []
    for _ in range(repeats):
        compare.cache_clear()
        started_s = time.process_time()
        work()
        found.append(time.process_time() - started_s)
    return min(found)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that no answer may bring into being."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9}}",
        "9^9^9^9^9",
        "2^{2^{2^{2^{2^{2}}}}}",
        "(10^9)!",
        "((((9!)!)!)!)!",
        "\\left(\\frac{1}{10^{-9}}\\right)!",
        "\\binom{10^9}{5\\cdot10^8}",
        "\\sum_{1}^{10^9}",
        "\\sum_{k=1}^{10^9} k",
        "\\prod_{k=1}^{10^9} k",
        "\\int_0^{10^9} x dx",
        "e^{e^{e^{e^{e}}}}",
        "\\cosh(10^{3000})",
        "10^{10^{10}} - 10^{10^{10}} + 2",
        "2 + 0 \\cdot 9^{9^{9}}",
    ],
)
def test_row_39_towers_factorials_and_long_sums_are_refused_without_work(answer: str) -> None:
    assert _seconds(lambda: compare(answer, "2"), repeats=3) < 0.1
    judgement = compare(answer, "2")
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 0.0)
    assert judgement.reason


@pytest.mark.parametrize(
    "answer",
    [
        "\\sin(10^{3999})",
        "\\tan(10^{3999}\\pi)",
        "\\sqrt{2}" + "+e^{-900}" * 300,
        "+".join(f"\\sin({n}x)" for n in range(200)),
        "\\cdot".join(f"\\ln({n}+\\sqrt[{n}]{{x}})" for n in range(3, 100)),
        "(1000!)^{1/3} + 10^{-1000}\\pi",
        "1.000001^{9999}\\cdot e^{900}",
    ],
)
def test_row_39_the_largest_that_the_limits_let_through_end_within_the_limit(answer: str) -> None:
    assert _seconds(lambda: compare(answer, "\\sqrt{5}x")) < CPU_LIMIT_S + 0.1
    assert compare(answer, "\\sqrt{5}x").value == 0.0


def test_row_39_a_comparison_that_takes_longer_than_a_second_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def endless(*_: object) -> Any:
        while True:
            pass

    monkeypatch.setattr(evaluation.Evaluation, "value", endless)
    assert _seconds(lambda: compare("\\sqrt{3}", "\\sqrt{2}")) < CPU_LIMIT_S + 0.5
    judgement = compare("\\sqrt{3}", "\\sqrt{2}")
    assert (judgement.status, judgement.value) == (VerdictStatus.LIMIT_EXCEEDED, 0.0)
    assert judgement.reason == "processor limit of 1 s exceeded"
    compare.cache_clear()


def test_row_39_the_limit_ends_with_its_block() -> None:
    with cpu_limit(0.01):
        pass
    assert _seconds(lambda: sum(range(2_000_000))) > 0.01


def _endless() -> None:
    while True:
        pass


def test_row_39_the_limit_counts_processor_time_and_raises_in_the_block() -> None:
    with pytest.raises(CpuLimitError), cpu_limit(0.02):
        _endless()


def test_row_39_the_limit_holds_where_its_signal_was_taken_from_it() -> None:
    with cpu_limit(1.0):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with pytest.raises(CpuLimitError), cpu_limit(0.02):
        _endless()


@pytest.mark.parametrize(
    "answer",
    [
        "\\frac{1}{" * 300 + "2" + "}" * 300,
        "\\sqrt{" * 2000 + "4" + "}" * 2000,
        "(" * 3000 + "2" + ")" * 3000,
        "1+" * 200_000 + "1",
        "-" * 4000 + "2",
        "2" + "!" * 4000,
        "\\sin " * 800 + "2",
        "2^" * 2000 + "2",
        "|" * 4000,
        "\\sqrt" * 800 + "2",
        "\\sin" + "-" * 4000 + "2",
        "x_{" * 1000,
        "2" + "^\\circ" * 600,
        "\\pm" * 1300 + "2",
        "[" * 4000,
        "\\boxed{" * 500 + "2" + "}" * 500,
    ],
)
def test_row_40_deep_nesting_is_refused_by_the_grammar(answer: str) -> None:
    assert _seconds(lambda: compare(answer, "2"), repeats=3) < 0.1
    assert compare(answer, "2").value == 0.0
    assert compare(answer, "2").reason


def test_row_40_no_more_than_the_permitted_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted, not timed: one step of the lexer a token."""
    steps = 0
    step = lexer._Lexer._step

    def counted(self: lexer._Lexer) -> None:
        nonlocal steps
        steps += 1
        step(self)

    monkeypatch.setattr(lexer._Lexer, "_step", counted)
    compare.cache_clear()
    assert compare("+" * 4000, "2").value == 0.0
    assert steps <= MAX_TOKENS + 1


_MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "completion",
    [
        "$" * _MEGABYTE,
        "\\" * _MEGABYTE,
        "{" * _MEGABYTE,
        "}" * _MEGABYTE,
        "{}" * (_MEGABYTE // 2),
        "\\boxed{" * 100_000,
        "\\boxed{3}" * 100_000,
        "\\boxed{" * 50_000 + "}" * 50_000,
        "<answer>" * 100_000,
        "<answer>" * 100_000 + "</answer>" * 100_000,
        "final answer is " * 60_000,
        "\\boxed" + " " * _MEGABYTE,
        " and" * 250_000 + "\\boxed{3}",
        "\\boxed{" + "a" * _MEGABYTE + "}",
        "\\boxed{" + "1," * 500_000 + "}",
        "\\boxed{" + "1 " * 2000 + "}",
        "\\boxed{" + "1,000" * 800 + "}",
        "\\boxed{" + "\\text{" * 600 + "}",
        "\\boxed{" + "1" * 4000 + "{,}" + "}",
        "\\boxed{2" + " " * 4000 + "3}",
    ],
)
def test_row_41_hostile_completions_take_milliseconds(completion: str) -> None:
    assert _seconds(lambda: judge_math(completion, _GOLD_2), repeats=3) < 0.5
    assert judge_math(completion, _GOLD_2).value == 0.0


def test_row_41_an_answer_is_looked_for_at_the_end_only() -> None:
    padding = "x" * MAX_CONCLUSION_CHARS
    assert extract_answer("\\boxed{2}" + padding) is None
    assert extract_answer(padding + "\\boxed{2}") == "2"


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 100_000,
        "9" * 1001,
        "0." + "0" * 100_000 + "1",
        "\\{" + ",".join(map(str, range(20_000))) + "\\}",
        "\\{" + ",".join(map(str, range(101))) + "\\}",
        "\\begin{pmatrix}" + "\\\\".join(["&".join("1" * 60)] * 60) + "\\end{pmatrix}",
        "\\begin{pmatrix}" + "\\\\".join(["&".join("1" * 11)] * 11) + "\\end{pmatrix}",
    ],
)
def test_row_42_long_numbers_large_sets_and_large_matrices_are_refused(answer: str) -> None:
    assert _seconds(lambda: compare(answer, "2"), repeats=3) < 0.1
    assert "at most" in compare(answer, "2").reason


@pytest.mark.parametrize(
    "template",
    [
        '__import__("os").system("touch CANARY")',
        "__import__('pathlib').Path('CANARY').touch()",
        "().__class__.__base__.__subclasses__()",
        "(lambda: open('CANARY','w'))()",
        "f\"{open('CANARY','w')}\"",
        "exec(\"open('CANARY','w')\")",
        "eval('2')",
        "preview(x, viewer='file', filename='CANARY')",
        "lambdify(x, open('CANARY','w'))",
        "sympify('2')",
        "\\input{CANARY}",
        "\\immediate\\write18{touch CANARY}",
        "\\openout{CANARY}",
        "\\catcode`\\%=12 2",
    ],
)
def test_row_43_nothing_that_an_answer_says_is_run(template: str, canary: Path) -> None:
    answer = template.replace("CANARY", str(canary))
    for completion in (f"\\boxed{{{answer}}}", f"<answer>{answer}</answer>"):
        assert judge_math(completion, _GOLD_2).value == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{1=2}",
        "\\boxed{200\\%}",
        "\\boxed{2\\%}",
        "\\boxed{x=1=2}",
        "\\boxed{\\cos(x)=2}",
        "\\boxed{2\\pm0}",
        "\\boxed{\\{2\\pm0\\}}",
        "\\boxed{1} \\boxed{2}",
        "\\boxed{2}\\boxed{3}",
        "\\boxed{1} or \\boxed{2}",
        "\\boxed{1, 2, 3}",
        "\\boxed{\\{1, 2\\}}",
        "\\boxed{[1, 3]}",
        "\\boxed{(-\\infty, \\infty)}",
        "\\boxed{1 < 2}",
        "\\boxed{x < 3}",
        "\\boxed{1 \\text{ or } 2}",
        "\\boxed{\\text{2 or 3}}",
    ],
)
def test_row_44_what_contains_the_gold_answer_is_not_the_gold_answer(completion: str) -> None:
    judgement = judge_math(completion, _GOLD_2)
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 0.0)


@pytest.mark.parametrize(
    ("form", "right"),
    [("1=2", "1 = 2"), ("200\\%", "200%"), ("1, 2, 3", "3, 2, 1"), ("[1, 3]", "[1,3]")],
)
def test_row_44_a_gold_answer_of_that_form_is_matched(form: str, right: str) -> None:
    assert compare(right, form).value == 1.0


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("\uff11\uff12", "12", 1.0),
        ("\u22122", "-2", 1.0),
        ("1\u200b2", "12", 1.0),
        ("1\u200d2", "12", 1.0),
        ("\ufeff12", "12", 1.0),
        ("1\u00ad2", "12", 1.0),
        ("\U0001d7cf\U0001d7d0", "12", 1.0),
        ("\u0430", "a", 0.0),
        ("\u0661\u0662", "12", 0.0),
        ("\u2776", "1", 0.0),
        ("\u202e21", "12", 0.0),
        ("\u206621", "21", 0.0),
        ("12\x00", "12", 0.0),
        ("1,000", "1000", 1.0),
        ("\\{1,000\\}", "1000", 0.0),
        ("1,000", "\\{1,000\\}", 0.0),
        ("\\{1,000\\}", "\\{0,1\\}", 1.0),
    ],
)
def test_row_45_characters_are_folded_as_documented(answer: str, gold: str, value: float) -> None:
    assert compare(answer, gold).value == value


@pytest.mark.parametrize(
    "gold",
    [
        "",
        " ",
        "\\frac{1}",
        "(1, 2",
        "1/0",
        "\\frac{2}{1-1}",
        "9^{9^{9}}",
        "(10^9)!",
        "\\sum_{k=1}^{10^9} \\text{k}",
        "\\sum_{k=1}^{n} a_k",
        "\\sum_{k=1}^{10^9} k = 3",
        "\\sum_{k=1}^{10} k\\%",
        "1" * 5000,
        "\\undefined",
        "2 3",
        "\\{1, 2",
    ],
)
def test_row_46_a_malformed_or_slow_gold_answer_is_a_task_error_at_load_time(gold: str) -> None:
    reference_json = msgspec.json.encode({"gold": gold}).decode()
    with pytest.raises(DataError, match="malformed task: gold must be an answer"):
        check_task("math", reference_json)
    with pytest.raises(DataError, match="malformed task: gold must be an answer"):
        judge_math("\\boxed{2}", reference_json)


@pytest.mark.parametrize("reference_json", ["{}", '{"gold":null}', '{"gold":true}', "", "[" * 9999])
def test_row_46_a_task_without_a_gold_answer_is_not_judged(reference_json: str) -> None:
    with pytest.raises(DataError, match="malformed task"):
        judge_math("\\boxed{2}", reference_json)
