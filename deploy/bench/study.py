"""Studies that other packages run by name, each in a process of its own with one thread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import FatalError


def run_study(module: str, *arguments: str) -> dict[str, Any]:
    """The figures that ``python -m module`` prints; raises :class:`FatalError` when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        study = " ".join((module, *arguments))
        raise FatalError(f"the study {study} failed: {' '.join(last)}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def median_ratio(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median of the turns' ``over`` / ``under``: what slows a turn down slows both."""
    turns = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(one / other for one, other in turns)


def load_average() -> float:
    """Processes that wanted a core in the last minute: above the cores, times are noise."""
    return round(os.getloadavg()[0], 2)


def table(cells: Sequence[Mapping[str, Any]], value: str) -> dict[str, str]:
    """One line a rho: ``value`` by eta, two decimals."""
    lines: dict[str, list[str]] = {}
    for cell in cells:
        line = lines.setdefault(f"rho {cell['rho']:g}", [])
        line.append(f"eta {cell['eta']}: {cell[value]:.2f}")
    return {rho: ", ".join(line) for rho, line in lines.items()}
