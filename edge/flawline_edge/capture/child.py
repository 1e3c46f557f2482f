"""The capture process: `python -m flawline_edge.capture.child FD`, with its end of the connection as file descriptor FD.

It reads one camera for as long as the other end is there, writes every new picture into the ring and says so. It never
waits for the station, and ends when the station does, however that ends: the camera must be free for the next one.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time

from flawline_edge.cameras.camera import Camera, CameraFrame
from flawline_edge.capture.channel import MESSAGE_BYTES, Outbox
from flawline_edge.capture.frozen import FrozenPicture
from flawline_edge.capture.ring import FrameRing, check_picture, frame_bytes
from flawline_edge.capture.task import LONGEST_RETRY_PAUSE_S, CaptureTask
from flawline_inspect.errors import CameraError

__all__ = ["Capturing", "main"]

_log = logging.getLogger("flawline_edge.capture.child")  # `__name__` is `__main__` here

FIRST_PAUSE_S = 0.2
LEAVE_S = 2.0
"""How long a camera may take to be released before the process ends without."""
_PARENT_POLL_S = 1.0


class Capturing:
    """Reads `camera` until it ends, or until `leave` is called by another thread."""

    def __init__(self, camera: Camera, outbox: Outbox, *, name: str, frozen_after_s: float) -> None:
        self._camera = camera
        self._outbox = outbox
        self._name = name
        self._frozen = FrozenPicture(frozen_after_s)
        self._ring: FrameRing | None = None
        self._seq = 0
        self._pause_s = FIRST_PAUSE_S
        self._leaving = threading.Event()
        self._entered = False
        self._releasing = threading.Lock()

    def run(self) -> None:
        while not self._leaving.is_set():
            self._outbox.send("opening")
            try:
                self._camera.__enter__()
            except Exception as exc:
                self._fail(exc)
                continue
            self._entered = True
            self._outbox.send("entered")
            try:
                self._read_all()
            finally:
                self._release()
            return

    def leave(self) -> None:
        """End the reading soon. Releases the camera under a read that is waiting, which ends that read."""
        self._leaving.set()
        self._release()

    def _release(self) -> None:
        with self._releasing:
            if self._entered:
                self._entered = False
                self._camera.__exit__(None, None, None)

    def _read_all(self) -> None:
        while not self._leaving.is_set():
            try:
                frame = self._camera.read()
                if frame is None:
                    self._outbox.send("ended")
                    return
                check_picture(frame.picture)
                self._tell(frame)
                self._pause_s = FIRST_PAUSE_S
            except Exception as exc:
                if self._leaving.is_set():
                    return
                self._frozen.reopened()
                self._fail(exc)

    def _tell(self, frame: CameraFrame) -> None:
        last = self._ring.last if self._ring is not None else None
        if self._frozen.is_repeat(frame.picture, last, frame.stamp, frame.arrived_monotonic):
            self._outbox.send("repeat", error=self._frozen_text() if self._frozen.frozen else None)
            return
        needed = frame_bytes(frame)
        if self._ring is None or needed > self._ring.slot_bytes:
            ring = self._ring = FrameRing.create(needed)
            self._outbox.send("ring", ring=ring, slots=ring.slots, slot_bytes=ring.slot_bytes)
        self._seq += 1
        slot = self._ring.write(frame, self._seq)
        self._outbox.send("frame", seq=self._seq, slot=slot, captured_monotonic=frame.captured_monotonic)

    def _frozen_text(self) -> str:
        return (
            f"{self._name}: frozen, its picture or the driver's clock has stood still for {self._frozen.after_s:g} s and "
            "more; switch the camera off and on, or set frozen_after_s: 0 if its pictures have no noise"
        )

    def _fail(self, exc: Exception) -> None:
        """Say what is wrong and wait a little, so that a camera that fails at once is not asked without pause."""
        if not isinstance(exc, CameraError):
            _log.error("%s: the camera failed in a way that is not foreseen", self._name, exc_info=exc)
            exc = CameraError(f"{self._name}: the camera failed in a way that is not foreseen: {exc!r}")
        self._outbox.send("error", error=str(exc), exit_code=exc.exit_code)
        self._leaving.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_RETRY_PAUSE_S)


class _ToOutbox(logging.Handler):
    """The station has the log; what is logged here is logged there."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.send("log", level=record.levelno, name=record.name, text=self.format(record))


def main() -> None:
    parent = os.getppid()
    # They go to every process of a terminal or service at once: the station ends first, and this process with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    outbox = Outbox(connection)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger().addHandler(_ToOutbox(outbox))
    data = connection.recv(MESSAGE_BYTES)
    if data:
        task = CaptureTask.from_json(data)
        capturing = Capturing(task.open(), outbox, name=task.name, frozen_after_s=task.frozen_after_s)
        watch = threading.Thread(target=_leave_with_station, args=(connection, parent, capturing), daemon=True)
        watch.start()
        capturing.run()
        outbox.flush()
    sys.stderr.flush()
    os._exit(0)  # without the interpreter's own end, in which a driver's threads and destructors may hang


def _leave_with_station(connection: socket.socket, parent: int, capturing: Capturing) -> None:
    """Ends the process when the station lets go of the connection or is no more."""
    over = select.poll()
    over.register(connection, select.POLLIN)
    while os.getppid() == parent:
        if over.poll(1e3 * _PARENT_POLL_S):
            break
    released = threading.Thread(target=capturing.leave, daemon=True)
    released.start()
    time.sleep(LEAVE_S)  # `main` ends the process earlier unless the camera hangs
    os._exit(1)


if __name__ == "__main__":
    main()
