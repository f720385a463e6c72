"""CURVE key pairs on disk: made once, read only where nobody else can read or change them.

A pair is two files in the certificate format of ZeroMQ: ``<name>.key`` may be seen by everybody,
``<name>.key_secret`` by its owner only. As with ssh, a key that others could have read or replaced
is refused rather than used.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from zmq import auth

from common.errors import FatalError

KEY_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700
MAX_FILE_BYTES = 1 << 20
_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret half, 40 characters of Z85 each; the secret is never shown."""

    public: bytes
    secret: bytes = field(repr=False)


def make_pair(directory: Path, name: str) -> bytes:
    """Write ``name.key`` and ``name.key_secret`` into a private directory; returns the public key.

    Raises :class:`FatalError` when either is there already: keys are never overwritten.
    """
    check_private_directory(directory)
    targets = [directory / f"{name}{suffix}" for suffix in (KEY_SUFFIX, SECRET_SUFFIX)]
    for target in targets:
        if os.path.lexists(target):
            raise FatalError(
                f"{target} exists and is not overwritten (delete it first if no process uses it)"
            )
    # The library writes with the umask: in a directory of mode 0700 nobody sees it do so.
    with tempfile.TemporaryDirectory(dir=directory) as made_in:
        made = auth.create_certificates(made_in, name)
        for file, mode, target in zip(made, (PUBLIC_MODE, SECRET_MODE), targets, strict=True):
            os.chmod(file, mode)
            os.rename(file, target)
    return load_public(targets[0])


def load_public(path: Path) -> bytes:
    """The public key in ``path``; raises :class:`FatalError` when others could have changed it."""
    return _read_keys(path, forbidden=0o022)[0]


def load_pair(path: Path) -> KeyPair:
    """The pair in the secret file ``path``; raises :class:`FatalError` when others can read it."""
    check_private_directory(path.parent)
    public, secret = _read_keys(path, forbidden=0o077)
    if not secret:
        raise FatalError(
            f"{path} holds no secret key (copy the file that headrace keys made, or make another)"
        )
    return KeyPair(public, secret)


def check_private_directory(directory: Path) -> None:
    """Raise :class:`FatalError` unless ``directory`` is closed to everybody but this user."""
    _check_status(directory, _status(directory), is_directory=True, forbidden=0o077)


def read_guarded(path: Path, *, forbidden: int) -> bytes:
    """Contents of a regular file of this user or root that has no mode bit of ``forbidden``.

    The file is checked through the descriptor that it is read by, so that it cannot be exchanged
    in between. Raises :class:`FatalError` with file, mode and cure.
    """
    _check_status(path, _status(path), is_directory=False, forbidden=forbidden)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FatalError(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        _check_status(path, os.fstat(descriptor), is_directory=False, forbidden=forbidden)
        return file.read(MAX_FILE_BYTES)


def is_public_key(text: bytes) -> bool:
    """Whether ``text`` is a key in Z85."""
    return _Z85_KEY.fullmatch(text) is not None


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except FileNotFoundError:
        raise FatalError(
            f"{path}: no such file (headrace keys makes a directory with a pair for each role)"
        ) from None
    except OSError as error:
        raise FatalError(f"{path} cannot be read: {error.strerror}") from None


def _check_status(
    path: Path, status: os.stat_result, *, is_directory: bool, forbidden: int
) -> None:
    kind, cure = ("directory", "700") if is_directory else ("file", "600")
    if stat.S_ISLNK(status.st_mode):
        raise FatalError(f"{path} is a symbolic link, which may be redirected (name the {kind})")
    if not (stat.S_ISDIR if is_directory else stat.S_ISREG)(status.st_mode):
        raise FatalError(f"{path} must be a {kind}, and is not (headrace keys makes it)")
    if status.st_uid not in (os.getuid(), 0):
        raise FatalError(
            f"{path} belongs to user {status.st_uid}, not to user {os.getuid()} who runs this "
            f"(chown {os.getuid()} {path})"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        is_secret = bool(forbidden & 0o044)
        raise FatalError(
            f"{path} has mode {mode:04o}: others can {'read' if is_secret else 'change'} it "
            f"(chmod {cure if is_secret else '644'} {path})"
        )


def _read_keys(path: Path, *, forbidden: int) -> tuple[bytes, bytes]:
    """Public and secret key (b"" without one) of a certificate file."""
    found = {b"public-key": b"", b"secret-key": b""}
    for line in read_guarded(path, forbidden=forbidden).splitlines():
        field_name, equals, value = line.partition(b"=")
        if equals and field_name.strip() in found:
            found[field_name.strip()] = value.strip(b" \t'\"")
    public, secret = found.values()
    if not is_public_key(public) or (secret and not is_public_key(secret)):
        raise FatalError(
            f'{path} is no ZeroMQ certificate: it needs public-key = "40 characters" '
            "(make keys with headrace keys)"
        )
    return public, secret
