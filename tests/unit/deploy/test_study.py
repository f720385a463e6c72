"""Turns of a study are compared each with its own, and a study that failed says why."""

from __future__ import annotations

import pytest

from common.errors import FatalError
from deploy.bench.study import median_ratio, run_study


def test_turns_are_compared_each_with_its_own() -> None:
    """The third turn was slow for both, which says nothing about either."""
    seconds = {"ours": [1.0, 1.2, 9.0], "bare": [1.0, 1.0, 10.0]}
    assert median_ratio(seconds, "ours", "bare") == 1.0
    assert median_ratio(seconds, "bare", "ours") == 1.0
    assert median_ratio({"ours": [1.0, 2.0, 3.0], "bare": [2.0] * 3}, "ours", "bare") == 1.0


def test_a_study_that_fails_says_what_its_process_said_last() -> None:
    with pytest.raises(FatalError, match=r"learner\.no_such_study failed: .*No module named"):
        run_study("learner.no_such_study")
