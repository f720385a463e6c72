"""B1: bytes a second of stored and forwarded rollouts, against what ``zmq.proxy`` forwards.

Four producers and two consumers on this machine, rollouts of 256 KiB, over TCP on the loopback
interface: the transport of stores between machines. ``zmq.proxy`` (PULL and PUSH) forwards the same
frames in C and keeps nothing. Ours keeps every rollout in its log before it acknowledges it, and
answers a request for it from there. Measured beside it, in the same rounds: a store that syncs
before it acknowledges, as a share of what the disk syncs by itself; the broker's own path; and
rollouts fetched straight from their producers, against PUSH and PULL without anything between.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common.errors import FatalError
from common.messages import GetStores, Stores
from common.sync_channel import SyncChannel
from common.types import Role
from deploy.bench.processes import BrokerUnderTest
from deploy.bench.result import BenchResult, hardware_name, versions
from deploy.supervisor import free_port

ROLLOUT_BYTES = 256 << 10
NUM_PRODUCERS = 4
NUM_CONSUMERS = 2
NUM_ROLLOUTS = 1024
"""Of each producer, in one round."""
REPEATS = 5
MIN_STORED = 0.90
MIN_DIRECT = 0.95
_SYNC_BYTES = 4 << 20
_TOUCHED_BYTES = 3 << 30
_PATIENCE_S = 30.0
_BROKER_LINES = """
acks = "relaxed"
endpoint = "tcp://127.0.0.1:{port}"
allow_plaintext_tcp = true
"""
_STORE_RUN = """
[run]
directory = "run"
[model]
path = "model"
[prompts]
generator = "chain-addition"
[broker]
endpoint = "{broker}"
allow_plaintext_tcp = true
[stores]
payloads = "store"
acks = "{acks}"
endpoint = "tcp://127.0.0.1:0"
sweep_s = 0.1
"""


class Peer:
    """One process of :mod:`deploy.bench.bulk`."""

    def __init__(self, kind: str, *arguments: str) -> None:
        self._kind = kind
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.bench.bulk", kind, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, **orders: object) -> None:
        """Give the orders that it waits for."""
        if self._process.stdin is None:
            raise FatalError("a peer has a standard input")
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Its next line: that it is ready, or what it measured."""
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise FatalError(f"the {self._kind} process of the benchmark ended early")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def bench_broker() -> BenchResult:
    """Measure; the gates are on the lower quartile of the ratios."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        touch_memory(Path(name))
        for turn in range(REPEATS + 1):
            folder = Path(name) / str(turn)
            for kind, rate in _round(folder):
                if turn:  # the first round warms up
                    rates.setdefault(kind, []).append(rate)
    stored = _ratios(rates["store_relaxed"], rates["proxy"])
    direct = _ratios(rates["direct"], rates["push_pull"])
    shares = {
        "stored_over_proxy": _spread(stored),
        "direct_over_push_pull": _spread(direct),
        "broker_over_proxy": _spread(_ratios(rates["broker_relaxed"], rates["proxy"])),
        "durable_over_disk": _spread(_ratios(rates["store_durable"], rates["disk_fdatasync"])),
    }
    ratio, direct_ratio = _lower_quartile(stored), _lower_quartile(direct)
    return BenchResult(
        name="broker",
        ratio=ratio,
        goal=f">= {MIN_STORED:g} of zmq.proxy stored, >= {MIN_DIRECT:g} of PUSH/PULL directly",
        passed=ratio >= MIN_STORED and direct_ratio >= MIN_DIRECT,
        baseline="zmq.proxy between the same producers and consumers",
        hardware=hardware_name(),
        details={
            **shares,
            "megabytes_per_second": {kind: _spread(values) for kind, values in rates.items()},
            "rollout_bytes": ROLLOUT_BYTES,
            "rollouts_per_round": NUM_PRODUCERS * NUM_ROLLOUTS,
            "versions": versions("pyzmq", "msgspec", "xxhash"),
        },
    )


def touch_memory(folder: Path) -> None:
    """Use, and give back, as many pages as a round does.

    A virtual machine gets its memory page by page when it is first used, which takes twenty times
    longer than to use a page again, and a machine that has been up for a while has used all of it.
    """
    file, data = folder / "touched", bytes(16 << 20)
    with open(file, "wb") as target:
        for _ in range(_TOUCHED_BYTES // len(data)):
            target.write(data)
    file.unlink()


def _round(folder: Path) -> Iterator[tuple[str, float]]:
    """Every path once, one after the other, each with processes of its own."""
    folder.mkdir()
    yield "proxy", _through_proxy()
    for acks in ("relaxed", "durable"):
        yield f"store_{acks}", _through_store(folder / acks, acks)
    yield "broker_relaxed", _through_broker(folder / "broker")
    yield "disk_fdatasync", _disk_bandwidth(folder / "disk")
    yield "push_pull", _push_pull()
    yield "direct", _direct()


# --- the paths ------------------------------------------------------------------------------------


def _through_proxy() -> float:
    front, back = _address(), _address()
    with _peers() as start:
        middle = start("proxy", front, back)
        middle.answer()
        middle.start()
        consumers = [start("pull", back) for _ in range(NUM_CONSUMERS)]
        producers = [start("push", front) for _ in range(NUM_PRODUCERS)]
        return _measure(producers, consumers, {"number": NUM_ROLLOUTS})


def _through_store(folder: Path, acks: str) -> float:
    folder.mkdir()
    broker, ended = _address(), _address()
    with _peers() as start:
        ledger = start("ledger", broker, ended)
        ledger.answer()
        ledger.start()
        with _store(folder, broker, acks) as store:
            _put_and_fetch(store, ended, 0)  # its files take their size
            return _put_and_fetch(store, ended, NUM_PRODUCERS)


def _put_and_fetch(store: str, ended: str, first: int) -> float:
    """``first`` is the number of the first producer; no two put the same rollouts."""
    notes = [_address() for _ in range(NUM_CONSUMERS)]
    arrived = [_address() for _ in range(NUM_PRODUCERS)]
    with _peers() as start:
        producers = [
            start("put", store, str(first + number), notes[number % NUM_CONSUMERS], arrived[number])
            for number in range(NUM_PRODUCERS)
        ]
        served = [range(number, NUM_PRODUCERS, NUM_CONSUMERS) for number in range(NUM_CONSUMERS)]
        consumers = [
            start("fetch", store, notes[number], ended, *(arrived[item] for item in served[number]))
            for number in range(NUM_CONSUMERS)
        ]
        orders = [{"producers": [first + number for number in part]} for part in served]
        return _measure(producers, consumers, {"number": NUM_ROLLOUTS}, orders)


def _through_broker(folder: Path) -> float:
    folder.mkdir()
    lines = _BROKER_LINES.format(port=free_port())
    with (
        BrokerUnderTest(folder, max_groups=1024, group_size=1, broker_lines=lines) as broker,
        _peers() as start,
    ):
        where = broker.endpoint
        consumers = [start("lease", where, f"consumer-{n}") for n in range(NUM_CONSUMERS)]
        producers = [start("submit", where, f"producer-{n}") for n in range(NUM_PRODUCERS)]
        return _measure(producers, consumers, {"number": NUM_ROLLOUTS})


def _push_pull() -> float:
    addresses = [_address() for _ in range(NUM_PRODUCERS)]
    with _peers() as start:
        consumers = [start("pull", *addresses) for _ in range(NUM_CONSUMERS)]
        producers = [start("push", address, "bind") for address in addresses]
        return _measure(producers, consumers, {"number": NUM_ROLLOUTS})


def _direct() -> float:
    addresses = [_address() for _ in range(NUM_PRODUCERS)]
    with _peers() as start:
        producers = [start("keep", address, str(n)) for n, address in enumerate(addresses)]
        servers = [f"{number},{address}" for number, address in enumerate(addresses)]
        consumers = [start("fetch-directly", *servers) for _ in range(NUM_CONSUMERS)]
        share = NUM_ROLLOUTS // NUM_CONSUMERS
        orders = [{"ranges": [n * share, (n + 1) * share]} for n in range(NUM_CONSUMERS)]
        return _measure(producers, consumers, {"number": NUM_ROLLOUTS}, orders)


def _measure(
    producers: Sequence[Peer],
    consumers: Sequence[Peer],
    producer_orders: dict[str, object],
    consumer_orders: Sequence[dict[str, Any]] | None = None,
) -> float:
    """Megabytes a second from the start of the producers to the last arrival."""
    for peer in (*producers, *consumers):
        peer.answer()
    start_s = time.monotonic()
    for peer, orders in zip(consumers, consumer_orders or [{}] * len(consumers), strict=True):
        peer.start(**orders)
    for peer in producers:
        peer.start(**producer_orders)
    answers = [peer.answer() for peer in consumers]
    number = sum(answer["number"] for answer in answers)
    if number != NUM_PRODUCERS * NUM_ROLLOUTS:
        raise FatalError(f"{NUM_PRODUCERS * NUM_ROLLOUTS} rollouts were sent, {number} arrived")
    seconds = max(float(answer["end_s"]) for answer in answers) - start_s
    return float(number * ROLLOUT_BYTES / seconds / 1e6)


def _disk_bandwidth(file: Path) -> float:
    """Megabytes a second of writes that are each synced."""
    data, number = os.urandom(_SYNC_BYTES), 64
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, number * len(data))
        start_s = time.monotonic()
        for place in range(number):
            os.pwrite(descriptor, data, place * len(data))
            os.fdatasync(descriptor)
        return number * len(data) / (time.monotonic() - start_s) / 1e6
    finally:
        os.close(descriptor)
        file.unlink()


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def _peers() -> Iterator[Any]:
    """A function that starts peers, which end with the block."""
    with ExitStack() as stack:

        def start(kind: str, *arguments: str) -> Peer:
            peer = Peer(kind, *arguments)
            stack.callback(peer.close)
            return peer

        yield start


@contextmanager
def _store(folder: Path, broker: str, acks: str) -> Iterator[str]:
    """A real store process; its address."""
    run_file = folder / "run.toml"
    run_file.write_text(_STORE_RUN.format(broker=broker, acks=acks), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cli", "store", str(run_file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _address_of_store(broker)
    finally:
        process.kill()
        process.wait()


def _address_of_store(broker: str) -> str:
    channel = SyncChannel.connect(role=Role.SUPERVISOR, name="bench", endpoint=lambda: broker)
    try:
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            reply = channel.request(GetStores()).message
            if isinstance(reply, Stores) and reply.stores:
                return reply.stores[0].endpoint
            time.sleep(0.02)
    finally:
        channel.close()
    raise FatalError("the store of the benchmark did not start")


def _address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


# --- figures --------------------------------------------------------------------------------------


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def _lower_quartile(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "lower_quartile": _lower_quartile(values),
        "median": statistics.median(values),
        "max": max(values),
    }
