"""Payload servers of a run with keys: CURVE only, and nothing for strangers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.errors import ForbiddenError
from common.keys_cli import ROLES, make_keys
from common.messages import FetchRollouts, GetStores, Rollouts, Stores
from common.security import ClientSecurity
from common.security_keys import KeyPair
from common.security_probe import server_mechanism
from common.transport import Channel
from common.types import Role, RolloutId
from tests.integration.store_runs import Roles, check_every_answer_once, roles, write_run

TCP = "tcp://127.0.0.1:0"
FIRST = RolloutId(group_id=0, index=0, attempt=1)


async def _fetch(endpoint: str, security: ClientSecurity | None, role: Role) -> Rollouts:
    """The first rollout of the run, from a payload server."""
    channel = await Channel.connect(
        role=role, name="reader", endpoint=lambda: endpoint, security=security, timeout_s=10.0
    )
    try:
        reply = (await channel.request(FetchRollouts(rollout_ids=(FIRST,)))).message
    finally:
        await channel.close()
    assert isinstance(reply, Rollouts)
    return reply


async def _address(config: Path, store: str, security: ClientSecurity | None) -> str:
    """Where the broker says that a payload server is."""
    loaded = load_config(config)
    endpoint = read_endpoint(loaded, run_paths(loaded))
    channel = await Channel.connect(
        role=Role.VERIFIER, name="reader", endpoint=endpoint, security=security
    )
    try:
        reply = (await channel.request(GetStores(names=(store,)))).message
    finally:
        await channel.close()
    assert isinstance(reply, Stores)
    return reply.stores[0].endpoint


def _holds_rollouts(run: Roles, store: str) -> Callable[[], bool]:
    return lambda: run.metric(store, "headrace_payload_bytes") > 0 and run.num_submitted() >= 8


@pytest.mark.parametrize(
    ("payloads", "server", "own_key"),
    [("store", "store-0", False), ("store", "store-0", True), ("direct", "actor-0", True)],
)
@pytest.mark.slow
def test_a_payload_server_of_a_run_with_keys_gives_a_stranger_nothing(
    tmp_path: Path, payloads: str, server: str, own_key: bool
) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, [(role, "") for role in ROLES])
    if own_key:
        make_keys(keys, [(server.partition("-")[0], server)])
    config = write_run(
        tmp_path, payloads=payloads, endpoint=TCP, broker={"endpoint": TCP}, keys="keys"
    )
    public = server if own_key else server.partition("-")[0]
    reader = ClientSecurity.load(keys, Role.VERIFIER, "reader", server=public)
    others = ("store-0",) if payloads == "store" else ()
    with roles(config, "broker", *others) as run:
        run.start("actor-0", "--pause-after", "16")
        run.wait_until(_holds_rollouts(run, server))
        to_broker = ClientSecurity.load(keys, Role.VERIFIER, "reader")
        endpoint = asyncio.run(_address(config, server, to_broker))
        assert server_mechanism(endpoint) == "CURVE"
        for stranger in (None, _unknown(reader)):
            with pytest.raises(ForbiddenError):
                asyncio.run(_fetch(endpoint, stranger, Role.VERIFIER))
        run.wait_until(lambda: run.metric(server, "headrace_connections_denied_total") > 0)
        assert asyncio.run(_fetch(endpoint, reader, Role.VERIFIER)).rollouts
        run.kill("actor-0")  # which held the rest of its leases
        for name in ("verifier-0", "collector", "actor-1"):
            run.start(name)
        run.wait_until(run.is_collected)
    check_every_answer_once(tmp_path / "out")


def _unknown(reader: ClientSecurity) -> ClientSecurity:
    """A pair that nobody has listed, with everything else right."""
    return replace(reader, pair=KeyPair(*zmq.curve_keypair()))


@pytest.mark.slow
def test_a_payload_server_of_a_run_without_keys_uses_none(tmp_path: Path) -> None:
    plain = {"endpoint": TCP, "allow_plaintext_tcp": True}
    config = write_run(tmp_path, payloads="store", endpoint=TCP, broker=plain)
    with roles(config, "broker", "store-0") as run:
        run.start("actor-0", "--pause-after", "16")
        run.wait_until(_holds_rollouts(run, "store-0"))
        endpoint = asyncio.run(_address(config, "store-0", None))
        assert server_mechanism(endpoint) == "NULL"
        assert asyncio.run(_fetch(endpoint, None, Role.VERIFIER)).rollouts
