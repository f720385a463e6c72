"""Rules for guards, alarms, the flight recorder and trackers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from common.config import Config

MIN_SPIKE_WINDOW = 10
"""A median of fewer steps says little."""


def guard_rules(config: Config) -> Iterator[str]:
    """What is wrong with the settings of ``[learner.guards]`` and the like, each with its cure."""
    learner = config.learner
    for section, settings in (("guards", learner.guards), ("alarms", learner.alarms)):
        for field in fields(settings):
            value = getattr(settings, field.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                yield (
                    f"learner.{section}.{field.name} must be a finite number >= 0, got {value} "
                    "(use 0 to set no limit)"
                )
    yield from _counts(config)
    twice = {name for name in learner.trackers if learner.trackers.count(name) > 1}
    if twice:
        yield f'learner.trackers must name each once, got "{min(twice)}" twice (delete one)'


def _counts(config: Config) -> Iterator[str]:
    guards = config.learner.guards
    if guards.spike_window < MIN_SPIKE_WINDOW:
        yield (
            f"learner.guards.spike_window must be >= {MIN_SPIKE_WINDOW}, got "
            f'{guards.spike_window} (use 50, or spike = "off")'
        )
    for name, factor in (
        ("max_grad_norm_factor", guards.max_grad_norm_factor),
        ("max_loss_factor", guards.max_loss_factor),
    ):
        if 0 < factor <= 1:
            yield (
                f"learner.guards.{name} must be above 1, got {factor:g} (half of all steps are "
                "above the median: use 10, or 0 for no limit)"
            )
    if guards.max_skipped < 1:
        yield f"learner.guards.max_skipped must be >= 1, got {guards.max_skipped} (use 3)"
    if guards.digest_every < 0:
        yield f"learner.guards.digest_every must be >= 0, got {guards.digest_every} (0: never)"
    if config.learner.recorded_steps < 0:
        yield (
            f"learner.recorded_steps must be >= 0, got {config.learner.recorded_steps} (0 keeps "
            "none, 100 to start with)"
        )
    if not 0 <= config.learner.peak_tflops < math.inf:
        yield (
            f"learner.peak_tflops must be a finite number >= 0, got {config.learner.peak_tflops} "
            "(0 looks the device up)"
        )
