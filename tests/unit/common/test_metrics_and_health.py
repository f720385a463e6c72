"""Metrics come from one table; the health pages tell alive from serving."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

import pytest

from common.errors import FatalError
from common.health import HealthServer
from common.metrics import METRICS, Metrics


def get(port: int, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metric_names_are_unique_and_counters_say_total() -> None:
    names = [spec.name for spec in METRICS]
    assert len(names) == len(set(names))
    for spec in METRICS:
        assert re.fullmatch(r"headrace_[a-z0-9_]+", spec.name)
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert bool(spec.buckets) == (spec.kind == "histogram"), spec.name


def test_a_metric_outside_the_table_is_refused() -> None:
    with pytest.raises(KeyError):
        Metrics().inc("headrace_made_up_total")
    with pytest.raises(KeyError, match="is a gauge"):
        Metrics().inc("headrace_policy_step")


def test_pages_show_metrics_life_and_readiness() -> None:
    metrics = Metrics()
    metrics.inc("headrace_busy_seconds_total", 1.5, stage="generate")
    ready = False
    server = HealthServer(0, metrics, lambda: ready)
    try:
        assert get(server.port, "/healthz")[0] == 200
        assert get(server.port, "/readyz")[0] == 503
        ready = True
        assert get(server.port, "/readyz")[0] == 200
        assert (
            'headrace_busy_seconds_total{stage="generate"} 1.5' in get(server.port, "/metrics")[1]
        )
        assert get(server.port, "/etc/passwd")[0] == 404
    finally:
        server.close()


def test_a_taken_port_is_one_clear_error() -> None:
    first = HealthServer(0, Metrics(), lambda: True)
    try:
        with pytest.raises(FatalError, match=f"metrics_port {first.port} cannot be used"):
            HealthServer(first.port, Metrics(), lambda: True)
    finally:
        first.close()
