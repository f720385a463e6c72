"""The process in which verification happens: light, limited, killable.

It reads one job at a time from its standard input and answers on its standard output, both as
length-prefixed MessagePack. What runs inside may print, loop or allocate without end: the two pipes
are moved out of reach of ``print`` first, and the parent holds the clock. A copy of the process
that a user's reward forks is cut off from them: only their order says which job a reply is to.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import os
import resource
import signal
import struct
import sys
from dataclasses import dataclass
from typing import BinaryIO

from actors.verification.judgement import JobReply, Verifier, VerifyJob, run_checks
from actors.verification.leftovers import Footprint, is_worn
from common.codec import pack, unpack
from common.errors import InfraError
from common.types import VerdictStatus

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_MAX_OPEN_FILES = 32
_CPU_GRACE_S = 1


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What one verification may use, and where the table of verifiers is imported from."""

    wall_limit_s: float
    memory_limit_bytes: int
    registry: str = "actors.verification.registry"
    arguments: tuple[str, ...] = ()
    """For the registry's own ``prepare``, which runs within the limits before the first job."""

    def argv(self) -> list[str]:
        """Command line of a child; isolated mode keeps environment and working folder out."""
        module = "actors.verification.child"
        limits = (str(os.getpid()), str(self.wall_limit_s), str(self.memory_limit_bytes))
        return [sys.executable, "-I", "-m", module, *limits, self.registry, *self.arguments]


def main(argv: list[str]) -> None:
    """Serve jobs until the input ends."""
    parent_pid = int(argv[0])
    limits = ChildLimits(float(argv[1]), int(argv[2]), argv[3], tuple(argv[4:]))
    _die_with_parent(parent_pid)
    _close_inherited()
    jobs, replies = _take_pipes()
    registry = importlib.import_module(limits.registry)
    verifiers: dict[str, Verifier] = registry.VERIFIERS
    _limit_resources(limits)
    if limits.arguments:
        registry.prepare(limits.arguments)
    at_start = Footprint.of_this_process()
    _write_frame(replies, b"")
    _silence(2)
    while (frame := _read_frame(jobs)) is not None:
        _limit_cpu(limits.wall_limit_s)
        reply = _answer(frame, verifiers)
        _write_frame(replies, pack(reply))
        if limits.arguments and _is_worn(at_start, limits):
            _end_with_descendants()


def _is_worn(at_start: Footprint, limits: ChildLimits) -> bool:
    now, memory = Footprint.of_this_process(), limits.memory_limit_bytes
    return is_worn(now, at_start, max_files=_MAX_OPEN_FILES, memory_limit_bytes=memory)


def _end_with_descendants() -> None:
    """End at once, without waiting for threads, and with all that is left in the own group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _answer(frame: bytes, verifiers: dict[str, Verifier]) -> JobReply:
    """Judge one job. A verifier that fails is our bug: it must not look like a wrong answer."""
    try:
        return run_checks(unpack(frame, VerifyJob), verifiers)
    except MemoryError:
        return JobReply(failure=VerdictStatus.LIMIT_EXCEEDED, reason="memory limit exceeded")
    except Exception as error:  # the one place that may say so: it becomes a typed infra-error
        told = str(error) if isinstance(error, InfraError) else f"{type(error).__name__}: {error}"
        reason = f"the verifier failed: {told}"[:1000]
        reason = reason.encode("utf-8", "replace").decode()
        return JobReply(failure=VerdictStatus.INFRA_ERROR, reason=reason)


def _die_with_parent(parent_pid: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent ended before the request took effect
        os._exit(1)


def _close_inherited() -> None:
    """uvloop starts children with some of its own descriptors; sockets must not stay in reach."""
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the two pipes to private descriptors; 0 and 1 become /dev/null."""
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    _silence(0)
    _silence(1)
    for stream in (jobs, replies):
        os.register_at_fork(after_in_child=functools.partial(_silence, stream.fileno()))
    return jobs, replies


def _silence(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def _limit_resources(limits: ChildLimits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_limit_bytes, limits.memory_limit_bytes))


def _limit_cpu(wall_limit_s: float) -> None:
    """Backstop to the parent's clock: this job's own processor seconds, ended by SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    budget = usage.ru_utime + usage.ru_stime + wall_limit_s + _CPU_GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(budget), resource.RLIM_INFINITY))


def _read_frame(stream: BinaryIO) -> bytes | None:
    prefix = stream.read(LENGTH.size)
    if len(prefix) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(prefix)
    body = stream.read(size)
    return body if len(body) == size else None


def _write_frame(stream: BinaryIO, body: bytes) -> None:
    data = memoryview(LENGTH.pack(len(body)) + body)
    while data:
        data = data[os.write(stream.fileno(), data) :]


if __name__ == "__main__":
    main(sys.argv[1:])
