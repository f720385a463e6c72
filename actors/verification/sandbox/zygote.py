"""The launcher: one warm interpreter that starts one execution after the other.

A cold interpreter takes longer to start than most programs take to run, so this one is started
once, moves into its namespaces, and forks for each execution. It never reads what it passes on
(sources and inputs stay in descriptors), so its memory, which every program inherits, holds nothing
of any other job.

It is started with ``-s -P -S`` and a fixed environment rather than ``-I``: the same isolation, but
``PYTHONHASHSEED`` is heard.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from actors.verification.sandbox import box, clearing, layout, seccomp, syscalls
from actors.verification.sandbox.limits import Tier

NUM_CHANNELS = 6
MAX_MESSAGE_BYTES = 4096
KILL = b"kill"
_KILL_LIMIT_S = 5.0
_INSIDE_UID = 1000
_NEW_SPACES = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
)
_NEW_BOX = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC
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
    control = socket.socket(fileno=settings["control_fd"])
    cgroup_fds = tuple(settings["cgroup_fds"])
    for name in _OFTEN_IMPORTED:
        importlib.import_module(name)
    cell = _prepare(tier, settings)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    try:
        _serve(cell, control, cgroup_fds)
    except ConnectionError:
        pass  # whoever asked has gone
    finally:
        if tier is not Tier.NAMESPACES:
            shutil.rmtree(os.path.dirname(cell.workdir), ignore_errors=True)


def _serve(cell: box.Cell, control: socket.socket, cgroup_fds: tuple[int, ...]) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, NUM_CHANNELS)
        if not message:
            return
        if len(descriptors) != NUM_CHANNELS:  # a late order to kill what has ended by itself
            continue
        order = json.loads(message)
        channels = box.Channels(*descriptors)
        control.send(json.dumps(_execute(cell, order, channels, control, cgroup_fds)).encode())


def _prepare(tier: Tier, settings: dict[str, Any]) -> box.Cell:
    uid: int | None = settings["uid"]
    readable = tuple(layout.readable_paths())
    calls = b"" if tier is Tier.NONE else seccomp.assemble(syscalls.MACHINE)
    if tier is Tier.NAMESPACES:
        _enter_namespaces(uid, settings["parent_pid"])
        syscalls.drop_bounding_set()
        return box.Cell(tier, readable=("/",), filter=calls)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    used = 0 if uid is not None else _count_own_processes()
    syscalls.drop_bounding_set()
    return box.Cell(tier, uid, settings["workdir"], readable, calls, used)


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
    socket.sethostname("box")
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/uid_map", f"{_INSIDE_UID} {outside_uid} 1")
    _write(proc, "self/gid_map", f"{_INSIDE_UID} {outside_gid} 1")
    if uid is None:
        layout.enter_root()
    os.close(proc)
    importlib.invalidate_caches()
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _execute(
    cell: box.Cell,
    order: dict[str, Any],
    channels: box.Channels,
    control: socket.socket,
    cgroup_fds: tuple[int, ...],
) -> dict[str, Any]:
    """Run one execution to its end, wherever that comes from."""
    started_s = time.monotonic()
    reading, writing = os.pipe()
    if cell.tier is not Tier.NAMESPACES:
        _make_workdir(cell)
    pid = syscalls.fork_into(_NEW_BOX) if cell.tier is Tier.NAMESPACES else os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        control.close()
        os.close(reading)
        box.live(cell, channels, writing, cgroup_fds)
    os.close(writing)
    for descriptor in (getattr(channels, name) for name in channels.__slots__):
        os.close(descriptor)
    ended_by = _watch(pid, control, started_s + order["wall_s"])
    usage = os.wait4(pid, 0)[2]
    if cell.tier is not Tier.NAMESPACES:
        _clear_away(cell)
    report = os.read(reading, box.STATUS.size)
    os.close(reading)
    whole = len(report) == box.STATUS.size
    status, out_of_time, not_entered = box.STATUS.unpack(report) if whole else (None, 0, 0)
    return {
        "status": status,
        "out_of_time": bool(out_of_time),
        "not_entered": bool(not_entered),
        "ended_by": ended_by,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - started_s,
    }


def _watch(pid: int, control: socket.socket, deadline_s: float) -> str:
    """Wait until ``pid`` ends, or end it; what ended it: ``""``, ``wall``, ``kill`` or ``left``."""
    ended_by = ""
    handle = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(control.fileno(), select.POLLIN)
    try:
        while True:
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                ended_by = "wall"
                break
            ready = {descriptor for descriptor, _ in poll.poll(max(1, int(remaining_s * 1000)))}
            if handle in ready:
                return ""
            if control.fileno() in ready:
                ended_by = "kill" if control.recv(MAX_MESSAGE_BYTES) else "left"
                break
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return ended_by
    finally:
        os.close(handle)


def _make_workdir(cell: box.Cell) -> None:
    clearing.remove_tree(cell.workdir)
    os.mkdir(cell.workdir, 0o700)
    if cell.uid is not None:
        os.chown(cell.workdir, cell.uid, cell.uid)


def _clear_away(cell: box.Cell) -> None:
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
