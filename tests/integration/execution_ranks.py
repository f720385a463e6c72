"""One of two ranks that compute the same thing in several ways; any difference is an error.

Started as ``python -m tests.integration.execution_ranks MODEL`` with the environment of torchrun.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from common.config import LearnerConfig
from learner.batch import Document, Microbatch, pack
from learner.mesh import Mesh, learner_mesh
from learner.model import PolicyModel, load_policy, run_policy
from learner.optim import build_adamw, set_learning_rate
from tests.unit.learner.small_run import ALONE, VOCAB_SIZE

NUM_STEPS = 3


def main(directory: Path) -> None:
    """Check both claims on this rank."""
    torch.set_num_threads(1)
    with learner_mesh() as mesh:
        assert mesh.world_size == 2
        _check_activations(directory, mesh)
        _check_narrow_moments(directory, mesh)


def _check_activations(directory: Path, mesh: Mesh) -> None:
    """Gradients of sharded layers are the same bits when activations are computed again."""
    expected = _gradients(_policy(directory, mesh, "none"), _microbatch(mesh.rank))
    assert any(gradient.abs().sum() > 0 for gradient in expected)
    for mode in ("selective", "full"):
        found = _gradients(_policy(directory, mesh, mode), _microbatch(mesh.rank))
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def _check_narrow_moments(directory: Path, mesh: Mesh) -> None:
    """Sharded weights and bfloat16 moments are, bit for bit, those of an unsharded optimizer."""
    sharded, whole = (
        [weight for _, weight in _policy(directory, place, "none").named_weights()]
        for place in (mesh, ALONE)
    )
    optimizers = [_narrow_adamw(weights) for weights in (sharded, whole)]
    source = torch.Generator().manual_seed(5)
    for _ in range(NUM_STEPS):
        for part, weight in zip(sharded, whole, strict=True):
            weight.grad = torch.randn(weight.shape, generator=source)
            assert isinstance(part, DTensor)
            part.grad = distribute_tensor(weight.grad, part.device_mesh, part.placements)
        for optimizer in optimizers:
            optimizer.step()
    for part, weight in zip(sharded, whole, strict=True):
        assert torch.equal(_whole(part.detach()), weight.detach())
        for moment in ("exp_avg", "exp_avg_sq"):
            ours, theirs = (
                optimizer.state[item][moment]
                for optimizer, item in zip(optimizers, (part, weight), strict=True)
            )
            assert ours.dtype is torch.bfloat16
            assert torch.equal(_whole(ours), theirs)


def _narrow_adamw(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = build_adamw(weights, betas=(0.9, 0.999), weight_decay=0.1, moments="bfloat16")
    set_learning_rate(optimizer, 1e-2)
    return optimizer


def _policy(directory: Path, mesh: Mesh, mode: Any) -> PolicyModel:
    settings = LearnerConfig(activation_checkpointing=mode)
    return load_policy(directory, mesh, max_length=64, settings=settings)


def _gradients(policy: PolicyModel, microbatch: Microbatch) -> list[Tensor]:
    logprobs, entropy = run_policy(policy, microbatch, 0.7)
    (logprobs + 0.1 * entropy).sum().backward()
    return [_whole(weight.grad) for _, weight in policy.named_weights() if weight.grad is not None]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _microbatch(seed: int) -> Microbatch:
    random = np.random.default_rng(seed)
    documents = [
        Document(
            prompt_token_ids=random.integers(0, VOCAB_SIZE, 3),
            completion_token_ids=random.integers(0, VOCAB_SIZE, 9),
            behavior_logprobs=np.zeros(9, dtype=np.float32),
        )
        for _ in range(4)
    ]
    return pack([documents[:2], documents[2:]], 24)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
