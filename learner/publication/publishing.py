"""What the training loop asks of the weight plane (hop: learner -> actor weights)."""

from __future__ import annotations

from typing import Protocol

from common.types import WeightVersion
from common.weight_layout import Canary
from learner.models.model import PolicyModel


class Publisher(Protocol):
    """Takes weights out of the training loop; every method is a collective over all ranks."""

    def publish(self, version: WeightVersion, policy: PolicyModel, canary: Canary) -> None:
        """Copy the weights as they are now and return; the transfer goes on in the background.

        ``canary`` holds the learner's own log-probabilities under exactly these weights.
        """
        ...

    def wait_for_room(self) -> None:
        """Return once at most one publish is on its way, so that publication cannot fall behind."""
        ...

    def close(self) -> None:
        """Finish or abandon what is in flight; the newest published version stays pullable."""
        ...
