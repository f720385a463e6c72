"""Everything that one training run holds, built once, and the moves that change it.

The order of a step is the protocol: weights change, the step record becomes durable, the broker
commits the step, the weights are published. Killed between any two of these, a restarted learner
replays the record and arrives at the same bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from common.config import Config
from common.config_loader import to_toml
from common.lifecycle import Process
from common.messages import CommitCheckpoint, CommitStep
from common.payloads.wiring import SyncPayloadClient
from common.torch.weight_files import prune_versions
from common.types import INITIAL_VERSION, Role, WeightVersion
from learner.broker_client import BrokerClient
from learner.canary import compute_canary
from learner.checkpoint import (
    CheckpointState,
    load_checkpoint,
    named_references,
    save_checkpoint,
)
from learner.digests import policy_digest
from learner.group_source import GroupSource, PayloadFetcher
from learner.lineage import Lineage
from learner.mesh import Mesh
from learner.model import PolicyModel, load_policy
from learner.optim import build_adamw, set_learning_rate
from learner.publishing import Publisher
from learner.reference import Reference
from learner.schedule import learning_rate
from learner.step_metrics import Stopwatch, Telemetry
from learner.step_record import StepRecord, write_step_record
from learner.update import StepOutcome, TrainingBatch, Updater


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """The learner of one run on one rank; every method is a collective."""

    process: Process
    channel: BrokerClient
    mesh: Mesh
    publisher: Publisher
    policy: PolicyModel
    optimizer: torch.optim.Optimizer
    updater: Updater
    source: GroupSource
    stopwatch: Stopwatch
    telemetry: Telemetry | None
    """On rank 0 only."""
    lineage: Lineage
    reference: Reference | None
    """None without a KL term."""
    policy_step: int = 0
    saved_step: int = -1
    """``policy_step`` of the newest checkpoint."""

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.process.config

    @property
    def reference_version(self) -> WeightVersion | None:
        """The reference policy that the next step is computed with, None without a KL term."""
        return None if self.reference is None else self.reference.version

    def apply(self, batch: TrainingBatch) -> StepOutcome:
        """Turn an accumulated batch into new weights, unless it is not finite."""
        set_learning_rate(self.optimizer, learning_rate(self.config.learner, batch.policy_step))
        return self.updater.apply(batch)

    def digest(self) -> str:
        """Digest of the float32 weights as they are."""
        return policy_digest(self.policy, self.mesh)

    def record_and_commit(self, batch: TrainingBatch) -> None:
        """Make the step durable here, then at the broker; the policy is then one step further."""
        digest = self.digest()
        if self.mesh.is_main:
            record = StepRecord(
                incarnation=self.lineage.incarnation,
                policy_step=batch.policy_step,
                group_ids=tuple(batch.group_ids),
                chunks=tuple(batch.layouts),
                world_size=self.mesh.world_size,
                weight_digest=digest,
                reference_version=self.reference_version,
            )
            write_step_record(self.process.paths.step_records, record)
            self.channel.request(
                CommitStep(
                    incarnation=record.incarnation,
                    policy_step=record.policy_step,
                    group_ids=record.group_ids,
                )
            )
        self.policy_step = batch.policy_step + 1

    def renew_reference(self) -> None:
        """Make the policy the reference where ``learner.reference_reset_every`` says so."""
        every = self.config.learner.reference_reset_every
        if self.reference is not None and every and self.policy_step % every == 0:
            self.reference.become(self.policy, self.lineage.version(self.policy_step))
            self.expect_reference()

    def expect_reference(self) -> None:
        """Groups come with the log-probabilities of this reference, where verifiers compute them.

        The broker learns it by :meth:`ReferenceSource.tell`, once no replay is left.
        """
        if self.config.has_verifier_reference:
            self.source.references.version = self.reference_version

    def publish(self) -> None:
        """Hand the weights as they are to the weight plane."""
        with self.stopwatch.stage("publish_wait"):
            self.publisher.wait_for_room()
        with self.stopwatch.stage("publish"):
            tolerance = self.config.weights.canary_tolerance
            canary = compute_canary(self.policy, self.mesh, tolerance=tolerance)
            self.publisher.publish(self.lineage.version(self.policy_step), self.policy, canary)

    def checkpoint(self) -> None:
        """Write a checkpoint of the current step and let the broker forget what it covers."""
        if self.saved_step != self.policy_step:
            with self.stopwatch.stage("checkpoint"):
                save_checkpoint(
                    self.process.paths.checkpoints,
                    self.policy,
                    self.optimizer,
                    self._checkpoint_state(),
                    self.mesh,
                    keep=self.config.learner.keep_checkpoints,
                )
            self._drop_old_references()
        self.saved_step = self.policy_step
        self.commit_checkpoint()

    def commit_checkpoint(self) -> None:
        """Tell the broker which steps are safe; repeating it changes nothing."""
        if self.mesh.is_main:
            self.channel.request(CommitCheckpoint(policy_step=self.saved_step))

    def restore(self, policy_step: int) -> None:
        """Go back to the checkpoint of ``policy_step``."""
        directory = self.process.paths.checkpoints
        state = load_checkpoint(directory, policy_step, self.policy, self.optimizer, self.mesh)
        self.policy_step = self.saved_step = policy_step
        if self.reference is not None:
            self.reference.go_back(state.reference_version)
            self.expect_reference()
        if self.mesh.is_main and state.config_digest != config_digest(self.config):
            self.process.log.warning(
                "configuration changed since the checkpoint", checkpoint=policy_step
            )

    def _checkpoint_state(self) -> CheckpointState:
        return CheckpointState(
            policy_step=self.policy_step,
            incarnation=self.lineage.incarnation,
            seed=self.config.run.seed,
            world_size=self.mesh.world_size,
            optimizer_steps=self.policy_step,
            weight_digest=self.digest(),
            config_digest=config_digest(self.config),
            reference_version=self.reference_version or INITIAL_VERSION,
        )

    def _drop_old_references(self) -> None:
        """Keep the references that a checkpoint goes on with."""
        if self.mesh.is_main and self.reference is not None:
            named = named_references(self.process.paths.checkpoints)
            prune_versions(self.process.paths.references, 1, named)


def build_run(
    process: Process, channel: BrokerClient, mesh: Mesh, publisher: Publisher
) -> TrainingRun:
    """Load the initial policy and everything around it; no step is taken."""
    config = process.config
    torch.set_num_threads(config.learner.num_threads)
    path, max_length = Path(config.model.path), config.model.max_length
    policy = load_policy(path, mesh, max_length=max_length, settings=config.learner)
    reference = _reference(process, mesh)
    weights = [weight for _, weight in policy.named_weights()]
    optimizer = build_adamw(
        weights,
        betas=config.learner.betas,
        weight_decay=config.learner.weight_decay,
        decay_on=config.learner.weight_decay_on,
        moments=config.learner.optimizer_dtype,
    )
    run = TrainingRun(
        process=process,
        channel=channel,
        mesh=mesh,
        publisher=publisher,
        policy=policy,
        optimizer=optimizer,
        updater=Updater(
            policy, optimizer, config, mesh, None if reference is None else reference.model
        ),
        source=GroupSource(
            channel,
            mesh,
            config,
            process.stop,
            policy.vocab_size,
            _payloads(process, channel),
            attention_ratio=policy.attention_ratio,
        ),
        stopwatch=Stopwatch(),
        telemetry=Telemetry(config, process.paths, process.metrics) if mesh.is_main else None,
        lineage=Lineage(),
        reference=reference,
    )
    run.expect_reference()
    return run


def _reference(process: Process, mesh: Mesh) -> Reference | None:
    """The initial reference policy; its model only where this learner computes with it."""
    config = process.config
    if config.learner.loss.kl_coefficient <= 0:
        return None

    def load() -> PolicyModel:
        path = Path(config.model.path)
        model = load_policy(path, mesh, max_length=config.model.max_length, settings=config.learner)
        return model.requires_grad_(False)

    model = None if config.has_verifier_reference else load()
    return Reference(root=process.paths.references, mesh=mesh, load_initial=load, model=model)


def _payloads(process: Process, channel: BrokerClient) -> PayloadFetcher | None:
    """Fetches what stores and actors hold; it ends with the process."""
    if process.config.stores.payloads == "broker":
        return None
    return SyncPayloadClient(process.config, channel.request, Role.LEARNER, process.name)


def config_digest(config: Config) -> str:
    """16 hexadecimal digits of the resolved configuration."""
    return hashlib.sha256(to_toml(config).encode()).hexdigest()[:16]
