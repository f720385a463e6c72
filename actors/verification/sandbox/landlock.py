"""File access by Landlock: a second wall behind mount namespaces, and the only one without them."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from actors.verification.sandbox import syscalls

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_MAKE_CHAR, _MAKE_BLOCK, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 15
_ALL_FILE_ACCESS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_NETWORK_ACCESS = 3  # bind and connect of TCP
_SCOPES = 3  # abstract sockets and signals stay inside
ABI_WITH_SCOPES = 6


def confine(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Let this process read ``readable`` and change ``writable``; nothing else, from here on.

    Paths that do not exist are left out. Raises ``OSError`` where the kernel has no Landlock.
    """
    abi = syscalls.landlock_abi()
    handled = _ALL_FILE_ACCESS.get(abi, (1 << 16) - 1)
    network = _ALL_NETWORK_ACCESS if abi >= 4 else 0
    scopes = _SCOPES if abi >= ABI_WITH_SCOPES else 0
    size = 8 if abi < 4 else 16 if abi < ABI_WITH_SCOPES else 24
    ruleset = syscalls.landlock_ruleset(struct.pack("=QQQ", handled, network, scopes)[:size])
    writing = handled & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
    for paths, access in ((readable, _READ & handled), (writable, writing)):
        for path in paths:
            _allow(ruleset, path, access)
    syscalls.landlock_restrict(ruleset)
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= _OF_FILES
    syscalls.landlock_allow(ruleset, struct.pack("=Qi", access, descriptor))
    os.close(descriptor)
