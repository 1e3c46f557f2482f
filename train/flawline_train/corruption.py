"""Structured corruption: damage that an autoencoder learns to repair.

The idea is that of self-supervised anomaly detection by inpainting-like targets (arXiv 2206.11723, 2511.07233): a shape
x a texture x an opacity with soft edges, laid over a good picture. Shapes are in shares of the picture's side, so that the
same damage can be done to a frame and to a camera picture.

Everything here is NumPy and OpenCV on single pictures (H, W, 3) float32 in 0-1; one takes about a millisecond at 128 px.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["SHAPES", "TEXTURES", "corrupt", "jitter"]

Picture = NDArray[np.float32]
Mask = NDArray[np.float32]

VISIBLE = 0.1
"""Opacity from which a pixel counts as corrupted."""

SHIFT_SHARE = 0.015
"""Jitter: parts come to lie within this share of the picture's side."""
GAIN = 0.05
OFFSET = 0.025


def smooth_noise(rng: np.random.Generator, hw: tuple[int, int]) -> Mask:
    """Noise (H, W) of a random coarseness per axis, mean 0, variance about 1: cloud-like, streaked when they differ."""
    cells = 2 ** rng.integers(1, 6, 2) + 1
    coarse = rng.standard_normal((int(cells[0]), int(cells[1]))).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC), np.float32)


# --- shapes: (rng, (H, W)) -> opacity (H, W) in 0-1 ---------------------------------------------------------------


def _blob(rng: np.random.Generator, hw: tuple[int, int]) -> Mask:
    """Islands of smooth noise inside a disc: stains, missing coating."""
    noise = smooth_noise(rng, hw)
    islands = noise > rng.uniform(0.5, 1.6) * noise.std()
    side = max(hw)
    disc = np.zeros(hw, np.uint8)
    cv2.circle(disc, _point(rng, hw), max(2, round(rng.uniform(0.08, 0.4) * side)), 1, -1)
    return (islands & (disc > 0)).astype(np.float32)


def _scratch(rng: np.random.Generator, hw: tuple[int, int]) -> Mask:
    """A polyline that changes its direction a little at every step: scratches, cracks, hairs."""
    side = max(hw)
    points = [np.array(_point(rng, hw), np.float64)]
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(2, 8)):
        angle += rng.normal(0, 0.4)
        points.append(points[-1] + rng.uniform(0.03, 0.12) * side * np.array([np.cos(angle), np.sin(angle)]))
    canvas = np.zeros(hw, np.uint8)
    thickness = max(1, round(rng.integers(1, 5) * side / 128))
    cv2.polylines(canvas, [np.array(points).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _ellipse(rng: np.random.Generator, hw: tuple[int, int]) -> Mask:
    canvas = np.zeros(hw, np.uint8)
    axes = np.maximum(1, rng.uniform(0.015, 0.15, 2) * max(hw)).astype(int)
    cv2.ellipse(
        canvas,
        _point(rng, hw),
        (int(axes[0]), int(axes[1])),
        rng.uniform(0, 180),
        0,
        360,
        255,
        -1,
        cv2.LINE_AA,
    )
    return canvas.astype(np.float32) / np.float32(255)


def _polygon(rng: np.random.Generator, hw: tuple[int, int]) -> Mask:
    """A turned rectangle with displaced corners: chips, missing pieces, labels gone."""
    sides = np.maximum(2, rng.uniform(0.03, 0.3, 2) * max(hw))
    box = cv2.boxPoints((_point(rng, hw), (float(sides[0]), float(sides[1])), rng.uniform(0, 180)))
    box = box + rng.normal(0, 0.1, box.shape) * sides
    canvas = np.zeros(hw, np.uint8)
    cv2.fillPoly(canvas, [box.astype(np.int32)], 255, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _specks(rng: np.random.Generator, hw: tuple[int, int]) -> Mask:
    """A few dots: pinholes, dust, splashes."""
    canvas = np.zeros(hw, np.uint8)
    for _ in range(rng.integers(1, 6)):
        cv2.circle(canvas, _point(rng, hw), int(rng.integers(1, max(2, max(hw) // 40))), 255, -1, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _point(rng: np.random.Generator, hw: tuple[int, int]) -> tuple[int, int]:
    return int(rng.integers(0, hw[1])), int(rng.integers(0, hw[0]))


SHAPES: dict[str, tuple[float, Callable[[np.random.Generator, tuple[int, int]], Mask]]] = {
    "blob": (0.35, _blob),
    "scratch": (0.25, _scratch),
    "ellipse": (0.125, _ellipse),
    "polygon": (0.125, _polygon),
    "specks": (0.15, _specks),
}
"""Name: (share, function)."""


# --- textures: (rng, picture, another picture) -> what shows through the shape, (H, W, 3) --------------------------


def _elsewhere(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
    """Another place or another picture: right material, wrong place."""
    source = other if rng.random() < 0.5 else picture
    height, width = source.shape[:2]
    source = np.roll(source, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))
    if rng.random() < 0.5:
        source = source[:, ::-1]
    if rng.random() < 0.5:
        source = source[::-1]
    if rng.random() < 0.5:
        source = source * np.float32(rng.uniform(0.5, 1.5)) + np.float32(rng.uniform(-0.2, 0.2))
    return source


def _shifted(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
    """The same place brighter, darker or in another tint: discolouration, wear, shadows of dents."""
    if rng.random() < 0.6:
        return picture + np.float32(rng.uniform(0.08, 0.6) * rng.choice((-1, 1)))
    return picture + rng.uniform(-0.5, 0.5, 3).astype(np.float32)


def _noise(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
    height, width = picture.shape[:2]
    cloud = smooth_noise(rng, (height, width)) * np.float32(rng.uniform(0.1, 0.4))
    grain = rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(0, 0.2))
    tint = rng.uniform(-0.5, 0.5, 3).astype(np.float32) * np.float32(rng.uniform(0, 0.6))
    base = picture.mean((0, 1)).astype(np.float32)
    return (cloud + grain)[..., None] + base + tint


def _flat(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
    """One colour: foreign bodies, blown-out or burnt places."""
    colour = rng.random(3, np.float32) if rng.random() < 0.5 else np.repeat(rng.random(1, np.float32), 3)
    return np.broadcast_to(colour, picture.shape)


TEXTURES: dict[str, tuple[float, Callable[[np.random.Generator, Picture, Picture], Picture]]] = {
    "elsewhere": (0.3, _elsewhere),
    "shifted": (0.3, _shifted),
    "noise": (0.2, _noise),
    "flat": (0.2, _flat),
}
"""Name: (share, function)."""

_SHAPE_SHARES = np.cumsum([share for share, _ in SHAPES.values()])
_TEXTURE_SHARES = np.cumsum([share for share, _ in TEXTURES.values()])


def corrupt(picture: Picture, other: Picture, rng: np.random.Generator) -> tuple[Picture, NDArray[np.uint8]]:
    """Damage one picture (H, W, 3) in 0-1; `other` is another good one of the same shape.

    Returns the damaged picture in 0-1 and the mask (H, W), 1 where it was damaged. The mask may be empty when
    the shape fell outside.
    """
    hw = picture.shape[:2]
    shape = _pick(rng, _SHAPE_SHARES, list(SHAPES.values()))
    texture = _pick(rng, _TEXTURE_SHARES, list(TEXTURES.values()))
    opacity = shape(rng, hw)
    if rng.random() < 0.4:  # soft edges, as out-of-focus dirt and dents have
        blurred = cv2.GaussianBlur(opacity, (0, 0), rng.uniform(0.5, 3.0) * max(hw) / 128)
        opacity = np.asarray(blurred, np.float32)
    opacity = opacity * np.float32(rng.uniform(0.3, 1.0))
    weight = opacity[..., None]
    damaged = picture * (1 - weight) + np.clip(texture(rng, picture, other), 0, 1) * weight
    return damaged.astype(np.float32), (opacity > VISIBLE).astype(np.uint8)


def _pick(
    rng: np.random.Generator,
    shares: NDArray[np.floating],
    choices: list[tuple[float, Callable[..., Picture]]],
) -> Callable[..., Picture]:
    index = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
    return choices[min(index, len(choices) - 1)][1]


def jitter(picture: Picture, rng: np.random.Generator) -> Picture:
    """What one good part differs in from the next: a small shift, gain and offset. (H, W, 3) in 0-1 → the same."""
    height, width = picture.shape[:2]
    shift = rng.uniform(-SHIFT_SHARE, SHIFT_SHARE, 2) * max(height, width)
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    moved = cv2.warpAffine(picture, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    gain, offset = 1 + rng.uniform(-GAIN, GAIN), rng.uniform(-OFFSET, OFFSET)
    return np.asarray(np.clip(moved * gain + offset, 0, 1), np.float32)
