"""``headrace --help`` is instant and heavy imports wait for the command that needs them."""

from __future__ import annotations

import subprocess
import sys

from common.cli import COMMANDS

HEAVY = ("torch", "vllm", "transformers", "numpy", "matplotlib")


def headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_command() -> None:
    done = headrace("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_help_of_every_command_imports_no_heavy_package() -> None:
    program = (
        "import sys, importlib\n"
        "from common.cli import COMMANDS\n"
        "for where, _ in COMMANDS.values():\n"
        "    module, _, attribute = where.partition(':')\n"
        "    getattr(importlib.import_module(module), attribute)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_an_unknown_command_is_a_usage_error_without_a_traceback() -> None:
    done = headrace("dmeo")
    assert done.returncode == 2
    assert "No such command 'dmeo'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_run_file_is_one_line() -> None:
    done = headrace("check", "/nowhere/run.toml")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
