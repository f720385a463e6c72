"""One execution seen from the host: what is handed over, what is read, and what came of it."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from actors.verification.sandbox import frames, zygote
from actors.verification.sandbox.candidate import SOURCE
from actors.verification.sandbox.exchange import Conversation, OutputTap
from actors.verification.sandbox.limits import BoxJob, BoxLimits, BoxResult, Limit, Mode
from common.errors import InfraError

_GRACE_S = 5.0
"""Beyond an execution's own wall limit, for a machine that is busy."""
_START_CPU_S = 0.1
"""Processor time of making a box, which is no fault of the program in it."""
_TICK_MS = 100
_HEAD_START_MS = 20
"""How long output may wait in the pipes, which saves being woken for each part of it."""
_CHUNK = 1 << 16
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_OUT_OF_MEMORY = (b"MemoryError", b"bad_alloc", b"Cannot allocate memory")
"""What a program that has reached its address space says last; to claim it costs a program."""


class LauncherDiedError(InfraError):
    """A launcher ended or went silent in the middle of an execution."""


class Execution:
    """The host's ends of the pipes of one execution, and what has been read from them.

    ``with`` hands it over to the launcher behind ``control``, and closes what is still open.
    """

    def __init__(self, control: socket.socket, job: BoxJob, limits: BoxLimits) -> None:
        self._control = control
        self._job = job
        self._limits = limits
        self._tap = OutputTap(limits)
        self._talk = Conversation(job.inputs, limits.kept_output_bytes)
        self._artifact = bytearray()
        self._readers: dict[int, Callable[[bytes], None]] = {}
        self._inputs: int | None = None

    def __enter__(self) -> Execution:
        try:
            self._hand_over()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def follow(self, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Read and write until the launcher reports the end; returns its report.

        Raises :class:`LauncherDiedError` where no report comes.
        """
        deadline_s = time.monotonic() + self._limits.wall_s + _GRACE_S
        killed = False
        if not self._job.inputs and self._has_reported():  # most programs end soon and say little
            return self._read_report()
        while time.monotonic() < deadline_s:
            ready = self._poll(_TICK_MS)
            self._exchange(ready)
            if self._control.fileno() in ready:
                return self._read_report()
            if not killed and (self._tap.over or self._talk.error or is_cancelled()):
                killed = True
                self._control.send(zygote.KILL)
        raise LauncherDiedError("it did not answer")

    def result(self, report: dict[str, Any], *, ran_out: bool) -> BoxResult:
        """What came of it; ``ran_out``: the kernel ended a process for want of memory."""
        status: int | None = report["status"]
        ended = status is not None and os.WIFEXITED(status)
        exit_code = os.WEXITSTATUS(status) if ended and status is not None else None
        if report["not_entered"] or report["failure"]:
            said = self._tap.kept(2)[:400].decode("utf-8", "replace")
            raise LauncherDiedError(report["failure"] or said)
        killed_by = signal.SIGKILL if status is None else os.WTERMSIG(status)
        limit = self._limit(report, exit_code, ran_out)
        return BoxResult(
            exit_code=None if limit else exit_code,
            signal=None if ended or limit else killed_by,
            limit=limit,
            stdout=self._tap.kept(1),
            stderr=self._tap.kept(2),
            frames=tuple(self._talk.answers),
            call_s=tuple(self._talk.call_s),
            cpu_s=report["cpu_s"],
            wall_s=report["wall_s"],
            load_error=self._talk.load_error,
            protocol_error=self._talk.error,
            artifact=bytes(self._artifact[frames.LENGTH.size :]) if self._artifact else None,
        )

    def _limit(self, report: dict[str, Any], exit_code: int | None, ran_out: bool) -> Limit | None:
        if report["ended_by"] == "cpu" or report["cpu_s"] > self._limits.cpu_s + _START_CPU_S:
            return Limit.CPU
        if report["ended_by"] == "wall":
            return Limit.WALL
        if self._tap.over:
            return Limit.OUTPUT
        if self._talk.limit is not None:
            return self._talk.limit
        last_words = self._tap.kept(2)[-4096:]
        if ran_out or (exit_code != 0 and any(word in last_words for word in _OUT_OF_MEMORY)):
            return Limit.MEMORY
        return None

    def _hand_over(self) -> None:
        """Pass what the execution needs as descriptors, which the launcher does not read."""
        job = self._job
        passed = [_sealed([*_in_order(job).values(), job.function.encode()])]
        try:
            passed.append(_sealed([job.stdin]))
            passed.append(self._reading(lambda chunk: self._tap.feed(1, chunk)))
            passed.append(self._reading(lambda chunk: self._tap.feed(2, chunk)))
            if job.mode is Mode.FUNCTION or job.artifact:
                their_inputs, self._inputs = os.pipe()
                os.set_blocking(self._inputs, False)
                passed.append(their_inputs)
                passed.append(self._reading(self._take_result))
            socket.send_fds(self._control, [_orders(job, self._limits)], passed)
        finally:
            for descriptor in passed:
                os.close(descriptor)
        if not job.inputs:
            self._close_inputs()

    def _reading(self, take: Callable[[bytes], None]) -> int:
        """A pipe whose content goes to ``take``; returns the end to write to."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self._readers[reading] = take
        return writing

    def _take_result(self, chunk: bytes) -> None:
        if self._job.artifact:
            room = self._limits.file_bytes + frames.LENGTH.size - len(self._artifact)
            self._artifact += chunk[:room]
        elif self._job.inputs:
            self._talk.feed(chunk, time.monotonic())

    def _poll(self, timeout_ms: int, *, with_control: bool = True) -> set[int]:
        poll = select.poll()
        if with_control:
            poll.register(self._control.fileno(), select.POLLIN)
        for descriptor in self._readers:
            poll.register(descriptor, select.POLLIN)
        if self._inputs is not None and self._talk.wants_to_write:
            poll.register(self._inputs, select.POLLOUT)
        return {descriptor for descriptor, _ in poll.poll(timeout_ms)}

    def _has_reported(self) -> bool:
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        return bool(poll.poll(_HEAD_START_MS))

    def _exchange(self, ready: set[int]) -> None:
        for descriptor in ready & self._readers.keys():
            chunk = os.read(descriptor, _CHUNK)
            if chunk:
                self._readers[descriptor](chunk)
            else:
                del self._readers[descriptor]
                os.close(descriptor)
        if self._inputs is not None and self._inputs in ready:
            try:
                with suppress(BlockingIOError):
                    self._talk.write_to(self._inputs)
            except BrokenPipeError:
                self._close_inputs()
        if self._talk.done:
            self._close_inputs()

    def _read_report(self) -> dict[str, Any]:
        message = self._control.recv(zygote.MAX_MESSAGE_BYTES)
        if not message:
            raise LauncherDiedError("it ended")
        while not self._tap.over and (ready := self._poll(0, with_control=False)):
            self._exchange(ready)  # all that could write has ended: the rest is in the pipes
        report: dict[str, Any] = json.loads(message)
        return report

    def _close_inputs(self) -> None:
        if self._inputs is not None:
            os.close(self._inputs)
            self._inputs = None

    def _close(self) -> None:
        self._close_inputs()
        for descriptor in self._readers:
            os.close(descriptor)
        self._readers.clear()


def _orders(job: BoxJob, limits: BoxLimits) -> bytes:
    """See ``box.Orders``."""
    sizes = {name: len(content) for name, content in _in_order(job).items()}
    fields = (job.mode.value, job.argv, job.artifact, sizes, _as_fields(limits))
    return json.dumps(fields).encode()


@functools.lru_cache(64)
def _as_fields(limits: BoxLimits) -> dict[str, float]:
    return asdict(limits)


def _in_order(job: BoxJob) -> dict[str, bytes]:
    """The source first, where it is easily found."""
    if SOURCE not in job.files:
        return job.files
    return {SOURCE: job.files[SOURCE], **job.files}


def _sealed(parts: list[bytes]) -> int:
    """An unnamed file that nobody can change any more, at its beginning."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    offset = 0
    for part in parts:
        view = memoryview(part)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
