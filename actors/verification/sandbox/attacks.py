"""The program that attacks the sandbox it runs in; it prints the names of what succeeded.

It runs as ``main.py`` of an execution, on the standard library alone. Its standard input is JSON:
``port`` and ``abstract`` (sockets that listen outside), ``file`` (one it must not read), ``pid`` (a
process it must not reach), ``environment`` (the names it may see), ``num_processes``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

Attack = Callable[[dict[str, Any]], object]
_libc = ctypes.CDLL(None, use_errno=True)


def connects_to_tcp(target: dict[str, Any]) -> bool:
    with socket.create_connection(("127.0.0.1", target["port"]), timeout=1):
        return True


def connects_to_abstract_socket(target: dict[str, Any]) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + target["abstract"])
        return True


def sends_datagrams(target: dict[str, Any]) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return client.sendto(b"x", ("127.0.0.1", target["port"])) == 1


def reads_files_outside(target: dict[str, Any]) -> bool:
    with open(target["file"], "rb") as stream:
        return bool(stream.read())


def reads_users(target: dict[str, Any]) -> bool:
    with open("/etc/passwd", "rb") as stream:
        return bool(stream.read())


def writes_files_outside(target: dict[str, Any]) -> bool:
    with open(target["file"] + ".planted", "wb") as stream:
        return bool(stream.write(b"x"))


def writes_to_system_folders(target: dict[str, Any]) -> bool:
    with open("/usr/lib/planted", "wb") as stream:
        return stream.write(b"x") == 1


def signals_processes_outside(target: dict[str, Any]) -> bool:
    os.kill(target["pid"], 0)
    return True


def traces_processes_outside(target: dict[str, Any]) -> bool:
    return bool(_libc.ptrace(16, target["pid"], 0, 0) == 0)


def reads_environment_of_others(target: dict[str, Any]) -> bool:
    with open(f"/proc/{target['pid']}/environ", "rb") as stream:
        return bool(stream.read())


def traces_itself(target: dict[str, Any]) -> bool:
    return bool(_libc.ptrace(0, 0, 0, 0) == 0)


def makes_namespaces(target: dict[str, Any]) -> bool:
    return any(_libc.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000))


def mounts(target: dict[str, Any]) -> bool:
    return bool(_libc.mount(b"none", b"/box", b"tmpfs", 0, b"") == 0)


def makes_objects_for_other_processes(target: dict[str, Any]) -> bool:
    """Executions of one launcher share its IPC namespace, which must stay empty."""
    made = (_libc.shmget(7, 4096, 0o1600), _libc.semget(7, 1, 0o1600), _libc.msgget(7, 0o1600))
    return any(number >= 0 for number in made)


def becomes_root(target: dict[str, Any]) -> bool:
    os.setuid(0)
    return True


def inherits_descriptors(target: dict[str, Any]) -> bool:
    return any(_is_open(number) for number in range(3, 1024))


def inherits_environment(target: dict[str, Any]) -> bool:
    return bool(sorted(os.environ) != sorted(target["environment"]))


def forks_without_end(target: dict[str, Any]) -> bool:
    """The last attack: its children end with it."""
    count = 0
    for _ in range(target["num_processes"] + 50):
        try:
            if os.fork() == 0:
                signal.pause()
        except OSError:
            break
        count += 1
    return bool(count >= target["num_processes"])


ATTACKS: tuple[Attack, ...] = (
    *(connects_to_tcp, connects_to_abstract_socket, sends_datagrams, reads_files_outside),
    *(reads_users, writes_files_outside, writes_to_system_folders, signals_processes_outside),
    *(traces_processes_outside, reads_environment_of_others, traces_itself, makes_namespaces),
    *(mounts, makes_objects_for_other_processes, becomes_root, inherits_descriptors),
    *(inherits_environment, forks_without_end),
)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def succeeded(target: dict[str, Any]) -> Iterator[str]:
    """Names of the attacks that got through."""
    for attack in ATTACKS:
        try:
            if attack(target):
                yield attack.__name__
        except OSError:
            continue


if __name__ == "__main__":
    print(json.dumps(list(succeeded(json.load(sys.stdin)))))
    sys.stdout.flush()
    os._exit(0)
