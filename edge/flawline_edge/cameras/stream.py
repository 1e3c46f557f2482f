"""A camera on the network, through OpenCV's FFmpeg: RTSP, or MJPEG over HTTP."""

from __future__ import annotations

import logging
import threading
import time

import cv2

from flawline_edge.cameras.camera import CameraFrame
from flawline_edge.cameras.video import GuardedCapture
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import masked_url
from flawline_inspect.errors import CameraError

__all__ = ["StreamCamera"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


class StreamCamera:
    """`open_timeout_s` and `read_timeout_s` bound the wait for a connection and for a frame.

    Read it continuously: what waits in the connection is older than it looks. A lost stream is opened again
    by the reads after the loss, with pauses from 0.5 to 10 s.
    """

    live = True
    interval_s = 0.0

    def __init__(self, url: str, *, open_timeout_s: float = 5.0, read_timeout_s: float = 3.0) -> None:
        self._url = url
        self._name = masked_url(url)
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._capture: GuardedCapture | None = None
        self._left: threading.Event | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._open_at = 0.0

    def __enter__(self) -> StreamCamera:
        self._capture = self._open(exit_code=2)
        self._left = threading.Event()
        self._pause_s = _FIRST_PAUSE_S
        return self

    def __exit__(self, *exc: object) -> None:
        if self._left is not None:
            self._left.set()
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.close()

    def read(self) -> CameraFrame:
        """Wait for the next frame, BGR (h, w, 3) uint8.

        Raises `CameraError` when none comes within the read timeout, the other side hangs up or cannot be
        reached.
        """
        left = self._left
        if left is None or left.is_set():
            raise CameraError(f"{self._name}: the stream is not entered; read it inside its with block")
        capture = self._capture or self._reopen(left)
        captured, captured_monotonic = wall_clock(), time.monotonic()
        picture = capture.read()
        if picture is None:
            # A capture that failed once answers False at once for ever, and isOpened() stays True: it is of
            # no use.
            capture.close()
            if self._capture is capture:
                self._capture = None
            self._open_at = time.monotonic() + self._next_pause_s()
            silent = time.monotonic() - captured_monotonic >= self._read_timeout_s
            found = f"no frame for {self._read_timeout_s:g} s" if silent else "the stream ended"
            raise CameraError(f"{self._name}: {found}; check the camera and the network")
        self._pause_s = _FIRST_PAUSE_S
        return CameraFrame(picture, captured, captured_monotonic)

    def _reopen(self, left: threading.Event) -> GuardedCapture:
        pause_s = self._open_at - time.monotonic()
        if pause_s > 0 and left.wait(min(pause_s, self._read_timeout_s)):
            raise CameraError(f"{self._name}: the stream was left while it was lost")
        if pause_s > self._read_timeout_s:
            rest_s = pause_s - self._read_timeout_s
            raise CameraError(f"{self._name}: the stream is lost; the next attempt is in {rest_s:.1f} s")
        try:
            capture = self._open(exit_code=1)
        except CameraError:
            self._open_at = time.monotonic() + self._next_pause_s()
            raise
        self._capture = capture
        if left.is_set():  # left while connecting: nobody else knows this capture
            capture.close()
            self._capture = None
        _log.info("%s: connected again", self._name)
        return capture

    def _next_pause_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def _open(self, *, exit_code: int) -> GuardedCapture:
        options = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, max(1, round(1000 * self._open_timeout_s)),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, max(1, round(1000 * self._read_timeout_s)),
            # FFmpeg's decoding threads each hold back one frame, and a frame that is held back is an earlier
            # part.
            cv2.CAP_PROP_N_THREADS, 1,
        ]  # fmt: skip
        capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, options)
        if not capture.isOpened():
            raise CameraError(
                f"{self._name}: no stream there within {self._open_timeout_s:g} s; check address, user, "
                "password and that the camera is on",
                exit_code=exit_code,
            )
        return GuardedCapture(capture)
