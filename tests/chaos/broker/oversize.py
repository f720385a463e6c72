"""Messages at the limits: one byte below, at and above them, and a claim of a gigabyte."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from pathlib import Path

import zmq

from broker.memory_plan import MemoryPlan
from common.errors import RefusedError
from common.messages import GetStatus, SubmitRollout
from common.sockets import set_common_options
from common.types import Role
from tests.builders import rollout_header
from tests.chaos.broker.campaign import Outcome
from tests.chaos.broker.logged import LoggedBroker

_GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01NULL" + bytes(48)
_READY = b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
_CLAIM = b"\x02" + struct.pack(">Q", 1 << 30)
_PATIENCE_S = 5.0
_MEMORY_BYTES = 512 << 20
_CAP_BYTES = MemoryPlan.under(_MEMORY_BYTES).largest_frame_bytes


def oversize(folder: Path, seed: int) -> Outcome:
    """The sender is told before it sends; a peer that sends regardless is cut off, alone."""
    outcome = Outcome("oversize", seed)
    started_s = time.monotonic()
    broker = LoggedBroker(
        folder,
        dead_after_s=60.0,
        settings=(
            'endpoint = "tcp://127.0.0.1:0"',
            "allow_plaintext_tcp = true",
            f"max_memory_bytes = {_MEMORY_BYTES}",
        ),
    )
    broker.start()
    try:
        endpoint = broker.wait_endpoint()
        asyncio.run(_try_all(broker, endpoint, outcome))
    finally:
        broker.kill()
    outcome.wall_s = time.monotonic() - started_s
    return outcome


async def _try_all(broker: LoggedBroker, endpoint: str, outcome: Outcome) -> None:
    actor = await broker.connect(Role.ACTOR, "actor-0")
    witness = await broker.connect(Role.SUPERVISOR, "witness")
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not await _claim((host, int(port))):
        outcome.blame("held", "a claim of 1 GiB in one frame did not end the connection")
    for extra, is_cut in ((-1, False), (0, False), (1, True)):
        outcome.num_trials += 1
        outcome.faults[f"frame of the cap {extra:+d} byte"] += 1
        if await asyncio.to_thread(_send_raw, endpoint, _CAP_BYTES + extra) != is_cut:
            outcome.blame("cap", f"a frame of {extra:+d}: cut off is {not is_cut}")
        await witness.request(GetStatus(), timeout_s=_PATIENCE_S)
    outcome.num_trials += 2
    outcome.faults["frame that claims 1 GiB"] += 1
    outcome.faults["rollout over the cap"] += 1
    too_much = [bytes(4), bytes(_CAP_BYTES + 4), bytes(4)]
    with contextlib.suppress(ValueError, RefusedError):
        await actor.request(SubmitRollout(rollout=rollout_header()), too_much)
        outcome.blame("sent", "a channel sent more than the cap")
    await witness.request(GetStatus(), timeout_s=_PATIENCE_S)
    for channel in (actor, witness):
        await channel.close()
    outcome.measures["VmHWM, MB"] = broker.memory_bytes() / 1e6
    if broker.memory_bytes() > _MEMORY_BYTES:
        outcome.blame("memory", f"{broker.memory_bytes()} of {_MEMORY_BYTES} bytes")


def _send_raw(endpoint: str, num_bytes: int) -> bool:
    """Send a frame of this size past all checks of our own; was the connection cut?"""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    set_common_options(socket)
    socket.setsockopt(zmq.MAXMSGSIZE, -1)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        socket.connect(endpoint)
        socket.send_multipart([b"", bytes(num_bytes)], copy=False)
        socket.send_multipart([b"", b"after"])
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        ready = dict(poller.poll(int(1000 * _PATIENCE_S)))
        return monitor in ready and socket not in ready
    finally:
        socket.disable_monitor()
        context.destroy(linger=0)


async def _claim(address: tuple[str, int]) -> bool:
    """Announce a frame of 1 GiB; True when the broker hangs up."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(_GREETING)
        await reader.readexactly(len(_GREETING))
        writer.write(_READY)
        _, size = await reader.readexactly(2)
        await reader.readexactly(size)
        writer.write(_CLAIM)
        async with asyncio.timeout(_PATIENCE_S):
            return not await reader.read(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        writer.transport.abort()
