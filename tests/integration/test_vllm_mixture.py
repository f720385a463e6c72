"""Real vLLM on mixtures of experts: load and proof know that its kernel reads packed experts, and a
learner that follows the recorded routes agrees with it. One engine at a time lives in the test
process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.generation import vllm_weights
from actors.generation.sampler import SampledCompletion, SampleRequest
from actors.generation.vllm_engine import VllmOptions
from actors.generation.vllm_sampler import VllmSampler
from common.config import LearnerConfig
from common.errors import WeightLoadError
from common.types import WeightVersion
from learner.batches.batch import Document, pack
from learner.models.model import PolicyModel, evaluate_policy, load_policy
from tests.tiny_models import CutOff, learner_logprobs, make_tiny_mixture, publish, train_step
from tests.unit.learner.small_run import ALONE

V0 = WeightVersion(incarnation=0, policy_step=0)
LONG_PROMPT = [(7 * i * i + 3 * i + 5) % 61 for i in range(300)]


@contextlib.contextmanager
def _started(model_dir: Path, *, record_experts: bool) -> Iterator[VllmSampler]:
    torch.set_num_threads(1)
    options = VllmOptions(
        model_dir=model_dir,
        max_model_len=512,
        kv_cache_bytes=64 << 20,
        record_experts=record_experts,
    )
    sampler = VllmSampler(options, V0)
    try:
        yield sampler
    finally:
        sampler.close()


def _submit(sampler: VllmSampler, name: str, prompt: Sequence[int], max_tokens: int = 8) -> None:
    sampler.submit(SampleRequest(request_id=name, prompt_token_ids=prompt, max_tokens=max_tokens))


def _drain(sampler: VllmSampler) -> dict[str, SampledCompletion]:
    done: dict[str, SampledCompletion] = {}
    while sampler.num_running:
        done.update({item.request_id: item for item in sampler.step()})
    return done


def _fresh_gap(sampler: VllmSampler, learner: Any) -> float:
    """Largest difference in nats between engine and learner log-probabilities."""
    prompts = {str(index): [5 + index, 6, 7] for index in range(4)}
    for name, prompt in prompts.items():
        _submit(sampler, name, prompt)
    gaps = []
    for name, completion in _drain(sampler).items():
        expected = learner_logprobs(learner, prompts[name], completion.token_ids.tolist())
        gaps.append(float(np.abs(completion.behavior_logprobs - expected).max()))
    return max(gaps)


def _update(sampler: VllmSampler, learner: Any, step: int) -> None:
    train_step(learner, step)
    sampler.load_weights(*publish(learner, step))


def _bad_loads_are_caught(sampler: VllmSampler, learner: Any) -> None:
    """Each leaves the engine partial, and the last load repairs it."""
    staged, manifest, version = publish(learner, 7)
    gate, up, down = (
        f"model.layers.1.mlp.experts.5.{part}_proj.weight" for part in ("gate", "up", "down")
    )
    other = down.replace(".5.", ".6.")
    for one, two in ((gate, up), (down, other)):
        swapped = {**staged, one: staged[two], two: staged[one]}
        with pytest.raises(WeightLoadError, match="2 loaded tensors differ"):
            sampler.load_weights(swapped, manifest, version)
        assert sampler.is_partial
    with pytest.raises(WeightLoadError, match="staging area went away"):
        sampler.load_weights(CutOff(staged, whole=20), manifest, version)
    with pytest.MonkeyPatch.context() as patch:  # a loader that does not know the packing
        patch.setattr(vllm_weights, "rows_in_order", lambda _: contextlib.nullcontext())
        with pytest.raises(WeightLoadError, match="48 loaded tensors differ"):
            sampler.load_weights(staged, manifest, version)
    sampler.load_weights(staged, manifest, version)
    assert not sampler.is_partial


def _document(prompt: Sequence[int], completion: SampledCompletion) -> Document:
    assert completion.routing is not None
    return Document(
        prompt_token_ids=np.asarray(prompt),
        completion_token_ids=completion.token_ids,
        behavior_logprobs=completion.behavior_logprobs,
        experts=completion.routing.experts,
        first_routed=completion.routing.start,
    )


def _mismatch(policy: PolicyModel, documents: Sequence[Document]) -> float:
    """Mean |log learner - log engine| in nats."""
    microbatch = pack([documents], sum(item.length for item in documents))
    logprobs = evaluate_policy(policy, microbatch, 1.0)
    return float((logprobs - microbatch.behavior_logprobs).abs().mean())


def _noisy_routers(policy: PolicyModel) -> None:
    """Move the routers as another engine's rounding would, only far enough to see it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.trained_weights():
            if name.endswith("mlp.gate.weight"):
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.01)


def _replay_agrees(
    policy: PolicyModel, prompts: Mapping[str, Sequence[int]], done: Mapping[str, SampledCompletion]
) -> None:
    documents = [_document(prompt, done[name]) for name, prompt in prompts.items()]
    free = [replace(item, experts=None) for item in documents]
    assert _mismatch(policy, documents) < 1e-5
    _noisy_routers(policy)
    assert _mismatch(policy, documents) < 0.8 * _mismatch(policy, free)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mixture_serves_proven_weights_and_records_the_experts_it_used(tmp_path: Path) -> None:
    learner = make_tiny_mixture(tmp_path, "qwen3_moe")
    with _started(tmp_path, record_experts=True) as sampler:
        assert _fresh_gap(sampler, learner) < 1e-4
        _submit(sampler, "across", [9, 10, 11], max_tokens=20)
        for step in (1, 2):
            sampler.step()
            _update(sampler, learner, step)
        (across,) = _drain(sampler).values()
        assert [span.start for span in across.version_spans] == [0, 1, 2]
        assert across.routing is not None
        assert (across.routing.start, across.routing.experts.shape) == (0, (22, 2, 2))
        _bad_loads_are_caught(sampler, learner)
        assert _fresh_gap(sampler, learner) < 1e-4

        prompts = {str(index): [5 + index, 6, *range(index)] for index in range(12)}
        prompts["long"] = LONG_PROMPT
        for name, prompt in prompts.items():
            _submit(sampler, name, prompt, max_tokens=40)
        sampler.score([1, 2, 3])
        done = _drain(sampler)
        _submit(sampler, "cached", LONG_PROMPT, max_tokens=40)
        done["cached"] = _drain(sampler)["cached"]
        cached = done["cached"].routing
        assert cached is not None
        assert cached.start == 256, "two blocks of 128 came from the prefix cache"
        assert len(cached.experts) == 300 + 40 - 1 - 256
        learner.save_pretrained(tmp_path)
        settings = LearnerConfig(router_replay=True)
        policy = load_policy(tmp_path, ALONE, max_length=512, settings=settings)
        _replay_agrees(policy, {**prompts, "cached": LONG_PROMPT}, done)
        assert sampler._recorder.__dict__["_rows"] == {}, "nothing is kept of what has ended"


@pytest.mark.slow
def test_experts_under_other_names_are_proven_as_well(tmp_path: Path) -> None:
    learner = make_tiny_mixture(tmp_path, "mixtral")
    with _started(tmp_path, record_experts=False) as sampler:
        _update(sampler, learner, 1)
        assert sampler.serving_version == WeightVersion(incarnation=0, policy_step=1)
        assert _fresh_gap(sampler, learner) < 1e-4
