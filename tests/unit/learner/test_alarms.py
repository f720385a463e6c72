"""Each alarm has a step that raises it, and one beside it that does not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from common.config import LearnerConfig
from common.config.guards import AlarmsConfig
from learner.checkpoints.lineage import Lineage
from learner.checkpoints.step_record import StepRecord, StepStatistics, write_step_record
from learner.health.alarms import ALARMS, Alarm, raised_alarms
from learner.health.watch import StepWatch, WatchMemory, read_memory
from learner.metrics.token_statistics import LagSums, TokenStatistics


def _tokens(lag: int = 0, **sums: float) -> TokenStatistics:
    """A hundred tokens of one lag whose mean ratio is 1, unless ``sums`` say otherwise."""
    fields = {"tokens": 100, "ratio": 100.0, "ratio_squared": 100.0} | sums
    return TokenStatistics(by_lag={lag: LagSums(**fields)})  # type: ignore[arg-type]


def _names(tokens: TokenStatistics, **limits: float) -> list[str]:
    settings = dataclasses.replace(AlarmsConfig(), **limits)  # type: ignore[arg-type]
    return [alarm.name for alarm in raised_alarms(settings, tokens, entropy=1.0, first_entropy=1.0)]


@pytest.mark.parametrize(
    ("name", "quiet", "loud"),
    [
        ("lag0_kl", _tokens(kl=1.9), _tokens(kl=2.1)),
        ("lag0_kl", _tokens(lag=1, kl=2.1), _tokens(kl=math.nan)),
        ("lag0_gap", _tokens(gap_max=4.9), _tokens(gap_max=5.1)),
        ("stale_kl", _tokens(lag=2, kl=49.0), _tokens(lag=2, kl=51.0)),
        ("ratio", _tokens(ratio=109.0), _tokens(ratio=111.0)),
        ("ratio", _tokens(ratio=91.0), _tokens(ratio=3.0)),
        ("clip_ratio", _tokens(clipped_low=29.0), _tokens(clipped_low=15.0, clipped_high=16.0)),
    ],
)
def test_an_alarm_is_raised_beyond_its_limit_alone(
    name: str, quiet: TokenStatistics, loud: TokenStatistics
) -> None:
    assert _names(quiet) == []
    assert _names(loud) == [name]


def test_a_limit_of_zero_turns_an_alarm_off() -> None:
    assert _names(_tokens(kl=50.0, ratio=500.0), max_lag0_kl=0.0, max_ratio_deviation=0.0) == []


@pytest.mark.parametrize(
    ("entropy", "first", "expected"),
    [
        (0.5, 2.0, []),
        (0.39, 2.0, ["entropy_ratio"]),
        (0.009, 0.02, ["entropy"]),
        (0.009, 2.0, ["entropy", "entropy_ratio"]),
        (None, 2.0, []),
        (0.5, None, []),
    ],
)
def test_entropy_is_compared_with_a_floor_and_with_the_first_step(
    entropy: float | None, first: float | None, expected: list[str]
) -> None:
    found = raised_alarms(AlarmsConfig(), _tokens(), entropy=entropy, first_entropy=first)
    assert [alarm.name for alarm in found] == expected


def test_a_message_names_value_limit_key_and_cure() -> None:
    (alarm,) = raised_alarms(AlarmsConfig(), _tokens(kl=25.0), entropy=None, first_entropy=None)
    assert alarm.message() == (
        "lag0_kl is 0.25, learner.alarms.max_lag0_kl is 0.02 (" + ALARMS["lag0_kl"] + ")"
    )
    spike = Alarm("spike", 50.0, 0.0, "grad_norm 50 is 50.0 times the median 1")
    assert spike.message().startswith("grad_norm 50 is 50.0 times the median 1 (replay the step")


def _step(entropy: float = 1.0, norm: float = 1.0) -> StepStatistics:
    return StepStatistics(loss=0.1, grad_norm=norm, entropy=entropy)


def test_an_alarm_is_told_when_it_begins_and_when_it_ends() -> None:
    watch = StepWatch(LearnerConfig())
    told = []
    for kl in (0.0, 9.0, 9.0, 0.0):
        alarms = watch.judge(_step(), _tokens(kl=kl))
        told.append([(name, alarm is not None) for name, alarm in watch.changes(alarms)])
    assert told == [[], [("lag0_kl", True)], [], [("lag0_kl", False)]]


def test_a_spike_that_was_taken_is_an_alarm_and_is_judged_by_the_steps_before_it() -> None:
    watch = StepWatch(LearnerConfig())
    watch.recall(WatchMemory(recent=(_step(),) * 10))
    assert [alarm.name for alarm in watch.judge(_step(norm=11.0), _tokens())] == ["spike"]
    assert watch.judge(_step(), _tokens()) == []


def test_memory_is_read_from_the_records_of_the_current_branch(tmp_path: Path) -> None:
    lineage = Lineage().forked(2)
    for step, incarnation, entropy in ((0, 0, 4.0), (1, 0, 3.0), (2, 0, 9.0), (2, 1, 2.0)):
        write_step_record(tmp_path, _record(step, incarnation, entropy))
    memory = read_memory(tmp_path, lineage, 3, window=2)
    assert memory.first is not None
    assert memory.first.entropy == 4.0
    assert [item.entropy for item in memory.recent] == [3.0, 2.0]
    assert read_memory(tmp_path, lineage, 0, window=2) == WatchMemory()


def _record(step: int, incarnation: int, entropy: float) -> StepRecord:
    return StepRecord(
        incarnation=incarnation,
        policy_step=step,
        group_ids=(),
        chunks=(),
        world_size=1,
        weight_digest="0",
        statistics=_step(entropy),
    )


def test_a_step_belongs_to_the_last_incarnation_that_had_begun_by_then() -> None:
    lineage = Lineage().forked(10).forked(5)
    assert [lineage.incarnation_at(step) for step in (4, 5, 7, 12)] == [0, 2, 2, 2]
    later = Lineage().forked(5).forked(10)
    assert [later.incarnation_at(step) for step in (4, 7, 12)] == [0, 1, 2]
