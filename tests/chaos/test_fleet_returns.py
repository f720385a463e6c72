"""A thousand clients and one broker: they join at once, and come back after it was away."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.endpoints import read_endpoint
from common.messages import GetStatus, Status
from common.types import Role
from tests.broker_process import BrokerProcess
from tests.fleet_of_clients import FleetOfClients

NUM_CLIENTS = 1000
JOIN_WITHIN_S = 5.0
RETURN_WITHIN_S = 10.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(
        tmp_path, dead_after_s=15.0, heartbeat_s=2.0, log=tmp_path / "broker.log"
    )
    broker.start()
    deadline_s = time.monotonic() + 20.0
    while not broker.paths.endpoint_file.exists():
        assert time.monotonic() < deadline_s, "the broker did not start"
        time.sleep(0.01)
    yield broker
    assert broker.process is not None
    if broker.process.poll() is None:
        broker.kill()


@pytest.fixture
def fleet(broker: BrokerProcess) -> Iterator[FleetOfClients]:
    fleet = FleetOfClients(read_endpoint(broker.config, broker.paths), NUM_CLIENTS)
    yield fleet
    fleet.close()


@pytest.mark.slow
def test_a_thousand_clients_join_at_once_and_return_after_a_restart(
    broker: BrokerProcess, fleet: FleetOfClients
) -> None:
    assert fleet.run_until_registered(20.0) < JOIN_WITHIN_S
    broker.kill()
    fleet.forget_registrations()
    fleet.run_for(1.0)
    broker.start()
    assert fleet.run_until_registered(30.0) < RETURN_WITHIN_S


@pytest.mark.slow
def test_a_thousand_clients_return_after_the_broker_was_frozen(
    broker: BrokerProcess, fleet: FleetOfClients
) -> None:
    fleet.run_until_registered(20.0)
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    fleet.run_for(7.0)
    assert all(client.num_sockets >= 2 for client in fleet.clients), "each has noticed"
    fleet.forget_registrations()
    broker.process.send_signal(signal.SIGCONT)
    assert fleet.run_until_registered(30.0) < RETURN_WITHIN_S


@pytest.mark.slow
def test_a_channel_leaves_a_frozen_broker_within_three_heartbeats_and_returns(
    broker: BrokerProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> tuple[float, Status]:
        channel = await broker.connect(Role.ACTOR, "actor-0")
        interval_s = channel.registered.heartbeat_s
        assert broker.process is not None
        broker.process.send_signal(signal.SIGSTOP)
        frozen_at_s = time.monotonic()
        asking = asyncio.create_task(channel.request(GetStatus(), timeout_s=60.0))
        while "the broker is silent" not in "".join(capfd.readouterr()):
            assert time.monotonic() - frozen_at_s < 4.0 * interval_s
            await asyncio.sleep(0.02)
        noticed_s = time.monotonic() - frozen_at_s
        broker.process.send_signal(signal.SIGCONT)
        reply = (await asking).message
        assert isinstance(reply, Status)
        await channel.close()
        return noticed_s / interval_s, reply

    intervals, status = asyncio.run(scenario())
    assert intervals < 3.0
    assert status.run_id == "run"
