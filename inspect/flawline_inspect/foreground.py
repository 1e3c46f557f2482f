"""Which pixels are the part: what differs from the background that the picture's border shows.

The background is a plane of brightness fitted to the border, robustly, so that light that falls off to one side and a
part that touches the border do not matter; Otsu's threshold (1979) on the distance from it separates the part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Foreground", "find_foreground"]

_BORDER = 3
_FIT_ROUNDS = 4
_RIDGE = np.diag([1e-6, 1e-3, 1e-3])  # a border that shows too little of the background leaves the slopes open
_OUTLIER = 2.5  # times the median deviation
_CLOSING = np.ones((5, 5), np.uint8)


@dataclass(frozen=True, slots=True)
class Foreground:
    """The part's largest connected region, holes filled. Lengths in pixels of the picture.

    `contrast`: mean distance in grey values (0-255) between it and the background.
    """

    centre: complex
    area: float
    contrast: float
    mask: NDArray[np.uint8]
    """(h, w), 0 and 1."""


def find_foreground(grey: NDArray[np.float32]) -> Foreground | None:
    """The foreground of a picture (h, w) in grey values, or None when it has none at all."""
    distance = np.abs(cv2.GaussianBlur(grey, (3, 3), 0) - _background(grey))
    steps = np.clip(np.rint(distance), 0, 255).astype(np.uint8)
    _, binary = cv2.threshold(steps, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    binary = np.asarray(cv2.morphologyEx(binary, cv2.MORPH_CLOSE, _CLOSING), np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    mask = np.zeros(grey.shape, np.uint8)
    cv2.drawContours(mask, [largest], -1, 1, cv2.FILLED)
    moments = cv2.moments(mask, binaryImage=True)
    area = moments["m00"]
    centre = complex(moments["m10"] / area, moments["m01"] / area)
    return Foreground(centre, area, float(distance[(mask & binary) > 0].mean()), mask)


def _background(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """A plane through the brightness of the border's pixels, (h, w); those that lie far off it are left out."""
    height, width = grey.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    edges = [(slice(None, _BORDER), slice(None)), (slice(-_BORDER, None), slice(None))]
    edges += [(slice(_BORDER, -_BORDER), slice(None, _BORDER)), (slice(_BORDER, -_BORDER), slice(-_BORDER, None))]
    values, xs, ys = (
        np.concatenate([np.broadcast_to(array, grey.shape)[edge].ravel() for edge in edges]) for array in (grey, x, y)
    )
    design = np.stack([np.ones_like(values), xs, ys])
    plane = np.array([np.median(values), 0, 0], np.float32)
    for _ in range(_FIT_ROUNDS):
        off = np.abs(values - plane @ design)
        near = design * (off <= max(1.0, _OUTLIER * 1.4826 * float(np.median(off))))
        plane = np.linalg.solve((near @ design.T).astype(np.float64) + _RIDGE, near @ values).astype(np.float32)
    return np.asarray(plane[0] + plane[1] * x + plane[2] * y, np.float32)
