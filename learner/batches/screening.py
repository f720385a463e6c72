"""Which verified groups may be trained, and what each of their rollouts is worth: pure logic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.arrays import RolloutArrays
from common.config import Config
from common.content_hash import header_hash
from common.errors import FatalError
from common.types import (
    EvictReason,
    RolloutHeader,
    StepReward,
    VerifiedGroup,
    VerifiedRollout,
    WeightVersion,
)
from learner.batches.layout import PlannedRollout
from learner.checkpoints.lineage import Lineage
from learner.health.findings import Finding
from learner.health.guards import is_finite_float32
from learner.objectives.advantages import planned_advantages
from learner.objectives.process import normalized_steps

_TEMPERATURE_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Screen:
    """The rules that a group must pass to be trained at ``policy_step``."""

    config: Config
    lineage: Lineage
    policy_step: int

    def reason_to_evict(self, group: VerifiedGroup) -> EvictReason | None:
        """Why ``group`` cannot be trained, or None when it can.

        Raises :class:`FatalError` when it breaks a promise of broker or actor: a token beyond
        ``learner.max_policy_lag``, weights that do not exist yet, or another temperature. Only
        tokens of a lost branch may be too old without anybody's fault; those groups are stale.
        """
        self._check_temperature(group)
        if self.group_lag(group) > self.config.learner.max_policy_lag:
            oldest = self._oldest_version(group)
            if not self.lineage.is_lost(oldest):
                raise FatalError(self._lag_message(group, oldest))
            return EvictReason.STALE
        if not trainable(group):
            return EvictReason.ALL_MASKED
        if any(self._is_impossible(item) for item in group.rollouts):
            return EvictReason.QUARANTINED
        if self.infinite_advantages(group):
            return EvictReason.NONFINITE
        return None

    def infinite_advantages(self, group: VerifiedGroup) -> list[Finding]:
        """Rollouts whose advantage is no finite float32: rewards that no number can hold."""
        return [
            Finding(
                group_id=group.group_id,
                index=rollout.rollout_id.index,
                quantity="advantage",
                problem=f"{rollout.advantage:g} of the rewards {_rewards(group)}",
            )
            for rollout in self.plan(group)
            if not is_finite_float32([rollout.advantage])
        ]

    def plan(self, group: VerifiedGroup) -> list[PlannedRollout]:
        """Sizes, lag and advantage of every rollout that carries gradient.

        A rollout whose tokens are all masked carries none, but its reward counts for the others.
        """
        items = judged(group)
        rewards = [item.verdict.reward for item in items if item.verdict.reward is not None]
        advantages = planned_advantages(rewards, self.config.learner.loss)
        steps = self._step_advantages(items)
        return [
            PlannedRollout(
                rollout_id=item.rollout.rollout_id,
                num_prompt_tokens=item.rollout.num_prompt_tokens,
                num_completion_tokens=item.rollout.num_completion_tokens,
                advantage=float(advantage),
                lag=self.rollout_lag(item),
                masked_spans=item.masked_spans,
                num_masked_tokens=item.rollout.num_tokens_in(item.masked_spans),
                store=item.rollout.store,
                span_lags=self._span_lags(item.rollout),
                steps=own,
                num_routing_bytes=_routing_bytes(item.rollout),
                header_hash=header_hash(item.rollout) if item.rollout.store else "",
            )
            for item, advantage, own in zip(items, advantages, steps, strict=True)
            if item.num_trained_tokens
        ]

    def group_lag(self, group: VerifiedGroup) -> int:
        """Policy lag of the group's oldest token that is not masked."""
        return max(self.rollout_lag(item) for item in group.rollouts)

    def rollout_lag(self, item: VerifiedRollout) -> int:
        """Policy lag of the oldest token that is not masked; 0 where all are.

        Raises :class:`FatalError` for tokens from the future.
        """
        rollout = item.rollout
        lags = self._span_lags(rollout)
        newest = rollout.newest_version
        if min(lags) < 0 or newest.incarnation > self.lineage.incarnation:
            raise FatalError(
                f"group {rollout.rollout_id.group_id} was sampled by weights {newest}, but the "
                f"learner is at {self.lineage.version(self.policy_step)}: actor {rollout.actor!r} "
                "serves another run's weights (remove the run directory's weights/ and start again)"
            )
        return max((lags[number] for number in item.trained_spans), default=0)

    def _span_lags(self, rollout: RolloutHeader) -> tuple[int, ...]:
        """Policy lag of each version span; negative for tokens from the future."""
        return tuple(
            self.lineage.lag(span.version, self.policy_step) for span in rollout.version_spans
        )

    def _oldest_version(self, group: VerifiedGroup) -> WeightVersion:
        """The version of the oldest token that is not masked."""
        versions = (
            item.rollout.version_spans[number].version
            for item in group.rollouts
            for number in item.trained_spans
        )
        return max(versions, key=lambda version: self.lineage.lag(version, self.policy_step))

    def _check_temperature(self, group: VerifiedGroup) -> None:
        expected = self.config.actor.temperature
        for item in group.rollouts:
            sampled = item.rollout.temperature
            if abs(sampled - expected) > _TEMPERATURE_ROUNDING:
                raise FatalError(
                    f"actor.temperature must be the same everywhere, group {group.group_id} was "
                    f"sampled by {item.rollout.actor!r} at {sampled}, the learner has {expected} "
                    "(start every role from one configuration)"
                )

    def _lag_message(self, group: VerifiedGroup, oldest: WeightVersion) -> str:
        bound = self.config.learner.max_policy_lag
        return (
            f"learner.max_policy_lag must hold for every token: group {group.group_id} in the "
            f"batch at policy_step {self.policy_step} has a token of weights "
            f"{oldest}, lag {self.group_lag(group)} > {bound} (the broker handed it "
            "over too late: report this with the run's journal)"
        )

    def _is_impossible(self, item: VerifiedRollout) -> bool:
        rollout = item.rollout
        length = rollout.num_prompt_tokens + rollout.num_completion_tokens
        if any(step.end >= rollout.num_completion_tokens for step in item.verdict.steps):
            return True
        return rollout.num_prompt_tokens < 1 or length > self.config.model.max_length

    def _step_advantages(self, items: Sequence[VerifiedRollout]) -> list[tuple[StepReward, ...]]:
        """Of every step of each rollout under process supervision, else nothing."""
        loss = self.config.learner.loss
        if loss.supervision == "outcome":
            return [() for _ in items]
        steps = [rewarded_steps(item) for item in items]
        values = normalized_steps(
            [[step.value for step in own] for own in steps],
            std=loss.advantage_std,
            epsilon=loss.advantage_epsilon,
        )
        return [
            tuple(
                StepReward(end=step.end, value=float(value))
                for step, value in zip(own, found, strict=True)
            )
            for own, found in zip(steps, values, strict=True)
        ]


def _rewards(group: VerifiedGroup) -> str:
    return ", ".join(f"{item.verdict.reward:g}" for item in judged(group)[:8])


def trainable(group: VerifiedGroup) -> list[VerifiedRollout]:
    """Judged rollouts with at least one token that is not masked."""
    return [item for item in judged(group) if item.num_trained_tokens > 0]


def judged(group: VerifiedGroup) -> list[VerifiedRollout]:
    """Rollouts with a judged answer of at least one token: those whose rewards are compared."""
    return [
        item
        for item in group.rollouts
        if item.verdict.reward is not None and item.rollout.num_completion_tokens > 0
    ]


def rewarded_steps(item: VerifiedRollout) -> tuple[StepReward, ...]:
    """The steps of a judged answer; one that was judged as a whole, as a single step."""
    if item.verdict.steps or item.verdict.reward is None:
        return item.verdict.steps
    last = item.rollout.num_completion_tokens - 1
    return (StepReward(end=last, value=item.verdict.reward),)


def lag_histogram(groups: Sequence[VerifiedGroup], screen: Screen) -> dict[int, int]:
    """Trained tokens by policy lag: all version spans that are not masked."""
    tokens: dict[int, int] = {}
    for item in (item for group in groups for item in trainable(group)):
        for number in item.trained_spans:
            version = item.rollout.version_spans[number].version
            lag = screen.lineage.lag(version, screen.policy_step)
            tokens[lag] = tokens.get(lag, 0) + item.rollout.num_tokens_in((number,))
    return dict(sorted(tokens.items()))


def has_foreign_tokens(arrays: RolloutArrays, vocab_size: int) -> bool:
    """True when a token id does not exist in the learner's vocabulary."""
    both = (arrays.prompt_token_ids, arrays.completion_token_ids)
    return any(ids.size and int(np.max(ids)) >= vocab_size for ids in both)


def _routing_bytes(rollout: RolloutHeader) -> int:
    return 0 if rollout.routing is None else rollout.routing.frame_bytes()
