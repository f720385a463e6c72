"""A learner of a real run is killed or stopped alone: it is back at work while actors go on."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from tests.chaos.run_harness import POLL_S, LiveRun
from tests.chaos.test_kill_each_process import check_finished, second_rank, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        os.environ.get("HEADRACE_EXHAUSTIVE") != "1",
        reason="two whole runs: make chaos-learner has them",
    ),
]
BACK_S = 30.0
"""On two quiet cores; on busy ones a start again may take as long as the first one took."""
_ROLLOUTS = re.compile(r"^headrace_rollouts_total\S* (\S+)$", re.MULTILINE)


def num_rollouts(run: LiveRun) -> int:
    """Rollouts that the actor has finished so far."""
    record = json.loads((run.directory / "processes/actor-0.json").read_text())
    url = f"http://127.0.0.1:{record['metrics_port']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        return sum(int(float(number)) for number in _ROLLOUTS.findall(page.read().decode()))


def learner_ends(run: LiveRun) -> list[str]:
    """How the learner ended each time, as the supervisor saw it."""
    lines = (run.directory / "telemetry/supervisor.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["how"] for row in rows if (row["event"], row["name"]) == ("ended", "learner")]


def test_a_killed_rank_costs_half_a_minute_in_which_actors_generate(tmp_path: Path) -> None:
    launched_s = time.monotonic()
    run = LiveRun.start(write_run(tmp_path, num_steps=12, num_ranks=2), tmp_path / "out")
    try:
        run.wait_for_step(1)
        started_s = time.monotonic() - launched_s
        run.wait_for_step(4)
        victim = second_rank(run)
        before, rollouts = run.num_steps(), num_rollouts(run)
        os.kill(victim.pid, signal.SIGKILL)
        begin_s = time.monotonic()
        while not learner_ends(run):
            assert run.process.poll() is None, run.output()
            time.sleep(POLL_S)  # a process that ends can only be asked again and again
        noticed_s, before = time.monotonic() - begin_s, max(before, run.num_steps())
        run.wait_for_step(before + 1)
        back_s, generated = time.monotonic() - begin_s, num_rollouts(run) - rollouts
        print(f"start {started_s:.1f} s, noticed {noticed_s:.1f} s, back {back_s:.1f} s")
        print(f"{generated} rollouts meanwhile")
        assert back_s < max(BACK_S, started_s)
        assert generated > 0
        assert run.finish() == 0, run.output()
    finally:
        run.process.kill()
    check_finished(run, num_steps=12)
    assert learner_ends(run) == ["signal 9 (SIGKILL)", "exit code 0"]


def test_a_learner_that_is_stopped_alone_is_started_again_and_finishes(tmp_path: Path) -> None:
    run = LiveRun.start(write_run(tmp_path, num_steps=10), tmp_path / "out")
    try:
        run.wait_for_step(3)
        os.kill(run.wait_ready("learner").pid, signal.SIGTERM)
        assert run.finish() == 0, run.output()
    finally:
        run.process.kill()
    check_finished(run, num_steps=10)
    assert learner_ends(run) == ["exit code 75", "exit code 0"]
