"""Byte streams from what is no ZeroMQ peer, or from one that lies."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator

from tests.fuzz.mutations import Mutator

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_FOREIGN = (
    b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n{",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"\xff\xfd\x18\xff\xfd\x20\xff\xfd\x23\xff\xfd\x27",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    bytes(2000),
)
_MORE, _LONG, _COMMAND = 1, 2, 4


def greeting(mechanism: bytes, version: tuple[int, int] = (3, 1)) -> bytes:
    """The 64 bytes that a ZMTP 3 peer begins with."""
    return _SIGNATURE + bytes(version) + mechanism.ljust(20, b"\x00") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    """One ZMTP frame, long if it has to be."""
    if len(body) > 255 or flags & _LONG:
        return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def ready(identity: bytes = b"") -> bytes:
    """The READY command of a DEALER."""
    properties = b"".join(
        bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
        for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity))
    )
    return frame(b"\x05READY" + properties, _COMMAND)


class Junk:
    """Seeded junk connections; each is what one peer sends before it closes."""

    def __init__(self, seed: int, mutator: Mutator) -> None:
        self._random = random.Random(seed)
        self._mutator = mutator
        self._kinds: tuple[Callable[[], bytes], ...] = (
            self._noise,
            self._foreign,
            self._cut_greeting,
            self._unlikely_greeting,
            self._old_protocol,
            self._damaged_command,
            self._huge_frame,
            self._curve_hello,
            self._damaged_messages,
            self._damaged_messages,
            self._damaged_stream,
        )

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self._random.choice(self._kinds)()

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 12, 64, 500, 5000)))

    def _foreign(self) -> bytes:
        return self._random.choice(_FOREIGN)

    def _cut_greeting(self) -> bytes:
        return greeting(b"NULL")[: self._random.randrange(64)]

    def _unlikely_greeting(self) -> bytes:
        mechanism = self._random.choice((b"PLAIN", b"GSSAPI", b"CURVE", b"", b"\xff" * 20))
        version = (self._random.randrange(8), self._random.randrange(256))
        return greeting(mechanism, version) + ready()

    def _old_protocol(self) -> bytes:
        """ZMTP 1.0 has no greeting: an anonymous identity, then messages."""
        messages = b"".join(
            bytes([min(len(part) + 1, 254), _MORE * (n + 1 < 2)]) + part[:253]
            for n, part in enumerate(self._mutator.next()[:2])
        )
        return b"\x01\x00" + messages

    def _damaged_command(self) -> bytes:
        name = self._random.choice(
            (b"READY", b"ERROR", b"PING", b"SUBSCRIBE", b"HELLO", b"X" * 200)
        )
        body = bytes([self._random.randrange(256)]) + name + self._random.randbytes(30)
        return greeting(b"NULL") + frame(body, _COMMAND) + ready()

    def _huge_frame(self) -> bytes:
        """A length that never comes; over the cap the connection has to go."""
        size = self._random.choice((2**63 - 1, 2**40, 1 << 28, (1 << 28) + 1))
        return greeting(b"NULL") + ready() + bytes([_LONG]) + size.to_bytes(8, "big") + b"x" * 100

    def _curve_hello(self) -> bytes:
        hello = b"\x05HELLO\x01\x00" + bytes(72) + self._random.randbytes(120)
        return greeting(b"CURVE") + frame(hello, _COMMAND)

    def _damaged_messages(self) -> bytes:
        """A peer that speaks the protocol well and says nonsense."""
        messages = b"".join(
            frame(part, _MORE * (number + 1 < len(parts)))
            for parts in (self._mutator.next() for _ in range(self._random.randint(1, 10)))
            if sum(map(len, parts)) < 10_000
            for number, part in enumerate(parts)
        )
        return greeting(b"NULL") + ready() + messages

    def _damaged_stream(self) -> bytes:
        """The same with bytes flipped anywhere, frame headers included."""
        stream = bytearray(self._damaged_messages())
        for _ in range(self._random.randint(1, 20)):
            stream[self._random.randrange(len(stream))] ^= 1 << self._random.randrange(8)
        return bytes(stream)


def throw(address: tuple[str, int], junk: bytes, *, waits: bool) -> None:
    """Connect, send, perhaps read what comes, close; the other end may close whenever it likes."""
    with socket.create_connection(address, timeout=5.0) as connection:
        try:
            connection.sendall(junk)
            if waits:
                connection.settimeout(0.02)
                while connection.recv(4096):
                    pass
        except OSError:
            pass
