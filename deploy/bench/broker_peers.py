"""The processes of benchmark B1 as its driver sees them: started, ordered about, timed, ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from common.errors import FatalError
from common.messages import GetStores, Stores
from common.sync_channel import SyncChannel
from common.types import Role
from deploy.bench.line_process import LineProcess

_PATIENCE_S = 30.0
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


class Peer(LineProcess):
    """One process of :mod:`deploy.bench.bulk`."""

    def __init__(self, kind: str, *arguments: str) -> None:
        super().__init__("deploy.bench.bulk", kind, *arguments)

    def start(self, **orders: object) -> None:
        """Give the orders that it waits for."""
        self.send(orders)


Start = Callable[..., Peer]


@contextmanager
def peers() -> Iterator[Start]:
    """A function that starts peers, which end with the block."""
    with ExitStack() as stack:

        def start(kind: str, *arguments: str) -> Peer:
            peer = Peer(kind, *arguments)
            stack.callback(peer.close)
            return peer

        yield start


@contextmanager
def store(folder: Path, broker: str, acks: str) -> Iterator[tuple[str, int]]:
    """A real store process: its address and its process id."""
    run_file = folder / "run.toml"
    run_file.write_text(_STORE_RUN.format(broker=broker, acks=acks), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cli", "store", str(run_file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _address_of_store(broker), process.pid
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
            time.sleep(0.02)  # a store that starts can only be asked for again and again
    finally:
        channel.close()
    raise FatalError("the store of the benchmark did not start")


def processor_us(pid: int) -> float:
    """Microseconds of processor time that a process has used, all threads together."""
    times = psutil.Process(pid).cpu_times()
    return float(1e6 * (times.user + times.system))
