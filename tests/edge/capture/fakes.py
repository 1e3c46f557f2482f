"""Cameras for the capture process: each does what a file in its folder says, so that a test can turn it while it runs.

Imported by the child; hence nothing heavy here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline_edge.cameras.camera import CameraFrame, PictureLost, Truth
from flawline_edge.cameras.device import DeviceCamera
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError


class TurnedCamera:
    """A live camera with `fps` (0: as fast as it can). Pictures are (h, w, 3) with noise; parts are C1, C2 and so on.

    `mode` in its folder says what the next read or entering does; `events` there says what was done to the camera.
    """

    live = True
    interval_s = 0.0

    def __init__(self, folder: str, fps: float = 100.0, shape: tuple[int, ...] = (48, 64, 3)) -> None:
        self._folder = Path(folder)
        self._fps = fps
        self._shape = tuple(shape)
        self._random = np.random.default_rng(0)
        self._number = 0
        self._left = threading.Event()
        self._frozen: NDArray[np.generic] | None = None

    def _mode(self) -> str:
        try:
            return (self._folder / "mode").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _note(self, event: str) -> None:
        with (self._folder / "events").open("a", encoding="utf-8") as events:
            events.write(f"{event} {os.getpid()}\n")

    def __enter__(self) -> TurnedCamera:
        mode = self._mode()
        if mode == "hang in opening":
            time.sleep(1000)
        if mode == "absent":
            raise CameraError("no camera there", exit_code=2)
        self._note("entered")
        self._left = threading.Event()
        return self

    def __exit__(self, *exc: object) -> None:
        self._note("left")
        if self._mode() == "hang in leaving":
            time.sleep(1000)
        self._left.set()

    def read(self) -> CameraFrame | None:
        if self._left.wait(1 / self._fps if self._fps else 0.0):
            raise CameraError("left")
        mode = self._mode()
        began, wall = time.monotonic(), wall_clock()
        if mode == "hang":
            time.sleep(1000)
        if mode == "end":
            return None
        if mode == "fail":
            raise CameraError("the cable is out")
        if mode == "lose one":
            raise PictureLost("cannot be decoded", part="C0")
        if mode == "surprise":
            raise RuntimeError("driver bug")
        if mode == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        self._number += 1
        stamp = {"clock": began, "stuck clock": 1.0}.get(mode)
        return CameraFrame(self._picture(mode), wall, began, f"C{self._number}", Truth(None), stamp=stamp)  # type: ignore[arg-type]

    def _picture(self, mode: str) -> object:
        shape = self._shape
        if mode == "None":
            return None
        if mode == "empty":
            return np.zeros((0, 64, 3), np.uint8)
        if mode == "objects":
            return np.array([["pixel"]], dtype=object)
        if mode == "a row":
            return np.zeros(64, np.uint8)
        if mode == "frozen":
            return np.full(shape, 77, np.uint8)
        if mode == "changing":
            shape = (48 + self._number % 7 * 16, 64 + self._number % 5 * 16, 3)
        if mode == "huge":
            shape = (2000, 1500, 3)
        return self._random.integers(0, 256, shape, np.uint8)


class StepCamera:
    """Every frame flat with its own number in it, as fast as it can: a torn one would show two numbers."""

    live = True
    interval_s = 0.0

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = tuple(shape)
        self._number = 0

    def __enter__(self) -> StepCamera:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def read(self) -> CameraFrame:
        began = time.monotonic()
        self._number += 1
        mask = np.full((8, 8), self._number % 251, np.uint8)
        picture = np.full(self._shape, self._number, np.uint32)
        return CameraFrame(picture, wall_clock(), began, f"C{self._number}", Truth("scratch", mask))


class BufferingDriver:
    """`cv2.VideoCapture` of a driver with buffers: it exposes at `fps` whether or not anyone reads, keeps up to
    `buffers` pictures whatever it is asked, and hands out the oldest. Each picture holds the time at which its exposure
    began, and comes with it as its stamp.
    """

    def __init__(self, fps: float, buffers: int) -> None:
        self._period_s, self._buffers = 1 / fps, buffers
        self._filled = threading.Condition()
        self._waiting: list[float] = []
        self._stamp = 0.0

    def __call__(self, device: object, backend: int) -> BufferingDriver:
        threading.Thread(target=self._expose, daemon=True).start()
        return self

    def _expose(self) -> None:
        while True:
            began = time.monotonic()
            time.sleep(self._period_s)
            with self._filled:
                if len(self._waiting) < self._buffers:
                    self._waiting.append(began)
                    self._filled.notify()

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def set(self, propId: int, value: float, /) -> bool:
        return False

    def get(self, propId: int, /) -> float:
        return 1e3 * self._stamp

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        with self._filled:
            self._filled.wait_for(lambda: self._waiting)
            began = self._waiting.pop(0)
        time.sleep(0.6 * self._period_s)  # decoding, while the next picture is exposed already
        self._stamp = began
        return True, np.frombuffer(np.float64(began).tobytes(), np.uint8).reshape(1, 8)

    def release(self) -> None:
        pass


def exposed(picture: NDArray[np.generic]) -> float:
    """When the exposure of a `BufferingDriver`'s picture began."""
    return float(np.frombuffer(picture.tobytes(), np.float64)[0])


def buffering_device(node: str, fps: float, buffers: int) -> DeviceCamera:
    return DeviceCamera(node, open_capture=BufferingDriver(fps, buffers))
