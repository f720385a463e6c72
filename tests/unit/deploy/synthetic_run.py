"""A made-up finished demo: telemetry with the shape of a real one, without running anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from common.config import RunPaths
from deploy.demo_config import DemoPaths

BEGIN = 1_800_000_000.0
STEP_S = 3.0
NUM_STEPS = 25
MAX_POLICY_LAG = 2


def step_record(step: int, rng: random.Random) -> dict[str, Any]:
    """Batch ``step`` of a run whose accuracy and length rise."""
    progress = 1.0 - math.exp(-step / 6)
    accuracy = 0.45 + 0.46 * progress + rng.gauss(0, 0.015)
    length = 19 + 24 * progress + rng.gauss(0, 0.5)
    return {
        "time": BEGIN + 40 + STEP_S * (step + 1),
        "policy_step": step,
        "reward_mean": accuracy + 0.95,
        "accuracy_mean": accuracy,
        "format_mean": 0.95,
        "response_length_mean": length,
        "response_length_finished_mean": length - 0.4,
        "truncated_ratio": 0.01,
        "entropy": 0.6 - 0.3 * progress,
        "kl_behavior": 0.004 * progress,
        "kl_behavior_lag0": 1e-6,
        "lag_histogram": {"0": 900, "1": 5200, "2": 1800} if step > 1 else {"0": 7900},
        "lag_max": min(step, MAX_POLICY_LAG),
        "num_groups": 32,
        "num_tokens": 7900,
        "loss": -0.01,
        "grad_norm": 0.4,
        "seconds": {"wait": 1.2, "compute": 1.5, "step": 0.1, "publish": 0.2},
    }


def scrape_record(index: int) -> dict[str, Any]:
    """Two seconds apart; actors sample from second 40 on."""
    elapsed_s = max(0.0, 2.0 * index - 38)

    def process(role: str, busy_ratio: float, **more: object) -> dict[str, Any]:
        return {
            "role": role,
            "pid": 100 + len(role),
            "state": "ready",
            "rss_bytes": 400 << 20,
            "busy_s": {"work": busy_ratio * elapsed_s},
            "idle_s": {"wait": (1 - busy_ratio) * elapsed_s},
            **more,
        }

    return {
        "time": BEGIN + 2.0 * index,
        "rss_bytes": (2 << 30) + index * (1 << 20),
        "processes": {
            "broker": process("broker", 0.04),
            "verifier-0": process("verifier", 0.08),
            "actor-0": process(
                "actor", 0.97, generated_tokens=elapsed_s * (3900 + 300 * math.sin(index / 4))
            ),
            "learner": process("learner", 0.55),
        },
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def rollout_record(step: int, prompt: str, completion: str, *, right: bool) -> dict[str, Any]:
    """One answer as the learner keeps it for reading."""
    return {
        "policy_step": step,
        "prompt": prompt,
        "completion": completion,
        "reward": 2.0 if right else 1.0,
        "accuracy": float(right),
        "num_tokens": len(completion),
        "version": f"0.{step}",
    }


def write_training(run: Path, *, extra_completion: str = "") -> None:
    """The telemetry of a finished training run in ``run``."""
    telemetry = RunPaths(run).telemetry
    rng = random.Random(7)
    write_lines(telemetry / "steps.jsonl", [step_record(step, rng) for step in range(NUM_STEPS)])
    num_scrapes = int((40 + STEP_S * NUM_STEPS) / 2) + 2
    write_lines(telemetry / "scrapes.jsonl", [scrape_record(i) for i in range(num_scrapes)])
    short = f"<think></think><answer>30</answer>{extra_completion}"
    long = (
        f"<think>7+2=9,9+9=18,18+4=22,22+1=23,23+8=31</think><answer>31</answer>{extra_completion}"
    )
    prompts = [("7+2+9+4+1+8=", "7+2+9+4+1+7="), ("1+1+6+5+2+3=", "1+4+6+5+2+3=")]
    write_lines(
        telemetry / "rollouts.jsonl",
        [rollout_record(0, early, short, right=False) for early, _ in prompts]
        + [rollout_record(NUM_STEPS - 1, late, long, right=True) for _, late in prompts],
    )
    status = {
        "run_id": "demo",
        "groups": {
            "admitted": 864,
            "trained": 800,
            "evicted": 63,
            "dead_lettered": 1,
            "leased": 0,
            "pending": 0,
        },
        "evicted": {"run_end": 60, "zero_advantage": 3},
        "weight_syncs": 24,
        "weight_proofs_failed": 0,
    }
    (telemetry / "final_status.json").write_text(json.dumps(status))


def write_evaluation(folder: Path, pass_at_1: float, mean_length: float, samples: int) -> None:
    """What the collector leaves in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        "num_prompts": 512,
        "samples_per_prompt": samples,
        "pass_at_1": pass_at_1,
        "pass_at_1_interval_95": [pass_at_1 - 0.02, pass_at_1 + 0.02],
        "maj_at": {"1": pass_at_1, str(samples): pass_at_1 + 0.05},
        "mean_length": mean_length,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))


def write_demo(root: Path, *, extra_completion: str = "") -> DemoPaths:
    """A demo whose stages are all done, before its summary is written."""
    paths = DemoPaths(root)
    write_training(paths.train_run, extra_completion=extra_completion)
    write_evaluation(paths.evaluation("before") / "results", 0.451, 18.7, 4)
    write_evaluation(paths.evaluation("after") / "results", 0.912, 42.6, 16)
    return paths
