"""Scrapes the processes of a run into ``telemetry/scrapes.jsonl`` while it goes on.

Runs on its own thread of the supervisor, so that a process that answers slowly delays no restart.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families

from common.config import RunPaths
from common.files import append_line
from deploy.telemetry_records import SILENT, ProcessScrape, Scrape

SCRAPE_EVERY_S = 2.0
_HTTP_TIMEOUT_S = 1.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Metrics are on 127.0.0.1: a proxy from the environment has no part in it."""


class ReadyFile(msgspec.Struct, frozen=True):
    """What a live process writes about itself."""

    role: str
    name: str
    pid: int
    metrics_port: int
    state: str = ""


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a process and all its descendants use; zeros when it is gone."""

    rss_bytes: int = 0
    cpu_s: float = 0.0


def parse_metrics(text: str, ready: ReadyFile, usage: TreeUsage) -> ProcessScrape:
    """The scrape of one process from the text of its /metrics page, empty if it did not answer."""
    by_label: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = next(iter(sample.labels.values()), "")
            by_label.setdefault(sample.name, {})[label] = sample.value
    policy_steps = by_label.get("headrace_policy_step", {})
    return ProcessScrape(
        role=ready.role,
        pid=ready.pid,
        state=ready.state if text else SILENT,
        rss_bytes=usage.rss_bytes,
        cpu_s=usage.cpu_s,
        busy_s=by_label.get("headrace_busy_seconds_total", {}),
        idle_s=by_label.get("headrace_idle_seconds_total", {}),
        generated_tokens=sum(by_label.get("headrace_generated_tokens_total", {}).values()),
        weight_syncs=by_label.get("headrace_weight_syncs_total", {}),
        groups=by_label.get("headrace_groups", {}),
        policy_step=policy_steps.get(""),
    )


def scrape_run(paths: RunPaths) -> Scrape:
    """One look at every process that has a ready file."""
    processes = {
        ready.name: parse_metrics(_metrics_text(ready), ready, tree_usage(ready.pid))
        for ready in _ready_files(paths.ready)
    }
    return Scrape(time=time.time(), processes=processes, rss_bytes=tree_usage().rss_bytes)


def tree_usage(pid: int | None = None) -> TreeUsage:
    """Memory and processor time of the process ``pid`` (by default this one) and below."""
    try:
        root = psutil.Process(pid)
        usages = [_usage(process) for process in (root, *root.children(recursive=True))]
    except psutil.Error:
        return TreeUsage()
    return TreeUsage(sum(u.rss_bytes for u in usages), sum(u.cpu_s for u in usages))


class TelemetryThread:
    """Writes a :class:`Scrape` every two seconds between ``start`` and ``stop``."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Begin to scrape."""
        self._thread.start()

    def stop(self) -> None:
        """End after the scrape that is under way."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def scrape_now(self) -> None:
        """Append one scrape now."""
        self._paths.telemetry.mkdir(parents=True, exist_ok=True)
        line = msgspec.json.encode(scrape_run(self._paths)).decode()
        append_line(self._paths.telemetry / "scrapes.jsonl", line)

    def _run(self) -> None:
        while not self._stopped.wait(SCRAPE_EVERY_S):
            self.scrape_now()


def _ready_files(folder: Path) -> Iterator[ReadyFile]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=ReadyFile)
        except (OSError, msgspec.DecodeError):
            continue


def _metrics_text(ready: ReadyFile) -> str:
    """The /metrics page; empty while the process cannot answer."""
    url = f"http://127.0.0.1:{ready.metrics_port}/metrics"
    try:
        with _DIRECT.open(url, timeout=_HTTP_TIMEOUT_S) as response:
            text: str = response.read().decode()
            return text
    except (OSError, ValueError):
        return ""


def _usage(process: psutil.Process) -> TreeUsage:
    try:
        with process.oneshot():
            times = process.cpu_times()
            return TreeUsage(int(process.memory_info().rss), times.user + times.system)
    except psutil.Error:
        return TreeUsage()
