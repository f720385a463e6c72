"""One execution from the inside: its init process, and the steps by which a child gives up power.

The init is the first process of a new PID namespace. It is trusted, writes the files, starts the
program, counts processor time, and says how the program ended; when it goes, the kernel ends
everything in the namespace. The program cannot signal it, trace it or reach its descriptors.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import stat
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

from actors.verification.sandbox import candidate, frames, landlock, layout, syscalls
from actors.verification.sandbox.limits import BoxLimits, Mode, Tier

STATUS = struct.Struct("<iii")
"""What the init reports: the wait status of the program, 1 where its processor time is up, and 1
where the sandbox could not be entered, so that nothing was run."""

_TICK_S = 0.02
_CPU_GRACE_S = 1
_OUT_OF_FILES = 4096
_COUNTED_PIDS = 130
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Channels:
    """Descriptors of one execution."""

    payload: int
    stdin: int
    stdout: int
    stderr: int
    inputs: int
    results: int


@dataclass(frozen=True, slots=True)
class Orders:
    """The head of a payload."""

    mode: Mode
    argv: tuple[str, ...]
    function: str
    artifact: str
    sizes: dict[str, int]
    limits: BoxLimits


@dataclass(frozen=True, slots=True)
class Cell:
    """What a launcher has prepared for all of its executions."""

    tier: Tier
    uid: int | None = None
    """Where set, the program changes to this user (only without namespaces)."""
    workdir: str = layout.BOX
    readable: tuple[str, ...] = ()
    filter: bytes = b""
    """Of system calls; see ``seccomp``."""
    num_own_processes: int = 0
    """Processes of the same user that the limit must leave room for."""


def live(cell: Cell, channels: Channels, report: int, cgroup_fds: tuple[int, ...]) -> None:
    """Be the init of one execution; does not return."""
    try:
        for descriptor in cgroup_fds:
            os.write(descriptor, b"0")
        orders = _read_orders(channels.payload)
        if cell.tier is Tier.NAMESPACES:
            layout.mount_box(orders.limits.disk_bytes, orders.limits.num_inodes)
        else:
            os.chdir(cell.workdir)
        _write_files(channels.payload, orders.sizes, cell.uid)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        setup, setup_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become_candidate(cell, orders, channels, setup_end)
        os.close(setup_end)
        not_entered = bool(os.read(setup, 1))
        status, out_of_time = _wait(pid, orders.limits.cpu_s)
        if cell.tier is Tier.NAMESPACES:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            _reap_all()
        if orders.artifact and status == 0:
            _send_artifact(orders.artifact, channels.results, orders.limits.file_bytes)
        os.write(report, STATUS.pack(status, int(out_of_time), int(not_entered)))
    finally:
        os._exit(0)


def _read_orders(payload: int) -> Orders:
    os.lseek(payload, 0, os.SEEK_SET)
    head = frames.read_frame(payload) or b"{}"
    fields = json.loads(head)
    return Orders(
        mode=Mode(fields["mode"]),
        argv=tuple(fields["argv"]),
        function=fields["function"],
        artifact=fields["artifact"],
        sizes=fields["sizes"],
        limits=BoxLimits(**fields["limits"]),
    )


def _write_files(payload: int, sizes: dict[str, int], uid: int | None) -> None:
    for name in layout.FOLDERS:
        os.mkdir(name)
        _give(name, uid)
    for name, size in sizes.items():
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
        while size > 0:
            block = os.read(payload, min(size, _BLOCK))
            if not block:
                break
            size -= os.write(target, block)
        os.close(target)
        _give(name, uid)


def _give(name: str, uid: int | None) -> None:
    if uid is not None:
        os.chown(name, uid, uid)


def _wait(pid: int, cpu_s: float) -> tuple[int, bool]:
    """Wait status of ``pid``, and whether it was ended because its processor time was up."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            return status, _over_cpu(pid, status, cpu_s)
        if ended:
            continue
        signal.sigtimedwait({signal.SIGCHLD}, _TICK_S)
        if _cpu_s(pid) > cpu_s:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1], True


def _over_cpu(pid: int, status: int, cpu_s: float) -> bool:
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return killed and _cpu_s(pid) >= cpu_s


def _cpu_s(pid: int) -> float:
    """Processor seconds of those that have ended and of those that live, by the kernel's clocks.

    In a PID namespace the numbers count from 2. Of processes numbered beyond the table, and without
    a namespace of all but ``pid``, only their own limit and the wall clock are known.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for number in range(2, _COUNTED_PIDS) if os.getpid() == 1 else (pid,):
        with suppress(OSError):
            total += time.clock_gettime((~number << 3) | 2)
    return total


def _reap_all() -> None:
    with suppress(ChildProcessError):
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
        with open(source, "rb") as stream:
            frames.write_frame(results, stream.read(max_bytes))


def _become_candidate(cell: Cell, orders: Orders, channels: Channels, setup: int) -> None:
    """``setup`` hears of a failure, and is closed before anything untrusted is run."""
    try:
        os.setsid()
        setup = _arrange_descriptors(orders.mode, channels, setup)
        _limit_resources(cell, orders.limits)
        _give_up_power(cell)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.umask(0o077)
        os.close(setup)
    except BaseException as error:
        os.write(2, f"the sandbox could not be entered: {error}\n".encode())
        os.write(setup, b"x")
        os._exit(1)
    match orders.mode:
        case Mode.SCRIPT:
            candidate.run_script(orders.argv)
        case Mode.FUNCTION:
            candidate.run_function(orders.function, orders.limits.kept_output_bytes)
        case Mode.COMMAND:
            candidate.run_command(orders.argv)


def _arrange_descriptors(mode: Mode, channels: Channels, setup: int) -> int:
    """0 to 2, the two private pipes of a function, and after them ``setup``, whose number is
    returned; nothing else."""
    wanted = [channels.stdin, channels.stdout, channels.stderr]
    if mode is Mode.FUNCTION:
        wanted += [channels.inputs, channels.results]
    wanted.append(setup)
    lifted = [_lift(descriptor) for descriptor in wanted]
    for number, descriptor in enumerate(lifted):
        os.dup2(descriptor, number)
    os.closerange(len(wanted), _OUT_OF_FILES)
    return len(wanted) - 1


def _lift(descriptor: int) -> int:
    """A copy out of the way of the numbers that will be given out."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64)


def _limit_resources(cell: Cell, limits: BoxLimits) -> None:
    cpu_s = math.ceil(limits.cpu_s) + _CPU_GRACE_S
    values = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.num_files,
        resource.RLIMIT_NPROC: limits.num_processes + cell.num_own_processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    for name, value in values.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def _give_up_power(cell: Cell) -> None:
    """The folders are looked up while we may still walk there; nothing can be taken back after."""
    if cell.tier is not Tier.NONE:
        syscalls.forbid_new_privileges()
        if syscalls.landlock_abi():
            landlock.confine(cell.readable, [cell.workdir, *layout.devices()])
        elif cell.tier is Tier.FILTERS:
            raise OSError("this kernel has no Landlock")
    if cell.uid is not None:
        os.setgroups([])
        os.setresgid(cell.uid, cell.uid, cell.uid)
        os.setresuid(cell.uid, cell.uid, cell.uid)
    if cell.tier is not Tier.NONE:
        syscalls.drop_capabilities()
        syscalls.install_filter(cell.filter)
