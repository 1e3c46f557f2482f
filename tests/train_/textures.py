"""Textures without a fixed place: woven cloth, brushed grain, noise. Grey, (n, side, side, 3) uint8."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def _pictures(greys: list[NDArray[np.float64]]) -> U8:
    return np.repeat(np.clip(np.stack(greys), 0, 255).astype(np.uint8)[..., None], 3, 3)


def woven(n: int, side: int = 512, seed: int = 0) -> U8:
    """Threads of about eight pixels that begin anywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    out = []
    for _ in range(n):
        begin, period = rng.uniform(0, 2 * np.pi, 2), 8 * rng.uniform(0.98, 1.02)
        threads = np.sin(2 * np.pi * x / period + begin[0]) * np.sin(2 * np.pi * y / period + begin[1])
        out.append(128 + 35 * threads + rng.normal(0, 8, (side, side)))
    return _pictures(out)


def grained(n: int, side: int = 512, seed: int = 0) -> U8:
    """Streaks from top to bottom."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        streaks = cv2.GaussianBlur(rng.normal(0, 1, (side, side)), (0, 0), sigmaX=side / 256, sigmaY=side / 13)
        out.append(120 + 25 * streaks / streaks.std() + rng.normal(0, 5, (side, side)))
    return _pictures(out)


def noise(n: int, side: int = 512, seed: int = 0) -> U8:
    rng = np.random.default_rng(seed)
    return _pictures([rng.normal(128, 20, (side, side)) for _ in range(n)])


def vignetted(pictures: U8) -> U8:
    """The same under a lamp that is brighter in the middle and to one side."""
    side = pictures.shape[1]
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    light = 1 - 0.15 * (x * x + y * y) + 0.1 * x
    return np.clip(pictures * light[..., None], 0, 255).astype(np.uint8)


def with_hole(pictures: U8, share: float, seed: int = 0) -> U8:
    """In each, somewhere, a square of this share of the area in which the threads run together: its mean, and the same noise."""
    rng = np.random.default_rng(seed)
    out = pictures.copy()
    side = round((share * pictures.shape[1] * pictures.shape[2]) ** 0.5)
    for picture in out:
        y, x = rng.integers(side, pictures.shape[1] - 2 * side, 2)
        patch = rng.normal(128, 8, (side, side, 1))
        picture[y : y + side, x : x + side] = np.clip(patch, 0, 255).astype(np.uint8)
    return out
