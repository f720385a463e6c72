from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from common.config import RunPaths
from common.health import HealthServer
from common.metrics import Metrics
from deploy.telemetry import TelemetryThread, TreeUsage, tree_usage
from deploy.telemetry_records import (
    SILENT,
    RecordTail,
    Scrape,
    StepRecord,
    read_records,
    read_steps,
)


def test_a_torn_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    tail = RecordTail(file, StepRecord)
    assert tail.read_new() == []
    file.write_text('{"time": 1, "policy_step": 0}\n{"time": 2, "pol')
    assert [record.policy_step for record in tail.read_new()] == [0]
    with open(file, "a") as stream:
        stream.write('icy_step": 1}\n')
    assert [record.policy_step for record in tail.read_new()] == [1]
    assert tail.read_new() == []


def test_foreign_lines_are_passed_over_and_unknown_fields_ignored(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text('nonsense\n[]\n{"time": 1, "policy_step": 4, "future_field": [1]}\n{}\n')
    assert [record.policy_step for record in read_records(file, StepRecord)] == [4]


def test_a_replayed_step_replaces_its_first_record(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    lines = [(0, 0.1), (1, 0.2), (2, 0.3), (1, 0.9)]
    file.write_text(
        "".join(
            json.dumps({"time": 1.0, "policy_step": step, "reward_mean": reward}) + "\n"
            for step, reward in lines
        )
    )
    steps = [(record.policy_step, record.reward_mean) for record in read_steps(file)]
    assert steps == [(0, 0.1), (1, 0.9), (2, 0.3)]


def test_live_processes_are_scraped_with_their_counters_and_memory(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    metrics = Metrics()
    metrics.inc("headrace_busy_seconds_total", 3.5, stage="generate")
    metrics.inc("headrace_generated_tokens_total", 640)
    metrics.inc("headrace_weight_syncs_total", 2, result="ok")
    metrics.set("headrace_groups", 12, state="trained")
    server = HealthServer(0, metrics, lambda: True)
    write_ready_file(paths, "actor-0", server.port)
    TelemetryThread(paths).scrape_now()
    server.close()
    scrape = read_records(paths.telemetry / "scrapes.jsonl", Scrape)[0]
    process = scrape.processes["actor-0"]
    assert process.busy_s == {"generate": 3.5}
    assert process.generated_tokens == 640
    assert process.weight_syncs == {"ok": 2}
    assert process.groups == {"trained": 12}
    assert process.state == "ready"
    assert process.rss_bytes > 1 << 20
    assert scrape.rss_bytes > 1 << 20


def test_a_process_that_does_not_answer_is_recorded_as_silent(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    server = HealthServer(0, Metrics(), lambda: True)
    server.close()
    write_ready_file(paths, "learner", server.port)
    TelemetryThread(paths).scrape_now()
    scrape = read_records(paths.telemetry / "scrapes.jsonl", Scrape)[0]
    assert scrape.processes["learner"].state == SILENT


def write_ready_file(paths: RunPaths, name: str, port: int) -> None:
    paths.ready.mkdir(parents=True, exist_ok=True)
    record = {
        "role": name.partition("-")[0],
        "name": name,
        "pid": os.getpid(),
        "metrics_port": port,
        "state": "ready",
    }
    (paths.ready / f"{name}.json").write_text(json.dumps(record))


def test_usage_counts_a_process_with_its_descendants() -> None:
    alone = tree_usage()
    source = "x = bytearray(64 << 20); print('up', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert tree_usage().rss_bytes > alone.rss_bytes + (64 << 20)
    finally:
        child.communicate(b"\n")
    assert tree_usage(child.pid) == TreeUsage()
    assert alone.cpu_s > 0.0
