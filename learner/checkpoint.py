"""Sharded checkpoints: each rank writes its own part, the directory appears whole or not at all.

``torch.distributed.checkpoint`` with its safetensors storage: tensors in safetensors, everything
else in one JSON file written last, so that nothing is ever unpickled. A checkpoint can be read by
another number of ranks than wrote it. No random state is kept because training draws no random
numbers: the order of prompts belongs to the broker.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from common.errors import CheckpointError
from common.files import fsync_directory, write_atomically
from common.types import INITIAL_VERSION, Count, WeightVersion
from learner.digests import policy_digest
from learner.mesh import Mesh
from learner.model import PolicyModel

STATE_FILE = "state.json"
_INCOMPLETE = ".incomplete"


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint holds beside tensors."""

    policy_step: Count
    """Training batches that the weights have seen."""
    incarnation: Count
    seed: int
    world_size: Count
    optimizer_steps: Count
    weight_digest: str
    """Of the float32 weights: a damaged file is noticed, not trained on."""
    config_digest: str
    """Of the resolved configuration."""
    file_bytes: dict[str, int] = {}
    """Size of every tensor file."""
    reference_version: WeightVersion = INITIAL_VERSION
    """The reference policy; its weights are under ``references/``."""


def checkpoint_path(directory: Path, policy_step: int) -> Path:
    """Where the checkpoint of ``policy_step`` lies."""
    return directory / f"{policy_step:08d}"


def save_checkpoint(
    directory: Path,
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
    state: CheckpointState,
    mesh: Mesh,
    *,
    keep: int,
) -> None:
    """Write ``state.policy_step``, then drop all but the newest ``keep``; a collective.

    Raises :class:`CheckpointError` on every rank when any rank cannot write; the older checkpoints
    are then untouched and nothing half-written is left.
    """
    final = checkpoint_path(directory, state.policy_step)
    partial = final.with_name(final.name + _INCOMPLETE)
    try:
        _on_main(mesh, partial, lambda: _make_empty(partial))
        _together(mesh, partial, lambda: _write_tensors(partial, policy, optimizer))
        _on_main(mesh, partial, lambda: _complete(partial, final, state))
    except CheckpointError:
        if mesh.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if mesh.is_main:
        _drop_old(directory, keep)


def newest_checkpoint(directory: Path) -> int | None:
    """The newest ``policy_step`` whose checkpoint is complete, or None."""
    steps = sorted((int(path.name) for path in _complete_directories(directory)), reverse=True)
    return next((step for step in steps if _is_whole(checkpoint_path(directory, step))), None)


def read_state(path: Path) -> CheckpointState:
    """The JSON part of a checkpoint; raises :class:`CheckpointError` when it is damaged."""
    try:
        return msgspec.json.decode((path / STATE_FILE).read_bytes(), type=CheckpointState)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{path}/{STATE_FILE}: cannot be read: {error} ({_cure(path)})"
        ) from (None)


def named_references(directory: Path) -> set[WeightVersion]:
    """References that complete checkpoints go on with."""
    paths = [path for path in _complete_directories(directory) if _is_whole(path)]
    return {read_state(path).reference_version for path in paths}


def load_checkpoint(
    directory: Path,
    policy_step: int,
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
    mesh: Mesh,
) -> CheckpointState:
    """Fill ``policy`` and ``optimizer`` in place; a collective.

    Raises :class:`CheckpointError` when a file is damaged or belongs to another model.
    """
    path = checkpoint_path(directory, policy_step)
    state = read_state(path)
    tensors = _named_tensors(policy, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            reader = HuggingFaceStorageReader(str(path))
            dcp.load(tensors, storage_reader=reader, no_dist=mesh.data_axis is None)
    except Exception as error:  # DCP raises many kinds, none of them documented
        raise CheckpointError(
            f"{path}: cannot be loaded: {_root_message(error)} ({_cure(path)})"
        ) from None
    for moments in optimizer.state.values():
        moments["step"].fill_(state.optimizer_steps)
    found = policy_digest(policy, mesh)
    if found != state.weight_digest:
        raise CheckpointError(
            f"{path}: weights have digest {found}, the checkpoint says {state.weight_digest} "
            f"({_cure(path)})"
        )
    return state


def _named_tensors(policy: PolicyModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and both AdamW moments under flat names; views, so loading fills them in place."""
    tensors: dict[str, Tensor] = {}
    for name, weight in policy.named_weights():
        tensors[f"weight.{name}"] = weight.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[weight][moment]
    return tensors


def _write_tensors(partial: Path, policy: PolicyModel, optimizer: torch.optim.Optimizer) -> None:
    alone = not torch.distributed.is_initialized()
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(_named_tensors(policy, optimizer), storage_writer=writer, no_dist=alone)


def _complete(partial: Path, final: Path, state: CheckpointState) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(partial.glob("*.safetensors"))}
    whole = msgspec.structs.replace(state, file_bytes=sizes)
    write_atomically(partial / STATE_FILE, msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
    if final.exists():  # the same step again, after a resume
        shutil.rmtree(final)
    partial.rename(final)
    fsync_directory(final.parent)


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _complete_directories(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]


def _is_whole(path: Path) -> bool:
    """True when the JSON part and every file that it lists are there in full size."""
    try:
        sizes = read_state(path).file_bytes
        return bool(sizes) and all(
            (path / name).stat().st_size == size for name, size in sizes.items()
        )
    except (CheckpointError, OSError):
        return False


def _drop_old(directory: Path, keep: int) -> None:
    """Only whole ones count as kept, so a broken newest never costs the last good one."""
    steps = sorted(int(path.name) for path in _complete_directories(directory))
    whole = [step for step in steps if _is_whole(checkpoint_path(directory, step))]
    for step in whole[:-keep]:
        shutil.rmtree(checkpoint_path(directory, step), ignore_errors=True)
    for path in directory.glob(f"*{_INCOMPLETE}"):
        shutil.rmtree(path, ignore_errors=True)


def _on_main(mesh: Mesh, path: Path, work: Callable[[], None]) -> None:
    _together(mesh, path, work if mesh.is_main else _nothing)


def _nothing() -> None:
    return None


def _together(mesh: Mesh, path: Path, work: Callable[[], None]) -> None:
    """Run ``work`` on each rank and raise everywhere if it failed anywhere."""
    problem = ""
    try:
        work()
    except Exception as error:  # DCP wraps the disk's error in its own, undocumented kinds
        problem = f"rank {mesh.rank}: {_root_message(error)}"
    problems = [text.decode() for text in mesh.gather(problem.encode()) if text]
    if problems:
        raise CheckpointError(
            f"{path}: the checkpoint cannot be written: {problems[0]} (free space on that disk, or "
            "lower learner.keep_checkpoints, and start again: older checkpoints are intact)"
        )


def _root_message(error: BaseException) -> str:
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def _cure(path: Path) -> str:
    return f"delete {path} to go on from the checkpoint before it"
