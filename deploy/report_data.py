"""What a report shows, gathered from a run's or a demo's folder."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from common.config import RunPaths
from common.errors import FatalError
from deploy.demo_config import DemoPaths
from deploy.demo_summary import read_final_status
from deploy.evaluation import SAMPLES_FILE, SampleRecord
from deploy.run_analysis import (
    RoleTime,
    between,
    lag_histogram,
    role_times,
    token_rates,
    tokens_per_second,
    training_window,
)
from deploy.telemetry_records import (
    RolloutRecord,
    Scrape,
    StepRecord,
    read_records,
    read_steps,
)

MAX_PAIRS = 4
_END_STEPS = 2
"""Answers of the first and of the last so many batches stand for the start and the end."""
_SAME_PROMPTS = (
    "The same held-out problems before training, on the left, and after it, on the right. "
    "Evenly spread over the sorted problems, first answers, not picked by reward."
)
_NEAREST_PROMPTS = (
    "Start on the left, end on the right, with the nearest prompt there is. "
    "Taken in the order they were recorded, not picked by reward."
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """pass@1 and length on held-out problems at one moment, with a 95 % interval."""

    pass_at_1: float
    ci95: tuple[float, float]
    mean_length: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the model with its judgement; ``when`` says which policy wrote it."""

    when: str
    prompt: str
    completion: str
    num_tokens: int
    reward: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """An answer from the start beside one to the same or the nearest prompt from the end."""

    early: Answer
    late: Answer


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything on the page, as values."""

    title: str
    steps: Sequence[StepRecord]
    rates: Sequence[tuple[float, float]] = ()
    """(seconds since the first scrape shown, completion tokens a second)."""
    tokens_per_second: float = 0.0
    times: Mapping[str, RoleTime] = field(default_factory=dict)
    lags: Mapping[int, int] = field(default_factory=dict)
    max_policy_lag: int | None = None
    before: HeldOut | None = None
    after: HeldOut | None = None
    pairs: Sequence[AnswerPair] = ()
    pairs_note: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def read_report(folder: Path) -> ReportData:
    """The report of the run or the demo in ``folder``; raises :class:`FatalError` if it is none."""
    demo = DemoPaths(folder)
    if not demo.stages.exists():
        return _gather(folder, f"Run {folder.resolve().name}")
    summary = _read_summary(demo.summary)
    data = _gather(demo.train_run, f"Demo, seed {summary.get('seed', '?')}")
    before, after = (
        read_records(demo.evaluation(when) / "results" / SAMPLES_FILE, SampleRecord)
        for when in ("before", "after")
    )
    pairs = pair_samples(before, after)
    return dataclasses.replace(
        data,
        max_policy_lag=summary.get("max_policy_lag", data.max_policy_lag),
        before=held_out(summary, "before"),
        after=held_out(summary, "after"),
        pairs=pairs or data.pairs,
        pairs_note=_SAME_PROMPTS if pairs else data.pairs_note,
        summary=summary,
    )


def pair_samples(
    before: Sequence[SampleRecord], after: Sequence[SampleRecord], limit: int = MAX_PAIRS
) -> list[AnswerPair]:
    """Answers to the same held-out problems before and after training, evenly spread by name."""
    later = {sample.prompt_id: sample for sample in reversed(after)}
    earlier = {sample.prompt_id: sample for sample in reversed(before)}
    names = sorted(earlier.keys() & later.keys())
    shared = names[:: max(1, -(-len(names) // limit))]
    return [
        AnswerPair(_sampled("before", earlier[name]), _sampled("after", later[name]))
        for name in shared
    ]


def pair_rollouts(rollouts: Sequence[RolloutRecord], limit: int = MAX_PAIRS) -> list[AnswerPair]:
    """Answers from the end of the run, each beside the start's answer to the nearest prompt.

    Taken in the order of the file, never picked by reward: the pairs are a fair sample.
    """
    steps = [item.policy_step for item in rollouts]
    if not steps or min(steps) == max(steps):
        return []
    early = [item for item in rollouts if item.policy_step < min(steps) + _END_STEPS]
    late = [item for item in rollouts if item.policy_step > max(steps) - _END_STEPS]
    by_prompt = {item.prompt: item for item in reversed(late)}
    pairs: list[AnswerPair] = []
    for item in reversed(by_prompt.values()):
        if len(pairs) == limit or not early:
            break
        nearest = max(early, key=lambda other: _similarity(other.prompt, item.prompt))
        early = [other for other in early if other is not nearest]
        pairs.append(AnswerPair(_trained(nearest), _trained(item)))
    return pairs


def held_out(summary: Mapping[str, Any], when: str) -> HeldOut | None:
    """The evaluation ``before`` or ``after`` training from a demo's summary, if it is there."""
    value = summary.get(f"pass_at_1_{when}")
    if value is None:
        return None
    low, high = summary.get(f"pass_at_1_{when}_ci95", (value, value))
    return HeldOut(float(value), (low, high), float(summary[f"mean_length_{when}"]))


def _gather(run: Path, title: str) -> ReportData:
    telemetry = RunPaths(run).telemetry
    steps = read_steps(telemetry / "steps.jsonl")
    if not steps:
        raise FatalError(
            f"{run}: no training step is recorded there (give the folder of a run or a demo)"
        )
    scrapes = read_records(telemetry / "scrapes.jsonl", Scrape)
    window = training_window(steps, scrapes)
    shown = between(scrapes, *window) if window and scrapes else []
    begin = shown[0].time if shown else 0.0
    return ReportData(
        title=title,
        steps=steps,
        rates=[(time - begin, rate) for time, rate in token_rates(shown)],
        tokens_per_second=tokens_per_second(shown),
        times=role_times(shown),
        lags=lag_histogram(steps),
        pairs=pair_rollouts(read_records(telemetry / "rollouts.jsonl", RolloutRecord)),
        pairs_note=_NEAREST_PROMPTS,
        status=_status_or_nothing(run),
    )


def _read_summary(path: Path) -> Mapping[str, Any]:
    try:
        summary: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise FatalError(f"{path}: cannot be read: {error} (headrace demo --resume)") from None
    return summary


def _status_or_nothing(run: Path) -> Mapping[str, Any]:
    """The broker's final state; a run that is still going on has none."""
    try:
        return read_final_status(RunPaths(run))
    except FatalError:
        return {}


def _sampled(when: str, sample: SampleRecord) -> Answer:
    return Answer(
        when=f"{when} training",
        prompt=sample.prompt,
        completion=sample.completion,
        reward=sample.reward,
        accuracy=sample.accuracy,
        num_tokens=sample.num_tokens,
    )


def _trained(rollout: RolloutRecord) -> Answer:
    return Answer(
        when=f"step {rollout.policy_step}",
        prompt=rollout.prompt,
        completion=rollout.completion,
        num_tokens=rollout.num_tokens,
        reward=rollout.reward,
        accuracy=rollout.accuracy,
    )


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()
