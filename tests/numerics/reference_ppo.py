"""A training batch by PPO (arXiv 1707.06347, Algorithm 1) as a paper would write it, in float32.

One completion at a time through a plain Hugging Face model, no packing, no streaming, no ranks;
rewards, advantages and returns by the loops of ``reference_objectives``. What the learner does with
several updates of a batch, with a critic and without, must come to the same weights.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.numerics.reference_objectives import critic_signals, kl


@dataclass
class Answer:
    """One completion."""

    tokens: list[int]
    """Prompt and completion."""
    num_prompt: int
    behavior: list[float]
    reward: float
    advantage: float = 0.0
    """Without a critic."""


@dataclass
class Settings:
    """What the comparison varies."""

    rate: float
    critic_rate: float
    sequence_mean: bool = False
    coupled: bool = False
    whiten: bool = False
    gamma: float = 1.0
    lam: float = 1.0
    value_lam: float = 1.0
    value_clip: float = 0.2
    beta: float = 0.0
    k3_in_loss: float = 0.0
    clip: float = 0.2
    cap: float = 2.0
    norm: float = 1.0


@dataclass
class Critic:
    """A backbone and the head of one number on it."""

    backbone: Any
    head: nn.Linear

    def values(self, answer: Answer) -> Tensor:
        """Before each token of the completion."""
        ids = torch.tensor([answer.tokens])
        hidden = self.backbone(input_ids=ids).last_hidden_state[0, answer.num_prompt - 1 : -1]
        values: Tensor = self.head(hidden)[:, 0]
        return values

    def weights(self) -> dict[str, Tensor]:
        """By the learner's names."""
        named = {f"backbone.{name}": item for name, item in self.backbone.named_parameters()}
        return {name: item.detach() for name, item in named.items()} | {
            "score.weight": self.head.weight.detach()
        }

    def parameters(self) -> list[nn.Parameter]:
        """All of it."""
        return [*self.backbone.parameters(), *self.head.parameters()]


@dataclass
class Trainer:
    """Policy, critic and their Adams."""

    policy: Any
    settings: Settings
    critic: Critic | None = None
    adams: list[torch.optim.Optimizer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reference = copy.deepcopy(self.policy)
        self.adams = [_adam([*self.policy.parameters()], self.settings.rate)]
        if self.critic is not None:
            self.adams.append(_adam(self.critic.parameters(), self.settings.critic_rate))

    def train(self, answers: Sequence[Answer], parts: Sequence[Sequence[int]]) -> None:
        """One batch; each of ``parts`` are the places of the answers of one update."""
        with torch.no_grad():
            before = [_logprobs(self.policy, answer) for answer in answers]
        signals = self._signals(answers, before)
        for part in parts:
            self._update(answers, before, signals, part)

    def _signals(
        self, answers: Sequence[Answer], before: Sequence[Tensor]
    ) -> list[tuple[list[float], list[float], list[float]]]:
        """Advantages, returns and old values of every token."""
        if self.critic is None:
            return [([item.advantage] * len(item.behavior), [], []) for item in answers]
        s, found = self.settings, []
        for answer, logprobs in zip(answers, before, strict=True):
            with torch.no_grad():
                values = self.critic.values(answer).tolist()
                reference = _logprobs(self.reference, answer).tolist()
            pairs = zip(logprobs.tolist(), reference, strict=True)
            rewards = [-s.beta * kl("k1", p, r) for p, r in pairs]
            rewards[-1] += answer.reward
            signals = critic_signals(
                rewards, values, gamma=s.gamma, lam=s.lam, value_lam=s.value_lam
            )
            found.append((*signals, values))
        if s.whiten:
            flat = [a for advantages, _, _ in found for a in advantages]
            mean, deviation = statistics.mean(flat), statistics.stdev(flat)
            found = [
                ([(a - mean) / (deviation + 1e-6) for a in advantages], returns, values)
                for advantages, returns, values in found
            ]
        return found

    def _update(
        self,
        answers: Sequence[Answer],
        before: Sequence[Tensor],
        signals: Sequence[tuple[list[float], list[float], list[float]]],
        part: Sequence[int],
    ) -> None:
        s = self.settings
        num_tokens = sum(len(answers[place].behavior) for place in part)
        loss, value_loss = torch.zeros(()), torch.zeros(())
        for place in part:
            answer, (advantages, returns, values) = answers[place], signals[place]
            behavior, held = torch.tensor(answer.behavior), before[place]
            anchor = behavior if s.coupled else held
            logprobs = _logprobs(self.policy, answer)
            ratio = (logprobs - anchor).exp()
            weight = torch.ones(()) if s.coupled else (held - behavior).exp().clamp(max=s.cap)
            a = torch.tensor(advantages)
            terms = weight * torch.minimum(ratio * a, ratio.clamp(1 - s.clip, 1 + s.clip) * a)
            if s.k3_in_loss:
                with torch.no_grad():
                    reference = _logprobs(self.reference, answer)
                d = reference - logprobs
                terms = terms - s.k3_in_loss * (d.exp() - d - 1)
            loss = loss - (
                terms.mean() / len(part) if s.sequence_mean else terms.sum() / num_tokens
            )
            if self.critic is not None:
                old, target = torch.tensor(values), torch.tensor(returns)
                now = self.critic.values(answer)
                near = torch.minimum(torch.maximum(now, old - s.value_clip), old + s.value_clip)
                worse = torch.maximum((now - target) ** 2, (near - target) ** 2)
                value_loss = value_loss + worse.sum() / 2 / num_tokens
        (loss + value_loss).backward()
        for adam in self.adams:
            torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], s.norm)
            adam.step()
            adam.zero_grad()


def _logprobs(model: Any, answer: Answer) -> Tensor:
    ids = torch.tensor([answer.tokens])
    table = torch.log_softmax(model(input_ids=ids).logits[0, answer.num_prompt - 1 : -1], -1)
    return table.gather(-1, ids[0, answer.num_prompt :, None]).view(-1)


def _adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.999), weight_decay=0.0)
