"""A TCP proxy that breaks on purpose: between a station and its broker it stands for a cable, a switch or a firewall.

with TcpProxy(broker.port) as proxy:
    ...connect to proxy.port...
    proxy.black_hole()            # nothing passes any more, and nobody is told
    proxy.heal()                  # what was held back is lost; connections of before stay broken
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

Direction = Literal["both", "to_server", "to_client"]

_LINGER_OFF = b"\1\0\0\0\0\0\0\0"
_CHUNK = 65536
_TICK_S = 0.05
_HELD_BYTES = 1 << 20
"""What may be on its way in one direction; then the sender's own buffers fill, as on a slow link."""


@dataclass
class _Way:
    """One direction of a connection."""

    direction: Direction
    source: socket.socket
    target: socket.socket
    held: deque[tuple[float, bytes]] = field(default_factory=deque)  # with the moment at which it may go on
    ended: bool = False
    broken: bool = False
    """Bytes of it were swallowed: a later one would be read in the wrong place, so none follows."""

    @property
    def held_bytes(self) -> int:
        return sum(len(data) for _, data in self.held)


@dataclass
class _Link:
    client: socket.socket
    server: socket.socket
    ways: tuple[_Way, _Way]


class TcpProxy:
    """Forwards connections to 127.0.0.1 and a port, from a free port of its own. A context manager with one thread.

    What it does wrong holds for connections made before and after, until `heal`.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.accepted = 0
        """Connections so far."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._swallowing: set[Direction] = set()
        self._refusing = False
        self._delay_s = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._thread.join(5.0)
        self._listener.close()
        with self._lock:
            for link in self._links:
                link.client.close()
                link.server.close()
            self._links.clear()

    def black_hole(self, direction: Direction = "both") -> None:
        """Swallow what comes, and a FIN too; with one direction the connection is half of one. New ones are taken and silent."""
        with self._lock:
            self._swallowing |= {"to_server", "to_client"} if direction == "both" else {direction}

    def delay(self, seconds: float) -> None:
        """Everything takes this much longer, in both directions; order is kept."""
        with self._lock:
            self._delay_s = seconds

    def refuse(self) -> None:
        """Reset new connections at once; those that are open go on."""
        with self._lock:
            self._refusing = True

    def cut(self, *, reset: bool = False) -> None:
        """End all open connections, with a FIN to either side or with a reset. New ones are forwarded."""
        with self._lock:
            for link in self._links:
                for each in (link.client, link.server):
                    if reset:
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
                    each.close()
            self._links.clear()

    def heal(self) -> None:
        """Forward again. A connection from which something was swallowed stays silent, as its bytes would make no sense."""
        with self._lock:
            self._swallowing.clear()
            self._refusing = False
            self._delay_s = 0.0

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._links)

    # --- its thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                self._forward_what_is_due()
                readers, writers, wait_s = self._interests()
            with selectors.DefaultSelector() as selector:
                for each in readers | writers:
                    mask = (selectors.EVENT_READ if each in readers else 0) | (
                        selectors.EVENT_WRITE if each in writers else 0
                    )
                    with contextlib.suppress(ValueError, OSError):  # cut meanwhile
                        selector.register(each, mask)
                ready = {key.fileobj for key, events in selector.select(wait_s) if events & selectors.EVENT_READ}
            with self._lock:
                if self._listener in ready:
                    self._accept()
                for link in list(self._links):
                    for way in link.ways:
                        if way.source in ready and link in self._links:
                            self._read(link, way)

    def _interests(self) -> tuple[set[socket.socket], set[socket.socket], float]:
        now, wait_s = time.monotonic(), _TICK_S
        readers, writers = {self._listener}, set()
        for link in self._links:
            for way in link.ways:
                if not way.ended and way.held_bytes < _HELD_BYTES:
                    readers.add(way.source)
                if way.held and way.held[0][0] <= now:
                    writers.add(way.target)
                elif way.held:
                    wait_s = min(wait_s, way.held[0][0] - now)
        return readers, writers, wait_s

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            self.accepted += 1
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.server_port), 1.0)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
                client.close()
                return
            for each in (client, server):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways = (_Way("to_server", client, server), _Way("to_client", server, client))
            self._links.append(_Link(client, server, ways))

    def _read(self, link: _Link, way: _Way) -> None:
        try:
            data = way.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if way.direction in self._swallowing or way.broken:
            way.broken = True
            way.ended = way.ended or not data
            return
        if data:
            way.held.append((time.monotonic() + self._delay_s, data))
        else:
            way.ended = True
            way.held.append((time.monotonic() + self._delay_s, b""))  # the end, behind what is still on its way
        self._forward_what_is_due()

    def _forward_what_is_due(self) -> None:
        now = time.monotonic()
        for link in list(self._links):
            for way in link.ways:
                while way.held and way.held[0][0] <= now and link in self._links:
                    at, data = way.held.popleft()
                    if way.direction in self._swallowing or way.broken:
                        way.broken = True
                        way.held.clear()
                    elif not data:
                        self._close(link)
                    else:
                        rest = self._send(link, way, data)
                        if rest:
                            way.held.appendleft((at, rest))
                            break

    def _send(self, link: _Link, way: _Way, data: bytes) -> bytes:
        """Returns what did not fit."""
        try:
            return data[way.target.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            self._close(link)
            return b""

    def _close(self, link: _Link) -> None:
        for each in (link.client, link.server):
            each.close()
        if link in self._links:
            self._links.remove(link)
