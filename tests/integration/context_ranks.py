"""One of several ranks that split rows among them; any difference to one rank is an error.

Started as ``python -m tests.integration.context_ranks ROOT`` with the environment of torchrun.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common.config import Config, CriticConfig, LoraConfig, SftConfig
from common.errors import FatalError
from learner.batches.batch import Document
from learner.batches.chunk import Chunk
from learner.checkpoints.resume import start_or_resume
from learner.metrics.token_statistics import TokenStatistics
from learner.models.attention import attend_by_document
from learner.models.context_parallel import attend_over_ranks
from learner.models.mesh import ContextGroup, Mesh, context_group, learner_mesh
from learner.models.model import load_policy
from learner.publication.canary import compute_canary
from learner.recorder.replay import replay
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from learner.sft import fine_tune
from learner.step.training_batch import StepOutcome, TrainingBatch
from learner.train import take_step
from tests.unit.learner.fake_broker import FakeBroker
from tests.unit.learner.small_run import (
    ALONE,
    VOCAB_SIZE,
    RecordingPublisher,
    small_broker,
    small_config,
    small_process,
    with_loss,
)

NUM_GROUPS = 3
CHUNK_SIZES = (1, 2)
"""A chunk of one group leaves a share of ranks idle at times."""
TOKEN_LEVEL: dict[str, Any] = {"kl_coefficient": 0.1, "entropy_coefficient": 0.1}
SEQUENCE_LEVEL: dict[str, Any] = {
    "ratio_level": "sequence-mean",
    "aggregation": "sequence",
    "correction": "sequence-mask",
    "importance_cap": 1.05,
    "max_divergence": 0.01,
}
PPO: dict[str, Any] = {
    "baseline": "critic",
    "kl_coefficient": 0.05,
    "kl_in": "reward",
    "kl_estimator": "k1",
}


def main(root: Path) -> None:
    """Check every claim on this rank."""
    torch.set_num_threads(1)
    with learner_mesh(2) as mesh:
        if mesh.world_size == 4:
            for each in (mesh, replace(mesh, context=context_group(4, 4, mesh.device))):
                _check_attention(each)
                _check_a_step(root, each, TOKEN_LEVEL)
            _check_ppo(root, mesh)
            return
        _check_attention(mesh)
        _check_a_step(root, mesh, SEQUENCE_LEVEL, activation_checkpointing="selective")
        lora = LoraConfig(rank=2)
        _check_a_step(root, mesh, TOKEN_LEVEL, activation_checkpointing="full", lora=lora)
        _check_checkpoints(root, mesh)
        _check_replay(root, mesh)
        _check_fine_tuning(root, mesh)


def _check_attention(mesh: Mesh) -> None:
    """Slices attend, forward and backward, as whole rows; key-value heads are few or odd."""
    context = mesh.context
    assert context is not None
    borders = torch.tensor([0, 3, 10, 16, 17, 32]).view(1, 1, 1, -1)
    for num_heads, num_key_value_heads in ((4, 4), (4, 2), (4, 1), (12, 6), (12, 3)):
        source = torch.Generator().manual_seed(num_heads)
        shapes = [(2, heads, 16, 8) for heads in (num_heads, *[num_key_value_heads] * 2)]
        whole = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
        upstream = torch.randn(2, 16, num_heads, 8, generator=source, dtype=torch.float64)
        layer = _Layer(num_heads // num_key_value_heads)

        query, key, value = leaves = [item.clone().requires_grad_() for item in whole]
        expected, _ = attend_by_document(layer, query, key, value, borders, scaling=8**-0.5)
        expected.backward(upstream)

        own = [_slice(item, context, 2).clone().requires_grad_() for item in whole]
        query, key, value = own
        found, _ = attend_over_ranks(
            context, attend_by_document, layer, query, key, value, borders, scaling=8**-0.5
        )
        found.backward(_slice(upstream, context, 1))
        _assert_close(found, _slice(expected, context, 1), 1e-12)
        for one, other in zip(own, leaves, strict=True):
            assert one.grad is not None
            assert other.grad is not None
            _assert_close(one.grad, _slice(other.grad, context, 2), 1e-12)
        assert layer.num_key_value_groups == num_heads // num_key_value_heads


def _check_a_step(root: Path, mesh: Mesh, loss: dict[str, Any], **learner: Any) -> None:
    """Gradients, statistics, canary and the weights after a step are those of one."""
    config = _config(root, loss, **learner)
    found, expected = (_step(config, each) for each in (mesh, ALONE))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            _assert_close(found[name], value, 2e-6, name)
        elif name == "changes":
            _assert_changed_alike(found[name], value)
        else:
            _assert_like(found[name], value, name)


def _check_ppo(root: Path, mesh: Mesh) -> None:
    """Values, advantages over all tokens, and several updates of a batch."""
    critic = CriticConfig(learning_rate=1e-2, whiten=True, gae_lambda=0.9, warmup_steps=1)
    config = _config(root, PPO, updates_per_batch=2, critic=critic, learning_rate=1e-3)
    changes, outcomes = zip(*(_two_steps(config, each) for each in (mesh, ALONE)), strict=True)
    for one, other in zip(*outcomes, strict=True):
        _assert_like(one.sums, other.sums, "sums of PPO")
        assert math.isclose(one.grad_norm, other.grad_norm, rel_tol=1e-4, abs_tol=1e-9)
    _assert_changed_alike(*changes)


def _check_checkpoints(root: Path, mesh: Mesh) -> None:
    """Split rows go on from a checkpoint of one rank, and one rank from theirs, to the last bit."""
    config, written = _at(_config(root, {}), root / "alone"), b""
    if mesh.is_main:
        with _run(config, ALONE) as run:
            written = _checkpoint(run, 1)
    written = mesh.broadcast(written)
    with _run(config, mesh) as run:
        run.restore(1)
        assert run.digest().encode() == written
        changed = _checkpoint(run, 2)
        mesh.gather(b"")
    with _run(config, ALONE) as run:
        run.restore(2)
        assert run.digest().encode() == changed != written


def _check_replay(root: Path, mesh: Mesh) -> None:
    """Recorded steps are taken again to the bit, tokens once, never as if rows were whole."""
    config = _at(_config(root, {}, checkpoint_every=10), root / "replay")
    broker = small_broker(chunk_sizes=CHUNK_SIZES)
    with _run(config, mesh, broker) as run:
        start_or_resume(run)
        for _ in range(2):
            take_step(run)
        digest = run.digest()
    rows = replay(config, mesh, 1).rows
    assert len(rows) == len({(row.group_id, row.index, row.position) for row in rows})
    assert bool(rows) is mesh.is_main
    with pytest.raises(FatalError, match=r"context_parallel = 2 and must be so again, got 1"):
        replay(config, replace(mesh, context=None), 1)
    for each, incarnation in ((mesh, 0), (replace(mesh, context=None), 1)):
        with _run(config, each, broker) as run:
            start_or_resume(run)
            assert run.lineage.incarnation == incarnation
            assert run.policy_step == (0 if incarnation else 2)
            assert (run.digest() == digest) is (incarnation == 0)


def _check_fine_tuning(root: Path, mesh: Mesh) -> None:
    """Supervised steps on rows that are split lose what they lose on whole ones."""
    config = replace(_config(root, {}), sft=SftConfig(num_steps=3, batch_size=3, warmup_steps=0))
    random = np.random.default_rng(1)
    documents = [
        Document(
            prompt_token_ids=random.integers(0, VOCAB_SIZE, 3),
            completion_token_ids=random.integers(0, VOCAB_SIZE, 9),
            behavior_logprobs=np.zeros(9, dtype=np.float32),
        )
        for _ in range(5)
    ]
    found, expected = (
        fine_tune(
            load_policy(root / "model", each, max_length=64, settings=config.learner),
            documents,
            config,
            each,
        )
        for each in (mesh, ALONE)
    )
    assert expected[0] > expected[-1]
    assert np.allclose(found, expected, rtol=1e-4)


def _step(config: Config, mesh: Mesh) -> dict[str, Any]:
    with _run(config, mesh) as run:
        start = dict(_whole(run))
        batch = run.updater.start_batch(0)
        _gather(run, batch)
        gradients = {f"gradient of {name}": item for name, item in _whole(run, gradients=True)}
        outcome = run.apply(batch)
        tokens = TokenStatistics.merged(mesh.gather_over_data(batch.statistics.encode()))
        canary = compute_canary(run.policy, mesh, tolerance=1e-3)
        return {
            **gradients,
            "changes": _changes(run, start),
            "canary": torch.tensor(canary.logprobs),
            "loss": outcome.loss,
            "norm": outcome.grad_norm,
            "sums": outcome.sums,
            "losses": tokens.losses,
            "tokens": tokens.total().tokens,
            "ratio": tokens.total().ratio,
            "gap": outcome.on_policy_gap,
            "denominator": batch.denominator,
        }


def _checkpoint(run: TrainingRun, policy_step: int) -> bytes:
    """Take the step that leads to ``policy_step`` and keep it; the digest of its weights."""
    broker = run.channel
    assert isinstance(broker, FakeBroker)
    _take(run, policy_step - 1)
    run.policy_step = broker.policy_step = policy_step
    run.checkpoint()
    return run.digest().encode()


def _two_steps(config: Config, mesh: Mesh) -> tuple[dict[str, Tensor], list[StepOutcome]]:
    with _run(config, mesh) as run:
        start = dict(_whole(run))
        outcomes = [_take(run, step) for step in range(2)]
        return _changes(run, start), outcomes


def _take(run: TrainingRun, step: int) -> StepOutcome:
    batch = run.updater.start_batch(step)
    _gather(run, batch)
    return run.apply(batch)


def _gather(run: TrainingRun, batch: TrainingBatch) -> None:
    while len(batch.group_ids) < NUM_GROUPS:
        chunk = run.source.next_chunk(run.lineage, 0, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, chunk)
    assert isinstance(run.channel, FakeBroker)
    run.channel.handed_over.clear()


def _changes(run: TrainingRun, start: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight - start[name] for name, weight in _whole(run)}


def _whole(run: TrainingRun, *, gradients: bool = False) -> Iterator[tuple[str, Tensor]]:
    for trainee, (model, _) in run.trainees.items():
        for name, weight in model.trained_weights():
            value = weight.grad if gradients else weight.detach()
            if value is not None:
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                yield f"{trainee}.{name}", whole.clone()


@contextmanager
def _run(config: Config, mesh: Mesh, broker: FakeBroker | None = None) -> Iterator[TrainingRun]:
    broker = broker or small_broker(chunk_sizes=CHUNK_SIZES)
    with small_process(config) as process:
        yield build_run(process, broker, mesh, RecordingPublisher())


def _config(root: Path, loss: dict[str, Any], **learner: Any) -> Config:
    return with_loss(small_config(root, groups_per_step=NUM_GROUPS, **learner), **loss)


def _at(config: Config, directory: Path) -> Config:
    return replace(config, run=replace(config.run, directory=str(directory)))


class _Layer(nn.Module):
    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def _slice(tensor: Tensor, context: ContextGroup, dim: int) -> Tensor:
    return tensor.chunk(context.size, dim=dim)[context.rank]


def _assert_close(found: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        found,
        expected,
        rtol=tolerance,
        atol=tolerance * scale,
        msg=lambda text: f"{name}: {text}",
    )


def _assert_changed_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """As a whole: Adam turns a gradient that is nothing but rounding into a step of any size."""
    assert found.keys() == expected.keys()
    assert any(change.norm() > 0 for change in expected.values())
    for name, change in expected.items():
        assert (found[name] - change).norm() <= 2e-3 * change.norm(), name


def _assert_like(found: Any, expected: Any, name: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            _assert_like(found[key], value, f"{name} {key}")
    else:
        assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5), (name, found, expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
