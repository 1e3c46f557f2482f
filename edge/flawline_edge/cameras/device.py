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
_READ_TIMEOUT_S = 3
_MANUAL_EXPOSURE = 1.0
"""V4L2_EXPOSURE_MANUAL."""
_EXPOSURE_STEPS_PER_MS = 10
"""V4L2_CID_EXPOSURE_ABSOLUTE counts 100 µs."""
_OUR_CLOCK_S = 10.0
"""A driver's stamp that lies this close to now is on the monotonic clock, as those of V4L2 nearly always are."""


class DeviceCamera:
    """`device` is N of /dev/videoN, or a path such as /dev/v4l/by-id/…, which stays the same when plugged
    elsewhere.

    `width`, `height` (pixels), `fps`, `exposure_ms` and `gain` (in the driver's units) are asked of the driver, which may
    refuse or give something else; that is logged. Other systems than Linux are left to what OpenCV finds, and their
    exposure as it is. `open_capture` stands for `cv2.VideoCapture`.
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
        exposure_ms: float | None = None,
        gain: float | None = None,
        read_timeout_s: int = _READ_TIMEOUT_S,
        open_capture: Callable[..., Capture] = cv2.VideoCapture,
    ) -> None:
        self._device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self._name = f"/dev/video{self._device}" if isinstance(self._device, int) else str(self._device)
        self._on_linux = sys.platform.startswith("linux")
        # What, OpenCV's name for it, the value wanted, and how many of the driver's steps make one.
        self._asked: list[tuple[str, int, float | None, int]] = [
            ("width", cv2.CAP_PROP_FRAME_WIDTH, width, 1),
            ("height", cv2.CAP_PROP_FRAME_HEIGHT, height, 1),
            ("fps", cv2.CAP_PROP_FPS, fps, 1),
            ("gain", cv2.CAP_PROP_GAIN, gain, 1),
        ]
        self._exposure_ms = exposure_ms
        if self._on_linux:
            self._asked.append(("exposure_ms", cv2.CAP_PROP_EXPOSURE, exposure_ms, _EXPOSURE_STEPS_PER_MS))
        self._read_timeout_s = read_timeout_s
        self._open_capture = open_capture
        self._capture: GuardedCapture | None = None
        self._left: threading.Event | None = None

    def __enter__(self) -> DeviceCamera:
        # OpenCV reads it once, at the first wait for a picture of this process; its own 10 s are more than any deadline.
        os.environ[_SELECT_TIMEOUT_VARIABLE] = str(self._read_timeout_s)
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

        A picture that had waited in a buffer of the driver is as old as the driver's stamp says. Raises `CameraError`
        when none comes within `read_timeout_s` or the camera is gone; the next read opens it again.
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
        arrived = time.monotonic()
        silent = arrived - captured_monotonic >= self._read_timeout_s
        if picture is None or silent:
            capture.close()
            if self._capture is capture:
                self._capture = None
            found = f"no picture for {self._read_timeout_s:g} s" if silent else "the camera gave no picture"
            raise CameraError(f"{self._name}: {found}; check its cable and power")
        stamp = capture.stamp
        waited_s = captured_monotonic - stamp if 0 <= arrived - stamp < _OUR_CLOCK_S else 0.0
        if waited_s > 0:
            captured, captured_monotonic = captured - waited_s, captured_monotonic - waited_s
        return CameraFrame(
            picture, captured, captured_monotonic, arrived_monotonic=arrived, stamp=stamp if stamp > 0 else None
        )

    def _open(self, *, exit_code: int) -> GuardedCapture:
        on_linux = self._on_linux
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
        if self._exposure_ms is not None:
            if not on_linux:
                _log.warning("%s: exposure_ms is for Video4Linux and stays as it is here", self._name)
            elif not capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL_EXPOSURE):
                _log.warning("%s: the driver does not switch its automatic exposure off", self._name)
        accepted = [wanted is None or capture.set(prop, wanted * steps) for _, prop, wanted, steps in self._asked]
        for (what, prop, wanted, steps), accepts in zip(self._asked, accepted, strict=True):
            if wanted is None:
                continue
            given = capture.get(prop) / steps
            if given < 0:
                _log.warning("%s: asked for %s %g, the driver has no such setting", self._name, what, wanted)
            elif abs(given - wanted) > max(0.01 * wanted, 0.5 / steps if steps > 1 else 0.0):
                does = "gives" if accepts else "refuses and says"
                _log.warning("%s: asked for %s %g, the driver %s %g", self._name, what, wanted, does, given)
        return GuardedCapture(capture)


def _devices() -> list[str]:
    """The Video4Linux devices of this machine, by number."""
    found = [path.name for path in Path("/dev").glob("video*") if re.fullmatch(r"video\d+", path.name)]
    return [f"/dev/{name}" for name in sorted(found, key=lambda name: int(name.removeprefix("video")))]
