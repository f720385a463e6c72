"""Rules for the ``[learner.loss]`` section of a run file: combinations that mean nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from common.config import Config, LossConfig


def loss_rules(config: Config) -> Iterator[str]:
    """What is wrong with ``config.learner.loss``, each with its cure."""
    loss = config.learner.loss
    yield from _number_rules(loss)
    yield from _correction_rules(loss)
    yield from _advantage_rules(loss)


def _number_rules(loss: LossConfig) -> Iterator[str]:
    for key in ("advantage_epsilon", "max_divergence"):
        value = getattr(loss, key)
        if not 0 <= value < math.inf:
            yield f"learner.loss.{key} must be a finite number >= 0, got {value} (use 0)"
    if not math.isfinite(loss.entropy_coefficient):
        yield (
            f"learner.loss.entropy_coefficient must be finite, got {loss.entropy_coefficient} "
            "(use 0 for no bonus)"
        )
    least = 1.0 + loss.clip_high
    if loss.dual_clip != 0 and not least < loss.dual_clip < math.inf:
        yield (
            f"learner.loss.dual_clip must be 0 or above 1 + learner.loss.clip_high ({least}), "
            f"got {loss.dual_clip} (use 3, or 0 for no bound)"
        )
    if loss.dual_clip != 0 and loss.surrogate != "clip":
        yield (
            'learner.loss.dual_clip belongs to surrogate = "clip", got surrogate = '
            f'"{loss.surrogate}" (set learner.loss.dual_clip = 0)'
        )


def _correction_rules(loss: LossConfig) -> Iterator[str]:
    if not 0 < loss.importance_cap < math.inf:
        yield (
            f"learner.loss.importance_cap must be a finite number above 0, got "
            f'{loss.importance_cap} (use 2; correction = "none" turns the correction off)'
        )
    elif not 0 <= loss.importance_floor < loss.importance_cap:
        yield (
            "learner.loss.importance_floor must be >= 0 and below learner.loss.importance_cap "
            f"({loss.importance_cap}), got {loss.importance_floor} (use 0)"
        )
    if loss.importance_floor > 0 and loss.correction not in ("mask", "sequence-mask"):
        yield (
            'learner.loss.importance_floor belongs to correction = "mask" or "sequence-mask", '
            f'got correction = "{loss.correction}" (set learner.loss.importance_floor = 0)'
        )
    if loss.proximal == "behavior" and loss.correction != "none":
        yield (
            'learner.loss.proximal = "behavior" leaves nothing to correct, got correction = '
            f'"{loss.correction}" (set learner.loss.correction = "none")'
        )
    if loss.surrogate == "reinforce" and loss.proximal != "policy":
        yield (
            'learner.loss.surrogate = "reinforce" has no ratio to anchor, got proximal = '
            f'"{loss.proximal}" (set learner.loss.proximal = "policy")'
        )


def _advantage_rules(loss: LossConfig) -> Iterator[str]:
    if loss.baseline == "batch-mean" and loss.advantage_over != "batch":
        yield (
            'learner.loss.baseline = "batch-mean" needs advantage_over = "batch", got '
            f'"{loss.advantage_over}" (set learner.loss.advantage_over = "batch")'
        )
