"""Who may connect: ``clients.toml`` maps public keys to roles and is read again when it changes.

Revoking a key means removing its line. A file that cannot be read as a whole changes nothing: a
slip of the editor locks nobody out and lets nobody in.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import tomli_w

from common.errors import FatalError
from common.files import write_atomically
from common.security_keys import PUBLIC_MODE, is_public_key, read_guarded
from common.types import Role

CLIENTS_FILE = "clients.toml"
_HEADER = """\
# Who may connect, by public key. "name" ties a key to one process; without it, any name will do.
# Delete a line to revoke its key: running servers notice within seconds and cut the client off.

"""

_KeyText = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]
_NameText = Annotated[str, msgspec.Meta(max_length=128)]


class KnownClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The holder of a key: a role, and the only name that it may use if one is given."""

    role: Role
    key: _KeyText
    name: _NameText = ""

    @property
    def user_id(self) -> str:
        """What the handshake marks messages of this key with: role, name and the key's digest."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=8).hexdigest()
        return f"{self.role.value}/{self.name}/{digest}"


class _ClientsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    clients: tuple[KnownClient, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Who may connect, at one moment."""

    by_key: Mapping[bytes, KnownClient]
    by_user_id: Mapping[str, KnownClient]

    @classmethod
    def of(cls, clients: Iterable[KnownClient]) -> Allowlist:
        """The allowlist of these clients."""
        known = tuple(clients)
        return cls(
            {client.key.encode(): client for client in known},
            {client.user_id: client for client in known},
        )


def read_clients(path: Path) -> tuple[KnownClient, ...]:
    """The clients in ``path``, which only its owner may write; raises :class:`FatalError`."""
    data = read_guarded(path, forbidden=0o022)
    try:
        clients = msgspec.convert(tomllib.loads(data.decode()), _ClientsFile).clients
    except (ValueError, msgspec.ValidationError) as error:  # ValueError: TOML and UTF-8
        raise FatalError(f"{path}: {error} (headrace keys writes this file)") from None
    seen: set[str] = set()
    for client in clients:
        if not is_public_key(client.key.encode()) or client.key in seen:
            raise FatalError(
                f"{path}: key {client.key!r} is malformed or listed twice (delete its line)"
            )
        seen.add(client.key)
    return clients


def write_clients(path: Path, clients: Iterable[KnownClient]) -> None:
    """Replace ``path`` as a whole."""
    tables = [
        {"role": client.role.value, "key": client.key}
        | ({"name": client.name} if client.name else {})
        for client in clients
    ]
    write_atomically(path, (_HEADER + tomli_w.dumps({"clients": tables})).encode())
    path.chmod(PUBLIC_MODE)  # whatever the umask is; only the owner can enter the directory


class WatchedClients:
    """The allowlist of one server process, read again when its file has changed.

    One thread calls :meth:`refresh`, any thread reads :attr:`now`.
    """

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        """Read ``path``; raises :class:`FatalError`. ``complain`` takes errors of later reads."""
        self._path = path
        self._complain = complain
        self._seen = self._stamp()
        self.now = Allowlist.of(read_clients(path))

    def refresh(self) -> bool:
        """Take in what has changed; True if something has. A broken file changes nothing."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.now = Allowlist.of(read_clients(self._path))
        except FatalError as error:
            self._complain(str(error))
            return False
        return True

    def _stamp(self) -> tuple[int, ...]:
        """Tells two states of the file apart; opening it is what makes NFS look at the server."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ()
        status = os.fstat(descriptor)
        os.close(descriptor)
        return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
