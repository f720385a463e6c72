"""Everything that one training run holds, and the moves that change it.

The order of a step is the protocol: weights change, the step record becomes durable, the broker
commits the step, the weights are published. Killed between any two of these, a restarted learner
replays the record and arrives at the same bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from common.config import Config
from common.errors import CheckpointError
from common.lifecycle import Process
from common.messages import CommitCheckpoint, CommitStep
from common.torch.weight_files import prune_versions
from common.types import INITIAL_VERSION, WeightVersion
from learner.batches.group_source import GroupSource
from learner.broker_client import BrokerClient, Commits
from learner.checkpoints.checkpoint import (
    CheckpointState,
    checkpoint_path,
    config_digest,
    load_checkpoint,
    named_references,
    oldest_checkpoint,
)
from learner.checkpoints.checkpoint_tensors import Trainees
from learner.checkpoints.checkpoint_writer import CheckpointWriter
from learner.checkpoints.digests import policy_digest
from learner.checkpoints.lineage import Lineage
from learner.checkpoints.step_record import StepRecord, StepStatistics, write_step_record
from learner.health.watch import StepWatch
from learner.metrics.stopwatch import Stopwatch
from learner.metrics.telemetry import Telemetry
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel
from learner.models.reference import Reference
from learner.publication.canary import compute_canary
from learner.publication.publishing import Publisher
from learner.recorder.flight_recorder import prune_recordings, recording_path, write_recording
from learner.step.optim import set_learning_rate
from learner.step.schedule import learning_rate
from learner.step.training_batch import StepOutcome, TrainingBatch
from learner.step.update import RefuseStep, Updater


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """The learner of one run on one rank; every method is a collective."""

    process: Process
    channel: BrokerClient
    commits: Commits
    mesh: Mesh
    publisher: Publisher
    policy: PolicyModel
    optimizer: torch.optim.Optimizer
    updater: Updater
    source: GroupSource
    writer: CheckpointWriter
    telemetry: Telemetry | None
    """On rank 0 only."""
    reference: Reference | None
    """None without a KL term."""
    base_digest: str = ""
    """Of the frozen weights under adapters; "" where all weights are trained."""
    policy_step: int = 0
    saved_step: int = -1
    """``policy_step`` of the newest checkpoint that all ranks know to be whole."""
    committed_step: int = -1
    """``policy_step`` of the newest checkpoint that the broker knows of."""
    num_failed_checkpoints: int = 0
    """In a row."""
    watch: StepWatch = field(default_factory=StepWatch)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.process.config

    @property
    def reference_version(self) -> WeightVersion | None:
        """The reference policy that the next step is computed with, None without a KL term."""
        return None if self.reference is None else self.reference.version

    def apply(self, batch: TrainingBatch, refuse: RefuseStep | None = None) -> StepOutcome:
        """Turn an accumulated batch into new weights, unless it is not finite or refused."""
        rate = learning_rate(self.config.learner, batch.policy_step)
        set_learning_rate(self.optimizer, rate)
        if self.updater.critic is not None:
            self.updater.critic.follow(rate / self.config.learner.learning_rate)
        return self.updater.apply(batch, refuse)

    def digest(self) -> str:
        """Digest of the float32 weights as they are, those of a critic included."""
        digest = policy_digest(self.policy, self.mesh)
        if self.updater.critic is None:
            return digest
        both = digest + policy_digest(self.updater.critic.model, self.mesh)
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def record_and_commit(
        self, batch: TrainingBatch, statistics: StepStatistics | None = None
    ) -> None:
        """Make the step durable here, then at the broker; the policy is then one step further."""
        self._keep_recording(batch)
        record = self._step_record(batch, statistics)
        if self.mesh.is_main:
            write_step_record(self.process.paths.step_records, record)
            self.commits.tell(
                CommitStep(
                    incarnation=record.incarnation,
                    policy_step=record.policy_step,
                    group_ids=record.group_ids,
                )
            )
        self.policy_step = batch.policy_step + 1
        self.commit_checkpoint()

    def _step_record(self, batch: TrainingBatch, statistics: StepStatistics | None) -> StepRecord:
        return StepRecord(
            incarnation=self.lineage.incarnation,
            policy_step=batch.policy_step,
            group_ids=tuple(batch.group_ids),
            chunks=tuple(batch.layouts),
            world_size=self.mesh.world_size,
            weight_digest=self.digest(),
            reference_version=self.reference_version,
            statistics=statistics,
        )

    def _keep_recording(self, batch: TrainingBatch) -> None:
        """Keep this rank's rollouts for a replay; a disk that is full costs the recording only."""
        keep = self.config.learner.recorded_steps
        if not keep:
            return
        directory = self.process.paths.recordings
        step, rank = batch.policy_step, self.mesh.rank
        path = recording_path(directory, step, self.lineage.incarnation, rank)
        try:
            write_recording(path, batch.chunks)
        except OSError as error:
            self.process.log.warning(
                "recording cannot be written", path=str(path), reason=error.strerror
            )
        if self.mesh.is_main:
            oldest = oldest_checkpoint(self.process.paths.checkpoints)
            prune_recordings(directory, keep=keep, oldest_checkpoint=oldest or 0)

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

    @property
    def trainees(self) -> Trainees:
        """What a checkpoint holds beside the state of the run."""
        critic = self.updater.critic
        critics = {} if critic is None else {"critic": (critic.model, critic.optimizer)}
        return {"policy": (self.policy, self.optimizer), **critics}

    def begin_checkpoint(self) -> None:
        """Copy the current step and go on; it is written in the background, one at a time."""
        if self.policy_step in (self.saved_step, self.writer.step):
            return
        self.settle_checkpoint()
        with self.stopwatch.stage("checkpoint"):
            self.writer.begin(self.trainees, self._checkpoint_state())

    def checkpoint(self) -> None:
        """Write a checkpoint of the current step and let the broker forget what it covers.

        Raises :class:`CheckpointError` when it cannot be written.
        """
        self.begin_checkpoint()
        self.settle_checkpoint(must_succeed=True)
        self.commit_checkpoint()

    def settle_checkpoint(self, *, must_succeed: bool = False) -> None:
        """Wait until the checkpoint in flight is whole or has failed.

        Training goes on over ``learner.max_failed_checkpoints`` - 1 failures in a row: the step
        records and the older checkpoints still hold everything. Raises :class:`CheckpointError` on
        every rank after one more, or at once if it ``must_succeed``.
        """
        step = self.writer.step
        if step is None:
            return
        with self.stopwatch.stage("checkpoint_wait"):
            problem = self.writer.settle()
        if problem:
            self._report_failure(step, problem, must_succeed)
            return
        self.saved_step, self.num_failed_checkpoints = step, 0
        self._drop_old_references()
        self.commit_checkpoint()
        if self.mesh.is_main:
            self.process.metrics.set("headrace_checkpoint_step", step)
            self.process.metrics.observe("headrace_checkpoint_seconds", self.writer.write_s)

    def _report_failure(self, step: int, problem: str, must_succeed: bool) -> None:
        self.num_failed_checkpoints += 1
        if self.mesh.is_main:
            self.process.metrics.inc("headrace_checkpoint_failures_total")
            self.process.log.error(
                "checkpoint cannot be written",
                policy_step=step,
                reason=problem,
                newest=self.saved_step,
            )
        limit = self.config.learner.max_failed_checkpoints
        if must_succeed or self.num_failed_checkpoints >= limit:
            path = checkpoint_path(self.process.paths.checkpoints, step)
            raise CheckpointError(
                f"{path}: the checkpoint cannot be written: {problem} (free space on that disk and "
                "start again: older checkpoints and the step records are intact)"
            )

    def commit_checkpoint(self) -> None:
        """Tell the broker which steps are safe, once they are; only rank 0 does."""
        if not self.mesh.is_main:
            return
        newest = self.writer.step if self.writer.is_whole else None
        newest = self.saved_step if newest is None else newest
        if newest > self.committed_step:
            self.commits.tell(CommitCheckpoint(policy_step=newest))
            self.committed_step = newest

    def restore(self, policy_step: int) -> None:
        """Go back to the checkpoint of ``policy_step``."""
        directory = self.process.paths.checkpoints
        state = load_checkpoint(directory, policy_step, self.trainees, self.mesh)
        path = checkpoint_path(directory, policy_step)
        if state.base_digest != self.base_digest:
            raise CheckpointError(
                f"{path}: its adapters were trained on another "
                "base or with other settings (restore model.path and [learner.lora], or set "
                "another run.directory to train anew)"
            )
        if (found := self.digest()) != state.weight_digest:
            raise CheckpointError(
                f"{path}: weights have digest {found}, the checkpoint says {state.weight_digest} "
                f"(delete {path} to go on from the checkpoint before it)"
            )
        self.policy_step = self.saved_step = policy_step
        self.committed_step = -1
        self.commits.num_journal_events = state.num_journal_events
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
            run_id=self.config.run.id,
            weight_digest=self.digest(),
            config_digest=config_digest(self.config),
            reference_version=self.reference_version or INITIAL_VERSION,
            base_digest=self.base_digest,
            num_journal_events=self.commits.num_journal_events,
        )

    def _drop_old_references(self) -> None:
        """Keep the references that a checkpoint goes on with."""
        if self.mesh.is_main and self.reference is not None:
            named = named_references(self.process.paths.checkpoints)
            prune_versions(self.process.paths.references, 1, named)
