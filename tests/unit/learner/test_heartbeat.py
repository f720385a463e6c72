"""The learner is heard of while it computes, also after the broker was away."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from common.codec import Buffer, Decoded
from common.errors import RequestTimeoutError
from common.messages import Heartbeat, HeartbeatReply, Request
from learner.health.heartbeat import HeartbeatThread


class _Broker:
    """Fails the first beat and counts the others."""

    def __init__(self) -> None:
        self.num_beats = 0
        self.third = threading.Event()

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        assert isinstance(message, Heartbeat)
        self.num_beats += 1
        if self.num_beats == 1:
            raise RequestTimeoutError("away")
        if self.num_beats == 3:
            self.third.set()
        return Decoded(1, HeartbeatReply(), [])


def test_it_beats_until_the_block_ends_and_survives_an_absent_broker() -> None:
    broker = _Broker()
    with HeartbeatThread(broker, interval_s=0.01) as heartbeat:
        assert broker.third.wait(10)
    assert not heartbeat.is_alive()
