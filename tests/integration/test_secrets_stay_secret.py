"""A whole run with keys over TCP: it works, and no secret appears where others could read it."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from pathlib import Path

import psutil
import pytest

from common.keys_cli import ROLES, make_keys
from common.security_keys import load_pair
from tests.chaos.run_harness import LiveRun
from tests.chaos.test_kill_each_process import check_finished, write_run

_NUM_STEPS = 6


def _secure_run(folder: Path) -> Path:
    file = write_run(folder, num_steps=_NUM_STEPS, num_ranks=2)
    text = file.read_text()
    text += '\n[broker]\nendpoint = "tcp://127.0.0.1:0"\n[security]\nkeys = "keys"\n'
    file.write_text(re.sub(r"\[actor\]\n", '[actor]\nengine = "transformers"\n', text))
    make_keys(folder / "keys", [(role, "") for role in ROLES])
    return file


def _what_processes_show(processes: list[psutil.Process]) -> dict[str, bytes]:
    """Command line and environment of each process that lives."""
    shown: dict[str, bytes] = {}
    for process in processes:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                shown[f"{process.pid}/{name}"] = Path(f"/proc/{process.pid}/{name}").read_bytes()
    return shown


def _metrics_pages(directory: Path) -> dict[str, bytes]:
    pages = {}
    for file in (directory / "processes").glob("*.json"):
        with contextlib.suppress(OSError):
            port = json.loads(file.read_text())["metrics_port"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                pages[f"metrics of {file.stem}"] = page.read()
    return pages


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_with_keys_finishes_and_shows_no_secret(tmp_path: Path) -> None:
    run = LiveRun.start(_secure_run(tmp_path), tmp_path / "out")
    try:
        run.wait_for_step(2)
        names = ("broker", "actor-0", "verifier-0", "learner", "learner-1")
        living = [run.wait_ready(name) for name in names[:4]]
        assert len(run.descendants()) >= len(living)
        shown = _what_processes_show([psutil.Process(run.process.pid), *run.descendants()])
        shown |= _metrics_pages(run.directory)
        assert run.finish() == 0, run.output()
    finally:
        run.process.kill()
    check_finished(run, num_steps=_NUM_STEPS)
    assert {f"metrics of {name}" for name in names} <= set(shown)
    assert sum(name.endswith("environ") for name in shown) >= len(names)
    files = [file for file in run.directory.rglob("*") if file.is_file()]
    assert run.directory / "broker" / "endpoint" in files
    shown |= {str(file): file.read_bytes() for file in [*files, tmp_path / "run.out"]}

    secret_files = sorted((tmp_path / "keys").glob("*.key_secret"))
    assert len(secret_files) == len(ROLES)
    for secret_file in secret_files:
        secret = load_pair(secret_file).secret
        holders = [name for name, content in shown.items() if secret in content]
        assert holders == [], f"{secret_file.name} is in {holders}"
