"""The product's drawing: one gearbox cover, and the places of all that is fitted to it.

Lengths are in nominal pixels, colours BGR, 0-255.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from flawline_edge.simulation.chance import clouds, streaks
from flawline_edge.simulation.raster import (
    F32,
    U8,
    Colour,
    Patch,
    Point,
    draw_polyline,
    f32,
    towards_light,
    u8,
    write,
)

__all__ = [
    "BORE",
    "BOSS_RADIUS",
    "COUNTERBORE_RADIUS",
    "DOWELS",
    "DRAWING_SEED",
    "NOMINAL_H",
    "NOMINAL_W",
    "POCKET_XYXY",
    "PRINT_XYXY",
    "SCREWS",
    "SEAL_RADII",
    "draw_plate",
    "draw_print",
    "draw_screw",
    "draw_seal",
]

NOMINAL_W, NOMINAL_H = 320, 240
DRAWING_SEED = 7341
"""The product's own, whatever the line's: another line makes the same product."""
SCREWS: Final[tuple[Point, ...]] = ((56, 54), (56, 186), (178, 52), (178, 188), (264, 186), (263, 64))
COUNTERBORE_RADIUS = 10.5
BORE: Final[Point] = (116, 120)
BOSS_RADIUS = 57
SEAL_RADII: Final = (35.5, 43.5)
DOWELS: Final[tuple[Point, ...]] = ((116, 48.5), (116, 191.5))
POCKET_XYXY: Final = (186, 79, 273, 124)
PRINT_XYXY: Final = (180, 72, 280, 178)
"""With room for a print beside its place."""

_METAL: Colour = (172, 171, 167)
_COAT: Colour = (128, 84, 38)
_SEAL: Colour = (52, 66, 148)
_DARK: Colour = (26, 25, 24)
_SCREW_RADIUS = 8.3


def _turned(patch: Patch, centre: Point, rng: np.random.Generator, tone: float) -> F32:
    """A lathe's face: fine rings, and the bow tie of light that they reflect."""
    across, along = patch.x - centre[0], patch.y - centre[1]
    radius = np.sqrt(across**2 + along**2)
    rings = np.interp(radius, np.arange(0, 120, 0.35), rng.normal(0, 6.0, 343))
    facing = towards_light(across, along) / (radius + 1)
    sideways = towards_light(-along, across) / (radius + 1)
    return f32(tone - 14 + rings + 66 * np.abs(facing) ** 6 + 34 * np.abs(sideways) ** 14)


def draw_plate(sheet: Patch, rng: np.random.Generator) -> F32:
    """Draw the cover and bearing, without seal, screws and print; returns the coverage (h, w), 0-1."""
    shape = sheet.colour.shape
    poka_yoke = f32((sheet.x - sheet.y - 221) / np.sqrt(2))
    outline = np.maximum(np.maximum(sheet.box(38, 36, 282, 204, 13), poka_yoke), -sheet.disc((221, 205), 9))
    lobe = np.exp(-(((sheet.x - sheet.y * 0.35 - 150) / 75) ** 2))
    brushing = 3.0 * streaks(rng, shape, int(46 / sheet.pitch)) + 2.2 * clouds(rng, shape, 400)
    sheet.colour += f32(_METAL) + f32(22 * lobe - 9 + brushing)[..., None]
    sheet.bevel(outline, 2.8, 1)
    _draw_boss(sheet, rng)
    _draw_pocket(sheet, rng)
    for centre in SCREWS:
        _draw_hole(sheet, centre, COUNTERBORE_RADIUS)
    for centre in DOWELS:
        _draw_hole(sheet, centre, 4.0)
    return sheet.cover(outline)


def _draw_boss(sheet: Patch, rng: np.random.Generator) -> None:
    """The turned boss around the bore, with the groove for the seal and the bearing."""
    boss = sheet.around(BORE, 62)
    rim = boss.disc(BORE, 0)
    contact_shadow = 0.4 * np.exp((BOSS_RADIUS - rim) / 2.2) * (rim > BOSS_RADIUS)
    boss.paint(f32(contact_shadow), (60, 60, 60))
    boss.paint(boss.cover(rim - BOSS_RADIUS), _turned(boss, BORE, rng, 158))
    boss.bevel(rim - BOSS_RADIUS, 2.0, 1)
    boss.bevel(rim - 45, 1.3, -1)
    boss.paint(boss.cover(rim - SEAL_RADII[1]), (112, 113, 112))
    boss.paint(boss.cover(rim - SEAL_RADII[1]) * np.exp(-np.abs(rim - SEAL_RADII[1]) / 1.6), (42, 42, 42))
    boss.paint(boss.cover(rim - SEAL_RADII[0]), _turned(boss, BORE, rng, 150))
    boss.bevel(rim - SEAL_RADII[0], 1.3, 1)
    # The bearing: outer race, shield, inner race, and the hole for the shaft.
    boss.paint(boss.cover(rim - 29.5), _DARK)
    boss.paint(boss.cover(rim - 28.4), _turned(boss, BORE, rng, 176))
    boss.bevel(rim - 28.4, 1.0, 1, base=170)
    boss.paint(boss.cover(rim - 23.4), (58, 52, 46))
    shield = 10 * np.cos((rim - 19) * 0.55) + 8
    boss.paint(boss.cover(rim - 22.8), f32(shield)[..., None] + f32((62, 55, 48)))
    boss.bevel(rim - 22.8, 1.6, -1, base=60, swing=38)
    boss.paint(boss.cover(rim - 15.4), _DARK)
    boss.paint(boss.cover(rim - 14.8), _turned(boss, BORE, rng, 180))
    boss.bevel(rim - 10.6, 1.2, -1, base=120)
    boss.paint(boss.cover(rim - 9.6), (30, 32, 29))
    boss.paint(boss.cover(boss.disc((117.2, 121.8), 7.2)) * boss.cover(rim - 9.2), (46, 52, 42))


def _draw_pocket(sheet: Patch, rng: np.random.Generator) -> None:
    """The coated pocket: its walls towards the light throw a shadow inside."""
    pocket = sheet.window(182, 74, 280, 130)
    wall = pocket.box(188, 81, 271, 122, 7)
    pocket.paint(pocket.cover(wall), _COAT)
    depth = 0.55 * np.exp((81 - pocket.y) / 2.6) + 0.4 * np.exp((188 - pocket.x) / 2.6)
    grain = 3.0 * clouds(rng, pocket.colour.shape, 5) + 7 * (pocket.x - 230) / 40
    pocket.colour += (pocket.cover(wall) * grain)[..., None]
    pocket.paint(pocket.cover(wall) * np.clip(depth, 0, 0.7), (30, 22, 14))
    pocket.bevel(wall - 1.8, 1.8, -1)


def _draw_hole(sheet: Patch, centre: Point, radius: float) -> None:
    """A counterbore with the dark hole in its floor."""
    hole = sheet.around(centre, radius + 2)
    wall, bottom = hole.disc(centre, radius), hole.disc(centre, radius * 0.52)
    hole.bevel(wall - 1.1, 1.1, -1)
    hole.paint(hole.cover(wall), (104, 104, 103))
    hole.paint(hole.cover(wall) * np.exp(np.minimum(wall, 0) / 1.5) * 0.8, (34, 34, 34))
    hole.paint(hole.cover(bottom), _DARK)
    hole.bevel(bottom - 0.8, 0.8, -1, base=96, swing=60)


def draw_seal(sheet: Patch) -> None:
    ring = sheet.around(BORE, SEAL_RADII[1] + 2)
    rim = ring.disc(BORE, 0)
    inner, outer = SEAL_RADII
    middle, half = (inner + outer) / 2, (outer - inner) / 2
    lift = (rim - middle) / half  # -1 at the inner, 1 at the outer edge of the cord
    across, along = (ring.x - BORE[0]) / (rim + 1), (ring.y - BORE[1]) / (rim + 1)
    facing = lift * towards_light(across, along)
    body = 0.5 + 0.5 * np.sqrt(np.clip(1 - lift**2, 0, 1)) + 0.25 * facing
    tone = f32(_SEAL) * body[..., None] + 70 * np.clip(facing, 0, 1)[..., None] ** 3
    ring.paint(ring.cover(f32(np.abs(rim - middle) - half + 0.5)), f32(tone))


def draw_screw(patch: Patch, centre: Point, angle: float) -> None:
    """A zinc-plated cap screw in its counterbore, its six-lobed socket turned by `angle` radians."""
    rim = patch.disc(centre, 0)
    across, along = patch.x - centre[0], patch.y - centre[1]
    sheen = 1 - 0.10 * (across * 0.6 + along * 0.8) / _SCREW_RADIUS - 0.10 * (rim / _SCREW_RADIUS) ** 2
    patch.paint(patch.cover(rim - _SCREW_RADIUS), f32(sheen)[..., None] * f32((188, 194, 192)))
    patch.bevel(rim - _SCREW_RADIUS, 1.7, 1, base=150, swing=80)
    lobes = f32(rim - 3.7 * (1 + 0.15 * np.cos(6 * (np.arctan2(along, across) - angle))))
    patch.paint(patch.cover(lobes - 0.5) * np.float32(0.5), (110, 110, 110))
    patch.paint(patch.cover(lobes), (34, 33, 32))


def draw_print(width: int, height: int, pitch: float, rng: np.random.Generator) -> U8:
    """Pad print and laser marks as premultiplied BGRA (h, w, 4), from the corner of PRINT_XYXY."""
    white, black, orange = (np.zeros((height, width), np.uint8) for _ in range(3))
    turns = np.linspace(0, 2 * np.pi, 7)
    for radius, thickness in ((10.5, 2.0), (4.2, 3.0)):
        hexagon = np.stack([28 + radius * np.cos(turns), 29.5 + radius * np.sin(turns)], 1)
        draw_polyline(white, hexagon / pitch, round(thickness / pitch))
    write(white, "FL-40", 44, 22, 10, pitch, 1.7)
    draw_polyline(white, np.array([[44, 38], [80, 38]]) / pitch, round(1.6 / pitch))
    modules = rng.integers(0, 2, (12, 12))
    # A Data Matrix' finder: two dotted sides, two solid.
    modules[0, 1:] = modules[:-1, -1] = np.arange(11) % 2
    modules[:, 0] = modules[-1, :] = 1
    size = round(2 / pitch)
    code = np.kron(modules, np.ones((size, size))).astype(np.uint8) * np.uint8(215)
    x, y = round(10 / pitch), round(58 / pitch)
    black[y : y + len(code), x : x + len(code)] = code
    write(black, "LOT 2607", 40, 59, 8, pitch, 1.2)
    write(black, "A-1124", 40, 72, 8, pitch, 1.2)
    for points in ([[40, 90], [80, 90]], [[74, 85.5], [81, 90], [74, 94.5]]):
        draw_polyline(orange, np.array(points) / pitch, round(2.4 / pitch))
    ink = np.zeros((height, width, 4), np.float32)
    for cover, bgr in ((white, (226, 230, 228)), (black, (34, 32, 36)), (orange, (30, 92, 214))):
        alpha = f32(cover)[..., None] * np.float32(0.9 / 255)  # ink lets a little of the ground through
        ink = ink * (1 - alpha) + alpha * f32((*bgr, 255))
    return u8(np.round(ink))
