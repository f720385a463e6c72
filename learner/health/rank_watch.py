"""Ranks watch each other: one that died or hangs is noticed in seconds, not at a collective's end.

Every rank writes a beat into the ranks' store and reads everybody's, beside all collectives. When a
rank is silent the others kill it where they can, so that it does not come back later, keep their
stacks and end; whoever started them starts all again. Nothing is destroyed in order: that would
wait for the dead (NCCL's and gloo's groups alike). A rank that was asked to stop tells rank 0,
which stops the run for all.
"""

from __future__ import annotations

import faulthandler
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil

from common.errors import EXIT_INFRA
from common.types import Count
from learner.models.mesh import Mesh, RankStore

_BEATS_PER_TIMEOUT = 8


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank says about itself."""

    number: Count
    """Grows by one a beat."""
    host: str
    pid: Count
    started_s: float
    """Start of the process, which tells it from a later one of the same pid."""
    worked_s: float = 0.0
    """Processor time of the thread that trains."""
    is_stopping: bool = False
    is_done: bool = False


class Silences:
    """How long each rank has said nothing; pure."""

    def __init__(self, ranks: Iterable[int], *, limit_s: float, now_s: float) -> None:
        """``limit_s`` is the longest silence of a rank that lives."""
        self._limit_s = limit_s
        self._last: dict[int, Beat | None] = dict.fromkeys(ranks)
        self._heard_s = dict.fromkeys(self._last, now_s)

    def hear(self, rank: int, beat: Beat, now_s: float) -> None:
        """The newest beat of ``rank``; one that was heard before is silence."""
        if beat != self._last[rank]:
            self._last[rank] = beat
            self._heard_s[rank] = now_s

    def silent(self, now_s: float) -> dict[int, Beat | None]:
        """Ranks over the limit with their last beat; none that said it was done."""
        return {
            rank: beat
            for rank, beat in self._last.items()
            if now_s - self._heard_s[rank] > self._limit_s and not (beat and beat.is_done)
        }

    @property
    def is_stopping(self) -> bool:
        """Some rank was asked to stop."""
        return any(beat is not None and beat.is_stopping for beat in self._last.values())


class Stall:
    """How long the training threads of all ranks have stood still together; pure.

    A thread that computes, polls, reads or writes uses processor time; one that waits for a lock or
    for a peer uses none. A wait is honest while the one that is waited for works, however long: all
    stand still together only when they wait for each other.
    """

    def __init__(self, *, limit_s: float, now_s: float) -> None:
        """``limit_s`` is longer than a thread beside the training one may keep all waiting."""
        self._limit_s = limit_s
        self._worked_s: dict[int, float] = {}
        self._judged_s = now_s
        self._stood_s = 0.0

    def hear(self, rank: int, beat: Beat) -> None:
        """The newest beat of ``rank``."""
        if self._worked_s.get(rank) != beat.worked_s:
            self._worked_s[rank] = beat.worked_s
            self._stood_s = 0.0

    def is_stuck(self, now_s: float) -> bool:
        """True over the limit; a time in which nobody asked (a halted machine) hardly counts."""
        self._stood_s += min(now_s - self._judged_s, self._limit_s / _BEATS_PER_TIMEOUT)
        self._judged_s = now_s
        return self._stood_s > self._limit_s


class RankWatch:
    """Beats and watches on a thread of its own while the ``with`` block runs."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        timeout_s: float,
        stall_timeout_s: float,
        stacks: Path,
        is_stopping: Callable[[], bool],
        stop: Callable[[str], None],
    ) -> None:
        """``is_stopping`` says that this rank was asked to stop, ``stop`` asks rank 0 to.

        ``stacks`` is the folder for what the threads were doing when a rank was given up.
        """
        self._store: RankStore | None = None if mesh.store is None else mesh.store.clone()
        self._rank = mesh.rank
        self._ranks = range(mesh.world_size)
        self._timeout_s = timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._stacks = stacks
        self._is_stopping = is_stopping
        self._stop = stop
        self._number = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._answered_s = time.monotonic()
        self._host_beat: Beat | None = None
        """The last of rank 0, which holds the store where torchrun does not."""

    def __enter__(self) -> Self:
        if self._store is not None:
            self._beat(self._store)
            self._thread = threading.Thread(
                target=self._watch, args=(self._store,), name="rank-watch", daemon=True
            )
            self._thread.start()
            threading.Thread(target=self._watch_store, name="store-watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s)

    def _watch(self, store: RankStore) -> None:
        silences = Silences(self._ranks, limit_s=self._timeout_s, now_s=time.monotonic())
        stall = Stall(limit_s=self._stall_timeout_s, now_s=time.monotonic())
        try:
            while not self._done.wait(self._timeout_s / _BEATS_PER_TIMEOUT):
                self._beat(store)
                self._hear(store, silences, stall)
                if gone := silences.silent(time.monotonic()):
                    self._give_up(gone)
                if stall.is_stuck(time.monotonic()):
                    self.abort(
                        f"no rank's training thread used a processor for {self._stall_timeout_s:g} "
                        "s: they wait for each other or for a lock"
                    )
            self._beat(store)
        except RuntimeError as error:  # torch's store errors; its host may end before this rank
            if not self._done.is_set():
                reason = " ".join(str(error).split())[:200]
                self.abort(
                    f"the store of the ranks is gone with the process that held it: {reason}"
                )

    def _watch_store(self) -> None:
        """A store whose process is halted answers nothing: the other thread would wait for ever."""
        while not self._done.wait(self._timeout_s / _BEATS_PER_TIMEOUT):
            if time.monotonic() - self._answered_s > self._timeout_s:
                is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
                if self._host_beat is not None and not is_torchruns:
                    _kill_if_here(self._host_beat)
                self.abort(
                    f"the store of the ranks gave no answer for {self._timeout_s:g} s: the process "
                    f"that holds it ({'torchrun' if is_torchruns else 'rank 0'}) died or hangs"
                )

    def _beat(self, store: RankStore) -> None:
        self._number += 1
        process = psutil.Process()
        beat = Beat(
            number=self._number,
            host=platform.node(),
            pid=process.pid,
            started_s=process.create_time(),
            worked_s=_training_thread_s(),
            is_stopping=self._is_stopping(),
            is_done=self._done.is_set(),
        )
        store.set(_key(self._rank), msgspec.json.encode(beat).decode())

    def _hear(self, store: RankStore, silences: Silences, stall: Stall) -> None:
        for rank in self._ranks:
            if store.check([_key(rank)]):
                beat = msgspec.json.decode(store.get(_key(rank)), type=Beat)
                silences.hear(rank, beat, time.monotonic())
                stall.hear(rank, beat)
                self._host_beat = beat if rank == 0 else self._host_beat
        self._answered_s = time.monotonic()
        if self._rank == 0 and silences.is_stopping and not self._is_stopping():
            self._stop("another rank was asked to stop")

    def _give_up(self, gone: dict[int, Beat | None]) -> None:
        for beat in gone.values():
            if beat is not None:
                _kill_if_here(beat)
        named = ", ".join(_describe(rank, beat) for rank, beat in sorted(gone.items()))
        self.abort(f"no sign of life for {self._timeout_s:g} s from {named}: it died or hangs")

    def abort(self, reason: str) -> None:
        """Keep the stacks, say why on stderr and end this process at once, with all its threads."""
        where = self._stacks / f"rank-{self._rank}.txt"
        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            with open(where, "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            where = Path(os.devnull)
        print(
            f"headrace: rank {self._rank} ends: {reason} (all ranks must start again together, "
            f"from the last checkpoint; stacks: {where})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_INFRA)


@contextmanager
def meeting_limit(limit_s: float) -> Iterator[None]:
    """End this process unless the block, in which its rank meets the others, is left in time."""

    def end() -> None:
        print(
            f"headrace: rank {os.environ.get('RANK', '0')} ends: the ranks did not all meet within "
            f"learner.rank_join_timeout_s = {limit_s:g} s: one died, hangs or was never started "
            "(all ranks must start again together)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_INFRA)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _training_thread_s() -> float:
    main = threading.main_thread().ident
    return 0.0 if main is None else time.clock_gettime(time.pthread_getcpuclockid(main))


def _kill_if_here(beat: Beat) -> None:
    """End a silent rank of this machine for good: awake again it would act as if it still lived."""
    if beat.host != platform.node():
        return
    try:
        process = psutil.Process(beat.pid)
        if process.create_time() == beat.started_s:
            process.kill()
    except psutil.Error:
        return  # it is gone, or not ours


def _describe(rank: int, beat: Beat | None) -> str:
    return f"rank {rank}" if beat is None else f"rank {rank} ({beat.host}, pid {beat.pid})"


def _key(rank: int) -> str:
    return f"beat/{rank}"
