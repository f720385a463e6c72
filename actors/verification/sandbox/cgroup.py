"""Memory and process limits over a whole execution, where this process may make control groups.

Version 2 and version 1 are both met in the field: a container often sees either, or both. Without
any, each process still has its own limits (see ``docs/sandbox.md``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.verification.sandbox.limits import BoxLimits

ROOT = Path("/sys/fs/cgroup")
_PREFIX = "headrace-box-"
_EXTRA_PROCESSES = 2
"""Room for what the kernel has not yet counted out."""
_MAX_BYTES = 4096
_THREADS = "tasks"

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A place below which groups can be made, what limits them, and what counts in them."""

    parent: Path
    settings: dict[str, int]
    oom_file: str = ""
    cpu_file: str = ""
    entrance: str = "cgroup.procs"
    """The file to write ``0`` to. Version 1 has one that moves a thread alone, and a program starts
    as one: to move a whole process, the kernel waits for every processor, for milliseconds."""


def hierarchies(limits: BoxLimits, root: Path = ROOT, own: str | None = None) -> list[Hierarchy]:
    """Where groups for ``limits`` could be made; ``own`` is the text of ``/proc/self/cgroup``."""
    text = Path("/proc/self/cgroup").read_text(encoding="ascii") if own is None else own
    return list(_parse(text, limits, root))


def _parse(text: str, limits: BoxLimits, root: Path) -> Iterator[Hierarchy]:
    memory, pids = limits.memory_bytes, limits.num_processes + _EXTRA_PROCESSES
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if "memory" in controllers.split(","):
            settings = {"memory.limit_in_bytes": memory}
            yield Hierarchy(
                root / "memory" / relative, settings, "memory.oom_control", entrance=_THREADS
            )
        elif "cpuacct" in controllers.split(","):
            parent = root / "cpuacct" / relative
            yield Hierarchy(parent, {}, cpu_file="cpuacct.usage", entrance=_THREADS)
        elif "pids" in controllers.split(","):
            yield Hierarchy(root / "pids" / relative, {"pids.max": pids}, entrance=_THREADS)
        elif not controllers and (root / "cgroup.controllers").exists():
            settings = {"memory.max": memory, "memory.swap.max": 0, "pids.max": pids}
            settings["memory.oom.group"] = 1
            yield Hierarchy(root / relative, settings, "memory.events", "cpu.stat")


class BoxCgroup:
    """The groups of one launcher; an execution enters them through descriptors opened here."""

    def __init__(self, places: list[Hierarchy]) -> None:
        """Make a group in each place that allows it; none is no error."""
        self._groups: list[Path] = []
        self._procs: list[int] = []
        self._oom_files: list[int] = []
        self._cpu_files: list[int] = []
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        for place in places:
            _sweep(place.parent)
            with suppress(OSError):
                self._make(place, name)

    @property
    def procs_fds(self) -> tuple[int, ...]:
        """Descriptors to write ``0`` to, which moves the writer in."""
        return tuple(self._procs)

    @property
    def limits_memory(self) -> bool:
        """True where memory is limited over all processes."""
        return bool(self._oom_files)

    @property
    def counts_cpu(self) -> bool:
        """True where processor time is counted over all processes."""
        return bool(self._cpu_files)

    def num_oom_kills(self) -> int:
        """Processes that the kernel has ended here for want of memory."""
        total = 0
        for descriptor in self._oom_files:
            words = os.pread(descriptor, _MAX_BYTES, 0).split()
            pairs = dict(zip(words[::2], words[1::2], strict=False))
            total += int(pairs.get(b"oom_kill", b"0"))
        return total

    def cpu_s(self) -> float:
        """Processor seconds used here so far, by whom or how it ended notwithstanding; 0: unknown.

        The kernel's account of a parent leaves out children that it ignores.
        """
        for descriptor in self._cpu_files:
            words = os.pread(descriptor, _MAX_BYTES, 0).split(maxsplit=2)
            return int(words[1]) / 1e6 if words[0] == b"usage_usec" else int(words[0]) / 1e9
        return 0.0

    def close(self) -> None:
        """Remove the groups; their processes must have ended."""
        for descriptor in (*self._procs, *self._oom_files, *self._cpu_files):
            os.close(descriptor)
        for path in self._groups:
            with suppress(OSError):
                path.rmdir()
        self._procs, self._oom_files, self._cpu_files, self._groups = [], [], [], []

    def _make(self, place: Hierarchy, name: str) -> None:
        path = place.parent / name
        path.mkdir()
        try:
            for setting, value in place.settings.items():
                required = setting in ("memory.max", "memory.limit_in_bytes", "pids.max")
                if required or (path / setting).exists():
                    _set(path / setting, value)
            procs = os.open(path / place.entrance, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            path.rmdir()
            raise
        self._procs.append(procs)
        self._groups.append(path)
        if place.oom_file:
            self._oom_files.append(os.open(path / place.oom_file, os.O_RDONLY | os.O_CLOEXEC))
        if place.cpu_file:
            self._cpu_files.append(os.open(path / place.cpu_file, os.O_RDONLY | os.O_CLOEXEC))


def _set(path: Path, value: int) -> None:
    """Write without creating: a missing file means that the controller is not there."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the groups of launchers whose process was killed before it could."""
    with suppress(OSError):
        for path in parent.glob(f"{_PREFIX}*"):
            pid = path.name.removeprefix(_PREFIX).partition("-")[0]
            if not Path("/proc", pid).exists():
                with suppress(OSError):
                    path.rmdir()
