"""The demo, whole: what ``make demo`` promises holds on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PEAK_BYTES = 10 << 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_to_think_longer_and_answer_better(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "common.cli", "demo", "--seed", "1", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pass_at_1_after"] >= summary["pass_at_1_before"] + 0.30
    assert summary["pass_at_1_after_ci95"][0] > summary["pass_at_1_before_ci95"][1]
    assert summary["maj_at_16_after"] >= summary["pass_at_1_after"]
    assert summary["mean_length_after"] >= 2 * summary["mean_length_before"]
    assert summary["observed_max_lag"] <= summary["max_policy_lag"] == 2
    groups = summary["groups"]
    assert groups["admitted"] == groups["trained"] == summary["steps"] * 32
    assert groups["leased"] == groups["pending"] == groups["evicted"] == 0
    assert summary["weight_syncs"] > 1
    assert summary["weight_proofs_failed"] == 0
    assert summary["engine"].startswith("vllm ")
    assert 0 < summary["peak_memory_bytes"] < PEAK_BYTES
    page = (out / "report.html").read_text()
    assert page.count("<img") + page.count("<svg") >= 6
    assert "pass@1" in done.stdout
