"""Kill -9 each process of a real run in turn: the run ends correctly and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from broker.tasks.chain_addition import corpus
from learner.models.tiny_model import TinyModelShape, build_tiny_model
from tests.chaos.run_harness import LiveRun, wait_gone

RUN = """
[run]
directory = "out"
id = "chaos"

[model]
path = "model"
max_length = 64

[prompts]
generator = "chain-addition"

[actor]
max_tokens = 32
max_num_seqs = 64
kv_cache_bytes = 33554432

[learner]
num_steps = {num_steps}
num_ranks = {num_ranks}
groups_per_step = 8
group_size = 4
max_policy_lag = 2
learning_rate = 1e-5
checkpoint_every = 4
"""
GROUPS_PER_STEP = 8
MAX_POLICY_LAG = 2


def write_run(folder: Path, *, num_steps: int, num_ranks: int = 1) -> Path:
    texts = [prompt + completion for prompt, completion in corpus(0, 50, 0.5)]
    shape = TinyModelShape(hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=128)
    build_tiny_model(folder / "model", texts, shape, seed=0)
    file = folder / "run.toml"
    file.write_text(RUN.format(num_steps=num_steps, num_ranks=num_ranks))
    return file


def torchrun_agent(run: LiveRun) -> psutil.Process:
    return run.wait_ready("learner").parents()[0]


def second_rank(run: LiveRun) -> psutil.Process:
    first = run.wait_ready("learner")
    return next(rank for rank in torchrun_agent(run).children() if rank != first)


def verifier_child(run: LiveRun) -> psutil.Process:
    return run.wait_ready("verifier-0").children()[0]


VICTIMS: dict[str, Callable[[LiveRun], psutil.Process]] = {
    "broker": lambda run: run.wait_ready("broker"),
    "verifier": lambda run: run.wait_ready("verifier-0"),
    "verifier child": verifier_child,
    "actor": lambda run: run.wait_ready("actor-0"),
    "first learner rank": lambda run: run.wait_ready("learner"),
    "second learner rank": second_rank,
    "torchrun agent": torchrun_agent,
}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_survives_the_death_of_each_of_its_processes(tmp_path: Path) -> None:
    run = LiveRun.start(write_run(tmp_path, num_steps=30, num_ranks=2), tmp_path / "out")
    seen: set[psutil.Process] = set()
    try:
        for name, find in VICTIMS.items():
            run.wait_for_step(run.num_steps() + 2)
            seen.update(run.descendants())
            victim = find(run)
            assert victim.pid != run.process.pid
            os.kill(victim.pid, signal.SIGKILL)
            assert not wait_gone([victim], 10), f"{name} did not die"
        assert run.finish() == 0, run.output()
    finally:
        run.process.kill()
    check_finished(run, num_steps=30)
    assert wait_gone(list(seen), 10) == []


def check_finished(run: LiveRun, *, num_steps: int) -> None:
    status = json.loads(json.dumps(run.final_status()))
    groups = status["groups"]
    assert groups["trained"] == num_steps * GROUPS_PER_STEP
    assert groups["leased"] == groups["pending"] == 0
    assert groups["admitted"] == groups["trained"] + groups["evicted"] + groups["dead_lettered"]
    assert groups["dead_lettered"] == 0
    assert status["policy_step"] == num_steps
    assert status["weight_proofs_failed"] == 0
    steps = {row["policy_step"]: row for row in run.step_rows()}
    assert sorted(steps) == list(range(num_steps))  # type: ignore[type-var]  # JSON numbers
    assert max(int(str(row["lag_max"])) for row in steps.values()) <= MAX_POLICY_LAG
    assert (run.directory / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_outlives_a_supervisor_that_is_killed_or_interrupted_and_the_run_can_go_on(
    tmp_path: Path,
) -> None:
    run_file, directory = write_run(tmp_path, num_steps=14), tmp_path / "out"
    with ExitStack() as runs:

        def start(*arguments: str) -> LiveRun:
            run = LiveRun.start(run_file, directory, *arguments)
            runs.callback(run.process.kill)
            return run

        run = start()
        run.wait_for_step(3)
        below = run.descendants()
        run.process.kill()
        run.process.wait()
        assert wait_gone(below, 15) == []

        run = start("--resume")
        run.wait_for_step(run.num_steps() + 2)
        below = run.descendants()
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(timeout=10) == 130
        assert wait_gone(below, 1) == []
        assert "--resume" in run.output()

        run = start("--resume")
        assert run.finish() == 0, run.output()
    check_finished(run, num_steps=14)
