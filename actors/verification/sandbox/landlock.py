"""File access by Landlock: a second wall behind mount namespaces, and the only one without them."""

from __future__ import annotations

import functools
import os
import stat
import struct
from collections.abc import Iterable

from actors.verification.sandbox import syscalls

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_MAKE_CHAR, _MAKE_BLOCK, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 15
_ALL_FILE_ACCESS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_NETWORK_ACCESS = 3  # bind and connect of TCP
_SCOPES = 3  # abstract sockets and signals stay inside
ABI_WITH_SCOPES = 6

Grant = bytes
"""A rule: what is allowed beneath the folder, or on the file, of a descriptor that stays open."""


@functools.cache
def abi() -> int:
    """Version of Landlock in this kernel, 0 where there is none."""
    return syscalls.landlock_abi()


def reading(path: str) -> Grant:
    """Allow to read and execute what is below ``path``."""
    return _grant(path, _READ & _handled())


def writing(path: str) -> Grant:
    """Allow to change what is below ``path``, but not to make devices."""
    return _grant(path, _handled() & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV))


def ruleset(grants: Iterable[Grant]) -> int:
    """Descriptor of rules that allow ``grants`` and nothing else.

    Raises ``OSError`` where the kernel has no Landlock.
    """
    network = _ALL_NETWORK_ACCESS if abi() >= 4 else 0
    scopes = _SCOPES if abi() >= ABI_WITH_SCOPES else 0
    size = 8 if abi() < 4 else 16 if abi() < ABI_WITH_SCOPES else 24
    rules = syscalls.landlock_ruleset(struct.pack("=QQQ", _handled(), network, scopes)[:size])
    for grant in grants:
        syscalls.landlock_allow(rules, grant)
    return rules


def _handled() -> int:
    return _ALL_FILE_ACCESS.get(abi(), (1 << 16) - 1)


def _grant(path: str, access: int) -> Grant:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= _OF_FILES
    return struct.pack("=Qi", access, descriptor)
