"""What each kind of scoring model reads of an answer, and what its outputs mean.

A scorer has no weights: it turns a job into token ids and places whose outputs it wants, and the
outputs into a judgement. The forward pass happens elsewhere, for many jobs at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.verification.judgement import Judgement, VerifyJob
from actors.verification.models.conversation import ConversationEncoder
from actors.verification.models.response import (
    AGGREGATIONS,
    final_summary,
    split_steps,
)
from common.arrays import Float32Array, Int32Array
from common.config import VerifierModelConfig
from common.errors import ConfigError
from common.types import MAX_STEPS, VerdictStatus


@dataclass(frozen=True, slots=True)
class ScoringInput:
    """A sequence for the model and the places whose outputs are wanted."""

    token_ids: Int32Array
    """[N]."""
    positions: Int32Array
    """[P], places in the sequence, in order."""
    step_ends: tuple[int, ...] = ()
    """[P], characters of the completion behind which the steps end; () where none are scored."""


class Scorer(Protocol):
    """One kind of scoring model."""

    def prepare(self, job: VerifyJob) -> ScoringInput | Judgement:
        """What the model is to read; a judgement where it need not or cannot read anything."""
        ...

    def judge(self, outputs: Float32Array) -> Judgement:
        """The judgement that the outputs [P, labels] at the wanted places stand for."""
        ...


class HelpfulnessScorer:
    """Scores the final summary only: reasoning is free of it (DeepSeek-R1, Nature 645, Methods)."""

    def __init__(self, config: VerifierModelConfig, encoder: ConversationEncoder) -> None:
        self._config = config
        self._encoder = encoder

    def prepare(self, job: VerifyJob) -> ScoringInput | Judgement:
        """The prompt and the summary, read at the last token."""
        summary = final_summary(job.response)
        if summary is None:
            return _least(self._config, "there is no final summary to score")
        return _read_at_end(self._config, self._encoder, job.prompt, summary)

    def judge(self, outputs: Float32Array) -> Judgement:
        """The value of the last token's output."""
        return Judgement.graded(label_value(outputs[-1], self._config))


class SafetyScorer:
    """Scores the whole response: what is unsafe is unsafe in the reasoning too (Nature 645)."""

    def __init__(self, config: VerifierModelConfig, encoder: ConversationEncoder) -> None:
        self._config = config
        self._encoder = encoder

    def prepare(self, job: VerifyJob) -> ScoringInput | Judgement:
        """The prompt and everything after it, read at the last token."""
        if not job.completion:
            return _least(self._config, "there is no response to score")
        return _read_at_end(self._config, self._encoder, job.prompt, job.completion)

    def judge(self, outputs: Float32Array) -> Judgement:
        """The value of the last token's output."""
        return Judgement.graded(label_value(outputs[-1], self._config))


class ProcessScorer:
    """Scores every step of the whole response, and the answer by its worst step or by all."""

    def __init__(self, config: VerifierModelConfig, encoder: ConversationEncoder) -> None:
        self._config = config
        self._encoder = encoder

    def prepare(self, job: VerifyJob) -> ScoringInput | Judgement:
        """The prompt and the response, read where each step ends."""
        steps = split_steps(job.completion, self._config.steps)
        if not steps:
            return _least(self._config, "there is no step to score")
        if len(steps) > MAX_STEPS:
            return _least(self._config, f"{len(steps)} steps are over the {MAX_STEPS} of an answer")
        if self._config.step_token:
            texts = [job.completion[step.start : step.end] for step in steps]
            ids, places = self._encoder.encode_steps(job.prompt, texts, self._config.step_token)
        else:
            encoded = self._encoder.encode(job.prompt, job.completion)
            ids = encoded.token_ids
            places = encoded.last_tokens_of(steps)
        ends = tuple(step.end for step in steps)
        return _too_long(self._config, len(ids)) or ScoringInput(ids, places, ends)

    def judge(self, outputs: Float32Array) -> Judgement:
        """The aggregate of the steps' values, and these; the reason lists them."""
        values = [label_value(row, self._config) for row in outputs]
        listed = " ".join(f"{value:.4f}" for value in values)
        reason = f"{self._config.aggregation} of {len(values)} steps: {listed}"[:4096]
        return Judgement(
            status=VerdictStatus.GRADED,
            value=AGGREGATIONS[self._config.aggregation](values),
            reason=reason,
            step_values=tuple(values),
        )


SCORERS: dict[str, type[HelpfulnessScorer] | type[SafetyScorer] | type[ProcessScorer]] = {
    "helpful": HelpfulnessScorer,
    "safety": SafetyScorer,
    "process": ProcessScorer,
}
"""Kind of check -> its scorer."""


def label_value(outputs: Float32Array, config: VerifierModelConfig) -> float:
    """The value of one place's outputs [labels].

    A single output counts as it is; of several, the log-odds of the positive label. ``sigmoid``
    makes either a number from 0 to 1. Nothing is below ``minimum``, which is what an answer without
    anything to score is worth: leaving the summary out never pays. Raises :class:`ConfigError` for
    a positive label that the model does not have.
    """
    logit = float(outputs[0])
    if len(outputs) > 1:
        if not -len(outputs) <= config.positive_label < len(outputs):
            raise ConfigError(
                f"verifier.models.positive_label must name one of the model's {len(outputs)} "
                f"outputs, got {config.positive_label} (use -1 for the last)"
            )
        others = np.delete(outputs.astype(np.float64), config.positive_label)
        logit = float(outputs[config.positive_label]) - float(np.logaddexp.reduce(others))
    value = _sigmoid(logit) if config.output == "sigmoid" else logit
    return max(value, config.minimum)


def _sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))


def _read_at_end(
    config: VerifierModelConfig, encoder: ConversationEncoder, prompt: str, answer: str
) -> ScoringInput | Judgement:
    ids = encoder.encode(prompt, answer).token_ids
    end = np.array([len(ids) - 1], dtype=np.int32)
    return _too_long(config, len(ids)) or ScoringInput(ids, end)


def _too_long(config: VerifierModelConfig, num_tokens: int) -> Judgement | None:
    """An answer that the model cannot read in full is worth the least: cutting it would let text
    behind the cut go unjudged.
    """
    if num_tokens <= config.max_tokens:
        return None
    return _least(
        config, f"{num_tokens} tokens are over the {config.max_tokens} that the model reads"
    )


def _least(config: VerifierModelConfig, reason: str) -> Judgement:
    return Judgement(status=VerdictStatus.WRONG_FORMAT, value=config.minimum, reason=reason)
