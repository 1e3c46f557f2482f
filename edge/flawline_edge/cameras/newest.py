"""The newest frame of a live camera: a thread that reads without pause, and a slot that holds one frame."""

from __future__ import annotations

import logging
import threading

from flawline_edge.cameras.camera import Camera, CameraFrame
from flawline_inspect.errors import CameraError

__all__ = ["NewestFrame"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
_JOIN_S = 2.0


class _Request:
    """Somebody waits in `get_after`; the reader answers, or a newer frame could overtake the first."""

    __slots__ = ("after", "frame")

    def __init__(self, after: float) -> None:
        self.after = after
        self.frame: CameraFrame | None = None


class NewestFrame:
    """Enters `camera`, reads it in a thread of its own and keeps the newest frame only.

    A camera that fails is read again after 0.2 to 2 s, for as long as it takes. Leaving takes 2 s at most: a
    read that hangs is abandoned with a line in the log. One consumer at a time, by `get` (every frame is a
    part) or `get_after` (a trigger asks for one).
    """

    def __init__(self, camera: Camera) -> None:
        if not camera.live:
            raise ValueError("NewestFrame is for live cameras; it would drop pictures of one that loses none")
        self._camera = camera
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._stop.set()
        self._reset()

    def _reset(self) -> None:
        self._newest: CameraFrame | None = None
        self._requests: list[_Request] = []
        self._read = 0  # frames read
        self._taken = 0  # number of the last frame handed out, from 1
        self._dropped = 0
        self._over = False
        self._error: CameraError | None = None

    def __enter__(self) -> NewestFrame:
        if not self._stop.is_set():
            raise RuntimeError("NewestFrame is entered already")
        self._camera.__enter__()
        self._reset()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._stop,), name="newest-frame", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        try:
            self._camera.__exit__(*exc)
        finally:
            if self._thread is not None:
                self._thread.join(_JOIN_S)
                if self._thread.is_alive():
                    _log.warning("the camera does not return from a read since %g s; its thread is abandoned", _JOIN_S)
                self._thread = None

    def get(self, timeout_s: float) -> CameraFrame | None:
        """The newest frame, once it is newer than the last one handed out.

        None after `timeout_s` seconds without one; at once when the source has ended.
        """
        with self._changed:
            self._changed.wait_for(self._has_news, timeout_s)
            if self._newest is None or self._read == self._taken or self._stop.is_set():
                return None
            self._dropped += self._read - self._taken - 1
            self._taken = self._read
            return self._newest

    def get_after(self, monotonic: float, timeout_s: float) -> CameraFrame | None:
        """The first frame whose capture began at `monotonic` (`time.monotonic()`) or later.

        None after `timeout_s` seconds without one; at once when the source has ended. What passed before is
        not a dropped frame: nobody asked for it.
        """
        request = _Request(monotonic)
        with self._changed:
            if self._newest is not None and self._newest.captured_monotonic >= monotonic:
                self._taken = self._read
                return None if self._stop.is_set() else self._newest
            self._requests.append(request)
            try:
                self._changed.wait_for(lambda: request.frame is not None or self._is_finished(), timeout_s)
            finally:
                if request in self._requests:
                    self._requests.remove(request)
            if request.frame is None and self._over:
                self._taken = self._read  # too old for this trigger, and so for every later one
            return request.frame

    @property
    def dropped(self) -> int:
        """Frames that were replaced by a newer one before `get` came for them."""
        with self._changed:
            return self._dropped

    @property
    def ended(self) -> bool:
        """Whether the source was finite, is over, and its last frame was handed out."""
        with self._changed:
            return self._over and self._taken == self._read

    @property
    def error(self) -> CameraError | None:
        """Why no frames come; None as soon as one does."""
        with self._changed:
            return self._error

    def _has_news(self) -> bool:
        return self._read > self._taken or self._is_finished()

    def _is_finished(self) -> bool:
        return self._over or self._stop.is_set()

    def _watch(self, stop: threading.Event) -> None:
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            try:
                frame = self._camera.read()
            except CameraError as exc:
                self._fail(exc, stop)
            except Exception as exc:  # the top of the thread: whatever it is, the station must learn of it
                error = CameraError(f"the camera failed in a way that is not foreseen: {exc!r}")
                error.__cause__ = exc
                self._fail(error, stop)
            else:
                pause_s = _FIRST_PAUSE_S
                if not self._keep(frame, stop):
                    return
                continue
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _keep(self, frame: CameraFrame | None, stop: threading.Event) -> bool:
        """Put a frame into the slot, None for the end. Returns whether to read on."""
        with self._changed:
            if stop.is_set():  # an abandoned read returned at last; the slot may be the next entering's
                return False
            if self._error is not None:
                _log.info("the camera is back")
            self._error = None
            if frame is None:
                self._over = True
            else:
                self._newest = frame
                self._read += 1
                for request in [r for r in self._requests if frame.captured_monotonic >= r.after]:
                    request.frame = frame
                    self._requests.remove(request)
                    self._taken = self._read
            self._changed.notify_all()
            return frame is not None

    def _fail(self, error: CameraError, stop: threading.Event) -> None:
        with self._changed:
            if stop.is_set():
                return
            if self._error is None:
                _log.warning("the camera is lost: %s", error, exc_info=error.__cause__)
            self._error = error
