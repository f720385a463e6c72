"""Adapters: the base model at the start, the only thing trained, and merged for everybody else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from common.config import Config, LearnerConfig, LoraConfig
from common.errors import CheckpointError, ModelDirectoryError
from learner.batches.batch import Document, Microbatch, pack
from learner.batches.group_source import Ending
from learner.checkpoints.digests import policy_digest
from learner.models.lora import adapted_layers
from learner.models.model import AdaptersOff, PolicyModel, evaluate_policy, load_policy, run_policy
from learner.models.reference import load_weights
from learner.run_state import TrainingRun
from learner.train import finish, take_step
from tests.unit.learner.small_run import (
    ALONE,
    VOCAB_SIZE,
    small_broker,
    small_config,
    small_model,
    small_run,
    weights_of,
    with_loss,
)

LORA = LoraConfig(rank=4, alpha=8.0)


def _policy(directory: Path, lora: LoraConfig = LORA, seed: int = 0) -> PolicyModel:
    settings = LearnerConfig(lora=lora)
    return load_policy(directory, ALONE, max_length=64, settings=settings, seed=seed)


def _moved(policy: PolicyModel) -> PolicyModel:
    """``policy`` with adapters that do something."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted_layers(policy).values():
            layer.lora_B.weight.normal_(0.0, 0.1, generator=source)
    return policy


def _microbatch() -> Microbatch:
    random = np.random.default_rng(3)
    documents = [
        Document(
            prompt_token_ids=random.integers(0, VOCAB_SIZE, 4),
            completion_token_ids=random.integers(0, VOCAB_SIZE, 7),
            behavior_logprobs=np.zeros(7, dtype=np.float32),
        )
        for _ in range(3)
    ]
    return pack([documents], 33)


def _published(policy: PolicyModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.published_weights()}


def _config(root: Path, **learner: object) -> Config:
    return small_config(root, lora=LORA, **learner)


def _train(run: TrainingRun, num_steps: int) -> None:
    for _ in range(num_steps):
        assert take_step(run) is None


def test_the_first_policy_is_the_base_model_bit_for_bit(tmp_path: Path) -> None:
    directory = small_model(tmp_path / "model")
    plain = load_policy(directory, ALONE, max_length=64)
    adapted = _policy(directory)
    expected = run_policy(plain, _microbatch(), 0.7)
    for found, wanted in zip(run_policy(adapted, _microbatch(), 0.7), expected, strict=True):
        assert torch.equal(found, wanted)
    assert _published(adapted).keys() == weights_of(plain).keys()
    for name, weight in _published(adapted).items():
        assert torch.equal(weight, weights_of(plain)[name]), name


def test_merged_weights_compute_what_the_adapters_compute(tmp_path: Path) -> None:
    directory = small_model(tmp_path / "model")
    adapted, merged = _moved(_policy(directory)), load_policy(directory, ALONE, max_length=64)
    before = evaluate_policy(merged, _microbatch(), 1.0)
    merged.causal_lm.load_state_dict(_published(adapted), strict=True)
    found = evaluate_policy(merged, _microbatch(), 1.0)
    torch.testing.assert_close(
        found, evaluate_policy(adapted, _microbatch(), 1.0), atol=2e-6, rtol=1e-6
    )
    assert (found - before).abs().max() > 1e-3


def test_a_merged_weight_is_the_papers_equation(tmp_path: Path) -> None:
    policy = _moved(_policy(small_model(tmp_path / "model")))
    name = "model.layers.1.self_attn.q_proj"
    layer = adapted_layers(policy.causal_lm)[name]
    change = (8.0 / 4) * layer.lora_B.weight.double() @ layer.lora_A.weight.double()
    expected = layer.weight.double() + change
    torch.testing.assert_close(
        _published(policy)[f"{name}.weight"].double(), expected, atol=1e-6, rtol=1e-6
    )


def test_adapters_switched_off_are_the_base_model(tmp_path: Path) -> None:
    directory = small_model(tmp_path / "model")
    policy = _moved(_policy(directory))
    expected = evaluate_policy(load_policy(directory, ALONE, max_length=64), _microbatch(), 1.0)
    moved = evaluate_policy(policy, _microbatch(), 1.0)
    assert torch.equal(evaluate_policy(AdaptersOff(policy), _microbatch(), 1.0), expected)
    assert torch.equal(evaluate_policy(policy, _microbatch(), 1.0), moved)
    assert not torch.equal(moved, expected)


def test_the_first_adapters_depend_on_the_seed_and_the_layer_alone(tmp_path: Path) -> None:
    directory = small_model(tmp_path / "model")
    first, again, other = (_policy(directory, seed=seed) for seed in (1, 1, 2))
    assert policy_digest(first, ALONE) == policy_digest(again, ALONE)
    assert policy_digest(first, ALONE) != policy_digest(other, ALONE)
    layers = list(adapted_layers(first).values())
    same_shape = [item for item in layers if item.in_features == layers[0].in_features]
    assert len({item.lora_A.weight[0, 0].item() for item in same_shape}) == len(same_shape) > 2


def test_only_the_named_layers_are_adapted(tmp_path: Path) -> None:
    targets = dataclasses.replace(LORA, targets=("q_proj", "v_proj"))
    policy = _policy(small_model(tmp_path / "model"), targets)
    assert {name.rsplit(".", 1)[-1] for name in adapted_layers(policy)} == {"q_proj", "v_proj"}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in policy.trained_weights()} == {
        "q_proj",
        "v_proj",
    }


@pytest.mark.parametrize("target", ["lm_head", "no_proj", "norm"])
def test_a_layer_that_cannot_be_adapted_is_refused_with_those_that_can(
    tmp_path: Path, target: str
) -> None:
    directory = small_model(tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match=rf"'{target}' .*\(use down_proj, gate_proj, k_p"):
        _policy(directory, dataclasses.replace(LORA, targets=(target,)))


def test_a_step_changes_adapters_and_nothing_else(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        frozen = {name: item.clone() for name, item in run.policy.frozen_weights()}
        before = weights_of(run.policy)
        _train(run, 2)
        for name, weight in run.policy.frozen_weights():
            assert torch.equal(weight, frozen[name]), name
            assert weight.grad is None
        for name, weight in run.policy.trained_weights():
            assert not torch.equal(weight, before[name]), name
        assert len(run.optimizer.state) == len(before)


def test_the_reference_is_the_initial_model_without_a_copy_of_it(tmp_path: Path) -> None:
    """The same KL, up to the order of additions, as with a reference model of its own."""
    found = []
    for every in (0, 100):
        config = with_loss(_config(tmp_path / str(every)), kl_coefficient=0.5)
        learner = dataclasses.replace(config.learner, reference_reset_every=every)
        with small_run(dataclasses.replace(config, learner=learner)) as run:
            assert run.reference is not None
            assert isinstance(run.reference.model, AdaptersOff if every == 0 else PolicyModel)
            _train(run, 3)
            found.append((run.digest(), weights_of(run.policy)))
    assert found[0][0] == found[1][0]


def test_a_renewed_reference_is_the_merged_policy(tmp_path: Path) -> None:
    config = with_loss(_config(tmp_path, reference_reset_every=2), kl_coefficient=0.5)
    with small_run(config) as run:
        _train(run, 2)
        assert run.reference is not None
        published = _published(run.policy)
        plain = load_policy(tmp_path / "model", ALONE, max_length=64)
        load_weights(run.process.paths.references, run.reference.version, plain)
        assert isinstance(run.reference.model, PolicyModel)
        for model in (plain, run.reference.model):
            for name, weight in model.published_weights():
                assert torch.equal(weight, published[name]), name


def test_a_checkpoint_holds_adapters_and_a_resumed_run_goes_on_exactly(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        _train(run, 2)
        run.checkpoint()
        saved = run.process.paths.checkpoints / "00000002"
        names = {name for file in saved.glob("*.safetensors") for name in load_file(file)}
        kept = {name.partition(".model.")[2] for name in names}
        assert kept == {name.removeprefix("model.") for name, _ in run.policy.trained_weights()}
        _train(run, 1)
        digest = run.digest()
    with small_run(_config(tmp_path), small_broker(next_group=4, policy_step=2)) as again:
        again.restore(2)
        assert again.digest() != digest
        _train(again, 1)
        assert again.digest() == digest


@pytest.mark.parametrize("change", ["base", "alpha"])
def test_adapters_of_another_base_are_not_gone_on_with(tmp_path: Path, change: str) -> None:
    config = _config(tmp_path)
    with small_run(config) as run:
        run.checkpoint()
    if change == "base":
        file = tmp_path / "model" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"][0] += 0.5
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        changed = dataclasses.replace(config.learner, lora=LoraConfig(rank=4, alpha=9.0))
        config = dataclasses.replace(config, learner=changed)
    with (
        small_run(config) as other,
        pytest.raises(CheckpointError, match="another base or with other settings"),
    ):
        other.restore(0)


def test_the_export_is_the_merged_model_and_the_adapter_in_pefts_format(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        _train(run, 1)
        finish(run, Ending.COMPLETED)
        output = run.process.paths.export
        loaded = AutoModelForCausalLM.from_pretrained(output, dtype=torch.bfloat16)
        for name, weight in run.policy.published_weights():
            assert torch.equal(loaded.get_parameter(name), weight.bfloat16()), name
        adapters = load_file(output / "adapter" / "adapter_model.safetensors")
        for name, weight in run.policy.trained_weights():
            assert torch.equal(adapters[f"base_model.model.{name}"], weight), name
    said = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"]) == ("LORA", 4, 8)
    assert said["base_model_name_or_path"] == str(tmp_path / "model")
    assert said["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
