"""A line that the rig can break: good and defective parts in turn, each named after its kind and the moment it was seen.

Imported by the capture process; hence nothing heavy here.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_edge.cameras.camera import CameraFrame, Truth
from flawline_inspect.clock import wall_clock

GOOD, DEFECTIVE = "G", "D"
LEVEL = {GOOD: 100, DEFECTIVE: 150}
"""What the level model calls 1 and 6, at a threshold of 4."""
NOISE = 3


def part_name(kind: str, captured_monotonic: float) -> str:
    """`G-123456789`: the kind of part, and the moment in ms of the monotonic clock, rounded down."""
    return f"{kind}-{int(1e3 * captured_monotonic)}"


def is_defective(part: str) -> bool:
    return part.startswith(DEFECTIVE)


def captured(part: str) -> float | None:
    """When the part was seen, monotonic s; None for a part without a picture."""
    return (int(part[2:]) + 1) / 1e3 if part[:2] in (f"{GOOD}-", f"{DEFECTIVE}-") else None


class LineCamera:
    """Live, `fps` pictures a second. The file `mode` says what the next read does: stall, freeze, garbage."""

    live = True
    interval_s = 0.0

    def __init__(self, mode: str, fps: float) -> None:
        self._mode = Path(mode)
        self._fps = fps
        self._random = np.random.default_rng(0)
        self._number = 0
        self._left = threading.Event()
        self._last: NDArray[np.uint8] | None = None

    def __enter__(self) -> LineCamera:
        self._left = threading.Event()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()

    def read(self) -> CameraFrame:
        self._left.wait(1 / self._fps)
        mode = read_mode(self._mode)
        if mode == "stall":
            time.sleep(1000)
        began = time.monotonic()
        self._number += 1
        kind = (GOOD, DEFECTIVE)[self._number % 2]
        picture: Any = self._picture(kind)
        if mode == "garbage":
            picture = _GARBAGE[self._number % len(_GARBAGE)]
        elif mode == "freeze" and self._last is not None:
            picture = self._last
        else:
            self._last = picture
        return CameraFrame(picture, wall_clock(), began, part_name(kind, began), Truth(None))

    def _picture(self, kind: str) -> NDArray[np.uint8]:
        noise = self._random.integers(-NOISE, NOISE + 1, (48, 64, 3))
        return (LEVEL[kind] + noise).astype(np.uint8)


_GARBAGE = (
    None,
    np.zeros((0, 64, 3), np.uint8),
    np.array([["pixel"]], dtype=object),
    np.zeros(64, np.uint8),
    np.full((48, 64, 3), np.nan, np.float32),
    np.zeros((48, 64, 7), np.uint8),
)


def read_mode(path: Path) -> str:
    """What a file says; "" without it."""
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        return ""
