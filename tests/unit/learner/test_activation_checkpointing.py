"""Computing activations again changes no bit, and keeps what it says it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.config import LearnerConfig
from learner.batches.batch import Document, Microbatch, pack
from learner.models.model import PolicyModel, evaluate_policy, load_policy, run_policy
from tests.unit.learner.small_run import ALONE, VOCAB_SIZE, small_model

MODES = ["none", "selective", "full"]
_MATMULS = ("aten.mm.default", "aten.addmm.default", "aten.bmm.default")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


def _policy(directory: Path, mode: Any, every: int = 1) -> PolicyModel:
    settings = LearnerConfig(activation_checkpointing=mode, activation_checkpoint_every=every)
    return load_policy(directory, ALONE, max_length=64, settings=settings)


def _microbatch() -> Microbatch:
    random = np.random.default_rng(0)
    documents = [
        Document(
            prompt_token_ids=random.integers(0, VOCAB_SIZE, 3),
            completion_token_ids=random.integers(0, VOCAB_SIZE, 9),
            behavior_logprobs=np.zeros(9, dtype=np.float32),
        )
        for _ in range(4)
    ]
    return pack([documents[:2], documents[2:]], 24)


class _Operations(TorchDispatchMode):
    """Counts every operation that is really computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _operations(policy: PolicyModel) -> tuple[int, int]:
    """Products and activation functions of one forward and backward."""
    with _Operations() as seen:
        logprobs, _ = run_policy(policy, _microbatch(), 1.0)
        logprobs.sum().backward()
    attention = sum(count for name, count in seen.counts.items() if "attention_for_cpu" in name)
    assert attention, "this test is about models that use scaled_dot_product_attention"
    return sum(seen.counts[name] for name in _MATMULS), seen.counts["aten.silu.default"]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_values_and_gradients_are_the_same_bits_as_without(
    directory: Path, mode: str, every: int
) -> None:
    def values_and_gradients(policy: PolicyModel) -> list[Tensor]:
        logprobs, entropy = run_policy(policy, _microbatch(), 0.7)
        (logprobs * torch.linspace(-1, 1, len(logprobs)) + entropy).sum().backward()
        gradients = [weight.grad for _, weight in policy.trained_weights()]
        assert all(gradient is not None for gradient in gradients)
        return [logprobs, *(gradient for gradient in gradients if gradient is not None)]

    plain = values_and_gradients(_policy(directory, "none"))
    again = values_and_gradients(_policy(directory, mode, every))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_full_computes_layers_twice_and_selective_only_what_is_cheap(directory: Path) -> None:
    products, activations = _operations(_policy(directory, "none"))
    assert activations == 2  # one a layer
    selective = _operations(_policy(directory, "selective"))
    assert selective == (products, 2 * activations)
    full = _operations(_policy(directory, "full"))
    assert full[0] > products
    assert full[1] == 2 * activations


def test_every_second_layer_is_half_of_the_layers(directory: Path) -> None:
    products = [_operations(_policy(directory, "full", every))[0] for every in (1, 2, 3)]
    without = _operations(_policy(directory, "none"))[0]
    assert products[2] == without  # the model has two layers
    assert products[0] - without == 2 * (products[1] - without) > 0


def test_a_full_layer_keeps_a_fraction_of_the_bytes(directory: Path) -> None:
    def kept_bytes(mode: str) -> int:
        policy, total = _policy(directory, mode), 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal total
            if tensor.grad_fn is not None:  # what the forward made, not weights
                total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run_policy(policy, _microbatch(), 1.0)
        return total

    assert 0 < kept_bytes("full") < kept_bytes("none") / 4


@pytest.mark.parametrize("mode", MODES)
def test_names_and_evaluation_are_untouched(directory: Path, mode: str) -> None:
    plain, policy = _policy(directory, "none"), _policy(directory, mode)
    assert [name for name, _ in policy.trained_weights()] == [
        name for name, _ in plain.trained_weights()
    ]
    microbatch = _microbatch()
    assert torch.equal(
        evaluate_policy(policy, microbatch, 1.0), evaluate_policy(plain, microbatch, 1.0)
    )
