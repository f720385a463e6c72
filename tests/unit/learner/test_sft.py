"""Supervised fine-tuning learns completions, not prompts, and the same thing every time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import Config, SftConfig
from common.errors import ConfigError, FatalError, PromptFileError
from common.text_tokenizer import TextTokenizer
from learner.batches.batch import Document
from learner.models.model import load_policy
from learner.models.tiny_model import EOS_ID
from learner.sft import fine_tune, run_sft
from learner.sft_corpus import encode_corpus, example_order, read_corpus
from tests.unit.learner.small_run import (
    ALONE,
    TEXT,
    VOCAB_SIZE,
    small_config,
    small_model,
    weights_of,
)


def _config(root: Path, **sft: Any) -> Config:
    settings: dict[str, Any] = {
        "corpus": str(root / "corpus.jsonl"),
        "output": str(root / "out"),
        "num_steps": 4,
        "batch_size": 8,
        "warmup_steps": 0,
    }
    return dataclasses.replace(small_config(root), sft=SftConfig(**(settings | sft)))


def _document(prompt: list[int], completion: list[int]) -> Document:
    return Document(
        prompt_token_ids=np.array(prompt),
        completion_token_ids=np.array(completion),
        behavior_logprobs=np.zeros(len(completion), dtype=np.float32),
    )


def _write_corpus(path: Path, count: int = 12) -> None:
    pairs = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(count)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@pytest.mark.slow
def test_a_copy_task_is_learned_to_almost_no_loss(tmp_path: Path) -> None:
    """Shifting the targets by one, or losing the prompt, would leave the loss near log(V)."""
    random = np.random.default_rng(0)
    words = [random.integers(6, 12, 2).tolist() for _ in range(64)]
    documents = [_document([*word, 5], [*word, EOS_ID]) for word in words]
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)
    config = _config(tmp_path, num_steps=100, batch_size=32, learning_rate=1e-2)
    learner = dataclasses.replace(config.learner, microbatch_tokens=4096)
    config = dataclasses.replace(config, learner=learner)
    losses = fine_tune(policy, documents, config, ALONE)
    assert losses[0] > 2.0
    assert losses[-1] < 0.02


def test_prompts_carry_no_loss(tmp_path: Path) -> None:
    """The loss is the mean over completion tokens, end token included, of a plain forward."""
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)
    documents = [_document([7, 8, 9, 10], [11, EOS_ID]), _document([12], [13, 14, 15, EOS_ID])]
    expected = []
    for document in documents:
        ids = torch.tensor([*document.prompt_token_ids, *document.completion_token_ids])
        with torch.no_grad():
            table = torch.log_softmax(policy.causal_lm(input_ids=ids[None]).logits[0], -1)
        start = len(document.prompt_token_ids)
        expected += table[start - 1 : -1].gather(-1, ids[start:, None]).view(-1).tolist()
    config = _config(tmp_path, num_steps=1, batch_size=2)
    (loss,) = fine_tune(policy, documents, config, ALONE)
    assert loss == pytest.approx(-np.mean(expected), rel=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    source = small_model(tmp_path / "model")
    random = np.random.default_rng(1)
    documents = [_document([5], random.integers(3, VOCAB_SIZE, 4).tolist()) for _ in range(40)]

    def train(seed: int) -> dict[str, torch.Tensor]:
        policy = load_policy(source, ALONE, max_length=64)
        config = _config(tmp_path)
        run = dataclasses.replace(config.run, seed=seed)
        fine_tune(policy, documents, dataclasses.replace(config, run=run), ALONE)
        return weights_of(policy)

    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_writes_a_model_that_tokenizes_and_its_curve(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    _write_corpus(tmp_path / "corpus.jsonl")
    run_sft(_config(tmp_path))
    assert TextTokenizer.load(tmp_path / "out").encode("1+2=")
    load_policy(tmp_path / "out", ALONE, max_length=64)
    rows = [
        json.loads(line) for line in (tmp_path / "run/telemetry/sft.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
    assert rows[-1]["learning_rate"] == pytest.approx(1e-4)
    assert all(row["loss"] > 0 and row["tokens_per_second"] > 0 for row in rows)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)
    with torch.no_grad():
        next(policy.parameters()).fill_(float("nan"))
    with pytest.raises(FatalError, match=r"sft step 0 is not finite \(lower sft\.learning_rate"):
        fine_tune(policy, [_document([5], [6])], _config(tmp_path), ALONE)


@pytest.mark.parametrize("key", ["corpus", "output"])
def test_a_missing_setting_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"sft\.{key} must be set"):
        run_sft(_config(tmp_path, **{key: ""}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "1+1="}', r"corpus\.jsonl:2: Object missing required field `completion`"),
        ('{"prompt": 1, "completion": "2"}', r"corpus\.jsonl:2: Expected `str`"),
        ("not json", r"corpus\.jsonl:2: JSON is malformed"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"prompt": "1+1=", "completion": "2", "source": "x"}\n' + line + "\n")
    with pytest.raises(PromptFileError, match=message):
        read_corpus(path)


def test_an_empty_or_missing_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptFileError, match="the corpus is empty"):
        read_corpus(tmp_path / "empty.jsonl")
    with pytest.raises(PromptFileError, match="No such file"):
        read_corpus(tmp_path / "missing.jsonl")


def test_completions_end_with_the_end_token_and_prompts_are_rendered(tmp_path: Path) -> None:
    model_dir = small_model(tmp_path / "model")
    _write_corpus(tmp_path / "corpus.jsonl", 1)
    tokenizer = TextTokenizer.load(model_dir)
    pairs = read_corpus(tmp_path / "corpus.jsonl")
    (document,) = encode_corpus(
        tmp_path, pairs, tokenizer, template="plain", model_dir=model_dir, max_length=64
    )
    assert document.prompt_token_ids.tolist() == tokenizer.encode("0+1=")
    assert document.completion_token_ids.tolist() == [*tokenizer.encode("1"), EOS_ID]


def test_a_pair_that_is_too_long_is_refused_not_cut(tmp_path: Path) -> None:
    model_dir = small_model(tmp_path / "model")
    _write_corpus(tmp_path / "corpus.jsonl", 3)
    pairs = read_corpus(tmp_path / "corpus.jsonl")
    with pytest.raises(PromptFileError, match=r"pair 1 has 6 tokens, more than .* = 5"):
        encode_corpus(
            tmp_path / "corpus.jsonl",
            pairs,
            TextTokenizer.load(model_dir),
            template="plain",
            model_dir=model_dir,
            max_length=5,
        )


def test_every_epoch_shows_every_example_once() -> None:
    batches = list(example_order(10, batch_size=4, num_steps=5, seed=3))
    seen = np.concatenate(batches)
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:20].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()


def test_a_batch_may_be_larger_than_the_corpus() -> None:
    (batch,) = example_order(3, batch_size=7, num_steps=1, seed=0)
    assert np.bincount(batch).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_the_text_of_the_test_model_is_known() -> None:
    assert len(TEXT) + 3 + 4 == VOCAB_SIZE
