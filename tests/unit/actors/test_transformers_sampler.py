"""The light sampler samples from the distribution it reports and never serves unproven weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.generation.sampler import SampledCompletion, SampleRequest
from actors.generation.transformers_sampler import TransformersOptions, TransformersSampler
from common.errors import DataError, ModelDirectoryError, WeightLoadError
from common.types import VersionSpan, WeightVersion
from tests.tiny_models import VOCAB_SIZE, CutOff, learner_logprobs, make_tiny_qwen2, publish
from tests.tiny_models import train_step as train

V0 = WeightVersion(incarnation=0, policy_step=0)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def learner(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return make_tiny_qwen2(tmp_path, tied=request.param)


@pytest.fixture
def sampler(learner: Any, tmp_path: Path) -> TransformersSampler:
    return _sampler(tmp_path)


def _sampler(model_dir: Path, **options: Any) -> TransformersSampler:
    return TransformersSampler(
        TransformersOptions(model_dir=model_dir, max_model_len=128, **options), V0
    )


def _request(name: str, prompt: list[int], **fields: Any) -> SampleRequest:
    return SampleRequest(
        request_id=name, prompt_token_ids=prompt, **{"max_tokens": 12, "temperature": 1.0, **fields}
    )


def _drain(sampler: TransformersSampler) -> dict[str, SampledCompletion]:
    done: dict[str, SampledCompletion] = {}
    while sampler.num_running:
        done.update({item.request_id: item for item in sampler.step()})
    return done


def test_behavior_logprobs_are_those_of_a_plain_forward_at_the_temperature_sampled_with(
    learner: Any, sampler: TransformersSampler
) -> None:
    prompts = {"a": [5, 6, 7], "b": [9], "c": [2, 3, 4, 5, 6, 7, 8, 9, 10]}
    temperatures = {"a": 1.0, "b": 0.6, "c": 1.7}
    for name, prompt in prompts.items():
        sampler.submit(_request(name, prompt, temperature=temperatures[name]))
    done = _drain(sampler)
    assert done.keys() == prompts.keys()
    for name, completion in done.items():
        expected = learner_logprobs(
            learner, prompts[name], completion.token_ids.tolist(), temperatures[name]
        )
        np.testing.assert_allclose(completion.behavior_logprobs, expected, atol=1e-5)
        assert completion.finish_reason == "length"
        assert completion.version_spans == (VersionSpan(start=0, version=V0),)


def test_temperature_zero_takes_the_most_probable_token(
    learner: Any, sampler: TransformersSampler
) -> None:
    sampler.submit(_request("greedy", [5, 6, 7], temperature=0.0, max_tokens=6))
    tokens = _drain(sampler)["greedy"].token_ids.tolist()
    ids = [5, 6, 7]
    for token in tokens:
        assert token == int(learner(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def test_samples_follow_the_models_distribution(learner: Any, tmp_path: Path) -> None:
    sampler = _sampler(tmp_path, max_num_seqs=2000)
    for index in range(2000):
        sampler.submit(_request(str(index), [5, 6, 7], max_tokens=1, temperature=0.7))
    first = np.array([item.token_ids[0] for item in _drain(sampler).values()])
    logits = learner(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.7
    expected = logits.softmax(-1).numpy()
    observed = np.bincount(first, minlength=VOCAB_SIZE) / len(first)
    assert 0.5 * np.abs(observed - expected).sum() < 0.08


def test_a_stop_token_ends_the_completion_and_stays_in_it(sampler: TransformersSampler) -> None:
    stops = tuple(range(0, VOCAB_SIZE, 2))
    for index in range(8):
        sampler.submit(_request(str(index), [5, 6], stop_token_ids=stops, max_tokens=40))
    for completion in _drain(sampler).values():
        assert completion.finish_reason == "stop"
        assert completion.token_ids[-1] in stops
        assert not set(completion.token_ids[:-1]) & set(stops)


def test_requests_beyond_the_wave_wait_and_are_served_in_order(tmp_path: Path) -> None:
    make_tiny_qwen2(tmp_path, tied=False)
    sampler = _sampler(tmp_path, max_num_seqs=2)
    for name in "abcde":
        sampler.submit(_request(name, [5], max_tokens=3))
    finished = [item.request_id for _ in range(9) for item in sampler.step()]
    assert finished == ["a", "b", "c", "d", "e"]
    assert sampler.num_running == 0
    assert sampler.step() == []


def test_aborted_requests_are_forgotten_and_the_rest_stay_right(
    learner: Any, sampler: TransformersSampler
) -> None:
    for name in "abc":
        sampler.submit(_request(name, [5, 6, 7]))
    for _ in range(4):
        sampler.step()
    sampler.abort(["a", "c", "unknown"])
    assert sampler.num_running == 1
    done = _drain(sampler)
    assert list(done) == ["b"]
    expected = learner_logprobs(learner, [5, 6, 7], done["b"].token_ids.tolist())
    np.testing.assert_allclose(done["b"].behavior_logprobs, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_completions(learner: Any, tmp_path: Path) -> None:
    def tokens(seed: int) -> list[list[int]]:
        sampler = _sampler(tmp_path, seed=seed)
        for name in "abcd":
            sampler.submit(_request(name, [5, 6]))
        return [item.token_ids.tolist() for item in _drain(sampler).values()]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_a_request_with_a_seed_draws_the_same_tokens_in_any_company(tmp_path: Path) -> None:
    make_tiny_qwen2(tmp_path, tied=False)
    sampler = _sampler(tmp_path)
    sampler.submit(_request("alone", [5, 6], seed=11))
    alone = _drain(sampler)["alone"]
    for name, seed in {"a": None, "b": 11, "c": 12}.items():
        sampler.submit(_request(name, [5, 6], seed=seed))
    together = _drain(sampler)
    assert together["b"].token_ids.tolist() == alone.token_ids.tolist()
    assert together["c"].token_ids.tolist() != alone.token_ids.tolist()


def test_a_load_in_flight_opens_a_span_at_the_next_token_and_serves_the_new_weights(
    learner: Any, sampler: TransformersSampler
) -> None:
    sampler.submit(_request("across", [5, 6, 7], max_tokens=10))
    for _ in range(4):
        assert sampler.step() == []
    train(learner, seed=7)
    staged, manifest, version = publish(learner, 3)
    sampler.load_weights(staged, manifest, version)
    sampler.submit(_request("fresh", [8, 9], max_tokens=5))
    done = _drain(sampler)

    across = done["across"]
    assert across.version_spans == (
        VersionSpan(start=0, version=V0),
        VersionSpan(start=4, version=version),
    )
    assert done["fresh"].version_spans == (VersionSpan(start=0, version=version),)
    assert sampler.serving_version == version
    expected = learner_logprobs(learner, [8, 9], done["fresh"].token_ids.tolist())
    np.testing.assert_allclose(done["fresh"].behavior_logprobs, expected, atol=1e-5)


def test_score_gives_the_learners_logprobs_of_given_tokens(
    learner: Any, sampler: TransformersSampler
) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = learner_logprobs(learner, tokens[:1], tokens[1:])
    np.testing.assert_allclose(sampler.score(tokens), expected, atol=1e-5)


def test_a_load_that_is_cut_off_leaves_the_model_partial_until_a_whole_load(
    learner: Any, sampler: TransformersSampler
) -> None:
    sampler.submit(_request("across", [5, 6, 7]))
    sampler.step()
    train(learner, seed=7)
    staged, manifest, version = publish(learner, 1)
    with pytest.raises(WeightLoadError, match="staging area went away"):
        sampler.load_weights(CutOff(staged, whole=5), manifest, version)
    assert sampler.is_partial
    assert sampler.serving_version == V0
    with pytest.raises(WeightLoadError, match=r"not proven \(last proven: 0.0\)"):
        sampler.step()
    with pytest.raises(WeightLoadError, match="not proven"):
        sampler.score([1, 2, 3])

    sampler.load_weights(staged, manifest, version)
    assert not sampler.is_partial
    assert [span.start for span in _drain(sampler)["across"].version_spans] == [0, 1]


def _one_bit_flipped(staged: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.mlp.down_proj.weight"
    staged[name].view(torch.int32)[3, 5] ^= 1
    return f"differ from manifest 0.1: {name}"


def _skipped(staged: dict[str, torch.Tensor]) -> str:
    del staged["model.layers.0.self_attn.k_proj.bias"]
    return "k_proj.bias of the manifest was not staged"


def _swapped(staged: dict[str, torch.Tensor]) -> str:
    gate, up = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up"))
    staged[gate], staged[up] = staged[up], staged[gate]
    return "2 loaded tensors differ"


def _wrong_shape(staged: dict[str, torch.Tensor]) -> str:
    staged["model.norm.weight"] = staged["model.norm.weight"][:-1]
    return r"model.norm.weight must be float32 \[64\]"


@pytest.mark.parametrize("corrupt", [_one_bit_flipped, _skipped, _swapped, _wrong_shape])
def test_corrupted_staging_is_caught_and_named(
    learner: Any, sampler: TransformersSampler, corrupt: Any
) -> None:
    train(learner, seed=7)
    staged, manifest, version = publish(learner, 1)
    reason = corrupt(staged)
    with pytest.raises(WeightLoadError, match=reason):
        sampler.load_weights(staged, manifest, version)
    assert sampler.is_partial


def test_a_manifest_must_cover_the_model_exactly(
    learner: Any, sampler: TransformersSampler
) -> None:
    staged, manifest, version = publish(learner, 1)
    short = type(manifest)(version=version, tensors=manifest.tensors[1:])
    with pytest.raises(WeightLoadError, match=r"does not cover the engine's tensor model\.embed"):
        sampler.load_weights(staged, short, version)
    stranger = type(manifest.tensors[0])(
        name="adapter", dtype="float32", shape=(1,), digest="0" * 16
    )
    long = type(manifest)(version=version, tensors=(*manifest.tensors, stranger))
    with pytest.raises(WeightLoadError, match="the engine has no tensor adapter"):
        sampler.load_weights({**staged, "adapter": torch.zeros(1)}, long, version)


def test_a_manifest_of_another_version_is_refused(
    learner: Any, sampler: TransformersSampler
) -> None:
    staged, manifest, _ = publish(learner, 1)
    with pytest.raises(WeightLoadError, match=r"manifest of 0\.1 does not describe 0\.0"):
        sampler.load_weights(staged, manifest, V0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": []}, "at least one token"),
        ({"prompt": [VOCAB_SIZE]}, "must lie in 0..60"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"prompt": [1], "max_tokens": 128}, r"context of 128 tokens, got 1 \+ 128"),
        ({"prompt": [1], "temperature": float("nan")}, "temperature must be >= 0, got nan"),
    ],
)
def test_requests_that_no_model_of_this_size_can_serve_are_data_errors(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    make_tiny_qwen2(tmp_path, tied=True)
    with pytest.raises(DataError, match=reason):
        _sampler(tmp_path).submit(_request("bad", fields.pop("prompt"), **fields))


def test_model_directories_that_cannot_be_served_give_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"must hold config\.json"):
        _sampler(tmp_path / "absent")
    make_tiny_qwen2(tmp_path, tied=False)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelDirectoryError, match=r"must be complete safetensors, got"):
        _sampler(tmp_path)
    weights.unlink()
    with pytest.raises(ModelDirectoryError, match=r"found none \(save the model"):
        _sampler(tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_instead_of_served_with_random_weights(
    learner: Any, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    tensors = {name: p.clone() for name, p in learner.named_parameters()}
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelDirectoryError, match=r"layers.1.mlp.up_proj.weight is missing"):
        _sampler(tmp_path)
