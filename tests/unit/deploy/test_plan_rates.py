"""Rates by hand: decoding, training, publication, load; and figures that were really measured."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from common.config import LearnerConfig, WeightsConfig
from deploy.planning.architecture import architecture_of
from deploy.planning.forecast import forecast
from deploy.planning.lengths import AnswerLengths
from deploy.planning.load import load_of
from deploy.planning.measured import FIGURES, MACHINE, Figure
from deploy.planning.rates import Engine, Trainer, recompute_ratio, train_flops_per_step
from deploy.planning.sync import Links, publication
from tests.unit.deploy import plan_models as models

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def engine(values: dict[str, Any], sequences: int, **changes: Any) -> Engine:
    """On an H200 that gives all it has, with 4,096 tokens of context."""
    fields: dict[str, Any] = {
        "model": architecture_of(values),
        "dtype_bytes": 2,
        "bytes_per_s": 4.8e12,
        "decode_flops_per_s": 989e12,
        "prefill_flops_per_s": 400e12,
        "mean_context": 4096.0,
        "overhead_s": 0.0,
        "max_sequences": sequences,
        "prompt_tokens": 0.0,
        "group_size": 16,
    }
    return Engine(**(fields | changes))


@pytest.mark.parametrize(
    ("values", "sequences", "expected"),
    [(models.QWEN3_06B, 256, 10_100), (models.QWEN3_4B, 128, 7_200)],
)
def test_decoding_is_bound_by_what_a_step_reads(
    values: dict[str, Any], sequences: int, expected: float
) -> None:
    """Bandwidth / (KV bytes x context + weights / sequences)."""
    rate = engine(values, sequences).tokens_per_s(sequences, 1000.0)
    assert rate == pytest.approx(expected, rel=0.01)


def test_a_measured_rate_takes_the_place_of_the_model_at_full_load() -> None:
    known = engine(models.QWEN25_7B, 256, measured_tokens_per_s=6_300.0)
    assert known.tokens_per_s(256, 1000.0) == pytest.approx(6_300)
    assert known.decode_step_s(16) < known.decode_step_s(256)


def test_a_prompt_is_computed_once_for_its_group() -> None:
    """1,000 tokens of 7B are 2 x 6.525e9 x 1,000 FLOPs, and attention 0.1e9 x 1,000 twice."""
    alone = engine(models.QWEN25_7B, 1, prompt_tokens=1000.0, group_size=1)
    pairs = 28 * 3584 * 1000
    body = architecture_of(models.QWEN25_7B).active_body
    assert body == 7_615_616_512 - 2 * 152_064 * 3_584 - 3_584
    assert alone.prefill_s() == pytest.approx(2 * (body + pairs) * 1000 / 400e12)
    shared = engine(models.QWEN25_7B, 1, prompt_tokens=1000.0, group_size=16)
    assert shared.prefill_s() == pytest.approx(alone.prefill_s() / 16)


def test_training_costs_six_flops_a_weight_and_attention_its_square() -> None:
    """Qwen3-0.6B at 16k: 3.6 + 5.6 = 9.2 GFLOP a token, what prime-rl counts."""
    lengths = AnswerLengths(16_383.9, 16_384.0, 0.01)
    model = architecture_of(models.QWEN3_06B)
    flops = train_flops_per_step(model, LearnerConfig(), lengths, 0.0, 1)
    assert flops / 16_384 == pytest.approx(3.576e9 + 6 * 28 * 2048 * 16_384, rel=0.002)
    assert flops / 16_384 == pytest.approx(9.2e9, rel=0.01)
    published_mfu, published_tokens_per_s = 0.111, 11_900  # one H100, prime-rl's benchmarks
    rate = published_mfu * 989e12 / (flops / 16_384)
    assert rate == pytest.approx(published_tokens_per_s, rel=0.01)
    twice = LearnerConfig(epochs_per_batch=2)
    assert train_flops_per_step(model, twice, lengths, 0.0, 1) == pytest.approx(2 * flops)


def test_full_checkpointing_computes_the_forward_pass_again() -> None:
    assert recompute_ratio(LearnerConfig()) == 1
    full = LearnerConfig(activation_checkpointing="full")
    assert recompute_ratio(full) == pytest.approx(4 / 3)
    some = LearnerConfig(activation_checkpointing="full", activation_checkpoint_every=2)
    assert recompute_ratio(some) == pytest.approx(7 / 6)


def trainer(**changes: Any) -> Trainer:
    fields: dict[str, Any] = {
        "flops_per_step": 8e17,
        "tokens_per_step": 16e6,
        "flops_per_s": 250e12,
        "num_parameters": 10**10,
        "moved_bytes": 0.0,
        "bytes_per_s": 1e12,
        "microbatch_tokens": 16_000,
        "context_parallel": 1,
        "node_gpus": 8,
        "nvlink_bytes_per_s": 400e9,
        "network_bytes_per_s": 25e9,
    }
    return Trainer(**(fields | changes))


def test_a_step_computes_or_communicates_whichever_is_longer() -> None:
    """On 8 ranks: 400 s of computing, 125 microbatches x 8e10 x 7/8 bytes over NVLink are 22 s."""
    assert trainer().step_s(8) == pytest.approx(400)
    assert trainer().communicate_s(8) == pytest.approx(125 * 8e10 * 7 / 8 / 400e9)
    slow = trainer(network_bytes_per_s=1e9)
    gathered = 1_000 / 16 * 8e10 * 15 / 16 / 8e9
    assert slow.communicate_s(16) == pytest.approx(gathered)
    assert slow.step_s(16) == pytest.approx(gathered)
    halved = trainer(network_bytes_per_s=1e9, context_parallel=2)
    assert halved.communicate_s(16) == pytest.approx(2 * gathered)
    assert trainer(measured_tokens_per_s=5_000.0).step_s(8) == pytest.approx(400)
    assert trainer(measured_tokens_per_s=2_500.0).step_s(8) == pytest.approx(800)


def links(**changes: Any) -> Links:
    fields: dict[str, Any] = {
        "host": 50e9,
        "gloo": 1e9,
        "disk": 2e9,
        "nvlink": 400e9,
        "network": 40e9,
        "load": 4e9,
        "node_gpus": 8,
    }
    return Links(**(fields | changes))


def test_the_stages_of_a_publication_add_up() -> None:
    """16 GB from 4 ranks to 4 engines of the same machine."""
    nccl = WeightsConfig(backend="nccl", bucket_bytes=2 * 10**9)
    stages = publication(16e9, nccl, links(), num_ranks=4, num_engines=4)
    assert stages.snapshot_s == pytest.approx(0.08)
    assert stages.gather_s == pytest.approx(12)
    assert stages.write_s == pytest.approx(8)
    assert stages.send_s == pytest.approx((16 + 2 * 2) / 400)
    assert stages.load_s == pytest.approx(4)
    assert stages.background_s == pytest.approx(20.05)
    assert stages.total_s == pytest.approx(24.13)


def test_nccl_pays_a_tree_by_the_bucket_and_gloo_by_the_whole() -> None:
    nccl = WeightsConfig(backend="nccl", bucket_bytes=2 * 10**9)
    far = publication(16e9, nccl, links(), num_ranks=4, num_engines=60)
    assert far.send_s == pytest.approx((16 + 5 * 2) / 40)
    gloo = publication(16e9, WeightsConfig(), links(), num_ranks=4, num_engines=60)
    assert gloo.send_s == pytest.approx(6 * 16)
    pulled = publication(16e9, WeightsConfig(transfer="pull"), links(), num_ranks=4, num_engines=60)
    assert pulled.send_s == pytest.approx(8)


def test_a_batch_of_r1_is_two_gigabytes_of_arrays() -> None:
    """8,192 answers of 32,768 tokens, eight bytes each: 2.15 GB a step."""
    config = models.make_config(max_tokens=32_768, groups_per_step=512)
    problem = models.problem_of(
        models.QWEN3_06B,
        config,
        workload__mean_tokens=32_767.0,
        workload__prompt_tokens=0.0,
        workload__sigma=0.1,
    )
    load = load_of(problem, forecast(problem, 4, 4))
    assert load.step_bytes == pytest.approx(2.147e9, rel=0.001)
    assert load.megabytes_per_s == pytest.approx(2 * load.rollouts_per_s * 0.262, rel=0.01)
    assert load.stores == 0


def test_a_recorded_expert_is_a_byte_that_only_the_learner_fetches() -> None:
    """Qwen3-30B-A3B: 48 layers x 8 experts a token, beside 12 bytes for all else."""
    plain = models.problem_of(models.QWEN3_30B_A3B, cluster__gpu="H200")
    found = forecast(plain, 4, 4)
    tokens = 256 + plain.lengths.mean
    before = load_of(plain, found)
    after = load_of(plain.with_learner(router_replay=True), found)
    assert after.rollout_bytes - before.rollout_bytes == 384 * tokens
    fetched = (after.megabytes_per_s - before.megabytes_per_s) * 1e6
    assert fetched == pytest.approx(384 * tokens * found.rollouts_per_s)


def test_verifiers_and_stores_follow_the_rate_of_rollouts() -> None:
    """1,024 rollouts/s of 30 ms keep 44 workers 70% busy; 512 MB/s need two stores."""
    config = models.make_config(max_tokens=65_536)
    problem = models.problem_of(
        models.QWEN3_06B, config, workload__verify_s=0.03, workload__mean_tokens=31_122.0
    )
    found = forecast(problem, 4, 4)
    faster = type(found)(**{name: getattr(found, name) for name in found.__slots__} | {"step_s": 1})
    load = load_of(problem, faster)
    assert load.rollouts_per_s == 1024
    assert load.verifier_workers == 44
    assert load.messages_per_s == pytest.approx(1024 * 3.80)
    assert load.broker_used_ratio == pytest.approx(0.345, abs=0.001)  # of 11,288 messages/s
    assert load.megabytes_per_s == pytest.approx(512, rel=0.01)
    assert load.stores == 2


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_what_is_called_measured_stands_in_a_result(figure: Figure) -> None:
    """After a benchmark ran anew, ``deploy/planning/measured.py`` gets its figures."""
    file = RESULTS / f"{figure.benchmark}-{MACHINE}.json"
    details = json.loads(file.read_text())["details"]
    found = reduce(lambda level, key: level[key], figure.key.split("."), details)
    found = median(found) if isinstance(found, list) else found
    assert figure.value == pytest.approx(found, rel=0.002)
