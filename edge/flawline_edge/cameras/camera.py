"""What the station knows of a camera: it is entered, it is read, it is left.

>>> with open_camera(config.cameras[0].source) as camera:
...     while (frame := camera.read()) is not None:
...         inspect(frame.picture)
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.config import (
    DeviceSource,
    FolderSource,
    SimulatedSource,
    Source,
    StreamSource,
    VideoSource,
)
from flawline_inspect.errors import CameraError

__all__ = ["Camera", "CameraFrame", "PictureLost", "Truth", "open_camera"]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What a simulator knows of a part: the kind of defect (None: good), and where it can be seen.

    `mask` is (h, w) uint8 in camera pixels, 0 = good.
    """

    defect: str | None
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CameraFrame:
    """One picture, of any shape and type that `flawline_inspect.frame.fit_picture` takes.

    `captured` is the wall clock in seconds since the epoch, for people. `captured_monotonic` is
    `time.monotonic()` just before the read that gave the picture began: a lower bound, so that a frame
    already on its way when a trigger came is never taken for the answer to that trigger. `arrived_monotonic` is when
    the picture was there: a free-running part's time starts then, and not while the camera waited for light.
    `part` is the part's id where the source knows one. `stamp` is the driver's own time of the picture in seconds, on
    whatever clock it has: one that stands still tells of a picture that does.
    """

    picture: NDArray[np.generic]
    captured: float
    captured_monotonic: float
    part: str = ""
    truth: Truth | None = None
    arrived_monotonic: float = field(default_factory=time.monotonic)
    stamp: float | None = None


class PictureLost(CameraError):  # noqa: N818 - the camera is not in error
    """One picture cannot be read, the camera itself goes on: the next `read` gives the next picture."""

    def __init__(self, message: str, *, part: str) -> None:
        super().__init__(message)
        self.part = part


class Camera(Protocol):
    """A source of pictures. Constructing is cheap and touches nothing; entering acquires, leaving releases.

    Entering raises `CameraError` with `exit_code` 2 when there is no such camera. Leaving never waits for a
    `read` that another thread is in: it makes that read end soon where it can, and what the read holds is
    released after it.
    """

    @property
    def live(self) -> bool:
        """True: frames pass whether or not anyone reads, and the newest wins. False: one picture a read, none
        lost."""
        ...

    @property
    def interval_s(self) -> float:
        """Wanted time between the pictures of a camera that is not live; 0 when it paces itself. Ask after
        entering."""
        ...

    def __enter__(self) -> Camera: ...

    def __exit__(self, *exc: object) -> None: ...

    def read(self) -> CameraFrame | None:
        """The next picture; None at the end of a finite source.

        Raises `CameraError` when the camera is lost or silent, and the next read tries to get it back;
        `PictureLost` when only this picture is.
        """
        ...


def open_camera(source: Source) -> Camera:
    """The camera that `cameras[].source` describes, not yet entered."""
    match source:
        case SimulatedSource():
            from flawline_edge.cameras.simulated import SimulatedCamera

            return SimulatedCamera(seed=source.seed, defect_rate=source.defect_rate, fps=source.fps, parts=source.parts)
        case FolderSource():
            from flawline_edge.cameras.folder import FolderCamera

            return FolderCamera(source.path, fps=source.fps, loop=source.loop)
        case VideoSource():
            from flawline_edge.cameras.video import VideoCamera

            return VideoCamera(source.path, fps=source.fps, loop=source.loop)
        case DeviceSource():
            from flawline_edge.cameras.device import DeviceCamera

            return DeviceCamera(
                source.device,
                width=source.width,
                height=source.height,
                fps=source.fps,
                exposure_ms=source.exposure_ms,
                gain=source.gain,
                read_timeout_s=source.read_timeout_s,
            )
        case StreamSource():
            from flawline_edge.cameras.stream import StreamCamera

            return StreamCamera(source.url, open_timeout_s=source.open_timeout_s, read_timeout_s=source.read_timeout_s)
