"""Digests of the weights: of the right bits, by name, and of shards as of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.torch.digest import merge_digests, tensor_digest
from learner.checkpoints.digests import policy_digest, shard_offset, weight_digests
from learner.models.model import load_policy
from tests.unit.learner.small_run import ALONE, small_model


def test_every_weight_has_the_digest_of_its_tensor(tmp_path: Path) -> None:
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)
    digests = weight_digests(policy.published_weights(), ALONE)
    narrow = weight_digests(policy.published_weights(), ALONE, dtype=torch.bfloat16)
    for name, weight in policy.trained_weights():
        assert digests[name] == tensor_digest(weight.detach())
        assert narrow[name] == tensor_digest(weight.detach().bfloat16())


def test_one_changed_bit_changes_the_digest_of_the_policy(tmp_path: Path) -> None:
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)
    before = policy_digest(policy, ALONE)
    last = [weight for _, weight in policy.trained_weights()][-1]
    with torch.no_grad():
        last.view(-1)[-1:].view(torch.int32).bitwise_xor_(torch.tensor(1, dtype=torch.int32))
    assert policy_digest(policy, ALONE) != before


@pytest.mark.parametrize(("num_rows", "world_size"), [(8, 2), (7, 3), (2, 4), (1, 2)])
def test_shards_cut_as_torch_chunks_add_up_to_the_whole(num_rows: int, world_size: int) -> None:
    whole = torch.randn(num_rows, 5, generator=torch.Generator().manual_seed(0))
    shards = list(whole.chunk(world_size))
    digests = [
        tensor_digest(shard, offset_elements=shard_offset(num_rows, 5, rank, world_size))
        for rank, shard in enumerate(shards)
    ]
    assert merge_digests(digests) == tensor_digest(whole)
