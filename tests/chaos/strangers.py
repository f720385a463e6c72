"""Connections that have no business with a broker: other protocols, junk, keys that nobody knows.

``python -m tests.chaos.strangers --connections 30000`` runs them against a real broker and prints
what it withstood as JSON; the test beside it does the same with fewer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq

from common.messages import GetStatus
from common.security import ClientSecurity
from common.transport import Channel
from common.types import Role
from tests.broker_process import REPOSITORY
from tests.integration.secure_broker import SecureBroker

SEED = 20
_CONCURRENT = 64
_HTTP = b"GET /metrics HTTP/1.1\r\nHost: broker\r\nUser-Agent: scan/1.0\r\n\r\n"
_TLS_CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2
_TELNET = b"\xff\xfb\x18\xff\xfb\x1f\xff\xfd\x03help\r\n" * 3
_ZMTP_1 = b"\x01\x00" + b"\x05\x00junk" * 20
_ZMTP_2 = b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00" + b"\x00\x04junk" * 20
_ZMTP_NULL = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48) + b"\x04\x06\x05READY"
_ZMTP_CURVE = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47)


def payload(number: int, randomness: random.Random) -> bytes:
    """What connection ``number`` says: each protocol in turn, every other time random bytes."""
    spoken = (_HTTP, _TLS_CLIENT_HELLO, _TELNET, _ZMTP_1, _ZMTP_2, _ZMTP_NULL)
    if number % 2:
        return randomness.randbytes(randomness.randrange(1, 600))
    kind = number // 2 % (len(spoken) + 1)
    if kind == len(spoken):  # the right greeting, then a HELLO of noise
        return _ZMTP_CURVE + b"\x04\xc8\x05HELLO" + randomness.randbytes(194)
    return spoken[kind]


async def speak(address: tuple[str, int], text: bytes) -> None:
    """Connect, say it, wait a moment for the other side to hang up, hang up."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(*address)
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(text)
            await writer.drain()
            async with asyncio.timeout(0.02):
                while await reader.read(4096):
                    pass
        writer.transport.abort()


async def send_junk(address: tuple[str, int], number: int) -> None:
    """Open ``number`` connections, some at a time."""
    randomness = random.Random(SEED)
    texts = iter([payload(index, randomness) for index in range(number)])

    async def some() -> None:
        for text in texts:
            await speak(address, text)

    await asyncio.gather(*(some() for _ in range(_CONCURRENT)))


def send_unknown_keys(endpoint: str, server_public: bytes, number: int) -> int:
    """Complete ``number`` CURVE handshakes with keys that nobody knows; returns the refusals."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    refused = 0
    try:
        for start in range(0, number, _CONCURRENT):
            sockets = []
            for _ in range(min(_CONCURRENT, number - start)):
                socket = context.socket(zmq.DEALER)
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.CURVE_SERVERKEY, server_public)
                public, secret = zmq.curve_keypair()
                socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
                socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
                monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
                socket.connect(endpoint)
                socket.send(b"never read")
                sockets.append((socket, monitor))
            for socket, monitor in sockets:
                refused += bool(monitor.poll(10_000))
                socket.disable_monitor()
                monitor.close(linger=0)
                socket.close(linger=0)
    finally:
        context.destroy(linger=0)
    return refused


async def attack(broker: SecureBroker, kind: str, number: int) -> None:
    """Attack from another process, so that the honest client's event loop is its own."""
    public = ClientSecurity.load(broker.keys, Role.ACTOR, "x").server_public
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.strangers", "--attack", kind),
        *("--number", str(number), "--endpoint", broker.paths.endpoint_file.read_text()),
        f"--server-key={public.decode()}",
        cwd=REPOSITORY,
    )
    try:
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


@dataclass(frozen=True)
class Withstood:
    """What one attack did to the broker and to an honest client beside it."""

    num_connections: int
    seconds: float
    messages_let_in: float
    num_denied: float
    rss_before_bytes: int
    rss_growth_bytes: int
    quiet_p99_s: float
    attacked_p99_s: float
    num_honest_replies: int


async def withstand(broker: SecureBroker, kind: str, number: int) -> Withstood:
    """Have the broker attacked while an honest client goes on asking."""
    channel = await broker.connect(Role.SUPERVISOR, "supervisor")
    try:
        quiet: list[float] = []
        for _ in range(300):
            await _ask(channel, quiet)
        before = await _counts(broker)
        rss = broker.rss_bytes()
        started_s, attacked = time.monotonic(), list[float]()
        attacking = asyncio.create_task(attack(broker, kind, number))
        while not attacking.done():
            await _ask(channel, attacked)
        await attacking
        seconds = time.monotonic() - started_s
        requests, denied = await _counts(broker)
    finally:
        await channel.close()
    return Withstood(
        num_connections=number,
        seconds=round(seconds, 2),
        messages_let_in=requests - before[0] - len(attacked),
        num_denied=denied - before[1],
        rss_before_bytes=rss,
        rss_growth_bytes=broker.rss_bytes() - rss,
        quiet_p99_s=_p99(quiet),
        attacked_p99_s=_p99(attacked),
        num_honest_replies=len(attacked),
    )


async def _ask(channel: Channel, seconds: list[float]) -> None:
    started_s = time.monotonic()
    await channel.request(GetStatus(), timeout_s=30.0)
    seconds.append(time.monotonic() - started_s)
    await asyncio.sleep(0.002)


async def _counts(broker: SecureBroker) -> tuple[float, float]:
    names = ("headrace_requests_total", "headrace_connections_denied_total")
    counts = (-1.0, -1.0)
    while True:  # what is counted after a reply, or by the doorkeeper, comes a moment later
        await asyncio.sleep(0.3)
        requests, denied = [await asyncio.to_thread(broker.metric, name) for name in names]
        if (requests, denied) == counts:
            return counts
        counts = (requests, denied)


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[-1]


def trial(broker: SecureBroker, kind: str, number: int) -> Withstood:
    """Start the broker, attack it, stop it."""
    broker.start()

    async def run() -> Withstood:
        await (await broker.connect(Role.SUPERVISOR, "supervisor")).close()
        return await withstand(broker, kind, number)

    try:
        return asyncio.run(run())
    finally:
        assert broker.stop() == 0


def main() -> None:
    """One attack on a given endpoint, or all of them against a broker of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attack", choices=("junk", "unknown-keys"))
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--endpoint")
    parser.add_argument("--server-key")
    parser.add_argument("--connections", type=int, default=30_000)
    parser.add_argument("--unknown-keys", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.attack == "junk":
        host, _, port = arguments.endpoint.removeprefix("tcp://").rpartition(":")
        asyncio.run(send_junk((host, int(port)), arguments.number))
    elif arguments.attack == "unknown-keys":
        refused = send_unknown_keys(
            arguments.endpoint, arguments.server_key.encode(), arguments.number
        )
        sys.exit(refused != arguments.number)
    else:
        trials = {"junk": arguments.connections, "unknown-keys": arguments.unknown_keys}
        for kind, number in trials.items():
            with tempfile.TemporaryDirectory() as folder:
                outcome = trial(SecureBroker(Path(folder), dead_after_s=120.0), kind, number)
                print(json.dumps({"attack": kind, **asdict(outcome)}))


if __name__ == "__main__":
    main()
