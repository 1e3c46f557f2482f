"""One part before the camera, and the tools to change a spot of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flawline_edge.simulation.chance import clouds
from flawline_edge.simulation.drawing import PRINT_XYXY, SCREWS
from flawline_edge.simulation.product import BRUSHING_SPARE, SCREW_ANGLES, WORK, product, screw_window, window
from flawline_edge.simulation.raster import F32, U8, Colour, FloatArray, Point, f32, u8

__all__ = ["Spot", "Workpiece", "make_workpiece", "nothing", "shifted"]


@dataclass(frozen=True, slots=True)
class Workpiece:
    """One part before the camera: its layer, and its print's window without ink and the ink alone."""

    image: U8  # (h, w, 4) working pixels
    unprinted: U8
    ink: U8

    def apply_ink(self, ink: U8) -> None:
        """Print anew, in place."""
        remaining = 255 - ink[..., 3]
        through = cv2.merge([remaining, remaining, remaining, np.full_like(remaining, 255)])
        ink_only = ink * np.array([1, 1, 1, 0], np.uint8)
        ground = cv2.multiply(self.unprinted, through, scale=1 / 255)
        self.image[window(PRINT_XYXY)] = cv2.add(ground, ink_only)


def make_workpiece(rng: np.random.Generator) -> Workpiece:
    """A good part: the product with its own brushing, screw angles and print position."""
    drawn = product()
    height, width = drawn.solid.shape
    row, column = (int(rng.integers(0, spare)) for spare in BRUSHING_SPARE)
    brushing = drawn.brushing[row : row + height, column : column + width]
    image = drawn.plate.copy()
    cv2.add(drawn.plate, brushing, image, mask=drawn.brushed)
    for (x, y), angle in zip(SCREWS, rng.integers(0, SCREW_ANGLES, len(SCREWS)), strict=True):
        np.copyto(image[screw_window(x, y)], drawn.screws[angle], where=drawn.screw_disc)
    ink = shifted(drawn.ink, *np.clip(rng.normal(0, 0.3, 2), -0.8, 0.8))
    workpiece = Workpiece(image, image[window(PRINT_XYXY)].copy(), ink)
    workpiece.apply_ink(ink)
    return workpiece


def shifted(ink: U8, dx: float, dy: float) -> U8:
    """The ink moved by nominal pixels within its window."""
    move = np.array([[1, 0, dx * WORK], [0, 1, dy * WORK]])
    return u8(cv2.warpAffine(ink, move, ink.shape[1::-1]))


def nothing() -> U8:
    """An empty shape, (h, w) working pixels."""
    return np.zeros_like(product().solid)


class Spot:
    """A square window of the workpiece about a nominal position, with local coordinates in nominal pixels."""

    def __init__(self, workpiece: Workpiece, centre: Point, reach: float) -> None:
        x, y = centre
        self.where = window((x - reach, y - reach, x + reach, y + reach))
        rows, columns = self.where
        self.view = workpiece.image[self.where]
        height, width = self.view.shape[:2]
        self.dx = f32((np.arange(columns.start, columns.start + width) + 0.5) / WORK - x)[None, :]
        self.dy = f32((np.arange(rows.start, rows.start + height) + 0.5) / WORK - y)[:, None]
        self.solid = f32(product().solid[self.where]) / 255

    @property
    def distance(self) -> F32:
        """Nominal pixels from the position, (h, w)."""
        return f32(np.sqrt(self.dx**2 + self.dy**2))

    def blob(self, rng: np.random.Generator, radius: float, roughness: float, stretch: float = 1.0) -> F32:
        """Distance to an irregular outline in nominal pixels, negative inside."""
        turn = rng.uniform(0, np.pi)
        along = (self.dx * np.cos(turn) + self.dy * np.sin(turn)) / stretch
        across = (self.dy * np.cos(turn) - self.dx * np.sin(turn)) * stretch
        coarse, fine = (clouds(rng, self.view.shape, max(2.0, radius * cell * WORK)) for cell in (0.8, 0.35))
        wobble = (0.75 * coarse + 0.4 * fine) * (roughness * radius)
        return f32(np.sqrt(along**2 + across**2) - radius + wobble)

    def blend(self, weight: FloatArray, colour: Colour | FloatArray) -> U8:
        """Mix in a colour, on the part only, and return the shape drawn."""
        weight = weight * self.solid
        under = f32(self.view[..., :3])
        mixed = under + weight[..., None] * (f32(colour) - under)
        self.view[..., :3] = np.clip(np.round(mixed), 0, 255)
        return self.shape(weight)

    def tint(self, weight: FloatArray, gain: Colour, offset: Colour | FloatArray) -> U8:
        """Mix in the part's own colour times `gain` plus `offset`, and return the shape drawn."""
        return self.blend(weight, self.view[..., :3] * f32(gain) + f32(offset))

    def shape(self, weight: FloatArray) -> U8:
        shape = nothing()
        shape[self.where] = (weight > 0.02) * np.uint8(255)
        return shape
