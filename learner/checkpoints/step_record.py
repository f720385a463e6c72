"""The durable record of one training step: enough to compute the same weights again.

Written and synced before the step is committed or its weights are published, so that a learner
killed at any moment either repeats the step from its record or nobody ever saw it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from common.errors import CheckpointError
from common.files import write_atomically
from common.types import Count, WeightVersion
from learner.batches.layout import ChunkLayout


class StepStatistics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What guards and alarms compare later steps with."""

    loss: float
    grad_norm: float
    """Before clipping."""
    entropy: float | None = None
    """Mean of the trained tokens, nats."""


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training batch, as it was computed."""

    incarnation: Count
    policy_step: Count
    """The step that the batch was computed at; it produced ``policy_step + 1``."""
    group_ids: tuple[Count, ...]
    """In the order of accumulation."""
    chunks: tuple[ChunkLayout, ...]
    """Which rollout stood where, chunk after chunk: sums are repeated in the same order."""
    world_size: Count
    weight_digest: str
    """Of the float32 weights after the step."""
    reference_version: WeightVersion | None = None
    """The reference policy that the step was computed with, None without a KL term."""
    statistics: StepStatistics | None = None
    """None in records of runs that kept none."""

    @property
    def context_parallel(self) -> int:
        """Ranks that each share of the batch was computed by."""
        num_shares = min((len(chunk.ranks) for chunk in self.chunks), default=self.world_size)
        return self.world_size // max(num_shares, 1)


def record_path(directory: Path, policy_step: int, incarnation: int) -> Path:
    """File of one record; a later incarnation never overwrites an earlier one."""
    return directory / f"{policy_step:08d}.{incarnation}.json"


def write_step_record(directory: Path, record: StepRecord) -> None:
    """Write and sync; raises :class:`CheckpointError` when that fails, leaving no half file."""
    path = record_path(directory, record.policy_step, record.incarnation)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(record) + b"\n")
    except OSError as error:
        raise CheckpointError(
            f"{path}: the step record cannot be written: {error.strerror} (free space on that disk "
            "and start again: no step is lost)"
        ) from None


def read_step_record(path: Path) -> StepRecord:
    """Read one record; raises :class:`CheckpointError` when it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StepRecord)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{path}: the step record cannot be read: {error} (delete it to go on from the last "
            "checkpoint under a new incarnation)"
        ) from None


def records_after(directory: Path, policy_step: int, incarnation: int) -> list[StepRecord]:
    """Records of ``incarnation`` from ``policy_step`` on, in order, up to the first gap."""
    records = []
    while (path := record_path(directory, policy_step, incarnation)).exists():
        records.append(read_step_record(path))
        policy_step += 1
    return records


def has_records_beyond(directory: Path, policy_step: int, incarnation: int) -> bool:
    """True when a record of ``incarnation`` at or after ``policy_step`` exists."""
    names = (path.name.split(".") for path in directory.glob(f"*.{incarnation}.json"))
    return any(name[0].isdigit() and int(name[0]) >= policy_step for name in names)
