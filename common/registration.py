"""Who a client is to the broker: told first on each connection, and once for all its requests."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence

from common.codec import Buffer, Decoded
from common.errors import DecodeError, RefusedError
from common.messages import Refused, Register, Registered
from common.pending_requests import refusal_error
from common.types import Role

_NAME_TAKEN_RETRY_S = 0.25
_NAME_TAKEN_WAIT_S = 5.0  # more than the heartbeats that a broker gives a silent process


def describe_process(role: Role, name: str, payload_endpoint: str = "") -> Register:
    """What a client of this process says of itself, with a nonce of its own."""
    return Register(
        role=role,
        name=name,
        nonce=secrets.token_hex(8),
        host=socket.gethostname()[:128] or "localhost",
        pid=os.getpid(),
        payload_endpoint=payload_endpoint,
    )


class Registration:
    """The registration of one channel, over all its connections."""

    def __init__(
        self,
        message: Register,
        *,
        exchange: Callable[[Register, Sequence[Buffer], float], Awaitable[Decoded]],
        accept: Callable[[Registered], None],
    ) -> None:
        """``exchange`` sends a request with its frames and returns the reply, in so many seconds.

        ``accept`` is called with each answer that lets this client in.
        """
        self.message = message
        self.answer: Registered | None = None
        """What the broker said last."""
        self.number = 0
        """How often the broker has let this client in."""
        self._exchange = exchange
        self._accept = accept
        self._turn = asyncio.Lock()

    async def begin(self, timeout_s: float) -> None:
        """Register, and wait a little for an earlier process of this name to be known as gone.

        Raises as :meth:`renew`.
        """
        clock = asyncio.get_running_loop().time
        started_s = clock()
        while True:
            try:
                await self.renew(0, timeout_s - (clock() - started_s))
                return
            except RefusedError as error:
                if error.code != "name_taken" or clock() - started_s > _NAME_TAKEN_WAIT_S:
                    raise
            await asyncio.sleep(_NAME_TAKEN_RETRY_S)

    async def renew(self, seen: int, timeout_s: float) -> None:
        """Register once for all the requests that were refused under registration ``seen``.

        Raises :class:`RefusedError` or :class:`ForbiddenError` when the broker refuses, and
        :class:`RequestTimeoutError` when it does not answer.
        """
        async with self._turn:
            if self.number != seen:
                return
            decoded = await self._exchange(self.message, (), timeout_s)
            if isinstance(decoded.message, Refused):
                raise refusal_error(decoded.message)
            if not isinstance(decoded.message, Registered):
                raise DecodeError(f"unexpected reply {type(decoded.message).__name__}")
            self.answer = decoded.message
            self.number += 1
            self._accept(decoded.message)
