"""What may be trained, what is dropped with a reason, and what stops the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common.arrays import RolloutArrays
from common.errors import FatalError
from common.types import (
    EvictReason,
    RolloutHeader,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    VerifiedRollout,
    WeightVersion,
)
from learner.batches.screening import Screen, has_foreign_tokens, lag_histogram
from learner.checkpoints.lineage import Lineage
from tests.builders import prompt, rollout_header, version
from tests.unit.learner.small_run import small_config


def _screen(policy_step: int = 5, lineage: Lineage | None = None, **learner: Any) -> Screen:
    config = small_config(Path("/nowhere"), **learner)
    return Screen(config, lineage or Lineage(), policy_step)


def _judged(reward: float) -> Verdict:
    return Verdict(status=VerdictStatus.GRADED, reward=reward)


_UNJUDGED = Verdict(status=VerdictStatus.BAD_INPUT, reward=None)


def _group(*items: tuple[RolloutHeader, Verdict]) -> VerifiedGroup:
    rollouts = tuple(VerifiedRollout(rollout=header, verdict=verdict) for header, verdict in items)
    return VerifiedGroup(group_id=3, prompt=prompt(), deadline_step=5, rollouts=rollouts)


def _sampled(index: int, *spans: tuple[int, WeightVersion], **header: Any) -> RolloutHeader:
    return rollout_header(group_id=3, index=index, spans=spans, **header)


def test_a_group_within_the_bound_is_trained() -> None:
    group = _group((_sampled(0, (0, version(3))), _judged(1)))
    assert _screen().reason_to_evict(group) is None


def test_a_token_beyond_the_bound_stops_the_run_and_names_the_group() -> None:
    mixed = _sampled(1, (0, version(2)), (3, version(5)))
    group = _group((_sampled(0, (0, version(5))), _judged(1)), (mixed, _judged(0)))
    with pytest.raises(FatalError, match=r"group 3 .* policy_step 5 .* weights 0\.2, lag 3 > 2"):
        _screen().reason_to_evict(group)


def test_the_bound_is_zero_for_synchronous_training() -> None:
    group = _group((_sampled(0, (0, version(4))), _judged(1)))
    with pytest.raises(FatalError, match="lag 1 > 0"):
        _screen(max_policy_lag=0).reason_to_evict(group)


def test_over_age_tokens_of_a_lost_branch_are_stale_and_nobodys_fault() -> None:
    lost = _group((_sampled(0, (0, version(6))), _judged(1)))
    lineage = Lineage().forked(4)
    assert _screen(lineage=lineage).reason_to_evict(lost) is EvictReason.STALE
    near = _group((_sampled(0, (0, version(5))), _judged(1)))
    assert _screen(lineage=lineage).reason_to_evict(near) is None


def test_weights_from_the_future_stop_the_run() -> None:
    for sampled_at in (version(6), version(1, incarnation=1)):
        with pytest.raises(FatalError, match="serves another run's weights"):
            _screen().reason_to_evict(_group((_sampled(0, (0, sampled_at)), _judged(1))))


def test_another_temperature_stops_the_run() -> None:
    header = msgspec.structs.replace(_sampled(0, (0, version(5))), temperature=0.7)
    with pytest.raises(FatalError, match=r"sampled by 'actor-0' at 0\.7, the learner has 1\.0"):
        _screen().reason_to_evict(_group((header, _judged(1))))


def test_a_group_without_any_judged_answer_is_all_masked() -> None:
    unjudged = (_sampled(0, (0, version(5))), _UNJUDGED)
    empty = (_sampled(1, (0, version(5)), num_completion=0), _judged(1))
    assert _screen().reason_to_evict(_group(unjudged, empty)) is EvictReason.ALL_MASKED


@pytest.mark.parametrize("sizes", [{"num_prompt": 0}, {"num_prompt": 60, "num_completion": 5}])
def test_a_rollout_that_no_actor_could_have_sampled_is_quarantined(sizes: dict[str, int]) -> None:
    group = _group((_sampled(0, (0, version(5)), **sizes), _judged(1)))
    assert _screen().reason_to_evict(group) is EvictReason.QUARANTINED


def test_unjudged_answers_neither_count_in_the_mean_nor_carry_gradient() -> None:
    rewards: list[Verdict] = [_judged(1), _UNJUDGED, _judged(0)]
    group = _group(*((_sampled(i, (0, version(5))), verdict) for i, verdict in enumerate(rewards)))
    planned = _screen().plan(group)
    assert [rollout.rollout_id.index for rollout in planned] == [0, 2]
    expected = 0.5 / np.sqrt(0.5)
    advantages = [rollout.advantage for rollout in planned]
    assert advantages == pytest.approx([expected, -expected], abs=1e-5)


def test_a_rollouts_lag_is_that_of_its_oldest_token() -> None:
    header = _sampled(0, (0, version(4)), (2, version(5)))
    (planned,) = _screen().plan(_group((header, _judged(1))))
    assert planned.lag == 1


def test_the_lag_histogram_counts_tokens_by_span() -> None:
    first = _sampled(0, (0, version(4)), (2, version(5)), num_completion=5)
    second = _sampled(1, (0, version(3)), num_completion=7)
    unjudged = (_sampled(2, (0, version(3)), num_completion=9), _UNJUDGED)
    group = _group((first, _judged(1)), (second, _judged(0)), unjudged)
    assert lag_histogram([group], _screen()) == {0: 3, 1: 2, 2: 7}


def _masked(item: VerifiedRollout, *spans: int) -> VerifiedRollout:
    return msgspec.structs.replace(item, masked_spans=spans)


def test_masked_tokens_have_no_lag_and_their_rewards_still_count() -> None:
    old = version(0)
    mixed = _sampled(0, (0, old), (2, version(5)), num_completion=6)
    group = _group((mixed, _judged(1)), (_sampled(1, (0, old)), _judged(0)))
    first, second = group.rollouts
    masked = msgspec.structs.replace(group, rollouts=(_masked(first, 0), _masked(second, 0)))
    assert _screen().reason_to_evict(masked) is None
    assert _screen().group_lag(masked) == 0
    (planned,) = _screen().plan(masked)
    assert planned.num_trained_tokens == 4
    assert planned.lag == 0
    assert planned.advantage == pytest.approx(0.5 / np.sqrt(0.5), abs=1e-5)
    assert lag_histogram([masked], _screen()) == {0: 4}


def test_a_mask_that_misses_an_over_age_span_stops_the_run() -> None:
    mixed = _sampled(0, (0, version(0)), (2, version(1)), (4, version(5)))
    group = _group((mixed, _judged(1)))
    (item,) = group.rollouts
    missed = msgspec.structs.replace(group, rollouts=(_masked(item, 0),))
    with pytest.raises(FatalError, match=r"weights 0\.1, lag 4 > 2"):
        _screen().reason_to_evict(missed)


def test_a_group_whose_tokens_are_all_masked_is_not_trained() -> None:
    group = _group((_sampled(0, (0, version(0))), _judged(1)))
    (item,) = group.rollouts
    masked = msgspec.structs.replace(group, rollouts=(_masked(item, 0),))
    assert _screen().reason_to_evict(masked) is EvictReason.ALL_MASKED


@pytest.mark.parametrize(("token", "foreign"), [(18, False), (19, True)])
def test_token_ids_outside_the_vocabulary_are_noticed(token: int, foreign: bool) -> None:
    ids = np.array([1, token], dtype=np.int32)
    arrays = RolloutArrays(ids[:1], ids, np.zeros(2, dtype=np.float32))
    assert has_foreign_tokens(arrays, 19) is foreign
