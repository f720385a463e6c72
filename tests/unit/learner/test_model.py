"""The policy computes the log-probabilities of a plain forward, packed or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import ModelDirectoryError
from learner.batches.batch import Document, pack
from learner.models.model import PolicyModel, load_policy, run_policy
from learner.publication.canary import canary_token_ids, compute_canary
from tests.unit.learner.small_run import ALONE, VOCAB_SIZE, small_model


@pytest.fixture
def policy(tmp_path: Path) -> PolicyModel:
    return load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)


def random_documents(count: int = 7) -> list[Document]:
    """Of one to fifteen tokens."""
    random = np.random.default_rng(3)
    return [
        Document(
            prompt_token_ids=random.integers(0, VOCAB_SIZE, int(random.integers(1, 6))),
            completion_token_ids=random.integers(0, VOCAB_SIZE, int(random.integers(1, 9))),
            behavior_logprobs=np.zeros(1, dtype=np.float32),
        )
        for _ in range(count)
    ]


def plain_logprobs(policy: PolicyModel, document: Document, temperature: float) -> Tensor:
    """Of the completion, from all logits of a forward of this document alone."""
    ids = np.concatenate([document.prompt_token_ids, document.completion_token_ids])
    logits = policy.causal_lm(input_ids=torch.from_numpy(ids)[None]).logits[0] / temperature
    table = torch.log_softmax(logits, dim=-1)
    start = len(document.prompt_token_ids)
    return table[start - 1 : -1].gather(-1, torch.from_numpy(ids)[start:, None]).squeeze(-1)


def _gradients(policy: PolicyModel) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in policy.trained_weights()}
    policy.zero_grad()
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_log_probabilities_and_gradients_equal_those_of_single_documents(
    policy: PolicyModel, temperature: float
) -> None:
    documents = random_documents()
    rows = [documents[:3], documents[3:4], documents[4:]]
    length = max(sum(document.length for document in row) for row in rows)
    packed, _ = run_policy(policy, pack(rows, length), temperature)
    upstream = torch.linspace(-1.0, 2.0, len(packed))
    (packed * upstream).sum().backward()
    packed_gradients = _gradients(policy)

    single = torch.cat([plain_logprobs(policy, item, temperature) for item in documents])
    (single * upstream).sum().backward()
    torch.testing.assert_close(packed, single, atol=2e-6, rtol=1e-6)
    for name, expected in _gradients(policy).items():
        torch.testing.assert_close(packed_gradients[name], expected, atol=2e-5, rtol=1e-5)


def test_a_neighbour_in_the_row_changes_nothing(policy: PolicyModel) -> None:
    first, second, other = random_documents(3)
    length = first.length + max(second.length, other.length)
    beside, _ = run_policy(policy, pack([[first, second]], length), 1.0)
    beside_other, _ = run_policy(policy, pack([[first, other]], length), 1.0)
    num_tokens = len(first.completion_token_ids)
    assert torch.equal(beside[:num_tokens], beside_other[:num_tokens])


def test_padding_changes_nothing(policy: PolicyModel) -> None:
    (document,) = random_documents(1)
    tight, _ = run_policy(policy, pack([[document]], document.length), 1.0)
    loose, _ = run_policy(policy, pack([[document]], document.length + 9), 1.0)
    torch.testing.assert_close(tight, loose, atol=1e-6, rtol=0)


def test_the_canary_holds_plain_log_probabilities_at_temperature_one(policy: PolicyModel) -> None:
    canary = compute_canary(policy, ALONE, tolerance=1e-3)
    ids = canary_token_ids(VOCAB_SIZE)
    assert [list(row) for row in canary.token_ids] == ids.tolist()
    for row, logprobs in zip(ids, canary.logprobs, strict=True):
        document = Document(
            prompt_token_ids=row[:1],
            completion_token_ids=row[1:],
            behavior_logprobs=np.zeros(1, dtype=np.float32),
        )
        expected = plain_logprobs(policy, document, 1.0).tolist()
        assert list(logprobs) == pytest.approx(expected, abs=1e-5)


def test_weights_have_their_hugging_face_names(policy: PolicyModel) -> None:
    names = [name for name, _ in policy.trained_weights()]
    assert "model.layers.1.self_attn.q_proj.weight" in names
    assert "lm_head.weight" in names
    assert len(names) == len(set(names))


def test_a_directory_without_a_model_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"no config\.json \(model\.path must name"):
        load_policy(tmp_path, ALONE, max_length=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 16,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "beyond the attention window of 16 tokens",
        ),
        ({"model_type": "no-such-model"}, "use a model type"),
    ],
)
def test_models_that_the_packed_forward_would_get_wrong_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    directory = small_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelDirectoryError, match=message):
        load_policy(directory, ALONE, max_length=64)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    directory = small_model(tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelDirectoryError, match=r"1 weights are missing, first model\.norm"):
        load_policy(directory, ALONE, max_length=64)


def test_a_damaged_weight_file_is_refused(tmp_path: Path) -> None:
    directory = small_model(tmp_path / "model")
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelDirectoryError, match="cannot be loaded"):
        load_policy(directory, ALONE, max_length=64)


def test_attention_is_priced_by_layers_times_width_over_parameters(policy: PolicyModel) -> None:
    config = policy.causal_lm.config.get_text_config()
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)
    parameters = sum(weight.numel() for _, weight in policy.trained_weights())
    assert policy.attention_ratio == pytest.approx(2 * 32 / parameters)
