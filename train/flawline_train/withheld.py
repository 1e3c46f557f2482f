"""Damage that no network is trained on, to find out which errors of the graph see the unexpected.

A network repairs what `flawline_train.corruption` showed it, so that damage of those kinds would praise every error. These five
kinds are never learnt from: faint spots, hairlines, shading, erased detail and twisted places. Real defects are
never used either; an engineer who has some reports with them (`--defects`).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["WITHHELD", "damage"]

Picture = NDArray[np.float32]

VISIBLE = 12 / 255
VISIBLE_SHARE = 0.0015
"""Damage counts when at least this share of the pixels changed by more than `VISIBLE`."""
_TRIES = 30


def _point(rng: np.random.Generator, hw: tuple[int, int]) -> tuple[float, float]:
    """(y, x), a little inside."""
    return float(rng.uniform(0.1, 0.9) * hw[0]), float(rng.uniform(0.1, 0.9) * hw[1])


def _grid(hw: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.mgrid[: hw[0], : hw[1]].astype(np.float32)
    return y, x


def _spot(rng: np.random.Generator, picture: Picture) -> Picture:
    """A soft spot or streak, darker or brighter."""
    hw = picture.shape[:2]
    cy, cx = _point(rng, hw)
    y, x = _grid(hw)
    radii = np.exp(rng.uniform(np.log(0.01), np.log(0.12), 2)) * max(hw)
    angle = rng.uniform(0, np.pi)
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    shape = np.exp(-0.5 * ((along / radii[0]) ** 2 + (across / radii[1]) ** 2))
    return picture * (1 + rng.choice((-1, 1)) * rng.uniform(0.2, 0.9) * shape[..., None])


def _hairline(rng: np.random.Generator, picture: Picture) -> Picture:
    """A line of one pixel that wanders, drawn at twice the size."""
    hw = picture.shape[:2]
    canvas = np.zeros((2 * hw[0], 2 * hw[1]), np.uint8)
    y, x = _point(rng, canvas.shape)
    at, angle, step = np.array([x, y]), rng.uniform(0, 2 * np.pi), max(hw) / 32
    for _ in range(rng.integers(8, 40)):
        to = at + step * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(canvas, tuple(at.astype(int)), tuple(to.astype(int)), 255, max(1, max(hw) // 64), cv2.LINE_AA)
        at, angle = to, angle + rng.normal(0, 0.25)
    line = cv2.resize(canvas, (hw[1], hw[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return picture * (1 + line[..., None] * rng.choice((-1, 1)) * rng.uniform(0.2, 0.7))


def _shading(rng: np.random.Generator, picture: Picture) -> Picture:
    """A box in which the light falls off to one side."""
    hw = picture.shape[:2]
    cy, cx = _point(rng, hw)
    y, x = _grid(hw)
    side, angle = rng.uniform(0.1, 0.3) * max(hw), rng.uniform(0, 2 * np.pi)
    box = (np.abs(x - cx) < side) & (np.abs(y - cy) < side * rng.uniform(0.3, 1))
    slope = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / side
    return picture * (1 + rng.uniform(0.15, 0.4) * (slope * box)[..., None])


def _erased(rng: np.random.Generator, picture: Picture) -> Picture:
    """A patch without its detail, filled from around it."""
    hw = picture.shape[:2]
    y, x = _point(rng, hw)
    axes = np.maximum(2, np.exp(rng.uniform(np.log(0.015), np.log(0.1), 2)) * max(hw)).astype(int)
    mask = np.zeros(hw, np.uint8)
    cv2.ellipse(mask, (int(x), int(y)), (int(axes[0]), int(axes[1])), rng.uniform(0, 180), 0, 360, 1, -1)
    whole = np.clip(picture * 255, 0, 255).astype(np.uint8)
    return cv2.inpaint(whole, mask, 3, cv2.INPAINT_TELEA).astype(np.float32) / np.float32(255)


def _twisted(rng: np.random.Generator, picture: Picture) -> Picture:
    """A disc turned about its middle, less towards its rim."""
    hw = picture.shape[:2]
    cy, cx = _point(rng, hw)
    y, x = _grid(hw)
    radius = rng.uniform(0.05, 0.2) * max(hw)
    turn = rng.choice((-1, 1)) * rng.uniform(0.5, 1.5) * np.clip(1 - np.hypot(x - cx, y - cy) / radius, 0, 1)
    from_x = cx + (x - cx) * np.cos(turn) - (y - cy) * np.sin(turn)
    from_y = cy + (x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
    turned = cv2.remap(
        picture,
        from_x.astype(np.float32),
        from_y.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(turned, np.float32)


WITHHELD: dict[str, Callable[[np.random.Generator, Picture], Picture]] = {
    "spot": _spot,
    "hairline": _hairline,
    "shading": _shading,
    "erased": _erased,
    "twisted": _twisted,
}


def damage(frame: NDArray[np.uint8], kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One good frame (H, W, 3) with damage of a kind of `WITHHELD` that can be seen, wherever the frame lets it be seen.

    On a white background most places show nothing of a brighter spot; places are tried until one does.
    """
    picture = frame.astype(np.float32) / np.float32(255)
    damaged = frame
    for _ in range(_TRIES):
        result = np.clip(WITHHELD[kind](rng, picture), 0, 1)
        damaged = np.rint(result * 255).astype(np.uint8)
        if (np.abs(result - picture).mean(2) > VISIBLE).mean() >= VISIBLE_SHARE:
            break
    return damaged
