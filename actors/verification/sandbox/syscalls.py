"""The few system calls that Python does not wrap; errors are ``OSError``."""

from __future__ import annotations

import ctypes
import os
import platform
import signal

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

MACHINE = platform.machine()
_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91},
}.get(MACHINE, {})
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446

# PyDLL keeps the interpreter lock over the call, which a clone without atfork handlers needs.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


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


def fork_into(flags: int) -> int:
    """``fork`` whose child starts in new namespaces; 0 in the child.

    glibc does not hear of it: the child may only fork again, wait and exit.
    """
    return syscall(_NUMBERS["clone"], flags | signal.SIGCHLD, 0, 0, 0, 0)


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
    wide = [ctypes.c_ulong(item) for item in (value, third, 0, 0)]
    _call("prctl", ctypes.c_int(option), *wide)


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
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    syscall(_NUMBERS["capset"], ctypes.addressof(header), ctypes.addressof(nothing))


def forbid_new_privileges() -> None:
    """Set-user-id programs and file capabilities have no effect from here on."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter: instructions of 8 bytes each."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    described = Program(len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(described))


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
