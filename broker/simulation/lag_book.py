"""The world's own books on policy lag: which weights descend from which, and what was trained.

Kept apart from the broker's arithmetic, so that the two can disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.types import VerifiedGroup, WeightVersion


@dataclass(slots=True)
class Lineage:
    """The tree of weights; ``trunk[k]`` is the node of the weights of policy_step ``k``."""

    incarnation: int = 0
    trunk: list[int] = field(default_factory=lambda: [0])
    _parents: list[int] = field(default_factory=lambda: [0])
    _nodes: dict[tuple[int, int], int] = field(default_factory=lambda: {(0, 0): 0})

    @property
    def policy_step(self) -> int:
        """Training batches in the current weights."""
        return len(self.trunk) - 1

    @property
    def version(self) -> WeightVersion:
        """The current weights."""
        return WeightVersion(incarnation=self.incarnation, policy_step=self.policy_step)

    def advance(self) -> None:
        """One more batch is trained."""
        self._parents.append(self.trunk[-1])
        self.trunk.append(len(self._parents) - 1)
        self._name_tip()

    def fork(self, policy_step: int) -> None:
        """The weights after ``policy_step`` are lost; training goes on there differently."""
        self.incarnation += 1
        del self.trunk[policy_step + 1 :]
        self._name_tip()

    def age(self, version: WeightVersion) -> int:
        """Training batches between ``version`` and the current weights, along the tree."""
        node = self._nodes[version.incarnation, version.policy_step]
        up = 0
        while (depth := self._depth_on_trunk(node)) is None:
            node, up = self._parents[node], up + 1
        return up + self.policy_step - depth

    def _name_tip(self) -> None:
        self._nodes[self.incarnation, self.policy_step] = self.trunk[-1]

    def _depth_on_trunk(self, node: int) -> int | None:
        # Nodes are numbered as they come, so the trunk is sorted.
        low, high = 0, len(self.trunk)
        while low < high:
            middle = (low + high) // 2
            if self.trunk[middle] < node:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.trunk) and self.trunk[low] == node else None


@dataclass(slots=True)
class LagBook:
    """Lags of everything that was trained, by the spans that the actors reported."""

    at_start: Counter[int] = field(default_factory=Counter)
    """Rollouts by the lag of their first token."""
    oldest: Counter[int] = field(default_factory=Counter)
    """Groups by the lag of their oldest token: what the bound is on."""
    tokens: Counter[int] = field(default_factory=Counter)
    """Tokens by lag."""

    def note(self, groups: Iterable[VerifiedGroup], lineage: Lineage) -> float:
        """``groups`` are trained in the batch computed on the current weights.

        Returns the mean lag of their rollouts at the first token.
        """
        age: dict[WeightVersion, int] = {}
        at_start: Counter[int] = Counter()
        for group in groups:
            for item in group.rollouts:
                rollout = item.rollout
                spans = rollout.version_spans
                ends = [span.start for span in spans[1:]] + [rollout.num_completion_tokens]
                for span, end in zip(spans, ends, strict=True):
                    if span.version not in age:
                        age[span.version] = lineage.age(span.version)
                    self.tokens[age[span.version]] += end - span.start
                at_start[age[spans[0].version]] += 1
            versions = {span.version for i in group.rollouts for span in i.rollout.version_spans}
            self.oldest[max(age[version] for version in versions)] += 1
        self.at_start += at_start
        return mean_lag(at_start)

    @property
    def largest(self) -> int:
        """The largest lag of any trained token."""
        return max(self.oldest, default=0)


def mean_lag(lags: Counter[int]) -> float:
    """Mean over a counter of lags."""
    return sum(lag * n for lag, n in lags.items()) / max(sum(lags.values()), 1)
