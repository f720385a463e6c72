"""Studies of ``broker.simulation``, run in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import FatalError


def run_study(name: str) -> dict[str, Any]:
    """The figures of one study; raises :class:`FatalError` when it fails."""
    command = [sys.executable, "-m", "broker.simulation", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise FatalError(f"the simulation {name!r} failed: {' '.join(last)}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def table(cells: Sequence[Mapping[str, Any]], value: str) -> dict[str, str]:
    """One line a rho: ``value`` by eta, two decimals."""
    lines: dict[str, list[str]] = {}
    for cell in cells:
        line = lines.setdefault(f"rho {cell['rho']:g}", [])
        line.append(f"eta {cell['eta']}: {cell[value]:.2f}")
    return {rho: ", ".join(line) for rho, line in lines.items()}
