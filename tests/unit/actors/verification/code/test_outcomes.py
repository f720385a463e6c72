"""Outcomes of tests become one judgement whose reason counts them."""

from __future__ import annotations

from actors.verification.code.outcomes import CaseOutcome, Outcome, printable, summarise
from common.types import VerdictStatus

_RIGHT = CaseOutcome(Outcome.RIGHT)
_WRONG = CaseOutcome(Outcome.WRONG)
_LIMIT = CaseOutcome(Outcome.LIMIT, "cpu")


def test_all_right_is_worth_one_either_way() -> None:
    for all_or_nothing in (True, False):
        judgement = summarise([_RIGHT] * 3, 3, all_or_nothing=all_or_nothing)
        assert (judgement.value, judgement.reason) == (1.0, "3 of 3 tests right")


def test_one_failure_costs_all_or_its_share() -> None:
    outcomes = [_RIGHT, _WRONG, _RIGHT, _RIGHT]
    assert summarise(outcomes, 4, all_or_nothing=True).value == 0.0
    assert summarise(outcomes, 4, all_or_nothing=False).value == 0.75


def test_tests_that_were_not_run_are_not_passed() -> None:
    judgement = summarise([_RIGHT, _LIMIT], 4, all_or_nothing=False)
    assert judgement.value == 0.25
    assert judgement.status is VerdictStatus.LIMIT_EXCEEDED
    assert judgement.reason == "1 of 4 tests right, 1 limit, 2 not run; first: limit (cpu)"


def test_each_kind_of_outcome_is_counted() -> None:
    judgement = summarise([CaseOutcome(kind) for kind in Outcome], 6, all_or_nothing=False)
    assert judgement.reason == (
        "1 of 6 tests right, 1 wrong, 1 too slow, 1 runtime error, 1 syntax error, 1 limit"
    )


def test_a_reason_is_one_printable_line() -> None:
    hostile = CaseOutcome(Outcome.RUNTIME_ERROR, "\x1b[2J\u202e\x00\n\ud800")
    reason = summarise([hostile], 1, all_or_nothing=True).reason
    assert reason.endswith("(\\x1b[2J\\u202e\\x00\\n\\ud800)")
    assert printable("caf\u00e9 1") == "caf\u00e9 1"
