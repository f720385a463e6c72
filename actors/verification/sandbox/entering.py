"""The steps by which the child that becomes a program gives up power.

Its parent, the init, shares the memory of the launcher, so what is done there is cheap; of whatever
the child touches the kernel makes a copy. So the init does what both may do, in :func:`prepare`.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Sequence
from typing import NamedTuple

from actors.verification.sandbox import landlock, layout, syscalls
from actors.verification.sandbox.kinds import Tier

FIRST_FREE_FD = 16
"""Descriptors of a launcher start here, out of the way of the numbers that programs are given."""

_CPU_GRACE_S = 1
_OUT_OF_FILES = 4096
_NUM_SIGNALS = 256
_NOTHING = (
    *(resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE),
    resource.RLIMIT_RTPRIO,
)
_NAMES = (
    *(resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE),
    *(resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING, *_NOTHING),
)
_HARD_LIMITS = {name: resource.getrlimit(name)[1] for name in _NAMES}


class Bounds(NamedTuple):
    """``limits.BoxLimits`` as they arrive here."""

    cpu_s: float
    wall_s: float
    memory_bytes: int
    num_processes: int
    num_files: int
    file_bytes: int
    disk_bytes: int
    num_inodes: int
    kept_output_bytes: int
    max_output_bytes: int


class Channels(NamedTuple):
    """Descriptors of one execution."""

    payload: int
    stdin: int
    stdout: int
    stderr: int
    inputs: int = -1
    results: int = -1


class Cell(NamedTuple):
    """What a launcher has prepared for all of its executions."""

    tier: Tier
    stack: int
    """Where the stacks of its children begin; see ``syscalls.run_beside``."""
    uid: int | None = None
    """Where set, the program changes to this user (only without namespaces)."""
    workdir: str = layout.BOX
    grants: tuple[landlock.Grant, ...] = ()
    """What may be read and written, besides the working directory."""
    filter: syscalls.Filter | None = None
    """Of system calls; see ``seccomp``."""
    num_own_processes: int = 0
    """Processes of the same user that the limit must leave room for."""
    cgroup_fds: tuple[int, ...] = ()


def prepare(cell: Cell, limits: Bounds, standard: Sequence[int]) -> int:
    """Give up, in the parent and so for the child as well, what the parent needs no more.

    ``standard``: the descriptors that become 0, 1, 2 and so on. In a PID namespace the child has
    next to nothing left to do. Without one it must be confined apart, or it could signal its
    parent: returns the Landlock rules for it, -1 for none. Raises ``OSError`` where a tier lacks
    what it stands on.
    """
    rules = _ruleset(cell)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.umask(0o077)
    if cell.tier is Tier.NAMESPACES:
        if rules >= 0:
            syscalls.landlock_restrict(rules)
        _limit_resources(limits, cell.num_own_processes)
        _drop_power(cell)
        return -1
    return rules


def enter(cell: Cell, limits: Bounds, rules: int, first_closed: int) -> None:
    """Give up the rest, for good; descriptors from ``first_closed`` on are closed last."""
    os.setsid()
    for descriptor in cell.cgroup_fds:
        os.write(descriptor, b"0")
    if cell.tier is not Tier.NAMESPACES:
        _enter_alone(cell, limits, rules)
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    os.closerange(first_closed, _OUT_OF_FILES)


def _enter_alone(cell: Cell, limits: Bounds, rules: int) -> None:
    if rules >= 0:
        syscalls.landlock_restrict(rules)
    _limit_resources(limits, cell.num_own_processes)
    if cell.uid is not None:
        os.setgroups([])
        os.setresgid(cell.uid, cell.uid, cell.uid)
        os.setresuid(cell.uid, cell.uid, cell.uid)
    if cell.tier is Tier.FILTERS:
        _drop_power(cell)


def _drop_power(cell: Cell) -> None:
    syscalls.drop_capabilities()
    if cell.filter is not None:
        syscalls.install_filter(cell.filter)


def _limit_resources(limits: Bounds, num_own_processes: int) -> None:
    """All but the address space, which the parent shares with a launcher."""
    _limit(resource.RLIMIT_CPU, math.ceil(limits.cpu_s) + _CPU_GRACE_S)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.num_files)
    _limit(resource.RLIMIT_NPROC, limits.num_processes + num_own_processes)
    _limit(resource.RLIMIT_SIGPENDING, _NUM_SIGNALS)
    for name in _NOTHING:
        _limit(name, 0)


def _limit(name: int, value: int) -> None:
    hard = _HARD_LIMITS[name]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(name, (value, value))


def _ruleset(cell: Cell) -> int:
    """Namespaces can do without Landlock. Folders are looked up while we may still walk there."""
    if cell.tier is Tier.NONE:
        return -1
    if not landlock.abi():
        if cell.tier is Tier.FILTERS:
            raise OSError("this kernel has no Landlock")
        return -1
    return landlock.ruleset([*cell.grants, landlock.writing(cell.workdir)])
