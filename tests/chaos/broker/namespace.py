"""Campaigns that need namespaces of their own: they run in a child under ``unshare``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.broker_process import REPOSITORY
from tests.chaos.broker.campaign import Outcome

_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--kill-child")


@cache
def refusal() -> str:
    """Why namespaces cannot be had here; "" where they can."""
    try:
        done = subprocess.run(
            [*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"no unshare: {error}"
    return done.stderr.strip() if done.returncode else ""


def run_inside(module: str, *arguments: str) -> Outcome:
    """Run ``python -m module FILE ARGUMENTS`` inside; it writes its outcome to FILE."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        file = Path(folder) / "outcome.json"
        command = [*_UNSHARE, sys.executable, "-m", module, str(file), *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return _read(file)


def write_outcome(file: Path, outcome: Outcome) -> None:
    """Hand an outcome to who started this process."""
    file.write_text(json.dumps(vars(outcome)))


def command(*words: str | int | Path, prefix: Sequence[str] = ()) -> None:
    """Run a command of the system that must succeed."""
    subprocess.run([*prefix, *map(str, words)], check=True, stdin=subprocess.DEVNULL)


def _read(file: Path) -> Outcome:
    plain = json.loads(file.read_text())
    for name in ("faults", "answers"):
        plain[name] = Counter(plain[name])
    return Outcome(**plain)
