"""The file system that programs see: system folders and the interpreter read-only, one own folder.

Nothing of ``/etc``, ``/proc``, ``/sys``, ``/home``, ``/root``, ``/run`` or ``/var`` is in it.
"""

from __future__ import annotations

import os
import sys

from actors.verification.sandbox import syscalls

BOX = "/box"
"""Working directory of a program, HOME, and the only place that it can write to."""

_SYSTEM = ("/usr/bin", "/usr/include", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec")
_TOP = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_SHORTCUTS = {"/tmp": "/box/tmp", "/dev/shm": "/box/shm"}  # noqa: S108 # names inside the box
FOLDERS = ("tmp", "shm")
_STAGE = "/tmp"  # noqa: S108 # covered in a mount namespace of our own, before anything is written


def readable_paths() -> list[str]:
    """Folders and devices of this machine that a program may read."""
    prefix = os.path.realpath(sys.base_prefix)
    folders = [*_SYSTEM, *(path for path in _TOP if not os.path.islink(path))]
    if not any(f"{prefix}/".startswith(f"{path}/") for path in ("/usr", *folders)):
        folders.append(prefix)
    return [path for path in folders if os.path.isdir(path)]


def devices() -> list[str]:
    """Devices that a program may use."""
    return [path for path in _DEVICES if os.path.exists(path)]


def enter_root() -> None:
    """Make a root file system of what may be read, and enter it (in an own mount namespace)."""
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    sources = [*readable_paths(), *devices()]
    syscalls.mount("root", _STAGE, "tmpfs", syscalls.MS_NOSUID, "size=1m,mode=755")
    for path in sources:
        _show(path)
    for path in _TOP:
        if os.path.islink(path):
            os.symlink(os.readlink(path), _STAGE + path)
    for path, target in _SHORTCUTS.items():
        os.makedirs(os.path.dirname(_STAGE + path), exist_ok=True)
        os.symlink(target, _STAGE + path)
    os.mkdir(_STAGE + BOX)
    syscalls.pivot_root(_STAGE)
    syscalls.make_read_only("/")


def mount_box(disk_bytes: int, num_inodes: int) -> None:
    """Put an empty file system at :data:`BOX` and go there."""
    options = f"size={disk_bytes},nr_inodes={num_inodes},mode=700"
    syscalls.mount("box", BOX, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    os.chdir(BOX)


def _show(path: str) -> None:
    target = _STAGE + path
    is_folder = os.path.isdir(path)
    if is_folder:
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o644))
    syscalls.mount(path, target, "", syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.make_read_only(target, is_device=not is_folder)
