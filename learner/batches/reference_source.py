"""Reference log-probabilities that verifiers computed (hop: broker -> learner).

The learner names the reference that it trains with; the broker then hands over only groups whose
log-probabilities it has of that one. What comes of another is never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.arrays import Float32Array, logprobs_from_frame
from common.errors import DataError, FatalError
from common.messages import FetchReferences, References, SetReference
from common.types import RolloutId, VerifiedGroup, WeightVersion
from learner.batches.screening import judged
from learner.broker_client import BrokerClient, in_portions
from learner.models.mesh import Mesh


class ReferenceSource:
    """What this rank trains with; while :attr:`version` is None, the learner computes its own."""

    def __init__(self, channel: BrokerClient, mesh: Mesh) -> None:
        self._channel = channel
        self._mesh = mesh
        self._told: WeightVersion | None = None
        self.version: WeightVersion | None = None
        """Reference policy whose log-probabilities every group must bring."""

    def tell(self) -> None:
        """Have groups come with :attr:`version` from here on; the broker is told once.

        Groups with log-probabilities of another reference come when verifiers have computed these.
        """
        if self.version == self._told:
            return
        if self._mesh.is_main and self.version is not None:
            self._channel.request(SetReference(version=self.version))
        self._told = self.version

    def others_in(self, group: VerifiedGroup) -> list[str]:
        """References other than :attr:`version` that ``group`` brings."""
        if self.version is None:
            return []
        versions = {str(item.reference_version) for item in judged(group)}
        return sorted(versions - {str(self.version)})

    def check(self, group: VerifiedGroup) -> None:
        """Raise :class:`FatalError` where the broker breaks what it was told."""
        if others := self.others_in(group):
            raise FatalError(
                f"group {group.group_id} must come with log-probabilities of the reference "
                f"{self.version}, got {', '.join(others)} (start broker and learner from one "
                'configuration with learner.reference = "verifier")'
            )

    def fetch(self, wanted: Sequence[RolloutId]) -> Mapping[RolloutId, Float32Array | None]:
        """Log-probabilities [L] in nats by rollout, None where they are no possible values.

        Empty while :attr:`version` is None. Raises :class:`FatalError` where the broker keeps none
        of that version.
        """
        found: dict[RolloutId, Float32Array | None] = {}
        if self.version is None:
            return found
        for part in in_portions(wanted):
            decoded = self._channel.request(FetchReferences(rollout_ids=tuple(part)))
            reply = decoded.message
            kept = reply.references if isinstance(reply, References) else ()
            if [header.reference_version for header in kept] != [self.version] * len(part):
                raise FatalError(
                    f"the broker does not hold log-probabilities of the reference {self.version} "
                    f"for {part[0]}... (report this with the run's journal)"
                )
            found.update(zip(part, map(_logprobs_or_none, decoded.frames), strict=True))
        return found


def _logprobs_or_none(frame: memoryview) -> Float32Array | None:
    try:
        return logprobs_from_frame(frame, "reference_logprobs")
    except DataError:
        return None
