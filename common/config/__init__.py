"""Every setting of a run: one TOML file, one frozen dataclass a section.

``common.config_loader`` reads and checks files; these modules only say what exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config.actor import ActorConfig, WeightsConfig
from common.config.broker import BrokerConfig, StoresConfig
from common.config.guards import AlarmsConfig, GuardsConfig
from common.config.learner import CriticConfig, LearnerConfig, LoraConfig, LossConfig, SftConfig
from common.config.paths import RunPaths
from common.config.prompts import DEFAULT_PROMPT_SET, PromptsConfig, PromptSetConfig
from common.config.run import CollectConfig, ModelConfig, RunConfig, SecurityConfig
from common.config.verifier import MonitorConfig, RewardWeight, VerifierConfig, VerifierModelConfig
from common.mixture import read_mixture

__all__ = [
    "DEFAULT_PROMPT_SET",
    "ActorConfig",
    "AlarmsConfig",
    "BrokerConfig",
    "CollectConfig",
    "Config",
    "CriticConfig",
    "GuardsConfig",
    "LearnerConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "MonitorConfig",
    "PromptSetConfig",
    "PromptsConfig",
    "RewardWeight",
    "RunConfig",
    "RunPaths",
    "SecurityConfig",
    "SftConfig",
    "StoresConfig",
    "VerifierConfig",
    "VerifierModelConfig",
    "WeightsConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    run: RunConfig
    model: ModelConfig
    prompts: PromptsConfig = PromptsConfig()
    broker: BrokerConfig = BrokerConfig()
    security: SecurityConfig = SecurityConfig()
    stores: StoresConfig = StoresConfig()
    actor: ActorConfig = ActorConfig()
    verifier: VerifierConfig = VerifierConfig()
    learner: LearnerConfig = LearnerConfig()
    weights: WeightsConfig = WeightsConfig()
    sft: SftConfig = SftConfig()
    collect: CollectConfig = CollectConfig()

    @property
    def group_size(self) -> int:
        """Completions per prompt: the learner's or the collector's."""
        if self.run.kind == "collect":
            return self.collect.samples_per_prompt
        return self.learner.group_size

    @property
    def max_outstanding_groups(self) -> int:
        """(max_policy_lag + 1) x groups_per_step: more could not meet their deadlines."""
        if self.run.kind == "collect":
            return self.broker.max_outstanding_groups
        return (self.learner.max_policy_lag + 1) * self.learner.groups_per_step

    @property
    def max_rollout_bytes(self) -> int:
        """Arrays of the longest rollout: an id for each token, a log-probability where sampled.

        And where it is recorded, the experts that computed each.
        """
        arrays = 4 * (self.model.max_length + self.actor.max_tokens)
        if not self.records_experts or (mixture := read_mixture(self.model.path)) is None:
            return arrays
        return arrays + self.model.max_length * mixture.record_bytes

    @property
    def records_experts(self) -> bool:
        """Whether actors record which experts computed a token."""
        return self.run.kind == "train" and self.learner.router_replay

    @property
    def has_verifier_reference(self) -> bool:
        """Whether verifiers compute log-probabilities of a reference policy."""
        has_kl = self.run.kind == "train" and self.learner.loss.kl_coefficient > 0
        return has_kl and self.learner.reference == "verifier"

    @property
    def rollouts_per_step(self) -> int:
        """groups_per_step x group_size."""
        return self.learner.groups_per_step * self.learner.group_size
