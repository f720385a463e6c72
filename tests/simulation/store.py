"""A payload server in a simulated world: the real one, over a simulated socket and disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker.journal.log import Log
from broker.store_backing import LogBacking
from common.broker_socket import BrokerSocket
from common.messages import Registered
from common.metrics import Metrics
from common.payloads.backing import Backing
from common.payloads.server import PayloadServer
from common.payloads.service import PayloadService
from common.payloads.sweeping import sweep_forever
from tests.fake_disk import FakeDisk
from tests.simulation.network import RouterSocket, SimulatedContext, as_context, as_socket
from tests.simulation.process import HEARTBEAT_S, Process
from tests.simulation.virtual_time import VirtualClock

SWEEP_S = 2.0
_LEASE_S = 15.0
_DIRECTORY = Path("/simulated/store")
_SEGMENT_BYTES = 16 << 10
_HOT_BYTES = 1 << 10


@asynccontextmanager
async def serving(process: Process, backing: Backing) -> AsyncIterator[None]:
    """Serve ``backing`` under the name of ``process``, and drop from it what has ended."""
    router = RouterSocket(process.network, process.payload_endpoint)
    context = as_context(SimulatedContext(process.network, process.name))
    identity = Registered("simulation", f"{process.name}-server", HEARTBEAT_S, _LEASE_S)
    server = PayloadServer(
        BrokerSocket(context, as_socket(router)),
        PayloadService(backing),
        identity,
        Metrics(),
        clock=VirtualClock(process.network.loop),
    )
    jobs = [
        asyncio.create_task(server.serve()),
        asyncio.create_task(sweep_forever(process, backing, SWEEP_S)),
    ]
    try:
        yield
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        router.close()
        process.network.break_broker(router)


class Store(Process):
    """Keeps what it promised through its own death, and through that of its machine."""

    def __init__(self, *surroundings: Any, **options: Any) -> None:
        super().__init__(*surroundings, **options)
        self.payload_endpoint = f"sim://{self.name}"
        self._files = FakeDisk()

    async def live(self) -> None:
        """See :meth:`Process.live`."""
        log = Log(
            _DIRECTORY,
            "simulation",
            segment_bytes=_SEGMENT_BYTES,
            max_bytes=0,
            files=self._files,
            clock=self.network.loop.time,
        )
        backing = LogBacking(log, _HOT_BYTES, "durable")
        self.books.check_store(self.name, backing)
        try:
            async with serving(self, backing):
                await self.send_heartbeats()
        finally:
            self._end_machine()

    def _end_machine(self) -> None:
        """The process is killed, or with it the machine: the page cache is gone then."""
        if self.random.random() < 0.5:
            self._files.crash(self.random)
        else:
            self._files.kill()
