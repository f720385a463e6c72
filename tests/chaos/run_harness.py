"""A real run of all roles as separate processes, and the means to kill them one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.1
FINISH_S = 240.0


@dataclass
class LiveRun:
    """``headrace run`` in a child process, observed from outside as a person would."""

    config: Path
    directory: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, config: Path, directory: Path, *arguments: str) -> LiveRun:
        """Start ``headrace run CONFIG`` with its output in ``run.out``."""
        output = open(config.with_suffix(".out"), "a", encoding="utf-8")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "common.cli", "run", str(config), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output.close()
        return cls(config, directory, process)

    def num_steps(self) -> int:
        """Training steps that the learner has reported."""
        return len(self.step_rows())

    def step_rows(self) -> list[dict[str, object]]:
        """What the learner reported, one row a step."""
        file = self.directory / "telemetry" / "steps.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def final_status(self) -> dict[str, object]:
        """The broker's last word."""
        file = self.directory / "telemetry" / "final_status.json"
        status: dict[str, object] = json.loads(file.read_text())
        return status

    def wait_for_step(self, step: int) -> None:
        """Return once ``step`` steps were reported; fails with the output when the run ended."""
        deadline = time.monotonic() + FINISH_S
        while self.num_steps() < step:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"no step {step} in time:\n{self.output()}"
            time.sleep(POLL_S)

    def wait_ready(self, name: str) -> psutil.Process:
        """Return process ``name`` once it serves."""
        file = self.directory / "processes" / f"{name}.json"
        deadline = time.monotonic() + FINISH_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output()
            try:
                record = json.loads(file.read_text())
                process = psutil.Process(record["pid"])
                if record["state"] == "ready" and process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except (FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):
                pass  # it is being started again, or its file is being replaced
            time.sleep(POLL_S)
        raise AssertionError(f"{name} is not ready in time:\n{self.output()}")

    def descendants(self) -> list[psutil.Process]:
        """Every process below the supervisor."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout=FINISH_S)

    def output(self) -> str:
        """What the supervisor printed."""
        return self.config.with_suffix(".out").read_text()


def wait_gone(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those of ``processes`` that still live after ``timeout_s``."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
