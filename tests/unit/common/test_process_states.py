"""What a process says of itself: starting, serving, paused."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import Config, ModelConfig, RunConfig
from common.lifecycle import Process


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    config = Config(run=RunConfig(directory=str(tmp_path)), model=ModelConfig(path="model"))
    started = Process("verifier", "verifier-0", config, metrics_port=0)
    yield started
    started.close()


def _told(process: Process) -> tuple[str, int]:
    """State in the process file, status of /readyz."""
    record = json.loads((process.paths.ready / "verifier-0.json").read_bytes())
    try:
        url = f"http://127.0.0.1:{process.health.port}/readyz"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return record["state"], answer.status
    except urllib.error.HTTPError as error:
        return record["state"], error.code


def test_a_paused_process_lives_and_says_that_it_does_not_serve(process: Process) -> None:
    assert _told(process) == ("starting", 503)
    process.ready()
    assert _told(process) == ("ready", 200)
    process.pause("reward hacking suspected")
    assert _told(process) == ("paused", 503)
