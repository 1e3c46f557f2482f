"""The line: parts by number, good ones and defective ones, each with the truth about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from flawline_edge.simulation.camera_model import CameraModel, Shot
from flawline_edge.simulation.chance import Stream, stream
from flawline_edge.simulation.defects import DEFECT_KINDS, DEFECTS
from flawline_edge.simulation.product import product
from flawline_edge.simulation.raster import F32, U8
from flawline_edge.simulation.workpiece import Workpiece, make_workpiece

__all__ = ["SimulatedLine", "SimulatedPart", "check_whole"]

_SIDE_LIMITS: Final = (64, 2048)
_DEFECT_ATTEMPTS = 8  # a pinhole on black print shows nothing, and is drawn again elsewhere


@dataclass(frozen=True, slots=True)
class SimulatedPart:
    """One part as the camera saw it, and the truth about it.

    `picture` is (H, W, 3), BGR, 0-255; `mask` (H, W), 255 where a defect visibly changes the picture, else 0.
    """

    index: int
    picture: U8
    mask: U8
    defect: str | None

    @property
    def is_defective(self) -> bool:
        return self.defect is not None


class SimulatedLine:
    """An endless line of one product; a part is the same whenever and in whatever order it is asked for.

    `seed` picks the parts, poses, light and noise, never the drawing; `defect_rate` (0-1) is the share of
    defective parts among random ones; `width` and `height` are the camera's, 64 to 2048 pixels.

    >>> SimulatedLine(seed=1).part(7, defect="scratch").picture.shape
    (240, 320, 3)
    """

    def __init__(self, *, seed: int = 0, defect_rate: float = 0.1, width: int = 320, height: int = 240) -> None:
        check_whole("seed", seed)
        if not 0 <= defect_rate <= 1:  # also refuses NaN
            raise ValueError(f"defect_rate is {defect_rate!r}, expected 0 to 1")
        for name, side in (("width", width), ("height", height)):
            check_whole(name, side, *_SIDE_LIMITS)
        self.seed, self.defect_rate, self.width, self.height = seed, defect_rate, width, height
        self._camera = CameraModel(seed, width, height)
        product()  # rendered now, so that the first part is as quick as the others

    def __iter__(self) -> Iterator[SimulatedPart]:
        return map(self.part, itertools.count())

    def part(self, index: int, defect: str | None = "random") -> SimulatedPart:
        """Part number `index`, from 0.

        `defect` is "random" (by the line's defect rate), None (a good part) or one of DEFECT_KINDS: the same
        part with the same pose, light and noise, but for that defect.
        """
        check_whole("index", index)
        if defect == "random":
            defect = self._fate(index)
        elif defect is not None and defect not in DEFECTS:
            raise ValueError(f'defect is {defect!r}, expected "random", None or one of {", ".join(DEFECT_KINDS)}')
        workpiece = make_workpiece(stream(self.seed, index, Stream.PART))
        shot = self._camera.shot(index)
        seen = self._camera.seen(workpiece.image, shot)
        mask = np.zeros((self.height, self.width), np.uint8)
        if defect is not None:
            rng = stream(self.seed, index, Stream.DEFECT + DEFECT_KINDS.index(defect))
            seen, mask = self._damaged(workpiece, defect, rng, seen, shot)
        return SimulatedPart(index, self._camera.exposed(seen, shot), mask, defect)

    def _fate(self, index: int) -> str | None:
        rng = stream(self.seed, index, Stream.FATE)
        kind = DEFECT_KINDS[rng.integers(len(DEFECT_KINDS))]
        return kind if rng.random() < self.defect_rate else None

    def _damaged(
        self, workpiece: Workpiece, defect: str, rng: np.random.Generator, clean: F32, shot: Shot
    ) -> tuple[F32, U8]:
        """What is seen of the workpiece with a defect, and the mask; `clean` is what is seen without."""
        for _ in range(_DEFECT_ATTEMPTS):
            damaged = replace(workpiece, image=workpiece.image.copy())
            drawn = DEFECTS[defect](damaged, rng)
            seen = self._camera.seen(damaged.image, shot)
            mask = self._camera.visible(drawn, clean, seen, shot)
            if mask.any():
                break
        return seen, mask


def check_whole(name: str, value: object, low: int = 0, high: int | None = None) -> None:
    """ValueError when `value` is no whole number from `low` to `high`."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return
    limits = f"from {low}" if high is None else f"from {low} to {high}"
    raise ValueError(f"{name} is {value!r}, expected a whole number {limits}")
