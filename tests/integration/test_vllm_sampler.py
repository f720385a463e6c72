"""Real vLLM: log-probabilities agree with the learner through in-flight updates, and nothing
unproven is ever served. One engine at a time lives in the test process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from actors.generation.sampler import SampledCompletion, SampleRequest
from actors.generation.vllm_engine import VllmOptions
from actors.generation.vllm_sampler import VllmSampler
from common.errors import DataError, WeightLoadError
from common.torch.digest import describe_tensors
from common.types import VersionSpan, WeightVersion
from common.weight_layout import WeightManifest
from tests.tiny_models import (
    VOCAB_SIZE,
    CutOff,
    learner_logprobs,
    make_tiny_qwen2,
    publish,
    train_step,
)

V0 = WeightVersion(incarnation=0, policy_step=0)
LONG_PROMPT = [(7 * i * i + 3 * i + 5) % VOCAB_SIZE for i in range(300)]


@dataclass
class Pair:
    """An engine and the learner whose weights it follows."""

    sampler: VllmSampler
    learner: Any
    policy_step: int = 0

    def train_and_publish(self) -> tuple[dict[str, torch.Tensor], WeightManifest, WeightVersion]:
        self.policy_step += 1
        train_step(self.learner, seed=self.policy_step)
        return publish(self.learner, self.policy_step)

    def update(self) -> WeightVersion:
        staged, manifest, version = self.train_and_publish()
        self.sampler.load_weights(staged, manifest, version)
        return version

    def submit(self, name: str, prompt: Sequence[int], **fields: Any) -> None:
        defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0}
        self.sampler.submit(
            SampleRequest(request_id=name, prompt_token_ids=prompt, **{**defaults, **fields})
        )

    def drain(self) -> dict[str, SampledCompletion]:
        done: dict[str, SampledCompletion] = {}
        while self.sampler.num_running:
            done.update({item.request_id: item for item in self.sampler.step()})
        return done

    def gap(
        self, completion: SampledCompletion, prompt: Sequence[int], temperature: float = 1.0
    ) -> float:
        """Largest difference in nats between engine and learner log-probabilities."""
        expected = learner_logprobs(
            self.learner, prompt, completion.token_ids.tolist(), temperature
        )
        return _largest_gap(completion.behavior_logprobs, expected)


def _largest_gap(got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max())


@pytest.fixture(scope="module", params=["untied-grouped-heads", "tied-full-heads"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    model_dir = tmp_path_factory.mktemp("model")
    tied = request.param == "tied-full-heads"
    learner = make_tiny_qwen2(model_dir, tied=tied, num_kv_heads=2 if tied else 1)
    torch.set_num_threads(1)
    options = VllmOptions(model_dir=model_dir, max_model_len=512, kv_cache_bytes=64 << 20)
    sampler = VllmSampler(options, V0)
    yield Pair(sampler, learner)
    sampler.close()


@pytest.fixture
def pair(running: Pair) -> Iterator[Pair]:
    """The shared engine, brought up to date with its learner before and left idle after."""
    running.update()
    yield running
    running.update()
    running.drain()


@pytest.mark.slow
def test_learner_and_engine_agree_after_each_of_twenty_updates_that_requests_run_across(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_outputs = _record_engine_outputs(pair.sampler, monkeypatch)
    across = {f"across {i}": [5 + i, 6, 7] for i in range(8)}
    for name, prompt in across.items():
        pair.submit(name, prompt, max_tokens=110)
    expected_spans = [VersionSpan(start=0, version=pair.sampler.serving_version)]
    temperatures = {"fresh a": 1.0, "fresh b": 0.7, "fresh c": 1.3}
    num_steps = 0
    gaps = []
    for _ in range(20):
        for _ in range(2):
            assert pair.sampler.step() == []
        num_steps += 2
        expected_spans.append(VersionSpan(start=num_steps, version=pair.update()))
        for name, temperature in temperatures.items():
            pair.submit(name, [9, 10, 11], max_tokens=3, temperature=temperature)
        fresh = [item for _ in range(3) for item in pair.sampler.step()]
        num_steps += 3
        assert sorted(item.request_id for item in fresh) == sorted(temperatures)
        gaps += [pair.gap(item, [9, 10, 11], temperatures[item.request_id]) for item in fresh]
    assert max(gaps) < 1e-4
    done = pair.drain()
    assert done.keys() == across.keys()
    for completion in done.values():
        assert len(completion.token_ids) == 110
        assert completion.version_spans == tuple(expected_spans)
        assert _spans_by_vllm(engine_outputs[completion.request_id]) == expected_spans


def _record_engine_outputs(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    step = sampler._engine.step

    def recording_step() -> Any:
        finished = step()
        outputs.update({output.request_id: output for output in finished})
        return finished

    monkeypatch.setattr(sampler._engine, "step", recording_step)
    return outputs


def _spans_by_vllm(output: Any) -> list[VersionSpan]:
    return [
        VersionSpan(start=span.start, version=WeightVersion.parse(span.version))
        for span in output.outputs[0].weight_versions
    ]


@pytest.mark.slow
def test_a_request_that_runs_across_an_update_keeps_the_tokens_it_already_had(pair: Pair) -> None:
    pair.submit("across", [5, 6, 7], max_tokens=20, temperature=0.0)
    for _ in range(6):
        pair.sampler.step()
    old_learner_logprobs = [
        learner_logprobs(pair.learner, [5, 6, 7], [token])[0] for token in range(VOCAB_SIZE)
    ]
    pair.update()
    across = pair.drain()["across"]
    assert across.token_ids[0] == int(np.argmax(old_learner_logprobs))
    assert abs(across.behavior_logprobs[0] - max(old_learner_logprobs)) < 1e-4
    assert [span.start for span in across.version_spans] == [0, 6]


@pytest.mark.slow
def test_an_update_cut_off_during_load_leaves_the_engine_partial_until_a_whole_load(
    pair: Pair,
) -> None:
    pair.submit("across", [5, 6, 7], max_tokens=6)
    pair.sampler.step()
    before = pair.sampler.serving_version
    staged, manifest, version = pair.train_and_publish()
    with pytest.raises(WeightLoadError, match="staging area went away"):
        pair.sampler.load_weights(CutOff(staged, whole=7), manifest, version)
    assert pair.sampler.is_partial
    assert pair.sampler.serving_version == before
    with pytest.raises(WeightLoadError, match=f"last proven: {before}"):
        pair.sampler.step()
    with pytest.raises(WeightLoadError, match=f"last proven: {before}"):
        pair.sampler.score([1, 2, 3])

    pair.sampler.load_weights(staged, manifest, version)
    pair.submit("fresh", [8, 9])
    done = pair.drain()
    assert not pair.sampler.is_partial
    assert pair.gap(done["fresh"], [8, 9]) < 1e-4
    assert done["across"].version_spans == (
        VersionSpan(start=0, version=before),
        VersionSpan(start=1, version=version),
    )


def _flip_one_bit(staged: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.self_attn.v_proj.weight"
    staged[name].view(torch.int32)[3, 5] ^= 1
    return f"differ from manifest .*: {name}"


def _skip_one_tensor(staged: dict[str, torch.Tensor]) -> str:
    del staged["model.layers.0.self_attn.k_proj.bias"]
    return "k_proj.bias of the manifest was not staged"


def _swap_queries_and_keys(staged: dict[str, torch.Tensor]) -> str:
    query, key = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk")
    has_one_shape = staged[query].shape == staged[key].shape
    staged[query], staged[key] = staged[key], staged[query]
    return "2 loaded tensors differ" if has_one_shape else "q_proj.weight must be float32"


def _swap_keys_and_values(staged: dict[str, torch.Tensor]) -> str:
    key, value = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "kv")
    staged[key], staged[value] = staged[value], staged[key]
    return "2 loaded tensors differ"


@pytest.mark.slow
@pytest.mark.parametrize(
    "corrupt", [_flip_one_bit, _skip_one_tensor, _swap_queries_and_keys, _swap_keys_and_values]
)
def test_corrupted_staging_is_caught_named_and_repaired_by_the_next_update(
    pair: Pair, corrupt: Any
) -> None:
    staged, manifest, version = pair.train_and_publish()
    reason = corrupt(staged)
    with pytest.raises(WeightLoadError, match=reason):
        pair.sampler.load_weights(staged, manifest, version)
    assert pair.sampler.is_partial
    pair.update()
    pair.submit("fresh", [8, 9])
    assert pair.gap(pair.drain()["fresh"], [8, 9]) < 1e-4


@pytest.mark.slow
def test_a_loader_that_silently_skips_a_tensor_is_caught(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_weights = pair.sampler._model.load_weights
    skipped = "model.embed_tokens.weight"
    monkeypatch.setattr(
        pair.sampler._model,
        "load_weights",
        lambda weights: load_weights((n, t) for n, t in weights if n != skipped),
    )
    staged, manifest, version = pair.train_and_publish()
    with pytest.raises(WeightLoadError, match=f"1 loaded tensors differ .*: {skipped}"):
        pair.sampler.load_weights(staged, manifest, version)


@pytest.mark.slow
def test_a_learner_tied_where_the_engine_is_not_is_caught_and_the_reverse_as_well(
    pair: Pair,
) -> None:
    staged, _, version = pair.train_and_publish()
    if "lm_head.weight" in staged:
        del staged["lm_head.weight"]
        reason = "does not cover the engine's tensor lm_head.weight"
    else:
        staged["lm_head.weight"] = staged["model.embed_tokens.weight"] + 1
        reason = "1 loaded tensors differ .*: model.embed_tokens.weight"
    manifest = WeightManifest(version=version, tensors=describe_tensors(staged))
    with pytest.raises(WeightLoadError, match=reason):
        pair.sampler.load_weights(staged, manifest, version)


@pytest.mark.slow
def test_only_a_new_salt_frees_a_long_prompt_from_blocks_of_the_old_weights(pair: Pair) -> None:
    pair.submit("old", LONG_PROMPT, cache_salt="before")
    pair.submit("default", LONG_PROMPT)
    assert pair.gap(pair.drain()["old"], LONG_PROMPT) < 1e-4
    pair.update()
    pair.submit("same salt", LONG_PROMPT, cache_salt="before")
    pair.submit("new salt", LONG_PROMPT, cache_salt="after")
    pair.submit("default salt", LONG_PROMPT)
    done = pair.drain()
    assert pair.gap(done["same salt"], LONG_PROMPT) > 1e-2
    assert pair.gap(done["new salt"], LONG_PROMPT) < 1e-4
    assert pair.gap(done["default salt"], LONG_PROMPT) < 1e-4


@pytest.mark.slow
def test_a_prompt_that_waited_during_an_update_is_computed_with_the_new_weights_alone(
    pair: Pair,
) -> None:
    pair.submit("warms the cache", LONG_PROMPT)
    pair.drain()
    pair.submit("waits", LONG_PROMPT)
    version = pair.update()
    waited = pair.drain()["waits"]
    assert waited.version_spans == (VersionSpan(start=0, version=version),)
    assert pair.gap(waited, LONG_PROMPT) < 1e-4


@pytest.mark.slow
def test_score_agrees_with_the_learner_and_never_reads_cached_blocks(pair: Pair) -> None:
    expected = learner_logprobs(pair.learner, LONG_PROMPT[:1], LONG_PROMPT[1:])
    assert _largest_gap(pair.sampler.score(LONG_PROMPT), expected) < 1e-4
    pair.update()
    expected = learner_logprobs(pair.learner, LONG_PROMPT[:1], LONG_PROMPT[1:])
    assert _largest_gap(pair.sampler.score(LONG_PROMPT), expected) < 1e-4


@pytest.mark.slow
def test_completions_that_finish_during_a_score_are_held_back_until_the_next_step(
    pair: Pair,
) -> None:
    pair.submit("short", [5, 6, 7], max_tokens=2)
    pair.sampler.step()
    pair.sampler.score([1, 2, 3, 4])
    assert pair.sampler.num_running == 1
    (held,) = pair.sampler.step()
    assert (held.request_id, len(held.token_ids)) == ("short", 2)
    assert pair.gap(held, [5, 6, 7]) < 1e-4
    assert pair.sampler.step() == []


@pytest.mark.slow
def test_a_stop_token_ends_the_completion_and_stays_in_it(pair: Pair) -> None:
    stops = tuple(range(0, VOCAB_SIZE, 2))
    for index in range(8):
        pair.submit(str(index), [5, 6], max_tokens=60, stop_token_ids=stops)
    for completion in pair.drain().values():
        assert completion.finish_reason == "stop"
        assert completion.token_ids[-1] in stops
        assert not set(completion.token_ids[:-1]) & set(stops)


@pytest.mark.slow
def test_aborted_requests_are_forgotten_whether_running_or_waiting(pair: Pair) -> None:
    pair.submit("kept", [5, 6], max_tokens=9)
    pair.submit("running", [5, 6], max_tokens=60)
    assert pair.sampler.step() == []
    pair.submit("waiting", [5, 6], max_tokens=60)
    pair.sampler.abort(["running", "waiting", "unknown"])
    assert pair.sampler.num_running == 1
    assert list(pair.drain()) == ["kept"]
    assert pair.sampler.step() == []


@pytest.mark.slow
def test_a_request_with_a_seed_draws_the_same_tokens_in_any_company(pair: Pair) -> None:
    pair.submit("alone", [5, 6], seed=11)
    alone = pair.drain()["alone"]
    for name, seed in {"a": None, "b": 11, "c": 12}.items():
        pair.submit(name, [5, 6], seed=seed)
    together = pair.drain()
    assert together["b"].token_ids.tolist() == alone.token_ids.tolist()
    assert together["c"].token_ids.tolist() != alone.token_ids.tolist()


@pytest.mark.slow
def test_more_requests_than_the_engine_holds_all_finish_and_bad_ones_are_refused(
    pair: Pair,
) -> None:
    for index in range(300):
        pair.submit(str(index), [1 + index % 50], max_tokens=2)
    with pytest.raises(ValueError, match="'7' is in flight already"):
        pair.submit("7", [1])
    with pytest.raises(DataError, match="context of 512 tokens"):
        pair.submit("too long", LONG_PROMPT, max_tokens=213)
    done = pair.drain()
    assert len(done) == 300
    assert max(pair.gap(done[str(i)], [1 + i % 50]) for i in range(0, 300, 37)) < 1e-4
