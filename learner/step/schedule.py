"""Learning-rate schedules: pure functions of the step, so that a resumed run goes on exactly.

DeepSeek-R1's cold start and distillation anneal along a cosine to a tenth of the peak (Nature 645,
supplement); its reinforcement learning keeps the rate constant.
"""

from __future__ import annotations

import math

from common.config import LearnerConfig, SftConfig


def learning_rate(settings: LearnerConfig | SftConfig, step: int) -> float:
    """Learning rate of the training batch ``step``, counted from 0, under ``settings``."""
    return settings.learning_rate * rate_ratio(
        settings.schedule,
        step,
        warmup_steps=settings.warmup_steps,
        num_steps=settings.num_steps,
        final_ratio=settings.final_learning_rate_ratio,
    )


def rate_ratio(
    schedule: str, step: int, *, warmup_steps: int, num_steps: int, final_ratio: float
) -> float:
    """Share of the peak at ``step``: linear from ``1 / warmup_steps`` to 1, then ``schedule``.

    ``linear`` and ``cosine`` arrive at ``final_ratio`` in the last step, ``num_steps - 1``, and
    stay there; ``constant`` stays at 1. Raises ``KeyError`` for any other name.
    """
    decay = _DECAYS[schedule]
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    num_decaying = max(1, num_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / num_decaying)
    return final_ratio + (1.0 - final_ratio) * decay(progress)


def _constant(_progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


_DECAYS = {"constant": _constant, "linear": _linear, "cosine": _cosine}
"""Name -> what is left of the way from peak to final rate, 1 to 0, by progress from 0 to 1."""
