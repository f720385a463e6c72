"""The log on a real disk: kill -9 of a writer that syncs from a thread, a real full file system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from threading import Timer

import pytest

from tests.journal_writer import WINDOW, contents_of_group, contents_of_turn, open_log

REPOSITORY = Path(__file__).parents[2]


def _killed_writer(directory: Path, seconds: float) -> int:
    """Let a writer run for a while; returns the last turn that it called durable, 0 if none."""
    command = [sys.executable, "-m", "tests.journal_writer", "write", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        timer = Timer(seconds, process.kill)
        timer.start()
        rest = process.stdout.read().split()
        timer.cancel()
    return int(rest[-1] if rest else first)


def test_kill_9_of_a_writer_that_syncs_from_another_thread_loses_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    random, acknowledged = Random(1), 0
    for _ in range(5):
        acknowledged = _killed_writer(tmp_path / "journal", random.uniform(0.05, 0.4))
        log = open_log(tmp_path / "journal")
        newest = max(log.groups)
        assert newest >= acknowledged
        assert set(log.groups) == set(range(max(newest - WINDOW, 0) + 1, newest + 1))
        for group in log.groups:
            assert log.get((group, 0, 0)) == contents_of_group(group)
        turns = [bytes(turn) for turn in log.turns()]
        assert turns == [contents_of_turn(n) for n in range(newest - len(turns) + 1, newest + 1)]
        log.close()
    assert acknowledged > 5 * WINDOW, "segments were deleted on the way"


def test_a_real_file_system_that_is_full_stops_payloads_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    unshare = ["unshare", "-Urm", "sh", "-c"]
    if subprocess.run([*unshare, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a tmpfs of their own")
    program = f"{mount} && exec {sys.executable} -m tests.journal_writer fill {tmp_path}"
    done = subprocess.run(
        [*unshare, program], capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["is_sound"]
    assert seen["groups"] > 50
    assert seen["again"] > 20
