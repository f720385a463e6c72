"""Sharded checkpoints on disk: what they hold, which are whole, and how they are loaded.

``checkpoints/<policy_step>/`` has one safetensors file a rank (``checkpoint_tensors``) and one JSON
file that lists them with size and checksum; nothing is ever unpickled. The directory appears whole
or not at all (``checkpoint_writer``), and any number of ranks can read it. No random state is kept
because training draws no random numbers: the order of prompts belongs to the broker.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Literal

import msgspec

from common.config import Config
from common.config_loader import to_toml
from common.errors import CheckpointError
from common.types import INITIAL_VERSION, Count, WeightVersion
from learner.checkpoints.checkpoint_tensors import (
    FileEntry,
    TensorEntry,
    Trainees,
    file_checksum,
    named_tensors,
    read_tensors,
)
from learner.models.mesh import Mesh

STATE_FILE = "state.json"
INCOMPLETE = ".incomplete"
FORMAT: Literal[2] = 2


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint holds beside tensors.

    ``policy_step`` is also the place in the step records and in the schedule, and the number of
    steps that the broker has committed: all of it becomes durable with one rename. A broker whose
    journal is of another run, has fewer steps or is shorter is refused at a start.
    """

    format: Literal[2] = FORMAT
    policy_step: Count
    """Training batches that the weights have seen."""
    incarnation: Count
    """With ``policy_step``, the version of the weights."""
    seed: int
    world_size: Count
    weight_digest: str
    """Of the policy's trained weights as float32, as in the step records."""
    config_digest: str
    """Of the resolved configuration."""
    run_id: str = ""
    """The run that the broker's journal must be of."""
    base_digest: str = ""
    """Of the frozen weights under adapters; "" where all weights are trained."""
    num_journal_events: Count = 0
    """How long the broker's journal was when it had committed the steps; 0 if it was not told."""
    reference_version: WeightVersion = INITIAL_VERSION
    """The reference policy; its weights are under ``references/``."""
    files: dict[str, FileEntry] = {}
    """One of each rank that wrote, in the order of ranks."""
    tensors: dict[str, TensorEntry] = {}


class _Format(msgspec.Struct):
    """All that is asked of a state of any age."""

    format: int = 1


def config_digest(config: Config) -> str:
    """16 hexadecimal digits of the resolved configuration."""
    return hashlib.sha256(to_toml(config).encode()).hexdigest()[:16]


def checkpoint_path(directory: Path, policy_step: int) -> Path:
    """Where the checkpoint of ``policy_step`` lies."""
    return directory / f"{policy_step:08d}"


def file_name(rank: int, num_ranks: int) -> str:
    """The file that ``rank`` writes."""
    return f"rank-{rank:05d}-of-{num_ranks:05d}.safetensors"


def newest_checkpoint(directory: Path) -> int | None:
    """The newest ``policy_step`` whose checkpoint is complete, or None.

    Raises :class:`CheckpointError` where one was written in another format.
    """
    steps = sorted((int(path.name) for path in _complete_directories(directory)), reverse=True)
    return next((step for step in steps if is_whole(checkpoint_path(directory, step))), None)


def complete_checkpoints(directory: Path) -> list[int]:
    """``policy_step`` of every checkpoint that is whole, in order."""
    steps = sorted(int(path.name) for path in _complete_directories(directory))
    return [step for step in steps if is_whole(checkpoint_path(directory, step))]


def oldest_checkpoint(directory: Path) -> int | None:
    """The oldest ``policy_step`` that has a checkpoint directory, or None."""
    return min((int(path.name) for path in _complete_directories(directory)), default=None)


def read_state(path: Path) -> CheckpointState:
    """The JSON part of a checkpoint; raises :class:`CheckpointError` when it is damaged."""
    try:
        data = (path / STATE_FILE).read_bytes()
        _refuse_other_format(path, msgspec.json.decode(data, type=_Format).format)
        return msgspec.json.decode(data, type=CheckpointState)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{path}/{STATE_FILE}: cannot be read: {error} ({_cure(path)})"
        ) from None


def named_references(directory: Path) -> set[WeightVersion]:
    """References that complete checkpoints go on with."""
    paths = [path for path in _complete_directories(directory) if is_whole(path)]
    return {read_state(path).reference_version for path in paths}


def load_checkpoint(
    directory: Path, policy_step: int, trainees: Trainees, mesh: Mesh
) -> CheckpointState:
    """Fill models and optimizers in place, whatever number of ranks wrote; a collective.

    Raises :class:`CheckpointError` on every rank when a file is damaged or belongs to another
    model.
    """
    path = checkpoint_path(directory, policy_step)
    state = read_state(path)
    problem = _damaged_file(path, state, mesh)
    if not problem:
        try:
            read_tensors(path, list(state.files), state.tensors, named_tensors(trainees))
        except Exception as error:  # safetensors raises kinds of its own
            problem = f"cannot be loaded: {error}"
    problems = [told.decode() for told in mesh.gather(problem.encode()) if told]
    if problems:
        raise CheckpointError(f"{path}: {problems[0]} ({_cure(path)})")
    return state


def is_whole(path: Path) -> bool:
    """True when the JSON part and every file that it lists are there in full size."""
    try:
        files = read_state(path).files
    except CheckpointError:
        if _is_of_other_format(path):
            raise
        return False
    try:
        return bool(files) and all(
            (path / name).stat().st_size == entry.num_bytes for name, entry in files.items()
        )
    except OSError:
        return False


def drop_old(directory: Path, keep: int) -> None:
    """Only whole ones count as kept, so a broken newest never costs the last good one."""
    steps = sorted(int(path.name) for path in _complete_directories(directory))
    whole = [step for step in steps if is_whole(checkpoint_path(directory, step))]
    for step in whole[:-keep]:
        shutil.rmtree(checkpoint_path(directory, step), ignore_errors=True)


def _damaged_file(path: Path, state: CheckpointState, mesh: Mesh) -> str:
    """What is wrong with the files that this rank looks at, or ""; ranks share the work."""
    for name, entry in list(state.files.items())[mesh.rank :: mesh.world_size]:
        try:
            found = file_checksum(path / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != entry.checksum:
            return f"{name} has checksum {found}, the checkpoint says {entry.checksum}"
    return ""


def _complete_directories(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]


def _is_of_other_format(path: Path) -> bool:
    try:
        found = msgspec.json.decode((path / STATE_FILE).read_bytes(), type=_Format)
    except (OSError, msgspec.MsgspecError):
        return False
    return found.format != FORMAT


def _refuse_other_format(path: Path, found: int) -> None:
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoints must have format {FORMAT}, this one has {found} (finish the run "
            "with the release that began it, or set another run.directory and go on from exported "
            "weights with model.path)"
        )


def _cure(path: Path) -> str:
    return f"delete {path} to go on from the checkpoint before it"
