"""Objects and textures: whether good pictures share one structure whose places mean something.

An object is looked at whole, and each place is judged by what good parts show there. A texture, such as cloth, sheet or grain, has no
places: it is learnt from crops, so that a step costs the same however large the frame, and every place is judged alike.

`auto` calls good pictures a texture only where two plain measures of their grey values agree, without the brightness that falls off
smoothly over a picture:

- **explained**: the share of their variance, at 8 to 32 cells a side, that the mean of the *other* pictures explains. On the five
  real sets that it was chosen with 0.11 to 0.85, on woven, grained and blank synthetic ones below 0.
- **unevenness**: how much the contrast differs over the cells of one picture (coefficient of variation). A part that lies anywhere on a
  belt shares no mean picture either, but most of its contrast is where it lies. On the same sets 0.54 to 1.2, against 0.04 to 0.22.

In doubt it is an object, which misses nothing but detail; a part that is taken for a texture would lose its places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.frame import FRAME_MULTIPLE

__all__ = ["CROP", "DEFAULT_SIZE", "FoundKind", "Kind", "KindChoice", "kind_of", "texture_size", "tile_hw"]

Kind = Literal["object", "texture"]
KindChoice = Literal["auto", "object", "texture"]

DEFAULT_SIZE = 128
CROP = 128
"""Longest side, in pixels of the frame, of the crops that a texture is learnt from."""
MOST_DEFAULT_SIZE = 512
"""Larger pictures of textures are reduced to this long side unless another is asked for: at 1024 px each picture costs four times."""
MOST_EXPLAINED = 0.05
MOST_UNEVENNESS = 0.3
_CELLS = (8, 16, 32)
_LOOK = 128


@dataclass(frozen=True, slots=True)
class FoundKind:
    """`explained` and `unevenness` as above; NaN where pictures have no contrast to measure."""

    explained: float
    unevenness: float

    @property
    def kind(self) -> Kind:
        is_texture = self.explained < MOST_EXPLAINED and self.unevenness < MOST_UNEVENNESS
        return "texture" if is_texture else "object"

    def note(self) -> str:
        """For the engineer, one sentence."""
        return (
            f"kind {self.kind}: the mean of the other good pictures explains {self.explained:.0%} of one (textures below "
            f"{MOST_EXPLAINED:.0%}), whose contrast differs by {self.unevenness:.0%} from place to place (textures below "
            f"{MOST_UNEVENNESS:.0%}); --kind sets it"
        )


def kind_of(pictures: Sequence[NDArray[np.uint8]]) -> FoundKind:
    """From good pictures, each (h, w, 3) BGR uint8 of any size: they are stretched to one."""
    greys = [
        cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (_LOOK, _LOOK), interpolation=cv2.INTER_AREA).astype(
            np.float32
        )
        for picture in pictures
    ]
    explained = max(_explained(_flat(greys, cells)) for cells in _CELLS)
    return FoundKind(explained, float(np.median([_unevenness(grey) for grey in greys])))


def texture_size(picture_wh: tuple[int, int]) -> int:
    """The default long side of the frame for textures in pictures, or a region of interest, of this size."""
    long_side = max(picture_wh) // FRAME_MULTIPLE * FRAME_MULTIPLE
    return min(MOST_DEFAULT_SIZE, max(DEFAULT_SIZE, long_side))


def tile_hw(frame_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a crop of a texture's frame of (height, width); multiples of 16 where the frame's are."""
    return min(CROP, frame_hw[0]), min(CROP, frame_hw[1])


def _flat(greys: Sequence[NDArray[np.float32]], cells: int) -> NDArray[np.float64]:
    """(n, cells²): reduced, without the light, which is taken for a polynomial of the second degree."""
    y, x = np.mgrid[-1 : 1 : cells * 1j, -1 : 1 : cells * 1j]
    light = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y]).reshape(6, -1).T)[0].T
    rows = np.stack([cv2.resize(grey, (cells, cells), interpolation=cv2.INTER_AREA).ravel() for grey in greys])
    return np.asarray(rows - (rows.astype(np.float64) @ light.T) @ light, np.float64)


def _explained(rows: NDArray[np.float64]) -> float:
    """1 at most; below 0 where the mean of the others is worse than none. NaN without variance."""
    n = len(rows)
    others = (rows.sum(0) - rows) / (n - 1)
    total = float(np.square(rows).sum())
    return 1 - float(np.square(rows - others).sum()) / total if total > 0 else float("nan")


def _unevenness(grey: NDArray[np.float32]) -> float:
    cells = (_CELLS[0], _CELLS[0])
    mean, squares = (cv2.resize(values, cells, interpolation=cv2.INTER_AREA) for values in (grey, grey * grey))
    contrast = np.sqrt(np.maximum(squares - mean * mean, 0))
    usual = float(contrast.mean())
    return float(contrast.std()) / usual if usual > 0 else float("nan")
