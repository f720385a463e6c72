"""The processes of a benchmark: a real broker, and load generators that obey commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

from common.config_loader import load_config, run_paths
from common.errors import FatalError
from deploy.bench.line_process import LineProcess

_PATIENCE_S = 30.0
_RUN_FILE = """
[run]
directory = "run"
kind = "collect"
[model]
path = "model"
[prompts]
generator = "chain-addition"
[broker]
dead_after_s = 600.0
max_outstanding_groups = {max_groups}
{broker_lines}
[collect]
num_prompts = 100000000
samples_per_prompt = {group_size}
"""


class Worker(LineProcess):
    """One ``deploy.bench.load`` process."""

    def __init__(self, kind: str, *arguments: str) -> None:
        super().__init__("deploy.bench.load", kind, *arguments)
        self.answer()

    def tell(self, do: str, **arguments: object) -> None:
        """Start a command; :meth:`answer` waits for its end."""
        self.send({"do": do, **arguments})

    def ask(self, do: str, **arguments: object) -> Any:
        """Run a command."""
        self.tell(do, **arguments)
        return self.answer()


class BrokerUnderTest:
    """A ``headrace broker`` of a collect run in a folder of its own, with a journal on disk."""

    def __init__(
        self, folder: Path, *, max_groups: int, group_size: int, broker_lines: str = ""
    ) -> None:
        run_file = folder / "run.toml"
        run_file.write_text(
            _RUN_FILE.format(
                max_groups=max_groups, group_size=group_size, broker_lines=broker_lines
            ),
            encoding="utf-8",
        )
        self._paths = run_paths(load_config(run_file))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.cli", "broker", str(run_file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_ready()
        self.endpoint = self._paths.endpoint_file.read_text(encoding="utf-8").strip()

    def __enter__(self) -> BrokerUnderTest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """Processor time that it has used, in all its threads."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def histogram(self, name: str) -> dict[float, float]:
        """Cumulative counts of one histogram by upper bound, from its /metrics page."""
        state = json.loads((self._paths.ready / "broker.json").read_text(encoding="utf-8"))
        with urlopen(f"http://127.0.0.1:{state['metrics_port']}/metrics", timeout=10) as page:
            text = page.read().decode()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"{name}_bucket"
        }

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        state = self._paths.ready / "broker.json"
        while not (state.exists() and '"ready"' in state.read_text(encoding="utf-8")):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise FatalError("the broker of the benchmark did not start")
            time.sleep(0.02)  # a process that starts can only be looked at again and again


def percentile_bound(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Upper bound of the bucket that holds this share of what was observed in between."""
    gained = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = gained[max(gained)]
    return next(bound for bound, count in gained.items() if count >= share * total)


def close_all(workers: Sequence[Worker]) -> None:
    """End all of them."""
    for worker in workers:
        worker.close()


def fdatasync_seconds() -> dict[str, float]:
    """Percentiles of what one durable write of 4 KiB takes where temporary files lie."""
    seconds = []
    with tempfile.NamedTemporaryFile(prefix="headrace-bench-") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        os.fsync(file.fileno())
        for turn in range(200):
            os.pwrite(file.fileno(), bytes([turn]) * 4096, 4096 * turn)
            start_s = time.perf_counter()
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - start_s)
    seconds.sort()
    return {"fdatasync_p50_s": seconds[100], "fdatasync_p99_s": seconds[197]}
