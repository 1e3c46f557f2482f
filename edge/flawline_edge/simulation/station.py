"""What stands still while parts pass: belt, guide rails, ring light and sensor; and how the light ages.

Sizes are in camera pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from flawline_edge.simulation.chance import Stream, clouds, streaks, stream
from flawline_edge.simulation.drawing import DRAWING_SEED, NOMINAL_H
from flawline_edge.simulation.raster import F32, U8, f32, u8

__all__ = ["SPARE", "LightDrift", "Station", "station"]

SPARE = 96
"""Rows and columns of belt and noise from which each picture's own are picked."""

_DRIFT_PERIOD = 170  # parts


@dataclass(frozen=True, slots=True)
class Station:
    belt: U8  # (H, W + SPARE, 3)
    rail: U8  # (r, W, 3), the upper one; the lower is its mirror image
    light: F32  # (H, W, 1) gain
    slant: F32  # (H, W, 1), -1 to 1, what one segment of the ring adds
    noise: F32  # (H + SPARE, W + SPARE, 3), deviation 1


@lru_cache(maxsize=2)
def station(width: int, height: int) -> Station:
    """The station for a camera of this size; the same at every call, and not to be written to."""
    rng = np.random.default_rng([DRAWING_SEED, width, height])
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = 1 - 0.16 * (x**2 + y**2 * 0.6)
    lobe = 0.10 * np.exp(-((x + 0.35) ** 2 + (y + 0.45) ** 2) / 0.5)
    belt = _draw_belt(width + SPARE, height, rng)
    noise = f32(rng.standard_normal((height + SPARE, width + SPARE, 3), np.float32))
    noise = f32(cv2.GaussianBlur(noise, (3, 3), 0.45))  # neighbours share a little, as after demosaicing
    return Station(
        belt=belt,
        rail=_draw_rail(width, height, rng),
        light=f32(vignette + lobe)[..., None],
        slant=f32(0.8 * x - 0.6 * y)[..., None],
        noise=f32(noise / noise.std()),
    )


def _draw_belt(width: int, height: int, rng: np.random.Generator) -> U8:
    """Woven belt (H, W, 3) with lint and swarf trodden into it."""
    shape = (height, width)
    weave = 4.0 * rng.standard_normal(shape, np.float32)
    weave += 3.5 * clouds(rng, shape, 30) + 2.0 * streaks(rng, shape, 80)
    belt = f32((50, 62, 46)) + weave[..., None]
    rows, columns = rng.integers(0, shape, (height * (width - SPARE) // 1500, 2)).T
    belt[rows, columns] += rng.uniform(-14, 26, (len(rows), 1))
    return u8(cv2.blur(np.clip(belt, 0, 255), (2, 1)))


def _draw_rail(width: int, height: int, rng: np.random.Generator) -> U8:
    """The upper guide rail (r, W, 3): worn steel with button-head bolts and a dark gap to the belt."""
    unit = height / NOMINAL_H
    thick = round(16 * unit)
    across = np.interp(np.linspace(0, 1, thick), [0, 0.35, 0.7, 0.78, 0.84, 0.9, 1], [92, 104, 112, 168, 92, 40, 24])
    rail = across[:, None] * (1 + 0.05 * streaks(rng, (thick, width), round(30 * unit) + 1))
    rail += 7 * clouds(rng, (thick, width), 24 * unit)
    colour = u8(np.clip(rail[..., None] * f32((1.02, 1.0, 0.97)), 0, 255))
    for x in np.arange(0.14, 1, 0.24) * width:
        for radius, tone in ((4.6, 50), (3.9, 150), (2.8, 118), (1.7, 36)):
            centre = (round(x * 16), round(5.0 * unit * 16))
            cv2.circle(colour, centre, round(radius * unit * 16), (tone, tone, tone), -1, cv2.LINE_AA, 4)
    return colour


class LightDrift:
    """Slow change of a line's light: a sinusoid, and a wandering that any index can look up."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._phases = stream(seed, 0, Stream.PHASE).uniform(0, 2 * np.pi, 3)

    def __call__(self, index: int, channel: int) -> float:
        """-0.06 to 0.06; brightness, warmth and slant are channels 0, 1 and 2."""
        drift = 0.03 * np.sin(2 * np.pi * index / _DRIFT_PERIOD + self._phases[channel])
        for octave, (spacing, step) in enumerate(((24, 0.006), (96, 0.012))):
            knot, rest = divmod(index, spacing)
            purpose = Stream.LIGHT + 8 * channel + octave
            a, b = (stream(self._seed, knot + k, purpose).normal(0, step) for k in (0, 1))
            drift += a + (b - a) * rest / spacing
        return float(np.clip(drift, -0.06, 0.06))
