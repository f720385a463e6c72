"""How a model is computed and stepped changes nothing on sharded weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.learner.small_run import small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_every_way_to_compute_a_model_changes_nothing_on_two_ranks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [
        sys.executable,
        "-m",
        "tests.integration.execution_ranks",
        str(small_model(tmp_path / "model")),
    ]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=280)
            assert rank.returncode == 0, errors.decode()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
