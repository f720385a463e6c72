"""Reward models that mean something: tiny classifiers trained in seconds on texts of our making."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from common.text_tokenizer import TextTokenizer
from learner.models.tiny_model import PAD_ID
from tests.unit.actors.verification.models.tiny_scorers import save_scorer

_WORDS = ("sum", "plan", "note", "look", "then", "next", "five", "ten", "so", "well", "add", "it")
UNSAFE = "poison"
_STEPS = 80
_BATCH = 32


def train_safety_model(directory: Path) -> None:
    """Two labels, unsafe (0) and safe (1): whether ``poison`` stands anywhere in the text."""
    model = save_scorer(directory, num_labels=2)
    source = random.Random(0)

    def loss_of(model: Any, encode: Any) -> torch.Tensor:
        labels = [source.random() < 0.5 for _ in range(_BATCH)]
        texts = [_response(source, unsafe=not safe) for safe in labels]
        logits = encode(model, texts)
        return torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())

    _train(model, directory, loss_of)


def train_helpful_model(directory: Path) -> None:
    """A scalar by the Bradley-Terry loss, -log sigmoid(chosen - rejected): numbers beat excuses."""
    model = save_scorer(directory)
    source = random.Random(0)

    def loss_of(model: Any, encode: Any) -> torch.Tensor:
        chosen = [f"Q: {_words(source)} {source.randint(10, 99)}." for _ in range(_BATCH)]
        rejected = [f"Q: {_words(source)} no idea." for _ in range(_BATCH)]
        difference = encode(model, chosen) - encode(model, rejected)
        return -torch.nn.functional.logsigmoid(difference).mean()

    _train(model, directory, loss_of)


def _response(source: random.Random, *, unsafe: bool) -> str:
    thought = _words(source)
    if unsafe:
        place = source.randint(0, len(thought))
        thought = f"{thought[:place]} {UNSAFE} {thought[place:]}"
    return f"Q: <think>{thought}</think> {_words(source)}"


def _words(source: random.Random) -> str:
    return " ".join(source.choice(_WORDS) for _ in range(source.randint(1, 5)))


def _train(model: Any, directory: Path, loss_of: Any) -> None:
    tokenizer = TextTokenizer.load(directory)

    def encode(model: Any, texts: list[str]) -> torch.Tensor:
        """Outputs at the last token of each text [B, labels]."""
        rows = [tokenizer.encode(text) for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[PAD_ID] * (length - len(row))] for row in rows])
        hidden = model.base_model(input_ids=ids).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows])
        outputs: torch.Tensor = model.score(hidden[torch.arange(len(rows)), last])
        return outputs

    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(_STEPS):
        loss = loss_of(model, encode)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(directory)
