"""A simulated network under the real sockets' users: connections that delay, break and partition.

Below :class:`common.transport.Channel` and :class:`common.broker_socket.BrokerSocket` there is
nothing but the raw sockets; here these are simulated and everything above them is the real code. A
connection keeps the order of its messages in each direction, like TCP. Across connections nothing
is promised: what an old one still carries may arrive after the first messages of its successor.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import zmq
import zmq.asyncio

from common.codec import Buffer
from tests.simulation.trace import Trace
from tests.simulation.virtual_time import VirtualLoop

BROKER = "sim://broker"
DEAD_LINK_S = 10.0
"""Silence after which both ends give a connection up, as the real sockets' heartbeats do."""

_CONNECT_S = 0.05
_CLOSE_S = 0.001
_EVENT = struct.Struct("=hi")


@dataclass
class LinkQuality:
    """What the network does to connections; changed by faults while the world runs."""

    delay_s: float = 0.002
    jitter_s: float = 0.003
    slow_share: float = 0.0
    duplicate_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One received frame, with the two faces of :class:`zmq.Frame` that receivers use."""

    bytes: bytes
    more: bool = False
    """Whether it was received with parts of the same message behind it."""

    @property
    def buffer(self) -> memoryview:
        """The frame without a copy."""
        return memoryview(self.bytes)

    def __len__(self) -> int:
        return len(self.bytes)


@dataclass(eq=False)
class Connection:
    """One TCP connection between a client and the broker of its time.

    ``delivers_rest`` says whether what was under way when the client's end closed still arrives.
    """

    client: str
    peer: bytes
    dealer: DealerSocket
    router: RouterSocket
    is_open: bool = True
    delivers_rest: bool = True
    last_arrival_s: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    held: list[tuple[bool, list[bytes]]] = field(default_factory=list)


class Network:
    """All connections of a world. ``blocked`` holds (client, towards_server) of partitions."""

    def __init__(self, loop: VirtualLoop, seeded: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.trace = trace
        self.quality = LinkQuality()
        self.routers: dict[str, RouterSocket] = {}
        self.blocked: set[tuple[str, bool]] = set()
        self.frozen: set[str] = set()
        self._random = seeded
        self._num_connections = 0
        self._connections: list[Connection] = []

    # --- what the sockets do ----------------------------------------------------------------------

    def connect(self, dealer: DealerSocket) -> None:
        """Connect in a while, and keep trying for as long as the socket is open."""
        wait_s = _CONNECT_S * (1.0 + self._random.random())
        self.loop.call_later(wait_s, self._try_connect, dealer)

    def _try_connect(self, dealer: DealerSocket) -> None:
        if dealer.is_closed:
            return
        client = dealer.client
        reachable = client not in self.frozen and not self._is_blocked(client)
        router = self.routers.get(dealer.endpoint)
        if router is None or router.is_closed or not reachable:
            self.connect(dealer)
            return
        self._num_connections += 1
        peer = self._num_connections.to_bytes(5, "big")
        connection = Connection(client, peer, dealer, router)
        self._connections.append(connection)
        router.peers[peer] = connection
        dealer.on_connected(connection)

    def carry(self, connection: Connection, to_broker: bool, parts: list[bytes]) -> None:
        """Take a message; it arrives later, is held by a partition, or dies with the connection."""
        if not connection.is_open:
            self.trace.step(f"lost {connection.client}", parts)
            return
        if (connection.client, to_broker) in self.blocked:
            connection.held.append((to_broker, parts))
            return
        copies = 1 + (self._random.random() < self.quality.duplicate_share)
        if copies == 2:
            self.trace.fault("message_duplicated", connection.client)
        for _ in range(copies):
            self._schedule(connection, to_broker, parts)

    def _schedule(self, connection: Connection, to_broker: bool, parts: list[bytes]) -> None:
        delay_s = self.quality.delay_s + self._random.random() * self.quality.jitter_s
        if self._random.random() < self.quality.slow_share:
            delay_s += self._random.expovariate(1.0)
        arrival_s = max(self.loop.time() + delay_s, connection.last_arrival_s[to_broker])
        connection.last_arrival_s[to_broker] = arrival_s
        self.loop.call_at(arrival_s, self._arrive, connection, to_broker, parts)

    def _arrive(self, connection: Connection, to_broker: bool, parts: list[bytes]) -> None:
        receiver = connection.router if to_broker else connection.dealer
        is_late = not connection.is_open and not (to_broker and connection.delivers_rest)
        if receiver.is_closed or is_late:
            self.trace.step(f"lost {connection.client}", parts)
            return
        if (connection.client, to_broker) in self.blocked and connection.is_open:
            connection.held.append((to_broker, parts))
            return
        if connection.client in self.frozen and not to_broker:
            connection.held.append((to_broker, parts))
            return
        arrow = "->" if to_broker else "<-"
        self.trace.step(f"{connection.client} {arrow}", parts)
        receiver.on_message(connection, parts)

    # --- what happens to connections --------------------------------------------------------------

    def break_client(self, client: str, *, deliver_rest: bool = True) -> None:
        """Cut every connection of ``client``; the client sees it at once."""
        for connection in [c for c in self._connections if c.client == client]:
            self._cut(connection, deliver_rest=deliver_rest)

    def break_broker(self, router: RouterSocket) -> None:
        """The broker is gone: clients see their connections close, most after its last replies."""
        for connection in [c for c in self._connections if c.router is router]:
            cut = partial(self._cut, connection, deliver_rest=False)
            if self._random.random() < 0.7:
                self.loop.call_at(connection.last_arrival_s[False] + _CLOSE_S, cut)
            else:
                cut()

    def partition(self, client: str, directions: Sequence[bool]) -> None:
        """Stop carrying messages of ``client`` in these directions (True is towards the broker)."""
        self.blocked.update((client, direction) for direction in directions)
        for connection in [c for c in self._connections if c.client == client]:
            self.loop.call_later(DEAD_LINK_S, self._give_up, connection)

    def heal(self, client: str) -> None:
        """Carry messages of ``client`` again, first those that waited."""
        self.blocked -= {(client, True), (client, False)}
        self._release(client)

    def freeze(self, client: str) -> None:
        """A stopped process receives nothing, and nobody is told."""
        self.frozen.add(client)
        for connection in [c for c in self._connections if c.client == client]:
            self.loop.call_later(DEAD_LINK_S, self._give_up, connection)

    def thaw(self, client: str) -> None:
        """The process goes on and finds what came meanwhile."""
        self.frozen.discard(client)
        self._release(client)

    def _release(self, client: str) -> None:
        for connection in [c for c in self._connections if c.client == client]:
            held, connection.held = connection.held, []
            for to_broker, parts in held:
                self._schedule(connection, to_broker, parts)

    def _give_up(self, connection: Connection) -> None:
        client = connection.client
        if connection.is_open and (client in self.frozen or self._is_blocked(client)):
            self._cut(connection, deliver_rest=False)

    def _is_blocked(self, client: str) -> bool:
        return bool(self.blocked & {(client, True), (client, False)})

    def closed_by_client(self, connection: Connection) -> None:
        """The client closed its socket: what it had sent may still arrive."""
        self._cut(connection, deliver_rest=True)

    def _cut(self, connection: Connection, *, deliver_rest: bool) -> None:
        if not connection.is_open:
            return
        connection.is_open = False
        connection.delivers_rest = deliver_rest
        connection.held.clear()
        self._connections.remove(connection)
        self.trace.step(f"{connection.client} disconnected")
        if self._is_blocked(connection.client):
            wait_s = DEAD_LINK_S
        elif deliver_rest and self._random.random() < 0.5:
            wait_s = 1.0
        else:
            wait_s = 0.0
        # the broker notices later than the client, and answers into the void until then
        self.loop.call_later(wait_s, connection.router.peers.pop, connection.peer, None)
        connection.dealer.on_disconnected()


class _Inbox:
    """Messages that wait for a receiver, shared by both kinds of socket."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.is_closed = False
        self._messages: deque[list[Part]] = deque()
        self._arrived = asyncio.Event()

    def setsockopt(self, option: int, value: int) -> None:
        """Options mean nothing here."""

    async def recv_multipart(self, copy: bool = True) -> list[Part]:
        """The next message, as frames."""
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()

    def _put(self, parts: list[Part]) -> None:
        self._messages.append(parts)
        self._arrived.set()


class DealerSocket(_Inbox):
    """A client's raw socket."""

    def __init__(self, network: Network, client: str) -> None:
        super().__init__(network)
        self.client = client
        self.endpoint = ""
        self._connection: Connection | None = None
        self._unsent: list[list[bytes]] = []
        self._monitor = MonitorSocket(network.loop)

    def get_monitor_socket(self, events: int) -> MonitorSocket:
        """The socket that tells of connections."""
        return self._monitor

    def disable_monitor(self) -> None:
        """Nobody listens any more."""

    def connect(self, endpoint: str) -> None:
        """Start connecting to whoever listens there, by now or later."""
        self.endpoint = endpoint
        self.network.connect(self)

    async def send_multipart(self, parts: Sequence[Buffer], copy: bool = True) -> None:
        """Send, or queue until connected."""
        message = [bytes(part) for part in parts]
        if self._connection is None:
            self._unsent.append(message)
        else:
            self.network.carry(self._connection, True, message)

    def close(self, linger: int = 0) -> None:
        """Drop the connection and what is queued."""
        self.is_closed = True
        if self._connection is not None:
            self.network.closed_by_client(self._connection)

    def on_connected(self, connection: Connection) -> None:
        """The network found the broker."""
        self._connection = connection
        self._monitor.tell(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            self.network.carry(connection, True, message)

    def on_disconnected(self) -> None:
        """The connection is gone."""
        self._connection = None
        self._monitor.tell(zmq.EVENT_DISCONNECTED)

    def on_message(self, connection: Connection, parts: list[bytes]) -> None:
        """A reply arrived."""
        self._put([Part(part) for part in parts])


class RouterSocket(_Inbox):
    """A server's raw socket, which never waits; ``peers`` are those that it can answer."""

    def __init__(self, network: Network, endpoint: str = BROKER) -> None:
        super().__init__(network)
        self._endpoint = endpoint
        self.peers: dict[bytes, Connection] = {}
        self.before_send: Callable[[], None] = lambda: None
        self.on_readable: Callable[[], None] | None = None
        self._reading: deque[Part] = deque()
        self._sending: list[bytes] = []
        network.routers[endpoint] = self

    def getsockopt(self, option: int) -> int:
        """Whether there is another message, or another part of this one."""
        if option == zmq.RCVMORE:
            return int(bool(self._reading))
        return zmq.POLLIN if self._messages else 0

    def getsockopt_string(self, option: int) -> str:
        """Where the server listens."""
        return self._endpoint

    def recv(self, flags: int = 0, copy: bool = True) -> bytes | Part:
        """The next part of the present message, or the first of the next one."""
        if not self._reading:
            if not self._messages:
                raise zmq.Again
            self._reading.extend(self._messages.popleft())
        part = self._reading.popleft()
        return part.bytes if copy else replace(part, more=bool(self._reading))

    def send(self, part: Buffer, flags: int = 0, copy: bool = True, track: bool = False) -> None:
        """Send a part; raises as a router does when the peer is gone."""
        if not self._sending:
            self.before_send()
            if self.is_closed or bytes(part) not in self.peers:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
        self._sending.append(bytes(part))
        if not flags & zmq.SNDMORE:
            message, self._sending = self._sending, []
            self.network.carry(self.peers[message[0]], False, message[1:])

    def close(self, linger: int = 0) -> None:
        """Stop listening."""
        self.is_closed = True

    def on_message(self, connection: Connection, parts: list[bytes]) -> None:
        """A request arrived."""
        self._put([Part(connection.peer), *map(Part, parts)])
        if self.on_readable is not None:
            self.on_readable()


class MonitorSocket:
    """Connection events of one client socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[int] = deque()
        self._told = asyncio.Event()

    def tell(self, event: int) -> None:
        """Note an event."""
        self._events.append(event)
        self._told.set()

    async def poll(self, timeout: int) -> int:  # noqa: ASYNC109 # as pyzmq has it
        """Whether there is an event, after up to ``timeout`` milliseconds."""
        if not self._events:
            self._told.clear()
            try:
                async with asyncio.timeout(timeout / 1000):
                    await self._told.wait()
            except TimeoutError:
                return 0
        return 1

    async def recv_multipart(self) -> list[bytes]:
        """The next event as the wire has it."""
        return [_EVENT.pack(self._events.popleft(), 0), BROKER.encode()]

    def close(self, linger: int = 0) -> None:
        """Nobody listens any more."""


class SimulatedContext:
    """What a :class:`Channel` makes its sockets from."""

    def __init__(self, network: Network, client: str) -> None:
        self._network = network
        self._client = client
        self._sockets: list[DealerSocket] = []

    def socket(self, kind: int) -> DealerSocket:
        """A new client socket."""
        socket = DealerSocket(self._network, self._client)
        self._sockets.append(socket)
        return socket

    def destroy(self, linger: int = 0) -> None:
        """Close them all, as the end of a process does."""
        for socket in self._sockets:
            if not socket.is_closed:
                socket.close()
        self._sockets.clear()


def as_context(context: SimulatedContext) -> zmq.asyncio.Context:
    """``context`` under the type that the real code knows."""
    return cast("zmq.asyncio.Context", context)


def as_socket(socket: RouterSocket) -> zmq.Socket[bytes]:
    """``socket`` under the type that the real code knows."""
    return cast("zmq.Socket[bytes]", socket)
