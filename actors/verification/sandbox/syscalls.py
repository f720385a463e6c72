"""The few system calls that Python does not wrap; errors are ``OSError``."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

CLONE_VM, CLONE_VFORK = 0x00000100, 0x00004000
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 36, 38, 47

_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63
_STACK_MARGIN = 256 << 10

MACHINE = os.uname().machine
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126},
    "aarch64": {"pivot_root": 41, "capset": 91},
}.get(MACHINE, {})
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446

# PyDLL keeps the interpreter lock over the call: nothing may come in between a clone and its child.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_HEADER = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
_NOTHING = (ctypes.c_uint32 * 6)()
_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_libc.clone.argtypes = (_Entry, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


def _call(name: str, *arguments: object) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Raw system call; integers are passed as 64 bits."""
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _call("syscall", ctypes.c_long(number), *wide)


def run_beside(flags: int, stack: int, work: Callable[[], None]) -> int:
    """Run ``work`` in a new process that shares this memory, while this one waits for its end.

    Returns the process id, still to be waited for. ``flags`` are those of clone(2) that make
    namespaces. As with vfork(2) nothing is copied, so this costs a twentieth of a fork; unlike
    there the new process has frames of its own, from the address ``stack`` downwards, and may run
    anything that leaves the interpreter as it was found: it must not be killed half-way.
    """
    entry = _Entry(lambda _: work())
    return _call("clone", entry, stack, flags | CLONE_VM | CLONE_VFORK | signal.SIGCHLD, None)


def fork() -> int:
    """``os.fork`` without the interpreter's hooks, which cost more than the rest of a fork.

    They repair what other threads left locked, so the caller must be the only thread; and they
    renew the seed of random numbers and the number of the main thread, which is left to the child.
    """
    return _call("fork")


def free_stack() -> int:
    """An address on the main thread's stack that is below everything in use, with a margin."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        line = next(line for line in maps if line.endswith("[stack]\n"))
    return int(line.partition("-")[0], 16) - _STACK_MARGIN


def signal_descriptor(number: int) -> int:
    """A descriptor from which the reading process hears of a signal that it has blocked."""
    mask = (ctypes.c_uint64 * 16)(1 << (number - 1))
    return _call("signalfd", -1, mask, os.O_CLOEXEC | os.O_NONBLOCK)


def unshare(flags: int) -> None:
    """Move this process to new namespaces."""
    _call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """See mount(2)."""
    texts = (source.encode(), target.encode(), kind.encode())
    _call("mount", *texts, ctypes.c_ulong(flags), data.encode())


def make_read_only(target: str, *, is_device: bool = False) -> None:
    """Make ``target`` and all mounts below it read-only, without set-user-ids and other devices."""
    flags = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | (0 if is_device else _MOUNT_ATTR_NODEV)
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    where = (_AT_FDCWD, target.encode(), 0 if target == "/" else _AT_RECURSIVE)
    syscall(_MOUNT_SETATTR, *where, ctypes.addressof(attributes), ctypes.sizeof(attributes))


def pivot_root(new_root: str) -> None:
    """Make ``new_root`` the root directory and let go of the old one."""
    os.chdir(new_root)
    syscall(_NUMBERS["pivot_root"], b".", b".")
    _call("umount2", b".", ctypes.c_int(MNT_DETACH))
    os.chdir("/")


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """See prctl(2)."""
    _call("prctl", option, value, third, 0, 0)


def die_with(parent_pid: int) -> None:
    """End this process with its parent; at once where that has ended. ``parent_pid`` 0: unseen."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def drop_bounding_set() -> None:
    """No program that this process or a child of it starts can gain a capability."""
    for number in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # this kernel has no more, or an unprivileged process had none
            break


def drop_capabilities() -> None:
    """Give up every capability, for good."""
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    syscall(_NUMBERS["capset"], ctypes.addressof(_HEADER), ctypes.addressof(_NOTHING))


def forbid_new_privileges() -> None:
    """Set-user-id programs and file capabilities have no effect from here on."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


class Filter:
    """A seccomp filter in memory, ready to be installed."""

    def __init__(self, program: bytes) -> None:
        """``program``: instructions of 8 bytes each."""
        self._code = ctypes.create_string_buffer(program, len(program))
        self._described = _FilterProgram(len(program) // 8, ctypes.addressof(self._code))
        self.address = ctypes.addressof(self._described)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def install_filter(program: Filter) -> None:
    """From here on ``program`` judges every call of this process and its children."""
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program.address)


def landlock_abi() -> int:
    """Version of Landlock in this kernel, 0 where there is none."""
    try:
        return syscall(_LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock_ruleset(attributes: bytes) -> int:
    """Descriptor of a new rule set; see landlock_create_ruleset(2)."""
    return syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)


def landlock_allow(ruleset: int, attributes: bytes) -> None:
    """Allow access beneath a directory; see landlock_add_rule(2)."""
    syscall(_LANDLOCK_ADD, ruleset, 1, attributes, 0)


def landlock_restrict(ruleset: int) -> None:
    """Confine this process and its children to what ``ruleset`` allows."""
    syscall(_LANDLOCK_RESTRICT, ruleset, 0)
