"""What each rank trained on, step by step, so that a step can be computed again without a broker.

The step record says which rollouts a step took and in which order; a recording holds the rollouts
themselves as the step read them: token ids, log-probabilities, advantages, masks. The broker
deletes payloads once a checkpoint covers them, recordings stay: ``learner.recorded_steps`` of them,
as far back as the oldest checkpoint that they could be replayed from. One safetensors file a step
and rank; what is not an array is JSON in its header. It is written before the step record and not
synced: no step is ever lost because its recording is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import CheckpointError
from common.types import RolloutId, VerifiedGroup
from learner.batches.batch import Document
from learner.batches.chunk import Chunk
from learner.batches.layout import ChunkLayout, PlannedRollout

_HEADER = "headrace"
Array = npt.NDArray[np.generic]


class _RecordedDocument(msgspec.Struct, frozen=True):
    """Everything of a :class:`Document` but its arrays, which are tensors of the file."""

    rollout_id: RolloutId
    scalars: dict[str, int | float]


class _RecordedChunk(msgspec.Struct, frozen=True):
    layout: ChunkLayout
    rollouts: tuple[PlannedRollout, ...]
    documents: tuple[_RecordedDocument, ...]
    groups: tuple[VerifiedGroup, ...]


def recording_path(directory: Path, policy_step: int, incarnation: int, rank: int) -> Path:
    """File of one rank's share of a step."""
    return directory / f"{policy_step:08d}.{incarnation}.{rank}.safetensors"


def write_recording(path: Path, chunks: Sequence[Chunk]) -> None:
    """Keep ``chunks`` of this rank; raises ``OSError``, leaving no half file under the name."""
    tensors: dict[str, Array] = {}
    header = msgspec.json.encode([_taken_apart(chunk, tensors) for chunk in chunks]).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".incomplete")
    partial.write_bytes(save(tensors, metadata={_HEADER: header}))
    partial.replace(path)


def read_recording(path: Path) -> list[Chunk]:
    """What :func:`write_recording` kept; raises :class:`CheckpointError` when it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {})[_HEADER]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded = msgspec.json.decode(header, type=list[_RecordedChunk])
        return [_put_together(chunk, tensors) for chunk in recorded]
    except (OSError, SafetensorError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{path}: the recording cannot be read: {error} (replay an earlier step, before this "
            "one is needed)"
        ) from None


def prune_recordings(directory: Path, *, keep: int, oldest_checkpoint: int) -> None:
    """Drop all but the newest ``keep`` steps, and what no checkpoint leads to."""
    by_step: dict[int, list[Path]] = {}
    for path in directory.glob("*.safetensors*"):
        by_step.setdefault(int(path.name.split(".")[0]), []).append(path)
    kept = [step for step in sorted(by_step) if step >= oldest_checkpoint][-keep:]
    for step in by_step.keys() - set(kept):
        for path in by_step[step]:
            path.unlink(missing_ok=True)


def _taken_apart(chunk: Chunk, tensors: dict[str, Array]) -> _RecordedChunk:
    """The part that is JSON; arrays go into ``tensors`` under their rollout's name."""
    kept = frozenset(chunk.layout.group_ids)
    documents = []
    for rollout_id, document in chunk.documents.items():
        if rollout_id.group_id not in kept:
            continue
        scalars: dict[str, int | float] = {}
        for field in dataclasses.fields(document):
            value = getattr(document, field.name)
            if isinstance(value, np.ndarray):
                tensors[_tensor_name(rollout_id, field.name)] = np.ascontiguousarray(value)
            elif value is not None:
                scalars[field.name] = value
        documents.append(_RecordedDocument(rollout_id, scalars))
    rollouts = tuple(chunk.kept_rollouts.values())
    return _RecordedChunk(chunk.layout, rollouts, tuple(documents), chunk.groups)


def _put_together(recorded: _RecordedChunk, tensors: Mapping[str, Array]) -> Chunk:
    names = [field.name for field in dataclasses.fields(Document)]
    documents = {}
    for item in recorded.documents:
        own = {name: _tensor_name(item.rollout_id, name) for name in names}
        arrays = {name: tensors[key] for name, key in own.items() if key in tensors}
        documents[item.rollout_id] = Document(**arrays, **item.scalars)  # type: ignore[arg-type]
    return Chunk(
        layout=recorded.layout,
        rollouts={rollout.rollout_id: rollout for rollout in recorded.rollouts},
        documents=documents,
        groups=recorded.groups,
    )


def _tensor_name(rollout_id: RolloutId, field: str) -> str:
    return f"{rollout_id.group_id}.{rollout_id.index}.{rollout_id.attempt}.{field}"
