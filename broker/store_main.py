"""Puts a store together from a configuration and runs it."""

from __future__ import annotations

import asyncio
import contextlib

from broker import garbage
from broker.store_backing import LogBacking
from common.endpoints import read_endpoint
from common.errors import DecodeError, InfraError
from common.lifecycle import Process
from common.messages import Heartbeat
from common.payloads.server import PayloadServer
from common.payloads.sweeping import sweep_forever
from common.payloads.wiring import advertised, payload_server
from common.security import client_security
from common.transport import Channel
from common.types import Role

_HEARTBEAT_TIMEOUT_S = 10.0


async def run_store(process: Process) -> None:
    """The store role: open the log, bind, register with the broker, serve until cancelled."""
    config = process.config
    backing = LogBacking.open(process.paths.stores / process.name, config.run.id, config.stores)
    try:
        await _run(process, backing)
    finally:
        backing.close()


async def _run(process: Process, backing: LogBacking) -> None:
    server = payload_server(process, backing)
    try:
        await _serve(process, server, backing)
    finally:
        server.close()


async def _serve(process: Process, server: PayloadServer, backing: LogBacking) -> None:
    """Serve at once; the broker learns of this store when it is there."""
    serving = asyncio.create_task(server.serve(), name="payload-server")
    try:
        channel = await Channel.connect(
            role=Role.STORE,
            name=process.name,
            endpoint=read_endpoint(process.config, process.paths),
            security=client_security(process.config, Role.STORE, process.name),
            payload_endpoint=advertised(server.endpoint),
        )
        process.ready(endpoint=server.endpoint, num_groups=len(backing.group_ids()))
        garbage.begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pass_on(serving), name="serving")
                tasks.create_task(_heartbeats(channel, server), name="heartbeats")
                sweeping = sweep_forever(channel, backing, process.config.stores.sweep_s)
                tasks.create_task(sweeping, name="sweep")
        finally:
            await channel.close()
    finally:
        serving.cancel()


async def _pass_on(serving: asyncio.Future[None]) -> None:
    """Fail with the server: without its log a store must not go on."""
    await serving


async def _heartbeats(channel: Channel, server: PayloadServer) -> None:
    num_before = 0
    while True:
        garbage.tidy(server.num_messages - num_before)
        num_before = server.num_messages
        with contextlib.suppress(InfraError, DecodeError):
            await channel.request(Heartbeat(), timeout_s=_HEARTBEAT_TIMEOUT_S)
        await asyncio.sleep(channel.registered.heartbeat_s)
