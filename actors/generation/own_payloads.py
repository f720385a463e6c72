"""The payload server inside an actor, and which place the configuration gives its rollouts."""

from __future__ import annotations

import asyncio

from actors.generation.payload_place import InActor, InStore, PayloadPlace, WithBroker
from common.lifecycle import Process
from common.payloads.backing import MemoryBacking
from common.payloads.client import Requester
from common.payloads.producer import StoreProducer
from common.payloads.server import PayloadServer
from common.payloads.sweeping import sweep_forever
from common.payloads.wiring import advertised, payload_server, store_links
from common.types import Role


class OwnPayloads:
    """Serves what this actor keeps, on its event loop."""

    def __init__(self, backing: MemoryBacking, server: PayloadServer, sweep_s: float) -> None:
        self.backing = backing
        self._server = server
        self._sweep_s = sweep_s

    @classmethod
    def open(cls, process: Process) -> OwnPayloads:
        """Bind the socket; raises :class:`FatalError` when it is taken."""
        backing = MemoryBacking()
        server = payload_server(process, backing)
        return cls(backing, server, process.config.stores.sweep_s)

    @property
    def endpoint(self) -> str:
        """Where consumers reach it."""
        return advertised(self._server.endpoint)

    async def serve(self, broker: Requester) -> None:
        """Serve, and drop what ``broker`` says has ended, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._server.serve(), name="payload-server")
            tasks.create_task(
                sweep_forever(broker, self.backing, self._sweep_s), name="payload-sweep"
            )

    def close(self) -> None:
        """Close the socket; what is kept is gone with it."""
        self._server.close()


def payload_place(
    process: Process, broker: Requester, own_payloads: OwnPayloads | None
) -> PayloadPlace:
    """Where ``stores.payloads`` says that this actor's rollouts go."""
    config = process.config
    if own_payloads is not None:
        return InActor(
            own_payloads.backing,
            broker,
            actor=process.name,
            max_bytes=config.stores.direct_bytes,
            max_rollout_bytes=config.max_rollout_bytes,
            group_size=config.group_size,
            metrics=process.metrics,
            log=process.log,
        )
    if config.stores.payloads == "store":
        return InStore(StoreProducer(store_links(config, broker, Role.ACTOR, process.name)))
    return WithBroker()
