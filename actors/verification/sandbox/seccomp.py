"""The system-call filter: a list of what is refused, assembled to classic BPF. Pure.

Python programs and compilers use a few hundred calls that differ between machines, so the list says
what is refused rather than what is allowed; namespaces and Landlock stand behind it. A call of a
foreign architecture or of the x32 table ends the process: their numbers mean other calls.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

CLONE_NEW_ANYTHING = 0x7E020080
"""Flags of clone that make a namespace of any kind, time included."""
_AF_UNIX = 1
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type into the terminal of the caller

_COMMON = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "memfd_secret": 447, "process_mrelease": 448, "open_tree_attr": 467,
}  # fmt: skip
_X86_64 = {
    "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144,
    "sched_setaffinity": 203, "ioprio_set": 251, "sched_setattr": 314,
    "shmget": 29, "shmat": 30, "socket": 41, "semget": 64, "msgget": 68, "ptrace": 101,
    "syslog": 103, "uselib": 134, "personality": 135, "vhangup": 153, "modify_ldt": 154,
    "pivot_root": 155, "_sysctl": 156, "adjtimex": 159, "chroot": 161, "acct": 163,
    "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
    "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "create_module": 174, "init_module": 175, "delete_module": 176, "quotactl": 179,
    "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "mbind": 237,
    "set_mempolicy": 238, "mq_open": 240, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
    "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119,
    "sched_setaffinity": 122, "ioprio_set": 30, "sched_setattr": 274,
    "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "shmat": 196, "socket": 198,
    "lookup_dcookie": 18, "quotactl": 60, "umount2": 39, "mount": 40, "pivot_root": 41,
    "nfsservctl": 42, "chroot": 51, "vhangup": 58, "acct": 89, "personality": 92, "unshare": 97,
    "kexec_load": 104, "init_module": 105, "delete_module": 106, "clock_settime": 112,
    "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162,
    "settimeofday": 170, "adjtimex": 171, "add_key": 217, "request_key": 218, "keyctl": 219,
    "swapon": 224, "swapoff": 225, "mbind": 235, "set_mempolicy": 237, "migrate_pages": 238,
    "move_pages": 239, "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264,
    "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270,
    "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "memfd_create": 279, "bpf": 280,
    "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip
REFUSED = {"x86_64": _X86_64 | _COMMON, "aarch64": _AARCH64 | _COMMON}
"""Machine -> name -> number of what is answered with EPERM."""

_MAKES_BOXES = ("mount",)
"""What a launcher goes on to need, besides clone with namespaces."""

_FILTERED_BY_ARGUMENT = {
    "x86_64": {"clone": 56, "clone3": 435, "socketpair": 53, "ioctl": 16, "prlimit64": 302},
    "aarch64": {"clone": 220, "clone3": 435, "socketpair": 199, "ioctl": 29, "prlimit64": 261},
}


class Filters(NamedTuple):
    """Two filters whose refusals add up; each consists of instructions of 8 bytes."""

    early: bytes
    """For a launcher and all that comes of it: everything but what making a box needs."""
    late: bytes
    """For an execution: the rest. It is installed each time, so it is short."""


def assemble(machine: str) -> Filters:
    """The filters for ``machine``; ``KeyError`` for an unknown one."""
    by_argument = _FILTERED_BY_ARGUMENT[machine]
    refused = set(REFUSED[machine].values())
    late = {REFUSED[machine][name] for name in _MAKES_BOXES}
    return Filters(
        early=_program(machine, refused - late, _check_arguments(by_argument)),
        late=_program(machine, late, _check_namespaces(by_argument["clone"])),
    )


def _program(machine: str, refused: set[int], checks: list[bytes]) -> bytes:
    parts = [*_check_architecture(machine), *_refuse_all(sorted(refused)), *checks, _return(_ALLOW)]
    return b"".join(parts)


def _check_architecture(machine: str) -> list[bytes]:
    return [
        _load(_ARCH_AT),
        _jump(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _return(_KILL_PROCESS),
        _load(_NUMBER_AT),
        _jump(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1),
        _return(_KILL_PROCESS),
    ]


def _refuse_all(numbers: Sequence[int]) -> list[bytes]:
    """Each test is followed by its own answer, so no jump is ever too long."""
    refuse = _return(_ERRNO | _EPERM)
    return [part for number in numbers for part in (_jump(_JUMP_EQUAL, number, 0, 1), refuse)]


def _check_arguments(numbers: dict[str, int]) -> list[bytes]:
    """socketpair of the machine's own kind, no typing into terminals, limits of the caller only.

    clone3 keeps its flags in memory, where no filter can look: ENOSYS makes libraries use clone.
    """
    refuse = _return(_ERRNO | _EPERM)
    sockets = [_load(_ARGUMENTS_AT), _jump(_JUMP_EQUAL, _AF_UNIX, 1, 0), refuse]
    typing = [_load(_ARGUMENTS_AT + 8)]
    for request in _TERMINAL_INPUT:
        typing += [_jump(_JUMP_EQUAL, request, 0, 1), refuse]
    own_limits = [_load(_ARGUMENTS_AT), _jump(_JUMP_EQUAL, 0, 1, 0), refuse]
    return [
        *_when(numbers["prlimit64"], own_limits),
        *_when(numbers["clone3"], [_return(_ERRNO | _ENOSYS)]),
        *_when(numbers["socketpair"], sockets),
        *_when(numbers["ioctl"], typing),
    ]


def _check_namespaces(clone: int) -> list[bytes]:
    refuse = _return(_ERRNO | _EPERM)
    return _when(clone, [_load(_ARGUMENTS_AT), _jump(_JUMP_SET, CLONE_NEW_ANYTHING, 0, 1), refuse])


def _when(number: int, checks: list[bytes]) -> list[bytes]:
    """``checks``, then allow, for this call only."""
    block = [*checks, _return(_ALLOW)]
    return [_jump(_JUMP_EQUAL, number, 0, len(block)), *block]


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, 0, 0, offset)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(code, if_true, if_false, value)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, 0, 0, action)


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
