"""Processes start with a name, stop on signals, and never outlive their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import asyncio, sys
from common.config_loader import load_config
from common.lifecycle import run_async_role
from common.errors import FatalError

async def main(process):
    process.ready()
    print("READY", flush=True)
    if sys.argv[2] == "fail":
        raise FatalError("learner.x must be y (set it)")
    try:
        await asyncio.Event().wait()
    finally:
        print("CLEANED", flush=True)

config = load_config(sys.argv[1])
sys.exit(run_async_role("broker", "broker", config, main, metrics_port=0))
"""

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(
        '[run]\ndirectory = "out"\n[model]\npath = "m"\n[prompts]\ngenerator = "chain-addition"\n'
    )
    return file


def start(config_file: Path, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config_file), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    return process


def test_a_signal_ends_a_role_after_its_clean_up(config_file: Path) -> None:
    process = start(config_file, "serve")
    record = json.loads((config_file.parent / "out" / "processes" / "broker.json").read_text())
    assert record["pid"] == process.pid
    assert record["state"] == "ready"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert "CLEANED" in output
    assert process.returncode == 0
    assert not (config_file.parent / "out" / "processes" / "broker.json").exists()


def test_a_fatal_error_is_one_line_and_exit_code_one(config_file: Path) -> None:
    process = start(config_file, "fail")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "headrace: learner.x must be y (set it)" in errors
    assert "Traceback" not in errors


def test_a_child_dies_with_a_parent_that_was_killed(config_file: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "-c", PROGRAM, str(config_file), "serve"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE
