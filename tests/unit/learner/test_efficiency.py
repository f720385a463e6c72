"""FLOPs by hand, devices by name, and rates only where they mean something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.types import RolloutId
from learner.batches.layout import PlannedRollout
from learner.metrics.efficiency import (
    ModelCost,
    describe_efficiency,
    model_cost,
    peak_flops,
    peak_memory,
    peak_of_name,
)
from learner.models.model import load_policy
from tests.unit.learner.small_run import ALONE, SHAPE, VOCAB_SIZE, small_model


def _rollout(prompt: int, completion: int, masked: int = 0) -> PlannedRollout:
    return PlannedRollout(
        rollout_id=RolloutId(group_id=1, index=0, attempt=1),
        num_prompt_tokens=prompt,
        num_completion_tokens=completion,
        advantage=1.0,
        lag=0,
        num_masked_tokens=masked,
    )


def test_flops_count_weights_attention_and_the_head_of_trained_tokens() -> None:
    cost = ModelCost(body_parameters=1000, head_parameters=300, attention_width=8)
    # 6 (1000 x 10 + 300 x 5) + 6 x 8 x 10^2
    assert cost.flops([_rollout(4, 6, masked=1)]) == 6 * (10_000 + 1_500) + 4_800
    assert cost.flops([_rollout(4, 6), _rollout(1, 1)]) == 6 * (12_000 + 2_100) + 48 * 104


def test_the_model_is_counted_without_its_embedding(tmp_path: Path) -> None:
    policy = load_policy(small_model(tmp_path), ALONE, max_length=64)
    cost = model_cost(policy)
    whole = sum(weight.numel() for weight in policy.causal_lm.parameters())
    assert cost.head_parameters == VOCAB_SIZE * SHAPE.hidden_size
    assert cost.body_parameters == whole - 2 * cost.head_parameters  # the head is not tied
    assert cost.attention_width == SHAPE.num_layers * SHAPE.hidden_size


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
    ],
)
def test_a_device_is_known_by_part_of_its_name(name: str, tflops: float) -> None:
    assert peak_of_name(name) == tflops * 1e12


def test_an_unknown_device_has_no_peak_unless_one_is_given() -> None:
    assert peak_of_name("Some Future Device") is None
    assert peak_flops(torch.device("cpu"), 0.0) is None
    assert peak_flops(torch.device("cpu"), 0.5) == 5e11


def test_utilisation_is_left_out_without_a_peak() -> None:
    seconds = {"wait": 1.0, "compute": 2.0, "step": 1.0}
    plain = describe_efficiency(num_tokens=80, flops=6e9, seconds=seconds, peak=None, num_devices=2)
    assert plain == {"tokens_per_second": 20.0}
    known = describe_efficiency(num_tokens=80, flops=6e9, seconds=seconds, peak=1e9, num_devices=2)
    assert known["mfu"] == pytest.approx(0.75)
    assert known["mfu_computing"] == pytest.approx(1.0)
    assert describe_efficiency(num_tokens=1, flops=1.0, seconds={}, peak=1.0, num_devices=1) == {}


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_memory(ALONE)
    filled = torch.ones(32 << 20)
    after = peak_memory(ALONE)
    assert after.rss >= before.rss
    assert after.rss > filled.nbytes
    assert after.device == 0
