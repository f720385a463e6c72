"""CURVE on both ends of the wire: encryption, and a key for everybody who may take part.

libzmq refuses what is not allowed before a single application message passes. What a refused peer
is told it is told by its own process: see ``common.security_handshake``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from common.config import Config
from common.errors import FatalError
from common.security_clients import CLIENTS_FILE, WatchedClients, read_clients
from common.security_handshake import HandshakeWatch
from common.security_keys import (
    KEY_SUFFIX,
    SECRET_SUFFIX,
    KeyPair,
    check_private_directory,
    load_pair,
    load_public,
)
from common.security_probe import server_mechanism
from common.security_zap import Doorkeeper
from common.types import Role

ZAP_DOMAIN = b"headrace"
BROKER = "broker"
PLAIN_CAUSES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: (
        "lets in only clients with a key, and security.keys is not set here "
        "(set it to the directory that headrace keys made)"
    )
}


@dataclass(frozen=True, slots=True)
class ClientSecurity:
    """What a client needs to prove who it is, and to know that it speaks to the right server."""

    pair: KeyPair
    secret_file: Path
    server_public: bytes
    server_file: Path

    @classmethod
    def load(cls, keys: Path, role: Role, name: str, *, server: str = BROKER) -> ClientSecurity:
        """The keys of process ``name``: its own pair if there is one, else that of its role.

        Raises :class:`FatalError` for a file that is missing, malformed or open to others.
        """
        secret_file = secret_file_of(keys, role.value, name)
        server_file = keys / f"{server}{KEY_SUFFIX}"
        return cls(load_pair(secret_file), secret_file, load_public(server_file), server_file)

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """Set up a socket that is not connected yet."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret)

    def causes(self) -> dict[int, str]:
        """What each kind of failed handshake means, with its cure."""
        return {
            zmq.EVENT_HANDSHAKE_FAILED_AUTH: (
                f"does not accept the key in {self.secret_file}: it is not in the server's "
                f"{CLIENTS_FILE}, or was removed (add it there, or make keys with headrace keys)"
            ),
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: (
                f"breaks off the handshake: {self.server_file} is not its public key "
                "(copy that file from the server's key directory)"
            ),
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: (
                f"uses no keys, but this process does, from {self.secret_file} "
                "(set security.keys where the server runs)"
            ),
        }


def explain_handshake(endpoint: str, security: ClientSecurity | None) -> int:
    """The event that a handshake should have failed with, where it failed without a reason.

    Opens a connection of its own and waits, so it is not for an event loop.
    """
    expected = "NULL" if security is None else "CURVE"
    if server_mechanism(endpoint) in ("", expected):
        return int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    return int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)


def handshake_watch(security: ClientSecurity | None) -> HandshakeWatch:
    """What tells a client with or without keys that it will never be let in."""
    return HandshakeWatch(PLAIN_CAUSES if security is None else security.causes())


class ServerSecurity:
    """What a server needs: its pair, who may connect, and whom to tell of those who may not."""

    def __init__(
        self, pair: KeyPair, clients: WatchedClients, count: Callable[[int], None], log: Any
    ) -> None:
        self._pair = pair
        self._clients = clients
        self._count = count
        self._log = log

    @classmethod
    def load(
        cls, keys: Path, role: str, name: str, *, count: Callable[[int], None], log: Any
    ) -> ServerSecurity:
        """The server ``name``: its own pair if there is one, else that of its role.

        ``count`` takes numbers of refused connections, on another thread. Raises
        :class:`FatalError` for a file that is missing, malformed or open to others.
        """
        pair = load_pair(secret_file_of(keys, role, name))

        def complain(error: str) -> None:
            log.error("the list of clients was not read again, the last one holds", error=error)

        return cls(pair, WatchedClients(keys / CLIENTS_FILE, complain), count, log)

    def secure(self, context: zmq.Context[Any], socket: zmq.Socket[Any]) -> Doorkeeper:
        """Set up a socket that is not bound yet; close what is returned after the socket.

        Without an answer from the doorkeeper nobody comes in.
        """
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        return Doorkeeper(
            context, socket, self._clients, on_denied=self._count, log=self._log_denied
        )

    def role_of(self, user_id: str) -> tuple[Role, str] | None:
        """Role and only permitted name ("" for any) behind a user id; None when it was revoked."""
        client = self._clients.now.by_user_id.get(user_id)
        return None if client is None else (client.role, client.name)

    def _log_denied(self, what: str, number: int) -> None:
        self._log.warning(what, number=number)


def client_security(config: Config, role: Role, name: str) -> ClientSecurity | None:
    """The keys that ``config`` gives to a client of the broker; None where it has none."""
    if not config.security.keys:
        return None
    return ClientSecurity.load(Path(config.security.keys), role, name)


def secret_file_of(keys: Path, role: str, name: str) -> Path:
    """``<name>.key_secret`` if there is one, else ``<role>.key_secret``."""
    own = keys / f"{name}{SECRET_SUFFIX}"
    return own if own.is_file() else keys / f"{role}{SECRET_SUFFIX}"


def public_name_of(keys: Path, role: str, name: str) -> str:
    """Whose public key proves the server ``name``: its own where there is one, else its role's.

    The name came over the network: one that is more than a file's name has no key of its own.
    """
    is_plain = Path(name).name == name
    return name if is_plain and (keys / f"{name}{KEY_SUFFIX}").is_file() else role


def key_problems(keys: Path) -> list[FatalError]:
    """What is wrong with the keys in a directory, one error each."""
    problems: list[FatalError] = []
    try:
        check_private_directory(keys)
    except FatalError as error:
        return [error]
    checks: list[Callable[[], object]] = [
        *(partial(load_public, path) for path in sorted(keys.glob(f"*{KEY_SUFFIX}"))),
        *(partial(load_pair, path) for path in sorted(keys.glob(f"*{SECRET_SUFFIX}"))),
    ]
    if not checks:
        problems.append(FatalError(f"{keys} holds no keys (make them with headrace keys {keys})"))
    if os.path.lexists(keys / CLIENTS_FILE):
        checks.append(partial(read_clients, keys / CLIENTS_FILE))
    for check in checks:
        try:
            check()
        except FatalError as error:
            problems.append(error)
    return problems
