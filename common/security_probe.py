"""Asks a server how it wants to be spoken to, where a failed handshake does not tell.

A server that wants another mechanism hangs up at once, and as often as not its reset overtakes its
greeting. A peer that sends the first part of a greeting and then waits gets the whole of the
server's (RFC 37), and nothing is decided yet.
"""

from __future__ import annotations

import socket

_SIGNATURE_AND_VERSION = b"\xff" + bytes(8) + b"\x7f\x03"
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
PROBE_TIMEOUT_S = 1.0


def server_mechanism(endpoint: str) -> str:
    """``NULL`` or ``CURVE``, whatever the server at ``endpoint`` speaks; "" if it says nothing."""
    try:
        with _connect(endpoint) as peer:
            peer.settimeout(PROBE_TIMEOUT_S)
            peer.sendall(_SIGNATURE_AND_VERSION)
            greeting = b""
            while len(greeting) < _GREETING_BYTES:
                part = peer.recv(_GREETING_BYTES - len(greeting))
                if not part:
                    return ""
                greeting += part
    except (OSError, ValueError):  # ValueError: an endpoint of another kind
        return ""
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")


def _connect(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(PROBE_TIMEOUT_S)
        try:
            peer.connect(endpoint.removeprefix("ipc://"))
        except OSError:
            peer.close()
            raise
        return peer
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S)
