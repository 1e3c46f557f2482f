"""What the capture process and the station tell each other: small JSON messages over a pair of connected sockets.

From the station comes one message, the task, and then nothing: the end of the connection says that the camera is to be
released. The other way:

| kind | fields | says |
|---|---|---|
| `opening` | | the camera is being opened |
| `entered` | | it is open |
| `ring` | slots, slot_bytes, and its file descriptor | frames lie in this ring from now on |
| `frame` | seq, slot, captured_monotonic | a frame lies in this slot |
| `repeat` | error | a picture was the same as the last one and is not told of; `error` is null until it counts as frozen |
| `error` | error, exit_code | no frame; the camera is read, or opened, again |
| `log` | level, name, text | a line for the station's log |
| `ended` | | the source was finite and is over |
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import threading
from collections import deque
from typing import Any

from flawline_edge.capture.ring import FrameRing

__all__ = ["MESSAGE_BYTES", "Outbox", "receive"]

MESSAGE_BYTES = 2**16
_MAX_TEXT = 8000
_MAX_WAITING = 256
_FD_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)
_MUST_ARRIVE = ("ring", "ended", "entered")


class Outbox:
    """Sends without ever waiting: what does not fit into the connection goes with the next message.

    A station that does not listen for long loses the oldest of what waits, and sees from the frames' numbers how many.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, bytes, FrameRing | None]] = deque()

    def send(self, kind: str, *, ring: FrameRing | None = None, **fields: object) -> None:
        short = {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
        data = json.dumps({"kind": kind, **short}).encode()
        with self._lock:
            self._waiting.append((kind, data, ring))
            self._send_waiting(socket.MSG_DONTWAIT)
            if len(self._waiting) > _MAX_WAITING:
                oldest = next((each for each in self._waiting if each[0] not in _MUST_ARRIVE), None)
                if oldest is not None:
                    self._waiting.remove(oldest)

    def flush(self) -> None:
        """Wait until all is sent or nobody is there, for the end."""
        with self._lock:
            self._send_waiting(0)

    def _send_waiting(self, flags: int) -> None:
        try:
            while self._waiting:
                _, data, ring = self._waiting[0]
                fds = array.array("i", [ring.fd] if ring is not None else [])
                # Not socket.send_fds, which forgets its flags.
                self._connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [], flags)
                self._waiting.popleft()
        except OSError:  # no room now, or nobody there any more; whoever listens for the end will see that
            return


def receive(connection: socket.socket, timeout_s: float) -> tuple[dict[str, Any], int | None] | None:
    """The next message and the file descriptor that came with it; None after `timeout_s` without one.

    Raises `EOFError` when the other side is gone and everything it sent was received.
    """
    waiting = select.poll()  # select() ends at 1024 handles
    waiting.register(connection, select.POLLIN)
    if not waiting.poll(max(0.0, 1e3 * timeout_s)):
        return None
    try:
        # Not socket.recv_fds, which forgets its flags.
        data, extra, _, _ = connection.recvmsg(MESSAGE_BYTES, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # said once when the other side died with something unread; its messages follow
        return receive(connection, timeout_s)
    except OSError as exc:
        raise EOFError from exc
    if not data:
        raise EOFError
    fds = array.array("i")
    for _, _, handles in extra:
        fds.frombytes(handles)
    try:
        message = json.loads(data)
    except ValueError as exc:
        for fd in fds:
            os.close(fd)
        raise EOFError from exc
    return message, fds[0] if fds else None
