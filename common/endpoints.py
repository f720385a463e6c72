"""Where the broker is: chosen by the broker, written to a file, read again at each reconnect."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from common.config import Config, RunPaths
from common.errors import FatalError, InfraError
from common.files import write_atomically


def broker_endpoint(config: Config) -> str:
    """The address that the broker of ``config`` binds.

    ``ipc`` becomes a socket in a directory of this user with mode 0700. Its name is a hash of the
    run directory because a Unix socket path may have only 107 bytes.
    """
    if config.broker.endpoint != "ipc":
        return config.broker.endpoint
    return private_endpoint(config.run.directory)


def private_endpoint(name: str) -> str:
    """A local socket of this user for ``name``: the same one each time."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"ipc://{_private_directory() / digest}.sock"


def publish_endpoint(paths: RunPaths, endpoint: str) -> None:
    """Tell clients where the broker listens."""
    paths.endpoint_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(paths.endpoint_file, endpoint.encode())
    except OSError as error:
        raise InfraError(
            f"{paths.endpoint_file}: cannot be written: {error.strerror} (free some space, then "
            "start the broker again)"
        ) from None


def read_endpoint(config: Config, paths: RunPaths) -> Callable[[], str]:
    """A function that tells where the broker is now: the file, else the configured address."""

    def endpoint() -> str:
        try:
            return paths.endpoint_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return broker_endpoint(config)
        except OSError as error:
            raise InfraError(f"{paths.endpoint_file}: cannot be read: {error.strerror}") from None

    return endpoint


def _private_directory() -> Path:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    directory = base / f"headrace-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    if not private or status.st_uid != os.getuid():
        raise FatalError(
            f"{directory} must be a directory of yours with mode 0700 to hold local sockets "
            "(remove it, or set XDG_RUNTIME_DIR)"
        )
    return directory
