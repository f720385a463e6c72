"""The slim install: what a broker host gets is enough for the broker, and has no torch in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
UNREACHABLE = ("error sending request", "dns error", "Failed to fetch", "Network connectivity")


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=100, check=False
    )


def copy_of_the_repository(folder: Path) -> Path:
    """What a source tarball would hold: no environment, no caches."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "runs", "dist", "tests")
    clone = Path(shutil.copytree(REPOSITORY, folder / "clone", ignore=ignore))
    if (REPOSITORY / ".tools").exists():
        shutil.copytree(REPOSITORY / ".tools", clone / ".tools")
    return clone


@pytest.fixture(scope="module")
def broker_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = copy_of_the_repository(tmp_path_factory.mktemp("broker-host"))
    done = run("deploy/venv.sh", "broker", cwd=clone)
    if done.returncode and any(reason in done.stderr for reason in UNREACHABLE):
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return clone


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["broker", "--help"]])
def test_the_slim_install_answers_for_the_broker(broker_host: Path, arguments: list[str]) -> None:
    done = run(".venv/bin/headrace", *arguments, cwd=broker_host)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: headrace {'broker ' if 'broker' in arguments else ''}")


@pytest.mark.slow
def test_the_slim_install_has_no_torch(broker_host: Path) -> None:
    done = run(".venv/bin/python", "-c", "import torch", cwd=broker_host)
    assert "No module named 'torch'" in done.stderr


@pytest.mark.slow
def test_every_module_of_the_broker_imports_on_the_slim_install(broker_host: Path) -> None:
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in sorted((REPOSITORY / "broker").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    done = run(".venv/bin/python", "-c", f"import {', '.join(modules)}", cwd=broker_host)
    assert done.returncode == 0, done.stderr
