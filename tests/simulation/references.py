"""The oracle of reference log-probabilities: which were promised, and of which reference."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from broker.ledger import Ledger
from common.codec import Buffer
from common.messages import References
from common.types import (
    ReferenceHeader,
    RolloutHeader,
    RolloutId,
    VerifiedGroup,
    WeightVersion,
)
from tests.simulation.trace import Violation


class ReferenceKeeper(Protocol):
    """What is asked of a journal that came back."""

    def reference(
        self, rollout_id: RolloutId, version: WeightVersion
    ) -> tuple[ReferenceHeader, Buffer]:
        """Log-probabilities under the reference ``version``."""
        ...


def reference_frame(rollout: RolloutHeader, version: WeightVersion) -> bytes:
    """Log-probabilities that belong to this rollout under this reference, and to nothing else."""
    name = f"{rollout.rollout_id} {rollout.actor} {rollout.generation_s} {version}"
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return (-random.random(rollout.num_completion_tokens, dtype=np.float32)).tobytes()


@dataclass
class ReferenceBooks:
    """What verifiers and the learner were told about references."""

    epoch: int = 0
    """Grows whenever the learner names a reference: what was promised before may be void."""
    num_passes_again: int = 0
    _named: WeightVersion | None = None
    _kept: dict[RolloutId, WeightVersion] = field(default_factory=dict)

    def naming(self, version: WeightVersion) -> None:
        """The learner is about to name its reference."""
        if version != self._named:
            self.epoch += 1
            self._named = version
            self._kept.clear()

    def accepted(self, rollout_id: RolloutId, version: WeightVersion, epoch: int) -> None:
        """A verifier was told that its log-probabilities are kept."""
        if epoch == self.epoch and version == self._named:
            self._kept[rollout_id] = version

    def forget(self, group_id: int) -> None:
        """Whatever was said about this group is void."""
        for rollout_id in [known for known in self._kept if known.group_id == group_id]:
            del self._kept[rollout_id]

    def check_group(self, group: VerifiedGroup, wanted: WeightVersion) -> None:
        """A group that was handed over brings log-probabilities of this reference and no other."""
        for item in group.rollouts:
            if item.reference_version != wanted:
                text = f"reference {item.reference_version} came with {item.rollout.rollout_id}"
                raise Violation("reference", f"{text} instead of {wanted}", group.group_id)

    def check_content(
        self,
        group: VerifiedGroup,
        reply: References,
        frames: Sequence[Buffer],
        wanted: WeightVersion,
    ) -> None:
        """Log-probabilities that came are those of these rollouts under this reference."""
        for item, header, frame in zip(group.rollouts, reply.references, frames, strict=True):
            is_right = bytes(frame) == reference_frame(item.rollout, wanted)
            if header.reference_version != wanted or not is_right:
                text = f"{item.rollout.rollout_id} came with other log-probabilities than were sent"
                raise Violation("reference", text, group.group_id)

    def check_recovered(self, ledger: Ledger, keeper: ReferenceKeeper) -> None:
        """A broker came back: what was acknowledged is there, what it counts on can be read."""
        for rollout_id, version in self._kept.items():
            group = ledger.groups.get(rollout_id.group_id)
            if group is not None and group.references.get(rollout_id.index) != version:
                text = f"log-probabilities of {rollout_id} were acknowledged"
                raise Violation("lost", text, rollout_id.group_id)
        for group in ledger.groups.values():
            for index, version in group.references.items():
                rollout = group.indices[index].rollout
                assert rollout is not None
                _, frame = keeper.reference(rollout.rollout_id, version)
                if bytes(frame) != reference_frame(rollout, version):
                    text = f"log-probabilities of {rollout.rollout_id} came back as others"
                    raise Violation("reference", text, group.group_id)
