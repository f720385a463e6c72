"""The JSON Lines of a run's ``telemetry/`` folder as typed records.

Files are written by other processes, which may be killed in mid-line and replay steps after a
restart: a torn or foreign line is passed over, and of two records of one step the later one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

SILENT = "silent"
"""State of a process whose metrics page did not answer: its counters are not known, not 0."""

_T = TypeVar("_T", bound=msgspec.Struct)


class StepRecord(msgspec.Struct, frozen=True):
    """One training batch, as the learner describes it in ``steps.jsonl``.

    ``policy_step`` is the one that the batch was computed with: 0 for the first batch.
    """

    time: float
    policy_step: int
    reward_mean: float | None = None
    accuracy_mean: float | None = None
    format_mean: float | None = None
    response_length_mean: float | None = None
    response_length_finished_mean: float | None = None
    truncated_ratio: float | None = None
    entropy: float | None = None
    """Mean of the trained tokens, nats."""
    kl_behavior_lag0: float | None = None
    """k3 KL of policy and sampler, nats."""
    kl_behavior: float | None = None
    clip_low_ratio: float | None = None
    clip_high_ratio: float | None = None
    effective_sample_ratio: float | None = None
    response_length_right_mean: float | None = None
    response_length_wrong_mean: float | None = None
    lag_histogram: dict[str, int] = msgspec.field(default_factory=dict)
    """Trained tokens by policy lag."""
    lag_max: int = 0
    num_groups: int = 0
    num_tokens: int = 0
    seconds: dict[str, float] = msgspec.field(default_factory=dict)


class RolloutRecord(msgspec.Struct, frozen=True):
    """One sampled answer that the learner kept for reading, in ``rollouts.jsonl``."""

    policy_step: int
    prompt: str
    completion: str
    num_tokens: int
    """Completion tokens."""
    reward: float | None = None
    accuracy: float | None = None


class SftRecord(msgspec.Struct, frozen=True):
    """One step of supervised fine-tuning, in ``sft.jsonl``."""

    step: int
    loss: float
    time: float = 0.0


class ProcessScrape(msgspec.Struct, frozen=True):
    """One process at one moment: memory of its whole tree and the counters that it exports."""

    role: str
    pid: int
    state: str = ""
    rss_bytes: int = 0
    cpu_s: float = 0.0
    """Processor time of the process and its living descendants."""
    busy_s: dict[str, float] = msgspec.field(default_factory=dict)
    idle_s: dict[str, float] = msgspec.field(default_factory=dict)
    generated_tokens: float = 0.0
    weight_syncs: dict[str, float] = msgspec.field(default_factory=dict)
    groups: dict[str, float] = msgspec.field(default_factory=dict)
    policy_step: float | None = None


class Scrape(msgspec.Struct, frozen=True):
    """All processes of a run at one moment, in ``scrapes.jsonl``."""

    time: float
    processes: dict[str, ProcessScrape]
    rss_bytes: int = 0
    """Resident memory of the supervisor and of everything below it."""


def read_records(path: Path, kind: type[_T]) -> list[_T]:
    """All well-formed records of ``path`` in file order; none when there is no file."""
    return RecordTail(path, kind).read_new()


def read_steps(path: Path) -> list[StepRecord]:
    """Training batches by ``policy_step``, each once."""
    return latest_by_step(read_records(path, StepRecord))


def latest_by_step(records: Iterable[StepRecord]) -> list[StepRecord]:
    """Of each ``policy_step`` the last record, in order of steps."""
    by_step: Mapping[int, StepRecord] = {record.policy_step: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


class RecordTail(Generic[_T]):
    """Reads a growing file: each call returns the whole lines that are new."""

    def __init__(self, path: Path, kind: type[_T]) -> None:
        self._path = path
        self._kind = kind
        self._offset = 0

    def read_new(self) -> list[_T]:
        """Records since the last call; a line without its newline waits for the next one."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        found = (_record(line, self._kind) for line in whole.splitlines())
        return [record for record in found if record is not None]


def _record(line: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.convert(json.loads(line), kind, strict=False)
    except (ValueError, msgspec.ValidationError):
        return None
