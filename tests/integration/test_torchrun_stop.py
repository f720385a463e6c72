"""Slurm and Kubernetes ask process 1 to stop, and that is torchrun: its ranks must checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import EXIT_INFRA
from deploy.log_tail import torchrun_exit_code
from deploy.supervisor import free_port
from learner.checkpoints.checkpoint import newest_checkpoint
from learner.health.preemption import ECHO_S
from tests.chaos.learner.remote_broker import BrokerServer
from tests.unit.learner.small_run import small_broker, small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Agent:
    """torchrun with two ranks of an endless learner."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "torchrun.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
                    *("--nproc-per-node", "2", "--master-addr", "127.0.0.1"),
                    *("--master-port", str(free_port()), "-m", "tests.integration.stopped_rank"),
                    str(folder),
                ],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline_s, self.said
            time.sleep(0.02)  # other processes can only be asked again and again

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def test_a_stop_of_the_agent_alone_checkpoints_all_ranks_and_a_second_one_ends_them_at_once(
    tmp_path: Path,
) -> None:
    small_model(tmp_path / "model")
    checkpoints = tmp_path / "run/learner/checkpoints"
    steps = tmp_path / "run/learner/steps"
    server = BrokerServer(tmp_path / "broker", small_broker(chunk_sizes=(1, 2)))
    agents: list[Agent] = []

    def start(num_steps: int) -> Agent:
        agents.append(Agent(tmp_path))
        agents[-1].wait_until(lambda: server.broker.policy_step >= num_steps)
        return agents[-1]

    try:
        # asked twice: the second time while the checkpoint is being written
        agent = start(num_steps=2)
        (tmp_path / "hold").touch()
        agent.stop()
        first_s = time.monotonic()
        agent.wait_until(lambda: all((tmp_path / f"held-{rank}").exists() for rank in range(2)))
        agent.wait_until(lambda: time.monotonic() > first_s + ECHO_S + 0.5)
        agent.stop()
        assert agent.process.wait(timeout=20) == 1, "torchrun's own code, whatever its ranks say"
        assert agent.said.count("asked to stop a second time") == 2, agent.said
        assert torchrun_exit_code(agent.said) == EXIT_INFRA
        assert newest_checkpoint(checkpoints) == 0, "the one before is whole, no other has a name"

        # asked once: what was cut off is replayed, then all of it is in a checkpoint
        (tmp_path / "hold").unlink()
        reached = server.broker.policy_step
        agent = start(num_steps=reached + 2)
        agent.stop()
        assert agent.process.wait(timeout=60) == 1
    finally:
        for agent in agents:
            agent.process.kill()
        server.close()
    assert [(tmp_path / f"exit-{rank}").read_text() for rank in range(2)] == [str(EXIT_INFRA)] * 2
    assert torchrun_exit_code(agent.said) == EXIT_INFRA
    assert newest_checkpoint(checkpoints) == server.broker.policy_step > reached
    assert not list(checkpoints.glob("*.incomplete"))
    assert server.broker.incarnation == 0, "the steps of the first life were made again"
    assert len(list(steps.glob("*.0.json"))) == server.broker.policy_step
    published = [json.loads(line) for line in (tmp_path / "published.jsonl").open()]
    digests = {row["version"]: row["digest"] for row in published}
    assert all(digests[row["version"]] == row["digest"] for row in published)
    assert server.violations == []
