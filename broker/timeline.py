"""Incarnations of the policy and the age of tokens sampled on a branch that was lost.

Weight versions form a tree. A learner that restarts from checkpoint ``c`` and cannot reproduce what
it had published opens a new incarnation there; everything it had published after ``c`` is a branch
that no longer leads to the current weights.
"""

from __future__ import annotations

import msgspec

from common.types import Count, Record, WeightVersion


class Fork(Record, frozen=True):
    """``incarnation`` began with the weights of ``policy_step`` of the one before it."""

    incarnation: Count
    policy_step: Count


class Timeline(msgspec.Struct, frozen=True):
    """The current incarnation and where each one branched off."""

    incarnation: int = 0
    forks: tuple[Fork, ...] = ()

    def forked(self, incarnation: int, policy_step: int) -> Timeline:
        """The timeline after ``incarnation`` was opened at ``policy_step``."""
        fork = Fork(incarnation=incarnation, policy_step=policy_step)
        return Timeline(incarnation, (*self.forks, fork))

    def effective_step(self, version: WeightVersion) -> int:
        """The step on the current branch that is as old as ``version``; may be negative.

        With ``c`` the step where the current branch left that of ``version``, a version ``v > c``
        is ``(now - c) + (v - c)`` training batches away from the weights of step ``now``: as far as
        step ``2c - v`` would be.
        """
        later = [f.policy_step for f in self.forks if f.incarnation > version.incarnation]
        branch = min(later, default=version.policy_step)
        return min(version.policy_step, 2 * branch - version.policy_step)
