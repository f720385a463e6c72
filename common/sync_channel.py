"""A channel for code that does not run on an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from common.codec import Buffer, Decoded
from common.errors import RefusedError
from common.messages import Registered, Request
from common.security import ClientSecurity
from common.transport import Channel
from common.types import Role

_T = TypeVar("_T")


class SyncChannel:
    """A :class:`Channel` for synchronous code, living on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="sync-channel", daemon=True
        )
        self._thread.start()
        self._channel: Channel | None = None

    @classmethod
    def connect(
        cls,
        *,
        role: Role,
        name: str,
        endpoint: Callable[[], str],
        security: ClientSecurity | None = None,
        timeout_s: float = 60.0,
    ) -> SyncChannel:
        """As :meth:`Channel.connect`."""
        sync = cls()
        try:
            sync._channel = sync._run(
                Channel.connect(
                    role=role,
                    name=name,
                    endpoint=endpoint,
                    security=security,
                    timeout_s=timeout_s,
                )
            )
        except BaseException:
            sync.close()
            raise
        return sync

    @property
    def registered(self) -> Registered:
        """As :attr:`Channel.registered`."""
        return self._open_channel().registered

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """As :meth:`Channel.request`, callable from any thread."""
        return self._run(self._open_channel().request(message, frames, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the channel and end its thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        if self._channel is not None:
            self._run(self._channel.close())
            self._channel = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        self._loop.close()

    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise RefusedError("closed", "the channel is closed")
        return self._channel

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
