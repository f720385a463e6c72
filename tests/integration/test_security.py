"""Who gets in and who does not: real brokers, real sockets, every kind of wrong key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from common.errors import FatalError, ForbiddenError
from common.keys_cli import make_keys
from common.messages import GetStatus, Heartbeat, LeasePrompts, PromptLeases, Status
from common.security import ClientSecurity
from common.security_keys import KeyPair
from common.types import Role
from tests.broker_process import BrokerProcess, LearnerClient
from tests.builders import version
from tests.integration.secure_broker import SecureBroker

_CLEAR_WITHIN_S = 5.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SecureBroker]:
    broker = SecureBroker(tmp_path)
    broker.start()
    asyncio.run(_status(broker))
    yield broker
    broker.stop()


async def _status(broker: SecureBroker) -> Status:
    channel = await broker.connect(Role.SUPERVISOR, "supervisor")
    try:
        reply = (await channel.request(GetStatus())).message
    finally:
        await channel.close()
    assert isinstance(reply, Status)
    return reply


def _refusal(broker: SecureBroker, security: ClientSecurity | None) -> str:
    """How an actor with these keys is turned away."""
    started_s = time.monotonic()
    with pytest.raises(ForbiddenError) as refused:
        asyncio.run(broker.connect_with(Role.ACTOR, "actor-0", security))
    assert time.monotonic() - started_s < _CLEAR_WITHIN_S
    return str(refused.value)


def _new_pair() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "ipc"])
def test_the_right_keys_let_every_role_in(tmp_path: Path, endpoint: str) -> None:
    broker = SecureBroker(tmp_path, endpoint=endpoint)
    broker.start()

    async def run() -> None:
        for role in Role:
            channel = await broker.connect(role, role.value)
            await channel.request(Heartbeat())
            await channel.close()

    asyncio.run(run())
    broker.stop()


def test_wrong_keys_get_no_message_through_and_one_line_with_cause_and_cure(
    broker: SecureBroker,
) -> None:
    right = broker.security(Role.ACTOR, "actor-0")
    before = broker.metric("headrace_requests_total")
    messages = {
        "unknown key": _refusal(broker, replace(right, pair=_new_pair())),
        "wrong server key": _refusal(broker, replace(right, server_public=_new_pair().public)),
        "no key": _refusal(broker, None),
    }
    assert f"does not accept the key in {right.secret_file}" in messages["unknown key"]
    assert "clients.toml" in messages["unknown key"]
    assert f"{right.server_file} is not its public key" in messages["wrong server key"]
    assert "security.keys is not set here" in messages["no key"]
    assert all("\n" not in message and "(" in message for message in messages.values())
    assert broker.metric("headrace_requests_total") == before
    assert broker.metric("headrace_connections_denied_total") >= 3
    asyncio.run(_status(broker))


def test_keys_are_never_used_towards_a_broker_without_any(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path)
    broker.start()
    make_keys(tmp_path / "keys", [("broker", ""), ("actor", "")])
    secured = SecureBroker.__new__(SecureBroker)
    secured.folder = tmp_path
    message = _refusal(secured, ClientSecurity.load(tmp_path / "keys", Role.ACTOR, "actor-0"))
    assert "uses no keys, but this process does" in message
    assert "set security.keys where the server runs" in message
    broker.stop()


def test_a_key_of_another_role_is_refused_by_name(broker: SecureBroker) -> None:
    verifier = broker.security(Role.VERIFIER, "verifier-0")
    message = _refusal(broker, verifier)
    assert "actor-0 registers as actor with a key of a verifier (use actor.key_secret)" in message


def test_a_key_for_one_process_is_refused_to_others(broker: SecureBroker) -> None:
    make_keys(broker.keys, [("actor", "actor-7")])
    seven = broker.security(Role.ACTOR, "actor-7")

    async def run() -> None:  # the running broker has to notice the new key first
        channel = await broker.connect_with(Role.ACTOR, "actor-7", seven)
        await channel.close()

    asyncio.run(run())
    assert "only for actor-7" in _refusal(broker, seven)


def test_a_revoked_client_is_cut_off_within_five_seconds_and_its_work_goes_to_others(
    tmp_path: Path,
) -> None:
    broker = SecureBroker(tmp_path, dead_after_s=60.0)
    broker.start()
    make_keys(broker.keys, [("actor", "actor-7")])

    async def lease(name: str) -> tuple[float, str]:
        """Seconds from the revocation to the end of the client, and how it ended."""
        channel = await broker.connect(Role.ACTOR, name)
        reply = await channel.request(LeasePrompts(serving=version(0), max_groups=1, wait_s=5.0))
        assert isinstance(reply.message, PromptLeases)
        lease = reply.message.leases[0].lease
        assert (await _status(broker)).groups.leased == 1
        waiting = asyncio.create_task(  # a request that the broker holds
            channel.request(LeasePrompts(serving=version(0), max_groups=1, wait_s=60.0))
        )
        broker.revoke(name)
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(20):
                while True:
                    await channel.request(Heartbeat(leases=(lease,)))
                    await asyncio.sleep(0.05)
        except ForbiddenError as error:
            return time.monotonic() - started_s, str(error)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await channel.close()

    async def run() -> tuple[float, str]:
        learner = await LearnerClient.connect(broker)
        outcome = await lease("actor-7")
        async with asyncio.timeout(_CLEAR_WITHIN_S):
            while (await _status(broker)).groups.leased:
                await asyncio.sleep(0.05)
        await learner.channel.close()
        return outcome

    seconds, message = asyncio.run(run())
    assert seconds < _CLEAR_WITHIN_S
    assert "revoked" in message
    seven = broker.security(Role.ACTOR, "actor-7")
    assert "does not accept the key" in _refusal(broker, seven)
    broker.stop()


def test_a_broker_with_a_key_that_others_can_read_does_not_start(tmp_path: Path) -> None:
    broker = SecureBroker(tmp_path)
    (broker.keys / "broker.key_secret").chmod(0o644)
    broker.start()
    code, errors = broker.wait()
    assert code == 1
    assert errors.count("headrace: ") == 1
    assert "broker.key_secret has mode 0644: others can read it (chmod 600" in errors
    assert "Traceback" not in errors


def test_a_client_with_a_key_that_others_can_read_does_not_start(broker: SecureBroker) -> None:
    (broker.keys / "actor.key_secret").chmod(0o640)
    with pytest.raises(FatalError, match="has mode 0640"):
        broker.security(Role.ACTOR, "actor-0")


def test_plaintext_tcp_is_warned_about_at_start(tmp_path: Path) -> None:
    broker = SecureBroker(tmp_path, has_keys=False)
    broker.start()
    asyncio.run(_status(broker))
    assert broker.process is not None
    broker.process.terminate()
    _, errors = broker.process.communicate(timeout=15)
    (warning,) = [line for line in errors.splitlines() if "plaintext TCP" in line]
    assert '"level":"warning"' in warning.replace(" ", "")
    assert "set security.keys" in warning
