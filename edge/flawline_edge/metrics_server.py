"""The page that Prometheus reads: one thread that answers one request after the other.

Not a thread a request, as Prometheus' own server has it: whoever may connect could open as many as the memory holds. Here
a reader that dawdles is hung up on, and the next one waits.
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from flawline_inspect.errors import ConfigError

__all__ = ["MetricsServer"]

_log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""A client that neither sends nor takes for this long is hung up on."""
_JOIN_S = 5.0


class MetricsServer:
    """A context manager; `port` is the one it listens on. Raises `ConfigError` on entering where it cannot."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.port = port
        self._host = host
        self._registry = registry
        self._server: WSGIServer | None = None
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    def __enter__(self) -> MetricsServer:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        kind = type("Server", (_Server,), {"address_family": family})
        try:
            server = kind((self._host, self.port), _Handler)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"metrics.port: {self.port} on {self._host} is in use by another program; take another one for this "
                    "station, or 0 to switch metrics off"
                ) from exc
            raise ConfigError(f"metrics: cannot listen on {self._host}, port {self.port} ({exc})") from exc
        server.set_app(make_wsgi_app(self._registry))
        self.port = server.server_port
        self._server = server
        self._thread.start()
        _log.info("metrics on http://%s:%d/metrics", self._host, self.port)
        return self

    def __exit__(self, *exc: object) -> None:
        server = self._server
        assert server is not None
        # `shutdown` waits for the request in work, which may dawdle; a stopping station does not.
        stopper = threading.Thread(target=server.shutdown, name="metrics-stop", daemon=True)
        stopper.start()
        stopper.join(_JOIN_S)
        server.server_close()

    def _serve(self) -> None:
        assert self._server is not None
        self._server.serve_forever(poll_interval=0.2)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


class _Server(WSGIServer):
    request_queue_size = 8

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name server for the host's full name, which can take half a minute.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a reader of the metrics was not served", exc_info=True)
