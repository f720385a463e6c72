"""One execution from the inside: its init process.

The init is the first process of a new PID namespace. It is trusted, writes the files, starts the
program, holds both clocks, and says how the program ended; when it goes, the kernel ends everything
in the namespace. The program cannot trace it or reach its descriptors, and the first process of a
namespace is deaf to signals from inside.

It shares the launcher's memory (see ``syscalls.run_beside``): what it reports it simply stores, and
what it would read into memory the programs of later executions would find there. So sources, inputs
and artifacts pass from descriptor to descriptor in the kernel.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import signal
import stat
import time
from _socket import socket
from contextlib import suppress
from typing import NamedTuple, NoReturn

from actors.verification.sandbox import candidate, entering, frames, layout, syscalls
from actors.verification.sandbox.entering import Bounds, Cell, Channels
from actors.verification.sandbox.kinds import Mode, Tier

_TICK_S = 0.02
_COUNTED_PIDS = 130
_MAX_MESSAGE_BYTES = 4096
_REPORT = ("status", "ended_by", "failure", "not_entered", "cpu_s", "wall_s")
_MAX_NAME_BYTES = 4096
_NUM_CPUS = os.cpu_count() or 1


class Orders(NamedTuple):
    """What to execute. Whatever belongs to a job alone stays in the payload."""

    mode: Mode
    argv: tuple[str, ...]
    artifact: str
    sizes: dict[str, int]
    """File name -> bytes, in the order of the payload; the name of a function follows them."""
    limits: Bounds

    @classmethod
    def parse(cls, message: bytes) -> Orders:
        """Read what ``execution`` has sent."""
        mode, argv, artifact, sizes, limits = json.loads(message)
        return cls(Mode(mode), tuple(argv), artifact, sizes, Bounds(**limits))


class Outcome:
    """How an execution ended, filled in by its init."""

    status: int | None = None
    """Wait status of the program."""
    ended_by = ""
    """What ended it from outside: ``wall``, ``cpu``, ``kill`` (an order), ``left`` (no client)."""
    failure = ""
    """Why nothing was run, or not to its end: no fault of the program."""
    not_entered = False
    """The sandbox could not be entered; the program's standard error says why."""
    cpu_s = 0.0
    whole = False
    """Set last. Where it is not, the init was killed half-way."""

    def report(self, wall_s: float) -> bytes:
        """What the client hears."""
        fields = (self.status, self.ended_by, self.failure, self.not_entered, self.cpu_s, wall_s)
        return json.dumps(dict(zip(_REPORT, fields, strict=True))).encode()


class Watch:
    """What wakes an init: a message of the client, or the end of a child. One for all of them."""

    def __init__(self, control: socket) -> None:
        """From here on SIGCHLD is only heard through the watch, here and in children."""
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD})
        self.control = control
        self.signals = syscalls.signal_descriptor(signal.SIGCHLD)
        self.poll = select.poll()
        self.poll.register(control.fileno(), select.POLLIN)
        self.poll.register(self.signals, select.POLLIN)


def live(cell: Cell, orders: Orders, channels: Channels, watch: Watch, outcome: Outcome) -> None:
    """Be the init of one execution; never raises."""
    started_s = time.monotonic()
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if cell.tier is Tier.NAMESPACES:
            layout.mount_box(orders.limits.disk_bytes, orders.limits.num_inodes)
        else:
            os.chdir(cell.workdir)
        _write_files(channels.payload, orders.sizes, cell.uid)
        candidate.get_ready(orders.argv)
        setup, setup_end = os.pipe()
        standard = channels[1:] if orders.mode is Mode.FUNCTION else channels[1:4]
        rules = entering.prepare(cell, orders.limits, standard)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        pid = syscalls.fork()
        if pid == 0:
            _become_candidate(cell, orders, channels.payload, rules, setup_end)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        os.close(setup_end)
        _follow(pid, orders.limits, started_s + orders.limits.wall_s, watch, outcome)
        if cell.tier is Tier.NAMESPACES:
            _end_all()
        outcome.not_entered = bool(os.read(setup, 1))
        outcome.cpu_s = _ended_cpu_s()
        if orders.artifact and outcome.status == 0:
            _send_artifact(orders.artifact, channels.results, orders.limits.file_bytes)
    except BaseException as error:
        outcome.failure = f"{type(error).__name__}: {error}"
    outcome.whole = True


def _become_candidate(cell: Cell, orders: Orders, payload: int, rules: int, setup: int) -> NoReturn:
    """``setup`` is closed with all else before anything untrusted is run."""
    mode, source, function = orders.mode, b"", b""
    try:
        if mode is not Mode.COMMAND:
            source = os.pread(payload, orders.sizes[candidate.SOURCE], 0)
        if mode is Mode.FUNCTION:
            function = os.pread(payload, _MAX_NAME_BYTES, sum(orders.sizes.values()))
        entering.enter(cell, orders.limits, rules, 5 if mode is Mode.FUNCTION else 3)
    except BaseException as error:
        os.write(2, f"the sandbox could not be entered: {error}\n".encode())
        os.write(setup, b"x")
        os._exit(1)
    if mode is Mode.SCRIPT:
        candidate.run_script(source)
    if mode is Mode.FUNCTION:
        candidate.run_function(source, function.decode(), orders.limits.kept_output_bytes)
    candidate.run_command(orders.argv)


def _write_files(payload: int, sizes: dict[str, int], uid: int | None) -> None:
    for name in layout.FOLDERS:
        os.mkdir(name)
        _give(name, uid)
    for name, size in sizes.items():
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
        _pass_on(target, payload, size)
        os.close(target)
        _give(name, uid)


def _pass_on(target: int, source: int, size: int) -> None:
    while size > 0 and (sent := os.sendfile(target, source, None, size)):
        size -= sent


def _give(name: str, uid: int | None) -> None:
    if uid is not None:
        os.chown(name, uid, uid)


def _follow(pid: int, limits: Bounds, deadline_s: float, watch: Watch, outcome: Outcome) -> None:
    """Wait until the program ends, or end it."""
    check_s = _next_check_s(limits.cpu_s, 0.0)
    while not _has_ended(pid, outcome):
        now_s = time.monotonic()
        _listen(watch, outcome, min(deadline_s, check_s) - now_s)
        if _has_ended(pid, outcome):
            break
        now_s = time.monotonic()
        if now_s >= deadline_s:
            outcome.ended_by = outcome.ended_by or "wall"
        elif now_s >= check_s:
            used_s = _cpu_s(pid)
            check_s = _next_check_s(limits.cpu_s, used_s)
            if used_s > limits.cpu_s:
                outcome.ended_by = outcome.ended_by or "cpu"
        if outcome.ended_by:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            outcome.status = os.waitpid(pid, 0)[1]
    if not outcome.ended_by and _over_cpu(pid, outcome.status, limits.cpu_s):
        outcome.ended_by = "cpu"


def _listen(watch: Watch, outcome: Outcome, seconds: float) -> None:
    for descriptor, _ in watch.poll.poll(max(0, math.ceil(seconds * 1000))):
        if descriptor == watch.signals:
            os.read(descriptor, _MAX_MESSAGE_BYTES)
        else:
            outcome.ended_by = "kill" if watch.control.recv(_MAX_MESSAGE_BYTES) else "left"


def _has_ended(pid: int, outcome: Outcome) -> bool:
    """Reap whatever has ended; True once the program has."""
    if outcome.status is not None:
        return True
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            outcome.status = status
            return True
        if not ended:
            return False


def _next_check_s(limit_s: float, used_s: float) -> float:
    """All processors together cannot use up what is left before this time."""
    return time.monotonic() + max(_TICK_S, (limit_s - used_s) / _NUM_CPUS)


def _over_cpu(pid: int, status: int | None, cpu_s: float) -> bool:
    if status is None or not os.WIFSIGNALED(status):
        return False
    return os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) and _cpu_s(pid) >= cpu_s


def _cpu_s(pid: int) -> float:
    """Processor seconds of those that have ended and of those that live, by the kernel's clocks.

    In a PID namespace the numbers count from 2. Of processes numbered beyond the table, and without
    a namespace of all but ``pid``, only their own limit and the wall clock are known.
    """
    total = _ended_cpu_s()
    for number in range(2, _COUNTED_PIDS) if os.getpid() == 1 else (pid,):
        with suppress(OSError):
            total += time.clock_gettime((~number << 3) | 2)
    return total


def _ended_cpu_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _end_all() -> None:
    """End and reap what the program has left. Who has no parent any more is a child of the init."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)


def _send_artifact(name: str, results: int, max_bytes: int) -> None:
    """A plain file and nothing else: a link in its place is not followed, a pipe not waited for."""
    try:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    found = os.fstat(source)
    if stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes:
        os.write(results, frames.LENGTH.pack(found.st_size))
        _pass_on(results, source, found.st_size)
