"""Puts payload servers and their clients together from a configuration."""

from __future__ import annotations

import asyncio
import secrets
import socket as system_socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.broker_socket import BrokerSocket
from common.codec import MAX_FRAME_BYTES, MAX_HEADER_BYTES, Buffer, Decoded
from common.config import Config
from common.endpoints import private_endpoint
from common.lifecycle import Process
from common.messages import Registered, Request
from common.payloads.backing import Backing
from common.payloads.client import Fetched, Link, PayloadClient, Requester, StoreLinks, Wanted
from common.payloads.server import IN_FLIGHT_BYTES, PayloadServer
from common.payloads.service import PayloadService
from common.security import ClientSecurity, ServerSecurity, public_name_of
from common.transport import Channel
from common.types import Role

CONNECT_TIMEOUT_S = 10.0

_T = TypeVar("_T")


def payload_server(process: Process, backing: Backing) -> PayloadServer:
    """A server in front of ``backing``, bound, with its own keys if the run has keys.

    An actor serves what it sampled itself: nobody puts arrays into its memory, nor large frames.
    Raises :class:`FatalError` when the address is taken or the keys are not in order.
    """
    config, metrics = process.config, process.metrics
    identity = Registered(
        run_id=config.run.id,
        broker_nonce=secrets.token_hex(8),
        heartbeat_s=config.broker.heartbeat_s,
        lease_s=config.broker.dead_after_s,
    )
    is_store = process.role == Role.STORE.value
    service = PayloadService(backing, takes_puts=is_store)
    max_frame_bytes = min(MAX_FRAME_BYTES, IN_FLIGHT_BYTES) if is_store else MAX_HEADER_BYTES
    endpoint = config.stores.endpoint
    if endpoint == "ipc":
        endpoint = private_endpoint(f"{config.run.directory}:{process.name}")
    if not config.security.keys:
        plain = BrokerSocket.bind(endpoint, max_frame_bytes=max_frame_bytes)
        return PayloadServer(plain, service, identity, metrics)

    def count(number: int) -> None:
        metrics.inc("headrace_connections_denied_total", number)

    keys = Path(config.security.keys)
    security = ServerSecurity.load(keys, process.role, process.name, count=count, log=process.log)
    socket = BrokerSocket.bind(endpoint, secure=security.secure, max_frame_bytes=max_frame_bytes)
    return PayloadServer(socket, service, identity, metrics, role_of=security.role_of)


def advertised(endpoint: str) -> str:
    """``endpoint`` as others reach it: an address of all interfaces becomes this machine's name."""
    return endpoint.replace("tcp://0.0.0.0:", f"tcp://{system_socket.gethostname()}:")


def store_links(config: Config, broker: Requester, role: Role, name: str) -> StoreLinks:
    """Connections to payload servers for the client ``name`` of the broker."""
    server = Role.ACTOR if config.stores.payloads == "direct" else Role.STORE

    def security_towards(store: str) -> ClientSecurity | None:
        if not config.security.keys:
            return None
        keys = Path(config.security.keys)
        known = public_name_of(keys, server.value, store)
        return ClientSecurity.load(keys, role, name, server=known)

    async def open_link(store: str, endpoint: Callable[[], str]) -> Link:
        return await Channel.connect(
            role=role,
            name=name,
            endpoint=endpoint,
            timeout_s=CONNECT_TIMEOUT_S,
            security=security_towards(store),
        )

    return StoreLinks(broker, open_link)


def payload_client(config: Config, broker: Requester, role: Role, name: str) -> PayloadClient:
    """A consumer of arrays, from wherever they are."""
    return PayloadClient(
        broker,
        store_links(config, broker, role, name),
        patience_s=config.stores.patience_s,
        gone_with_its_server=config.stores.payloads == "direct",
    )


class SyncRequester:
    """A broker channel of synchronous code, as a :class:`Requester`."""

    def __init__(self, request: Callable[..., Decoded]) -> None:
        self._request = request

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply, on a thread."""
        return await asyncio.to_thread(self._request, message, frames, timeout_s=timeout_s)


class SyncPayloadClient:
    """A :class:`PayloadClient` for synchronous code, living on a thread of its own."""

    def __init__(
        self, config: Config, request: Callable[..., Decoded], role: Role, name: str
    ) -> None:
        """``request`` asks the broker and may be called from any thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="payload-client", daemon=True
        )
        self._thread.start()
        self._client = self._run(_built(config, SyncRequester(request), role, name))

    def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched | None]:
        """As :meth:`PayloadClient.fetch`."""
        return self._run(self._client.fetch(wanted))

    def close(self) -> None:
        """Drop the connections and end the thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _built(config: Config, broker: Requester, role: Role, name: str) -> PayloadClient:
    """Made on the loop that it will live on."""
    return payload_client(config, broker, role, name)
