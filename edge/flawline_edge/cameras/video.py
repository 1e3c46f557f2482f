"""Video through OpenCV: the guard that device and stream use as well, and the video file as camera."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from flawline_edge.cameras.camera import CameraFrame
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError

__all__ = ["Capture", "GuardedCapture", "VideoCamera"]

_log = logging.getLogger(__name__)

_FALLBACK_FPS = 25.0
_MAX_FPS = 1000.0
"""Above this a file's rate is a time base that somebody wrote into the wrong field, such as 90000."""
_MISSING_SHARE = 0.05
"""Containers estimate their length: a last frame or two may be counted that are not there."""


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def get(self, propId: int, /) -> float: ...
    def set(self, propId: int, value: float, /) -> bool: ...
    def read(self) -> tuple[bool, MatLike]: ...
    def release(self) -> None: ...


class GuardedCapture:
    """A `cv2.VideoCapture` that may be closed while another thread is inside its read.

    Releasing a capture under a running read crashes the process, and that read may take as long as the
    camera's timeout: whoever is in last releases.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._lock = threading.Lock()
        self._closed = False
        self.stamp = 0.0

    def get(self, prop: int) -> float:
        return self._capture.get(prop)

    def read(self) -> NDArray[np.generic] | None:
        """The next picture, BGR (h, w, 3) uint8 or as the camera gives it; None when there is none.

        `stamp` is then the time that came with it, in seconds on the source's clock, 0 where it has none.
        """
        with self._lock:
            ok, picture = (False, None) if self._closed else self._capture.read()
            self.stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3 if ok else 0.0
        # After the lock is free again: between a look inside and the release of the lock, close() could give
        # up on it.
        if self._closed:
            self.close()
        return np.asarray(picture) if ok and picture is not None and picture.size else None

    def close(self) -> None:
        """Release now, or at the end of the read in progress. Never waits."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._capture.release()
            finally:
                self._lock.release()


class VideoCamera:
    """The frames of a video file, one a read, none lost; parts are V000000 and on, and a loop counts on."""

    live = False

    def __init__(self, path: Path, *, fps: float | None = None, loop: bool = False) -> None:
        self.interval_s = 1 / (fps or _FALLBACK_FPS)
        self._path = path
        self._fps = fps
        self._loop = loop
        self._capture: GuardedCapture | None = None
        self._frames = 0
        self._frames_of_pass = 0

    def __enter__(self) -> VideoCamera:
        if not self._path.is_file():
            found = "is no file" if self._path.exists() else "no such file"
            raise CameraError(f"{self._path}: {found}; expected a video", exit_code=2)
        self._capture = self._open(exit_code=2)
        self._frames = 0
        own_fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.interval_s = 1 / (self._fps or (own_fps if 0 < own_fps <= _MAX_FPS else _FALLBACK_FPS))
        return self

    def __exit__(self, *exc: object) -> None:
        if self._capture is not None:
            self._capture.close()
            self._capture = None

    def _open(self, *, exit_code: int) -> GuardedCapture:
        # Absolute, since FFmpeg reads `part:1.mkv` as protocol `part`.
        capture = cv2.VideoCapture(str(self._path.absolute()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise CameraError(
                f"{self._path}: not a video that OpenCV's FFmpeg can open; convert it to H.264 or FFV1",
                exit_code=exit_code,
            )
        self._frames_of_pass = 0
        return GuardedCapture(capture)

    def read(self) -> CameraFrame | None:
        """The next frame, BGR (h, w, 3) uint8; None after the last one, unless looping.

        Raises `CameraError` when the file holds no frame that can be decoded, or has gone when a loop starts
        over.
        """
        if self._capture is None:
            raise CameraError(f"{self._path}: the video is not entered; read it inside its with block")
        captured, captured_monotonic = wall_clock(), time.monotonic()
        picture = self._capture.read()
        if picture is None:
            self._end_pass(self._capture)
            if not self._loop:
                return None
            # Opened anew: seeking to frame 0 lands on the next key frame in some containers.
            self._capture.close()
            self._capture = self._open(exit_code=1)
            captured, captured_monotonic = wall_clock(), time.monotonic()
            picture = self._capture.read()
            if picture is None:
                self._end_pass(self._capture)
                return None
        frame = CameraFrame(picture, captured, captured_monotonic, f"V{self._frames:06d}")
        self._frames += 1
        self._frames_of_pass += 1
        return frame

    def _end_pass(self, capture: GuardedCapture) -> None:
        read = self._frames_of_pass
        if read == 0:
            raise CameraError(f"{self._path}: no frame of this video can be decoded; copy it again", exit_code=2)
        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if promised - read > max(2.0, _MISSING_SHARE * promised):
            _log.warning(
                "%s: ended after %d frames, but promises %d; it is cut off or damaged, copy it again",
                self._path, read, int(promised),
            )  # fmt: skip
