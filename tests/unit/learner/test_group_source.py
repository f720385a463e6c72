"""Groups reach the learner screened, planned and with sound payloads, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.arrays import RolloutArrays
from common.errors import FatalError
from learner.batches.chunk import Chunk
from learner.batches.group_source import Ending
from learner.checkpoints.lineage import Lineage
from tests.unit.learner.fake_broker import FakeBroker, random_rollout
from tests.unit.learner.small_run import GROUP_SIZE, VOCAB_SIZE, small_config, small_run


def _broken(group_id: int, kind: str) -> FakeBroker:
    sound = random_rollout(VOCAB_SIZE)

    def sample(number: int, index: int) -> RolloutArrays:
        arrays = sound(number, index)
        if (number, index) != (group_id, 2):
            return arrays
        if kind == "nan":
            broken = np.full_like(arrays.behavior_logprobs, np.nan)
            return replace(arrays, behavior_logprobs=broken)
        return replace(arrays, completion_token_ids=arrays.completion_token_ids + VOCAB_SIZE)

    return FakeBroker(sample, GROUP_SIZE, chunk_sizes=(2,))


@pytest.mark.parametrize("kind", ["nan", "foreign"])
def test_a_group_with_an_impossible_payload_is_quarantined_and_the_rest_trained(
    tmp_path: Path, kind: str
) -> None:
    broker = _broken(1, kind)
    with small_run(small_config(tmp_path), broker) as run:
        chunk = run.source.next_chunk(Lineage(), 0, held=())
    assert isinstance(chunk, Chunk)
    assert chunk.layout.group_ids == (0,)
    assert [group.group_id for group in chunk.groups] == [0]
    assert broker.evicted == {1: "quarantined"}
    placed = [item for batch in chunk.layout.ranks[0] for row in batch.rows for item in row]
    assert {item.group_id for item in placed} == {0}
    assert len(chunk.trained_lengths) == GROUP_SIZE


def test_a_chunk_fills_at_most_what_the_batch_lacks(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(100,))
    with small_run(small_config(tmp_path, groups_per_step=3), broker) as run:
        first = run.source.next_chunk(Lineage(), 0, held=())
    assert isinstance(first, Chunk)
    assert first.layout.group_ids == (0, 1, 2)


def test_groups_whose_reply_was_lost_come_again(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE)
    with small_run(small_config(tmp_path), broker) as run:
        lost = run.source.next_chunk(Lineage(), 0, held=())
        again = run.source.next_chunk(Lineage(), 0, held=())
    assert isinstance(lost, Chunk)
    assert isinstance(again, Chunk)
    assert lost.layout == again.layout


def test_stale_groups_of_a_lost_branch_are_evicted_and_replaced(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(1,), policy_step=6)
    with small_run(small_config(tmp_path), broker) as run:
        chunk = run.source.next_chunk(Lineage(), 6, held=())
        assert isinstance(chunk, Chunk)  # group 0, sampled at 0.6
        broker.handed_over.clear()
        broker.waiting = [0]
        broker.incarnation = 1
        broker.policy_step = 4
        after = run.source.next_chunk(Lineage().forked(4), 4, held=())
    assert isinstance(after, Chunk)
    assert after.layout.group_ids == (0,), "two steps back are within the bound"
    with small_run(small_config(tmp_path, max_policy_lag=1), broker) as run:
        broker.handed_over.clear()
        broker.waiting = [0]
        replaced = run.source.next_chunk(Lineage().forked(4), 4, held=())
    assert isinstance(replaced, Chunk)
    assert replaced.layout.group_ids == (1,)
    assert broker.evicted == {0: "stale"}


def test_a_lag_beyond_the_bound_is_fatal(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, policy_step=7, lag=3)
    with (
        small_run(small_config(tmp_path), broker) as run,
        pytest.raises(FatalError, match="lag 3 > 2"),
    ):
        run.source.next_chunk(Lineage(), 7, held=())


def test_used_up_prompts_are_reported_after_the_last_group(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, num_groups=1)
    with small_run(small_config(tmp_path), broker) as run:
        last = run.source.next_chunk(Lineage(), 0, held=())
        assert isinstance(last, Chunk)
        assert run.source.next_chunk(Lineage(), 0, held=(0,)) is Ending.EXHAUSTED
