"""The paths of benchmark B1 from producers to consumers, each with processes of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import FatalError
from deploy.bench.broker_peers import Peer, peers, processor_us, store
from deploy.bench.bulk_wire import ROLLOUT_BYTES
from deploy.bench.processes import BrokerUnderTest
from deploy.supervisor import free_port

NUM_PRODUCERS = 4
NUM_CONSUMERS = 2
NUM_ROLLOUTS = 1024
"""Of each producer, in one round."""
_SYNC_BYTES = 4 << 20
_BROKER_LINES = """
acks = "relaxed"
endpoint = "tcp://127.0.0.1:{port}"
allow_plaintext_tcp = true
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One path, once."""

    rate: float
    """Megabytes a second from the start of the producers to the last arrival."""
    middle_us: float = 0.0
    """Processor time a rollout of what stands between producers and consumers; 0: nothing does."""
    ends_us: float = 0.0
    """The same of producers and consumers."""


def through_proxy() -> Measured:
    """``zmq.proxy``."""
    return _push_through("proxy")


def through_bare_store(folder: Path) -> Measured:
    """Writing before forwarding, and nothing else."""
    folder.mkdir()
    return _push_through("bare-store", str(folder / "kept"))


def _push_through(kind: str, *arguments: str) -> Measured:
    front, back = _address(), _address()
    with peers() as start:
        middle = start(kind, front, back, *arguments)
        middle.answer()
        middle.start()
        consumers = [start("pull", back) for _ in range(NUM_CONSUMERS)]
        producers = [start("push", front) for _ in range(NUM_PRODUCERS)]
        return measure(producers, consumers, middle=[middle.pid])


def through_store(folder: Path, acks: str) -> Measured:
    """A store, with as much of a ledger as it asks for."""
    folder.mkdir()
    broker, ended = _address(), _address()
    with peers() as start:
        ledger = start("ledger", broker, ended)
        ledger.answer()
        ledger.start()
        with store(folder, broker, acks) as (endpoint, pid):
            middle = [pid, ledger.pid]
            _put_and_fetch(endpoint, ended, 0, middle)  # its files take their size
            return _put_and_fetch(endpoint, ended, NUM_PRODUCERS, middle)


def _put_and_fetch(endpoint: str, ended: str, first: int, middle: Sequence[int]) -> Measured:
    """``first`` is the number of the first producer; no two put the same rollouts."""
    notes = [_address() for _ in range(NUM_CONSUMERS)]
    arrived = [_address() for _ in range(NUM_PRODUCERS)]
    with peers() as start:
        producers = [
            start("put", endpoint, str(first + number), notes[number % NUM_CONSUMERS], address)
            for number, address in enumerate(arrived)
        ]
        served = [range(number, NUM_PRODUCERS, NUM_CONSUMERS) for number in range(NUM_CONSUMERS)]
        consumers = [
            start("fetch", endpoint, address, ended, *(arrived[item] for item in part))
            for address, part in zip(notes, served, strict=True)
        ]
        orders = [{"producers": [first + number for number in part]} for part in served]
        return measure(producers, consumers, orders, middle=middle)


def through_broker(folder: Path) -> Measured:
    """The broker itself, with its whole ledger."""
    folder.mkdir()
    lines = _BROKER_LINES.format(port=free_port())
    with (
        BrokerUnderTest(folder, max_groups=1024, group_size=1, broker_lines=lines) as broker,
        peers() as start,
    ):
        where = broker.endpoint
        consumers = [start("lease", where, f"consumer-{n}") for n in range(NUM_CONSUMERS)]
        producers = [start("submit", where, f"producer-{n}") for n in range(NUM_PRODUCERS)]
        return measure(producers, consumers)


def push_pull() -> Measured:
    """PUSH and PULL with nothing between."""
    addresses = [_address() for _ in range(NUM_PRODUCERS)]
    with peers() as start:
        consumers = [start("pull", *addresses) for _ in range(NUM_CONSUMERS)]
        producers = [start("push", address, "bind") for address in addresses]
        return measure(producers, consumers)


def direct() -> Measured:
    """Rollouts fetched straight from their producers."""
    addresses = [_address() for _ in range(NUM_PRODUCERS)]
    with peers() as start:
        producers = [start("keep", address, str(n)) for n, address in enumerate(addresses)]
        servers = [f"{number},{address}" for number, address in enumerate(addresses)]
        consumers = [start("fetch-directly", *servers) for _ in range(NUM_CONSUMERS)]
        share = NUM_ROLLOUTS // NUM_CONSUMERS
        orders = [{"ranges": [n * share, (n + 1) * share]} for n in range(NUM_CONSUMERS)]
        return measure(producers, consumers, orders, are_servers=True)


def disk_fdatasync(file: Path) -> Measured:
    """Writes that are each synced."""
    data, number = os.urandom(_SYNC_BYTES), 64
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, number * len(data))
        start_s = time.monotonic()
        for place in range(number):
            os.pwrite(descriptor, data, place * len(data))
            os.fdatasync(descriptor)
        return Measured(number * len(data) / (time.monotonic() - start_s) / 1e6)
    finally:
        os.close(descriptor)
        file.unlink()


# --- measuring ------------------------------------------------------------------------------------


def measure(
    producers: Sequence[Peer],
    consumers: Sequence[Peer],
    consumer_orders: Sequence[dict[str, Any]] | None = None,
    *,
    middle: Sequence[int] = (),
    are_servers: bool = False,
) -> Measured:
    """Have every producer send its rollouts.

    ``middle`` are the processes between the two. Producers that ``are_servers`` answer nothing.
    """
    for peer in (*producers, *consumers):
        peer.answer()
    before_us = sum(map(processor_us, middle))
    start_s = time.monotonic()
    for peer, orders in zip(consumers, consumer_orders or [{}] * len(consumers), strict=True):
        peer.start(**orders)
    for peer in producers:
        peer.start(number=NUM_ROLLOUTS)
    answers = [peer.answer() for peer in consumers]
    number = _number_arrived(answers)
    seconds = max(float(answer["end_s"]) for answer in answers) - start_s
    middle_us = sum(map(processor_us, middle)) - before_us
    others = [] if are_servers else [peer.answer() for peer in producers]
    ends_us = sum(float(answer["processor_us"]) for answer in (*answers, *others))
    return Measured(number * ROLLOUT_BYTES / seconds / 1e6, middle_us / number, ends_us / number)


def _number_arrived(answers: Sequence[dict[str, Any]]) -> int:
    """Of all rollouts; raises :class:`FatalError` where that is not as many as were sent."""
    number = sum(int(answer["number"]) for answer in answers)
    if number != NUM_PRODUCERS * NUM_ROLLOUTS:
        raise FatalError(f"{NUM_PRODUCERS * NUM_ROLLOUTS} rollouts were sent, {number} arrived")
    return number


def _address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"
