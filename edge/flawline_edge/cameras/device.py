"""A camera at this machine, through Video4Linux."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from flawline_edge.cameras.camera import CameraFrame
from flawline_edge.cameras.video import Capture, GuardedCapture
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError

__all__ = ["DeviceCamera"]

_log = logging.getLogger(__name__)

_SELECT_TIMEOUT_VARIABLE = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"
_SELECT_TIMEOUT_S = 3
_OPENCV_SELECT_TIMEOUT_S = 10


class DeviceCamera:
    """`device` is N of /dev/videoN, or a path such as /dev/v4l/by-id/…, which stays the same when plugged
    elsewhere.

    `width`, `height` (pixels) and `fps` are asked of the driver, which may give something else; that is
    logged. Other systems than Linux are left to what OpenCV finds. `open_capture` stands for
    `cv2.VideoCapture`.
    """

    live = True
    interval_s = 0.0

    def __init__(
        self,
        device: int | str = 0,
        *,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        open_capture: Callable[..., Capture] = cv2.VideoCapture,
    ) -> None:
        self._device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self._name = f"/dev/video{self._device}" if isinstance(self._device, int) else str(self._device)
        self._asked = (
            ("width", cv2.CAP_PROP_FRAME_WIDTH, width),
            ("height", cv2.CAP_PROP_FRAME_HEIGHT, height),
            ("fps", cv2.CAP_PROP_FPS, fps),
        )
        self._open_capture = open_capture
        self._capture: GuardedCapture | None = None
        self._left: threading.Event | None = None
        self._silence_s = float(_SELECT_TIMEOUT_S)

    def __enter__(self) -> DeviceCamera:
        # OpenCV reads it once, at the first wait for a picture; its own 10 s are more than any deadline.
        os.environ.setdefault(_SELECT_TIMEOUT_VARIABLE, str(_SELECT_TIMEOUT_S))
        value = os.environ[_SELECT_TIMEOUT_VARIABLE]
        self._silence_s = float(value) if value.isdecimal() else float(_OPENCV_SELECT_TIMEOUT_S)
        self._capture = self._open(exit_code=2)
        self._left = threading.Event()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._left is not None:
            self._left.set()
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.close()

    def read(self) -> CameraFrame:
        """Wait for the next picture, BGR (h, w, 3) uint8.

        Raises `CameraError` when none comes within OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT seconds (here 3 unless
        set) or the camera is gone; the next read opens it again.
        """
        left = self._left
        if left is None or left.is_set():
            raise CameraError(f"{self._name}: the camera is not entered; read it inside its with block")
        capture = self._capture
        if capture is None:
            capture = self._capture = self._open(exit_code=1)
            if left.is_set():  # left while the driver was opening: nobody else knows this capture
                capture.close()
        captured, captured_monotonic = wall_clock(), time.monotonic()
        picture = capture.read()
        # A driver that timed out, or whose camera was unplugged, may hand out its last picture as if it were
        # new.
        silent = time.monotonic() - captured_monotonic >= self._silence_s
        if picture is None or silent:
            capture.close()
            if self._capture is capture:
                self._capture = None
            found = f"no picture for {self._silence_s:g} s" if silent else "the camera gave no picture"
            raise CameraError(f"{self._name}: {found}; check its cable and power")
        return CameraFrame(picture, captured, captured_monotonic)

    def _open(self, *, exit_code: int) -> GuardedCapture:
        on_linux = sys.platform.startswith("linux")
        if on_linux and not Path(self._name).exists():
            found = ", ".join(_devices()) or "no /dev/video* at all; plug it in, or pass it into the container"
            raise CameraError(f"{self._name}: no camera there; found {found}", exit_code=exit_code)
        if on_linux and not os.access(self._name, os.R_OK | os.W_OK):
            raise CameraError(
                f"{self._name}: may not be opened by this user; add the user to the group video",
                exit_code=exit_code,
            )
        capture = self._open_capture(self._device, cv2.CAP_V4L2 if on_linux else cv2.CAP_ANY)
        if not capture.isOpened():
            raise CameraError(
                f"{self._name}: cannot be opened as a camera; another program may have it, or it is the "
                f"camera's second device, which carries no pictures; found {', '.join(_devices()) or 'none'}",
                exit_code=exit_code,
            )
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a waiting buffer is the previous part
        for _, prop, wanted in self._asked:
            if wanted is not None:
                capture.set(prop, wanted)
        for what, prop, wanted in self._asked:
            if wanted is not None and abs((given := capture.get(prop)) - wanted) > 0.01 * wanted:
                _log.warning("%s: asked for %s %g, the driver gives %g", self._name, what, wanted, given)
        return GuardedCapture(capture)


def _devices() -> list[str]:
    """The Video4Linux devices of this machine, by number."""
    found = [path.name for path in Path("/dev").glob("video*") if re.fullmatch(r"video\d+", path.name)]
    return [f"/dev/{name}" for name in sorted(found, key=lambda name: int(name.removeprefix("video")))]
