"""The value model: where it begins, and that packing changes none of its values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from common.config import CriticConfig, LearnerConfig
from common.errors import ModelDirectoryError
from learner.batches.batch import Document, pack
from learner.models.critic import ValueModel, evaluate_critic, load_critic
from learner.train import take_step
from tests.unit.learner.small_run import (
    ALONE,
    VOCAB_SIZE,
    small_config,
    small_model,
    small_run,
    with_loss,
)


def _load(path: str, policy: Path, **settings: Any) -> ValueModel:
    return load_critic(path, policy, ALONE, max_length=64, settings=LearnerConfig(**settings))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("policy") / "model")


def _reward_model(directory: Path, num_labels: int = 1) -> Qwen2ForSequenceClassification:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_labels=num_labels,
        pad_token_id=0,
    )
    model = Qwen2ForSequenceClassification(config).float().eval()
    model.save_pretrained(directory)
    return model


def _documents(num_documents: int = 4) -> list[Document]:
    random = np.random.default_rng(0)
    return [
        Document(
            prompt_token_ids=random.integers(0, VOCAB_SIZE, 3),
            completion_token_ids=random.integers(0, VOCAB_SIZE, length),
            behavior_logprobs=np.zeros(length, dtype=np.float32),
        )
        for length in range(2, 2 + num_documents)
    ]


def test_a_language_model_begins_with_values_of_zero_and_the_policys_backbone(
    policy: Path,
) -> None:
    critic = _load("", policy)
    microbatch = pack([_documents()], 64)
    assert evaluate_critic(critic, microbatch).tolist() == [0.0] * len(microbatch.target_ids)
    weights = dict(critic.trained_weights())
    assert weights["backbone.norm.weight"].numel() == 32
    assert not any("lm_head" in name for name in weights)
    assert weights["score.weight"].shape == (1, 32)


def test_a_reward_model_keeps_its_head_and_values_every_prefix(
    policy: Path, tmp_path: Path
) -> None:
    model = _reward_model(tmp_path / "reward")
    critic = _load(str(tmp_path / "reward"), policy)
    (document,) = _documents(1)
    values = evaluate_critic(critic, pack([[document]], document.length))
    ids = np.concatenate([document.prompt_token_ids, document.completion_token_ids])
    with torch.no_grad():
        expected = [
            model(input_ids=torch.from_numpy(ids[None, : 3 + t])).logits.item()
            for t in range(len(document.completion_token_ids))
        ]
    assert values.tolist() == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 1e-3


def test_no_document_notices_what_it_is_packed_with(policy: Path, tmp_path: Path) -> None:
    _reward_model(tmp_path / "reward")
    critic = _load(str(tmp_path / "reward"), policy, activation_checkpointing="full")
    documents = _documents()
    together = evaluate_critic(critic, pack([documents[:3], documents[3:]], 40))
    alone = [evaluate_critic(critic, pack([[item]], item.length)) for item in documents]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_a_classifier_of_two_labels_is_no_critic(policy: Path, tmp_path: Path) -> None:
    _reward_model(tmp_path / "two", num_labels=2)
    with pytest.raises(ModelDirectoryError, match="one label"):
        _load(str(tmp_path / "two"), policy)


def test_a_missing_directory_names_the_key(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"learner\.critic\.path must name"):
        _load(str(tmp_path / "nowhere"), policy)


def test_a_run_begins_with_the_critic_that_its_configuration_names(tmp_path: Path) -> None:
    model = _reward_model(tmp_path / "reward")
    config = small_config(tmp_path, critic=CriticConfig(path=str(tmp_path / "reward")))
    with small_run(with_loss(config, baseline="critic")) as run:
        critic = run.updater.critic
        assert critic is not None
        assert torch.equal(critic.model.score.weight, model.score.weight)
        assert [*run.trainees] == ["policy", "critic"]
        before = run.digest()
        with torch.no_grad():
            critic.model.score.weight[0, 0] += 1
        assert run.digest() != before, "a critic of other weights is another step"
    without = dataclasses.replace(config.learner, critic=CriticConfig())
    with small_run(dataclasses.replace(config, learner=without)) as run:
        assert run.updater.critic is None


def test_a_step_tells_how_well_the_critic_does(tmp_path: Path) -> None:
    config = small_config(tmp_path, critic=CriticConfig(learning_rate=1e-2))
    with small_run(with_loss(config, baseline="critic")) as run:
        for _ in range(2):
            take_step(run)
        lines = (run.process.paths.telemetry / "steps.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert first["value_mean"] == 0.0
    assert first["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert first["return_mean"] == pytest.approx(first["value_loss"] * 2, rel=1e-5)  # 0 or 1
    assert second["value_mean"] != 0.0
    assert (first["num_updates"], first["updates_skipped"]) == (1, 0)
