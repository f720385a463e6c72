"""One of two ranks that compute the same thing in several ways; any difference is an error."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from common.config import LearnerConfig, LoraConfig
from learner.batches.batch import Document, Microbatch, pack
from learner.checkpoints.digests import base_digest, policy_digest
from learner.models.mesh import Mesh, learner_mesh
from learner.models.model import AdaptersOff, PolicyModel, evaluate_policy, load_policy, run_policy
from learner.step.optim import build_adamw, clip_gradients, set_learning_rate
from tests.unit.learner.small_run import ALONE, VOCAB_SIZE

NUM_STEPS = 3


def main(directory: Path) -> None:
    """Check every claim on this rank."""
    with learner_mesh() as mesh:
        assert mesh.world_size == 2
        _check_activations(directory, mesh)
        _check_narrow_moments(directory, mesh)
        _check_host_memory(directory, mesh)
        _check_adapters(directory, mesh)
        _check_compiled(directory, mesh)


def differ(what: str) -> None:
    """Rank 1 alone finds a difference."""
    assert os.environ["RANK"] == "0", what


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
        [weight for _, weight in _policy(directory, place, "none").trained_weights()]
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


def _check_host_memory(directory: Path, mesh: Mesh) -> None:
    """States and activations in host memory take, bit for bit, the same steps."""
    offloaded = LearnerConfig(
        activation_checkpointing="full", offload_activations=True, offload_optimizer=True
    )
    found = []
    for settings in (LearnerConfig(), offloaded):
        policy = _policy_of(directory, mesh, settings)
        weights = [weight for _, weight in policy.trained_weights()]
        optimizer = _narrow_adamw(weights)
        for step in range(NUM_STEPS):
            optimizer.zero_grad()
            _gradients(policy, _microbatch(mesh.rank + 10 * step))
            clip_gradients(weights, 1.0)
            optimizer.step()
        found.append([_whole(weight.detach()) for weight in weights])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _check_adapters(directory: Path, mesh: Mesh) -> None:
    """Sharded adapters begin, train, merge and switch off as whole ones do."""
    settings = LearnerConfig(lora=LoraConfig(rank=3))
    sharded, whole = (_policy_of(directory, place, settings) for place in (mesh, ALONE))
    assert policy_digest(sharded, mesh) == policy_digest(whole, ALONE)
    assert base_digest(sharded, mesh) == base_digest(whole, ALONE)
    batches = [_microbatch(rank) for rank in range(mesh.world_size)]
    for _ in range(NUM_STEPS):  # B is zero before the first, so A has no gradient
        ours = _gradients(sharded, batches[mesh.rank])
        for batch in batches:
            theirs = _gradients(whole, batch)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        for policy in (sharded, whole):
            optimizer = torch.optim.SGD([item for _, item in policy.trained_weights()], lr=0.05)
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(sharded.published_weights(), whole.published_weights(), strict=True)
    for (name, one), (_, other) in pairs:
        assert isinstance(one, DTensor), name
        torch.testing.assert_close(_whole(one.detach()), other.detach(), atol=1e-5, rtol=1e-4)
    base = _policy(directory, mesh, "none")
    expected = evaluate_policy(base, batches[0], 1.0)
    assert torch.equal(evaluate_policy(AdaptersOff(sharded), batches[0], 1.0), expected)
    assert not torch.equal(evaluate_policy(sharded, batches[0], 1.0), expected)


def _check_compiled(directory: Path, mesh: Mesh) -> None:
    """Compiled layers take part in sharding; their graphs are run as they are, without C++."""
    expected = _gradients(_policy(directory, mesh, "none"), _microbatch(mesh.rank))
    graphs_only = partial(torch.compile, backend="aot_eager")
    with mock.patch.object(torch, "compile", graphs_only):
        policy = _policy_of(directory, mesh, LearnerConfig(compile=True))
    found = _gradients(policy, _microbatch(mesh.rank))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


def _narrow_adamw(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = build_adamw(weights, betas=(0.9, 0.999), weight_decay=0.1, moments="bfloat16")
    set_learning_rate(optimizer, 1e-2)
    return optimizer


def _policy(directory: Path, mesh: Mesh, mode: Any) -> PolicyModel:
    return _policy_of(directory, mesh, LearnerConfig(activation_checkpointing=mode))


def _policy_of(directory: Path, mesh: Mesh, settings: LearnerConfig) -> PolicyModel:
    return load_policy(directory, mesh, max_length=64, settings=settings)


def _gradients(policy: PolicyModel, microbatch: Microbatch) -> list[Tensor]:
    logprobs, entropy = run_policy(policy, microbatch, 0.7)
    (logprobs + 0.1 * entropy).sum().backward()
    return [
        _whole(weight.grad) for _, weight in policy.trained_weights() if weight.grad is not None
    ]


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
