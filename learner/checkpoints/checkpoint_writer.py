"""Writes checkpoints behind the back of the training loop.

The loop leaves a copy of its state and goes on. One background thread a rank writes that rank's
file and reads it again; rank 0 hears of every file through the ranks' store, writes the JSON part
that lists them all and renames the directory, which makes the checkpoint exist. No collective runs
outside the training loop, so none can be mixed up with those inside.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from torch import Tensor

from common.errors import CheckpointError
from common.files import fsync_directory, write_atomically
from learner.checkpoints.checkpoint import (
    INCOMPLETE,
    STATE_FILE,
    CheckpointState,
    checkpoint_path,
    drop_old,
    file_name,
)
from learner.checkpoints.checkpoint_tensors import (
    FileEntry,
    HostCopies,
    Trainees,
    describe_tensors,
    named_tensors,
    write_tensors,
)
from learner.models.mesh import Mesh, RankStore

_POLL_S = 0.02
_PART_TIMEOUT_S = 3600.0
"""A rank that has not written its file by then never will; one that died is noticed long before."""


class _Report(msgspec.Struct, frozen=True):
    """What one rank's thread tells rank 0."""

    file: FileEntry | None = None
    problem: str = ""


class CheckpointWriter:
    """Writes one checkpoint at a time; ``begin`` and ``settle`` are collectives of the loop."""

    def __init__(self, directory: Path, mesh: Mesh, *, keep: int) -> None:
        """``keep`` whole checkpoints stay in ``directory``; older ones go."""
        self._directory = directory
        self._mesh = mesh
        self._keep = keep
        self._store = None if mesh.store is None else mesh.store.clone()
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._num_begun = 0
        self._step = 0
        self.write_s = 0.0
        """How long the newest checkpoint took to write on this rank."""

    @property
    def step(self) -> int | None:
        """``policy_step`` of the checkpoint in flight: begun and not settled."""
        return None if self._thread is None else self._step

    @property
    def is_whole(self) -> bool:
        """On rank 0: the checkpoint in flight lies there under its name."""
        return self._thread is not None and not self._thread.is_alive() and not self._problem

    def begin(self, trainees: Trainees, state: CheckpointState) -> None:
        """Copy this rank's part and write it in the background; the one before must be settled."""
        if self._thread is not None:
            raise ValueError("the checkpoint in flight must be settled first")
        tensors = named_tensors(trainees)
        copies = self._copies.take(tensors, self._mesh.rank)
        described = msgspec.structs.replace(state, tensors=describe_tensors(tensors))
        self._num_begun += 1
        self._step = state.policy_step
        self._problem = ""
        self._thread = threading.Thread(
            target=self._run, args=(copies, described), name="checkpoint", daemon=True
        )
        self._thread.start()

    def settle(self) -> str:
        """Wait for the checkpoint in flight; returns on every rank what went wrong, or "".

        What was half written is then gone, and every older checkpoint is as it was.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problems = self._mesh.gather(self._problem.encode())  # no rank writes any more
        problem = next((text.decode() for text in problems if text), "")
        if problem and self._mesh.is_main:
            remove_incomplete(self._directory)
        return problem

    def _run(self, copies: Mapping[str, Tensor], state: CheckpointState) -> None:
        begin_s = time.monotonic()
        partial = checkpoint_path(self._directory, state.policy_step)
        partial = partial.with_name(partial.name + INCOMPLETE)
        report = self._write_part(partial, copies)
        try:
            if self._mesh.is_main:
                self._complete(partial, state, self._all_reports(report))
            elif self._store is not None:
                self._store.set(self._key(self._mesh.rank), msgspec.json.encode(report).decode())
        except Exception as error:  # whatever it was must reach the loop, not end a thread unseen
            self._problem = describe_failure(self._mesh.rank, error)
        self.write_s = time.monotonic() - begin_s

    def _write_part(self, partial: Path, copies: Mapping[str, Tensor]) -> _Report:
        rank, num_ranks = self._mesh.rank, self._mesh.world_size
        try:
            partial.mkdir(parents=True, exist_ok=True)
            return _Report(write_tensors(partial / file_name(rank, num_ranks), copies))
        except Exception as error:
            return _Report(problem=describe_failure(rank, error))

    def _all_reports(self, own: _Report) -> list[_Report]:
        if self._store is None:
            return [own]
        deadline_s = time.monotonic() + _PART_TIMEOUT_S
        others = range(1, self._mesh.world_size)
        return [own, *(self._report_of(rank, self._store, deadline_s) for rank in others)]

    def _report_of(self, rank: int, store: RankStore, deadline_s: float) -> _Report:
        """What ``rank`` says once it has written."""
        while not store.check([self._key(rank)]):
            if time.monotonic() > deadline_s:
                raise CheckpointError(f"rank {rank} wrote nothing in {_PART_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)  # not a wait in the store: a process that ends could not leave it
        told = store.get(self._key(rank))
        store.delete_key(self._key(rank))
        return msgspec.json.decode(told, type=_Report)

    def _complete(self, partial: Path, state: CheckpointState, reports: list[_Report]) -> None:
        """List all files, make the directory durable and give it its name."""
        problems = [report.problem for report in reports if report.problem]
        if problems:
            self._problem = problems[0]
            return
        num_ranks = len(reports)
        files = {
            file_name(rank, num_ranks): report.file
            for rank, report in enumerate(reports)
            if report.file is not None
        }
        whole = msgspec.structs.replace(state, files=files)
        write_atomically(partial / STATE_FILE, msgspec.json.encode(whole) + b"\n")
        final = checkpoint_path(self._directory, state.policy_step)
        if final.exists():  # the same step again, after a resume
            shutil.rmtree(final)
        partial.rename(final)
        fsync_directory(final.parent)
        drop_old(self._directory, self._keep)

    def _key(self, rank: int) -> str:
        return f"checkpoint/{self._num_begun}/{rank}"


def remove_incomplete(directory: Path) -> None:
    """Clear what a writer that died or failed has left."""
    for path in directory.glob(f"*{INCOMPLETE}"):
        shutil.rmtree(path, ignore_errors=True)


def describe_failure(rank: int, error: BaseException) -> str:
    """One line about what a rank could not do."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"rank {rank}: {' '.join(text.split())[:300]}"
