"""The launcher: one warm interpreter that starts one execution after the other.

A cold interpreter takes longer to start than most programs take to run, so this one is started
once, moves into its namespaces, and forks for each execution. It never reads what it passes on
(sources and inputs stay in descriptors), so its memory, which every program inherits, holds nothing
of any other job.

It is started with ``-s -P -S`` and a fixed environment rather than ``-I``: the same isolation, but
``PYTHONHASHSEED`` is heard.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import sys
import time
from _socket import CMSG_SPACE, sethostname, socket
from contextlib import suppress
from struct import Struct
from typing import Any

from actors.verification.sandbox import (
    box,
    candidate,
    clearing,
    landlock,
    layout,
    seccomp,
    syscalls,
)
from actors.verification.sandbox.entering import FIRST_FREE_FD, Cell, Channels
from actors.verification.sandbox.kinds import Tier

MAX_CHANNELS = 6
MAX_MESSAGE_BYTES = 4096
KILL = b"kill"
_DESCRIPTOR = Struct("=i")
_KILL_LIMIT_S = 5.0
_INSIDE_UID = 1000
_NEW_SPACES = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
)
_NEW_BOX = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS
"""Of network and IPC the launcher's own will do: no filtered process can make anything in them."""
_OFTEN_IMPORTED = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq"),
    *("io", "itertools", "json", "math", "operator", "random", "re", "statistics", "string"),
    *("tokenize", "traceback", "typing", "unicodedata"),
)


def main(argv: list[str]) -> None:
    """Serve executions until the control socket closes. ``argv``: settings as JSON."""
    settings = json.loads(argv[0])
    tier = Tier(settings["tier"])
    if tier is Tier.NAMESPACES:  # otherwise it must outlive its parent, to end what it has started
        syscalls.die_with(settings["parent_pid"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # so the first process of a box is deaf to it
    stack = syscalls.free_stack()
    control = socket(fileno=_lifted(settings["control_fd"]))
    cgroup_fds = tuple(_lifted(descriptor) for descriptor in settings["cgroup_fds"])
    _reserve_low_descriptors()
    for name in _OFTEN_IMPORTED:
        importlib.import_module(name)
    _open_streams()
    cell = _prepare(tier, settings, stack, cgroup_fds)
    watch = box.Watch(control)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    try:
        _serve(cell, watch)
    except ConnectionError:
        pass  # whoever asked has gone
    finally:
        if tier is not Tier.NAMESPACES:
            clearing.remove_tree(os.path.dirname(cell.workdir))


def _serve(cell: Cell, watch: box.Watch) -> None:
    control = watch.control
    while True:
        message, ancillary, _, _ = control.recvmsg(MAX_MESSAGE_BYTES, CMSG_SPACE(MAX_CHANNELS * 4))
        if not message:
            return
        descriptors = [
            number for *_, data in ancillary for (number,) in _DESCRIPTOR.iter_unpack(data)
        ]
        if not descriptors:  # a late order to kill what has ended by itself
            continue
        _execute(cell, box.Orders.parse(message), descriptors, watch)


def _prepare(tier: Tier, settings: dict[str, Any], stack: int, cgroup_fds: tuple[int, ...]) -> Cell:
    uid: int | None = settings["uid"]
    readable, workdir, used = layout.readable_paths(), settings["workdir"], 0
    if tier is Tier.NAMESPACES:
        _enter_namespaces(uid, settings["parent_pid"])
        readable, workdir, uid = ["/"], layout.BOX, None
    else:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        used = 0 if uid is not None else _count_own_processes()
    syscalls.drop_bounding_set()
    reading = [landlock.reading(path) for path in readable]
    writing = [landlock.writing(path) for path in layout.devices()]
    late = None if tier is Tier.NONE else _filter_calls()
    return Cell(tier, stack, uid, workdir, (*reading, *writing), late, used, cgroup_fds)


def _filter_calls() -> syscalls.Filter:
    """For this process and all that comes of it; what is left to refuse to programs."""
    filters = seccomp.assemble(syscalls.MACHINE)
    syscalls.forbid_new_privileges()
    syscalls.install_filter(syscalls.Filter(filters.early))
    return syscalls.Filter(filters.late)


def _lifted(descriptor: int) -> int:
    """The same, out of the way of the numbers that programs are given."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    os.close(descriptor)
    return moved


def _open_streams() -> None:
    """Behind descriptors of the kinds that a program has: a stream asks once what it is behind."""
    null, complaints = os.dup(0), os.dup(2)
    memory, (reading, writing) = os.memfd_create("input"), os.pipe()
    _move(memory, writing, writing)
    candidate.open_streams()
    _move(null, null, complaints)
    for descriptor in (null, complaints, memory, reading, writing):
        os.close(descriptor)


def _move(*descriptors: int) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)


def _reserve_low_descriptors() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    while null < FIRST_FREE_FD:
        null = os.dup(null)
    os.close(null)


def _enter_namespaces(uid: int | None, parent_pid: int) -> None:
    """Root builds the file system, then is nobody; a user gets the power to build by unsharing."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    if uid is not None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        layout.enter_root()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # or the maps below would belong to root
        syscalls.die_with(parent_pid)  # a change of user forgets it
    outside_uid, outside_gid = os.getuid(), os.getgid()
    syscalls.unshare(_NEW_SPACES)
    sethostname("box")
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/uid_map", f"{_INSIDE_UID} {outside_uid} 1")
    _write(proc, "self/gid_map", f"{_INSIDE_UID} {outside_gid} 1")
    if uid is None:
        layout.enter_root()
    os.close(proc)
    importlib.invalidate_caches()
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _execute(cell: Cell, orders: box.Orders, descriptors: list[int], watch: box.Watch) -> None:
    """Run one execution to its end, wherever that comes from, and report it."""
    started_s = time.monotonic()
    if cell.tier is not Tier.NAMESPACES:
        _make_workdir(cell)
    outcome, channels = box.Outcome(), Channels(*descriptors)
    flags = _NEW_BOX if cell.tier is Tier.NAMESPACES else 0
    pid = syscalls.run_beside(
        flags, cell.stack, lambda: box.live(cell, orders, channels, watch, outcome)
    )
    if not outcome.whole:  # it was killed, and our memory is as it left it
        os._exit(1)
    if cell.tier is not Tier.NAMESPACES:
        _clear_away(cell)
    for descriptor in descriptors:
        os.close(descriptor)
    watch.control.send(outcome.report(time.monotonic() - started_s))
    with suppress(ChildProcessError):  # while the client reads on, the kernel takes the box apart
        os.waitpid(pid, 0)


def _make_workdir(cell: Cell) -> None:
    clearing.remove_tree(cell.workdir)
    os.mkdir(cell.workdir, 0o700)
    if cell.uid is not None:
        os.chown(cell.workdir, cell.uid, cell.uid)


def _clear_away(cell: Cell) -> None:
    """Without namespaces: end all that the execution has left, then delete its files."""
    deadline_s = time.monotonic() + _KILL_LIMIT_S
    while time.monotonic() < deadline_s:
        if cell.uid is not None:
            _kill_all_of(cell.uid)
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    clearing.remove_tree(cell.workdir)


def _kill_all_of(uid: int) -> None:
    """End every process of a user that is ours alone."""
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as stream:
        return [int(pid) for pid in stream.read().split()]


def _count_own_processes() -> int:
    """Threads and processes of this user, which the kernel's limit would count as well."""
    count = 0
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _write(folder: int, path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=folder)
    os.write(descriptor, text.encode())
    os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
