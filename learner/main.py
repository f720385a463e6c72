"""Puts the learner role together: ranks, channel, weight publisher, training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch.distributed as dist

from common.config import Config
from common.endpoints import read_endpoint
from common.errors import EXIT_INFRA
from common.lifecycle import Process, exit_code_for_errors, role_process
from common.security import client_security
from common.sync_channel import SyncChannel
from common.types import Role
from learner.batches.group_source import Ending
from learner.health.heartbeat import HeartbeatThread
from learner.health.preemption import GracePeriod
from learner.health.rank_watch import RankWatch, meeting_limit
from learner.models.mesh import Mesh, learner_mesh
from learner.publication.weight_publisher import WeightPublisher
from learner.train import train


def train_with_broker(process: Process, mesh: Mesh) -> Ending:
    """What a rank does: train, with the broker and the weight plane of the run; why that ended."""
    channel = SyncChannel.connect(
        role=Role.LEARNER,
        name=process.name,
        endpoint=read_endpoint(process.config, process.paths),
        security=client_security(process.config, Role.LEARNER, process.name),
    )
    try:
        with HeartbeatThread(channel, channel.registered.heartbeat_s):
            publisher = WeightPublisher(
                process.config, process.paths, mesh, channel, process.metrics, process.log
            )
            try:
                ending = train(process, channel, mesh, publisher)
            finally:
                publisher.close()
        process.log.info("training ended", ending=ending.value)
        return ending
    finally:
        channel.close()


def run_learner(
    config: Config, name: str, work: Callable[[Process, Mesh], Ending | None] = train_with_broker
) -> int:
    """Run this rank until training ends or is stopped; returns the exit code.

    0 says that the run is over, ``EXIT_INFRA`` that it goes on when the learner is started again,
    as after a stop. Rank 0 is called ``name``, rank r ``name-r``: the broker knows every rank by
    its own name. ``work`` is what a rank does.
    """
    with exit_code_for_errors() as outcome, ExitStack() as ranks:
        with meeting_limit(config.learner.rank_join_timeout_s):
            mesh = ranks.enter_context(learner_mesh(config.learner.context_parallel))
        own_name = name if mesh.is_main else f"{name}-{mesh.rank}"
        port = config.learner.metrics_port if mesh.is_main else 0
        with role_process("learner", own_name, config, metrics_port=port) as process:
            grace = GracePeriod(config.learner.stop_grace_s, process.stop.set)
            grace.handle_signals()
            with rank_watch(process, mesh, grace) as watch:
                try:
                    if work(process, mesh) is Ending.STOPPED:
                        outcome.code = EXIT_INFRA
                    mesh.gather(b"")  # nobody leaves while another still works
                except RuntimeError as error:
                    if mesh.world_size == 1 or not is_lost_peer(error):
                        raise
                    watch.abort(f"another rank is gone: {' '.join(str(error).split())[:200]}")
            grace.close()
    return outcome.code


def rank_watch(process: Process, mesh: Mesh, grace: GracePeriod) -> RankWatch:
    """The watch of this rank over the others."""
    return RankWatch(
        mesh,
        timeout_s=process.config.learner.rank_timeout_s,
        stall_timeout_s=process.config.learner.rank_stall_timeout_s,
        stacks=process.paths.logs / "learner-stacks",
        is_stopping=process.stop.is_set,
        stop=grace.begin,
    )


def is_lost_peer(error: RuntimeError) -> bool:
    """True for what a collective raises once another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
