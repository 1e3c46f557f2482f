"""A line without a camera: parts pass at a fixed rate, with what is wrong with each."""

from __future__ import annotations

import threading
import time

from flawline_edge.cameras.camera import CameraFrame, Truth
from flawline_edge.simulation import SimulatedLine
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError

__all__ = ["SimulatedCamera"]


class SimulatedCamera:
    """Part n stands before the camera from n / fps to (n + 1) / fps seconds after entering, read or not.

    Who reads in time gets every part; who comes late gets the part that stands there now, and its index tells
    how many went by. A picture depends on seed and index only. Ends after `parts` pictures.
    """

    live = True
    interval_s = 0.0

    def __init__(self, *, seed: int = 0, defect_rate: float = 0.1, fps: float = 5.0, parts: int | None = None) -> None:
        self._seed = seed
        self._defect_rate = defect_rate
        self._fps = fps
        self._parts = parts
        self._line: SimulatedLine | None = None
        self._left = threading.Event()
        self._start = 0.0
        self._next_index = 0
        self._given = 0

    def __enter__(self) -> SimulatedCamera:
        self._line = SimulatedLine(seed=self._seed, defect_rate=self._defect_rate)
        self._left = threading.Event()
        self._next_index = self._given = 0
        self._start = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()

    def read(self) -> CameraFrame | None:
        """Wait for the next part: (240, 320, 3) BGR uint8 with its truth, captured at the end of the wait.

        Raises `CameraError` once the camera was left, at the latest 0.1 s after.
        """
        line, left = self._line, self._left
        if line is None or left.is_set():
            raise CameraError("the simulated camera is not entered; read it inside its with block")
        if self._parts is not None and self._given >= self._parts:
            return None
        # Times come from the index, not from the last picture: small delays do not add up to a slower line.
        index = max(self._next_index, int((time.monotonic() - self._start) * self._fps))
        part = line.part(index)  # drawn while waiting, so that the drawing is not taken from the deadline
        wait_s = self._start + index / self._fps - time.monotonic()
        if wait_s > 0 and left.wait(wait_s):
            raise CameraError("the simulated camera was left while a part was awaited")
        self._next_index = index + 1
        self._given += 1
        truth = Truth(part.defect, part.mask)
        return CameraFrame(part.picture, wall_clock(), time.monotonic(), f"S{index:06d}", truth)
