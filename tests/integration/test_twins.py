"""Two processes of one name: a restart takes over at once, a live twin is refused loudly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.endpoints import read_endpoint
from common.errors import RefusedError
from common.messages import GetStatus
from common.transport import Channel
from common.types import Role
from tests.broker_process import REPOSITORY, BrokerProcess

_BEAT = """
import asyncio, json, sys
from common.messages import Heartbeat
from common.transport import Channel
from common.types import Role

async def main() -> None:
    channel = await Channel.connect(role=Role.ACTOR, name="actor-0", endpoint=lambda: sys.argv[1])
    print("registered", flush=True)
    while True:
        await channel.request(Heartbeat())
        await asyncio.sleep(0.1)

asyncio.run(main())
"""


class Holder:
    """Another process that is registered as actor-0 and sends heartbeats."""

    def __init__(self, broker: BrokerProcess) -> None:
        endpoint = read_endpoint(broker.config, broker.paths)()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BEAT, endpoint], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"registered\n"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path, dead_after_s=60.0)
    broker.start()
    asyncio.run(_wait_until_it_serves(broker))
    yield broker
    broker.stop()


async def _wait_until_it_serves(broker: BrokerProcess) -> None:
    await (await broker.connect(Role.SUPERVISOR, "supervisor")).close()


async def _join(broker: BrokerProcess) -> float:
    """Seconds until this process is registered as actor-0."""
    started_s = time.monotonic()
    channel = await Channel.connect(
        role=Role.ACTOR, name="actor-0", endpoint=read_endpoint(broker.config, broker.paths)
    )
    seconds = time.monotonic() - started_s
    await channel.request(GetStatus())
    await channel.close()
    return seconds


def test_a_live_twin_is_refused_and_told_who_has_its_name(broker: BrokerProcess) -> None:
    holder = Holder(broker)
    try:
        with pytest.raises(RefusedError) as refused:
            asyncio.run(_join(broker))
    finally:
        holder.end()
    host = os.uname().nodename
    assert refused.value.code == "name_taken"
    assert f"actor-0 on {host} (pid {os.getpid()})" in refused.value.reason
    assert f"a live process on {host} (pid {holder.process.pid})" in refused.value.reason
    assert broker.process is not None
    broker.process.send_signal(signal.SIGTERM)
    _, errors = broker.process.communicate(timeout=15)
    events = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    (first, *_) = [item for item in events if item["event"].startswith("refused a second process")]
    assert first["level"] == "error"
    broker.start()


def test_a_killed_process_is_replaced_at_once(tmp_path: Path) -> None:
    """Its connection tells, long before two heartbeats have been missed."""
    broker = BrokerProcess(tmp_path, dead_after_s=60.0)
    text = broker.run_file.read_text()
    broker.run_file.write_text(text.replace("heartbeat_s = 0.2", "heartbeat_s = 20.0"))
    broker.start()
    asyncio.run(_wait_until_it_serves(broker))
    holder = Holder(broker)
    holder.end()
    assert asyncio.run(_join(broker)) < 4.0
    broker.stop()


def test_a_stopped_process_is_replaced_after_two_heartbeats(broker: BrokerProcess) -> None:
    """Its connection is open and nobody answers, as when a machine lost its power."""
    holder = Holder(broker)
    try:
        holder.process.send_signal(signal.SIGSTOP)
        assert asyncio.run(_join(broker)) < 5.0
    finally:
        holder.end()
