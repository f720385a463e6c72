"""Ranks under a real torchrun notice a halted peer, and stop together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.log_tail import last_error_line, torchrun_exit_code
from deploy.supervisor import free_port

pytestmark = pytest.mark.slow
LIMIT_S = 30.0
"""torchrun itself would first wait as long for the halted rank to follow a SIGTERM."""


def _torchrun(folder: Path, what: str) -> tuple[int, str, float]:
    """Exit code, output, and seconds from the moment that rank 0 waits for rank 1."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
            *("--nproc-per-node", "2", "--master-addr", "127.0.0.1"),
            *("--master-port", str(free_port()), "-m", "tests.integration.watched_rank"),
            *(str(folder), what),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline_s = time.monotonic() + 200
    while not (folder / "waits").exists() and child.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)  # a process that starts can only be asked again and again
    begin_s = time.monotonic()
    output, _ = child.communicate(timeout=100)
    return child.returncode, output, time.monotonic() - begin_s


def _plainly(folder: Path, what: str) -> tuple[int, str, float]:
    """The same of rank 0 where nothing above the ranks ends one for another."""
    ours = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.watched_rank", str(folder), what],
            env=os.environ | ours | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        deadline_s = time.monotonic() + 200
        while not (folder / "waits").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)  # a process that starts can only be asked again and again
        begin_s = time.monotonic()
        output, _ = ranks[0].communicate(timeout=100)
        return ranks[0].returncode, output, time.monotonic() - begin_s
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_a_halted_rank_is_named_and_killed_and_all_end_at_once(tmp_path: Path) -> None:
    code, output, seconds = _torchrun(tmp_path, "halt")
    assert code != 0
    said = last_error_line(output)
    assert "rank 0 ends: no sign of life for 3 s from rank 1 (" in said, output
    assert torchrun_exit_code(output) in (75, -9), "a supervisor may start it again"
    assert seconds < LIMIT_S
    assert "mesh.py" in (tmp_path / "rank-0.txt").read_text(), "the stacks show what it waited in"


def test_one_rank_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    code, output, _ = _torchrun(tmp_path, "stop")
    assert code == 0, output


def test_a_rank_that_never_meets_the_others_keeps_them_no_longer_than_the_limit(
    tmp_path: Path,
) -> None:
    code, output, seconds = _plainly(tmp_path, "absent")
    assert code == 75
    assert "rank 0 ends: the ranks did not all meet within learner.rank_join_timeout_s = 3 s" in (
        output
    )
    assert seconds < LIMIT_S


def test_a_deadlocked_rank_ends_all_though_its_watch_still_beats(tmp_path: Path) -> None:
    code, output, seconds = _torchrun(tmp_path, "deadlock")
    assert code != 0
    assert "no rank's training thread used a processor for 3 s" in last_error_line(output), output
    assert torchrun_exit_code(output) == 75
    assert seconds < LIMIT_S
    stacks = [path.read_text() for path in sorted(tmp_path.glob("rank-?.txt"))]
    assert any("in befall" in text or "in gather" in text for text in stacks), "who waits where"
