"""``headrace keys``: a directory of CURVE keys and the list of who may connect."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from common.errors import FatalError
from common.types import Role

BROKER = "broker"
ROLES = (BROKER, *(role.value for role in Role))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@click.command("keys")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--role", "roles", multiple=True, type=click.Choice(ROLES), help="Role of a further pair."
)
@click.option("--name", "names", multiple=True, help="The one process that this pair is for.")
def keys(directory: Path, roles: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Make DIRECTORY with a key pair for every role, or add pairs to it.

    Without options there is one pair a role. Each --role with its --name adds one pair that only
    the process of this name may use. Nothing is ever overwritten. To revoke a key, delete its line
    in clients.toml.
    """
    pairs = wanted_pairs(roles, names)
    made = make_keys(directory, pairs)
    for name in made:
        click.echo(f"{directory / name}.key  {directory / name}.key_secret")
    click.echo(f"{directory}/clients.toml lists who may connect; keep this directory to yourself")


def wanted_pairs(roles: tuple[str, ...], names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(role, name) of each pair to make; the name is "" for a pair of the whole role.

    Raises :class:`click.BadParameter` for a name that is malformed or that of a role.
    """
    if not roles and not names:
        return [(role, "") for role in ROLES]
    if names and len(names) != len(roles):
        raise click.BadParameter(f"{len(roles)} --role but {len(names)} --name (give one of each)")
    for name in names:
        if not _NAME.fullmatch(name) or name in ROLES:
            raise click.BadParameter(
                f"--name {name!r} must be up to 64 letters, digits, '.', '_' or '-', and not a "
                "role's name (for example actor-0)"
            )
    return list(zip(roles, names or ("",) * len(roles), strict=True))


def make_keys(directory: Path, pairs: list[tuple[str, str]]) -> list[str]:
    """Make the pairs and list their owners as clients; returns the names of the files.

    A broker serves and is nobody's client, so it is not listed. Raises :class:`FatalError`.
    """
    from common.security_clients import CLIENTS_FILE, KnownClient, read_clients, write_clients
    from common.security_keys import DIRECTORY_MODE, check_private_directory, make_pair

    try:
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise FatalError(f"{directory} cannot be made: {error.strerror}") from None
    check_private_directory(directory)
    clients_file = directory / CLIENTS_FILE
    clients = list(read_clients(clients_file)) if os.path.lexists(clients_file) else []
    file_names = [name or role for role, name in pairs]
    _refuse_existing(directory, file_names)
    for (role, name), file_name in zip(pairs, file_names, strict=True):
        public = make_pair(directory, file_name)
        if role != BROKER:
            clients.append(KnownClient(role=Role(role), key=public.decode(), name=name))
    write_clients(clients_file, clients)
    return file_names


def _refuse_existing(directory: Path, file_names: list[str]) -> None:
    """Before anything is made, so that a refusal leaves everything as it was."""
    if len(set(file_names)) != len(file_names):
        raise FatalError(f"{', '.join(file_names)}: the same pair twice (name each once)")
    for name in file_names:
        for suffix in (".key", ".key_secret"):
            if os.path.lexists(directory / f"{name}{suffix}"):
                raise FatalError(
                    f"{directory / name}{suffix} exists and is not overwritten "
                    "(name another directory, or delete it if no process uses it)"
                )
