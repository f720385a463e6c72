"""Mixtures of experts train whole, router included, and are published as their files are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, OlmoeConfig, PretrainedConfig, Qwen3MoeConfig

from common.config import LearnerConfig, LoraConfig
from learner.batches.batch import pack
from learner.models.lora import adapted_layers
from learner.models.model import load_policy, run_policy
from learner.publication.export import export_model
from learner.train import take_step
from tests.unit.learner.small_run import (
    ALONE,
    VOCAB_SIZE,
    small_config,
    small_model,
    small_run,
    weights_of,
)
from tests.unit.learner.test_model import plain_logprobs, random_documents

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


def _qwen3() -> PretrainedConfig:
    return Qwen3MoeConfig(head_dim=16, intermediate_size=48, moe_intermediate_size=24, **_SHAPE)


def _olmoe() -> PretrainedConfig:
    return OlmoeConfig(intermediate_size=24, pad_token_id=0, **_SHAPE)


@pytest.fixture(params=[_qwen3, _olmoe], ids=["qwen3-moe", "olmoe"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random mixture of four experts."""
    path = small_model(tmp_path / "model")  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(request.param()).save_pretrained(path)
    return path


def test_packed_documents_are_routed_as_they_are_alone(directory: Path) -> None:
    policy = load_policy(directory, ALONE, max_length=64)
    documents = random_documents()
    packed, _ = run_policy(policy, pack([documents[:4], documents[4:]], 64), 0.7)
    alone = torch.cat([plain_logprobs(policy, item, 0.7) for item in documents])
    torch.testing.assert_close(packed, alone, atol=2e-6, rtol=1e-6)


def test_a_step_trains_experts_and_router(directory: Path) -> None:
    with small_run(small_config(directory.parent)) as run:
        before = weights_of(run.policy)
        assert take_step(run) is None
        after = weights_of(run.policy)
        routers = [name for name in after if name.endswith("mlp.gate.weight")]
        assert len(routers) == 2
        for name, weight in after.items():
            assert not torch.equal(weight, before[name]), name


def test_weights_are_published_under_the_names_of_their_files(directory: Path) -> None:
    policy = load_policy(directory, ALONE, max_length=64)
    file = load_file(directory / "model.safetensors")
    published = dict(policy.published_weights())
    assert published.keys() == file.keys()
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in published
    for name, weight in published.items():
        assert torch.equal(weight, file[name]), name


def test_an_export_is_the_trained_mixture(directory: Path) -> None:
    with small_run(small_config(directory.parent)) as run:
        assert take_step(run) is None
        output = directory.parent / "out"
        export_model(run.policy, ALONE, source=directory, output=output)
        again = load_policy(output, ALONE, max_length=64)
        for name, weight in run.policy.trained_weights():
            assert torch.equal(again.causal_lm.get_parameter(name), weight), name


def test_adapters_leave_experts_and_router_alone(directory: Path) -> None:
    settings = LearnerConfig(lora=LoraConfig(rank=2))
    policy = load_policy(directory, ALONE, max_length=64, settings=settings)
    kinds = {name.rsplit(".", 1)[-1] for name in adapted_layers(policy)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}
