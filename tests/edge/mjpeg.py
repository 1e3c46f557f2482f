"""An MJPEG server that stalls and hangs up on command: a network camera for tests."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Generator
from contextlib import contextmanager

import cv2
import numpy as np


class MjpegServer(http.server.ThreadingHTTPServer):
    """20 frames a second of rising grey, until `stalled` or `hung_up` is set."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.stalled, self.hung_up = threading.Event(), threading.Event()
        self.grey, self.connections = 0, 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.hung_up.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MjpegServer

    def do_GET(self) -> None:
        server = self.server
        server.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        self.end_headers()
        try:
            while not server.hung_up.wait(0.05):
                if server.stalled.is_set():
                    continue
                server.grey = (server.grey + 4) % 256
                jpeg = cv2.imencode(".jpg", np.full((32, 48, 3), server.grey, np.uint8))[1].tobytes()
                head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:
            pass  # the client has gone

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(port: int = 0) -> Generator[MjpegServer, None, None]:
    server = MjpegServer(port)
    try:
        yield server
    finally:
        server.close()
