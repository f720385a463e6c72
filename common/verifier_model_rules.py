"""Rules for ``[[verifier.models]]``: which settings each kind of model needs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from common.config import VerifierModelConfig

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?")


def verifier_model_rules(models: Sequence[VerifierModelConfig]) -> Iterator[str]:
    """What is wrong with ``[[verifier.models]]``, as rule, value and cure."""
    kinds = [model.kind for model in models]
    for kind in dict.fromkeys(kinds):
        if kinds.count(kind) > 1:
            yield (
                f"verifier.models must name each kind once, got {kinds.count(kind)} of {kind!r} "
                "(keep one)"
            )
    for number, model in enumerate(models):
        where = f"verifier.models[{number}]"
        yield from (_judge_rules if model.kind == "judge" else _weight_rules)(where, model)
        yield from _value_rules(where, model)


def _weight_rules(where: str, model: VerifierModelConfig) -> Iterator[str]:
    if not model.path:
        yield f"{where}.path must name the model directory of kind {model.kind!r}, got none"
    if not _DEVICE.fullmatch(model.device):
        yield f"{where}.device must be auto, cpu, cuda or cuda:N, got {model.device!r} (use auto)"


def _value_rules(where: str, model: VerifierModelConfig) -> Iterator[str]:
    if model.max_tokens < 1:
        yield f"{where}.max_tokens must be >= 1, got {model.max_tokens} (use 8192)"
    if not math.isfinite(model.minimum):
        yield f"{where}.minimum must be a finite number, got {model.minimum} (use 0.0)"


def _judge_rules(where: str, model: VerifierModelConfig) -> Iterator[str]:
    if not re.match(r"https?://[^/\s]+", model.url):
        yield (
            f"{where}.url must be the base of an OpenAI-compatible endpoint, got {model.url!r} "
            "(for example http://127.0.0.1:8000/v1)"
        )
    if not model.directory:
        yield f"{where}.directory must name a folder for cache and log, got none (set it)"
    if not model.model:
        yield f"{where}.model must name a model of the endpoint, got none (see its /models)"
    if not 0 < model.timeout_s < math.inf:
        yield f"{where}.timeout_s must be a finite number above 0, got {model.timeout_s} (use 60)"
    for name in ("attempts", "concurrency"):
        if getattr(model, name) < 1:
            yield f"{where}.{name} must be >= 1, got {getattr(model, name)} (delete the line)"
