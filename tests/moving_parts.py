"""Parts that lie anywhere, drawn at any pose: what the tests of alignment look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

LENGTH, HEIGHT = 150, 50
"""Of a key lying level, in pixels."""


@dataclass(frozen=True)
class Pose:
    angle: float = 0.0
    """Degrees, clockwise on the screen."""
    centre: tuple[float, float] = (120.0, 120.0)
    scale: float = 1.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the level key, from its middle, comes to lie in the picture."""
        turn = self.scale * complex(math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle)))
        z = turn * complex(x, y) + complex(*self.centre)
        return z.real, z.imag


def key(print_: str = "A7", *, cut: float = 0.0, spots: tuple[tuple[float, float], ...] = ()) -> U8:
    """A level key with a round head at its left, teeth and a print, (2 HEIGHT, LENGTH + HEIGHT) grey; 255 is background.

    `cut`: share of its length that is broken off at the right. `spots`: bright defects, from its middle.
    """
    height, width = 2 * HEIGHT, LENGTH + HEIGHT
    out = np.full((height, width), 255, np.uint8)
    x0, y0 = (width - LENGTH) // 2, height // 2
    cv2.rectangle(out, (x0 + 20, y0 - 10), (x0 + LENGTH, y0 + 10), 70, -1)
    cv2.circle(out, (x0 + 25, y0), 25, 60, -1)
    cv2.circle(out, (x0 + 12, y0), 6, 250, -1)
    for i, tooth in enumerate((16, 12, 18, 14)):
        cv2.rectangle(out, (x0 + 70 + 20 * i, y0), (x0 + 78 + 20 * i, y0 + tooth), 70, -1)
    cv2.putText(out, print_, (x0 + 20, y0 + 8), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 170, 2, cv2.LINE_AA)
    if cut:
        out[:, round(x0 + LENGTH * (1 - cut)) :] = 255
    for x, y in spots:
        cv2.circle(out, (round(width / 2 + x), round(height / 2 + y)), 4, 250, -1)
    return out


def scene(part: U8, pose: Pose, seed: int = 0, *, wh: tuple[int, int] = (240, 240), light: float = 1.0) -> U8:
    """The part at a pose on a grey table whose light falls off to one side, with camera noise: (h, w, 3) BGR."""
    width, height = wh
    angle = math.radians(pose.angle)
    turn = pose.scale * complex(math.cos(angle), math.sin(angle))
    shift = complex(*pose.centre) - turn * complex((part.shape[1] - 1) / 2, (part.shape[0] - 1) / 2)
    affine = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    placed = cv2.warpAffine(part, affine, wh, flags=cv2.INTER_LINEAR, borderValue=(255,)).astype(np.float32)
    table = 200 + 15 * np.linspace(-1, 1, width)[None, :] + 8 * np.linspace(-1, 1, height)[:, None]
    noise = np.random.default_rng(seed).normal(0, 2, (height, width))
    grey = np.clip(light * (placed / 255 * table) + noise, 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)


def poses(n: int, seed: int = 0, *, turn: float = 180.0, wander: float = 20.0, zoom: float = 0.0) -> list[Pose]:
    """Random poses: up to `turn` degrees and `wander` pixels from level and the middle, sizes within 1 +- `zoom`."""
    rng = np.random.default_rng(seed)
    return [
        Pose(
            float(rng.uniform(-turn, turn)),
            (120 + float(rng.uniform(-wander, wander)), 120 + float(rng.uniform(-wander, wander))),
            float(rng.uniform(1 - zoom, 1 + zoom)),
        )
        for _ in range(n)
    ]


def scenes(n: int, seed: int = 0, **spread: float) -> list[U8]:
    """Good parts at random poses."""
    return [scene(key(), pose, seed + i) for i, pose in enumerate(poses(n, seed, **spread))]


def disc(design: str) -> U8:
    """A round cap, (140, 140) grey, with one of two prints: `text` or `wedges`."""
    out = np.full((140, 140), 255, np.uint8)
    cv2.circle(out, (70, 70), 60, 50, -1, cv2.LINE_AA)
    if design == "text":
        cv2.putText(out, "PUSH", (22, 82), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 240, 5, cv2.LINE_AA)
    else:
        cv2.fillPoly(out, [np.array([[70, 70], [35, 25], [62, 14]]), np.array([[70, 70], [78, 126], [105, 115]])], 240)
        cv2.circle(out, (40, 90), 9, 240, -1, cv2.LINE_AA)
    return out
