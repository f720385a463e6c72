"""Puts a training run together: models, optimizers and everything around them, from one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.config import LoraConfig
from common.lifecycle import Process
from common.payloads.wiring import SyncPayloadClient
from common.types import EvictReason, Role
from learner.batches.group_source import GroupSource
from learner.batches.payload_source import PayloadFetcher
from learner.broker_client import BrokerClient, Commits
from learner.checkpoints.checkpoint_writer import CheckpointWriter
from learner.checkpoints.digests import base_digest
from learner.health.findings import MAX_NAMED, Finding
from learner.health.watch import StepWatch
from learner.metrics.telemetry import Telemetry
from learner.models.mesh import Mesh
from learner.models.model import AdaptersOff, PolicyModel, load_policy
from learner.models.reference import Reference
from learner.publication.publishing import Publisher
from learner.run_state import TrainingRun
from learner.step.critic_update import build_critic
from learner.step.optim import configured_adamw
from learner.step.update import Updater


def build_run(
    process: Process, channel: BrokerClient, mesh: Mesh, publisher: Publisher
) -> TrainingRun:
    """Load the initial policy and everything around it; no step is taken."""
    torch.set_num_threads(process.config.learner.num_threads)
    policy = _load(process, mesh)
    reference = _reference(process, mesh, policy)
    optimizer = configured_adamw(policy, process.config.learner)
    run = TrainingRun(
        process=process,
        channel=channel,
        commits=Commits(channel),
        mesh=mesh,
        publisher=publisher,
        policy=policy,
        optimizer=optimizer,
        updater=_updater(process, mesh, policy, optimizer, reference),
        source=_source(process, channel, mesh, policy),
        writer=_writer(process, mesh),
        telemetry=_telemetry(process, mesh),
        reference=reference,
        base_digest=base_digest(policy, mesh),
        watch=StepWatch(process.config.learner),
    )
    run.expect_reference()
    return run


def _load(process: Process, mesh: Mesh) -> PolicyModel:
    config = process.config
    return load_policy(
        Path(config.model.path),
        mesh,
        max_length=config.model.max_length,
        settings=config.learner,
        seed=config.run.seed,
    )


def _reference(process: Process, mesh: Mesh, policy: PolicyModel) -> Reference | None:
    """The initial reference policy; its model only where this learner computes with it."""
    config = process.config
    if config.learner.loss.kl_coefficient <= 0:
        return None

    def load() -> PolicyModel:
        path = Path(config.model.path)
        settings = replace(config.learner, lora=LoraConfig(), router_replay=False)
        model = load_policy(path, mesh, max_length=config.model.max_length, settings=settings)
        return model.requires_grad_(False)

    model: PolicyModel | AdaptersOff | None = None
    if not config.has_verifier_reference:
        stays_initial = policy.has_adapters and not config.learner.reference_reset_every
        model = AdaptersOff(policy) if stays_initial else load()
    return Reference(root=process.paths.references, mesh=mesh, load_initial=load, model=model)


def _updater(
    process: Process,
    mesh: Mesh,
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
    reference: Reference | None,
) -> Updater:
    config = process.config
    model = None if reference is None else reference.model
    return Updater(policy, optimizer, config, mesh, model, build_critic(config, mesh))


def _source(
    process: Process, channel: BrokerClient, mesh: Mesh, policy: PolicyModel
) -> GroupSource:
    source = GroupSource(
        channel,
        mesh,
        process.config,
        process.stop,
        policy.vocab_size,
        _payloads(process, channel),
        attention_ratio=policy.attention_ratio,
        hidden_attention_ratio=policy.hidden_attention_ratio,
        routing=policy.routing,
    )

    def log_findings(reason: EvictReason, findings: Sequence[Finding]) -> None:
        messages = [finding.message() for finding in findings[:MAX_NAMED]]
        process.log.warning("groups evicted", reason=reason.value, findings=messages)

    if mesh.is_main:
        source.on_findings = log_findings
    return source


def _payloads(process: Process, channel: BrokerClient) -> PayloadFetcher | None:
    """Fetches what stores and actors hold; it ends with the process."""
    if process.config.stores.payloads == "broker":
        return None
    return SyncPayloadClient(process.config, channel.request, Role.LEARNER, process.name)


def _writer(process: Process, mesh: Mesh) -> CheckpointWriter:
    keep = process.config.learner.keep_checkpoints
    return CheckpointWriter(process.paths.checkpoints, mesh, keep=keep)


def _telemetry(process: Process, mesh: Mesh) -> Telemetry | None:
    """On rank 0 only."""
    if not mesh.is_main:
        return None
    return Telemetry(process.config, process.paths, process.metrics, process.log)
