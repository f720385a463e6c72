"""Tokens are trained through recorded experts, with weights that the learner's own router gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from common.arrays import ExpertArray, RolloutArrays, frame_of_experts
from common.config import LearnerConfig, LoraConfig
from common.config_loader import run_paths
from common.errors import ModelDirectoryError
from common.messages import AnyMessage, FetchRollouts, Rollouts
from common.types import RolloutHeader, RolloutId, RoutingHeader
from learner.batches.batch import Document, pack
from learner.batches.layout import RoutingShape
from learner.checkpoints.resume import start_or_resume
from learner.models.model import (
    AdaptersOff,
    PolicyModel,
    evaluate_policy,
    load_policy,
    run_policy,
)
from learner.recorder.flight_recorder import read_recording
from learner.recorder.replay import replay
from learner.train import take_step
from tests.unit.learner.fake_broker import FakeBroker, random_rollout
from tests.unit.learner.small_run import (
    ALONE,
    GROUP_SIZE,
    VOCAB_SIZE,
    small_config,
    small_model,
    small_run,
)
from tests.unit.learner.test_model import random_documents

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 4, 2
_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": TOP_K,
    "max_position_embeddings": 64,
    "head_dim": 16,
    "initializer_range": 0.3,
}


def _qwen3(normalised: bool) -> PretrainedConfig:
    return Qwen3MoeConfig(
        num_experts=NUM_EXPERTS,
        intermediate_size=48,
        moe_intermediate_size=24,
        norm_topk_prob=normalised,
        **_SHAPE,
    )


_CONFIGS = {
    "qwen3-moe": _qwen3(normalised=True),
    "qwen3-moe-unnormalised": _qwen3(normalised=False),
    "mixtral": MixtralConfig(num_local_experts=NUM_EXPERTS, intermediate_size=24, **_SHAPE),
}


@pytest.fixture(scope="module", params=sorted(_CONFIGS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of four experts."""
    path = small_model(tmp_path_factory.mktemp("mixture") / "model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(_CONFIGS[request.param]).save_pretrained(path)
    return path


def _load(directory: Path, **settings: Any) -> PolicyModel:
    own = LearnerConfig(**{"router_replay": True, **settings})
    return load_policy(directory, ALONE, max_length=64, settings=own)


def _with_experts(document: Document, experts: ExpertArray, first: int = 0) -> Document:
    return replace(document, experts=experts, first_routed=first)


def _other_experts(document: Document, seed: int) -> ExpertArray:
    """Of every token, no two of a layer alike."""
    random = np.random.default_rng(seed)
    chosen = [random.permutation(NUM_EXPERTS) for _ in range(document.length * NUM_LAYERS)]
    table = np.stack(chosen).reshape(document.length, NUM_LAYERS, NUM_EXPERTS)
    return table[:, :, :TOP_K].astype(np.uint8)


def _own_experts(policy: PolicyModel, document: Document) -> ExpertArray:
    """What the routers of ``policy`` choose for a document that is alone."""
    ids = np.concatenate([document.prompt_token_ids, document.completion_token_ids])
    with torch.no_grad():
        output = policy.causal_lm(input_ids=torch.from_numpy(ids)[None], output_router_logits=True)
    chosen = [logits.topk(TOP_K).indices for logits in output.router_logits]
    return torch.stack(chosen, 1).numpy().astype(np.uint8)


def _computed(
    policy: PolicyModel, rows: Sequence[Sequence[Document]], length: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of their weighted sum."""
    logprobs, _ = run_policy(policy, pack(rows, length), 0.7)
    policy.zero_grad()
    (logprobs * torch.linspace(-1.0, 2.0, len(logprobs))).sum().backward()
    gradients = {name: weight.grad for name, weight in policy.trained_weights()}
    return logprobs.detach(), {k: item for k, item in gradients.items() if item is not None}


class _SlowMixture(nn.Module):
    """Each token of one document through its experts one by one, written out from the formula.

    Those are the most likely ones where ``experts`` are below 0.
    """

    def __init__(self, block: Any, experts: npt.NDArray[np.int64], normalised: bool) -> None:
        super().__init__()
        self.block, self.recorded, self.normalised = block, experts, normalised

    def forward(self, hidden: Tensor) -> Tensor:
        outputs = []
        for token, state in enumerate(hidden[0]):
            scores = torch.exp(self.block.gate.weight @ state)
            scores = scores / scores.sum()
            chosen = [int(expert) for expert in self.recorded[token]]
            if chosen[0] < 0:
                chosen = scores.topk(TOP_K).indices.tolist()
            whole = sum(scores[expert] for expert in chosen) if self.normalised else 1.0
            parts = [scores[expert] / whole * self._expert(expert, state) for expert in chosen]
            outputs.append(torch.stack(parts).sum(0))
        return torch.stack(outputs)[None]

    def _expert(self, expert: int, state: Tensor) -> Tensor:
        gate, up = (self.block.experts.gate_up_proj[expert] @ state).chunk(2)
        inner = gate * torch.sigmoid(gate) * up
        result: Tensor = self.block.experts.down_proj[expert] @ inner
        return result


def _slowly(directory: Path, documents: Sequence[Document]) -> tuple[Tensor, dict[str, Tensor]]:
    """Reference for :func:`_computed`, one document at a time and with no replay in it."""
    policy = load_policy(directory, ALONE, max_length=64)
    config = policy.causal_lm.config
    normalised = bool(getattr(config, "norm_topk_prob", True))
    layers: Any = policy.causal_lm.base_model.layers
    blocks = [layer.mlp for layer in layers]
    parts = []
    for document in documents:
        experts = np.full((document.length, NUM_LAYERS, TOP_K), -1)
        for place, row in enumerate(() if document.experts is None else document.experts):
            experts[document.first_routed + place] = row
        for number, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
            layer.mlp = _SlowMixture(block, experts[:, number], normalised)
        alone = pack([[replace(document, experts=None)]], document.length)
        parts.append(run_policy(policy, alone, 0.7)[0])
        for layer, block in zip(layers, blocks, strict=True):
            layer.mlp = block
    logprobs = torch.cat(parts)
    (logprobs * torch.linspace(-1.0, 2.0, len(logprobs))).sum().backward()
    gradients = {name: weight.grad for name, weight in policy.trained_weights()}
    return logprobs.detach(), {k: item for k, item in gradients.items() if item is not None}


def _assert_same_bits(
    got: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    assert torch.equal(got[0], expected[0])
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.equal(got[1][name], gradient), name


def test_the_routes_that_the_learner_would_take_change_no_bit(directory: Path) -> None:
    documents = random_documents()
    free_policy = load_policy(directory, ALONE, max_length=64)
    recorded = [_with_experts(item, _own_experts(free_policy, item)) for item in documents]
    free = _computed(free_policy, [documents[:4], documents[4:]])
    policy = _load(directory)
    assert policy.routing == RoutingShape(NUM_LAYERS, TOP_K, NUM_EXPERTS)
    _assert_same_bits(_computed(policy, [recorded[:4], recorded[4:]]), free)
    _assert_same_bits(_computed(policy, [documents[:4], documents[4:]]), free)


def test_other_routes_give_what_those_experts_compute_and_teach_the_router(
    directory: Path,
) -> None:
    documents = random_documents(4)
    recorded = [_with_experts(item, _other_experts(item, i)) for i, item in enumerate(documents)]
    logprobs, gradients = _computed(_load(directory), [recorded[:3], recorded[3:]])
    expected, expected_gradients = _slowly(directory, recorded)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    routers = [name for name in gradients if name.endswith("gate.weight")]
    assert len(routers) == NUM_LAYERS
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-4, rtol=1e-4)
    free, _ = _computed(_load(directory), [documents[:3], documents[3:]])
    assert (logprobs - free).abs().max() > 0.1


def test_what_was_not_recorded_is_routed_by_the_learner_beside_what_was(directory: Path) -> None:
    documents = random_documents(3)
    whole = [_other_experts(item, i) for i, item in enumerate(documents)]
    mixed = [
        _with_experts(documents[0], whole[0]),
        _with_experts(documents[1], whole[1][1:-1], first=1),
        documents[2],
    ]
    logprobs, gradients = _computed(_load(directory), [mixed])
    expected, expected_gradients = _slowly(directory, mixed)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("directory", ["qwen3-moe"], indirect=True)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_computing_a_layer_again_takes_the_recorded_routes_again(
    directory: Path, mode: str
) -> None:
    documents = random_documents()
    recorded = [_with_experts(item, _other_experts(item, i)) for i, item in enumerate(documents)]
    rows = [recorded[:4], recorded[4:]]
    kept = _computed(_load(directory), rows)
    policy = _load(directory, activation_checkpointing=mode)
    _assert_same_bits(_computed(policy, rows), kept)
    logprobs, _ = run_policy(policy, pack(rows, 64), 0.7)
    policy.zero_grad()
    evaluate_policy(policy, pack([documents], 64), 0.7)  # of other rows, before the backward pass
    (logprobs * torch.linspace(-1.0, 2.0, len(logprobs))).sum().backward()
    for name, weight in policy.trained_weights():
        assert weight.grad is None or torch.equal(weight.grad, kept[1][name]), name


@pytest.mark.parametrize("directory", ["qwen3-moe"], indirect=True)
def test_the_reference_policy_routes_by_itself_and_adapters_do_not(directory: Path) -> None:
    documents = random_documents(4)
    recorded = [_with_experts(item, _other_experts(item, i)) for i, item in enumerate(documents)]
    policy = _load(directory, lora=LoraConfig(rank=2))
    free, replayed = pack([documents], 64), pack([recorded], 64)
    assert torch.equal(
        evaluate_policy(AdaptersOff(policy), replayed, 1.0), evaluate_policy(policy, free, 1.0)
    )
    assert not torch.equal(
        evaluate_policy(policy, replayed, 1.0), evaluate_policy(policy, free, 1.0)
    )


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"learner\.router_replay needs a mixture"):
        _load(small_model(tmp_path / "model"))


class _Recording(FakeBroker):
    """Every rollout but the first of its group comes with a record of its experts."""

    experts = NUM_EXPERTS

    def on_FetchRollouts(self, message: FetchRollouts) -> tuple[AnyMessage, list[memoryview]]:
        reply, frames = super().on_FetchRollouts(message)
        assert isinstance(reply, Rollouts)
        told = []
        for header, own in zip(reply.rollouts, range(0, len(frames), 3), strict=True):
            told += frames[own : own + 3]
            if header.routing is not None:
                random = np.random.default_rng(header.rollout_id.group_id)
                experts = random.integers(0, self.experts, header.routing.shape, dtype=np.uint8)
                told.append(frame_of_experts(experts))
        return reply, told

    def _header(self, rollout_id: RolloutId, arrays: RolloutArrays) -> RolloutHeader:
        header = super()._header(rollout_id, arrays)
        if rollout_id.index == 0:
            return header
        routing = RoutingHeader(
            start=0,
            num_tokens=header.num_tokens - 1,
            num_layers=NUM_LAYERS,
            top_k=TOP_K,
            num_experts=self.experts,
        )
        return msgspec.structs.replace(header, routing=routing)


@pytest.mark.parametrize("directory", ["qwen3-moe"], indirect=True)
def test_a_run_trains_on_records_says_how_many_and_can_be_replayed(directory: Path) -> None:
    config = small_config(directory.parent, router_replay=True)
    with small_run(config, _Recording(random_rollout(VOCAB_SIZE), GROUP_SIZE)) as run:
        start_or_resume(run)
        take_step(run)
        take_step(run)
        run.settle_checkpoint()
        paths = run_paths(config)
        lines = (paths.telemetry / "steps.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])
    assert 0.4 < row["replayed_routing_ratio"] < 1.0
    (recording,) = paths.recordings.glob("00000001.*")
    documents = [item for chunk in read_recording(recording) for item in chunk.documents.values()]
    recorded = [item for item in documents if item.experts is not None]
    assert 0 < len(recorded) < len(documents)
    assert {item.experts.shape[1:] for item in recorded if item.experts is not None} == {(2, 2)}
    replay(config, ALONE, 1)  # raises where the digest is not that of the step


@pytest.mark.parametrize("directory", ["qwen3-moe"], indirect=True)
def test_a_record_of_another_mixture_is_quarantined(directory: Path) -> None:
    broker = _Recording(random_rollout(VOCAB_SIZE), GROUP_SIZE)
    broker.experts = NUM_EXPERTS + 1
    with small_run(small_config(directory.parent, router_replay=True), broker) as run:
        told: list[str] = []
        run.source.on_findings = lambda _, findings: told.extend(item.problem for item in findings)
        run.source.next_chunk(run.lineage, 0, held=())
    assert told
    assert "num_experts=4" in told[0]
    assert "num_experts=5" in told[0]
