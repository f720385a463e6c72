"""Puts the requests of a client on the wire, on whatever connection there is.

Small requests that are made in one turn of the event loop leave together as batches
(``common.batching``); none waits for others to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import zmq.asyncio

from common.pending_requests import PendingRequest, messages_of


class RequestSender:
    """Sends at once, unless the connection has yet to join: it then begins with all that waits."""

    def __init__(self) -> None:
        self._socket: zmq.asyncio.Socket | None = None
        self._joined: zmq.asyncio.Socket | None = None
        self._waiting: list[PendingRequest] = []
        """Small requests of this turn of the loop, behind the one that was sent at once."""
        self._has_sent = False
        self._flushes: set[asyncio.Task[None]] = set()

    def open(self, socket: zmq.asyncio.Socket) -> None:
        """Send registrations through ``socket``; all else waits for :meth:`join`."""
        self._socket = socket

    async def join(self, socket: zmq.asyncio.Socket, requests: Sequence[PendingRequest]) -> None:
        """The client is registered on ``socket``: send there, beginning with ``requests``."""
        self._joined = socket
        self._waiting.clear()
        await _send_all(socket, requests)

    def lose(self) -> None:
        """The connection is over; requests wait for the next one."""
        self._socket = self._joined = None

    def close(self) -> None:
        """Send nothing more."""
        for flush in self._flushes:
            flush.cancel()

    async def send(self, pending: PendingRequest) -> None:
        """Send now, unless the connection has yet to join: it then sends all that is pending.

        Of the small requests of one turn of the loop the first leaves at once, and those behind it
        as soon as that turn is over.
        """
        socket = self._socket if pending.opens else self._joined
        if socket is None:
            return
        if pending.fits_batch and self._has_sent:
            if not self._waiting:
                self._flushes.add(flush := asyncio.create_task(self._flush(), name="channel-flush"))
                flush.add_done_callback(self._flushes.discard)
            self._waiting.append(pending)
            return
        if pending.fits_batch:
            self._has_sent = True
            asyncio.get_running_loop().call_soon(self._end_turn)
        await self._flush()
        await _send_all(socket, [pending])

    def _end_turn(self) -> None:
        self._has_sent = False

    async def _flush(self) -> None:
        """Send the requests that wait, on the connection that there is by now."""
        waiting, self._waiting = self._waiting, []
        if self._joined is not None:
            await _send_all(self._joined, waiting)


async def _send_all(socket: zmq.asyncio.Socket, requests: Sequence[PendingRequest]) -> None:
    """Send what has no reply yet, in order."""
    for parts in messages_of([item for item in requests if not item.reply.done()]):
        await socket.send_multipart(parts, copy=False)
