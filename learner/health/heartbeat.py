"""Tells the broker that the learner lives, also through a step that takes minutes."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from common.errors import ForbiddenError, InfraError
from common.messages import Heartbeat
from learner.broker_client import BrokerClient


class HeartbeatThread:
    """Sends a heartbeat every ``interval_s`` while the ``with`` block runs."""

    def __init__(self, channel: BrokerClient, interval_s: float) -> None:
        self._channel = channel
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(timeout=self._interval_s)

    def is_alive(self) -> bool:
        """True while heartbeats are sent."""
        return self._thread.is_alive()

    def _beat(self) -> None:
        while not self._done.wait(self._interval_s):
            try:
                self._channel.request(Heartbeat(), timeout_s=self._interval_s)
            except ForbiddenError:
                return  # for good: the next request of the training loop says why
            except InfraError:
                continue  # the broker is away: the channel reconnects, the next beat tells it again
