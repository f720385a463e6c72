from __future__ import annotations

import sys
from pathlib import Path

from deploy.demo_stages import Stage
from deploy.stage_runner import MAX_ATTEMPTS, StageEnd, run_stage, run_stage_to_its_end
from deploy.supervisor import StopRequest


def stage_of(source: str) -> Stage:
    return Stage("train", "train", (sys.executable, "-c", source))


def nothing() -> None:
    """No display."""


def test_a_stage_that_ends_with_zero_is_done_and_its_output_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "train.log"
    end = run_stage(stage_of("print('trained')"), log, StopRequest(), nothing)
    assert end.exit_code == 0
    assert end.result.is_done
    assert end.result.seconds > 0.0
    assert end.result.peak_rss_bytes > 1 << 20
    assert log.read_text().splitlines()[-1] == "trained"


def test_a_stage_that_fails_is_not_done(tmp_path: Path) -> None:
    end = run_stage(stage_of("raise SystemExit(75)"), tmp_path / "a.log", StopRequest(), nothing)
    assert end.exit_code == 75
    assert not end.result.is_done


def test_a_stop_ends_the_stage_and_leaves_it_to_be_resumed(tmp_path: Path) -> None:
    stop = StopRequest()
    wait = "import threading; threading.Event().wait(60)"
    end = run_stage(stage_of(wait), tmp_path / "a.log", stop, on_tick=stop.signal)
    assert end.exit_code is None
    assert not end.result.is_done
    assert end.result.seconds < 8.0


def attempts(source: str, tmp_path: Path) -> list[int | None]:
    ends: list[StageEnd] = []
    log = tmp_path / "a.log"
    run_stage_to_its_end(stage_of(source), log, StopRequest(), nothing, nothing, ends.append)
    return [end.exit_code for end in ends]


def test_a_stage_that_was_killed_runs_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = f"""
import os, pathlib, signal
mark = pathlib.Path({str(mark)!r})
if not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert attempts(source, tmp_path) == [-9, 0]


def test_a_stage_that_is_always_killed_is_given_up(tmp_path: Path) -> None:
    always = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert attempts(always, tmp_path) == [-9] * MAX_ATTEMPTS


def test_a_stage_that_says_it_cannot_go_on_is_not_run_again(tmp_path: Path) -> None:
    assert attempts("raise SystemExit(1)", tmp_path) == [1]
