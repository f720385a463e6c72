"""What a job leaves in a child that serves many: threads, processes, open files, memory.

A user's reward may start a thread or a program and give up waiting for it, or keep all that it has
seen. The next job would pay with its own time limit or memory, so a child with too much left in it
ends after its reply, with all that it started, and a fresh one takes the next job.
"""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    num_threads: int
    """Threads of Python; those of libraries in C are their own affair."""
    num_files: int
    """Open descriptors."""
    address_bytes: int
    """Address space, which is what the limit of a child counts."""
    has_children: bool = False
    """Whether it has a process of its own, ended or not."""

    @classmethod
    def of_this_process(cls) -> Footprint:
        """As it is now; files and memory are 0 where there is no ``/proc``."""
        try:
            with open("/proc/self/statm", encoding="ascii") as stream:
                address_bytes = int(stream.read().split()[0]) * resource.getpagesize()
            num_files = len(os.listdir("/proc/self/fd"))
        except FileNotFoundError:
            num_files = address_bytes = 0
        except OSError:  # no descriptor is left to look with
            num_files, address_bytes = resource.getrlimit(resource.RLIMIT_NOFILE)[0], 0
        return cls(threading.active_count(), num_files, address_bytes, _has_children())


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def is_worn(
    now: Footprint, at_start: Footprint, *, max_files: int, memory_limit_bytes: int
) -> bool:
    """Whether the next job would find less than it was promised.

    That is a thread more than at the start, a process where there was none, or less than half of
    the files or of the memory that were free then.
    """
    return (
        now.num_threads > at_start.num_threads
        or now.has_children > at_start.has_children
        or now.num_files - at_start.num_files > (max_files - at_start.num_files) // 2
        or now.address_bytes - at_start.address_bytes
        > (memory_limit_bytes - at_start.address_bytes) // 2
    )
