"""Ranks that split rows among them compute what one rank computes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from learner.models.tiny_model import TinyModelShape, build_tiny_model
from tests.unit.learner.small_run import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHAPE = TinyModelShape(
    hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48
)
"""Fewer key-value heads than the larger group has ranks."""


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_rows_split_over_ranks_train_as_whole_ones(tmp_path: Path, num_ranks: int) -> None:
    """Two ranks for one row; four ranks for two rows at a time, and for one."""
    build_tiny_model(tmp_path / "model", [TEXT], SHAPE, seed=0)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    job = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.context_ranks", str(tmp_path)],
            env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(num_ranks)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=280)
            assert rank.returncode == 0, errors.decode()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
