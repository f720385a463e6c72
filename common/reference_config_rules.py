"""Rules for the reference policy: who computes it, and when it is replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.config import Config

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?")


def reference_rules(config: Config) -> Iterator[str]:
    """What is wrong with the settings of the reference policy, each with its cure."""
    learner = config.learner
    if not _DEVICE.fullmatch(config.verifier.reference_device):
        yield (
            "verifier.reference_device must be auto, cpu, cuda or cuda:N, got "
            f"{config.verifier.reference_device!r} (use auto)"
        )
    if config.run.kind != "train" or learner.loss.kl_coefficient > 0:
        return
    if learner.reference == "verifier":
        yield (
            'learner.reference = "verifier" needs a KL term to compute log-probabilities for, got '
            f"learner.loss.kl_coefficient = {learner.loss.kl_coefficient:g} (R1 uses 0.001; or "
            "delete the line)"
        )
    if learner.reference_reset_every:
        yield (
            "learner.reference_reset_every replaces the reference of a KL term, got "
            f"{learner.reference_reset_every} with learner.loss.kl_coefficient = "
            f"{learner.loss.kl_coefficient:g} (R1 uses 0.001; or use 0)"
        )
