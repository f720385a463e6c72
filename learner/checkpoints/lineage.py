"""Incarnations of the weights, and how old a token is when its branch of them was lost.

A restarted learner that cannot reproduce weights which it had published goes on from an earlier
step under a new incarnation. The steps after that point are a lost branch: rollouts sampled there
are as far from the policy as the way back to the fork and forward again.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from common.errors import CheckpointError
from common.files import write_atomically
from common.types import Count, WeightVersion


class Fork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``incarnation`` began with the weights of ``policy_step``."""

    incarnation: Count
    policy_step: Count


class Lineage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All forks of a run, oldest first."""

    forks: tuple[Fork, ...] = ()

    @property
    def incarnation(self) -> int:
        """The incarnation that is trained now; a run begins with 0."""
        return self.forks[-1].incarnation if self.forks else 0

    def forked(self, policy_step: int) -> Lineage:
        """This lineage with a new incarnation that begins at ``policy_step``."""
        fork = Fork(incarnation=self.incarnation + 1, policy_step=policy_step)
        return Lineage(forks=(*self.forks, fork))

    def version(self, policy_step: int) -> WeightVersion:
        """The version of the current branch at ``policy_step``."""
        return WeightVersion(incarnation=self.incarnation, policy_step=policy_step)

    def incarnation_at(self, policy_step: int) -> int:
        """The incarnation that computed the batch at ``policy_step`` on the current branch."""
        begun = [fork.incarnation for fork in self.forks if fork.policy_step <= policy_step]
        return begun[-1] if begun else 0

    def is_lost(self, version: WeightVersion) -> bool:
        """True when ``version`` lies on a branch that a later incarnation abandoned."""
        return self._common_step(version) < version.policy_step

    def lag(self, version: WeightVersion, policy_step: int) -> int:
        """Policy lag of a token of ``version`` in the batch computed at ``policy_step``.

        ``policy_step - version.policy_step`` on the current branch. On a lost one, with a the last
        step that both branches share: (policy_step - a) + (version.policy_step - a).
        """
        shared = self._common_step(version)
        return (policy_step - shared) + (version.policy_step - shared)

    def _common_step(self, version: WeightVersion) -> int:
        later = (fork.policy_step for fork in self.forks if fork.incarnation > version.incarnation)
        return min([version.policy_step, *later])


def read_lineage(path: Path) -> Lineage:
    """The lineage of a run; one without forks where there is no file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Lineage)
    except FileNotFoundError:
        return Lineage()
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error} (restore the file: without it a weight version could "
            "be used twice)"
        ) from None


def write_lineage(path: Path, lineage: Lineage) -> None:
    """Make ``lineage`` durable, before any version of a new incarnation exists."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(lineage)) + b"\n")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror} (free space on that disk and start again)"
        ) from None
