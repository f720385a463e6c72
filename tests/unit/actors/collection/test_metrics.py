"""Golden values of pass@k, votes and errors."""

from __future__ import annotations

import itertools
import math

import pytest

from actors.collection.metrics import (
    ScoredSample,
    cluster_mean,
    interval_95,
    majority_accuracy,
    pass_at_k,
    plurality,
    summarize,
)


def _sample(answer: str | None, accuracy: float = 0.0, **fields: float | bool) -> ScoredSample:
    return ScoredSample(
        answer=answer,
        accuracy=accuracy,
        format=fields.get("format", 1.0),
        reward=accuracy + fields.get("format", 1.0),
        num_tokens=int(fields.get("num_tokens", 10)),
        is_truncated=bool(fields.get("is_truncated", False)),
    )


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "value"),
    [
        (5, 2, 1, 0.4),
        (5, 2, 2, 0.7),
        (10, 3, 5, 0.916667),
        (64, 1, 16, 0.25),
        (4, 0, 4, 0.0),
        (4, 4, 1, 1.0),
        (4, 1, 4, 1.0),
    ],
)
def test_pass_at_k_golden_values(num_samples: int, num_correct: int, k: int, value: float) -> None:
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(value, abs=5e-7)


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    correct = [True, False, False, True, False, False]
    for k in range(1, 7):
        subsets = list(itertools.combinations(correct, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(6, 2, k) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="0 <= c <= n"):
        pass_at_k(n, c, k)


def test_completions_without_an_answer_do_not_vote() -> None:
    assert plurality([None] * 59 + ["b", "a", "a", "b", "a"]) == 60
    assert plurality([None, None]) is None


def test_equal_numbers_vote_together() -> None:
    assert plurality(["3", "1/2", "3", ".5", "0.50"]) == 1


@pytest.mark.parametrize(
    ("answers", "winner"),
    [(["a", "b"], 0), (["b", "a"], 0), (["a", "b", "b", "a"], 1), (["a", "b", "a", "b"], 0)],
)
def test_of_equal_counts_wins_the_one_that_was_reached_first(
    answers: list[str], winner: int
) -> None:
    assert plurality(answers) == winner


def test_the_majority_is_as_right_as_the_answer_it_gave() -> None:
    votes = [_sample("9"), _sample("31", 1.0), _sample("31.0", 1.0), _sample(None)]
    assert majority_accuracy(votes) == 1.0
    assert majority_accuracy(votes[:2]) == 0.0
    assert majority_accuracy([_sample(None)]) == 0.0


def test_the_error_of_equal_clusters_is_the_deviation_of_their_means_over_root_m() -> None:
    mean, error = cluster_mean([[1, 1], [1, 0], [0, 0], [1, 0]])
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt((0.25 + 0 + 0.25 + 0) / 3 / 4))


def test_samples_of_one_prompt_add_no_certainty_when_they_agree() -> None:
    once = cluster_mean([[1.0], [0.0], [1.0], [0.0]])
    assert cluster_mean([[1.0] * 16, [0.0] * 16, [1.0] * 16, [0.0] * 16]) == pytest.approx(once)


def test_unequal_clusters_follow_the_ratio_estimator() -> None:
    mean, error = cluster_mean([[1, 1, 1], [0]])
    assert mean == 0.75
    assert error == pytest.approx(math.sqrt(2 / 1 * (0.75**2 + 0.75**2)) / 4)


def test_one_cluster_says_nothing_about_others() -> None:
    assert cluster_mean([[1.0, 0.0]]) == (0.5, math.inf)


def test_the_interval_is_cut_at_zero_and_one() -> None:
    assert interval_95(0.5, 0.1) == pytest.approx((0.3040036, 0.6959964))
    assert interval_95(0.95, 0.1)[1] == 1.0
    assert interval_95(0.05, 0.1)[0] == 0.0


def test_a_summary_of_two_prompts() -> None:
    prompts = [
        [
            _sample("31", 1.0, num_tokens=40),
            _sample("31", 1.0, num_tokens=20),
            _sample("30", 0.0, format=0.0),
        ],
        [
            _sample("7", 0.0),
            _sample(None, 0.0, format=0.0, is_truncated=True, num_tokens=30),
            _sample("8", 1.0),
        ],
    ]
    summary = summarize(prompts)
    assert summary["num_prompts"] == 2
    assert summary["num_samples"] == 6
    assert summary["pass_at_1"] == pytest.approx(0.5)
    assert summary["pass_at_1_standard_error"] == pytest.approx(1 / 6)
    assert summary["pass_at"] == {
        "1": pytest.approx(0.5),
        "2": pytest.approx(1 - (1 / 3 * 0 + 1 / 3) / 2),
        "3": 1.0,
    }
    assert summary["maj_at"] == {"1": 0.5, "2": 0.5, "3": 0.5}
    assert summary["mean_length"] == pytest.approx(20.0)
    assert summary["truncated_ratio"] == pytest.approx(1 / 6)
    assert summary["unanswered_ratio"] == pytest.approx(1 / 6)
    assert summary["format_mean"] == pytest.approx(4 / 6)
    assert summary["reward_mean"] == pytest.approx(7 / 6)


def test_a_summary_without_format_reward_says_so() -> None:
    sample = ScoredSample("1", 1.0, None, 1.0, 5, is_truncated=False)
    summary = summarize([[sample]])
    assert summary["format_mean"] is None
    assert summary["pass_at_1_standard_error"] is None
    assert summary["pass_at_1_interval_95"] == [0.0, 1.0]


def test_an_empty_evaluation_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
