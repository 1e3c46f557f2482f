"""Drawing with soft edges: outlines as signed distances, strokes as polylines, light from one side.

Lengths are in nominal pixels: those of a 320x240 picture, origin at its upper left corner. Colours are BGR,
0-255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "F32",
    "U8",
    "Colour",
    "FloatArray",
    "Patch",
    "Point",
    "draw_polyline",
    "f32",
    "towards_light",
    "u8",
    "write",
]

U8: TypeAlias = NDArray[np.uint8]
F32: TypeAlias = NDArray[np.float32]
FloatArray: TypeAlias = NDArray[np.floating[Any]]
Colour: TypeAlias = tuple[float, float, float]
Point: TypeAlias = tuple[float, float]

_LIGHT_TOWARDS: Final = (-0.55, -0.83)  # x y, from the part to the ring light's brightest segment

# Our own strokes, since putText looks different in OpenCV 4 and 5: polylines of digit pairs, x 0-2 and y 0-4.
_STROKES: Final[dict[str, str]] = {
    "0": "0020240400",
    "1": "011014",
    "2": "002022020424",
    "4": "000222,2024",
    "6": "200004242202",
    "7": "002014",
    "A": "0401102124,0222",
    "F": "040020,0212",
    "L": "000424",
    "O": "0020240400",
    "T": "0020,1014",
    "-": "0222",
}


def f32(values: Any) -> F32:
    return np.asarray(values, np.float32)


def u8(values: Any) -> U8:
    return np.asarray(values, np.uint8)


def towards_light(x: F32, y: F32) -> F32:
    """How far a direction points towards the light: for one of length 1, -1 to 1."""
    return f32(x * _LIGHT_TOWARDS[0] + y * _LIGHT_TOWARDS[1])


@dataclass(slots=True)
class Patch:
    """A window of the sheet being drawn on: `colour` is a view, so what is drawn here is drawn there."""

    colour: F32  # (h, w, 3)
    x: F32  # (1, w) nominal
    y: F32  # (h, 1) nominal
    pitch: float  # nominal pixels a pixel

    @classmethod
    def blank(cls, width: int, height: int, pitch: float) -> Patch:
        """A black sheet of `width` by `height` pixels."""
        x = f32((np.arange(width) + 0.5) * pitch)[None, :]
        y = f32((np.arange(height) + 0.5) * pitch)[:, None]
        return cls(np.zeros((height, width, 3), np.float32), x, y, pitch)

    def window(self, x0: float, y0: float, x1: float, y1: float) -> Patch:
        left, right = np.searchsorted(self.x[0], [x0, x1])
        top, bottom = np.searchsorted(self.y[:, 0], [y0, y1])
        cut = self.colour[top:bottom, left:right]
        return Patch(cut, self.x[:, left:right], self.y[top:bottom], self.pitch)

    def around(self, centre: Point, reach: float) -> Patch:
        return self.window(centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)

    def disc(self, centre: Point, radius: float) -> F32:
        """Signed distance to a circle, negative inside (as in all of these)."""
        return f32(np.sqrt((self.x - centre[0]) ** 2 + (self.y - centre[1]) ** 2) - radius)

    def box(self, x0: float, y0: float, x1: float, y1: float, radius: float) -> F32:
        """Signed distance to a box with rounded corners."""
        across = np.abs(self.x - (x0 + x1) / 2) - ((x1 - x0) / 2 - radius)
        along = np.abs(self.y - (y0 + y1) / 2) - ((y1 - y0) / 2 - radius)
        outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(along, 0) ** 2)
        return f32(outside + np.minimum(np.maximum(across, along), 0) - radius)

    def cover(self, distance: F32) -> F32:
        """Share of each pixel inside the outline, 0-1."""
        return f32(np.clip(0.5 - distance / self.pitch, 0, 1))

    def paint(self, cover: FloatArray, tone: Colour | FloatArray) -> None:
        """Mix in a colour, a picture (h, w, 3) or a grey one (h, w)."""
        paint = f32(tone)
        if paint.ndim == 2:
            paint = paint[..., None]
        self.colour += f32(cover)[..., None] * (paint - self.colour)

    def bevel(self, distance: F32, width: float, rise: float, base: float = 158, swing: float = 88) -> None:
        """A chamfer just inside the outline; `rise` is 1 where it falls outwards, -1 where inwards."""
        gx, gy = (cv2.Sobel(distance, cv2.CV_32F, dx, 1 - dx, scale=1 / (8 * self.pitch)) for dx in (1, 0))
        facing = towards_light(f32(gx), f32(gy)) * np.float32(rise)
        tone = base + swing * facing + 40 * np.maximum(facing, 0) ** 6
        self.paint(self.cover(distance) * (1 - self.cover(distance + np.float32(width))), tone)


def draw_polyline(canvas: U8, points: FloatArray, thickness: int) -> None:
    """`points` (N, 2) in the canvas' pixels, x y."""
    fixed = np.round(points * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [fixed], False, (255,), thickness, cv2.LINE_AA, 4)


def write(canvas: U8, text: str, x: float, y: float, height: float, pitch: float, thickness: float) -> None:
    """Draw text with its upper left corner at x y on a canvas of `pitch` nominal pixels a pixel."""
    for place, letter in enumerate(text):
        for line in filter(None, _STROKES.get(letter, "").split(",")):
            pairs = [(int(a), int(b)) for a, b in zip(line[::2], line[1::2], strict=True)]
            points = np.array([(x + (a * 0.25 + place * 0.78) * height, y + b * height / 4) for a, b in pairs])
            draw_polyline(canvas, points / pitch, max(1, round(thickness / pitch)))
