"""Sizes by hand: parameters, memory of ranks and engines, lengths of answers."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.simulation.lengths import Lognormal, tail_ratio
from common.config import LearnerConfig, LoraConfig, LossConfig
from common.errors import ModelDirectoryError
from deploy.planning.architecture import architecture_of
from deploy.planning.lengths import AnswerLengths
from deploy.planning.memory import engine_memory, least_ranks, rank_memory
from tests.unit.deploy import plan_models as models

COUNTS = (
    (models.QWEN25_7B, 7_615_616_512),
    (models.QWEN25_32B, 32_763_876_352),
    (models.QWEN3_06B, 596_049_920),
    (models.QWEN3_30B_A3B, 30_532_122_624),
    (models.MIXTRAL_8X7B, 46_702_792_704),
    (models.LLAMA3_8B, 8_030_261_248),
    (models.QWEN15_MOE, 14_315_784_192),
)
"""``sum(p.numel() for p in model.parameters())`` of transformers' models of these sizes."""


@pytest.mark.parametrize(("values", "expected"), COUNTS)
def test_parameters_are_counted_to_the_last_one(values: dict[str, Any], expected: int) -> None:
    assert architecture_of(values).num_parameters == expected


def test_a_token_of_a_mixture_uses_its_experts_only() -> None:
    """Qwen3-30B-A3B: 3.3B active (its model card), of which embedding and head are 0.62B."""
    model = architecture_of(models.QWEN3_30B_A3B)
    assert model.active_body + 2 * model.head_parameters == pytest.approx(3.35e9, rel=0.01)
    few, all_of_them = model.touched_parameters(1), model.touched_parameters(4096)
    assert few == pytest.approx(model.active_body + model.head_parameters, rel=1e-6)
    whole = model.num_layers * model.layer_parameters + model.head_parameters
    assert all_of_them == pytest.approx(whole, rel=1e-6)


def test_the_kv_cache_of_a_token_has_its_published_size() -> None:
    """12, 112 and 144 KiB in bfloat16."""
    sizes = {
        2 * architecture_of(values).kv_elements // 1024
        for values in (models.QWEN25_05B, models.QWEN3_06B, models.QWEN3_4B)
    }
    assert sizes == {12, 112, 144}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deepseek_v3"}, "model_type must be one of .*got 'deepseek_v3'"),
        ({"hidden_size": None}, "hidden_size must be a whole number >= 1, got None"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a whole number"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "layers must be all alike"),
    ],
)
def test_a_model_that_cannot_be_counted_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        architecture_of(models.QWEN25_7B | change)


def test_training_states_are_16_bytes_a_parameter_over_all_ranks() -> None:
    model = architecture_of(models.QWEN25_7B)
    memory = rank_memory(model, LearnerConfig(), 8, 4096)
    states = memory.weights + memory.gradients + memory.moments
    assert states == 16 * 7_615_616_512 / 8
    narrow = rank_memory(model, LearnerConfig(optimizer_dtype="bfloat16"), 8, 4096)
    assert memory.moments == 2 * narrow.moments
    host = rank_memory(model, LearnerConfig(offload_optimizer=True), 8, 4096)
    assert host.weights == host.gradients == host.moments == 0
    loss = LossConfig(kl_coefficient=0.01)
    assert rank_memory(model, LearnerConfig(loss=loss), 8, 4096).reference == 4 * 7_615_616_512 / 8


def test_adapters_have_moments_and_the_model_has_none() -> None:
    """Rank 16 on queries and values of 28 layers: 16 x 28 x (3584 + 3584 + 3584 + 512)."""
    adapters = 16 * 28 * (3584 + 3584 + 3584 + 512)
    learner = LearnerConfig(lora=LoraConfig(rank=16, targets=("q_proj", "v_proj")))
    memory = rank_memory(architecture_of(models.QWEN25_7B), learner, 1, 4096)
    assert memory.moments == 8 * adapters
    assert memory.weights == 4 * (7_615_616_512 + adapters)


def test_full_checkpointing_keeps_the_input_of_each_layer_and_one_whole_layer() -> None:
    """Qwen3-4B at 32k: 2 x 32,768 x 2,560 x 36 bytes, 6 GB, and a layer that is computed again."""
    model = architecture_of(models.QWEN3_4B)
    learner = LearnerConfig(microbatch_tokens=32_768, activation_checkpointing="full")
    kept = rank_memory(model, learner, 8, 4096).activations
    plain = rank_memory(model, replace(learner, activation_checkpointing="none"), 8, 4096)
    assert kept == pytest.approx(2 * 32_768 * 2_560 * 36 + plain.activations / 36)
    assert kept < plain.activations / 15
    selective = replace(learner, activation_checkpointing="selective")
    assert kept < rank_memory(model, selective, 8, 4096).activations < plain.activations


def test_ranks_that_share_a_row_share_its_activations_and_come_in_multiples() -> None:
    model = architecture_of(models.QWEN25_7B)
    learner = LearnerConfig(microbatch_tokens=16_384)
    alone, four = (
        rank_memory(model, replace(learner, context_parallel=size), 8, 4096) for size in (1, 4)
    )
    assert four.activations == alone.activations / 4
    assert four.weights == alone.weights
    full = replace(learner, activation_checkpointing="full", context_parallel=4)
    assert least_ranks(model, full, 4096, 72e9, 64) == 4


def test_the_fewest_ranks_are_those_below_which_nothing_fits() -> None:
    """7B on 72 GB: 18.3 GB do not shrink, so 121.85 / n must be at most 53.7."""
    model = architecture_of(models.QWEN25_7B)
    learner = LearnerConfig(microbatch_tokens=16_384, activation_checkpointing="full")
    least = least_ranks(model, learner, 4096, 72e9, 64)
    assert least == 3
    assert rank_memory(model, learner, 3, 4096).total <= 72e9
    assert rank_memory(model, learner, 2, 4096).total > 72e9
    assert least_ranks(model, learner, 4096, 10e9, 64) is None


def test_what_weights_leave_of_a_gpu_is_for_sequences() -> None:
    """7B on 85% of 80 GB: 68 - 15.23 - 3 = 49.77 GB at 57,344 bytes a token."""
    memory = engine_memory(
        architecture_of(models.QWEN25_7B),
        dtype="bfloat16",
        device_bytes=68e9,
        engine_bytes=3e9,
        prompt_tokens=200,
        mean_decoded=800,
    )
    assert memory.kv_room == pytest.approx(49.768766976e9)
    assert memory.sequences == 867
    assert memory.longest_sequences(4096) == 211


@pytest.mark.parametrize(("sigma", "cap", "size"), [(0.8, 4, 16), (0.8, 4, 8), (1.2, 8, 16)])
def test_the_tail_of_a_group_is_that_of_the_simulation(sigma: float, cap: float, size: int) -> None:
    simulated = Lognormal(sigma, cap)
    lengths = AnswerLengths(1.0, simulated.longest, sigma)
    assert lengths.tail_ratio(size) == pytest.approx(tail_ratio(simulated, size, 4_000), rel=0.02)


@given(
    longest=st.floats(64, 65_536),
    share=st.floats(0.05, 0.9),
    sigma=st.floats(0.2, 1.5),
)
def test_sampled_lengths_have_the_moments(longest: float, share: float, sigma: float) -> None:
    """The longest of one is the mean, of many at most the cut; squares lie between."""
    lengths = AnswerLengths(share * longest, longest, sigma)
    assert lengths.tail_ratio(1) == pytest.approx(1.0, rel=0.01)
    assert 1 <= lengths.tail_ratio(64) <= longest / lengths.mean * (1 + 1e-9)
    assert lengths.mean**2 <= lengths.mean_square * (1 + 1e-9)
    assert lengths.mean_square <= lengths.mean * longest * (1 + 1e-9)
    assert 0 <= lengths.truncated_ratio <= 1


def test_a_running_sequence_is_seen_at_half_its_length_weighted_by_its_length() -> None:
    simulated, source = Lognormal(0.8, 4.0), random.Random(0)
    drawn = [simulated.sample(source) for _ in range(100_000)]
    lengths = AnswerLengths(1.0, simulated.longest, 0.8)
    assert lengths.mean_decoded == pytest.approx(fmean(x * x for x in drawn) / 2, rel=0.02)
    cut = sum(x >= simulated.longest * (1 - 1e-9) for x in drawn) / len(drawn)
    assert lengths.truncated_ratio == pytest.approx(cut, abs=0.002)
