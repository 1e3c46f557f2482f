"""Chance that can be repeated: independent streams of random numbers, and textures made of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import cv2
import numpy as np

from flawline_edge.simulation.raster import F32, f32

__all__ = ["Stream", "clouds", "streaks", "stream"]


class Stream(IntEnum):
    """What the numbers are for: who draws more of them for one purpose changes nothing else."""

    PART = 0
    SHOT = 1
    FATE = 2
    PHASE = 3
    LIGHT = 16  # plus 8 a channel and 1 an octave
    DEFECT = 64  # plus 1 a kind


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of part `index` of line `seed` for a purpose, whatever was drawn before."""
    return np.random.default_rng([seed, index, purpose])


def streaks(rng: np.random.Generator, shape: Sequence[int], length: int) -> F32:
    """Brushing along x, mean 0, deviation 1."""
    lines = f32(cv2.blur(rng.standard_normal((shape[0], shape[1]), np.float32), (length, 1)))
    return f32(lines / lines.std())


def clouds(rng: np.random.Generator, shape: Sequence[int], cell: float) -> F32:
    """Smooth noise with features of about `cell` pixels, roughly -1 to 1."""
    coarse = rng.uniform(-1, 1, (max(3, round(shape[0] / cell)), max(3, round(shape[1] / cell))))
    return f32(cv2.resize(f32(coarse), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))
