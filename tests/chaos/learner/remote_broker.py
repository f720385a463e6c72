"""The :class:`FakeBroker` of the unit tests behind a local socket: it outlives every learner."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.codec import Buffer, Decoded, decode, encode
from common.errors import RefusedError
from common.messages import CommitStep, Refused, Request, ResumeLearner
from tests.unit.learner.fake_broker import FakeBroker

_COUNT = struct.Struct("<I")


class RemoteBroker:
    """The learner's end of the socket; one connection, one request at a time."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(address))
        self._lock = threading.Lock()

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """As :meth:`common.sync_channel.SyncChannel.request`."""
        with self._lock:
            _send(self._socket, encode(message, 1, frames))
            answer = decode(_receive(self._socket))
        if isinstance(answer.message, Refused):
            raise RefusedError(answer.message.code, answer.message.reason)
        return answer


@dataclass
class BrokerServer:
    """Answers learners from ``broker`` until it is closed."""

    address: Path
    broker: FakeBroker
    violations: list[str] = field(default_factory=list)
    commits: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """What was committed, by step."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.address))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No learner is answered any more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while True:
                asked = decode(_receive(connection))
                _send(connection, self._answer(asked))

    def _answer(self, asked: Decoded) -> list[Buffer]:
        with self._lock:
            try:
                reply = self.broker.request(asked.message, asked.frames)  # type: ignore[arg-type]
                self._note(asked.message)
            except RefusedError as error:
                return encode(Refused(code=error.code, reason=error.reason), 1)
            except AssertionError as error:
                name = type(asked.message).__name__
                self.violations.append(f"the broker was told what cannot be: {name} {error}")
                return encode(Refused(code="malformed", reason="see the violations"), 1)
        return encode(reply.message, 1, reply.frames)

    def _note(self, message: object) -> None:
        """Steps that the broker counts as taken, whichever message told it."""
        if isinstance(message, CommitStep):
            self._note_step(message.policy_step, message.group_ids)
        elif isinstance(message, ResumeLearner):
            for batch in message.stepped:
                self._note_step(batch.policy_step, batch.group_ids)

    def _note_step(self, policy_step: int, group_ids: tuple[int, ...]) -> None:
        if self.commits.setdefault(policy_step, group_ids) != group_ids:
            self.violations.append(f"step {policy_step} was committed with two batches")


def _send(connection: socket.socket, frames: Sequence[Buffer]) -> None:
    parts = [bytes(frame) for frame in frames]
    sizes = b"".join(_COUNT.pack(len(part)) for part in parts)
    connection.sendall(_COUNT.pack(len(parts)) + sizes + b"".join(parts))


def _receive(connection: socket.socket) -> list[Buffer]:
    (count,) = _COUNT.unpack(_exactly(connection, _COUNT.size))
    sizes = [_COUNT.unpack(_exactly(connection, _COUNT.size))[0] for _ in range(count)]
    return [_exactly(connection, size) for size in sizes]


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("the other end is gone")
        parts += part
    return bytes(parts)
