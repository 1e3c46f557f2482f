"""A live camera in this process: a thread that reads it without pause into a window of its newest frames."""

from __future__ import annotations

import logging
import threading

from flawline_edge.cameras.camera import Camera, CameraFrame
from flawline_edge.cameras.window import FrameWindow
from flawline_inspect.errors import CameraError

__all__ = ["NewestFrame"]

_log = logging.getLogger(__name__)

_KEPT_FRAMES = 32
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
_JOIN_S = 2.0


class NewestFrame(FrameWindow):
    """Enters `camera` and reads it in a thread of its own: for cameras that a program hands to the station itself.

    A configured camera is captured in a process of its own (`flawline_edge.capture`), which can be ended when a read
    hangs. Here a camera that fails is read again after 0.2 to 2 s, for as long as it takes. Leaving takes 2 s at most:
    a read that hangs is abandoned with a line in the log.
    """

    def __init__(self, camera: Camera) -> None:
        if not camera.live:
            raise ValueError("NewestFrame is for live cameras; it would drop pictures of one that loses none")
        super().__init__(_KEPT_FRAMES)
        self._camera = camera
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __enter__(self) -> NewestFrame:
        if not self._closed:
            raise RuntimeError("NewestFrame is entered already")
        self._camera.__enter__()
        self._open()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._stop,), name="newest-frame", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._stop.set()
            self._close()
        try:
            self._camera.__exit__(*exc)
        finally:
            if self._thread is not None:
                self._thread.join(_JOIN_S)
                if self._thread.is_alive():
                    _log.warning("the camera does not return from a read since %g s; its thread is abandoned", _JOIN_S)
                self._thread = None

    def _watch(self, stop: threading.Event) -> None:
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            try:
                frame = self._camera.read()
            except CameraError as exc:
                self._fail_unless(stop, exc)
            except Exception as exc:  # the top of the thread: whatever it is, the station must learn of it
                error = CameraError(f"the camera failed in a way that is not foreseen: {exc!r}")
                error.__cause__ = exc
                self._fail_unless(stop, error)
            else:
                pause_s = _FIRST_PAUSE_S
                if not self._keep(frame, stop):
                    return
                continue
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _keep(self, frame: CameraFrame | None, stop: threading.Event) -> bool:
        """Put a frame into the window, None for the end. Returns whether to read on."""
        with self._changed:
            if stop.is_set():  # an abandoned read returned at last; the window may be the next entering's
                return False
            if frame is None:
                self._end()
                return False
            self._put(frame.captured_monotonic, lambda: frame)
            return True

    def _fail_unless(self, stop: threading.Event, error: CameraError) -> None:
        with self._changed:
            if not stop.is_set():
                self._fail(error)
