"""The learning rate is a function of the step alone, whatever happened before it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import LearnerConfig, SftConfig
from common.config_loader import load_config
from common.errors import ConfigError
from learner.run_state import TrainingRun
from learner.step.schedule import learning_rate, rate_ratio
from learner.train import take_step
from tests.unit.learner.small_run import small_broker, small_config, small_run


def _ratios(schedule: str, count: int, **settings: float) -> list[float]:
    numbers = {"warmup_steps": 4, "num_steps": 21, "final_ratio": 0.1} | settings
    return [rate_ratio(schedule, step, **numbers) for step in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_warm_up_is_linear_and_ends_at_the_peak(schedule: str) -> None:
    assert _ratios(schedule, 5) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rate_ratio(schedule, 0, warmup_steps=0, num_steps=9, final_ratio=0.5) == 1.0


def test_a_constant_rate_stays_at_the_peak() -> None:
    assert _ratios("constant", 40)[4:] == [1.0] * 36


def test_a_linear_rate_loses_the_same_every_step_and_then_stays() -> None:
    ratios = _ratios("linear", 24)
    assert ratios[4:21] == pytest.approx([1.0 - 0.9 * step / 16 for step in range(17)])
    assert ratios[21:] == [ratios[20]] * 3


def test_a_cosine_rate_is_half_way_in_the_middle_and_then_stays() -> None:
    ratios = _ratios("cosine", 24)
    assert ratios[12] == pytest.approx(0.55)
    assert ratios[8] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert ratios[20:] == pytest.approx([0.1] * 4)


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup_steps=st.integers(0, 40),
    num_steps=st.integers(1, 60),
    final_ratio=st.floats(0, 1),
)
def test_no_schedule_leaves_its_bounds_or_rises_after_the_warm_up(
    schedule: str, warmup_steps: int, num_steps: int, final_ratio: float
) -> None:
    ratios = _ratios(
        schedule, 80, warmup_steps=warmup_steps, num_steps=num_steps, final_ratio=final_ratio
    )
    assert all(0 < ratio <= 1.0 for ratio in ratios[:warmup_steps])
    assert all(final_ratio - 1e-12 <= ratio <= 1.0 for ratio in ratios[warmup_steps:])
    assert ratios[warmup_steps:] == sorted(ratios[warmup_steps:], reverse=True)


def test_reinforcement_learning_is_constant_and_fine_tuning_anneals_to_a_tenth() -> None:
    learner = LearnerConfig(learning_rate=3e-6, num_steps=8)
    assert [learning_rate(learner, step) for step in range(8)] == [3e-6] * 8
    sft = SftConfig(learning_rate=5e-5, num_steps=8, warmup_steps=0)
    assert learning_rate(sft, 0) == 5e-5
    assert learning_rate(sft, 7) == pytest.approx(5e-6)


def test_a_resumed_run_has_the_rates_and_the_weights_of_one_that_was_not_cut(
    tmp_path: Path,
) -> None:
    config = small_config(tmp_path, schedule="cosine", num_steps=6, checkpoint_every=2)
    rates: dict[str, list[float]] = {"whole": [], "cut": []}

    def take(run: TrainingRun, count: int, name: str) -> str:
        for _ in range(count):
            take_step(run)
            rates[name].append(run.optimizer.param_groups[0]["lr"])
        return run.digest()

    with small_run(config) as run:
        whole = take(run, 3, "whole")
    with small_run(config, small_broker(next_group=4, policy_step=2)) as run:
        run.restore(2)
        assert take(run, 1, "cut") == whole
    assert rates["cut"] == rates["whole"][2:]
    assert rates["whole"] == pytest.approx(
        [1e-2 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 5))) for step in range(3)]
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("final_learning_rate_ratio = 1.5", r"final_learning_rate_ratio must be 0 to 1, got 1\.5"),
        ("warmup_steps = -1", "warmup_steps must be >= 0, got -1"),
        (
            'schedule = "linear"\nnum_steps = 5\nwarmup_steps = 5',
            r'must be below \w+\.num_steps = 5 for the schedule "linear", got 5',
        ),
        ('schedule = "exponential"', "schedule: invalid enum value 'exponential'"),
    ],
)
@pytest.mark.parametrize("section", ["learner", "sft"])
def test_a_schedule_that_cannot_be_is_refused(
    tmp_path: Path, section: str, lines: str, message: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[run]\ndirectory = "run"\n[model]\npath = "model"\n'
        f'[prompts]\ngenerator = "chain-addition"\n[{section}]\n{lines}\n'
    )
    with pytest.raises(ConfigError, match=message):
        load_config(file)
