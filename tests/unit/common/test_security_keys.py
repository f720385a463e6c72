"""Key files: made once, and used only while nobody else can read or change them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from common.errors import FatalError
from common.keys_cli import ROLES, make_keys
from common.security import ClientSecurity, key_problems, secret_file_of
from common.security_clients import CLIENTS_FILE, KnownClient, WatchedClients, read_clients
from common.security_keys import load_pair, load_public, make_pair
from common.types import Role


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    make_keys(directory, [(role, "") for role in ROLES])
    return directory


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.cli", "keys", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )


def test_there_is_a_pair_for_every_role_that_only_the_owner_can_read(keys: Path) -> None:
    assert _mode(keys) == 0o700
    for role in ROLES:
        assert _mode(keys / f"{role}.key") == 0o644
        assert _mode(keys / f"{role}.key_secret") == 0o600
        pair = load_pair(keys / f"{role}.key_secret")
        assert zmq.curve_public(pair.secret) == pair.public == load_public(keys / f"{role}.key")
    assert {client.role for client in read_clients(keys / CLIENTS_FILE)} == set(Role)
    assert key_problems(keys) == []


def test_the_command_prints_no_secret_and_overwrites_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    old_umask = os.umask(0)
    try:
        done = _run(str(directory))
    finally:
        os.umask(old_umask)
    assert done.returncode == 0
    assert key_problems(directory) == []
    secrets = [load_pair(path).secret.decode() for path in directory.glob("*.key_secret")]
    assert len(secrets) == len(ROLES)
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
    before = {path: path.read_bytes() for path in directory.iterdir()}
    again = _run(str(directory))
    assert again.returncode == 1
    assert "broker.key exists and is not overwritten" in again.stderr
    assert "Traceback" not in again.stderr
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_a_pair_is_not_made_over_another(keys: Path) -> None:
    before = load_pair(keys / "actor.key_secret")
    with pytest.raises(FatalError, match="actor.key exists and is not overwritten"):
        make_pair(keys, "actor")
    assert load_pair(keys / "actor.key_secret") == before


def test_a_pair_for_one_process_is_added_and_preferred_by_it(keys: Path) -> None:
    done = _run(str(keys), "--role", "actor", "--name", "actor-7")
    assert done.returncode == 0, done.stderr
    assert read_clients(keys / CLIENTS_FILE)[-1].name == "actor-7"
    assert secret_file_of(keys, "actor", "actor-7").name == "actor-7.key_secret"
    assert secret_file_of(keys, "actor", "actor-8").name == "actor.key_secret"
    own = ClientSecurity.load(keys, Role.ACTOR, "actor-7").pair
    assert own == load_pair(keys / "actor-7.key_secret")
    assert own.secret.decode() not in repr(own)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--role", "actor", "--name", "broker"], "not a role's name"),
        (["--role", "actor", "--name", "../x"], "must be up to 64 letters"),
        (["--role", "actor", "--name", "a", "--name", "b"], "1 --role but 2 --name"),
        (["--role", "king"], "'king' is not one of"),
        (["--role", "actor"], "actor.key exists"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(keys: Path, arguments: list[str], complaint: str) -> None:
    done = _run(str(keys), *arguments)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_secret_that_others_can_touch_is_refused_with_its_mode_and_cure(
    keys: Path, mode: int
) -> None:
    file = keys / "actor.key_secret"
    file.chmod(mode)
    with pytest.raises(FatalError) as refused:
        load_pair(file)
    assert str(refused.value) == (
        f"{file} has mode {mode:04o}: others can read it (chmod 600 {file})"
    )
    (problem,) = key_problems(keys)
    assert str(problem) == str(refused.value)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_secret_of_the_owner_alone_is_taken(keys: Path, mode: int) -> None:
    (keys / "actor.key_secret").chmod(mode)
    load_pair(keys / "actor.key_secret")


@pytest.mark.parametrize("name", ["broker.key", CLIENTS_FILE])
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_public_file_that_others_can_change_is_refused(keys: Path, name: str, mode: int) -> None:
    (keys / name).chmod(mode)
    (problem,) = key_problems(keys)
    assert f"has mode {mode:04o}: others can change it (chmod 644" in str(problem)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_a_directory_that_others_can_enter_is_refused(keys: Path, mode: int) -> None:
    keys.chmod(mode)
    with pytest.raises(FatalError, match=f"has mode {mode:04o}.*chmod 700"):
        load_pair(keys / "actor.key_secret")
    with pytest.raises(FatalError, match="chmod 700"):
        make_keys(keys, [("actor", "actor-9")])


def test_a_link_in_place_of_a_file_or_directory_is_refused(keys: Path, tmp_path: Path) -> None:
    secret = keys / "actor.key_secret"
    secret.rename(keys / "elsewhere")
    secret.symlink_to(keys / "elsewhere")
    with pytest.raises(FatalError, match="symbolic link"):
        load_pair(secret)
    (tmp_path / "link").symlink_to(keys)
    with pytest.raises(FatalError, match="symbolic link"):
        load_pair(tmp_path / "link" / "verifier.key_secret")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(keys: Path) -> None:
    os.chown(keys / "actor.key_secret", 12345, -1)
    with pytest.raises(FatalError, match="belongs to user 12345, not to user 0"):
        load_pair(keys / "actor.key_secret")


def test_a_fifo_in_place_of_a_key_is_refused_without_waiting(keys: Path) -> None:
    (keys / "actor.key_secret").unlink()
    os.mkfifo(keys / "actor.key_secret", 0o600)
    with pytest.raises(FatalError, match="must be a file"):
        load_pair(keys / "actor.key_secret")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is no ZeroMQ certificate"),
        (b'curve\n  public-key = "short"\n', "is no ZeroMQ certificate"),
        (b"\xff\xfe\x00junk", "is no ZeroMQ certificate"),
        (b'curve\n  public-key = "' + b"a" * 40 + b'"\n', "holds no secret key"),
    ],
)
def test_a_file_that_is_no_pair_is_refused(keys: Path, content: bytes, complaint: str) -> None:
    (keys / "actor.key_secret").write_bytes(content)
    with pytest.raises(FatalError, match=complaint):
        load_pair(keys / "actor.key_secret")


def test_a_missing_key_names_the_command_that_makes_it(keys: Path) -> None:
    (keys / "verifier.key_secret").unlink()
    with pytest.raises(FatalError, match="verifier.key_secret: no such file .headrace keys"):
        ClientSecurity.load(keys, Role.VERIFIER, "verifier-0")


# --- the list of clients ------------------------------------------------------------------------


def test_the_list_follows_its_file_and_a_broken_file_changes_nothing(keys: Path) -> None:
    complaints: list[str] = []
    file = keys / CLIENTS_FILE
    watched = WatchedClients(file, complaints.append)
    first = watched.now
    actor = load_public(keys / "actor.key")
    assert first.by_key[actor].role is Role.ACTOR
    assert not watched.refresh()

    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if actor.decode() not in line))
    assert watched.refresh()
    assert actor not in watched.now.by_key
    assert len(watched.now.by_key) == len(first.by_key) - 1
    assert first.by_key[actor].user_id not in watched.now.by_user_id

    kept = watched.now
    for broken in ('clients = [{ role = "actor"', "clients = 3", 'clients = [{role = "king"}]'):
        file.write_text(broken)
        assert not watched.refresh()
    file.unlink()
    assert not watched.refresh()
    assert watched.now is kept
    assert len(complaints) == 4
    assert all(str(file) in complaint for complaint in complaints)


@pytest.mark.parametrize(
    "text",
    [
        'clients = [{role = "actor", key = "short"}]',
        f'clients = [{{role = "actor", key = "{"é" * 40}"}}]',
        f'clients = [{{role = "actor", key = "{"a" * 40}", rank = 1}}]',
        "clients = ["
        + ",".join(f'{{role = "{role}", key = "{"a" * 40}"}}' for role in ("actor", "learner"))
        + "]",
    ],
)
def test_a_list_with_a_bad_entry_is_refused_as_a_whole(keys: Path, text: str) -> None:
    (keys / CLIENTS_FILE).write_text(text)
    with pytest.raises(FatalError, match=CLIENTS_FILE):
        read_clients(keys / CLIENTS_FILE)


def test_user_ids_tell_roles_names_and_keys_apart() -> None:
    clients = [
        KnownClient(role=role, key=key * 40, name=name)
        for role in (Role.ACTOR, Role.STORE)
        for key in "ab"
        for name in ("", "x")
    ]
    assert len({client.user_id for client in clients}) == len(clients)
    assert not any(client.key in client.user_id for client in clients)
