"""Rules for the ``[learner.loss]`` section of a run file: combinations that mean nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from common.config import Config, CriticConfig, LearnerConfig, LossConfig


def loss_rules(config: Config) -> Iterator[str]:
    """What is wrong with ``config.learner.loss``, each with its cure."""
    loss = config.learner.loss
    yield from _number_rules(loss)
    yield from _correction_rules(loss)
    yield from _advantage_rules(loss)
    yield from _update_rules(config.learner)
    yield from _critic_rules(config.learner)
    yield from _process_rules(config)


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


def _update_rules(learner: LearnerConfig) -> Iterator[str]:
    num_rollouts = learner.groups_per_step * learner.group_size
    if learner.updates_per_batch > num_rollouts:
        yield (
            "learner.updates_per_batch must leave an answer for each update of a batch of "
            f"{num_rollouts}, got {learner.updates_per_batch} (raise learner.groups_per_step)"
        )
    if learner.updates_per_batch * learner.epochs_per_batch <= 1:
        return
    if learner.loss.surrogate == "reinforce":
        yield (
            'learner.loss.surrogate = "reinforce" does not notice that the policy moves between '
            "the updates of a batch, got several (set learner.updates_per_batch and "
            "learner.epochs_per_batch to 1)"
        )
    if learner.loss.proximal == "interpolated":
        yield (
            'learner.loss.proximal = "interpolated" counts the lag in batches, not in the updates '
            'of one, got several (set learner.loss.proximal = "policy")'
        )


def _critic_rules(learner: LearnerConfig) -> Iterator[str]:
    critic, loss = learner.critic, learner.loss
    if loss.baseline != "critic":
        if critic != CriticConfig():
            yield (
                'learner.critic belongs to learner.loss.baseline = "critic", got '
                f'"{loss.baseline}" (delete the section, or set the baseline)'
            )
        if learner.group_size < 2:
            yield (
                f"learner.group_size must be >= 2, got {learner.group_size} (a group of one has no "
                'advantage without learner.loss.baseline = "critic")'
            )
        return
    for key in ("discount", "gae_lambda", "value_lambda"):
        if not 0 <= getattr(critic, key) <= 1:
            yield f"learner.critic.{key} must be 0 to 1, got {getattr(critic, key)} (use 1)"
    if loss.advantage_over != "group":
        yield (
            'learner.loss.advantage_over belongs to rewards without a critic, got "'
            f'{loss.advantage_over}" (set learner.critic.whiten = true instead)'
        )
    if learner.dynamic_sampling and learner.group_size < 2:
        yield (
            "learner.dynamic_sampling drops groups of equal rewards, which every group of one is "
            "(set learner.dynamic_sampling = false)"
        )


def _process_rules(config: Config) -> Iterator[str]:
    loss = config.learner.loss
    if loss.supervision != "process":
        return
    terms = config.verifier.rewards
    if len(terms) != 1 or (terms[0].kind or terms[0].name) != "process":
        named = ", ".join(term.name for term in terms) or "none"
        yield (
            'learner.loss.supervision = "process" takes its rewards from the steps that a process '
            f'model scores: verifier.rewards must be the one term "process", got {named} (set it, '
            "and see docs/reward-models.md for its [[verifier.models]])"
        )
    for key, needed in (("baseline", "group-mean"), ("advantage_over", "group")):
        value = getattr(loss, key)
        if value != needed:
            yield (
                'learner.loss.supervision = "process" normalises the steps of a group together, '
                f'got {key} = "{value}" (set learner.loss.{key} = "{needed}")'
            )
    if config.learner.dynamic_sampling:
        yield (
            "learner.dynamic_sampling drops groups whose answers have equal rewards, but their "
            'steps may differ: it is not for learner.loss.supervision = "process" (set it to false)'
        )
