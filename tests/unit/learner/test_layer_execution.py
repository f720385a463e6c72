"""Compiled and offloaded layers compute the same, and refuse machines that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from common.config import LearnerConfig, LoraConfig
from common.errors import ConfigError
from learner.batches.batch import Microbatch, pack
from learner.models import layer_execution
from learner.models.model import PolicyModel, load_policy, run_policy
from tests.unit.learner.small_run import ALONE, small_model
from tests.unit.learner.test_model import random_documents

HIDDEN_SIZE = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


def _policy(directory: Path, **settings: Any) -> PolicyModel:
    return load_policy(directory, ALONE, max_length=64, settings=LearnerConfig(**settings))


def _microbatch(row_length: int = 40) -> Microbatch:
    documents = random_documents()
    return pack([documents[:4], documents[4:]], row_length)


def _values_and_gradients(policy: PolicyModel, microbatch: Microbatch) -> list[Tensor]:
    policy.zero_grad()
    logprobs, entropy = run_policy(policy, microbatch, 0.7)
    (logprobs * torch.linspace(-1, 1, len(logprobs)) + entropy).sum().backward()
    gradients = [weight.grad for _, weight in policy.trained_weights()]
    return [logprobs.detach(), *(item.clone() for item in gradients if item is not None)]


class HostMemory(saved_tensors_hooks):
    """``save_on_cpu`` on a machine where the device is the host: copies, and remembers what."""

    stored: list[tuple[int, ...]]

    def __init__(self, *, pin_memory: bool) -> None:
        assert not pin_memory, "there is no GPU to pin memory for"
        super().__init__(self._store, torch.clone)

    def _store(self, tensor: Tensor) -> Tensor:
        type(self).stored.append(tuple(tensor.shape))
        return tensor.detach().clone()


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what a GPU would copy")
def test_one_tensor_a_layer_waits_in_host_memory_and_no_bit_changes(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _values_and_gradients(_policy(directory), _microbatch())
    HostMemory.stored = []
    monkeypatch.setattr(layer_execution, "save_on_cpu", HostMemory)
    policy = _policy(directory, activation_checkpointing="full", offload_activations=True)
    found = _values_and_gradients(policy, _microbatch())
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert HostMemory.stored == [(2, 40, HIDDEN_SIZE)] * 2


def test_only_layers_that_are_computed_again_are_offloaded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HostMemory.stored = []
    monkeypatch.setattr(layer_execution, "save_on_cpu", HostMemory)
    policy = _policy(
        directory,
        activation_checkpointing="full",
        activation_checkpoint_every=2,
        offload_activations=True,
    )
    _values_and_gradients(policy, _microbatch())
    assert HostMemory.stored == [(2, 40, HIDDEN_SIZE)]


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)])
def test_activations_of_adapters_are_offloaded_alike(directory: Path, lora: LoraConfig) -> None:
    """The base's embedding needs no gradient, so neither does the first layer's input."""
    expected = _values_and_gradients(_policy(directory, lora=lora), _microbatch())
    policy = _policy(
        directory, lora=lora, activation_checkpointing="full", offload_activations=True
    )
    found = _values_and_gradients(policy, _microbatch())
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert len(found) == 1 + len(list(policy.trained_weights()))


def test_compiling_without_a_compiler_is_refused_with_a_cure(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, .* \(install g\+\+, or set"):
        _policy(directory, compile=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_layers_compute_the_same_for_every_size_of_microbatch(
    directory: Path,
) -> None:
    """Masked rows, rows without a mask, and layers that are computed again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = _policy(directory)
    compiled = _policy(directory, compile=True, activation_checkpointing="full")
    single = pack([[document] for document in random_documents()[:3]], 30)
    for microbatch in (_microbatch(40), _microbatch(47), single):
        expected = _values_and_gradients(plain, microbatch)
        found = _values_and_gradients(compiled, microbatch)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["inductor"], "nothing was compiled"
    assert not any("recompile" in reason for reason in counters["unimplemented"])
