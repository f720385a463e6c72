"""What a client makes of handshakes that fail: nothing comes back over the wire to tell it. Pure.

A broker that is away or stuck is waited for; a key that will never be accepted is not. The two look
alike at first, so only failures that follow each other closely, for :data:`GIVE_UP_S`, count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import zmq

GIVE_UP_S = 2.0
"""Failures must go on for so long: a key that was added a moment ago may not be known yet."""
MAX_GAP_S = 2.5
"""A stuck broker fails one handshake in three seconds; a refusal comes at once, every time."""
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
HANDSHAKE_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILURES


class HandshakeWatch:
    """Tells from the events of one client's sockets whether it will ever be let in."""

    def __init__(self, causes: Mapping[int, str]) -> None:
        """``causes`` maps the events that can be final to a sentence with cause and cure."""
        self._causes = causes
        self._has_succeeded = False
        self._failing_since_s = 0.0
        self._failed_at_s = -math.inf
        self._cause: str | None = None

    def observe(self, event: int, now_s: float) -> str | None:
        """Take in one monitor event; returns the cause once there is no use in going on."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._has_succeeded, self._failed_at_s = True, -math.inf
        if not event & _FAILURES:
            return None
        if now_s - self._failed_at_s > MAX_GAP_S:
            self._failing_since_s, self._cause = now_s, None
        self._failed_at_s = now_s
        self._note_cause(event)
        return self._cause if now_s - self._failing_since_s >= GIVE_UP_S else None

    def _note_cause(self, event: int) -> None:
        """A reset may overtake the reason for it: one event with a reason explains the others.

        Without any, a server that has accepted this key before is taken to be going down.
        """
        if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._cause = self._causes.get(event, self._cause)
        elif self._cause is None and not self._has_succeeded:
            self._cause = self._causes.get(event)
