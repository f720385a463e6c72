"""Whether a client's connection to the broker is over: broken, silent, or to an empty house.

What a socket goes through is read from its monitor; a broker that is frozen, or gone without a
word, is noticed by its silence (``common.liveness``).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator

import structlog
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from common.codec import encode
from common.liveness import Finding, Liveness
from common.messages import Heartbeat
from common.security import ClientSecurity, explain_handshake, handshake_watch
from common.security_handshake import HANDSHAKE_EVENTS

CONNECTION_EVENTS = HANDSHAKE_EVENTS | zmq.EVENT_DISCONNECTED
"""What the monitor of a watched socket has to tell of."""
_MOVED_POLL_S = 0.5
_HEARTBEAT_S = 2.0  # until the broker has said how often to be heard of
_SHORTEST_HEARTBEAT_S = 0.2
_HANDSHAKE_RETRY_S = 0.2

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class ConnectionWatch:
    """Watches one connection at a time, over the life of a channel."""

    def __init__(
        self,
        *,
        endpoint: Callable[[], str],
        security: ClientSecurity | None,
        request_ids: Iterator[int],
        shut_out: Callable[[str], None],
    ) -> None:
        """``shut_out`` is called with the cause once the broker will never let this client in."""
        self._endpoint = endpoint
        self._security = security
        self._handshakes = handshake_watch(security)
        self._request_ids = request_ids
        self._shut_out = shut_out
        self.liveness = Liveness(_HEARTBEAT_S, 0.0)
        """Silence of the broker; tell it of all that is heard."""

    def expect_every(self, heartbeat_s: float) -> None:
        """The broker has said how often to be heard of; its silence is counted from here on."""
        interval_s = max(heartbeat_s, _SHORTEST_HEARTBEAT_S)
        self.liveness = Liveness(interval_s, asyncio.get_running_loop().time())

    def silence(self) -> str:
        """What to add to an error when the broker is silent."""
        silent_s = self.liveness.silent_s
        is_long = silent_s > self.liveness.interval_s
        return f" and has been silent for {silent_s:.1f} s" if is_long else ""

    async def until_lost(
        self, socket: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket, endpoint: str
    ) -> None:
        """Return when the connection broke, or the broker fell silent or moved without one.

        Where the broker refuses the handshake, that is made known and the next try is put off.
        """
        connected = False
        clock = asyncio.get_running_loop().time
        while True:
            check_s = min(self.liveness.check_s, _MOVED_POLL_S)
            if await monitor.poll(math.ceil(1000 * check_s)):
                event = await self._next_event(monitor, endpoint)
                if event == zmq.EVENT_DISCONNECTED:
                    if connected:
                        _log.warning("the connection to the broker broke", endpoint=endpoint)
                    else:
                        await asyncio.sleep(_HANDSHAKE_RETRY_S)
                    return
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                self.liveness = Liveness(self.liveness.interval_s, clock())
            elif not connected:
                if self._endpoint() != endpoint:
                    return
            elif await self._is_silent(socket, clock()):
                _log.warning(
                    "the broker is silent: connecting anew",
                    endpoint=endpoint,
                    silent_s=round(self.liveness.silent_s, 2),
                )
                return

    async def _next_event(self, monitor: zmq.asyncio.Socket, endpoint: str) -> int:
        """What the socket went through; a handshake that failed for good is made known."""
        parts: list[bytes] = await monitor.recv_multipart()
        event = parse_monitor_message(parts)["event"]
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            event = await asyncio.to_thread(explain_handshake, endpoint, self._security)
        cause = self._handshakes.observe(event, asyncio.get_running_loop().time())
        if cause is not None:
            self._shut_out(f"the broker at {endpoint} {cause}")
        return event

    async def _is_silent(self, socket: zmq.asyncio.Socket, now_s: float) -> bool:
        """Ask for a sign of life when it is time; True when none came."""
        finding = self.liveness.look(now_s)
        if finding is Finding.ASK:
            await socket.send_multipart(encode(Heartbeat(), next(self._request_ids)))
        return finding is Finding.LOST
