"""A client of the broker that costs next to nothing: a blocking socket and ready-made bytes.

It exists to load a broker from the outside. Programs that want answers use ``common.transport``.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Sequence

import zmq

from common.batching import encode_batch
from common.codec import Buffer, Decoded, decode, encode
from common.errors import FatalError, RefusedError
from common.messages import Acks, Refused, Register, Registered, Reply, Request
from common.sockets import set_common_options
from common.types import Role

MESSAGE_BYTES = 512
"""Size of a control message, its prelude included."""
WINDOW = 2048
"""Messages that a source has under way; half of what a client may have."""
_PATIENCE_MS = 60_000

Ready = tuple[int, list[bytes]]
"""A request that was encoded beforehand: its id and its frames."""


class RawClient:
    """One registered connection over a blocking DEALER socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        set_common_options(self.socket)
        self.socket.setsockopt(zmq.RCVTIMEO, _PATIENCE_MS)
        self.socket.setsockopt(zmq.SNDTIMEO, _PATIENCE_MS)
        self.socket.connect(endpoint)
        self._request_ids = itertools.count(1)

    def register(self, role: Role, name: str) -> Registered:
        """Join the run."""
        message = Register(
            role=role, name=name, nonce=secrets.token_hex(8), host="localhost", pid=os.getpid()
        )
        reply = self.request(message)
        if not isinstance(reply, Registered):
            raise FatalError(f"the broker answered Register with {type(reply).__name__}")
        return reply

    def request(self, message: Request, frames: Sequence[Buffer] = ()) -> Reply:
        """Send and wait for the reply; raises :class:`RefusedError`."""
        return self.request_all([(message, frames)])[0]

    def request_all(
        self, requests: Sequence[tuple[Request, Sequence[Buffer]]], window: int = 1024
    ) -> list[Reply]:
        """Send all, at most ``window`` ahead of the replies; replies in the order of requests."""
        replies: dict[int, Reply] = {}
        ids: list[int] = []
        for message, frames in requests:
            while len(ids) - len(replies) >= window:
                self._receive(replies)
            ids.append(next(self._request_ids))
            self.socket.send_multipart(encode(message, ids[-1], frames))
        while len(replies) < len(ids):
            self._receive(replies)
        return [replies[request_id] for request_id in ids]

    def encode(self, message: Request) -> Ready:
        """One request to be sent later."""
        request_id = next(self._request_ids)
        return request_id, [bytes(part) for part in encode(message, request_id)]

    def send_batch(self, requests: Sequence[Ready]) -> None:
        """Send requests as a channel sends those that wait: several in one message."""
        if len(requests) == 1:
            ((_, (prelude, header)),) = requests
            self.socket.send(prelude, zmq.SNDMORE)
            self.socket.send(header)
        else:
            batch = encode_batch([(request_id, parts[1]) for request_id, parts in requests])
            self.socket.send_multipart(batch)

    def receive_acks(self) -> int:
        """Wait for one message; returns how many requests it acknowledges."""
        message = self._decoded().message
        if isinstance(message, Refused):
            raise RefusedError(message.code, message.reason)
        return len(message.acks) if isinstance(message, Acks) else 1

    def _receive(self, replies: dict[int, Reply]) -> None:
        decoded = self._decoded()
        message = decoded.message
        if isinstance(message, Refused):
            raise RefusedError(message.code, message.reason)
        if isinstance(message, Acks):
            replies.update(message.acks)
        else:
            replies[decoded.request_id] = message  # type: ignore[assignment]  # brokers reply

    def _decoded(self) -> Decoded:
        return decode(self.socket.recv_multipart())
