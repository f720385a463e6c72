"""/metrics, /healthz and /readyz of one process, served off the data path."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.errors import FatalError
from common.metrics import Metrics


class HealthServer:
    """An HTTP server on 127.0.0.1 with three read-only pages."""

    def __init__(self, port: int, metrics: Metrics, is_ready: Callable[[], bool]) -> None:
        handler = _handler(metrics, is_ready)
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            raise FatalError(
                f"metrics_port {port} cannot be used: {error.strerror} "
                "(set another port, or 0 for a free one)"
            ) from None
        self._server.daemon_threads = True
        # closing waits for the next poll, so the default of 0.5 s would delay every exit
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="health", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is really bound."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(metrics: Metrics, is_ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
            elif self.path == "/healthz":
                self._answer(200, b"alive\n")
            elif self.path == "/readyz":
                ready = is_ready()
                self._answer(200 if ready else 503, b"serving\n" if ready else b"starting\n")
            else:
                self._answer(404, b"known: /metrics /healthz /readyz\n")

        def _answer(self, code: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a log line."""

    return Handler
