"""Junk on the port of a real broker: it lives on, serves who is honest, and stays small."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from common.keys_cli import make_keys, wanted_pairs
from common.messages import GetStatus, Register, Status
from common.security import ClientSecurity
from common.transport import Channel
from common.types import Role
from tests.broker_process import BrokerProcess
from tests.contract.samples import SAMPLES
from tests.fuzz.mutations import Mutator, whole_message
from tests.fuzz.raw_sockets import Junk, throw

CONNECTIONS = int(os.environ.get("HEADRACE_FUZZ_CONNECTIONS", "1500"))
MAX_GROWTH_BYTES = 5 << 20


def _tcp_broker(folder: Path, keys: Path | None, metrics_port: int) -> BrokerProcess:
    """A broker on a free TCP port, with keys or, asked for by name, without."""
    broker = BrokerProcess(folder)
    text = broker.run_file.read_text()
    lines = ['endpoint = "tcp://127.0.0.1:0"', f"metrics_port = {metrics_port}"]
    if not keys:
        lines.append("allow_plaintext_tcp = true")
    text = text.replace("[broker]\n", "\n".join(["[broker]", *lines, ""]))
    if keys:
        text += f'[security]\nkeys = "{keys}"\n'
    broker.run_file.write_text(text)
    return broker


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _num_malformed(metrics_port: int) -> float:
    """Messages that reached the broker's own code and were none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5.0) as page:
        text = page.read().decode()
    found = re.search(r'headrace_requests_total\{kind="malformed"\} (\S+)', text)
    return float(found.group(1)) if found else 0.0


def _address(broker: BrokerProcess) -> tuple[str, int]:
    deadline_s = time.monotonic() + 30.0
    while not broker.paths.endpoint_file.exists():
        assert time.monotonic() < deadline_s, "the broker never listened"
        time.sleep(0.05)
    host, port = broker.paths.endpoint_file.read_text().removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


def _client_security(keys: Path | None) -> ClientSecurity | None:
    return None if keys is None else ClientSecurity.load(keys, Role.SUPERVISOR, "honest")


async def _status(broker: BrokerProcess, keys: Path | None) -> Status:
    """What an honest client is told, and that it is told in time."""
    channel = await Channel.connect(
        role=Role.SUPERVISOR,
        name="honest",
        endpoint=lambda: broker.paths.endpoint_file.read_text(),
        timeout_s=10.0,
        security=_client_security(keys),
    )
    try:
        reply = await channel.request(GetStatus(), timeout_s=5.0)
    finally:
        await channel.close()
    assert isinstance(reply.message, Status)
    return reply.message


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mechanism", ["null", "curve"])
def test_junk_connections_leave_the_broker_alive_and_small(tmp_path: Path, mechanism: str) -> None:
    keys = None
    if mechanism == "curve":
        keys = tmp_path / "keys"
        make_keys(keys, wanted_pairs((), ()))
    metrics_port = _free_port()
    broker = _tcp_broker(tmp_path, keys, metrics_port)
    broker.start()
    try:
        address = _address(broker)
        assert broker.process is not None
        process = psutil.Process(broker.process.pid)
        strangers = [message for message in SAMPLES if not isinstance(message, Register)]
        mutator = Mutator([whole_message(message) for message in strangers], seed=5)
        junk = iter(Junk(5, mutator))
        warm_bytes = 0
        for number, stream in enumerate(itertools.islice(junk, CONNECTIONS)):
            throw(address, stream, waits=number % 20 == 0)
            if number == CONNECTIONS // 2:
                asyncio.run(_status(broker, keys))
                warm_bytes = process.memory_info().rss
        status = asyncio.run(_status(broker, keys))
        growth_bytes = process.memory_info().rss - warm_bytes
        num_malformed = _num_malformed(metrics_port)
        print(
            f"{mechanism}: {CONNECTIONS} connections, {num_malformed:.0f} malformed messages, "
            f"resident memory {growth_bytes:+d} bytes"
        )
        assert (num_malformed == 0) == (mechanism == "curve")
        assert growth_bytes < MAX_GROWTH_BYTES
        assert status.groups.admitted == 0, "junk reached the ledger"
        assert broker.process.poll() is None
    finally:
        broker.stop()
