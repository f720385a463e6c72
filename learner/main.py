"""Puts the learner role together: ranks, channel, weight publisher, training loop."""

from __future__ import annotations

from common.config import Config
from common.endpoints import read_endpoint
from common.errors import EXIT_OK
from common.lifecycle import Process, exit_code_for_errors, role_process
from common.security import client_security
from common.sync_channel import SyncChannel
from common.types import Role
from learner.heartbeat import HeartbeatThread
from learner.mesh import Mesh, learner_mesh
from learner.train import train
from learner.weight_publisher import WeightPublisher


def run_learner(config: Config, name: str) -> int:
    """Run this rank until training ends or is stopped; returns the exit code.

    Rank 0 is called ``name``, rank r ``name-r``: the broker knows every rank by its own name.
    """
    with exit_code_for_errors() as outcome, learner_mesh() as mesh:
        own_name = name if mesh.is_main else f"{name}-{mesh.rank}"
        port = config.learner.metrics_port if mesh.is_main else 0
        with role_process("learner", own_name, config, metrics_port=port) as process:
            _train_with_broker(process, mesh)
    return outcome.code or EXIT_OK


def _train_with_broker(process: Process, mesh: Mesh) -> None:
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
    finally:
        channel.close()
