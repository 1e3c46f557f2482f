"""The drawing as pixels: rendered once, supersampled, and reduced to twice the nominal resolution.

Parts are layers of premultiplied BGRA, so that shadow and part mix with the belt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_edge.simulation.chance import streaks
from flawline_edge.simulation.drawing import (
    BORE,
    BOSS_RADIUS,
    COUNTERBORE_RADIUS,
    DOWELS,
    DRAWING_SEED,
    NOMINAL_H,
    NOMINAL_W,
    POCKET_XYXY,
    PRINT_XYXY,
    SCREWS,
    draw_plate,
    draw_print,
    draw_screw,
    draw_seal,
)
from flawline_edge.simulation.raster import F32, U8, Patch, Point, f32, u8

__all__ = [
    "BRUSHING_SPARE",
    "SCREW_ANGLES",
    "WORK",
    "Product",
    "product",
    "screw_window",
    "window",
]

WORK = 2
"""Working pixels per nominal pixel: enough for sub-pixel poses and hairline defects."""
SCREW_ANGLES = 12
BRUSHING_SPARE: Final = (96, 256)
"""Rows and columns from which a part's brushing is picked."""

_OVERSAMPLE = 2  # rendered pixels per working pixel
_SCREW_REACH = COUNTERBORE_RADIUS + 1
_SITE_PITCH = 4  # working pixels between places where a defect may lie
_BRUSHING_MEAN = 12  # levels taken off the brushed surface, put back with each part's own brushing


@dataclass(frozen=True, slots=True)
class Product:
    """What all parts share, in working pixels (`WORK` times the nominal ones)."""

    plate: U8  # (h, w, 4) with seal, without screws and print
    unsealed: U8  # (h, w, 4)
    solid: U8  # (h, w), 255 where the part is
    brushed: U8  # (h, w), 255 where the surface is brushed
    brushing: U8  # (h + a, w + b, 4), alpha 0, to be added
    screws: tuple[U8, ...]  # (k, k, 4), one an angle
    screw_disc: NDArray[np.bool_]  # (k, k, 1)
    ink: U8  # (h, w, 4) of the print's window
    sites: NDArray[np.int64]  # (n, 2) x y in nominal pixels, where surface defects may lie
    rim: NDArray[np.int64]  # (n, 2) x y in nominal pixels, along the outline


def window(xyxy: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns of working pixels of a box in nominal ones, cut at the picture's edge."""
    x0, y0, x1, y1 = (max(0, round(side * WORK)) for side in xyxy)
    return slice(y0, y1), slice(x0, x1)


def screw_window(x: float, y: float) -> tuple[slice, slice]:
    return window((x - _SCREW_REACH, y - _SCREW_REACH, x + _SCREW_REACH, y + _SCREW_REACH))


@lru_cache(maxsize=1)
def product() -> Product:
    """The drawing, rendered; the same at every call, and not to be written to."""
    rng = np.random.default_rng(DRAWING_SEED)
    width, height, pitch = NOMINAL_W * WORK, NOMINAL_H * WORK, 1 / (WORK * _OVERSAMPLE)
    sheet = Patch.blank(width * _OVERSAMPLE, height * _OVERSAMPLE, pitch)
    solid = _reduced(draw_plate(sheet, rng) * 255)
    unsealed = _layer(sheet, solid)
    draw_seal(sheet)
    plate = _layer(sheet, solid)
    brushed, sites = _surfaces(solid)
    for picture in (plate, unsealed):
        picture[brushed > 0] -= u8((_BRUSHING_MEAN, _BRUSHING_MEAN, _BRUSHING_MEAN, 0))
    outlines, _ = cv2.findContours((solid > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    x0, y0, x1, y1 = PRINT_XYXY
    return Product(
        plate=plate,
        unsealed=unsealed,
        solid=solid,
        brushed=brushed,
        brushing=_brushing(rng, (height + BRUSHING_SPARE[0], width + BRUSHING_SPARE[1])),
        screws=_screws(sheet),
        screw_disc=_screw_disc(),
        ink=draw_print((x1 - x0) * WORK, (y1 - y0) * WORK, 1 / WORK, rng),
        sites=sites,
        rim=outlines[0][:, 0, :].astype(np.int64) // WORK,
    )


def _reduced(picture: F32) -> U8:
    height, width = (side // _OVERSAMPLE for side in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return u8(np.clip(np.round(small), 0, 255))


def _layer(sheet: Patch, solid: U8) -> U8:
    """The sheet as premultiplied BGRA, whose alpha is also the part's shadow on the belt."""
    shadow = 0.62 * f32(cv2.GaussianBlur(np.roll(solid, (9, 7), (0, 1)), (0, 0), 6))
    colour = _reduced(sheet.colour) * (f32(solid)[..., None] / 255)
    return u8(np.round(np.concatenate([colour, np.maximum(solid, shadow)[..., None]], -1)))


def _screws(sheet: Patch) -> tuple[U8, ...]:
    """The same screw at each angle, opaque, with the ground about it."""
    ground = sheet.around(SCREWS[0], _SCREW_REACH)
    screws = []
    for angle in np.arange(SCREW_ANGLES) * (np.pi / 3 / SCREW_ANGLES):
        patch = replace(ground, colour=ground.colour.copy())
        draw_screw(patch, SCREWS[0], angle)
        opaque = np.full_like(patch.colour[..., :1], 255)
        screws.append(_reduced(np.concatenate([patch.colour, opaque], -1)))
    return tuple(screws)


def _screw_disc() -> NDArray[np.bool_]:
    across = np.arange(-_SCREW_REACH + 0.5 / WORK, _SCREW_REACH, 1 / WORK)
    return (across**2 + across[:, None] ** 2 < (COUNTERBORE_RADIUS - 0.9) ** 2)[..., None]


def _surfaces(solid: U8) -> tuple[U8, NDArray[np.int64]]:
    """Where the part is brushed, (h, w), and the places where surface defects may lie, (n, 2) x y nominal."""
    brushed = u8(cv2.erode(solid, np.ones((13, 13), np.uint8)))
    _clear_disc(brushed, BORE, BOSS_RADIUS + 1)
    for centre in SCREWS:
        _clear_disc(brushed, centre, COUNTERBORE_RADIUS + 0.5)
    for centre in DOWELS:
        _clear_disc(brushed, centre, 5.0)
    sites = brushed.copy()
    left, top, right, bottom = (side * WORK for side in POCKET_XYXY)
    cv2.rectangle(brushed, (left, top), (right, bottom), (0,), -1)
    sites[top:bottom, left:right] = 255
    sites = u8(cv2.erode(sites, np.ones((9, 9), np.uint8)))[::_SITE_PITCH, ::_SITE_PITCH]
    return brushed, np.argwhere(sites > 0)[:, ::-1] * (_SITE_PITCH // WORK)


def _clear_disc(mask: U8, centre: Point, radius: float) -> None:
    """Clear a disc, given in nominal pixels, of a mask in working pixels."""
    fixed = (round(centre[0] * WORK * 16), round(centre[1] * WORK * 16))
    cv2.circle(mask, fixed, round(radius * WORK * 16), (0,), -1, shift=4)


def _brushing(rng: np.random.Generator, shape: tuple[int, int]) -> U8:
    lines = 0.8 * streaks(rng, shape, 70) + 0.6 * streaks(rng, shape, 9)
    levels = u8(np.clip(np.round(4.6 * lines + _BRUSHING_MEAN), 0, 2 * _BRUSHING_MEAN))
    return u8(cv2.merge([levels, levels, levels, np.zeros_like(levels)]))
