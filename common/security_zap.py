"""The doorkeeper of a CURVE server: answers libzmq's question "may this key come in?" (RFC 27).

Written here rather than taken from ``zmq.auth``: that thread lets every NULL connection in unless
told otherwise, reads no file again by itself, marks messages with the key instead of its owner, and
ends without a word on an exception, after which nobody can connect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from common.security_clients import WatchedClients

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
REFRESH_S = 1.0
LOG_EVERY_S = 10.0
_POLL_MS = 100
_VERSION = b"1.0"
_KEY_BYTES = 32
_NUM_FRAMES = 7  # version, request id, domain, address, routing id, mechanism, key
_NEVER_CAME_IN = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

OnDenied = Callable[[int], None]
Log = Callable[[str, int], None]


class Doorkeeper:
    """A thread that answers for one server socket until :meth:`close`.

    ``on_denied`` is called with a number of connections refused since the last call, ``log`` at
    most every :data:`LOG_EVERY_S` seconds, both on this thread. Connections that break off before
    they show a key (port scans, other protocols, a wrong server key) count as refused.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        socket: zmq.Socket[Any],
        clients: WatchedClients,
        *,
        on_denied: OnDenied,
        log: Log,
    ) -> None:
        self._clients = clients
        self._on_denied = on_denied
        self._log = log
        self._num_unlogged = 0
        self._log_due_s = 0.0
        self._closing = threading.Event()
        self._zap: zmq.Socket[bytes] = context.socket(zmq.REP, socket_class=zmq.Socket)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ENDPOINT)
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(_NEVER_CAME_IN)
        self._thread = threading.Thread(target=self._serve, name="doorkeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; to be called after the server socket is closed."""
        self._closing.set()
        self._thread.join()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        refresh_due_s = 0.0
        while not self._closing.is_set():
            ready = dict(poller.poll(_POLL_MS))
            now_s = time.monotonic()
            if now_s >= refresh_due_s:
                self._clients.refresh()
                refresh_due_s = now_s + REFRESH_S
            num_denied = 0
            if self._zap in ready:
                num_denied += self._answer_all()
            if self._monitor in ready:
                num_denied += self._count_broken_off()
            self._report(num_denied, now_s)
        self._zap.close()
        self._monitor.close(linger=0)

    def _answer_all(self) -> int:
        """Answer the questions that are there; returns how many keys were refused."""
        num_denied = 0
        try:
            while True:
                frames = self._zap.recv_multipart(zmq.NOBLOCK)
                reply = zap_reply(frames, self._clients)
                self._zap.send_multipart(reply)
                num_denied += reply[2] != b"200"
        except zmq.Again:
            return num_denied

    def _count_broken_off(self) -> int:
        number = 0
        try:
            while True:
                parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                number += 1
        except zmq.Again:
            return number

    def _report(self, num_denied: int, now_s: float) -> None:
        if num_denied:
            self._on_denied(num_denied)
            self._num_unlogged += num_denied
        if self._num_unlogged and now_s >= self._log_due_s:
            self._log("connections were refused", self._num_unlogged)
            self._num_unlogged = 0
            self._log_due_s = now_s + LOG_EVERY_S


def zap_reply(frames: list[bytes], clients: WatchedClients) -> list[bytes]:
    """The answer to one ZAP request: 200 with the user id of a known CURVE key, else 400."""
    request_id = frames[1] if len(frames) > 1 else b""
    is_curve = len(frames) == _NUM_FRAMES and (frames[0], frames[5]) == (_VERSION, b"CURVE")
    if is_curve and len(frames[6]) == _KEY_BYTES:
        client = clients.now.by_key.get(z85.encode(frames[6]))
        if client is not None:
            return [_VERSION, request_id, b"200", b"OK", client.user_id.encode(), b""]
    return [_VERSION, request_id, b"400", b"unknown key", b"", b""]
