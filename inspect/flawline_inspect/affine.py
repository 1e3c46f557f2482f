"""Affine maps between pictures, and warping by them without aliasing.

A map is six numbers (a, b, c, d, e, f): x' = a x + b y + c, y' = d x + e y + f, in pixel-centre coordinates, in which the
middle of the first pixel is (0, 0). `cv2.warpAffine` counts like this; `cv2.resize` keeps the pictures' outer edges.
"""

from __future__ import annotations

import math
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Affine", "composed", "inverted", "resizing", "similarity", "warp"]

Affine = tuple[float, float, float, float, float, float]

_Pixel = TypeVar("_Pixel", np.uint8, np.float32)

_MAX_SUPERSAMPLING = 4
_MAX_WARP_SIDE = 32_000  # warpAffine's own coordinates end at 32767


def similarity(turn: complex, shift: complex) -> Affine:
    """z → turn z + shift in complex numbers, x + iy: `abs(turn)` is the scale and its phase the angle."""
    return turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag


def resizing(from_wh: tuple[int, int], to_wh: tuple[int, int], left: int = 0, top: int = 0) -> Affine:
    """What `cv2.resize` does from one size to the other, placed at (left, top) of a larger picture."""
    sx, sy = to_wh[0] / from_wh[0], to_wh[1] / from_wh[1]
    return sx, 0.0, (sx - 1) / 2 + left, 0.0, sy, (sy - 1) / 2 + top


def composed(second: Affine, first: Affine) -> Affine:
    """`first`, then `second`."""
    a, b, c, d, e, f = second
    g, h, i, j, k, m = first
    return a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f


def inverted(affine: Affine) -> Affine:
    a, b, c, d, e, f = affine
    det = a * e - b * d
    return e / det, -b / det, (b * f - c * e) / det, -d / det, a / det, (c * d - a * f) / det


def warp(
    picture: NDArray[_Pixel],
    affine: Affine,
    wh: tuple[int, int],
    *,
    border: int = cv2.BORDER_REPLICATE,
    value: float | tuple[float, ...] = 0.0,
) -> NDArray[_Pixel]:
    """The picture, (h, w) or (h, w, c), uint8 or float32, as seen through `affine` in a picture of `wh`, same type.

    Where it shrinks, it is sampled up to 4 times denser than the result and averaged (INTER_AREA), so that each pixel is
    the mean of what it covers, and a single bright pixel leaves a trace; bilinear sampling alone would step over it.
    """
    a, b, _, d, e, _ = affine
    shrink = 1 / math.sqrt(abs(a * e - b * d))
    before = max(1, math.floor(shrink / _MAX_SUPERSAMPLING))
    if before > 1:  # more than the supersampling can take: coarsely first, in the picture's own grid
        height, width = picture.shape[:2]
        reduced_wh = -(-width // before), -(-height // before)
        picture = np.asarray(cv2.resize(picture, reduced_wh, interpolation=cv2.INTER_AREA), picture.dtype)
        affine = composed(affine, inverted(resizing((width, height), reduced_wh)))
    denser = min(_MAX_SUPERSAMPLING, math.ceil(shrink / before - 1e-6), max(1, _MAX_WARP_SIDE // max(wh)))
    dense_wh = wh[0] * denser, wh[1] * denser
    dense = composed(resizing(wh, dense_wh), affine)
    values = (value,) * 4 if isinstance(value, (int, float)) else tuple(value)
    out = cv2.warpAffine(
        picture, np.array(dense).reshape(2, 3), dense_wh, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=values
    )
    if denser > 1:
        out = cv2.resize(out, wh, interpolation=cv2.INTER_AREA)
    return np.asarray(out, picture.dtype)
