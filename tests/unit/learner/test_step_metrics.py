"""What a step reports: counts, means, and nothing that strict JSON cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from common.clock import ManualClock
from common.types import (
    FinishReason,
    RewardComponent,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    VerifiedRollout,
)
from learner.batches.screening import Screen
from learner.checkpoints.lineage import Lineage
from learner.metrics.step_metrics import describe_groups
from learner.metrics.stopwatch import Stopwatch
from learner.metrics.telemetry import Telemetry
from learner.step.training_batch import SUMS, StepOutcome
from tests.builders import prompt, rollout_header, version
from tests.unit.learner.small_run import small_config, small_model, small_process


def _item(index: int, reward: float, length: int, *, finished: bool = True) -> VerifiedRollout:
    header = rollout_header(
        group_id=1, index=index, num_completion=length, spans=((0, version(index % 2)),)
    )
    reason = FinishReason.STOP if finished else FinishReason.LENGTH
    return VerifiedRollout(
        rollout=msgspec.structs.replace(header, finish_reason=reason),
        verdict=Verdict(
            status=VerdictStatus.GRADED,
            reward=reward,
            components=(RewardComponent(name="accuracy", value=reward / 2),),
        ),
    )


def _group(*items: VerifiedRollout) -> VerifiedGroup:
    return VerifiedGroup(group_id=1, prompt=prompt(), deadline_step=3, rollouts=items)


def _screen() -> Screen:
    return Screen(small_config(Path("/nowhere")), Lineage(), 1)


def _outcome(**sums: float) -> StepOutcome:
    return StepOutcome(
        finite=True,
        loss=float("nan"),
        grad_norm=2.0,
        sums=dict.fromkeys(SUMS, 0.0) | sums,
        on_policy_gap=0.5,
    )


def test_groups_are_described_by_their_trained_rollouts() -> None:
    mixed = _group(_item(0, 2.0, 4), _item(1, 0.0, 10, finished=False), _item(2, 2.0, 7))
    uniform = _group(_item(0, 1.0, 3), _item(1, 1.0, 3))
    row = describe_groups([mixed, uniform], _screen())
    assert row["num_groups"] == 2
    assert row["num_tokens"] == 27
    assert row["reward_mean"] == pytest.approx(6 / 5)
    assert row["accuracy_mean"] == pytest.approx(3 / 5)
    assert row["format_mean"] is None
    assert row["response_length_mean"] == pytest.approx(27 / 5)
    assert row["response_length_finished_mean"] == pytest.approx(17 / 4)
    assert row["response_length_truncated_mean"] == 10
    assert row["truncated_ratio"] == pytest.approx(1 / 5)
    assert row["zero_advantage_ratio"] == 0.5
    assert row["lag_histogram"] == {"0": 13, "1": 14}
    assert row["lag_max"] == 1
    assert row["lag_mean"] == pytest.approx(14 / 27)


def test_what_was_not_counted_is_left_out_of_the_line(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    small_model(tmp_path / "model")
    with small_process(config) as process:
        telemetry = Telemetry(config, process.paths, process.metrics)
        telemetry.record_step(
            policy_step=1,
            incarnation=0,
            groups=describe_groups([_group(_item(1, 1.0, 3))], _screen()),
            outcome=_outcome(tokens=4.0, entropy=6.0, clipped=1.0),
            seconds={"wait": 1.5, "compute": 2.0},
        )
        registry = process.metrics.registry
        idle = registry.get_sample_value("headrace_idle_seconds_total", {"stage": "learner_wait"})
        busy = registry.get_sample_value(
            "headrace_busy_seconds_total", {"stage": "learner_compute"}
        )
        assert (idle, busy) == (1.5, 2.0)
        assert registry.get_sample_value("headrace_entropy_nats") == 1.5
    (line,) = (tmp_path / "run/telemetry/steps.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert row["entropy"] == 1.5
    assert row["clip_ratio"] == 0.25
    assert row["seconds"] == {"compute": 2.0, "wait": 1.5}
    for missing in ("loss", "format_mean", "kl_behavior_lag0", "logprob_gap_lag0_max"):
        assert missing not in row


def test_a_stopwatch_adds_up_stages_and_starts_anew_when_read() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    for seconds in (1.0, 2.0):
        with watch.stage("compute"):
            clock.advance(seconds)
    with watch.stage("wait"):
        clock.advance(4.0)
    assert watch.take() == {"compute": 3.0, "wait": 4.0}
    assert watch.take() == {}
