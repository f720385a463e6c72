"""A TCP proxy whose link misbehaves as it is told.

It slows down, drips, goes silent without closing (half-open), passes one direction only, resets,
and cuts a connection at a byte offset, in the middle of whatever was being sent. What a silent link
had taken in is delivered when it heals, as TCP itself would.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
"""``up`` is from client to broker."""
DIRECTIONS: tuple[Direction, Direction] = ("up", "down")
_CHUNK_BYTES = 65536
_MAX_CHUNKS = 64
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Weather:
    """How one direction of the link behaves."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = math.inf
    cut_after: int | None = None
    """Bytes until all connections are reset."""
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.flows.set()


class Proxy:
    """One link; every client that is to be disturbed on its own has one of its own."""

    def __init__(self, target: Callable[[], tuple[str, int]], dice: random.Random) -> None:
        """``target`` tells host and port of the other end for each new connection."""
        self._target = target
        self._dice = dice
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.weather: dict[Direction, Weather] = {way: Weather() for way in DIRECTIONS}
        self.sent: list[bytearray] = []
        """What clients sent, one item a connection."""
        self.num_bytes = 0

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"tcp://{host}:{port}"

    def block(self, *ways: Direction) -> None:
        """Pass nothing in these directions, and close nothing."""
        for way in ways:
            self.weather[way].flows.clear()

    def heal(self) -> None:
        """Fair weather in both directions."""
        for way, weather in self.weather.items():
            weather.flows.set()
            self.weather[way] = Weather()

    def reset(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            _reset(writer)

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reset()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target())
        except OSError:
            _reset(writer)
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        self.sent.append(bytearray())
        pumps = (
            asyncio.create_task(self._pump("up", reader, far_writer, self.sent[-1])),
            asyncio.create_task(self._pump("down", far_reader, writer, None)),
        )
        self._tasks.update(pumps)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for end in (writer, far_writer):
            end.close()
            self._writers.discard(end)
        self._tasks.difference_update(pumps)

    async def _pump(
        self,
        way: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        copy: bytearray | None,
    ) -> None:
        """Carry one direction of one connection until it ends."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_CHUNKS)
        taking = asyncio.create_task(self._take(way, reader, chunks))
        try:
            while True:
                due_s, data = await chunks.get()
                await asyncio.sleep(due_s - asyncio.get_running_loop().time())
                await self.weather[way].flows.wait()
                if not data:
                    return
                if copy is not None:
                    copy += data
                await self._give(way, data, writer)
        except OSError:
            return
        finally:
            taking.cancel()

    async def _take(
        self,
        way: Direction,
        reader: asyncio.StreamReader,
        chunks: asyncio.Queue[tuple[float, bytes]],
    ) -> None:
        """Read what arrives and note when it is due; nothing overtakes."""
        due_s = 0.0
        while True:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            weather = self.weather[way]
            lag_s = weather.delay_s + self._dice.uniform(0.0, weather.jitter_s)
            due_s = max(due_s, asyncio.get_running_loop().time() + lag_s)
            await chunks.put((due_s, data))
            if not data:
                return

    async def _give(self, way: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        weather = self.weather[way]
        if weather.cut_after is not None:
            weather.cut_after -= len(data)
            if weather.cut_after <= 0:
                data = data[: weather.cut_after] if weather.cut_after else data
                writer.write(data)
                await writer.drain()
                weather.cut_after = None
                self.reset()
                return
        drip = _CHUNK_BYTES if math.isinf(weather.bytes_per_s) else 16
        for start in range(0, len(data), drip):
            part = data[start : start + drip]
            writer.write(part)
            self.num_bytes += len(part)
            await writer.drain()
            if not math.isinf(weather.bytes_per_s):
                await asyncio.sleep(len(part) / weather.bytes_per_s)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, not FIN: what is under way is thrown away at both ends."""
    handle = writer.get_extra_info("socket")
    if handle is not None and handle.fileno() >= 0:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
