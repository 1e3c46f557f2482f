"""What can be wrong with a part, from a missing seal to a breath of heat tint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import cv2
import numpy as np

from flawline_edge.simulation.chance import clouds
from flawline_edge.simulation.drawing import BORE, PRINT_XYXY, SCREWS, SEAL_RADII
from flawline_edge.simulation.product import WORK, product, window
from flawline_edge.simulation.raster import F32, U8, Colour, Point, draw_polyline, f32, towards_light, u8
from flawline_edge.simulation.workpiece import Spot, Workpiece, nothing, shifted

__all__ = ["DEFECTS", "DEFECT_KINDS"]


def _site(rng: np.random.Generator) -> Point:
    x, y = rng.choice(product().sites) + rng.uniform(-1, 1, 2)
    return float(x), float(y)


def _missing(workpiece: Workpiece, centre: Point, radius: float, inner: float = 0) -> U8:
    """The bare ground in a ring from `inner` to `radius`."""
    spot = Spot(workpiece, centre, radius + 1)
    ring = f32((spot.distance < radius) & (spot.distance > inner))
    return spot.blend(ring, f32(product().unsealed[spot.where][..., :3]))


def _missing_screw(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    return _missing(workpiece, SCREWS[rng.integers(len(SCREWS))], 9.8)


def _missing_seal(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    return _missing(workpiece, BORE, SEAL_RADII[1] + 0.5, SEAL_RADII[0] - 0.5)


def _misprint(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    """The pad slipped (smeared), hit beside its place (displaced), or had too little ink (patchy)."""
    fault = ("smeared", "displaced", "patchy")[rng.integers(3)]
    dx, dy = rng.uniform(2.0, 4.5, 2) * rng.choice([-1, 1], 2)
    ink: Any
    if fault == "smeared":
        length = int(rng.integers(4, 9)) * WORK
        anchor = (0, 0) if dx > 0 else (length - 1, 0)
        dragged = cv2.blur(workpiece.ink, (length, 1), anchor=anchor, borderType=cv2.BORDER_CONSTANT)
        ink = cv2.addWeighted(workpiece.ink, 0.45, dragged, 0.75, 0)
    elif fault == "displaced":
        ink = shifted(workpiece.ink, dx, dy)
    else:
        kept = 2.2 + 5 * (clouds(rng, workpiece.ink.shape, 46) - rng.uniform(-0.1, 0.4))
        ink = workpiece.ink * np.clip(kept, 0, 1)[..., None]
    workpiece.apply_ink(u8(np.round(ink)))
    shape = nothing()
    shape[window(PRINT_XYXY)] = 255
    return shape


def _chipped_edge(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    x, y = rng.choice(product().rim).tolist()
    radius = rng.uniform(3.5, 8.0)
    spot = Spot(workpiece, (x, y), radius * 2)
    distance = spot.blob(rng, radius, 0.35)
    facets = 140 + 70 * clouds(rng, distance.shape, 4) + 20 * clouds(rng, distance.shape, 2)
    shape = spot.blend(np.clip(0.5 - distance * 1.5, 0, 1), np.repeat(facets[..., None], 3, -1))
    gone = np.clip(0.5 - (distance + rng.uniform(0.3, 0.5) * radius) * 1.5, 0, 1) * spot.solid
    shadow_only = f32((0, 0, 0, 90))
    spot.view[:] = np.round(spot.view + gone[..., None] * (shadow_only - spot.view))
    return shape


def _stain(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    """Oil: darker and yellower, with a rim where it has crept."""
    radius = rng.uniform(6, 17)
    spot = Spot(workpiece, _site(rng), radius * 2)
    distance = spot.blob(rng, radius, 0.45, rng.uniform(1, 1.3))
    weight = np.clip(0.5 - distance * 0.7, 0, 1) * (0.72 + 0.28 * np.exp(-np.abs(distance + 0.8) / 1.2))
    strength = rng.uniform(0.45, 1.0)
    return spot.tint(weight * strength, (0.50, 0.64, 0.70), (4, 6, 8))


def _walk(rng: np.random.Generator, start: Sequence[float], length: float, step: float, wander: float) -> F32:
    """A line that wanders by `wander` radians a step, (n, 2) x y nominal."""
    count = max(3, round(length / step))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, wander, count))
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * step
    return f32(np.asarray(start) + np.cumsum(steps, 0) - steps.sum(0) / 2)


def _groove(
    workpiece: Workpiece, points: F32, rng: np.random.Generator, core: Colour, flank: Colour, strength: float
) -> U8:
    """A tapering line of `core`, with `flank` on its side away from the light; strength 0-1."""
    thickness = int(rng.integers(1, 4))
    x, y = points.mean(0).tolist()
    reach = float(np.ptp(points, 0).max()) / 2 + 12
    spot = Spot(workpiece, (x, y), reach)
    origin = np.array([spot.where[1].start, spot.where[0].start])
    taper = np.clip(1.25 - (spot.distance / reach) ** 2, 0.2, 1)
    shape = nothing()
    for offset, colour, share in ((1.2, flank, 0.6), (0.0, core, 1.0)):
        canvas = np.zeros(spot.view.shape[:2], np.uint8)
        draw_polyline(canvas, points * WORK - origin + offset, thickness)
        shape |= spot.blend(canvas / 255 * taper * (strength * share), colour)
    return shape


def _crack(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    points = _walk(rng, _site(rng), rng.uniform(18, 60), 2.2, 0.42)
    return _groove(workpiece, points, rng, (30, 30, 32), (206, 206, 204), rng.uniform(0.7, 1.0))


def _scratch(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    points = _walk(rng, _site(rng), rng.uniform(25, 90), 2.0, 0.012)
    return _groove(workpiece, points, rng, (246, 246, 244), (80, 80, 80), rng.uniform(0.5, 1.0))


def _dent(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    """Soft shading only: the wall towards the light is dark, the far one bright."""
    radius = rng.uniform(3.0, 7.5)
    spot = Spot(workpiece, _site(rng), radius * 3)
    slope = -towards_light(spot.dx, spot.dy) / radius
    bowl = np.exp(-(spot.dx**2 + spot.dy**2) / (2 * radius**2))
    shading = (rng.uniform(30, 80) * slope * bowl)[..., None]
    shape = spot.blend(np.ones_like(spot.solid), spot.view[..., :3] + shading)
    return shape & spot.shape(bowl * spot.solid)


def _pinhole(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    x, y = _site(rng)
    shape = nothing()
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.6, 1.9)
        spot = Spot(workpiece, (x, y), 5)
        distance = spot.distance - np.float32(radius)
        shape |= spot.blend(np.clip(0.5 - np.abs(distance - 0.5) * 2, 0, 1) * 0.3, (215, 215, 215))
        shape |= spot.blend(np.clip(0.5 - distance * 2, 0, 1) * 0.85, (30, 30, 30))
        x, y = x + rng.uniform(-7, 7), y + rng.uniform(-5, 5)
    return shape


def _discolouration(workpiece: Workpiece, rng: np.random.Generator) -> U8:
    """A breath of heat tint, straw or blue, without an outline."""
    radius = rng.uniform(9, 20)
    spot = Spot(workpiece, _site(rng), radius * 2)
    weight = np.clip(-spot.blob(rng, radius, 0.3) / (radius * 0.6), 0, 1)
    shift = np.array([-1.0, -0.15, 0.35] if rng.random() < 0.5 else [0.8, -0.1, -0.8]) * rng.uniform(10, 26)
    return spot.tint(weight, (1, 1, 1), shift)


DEFECTS: Final[dict[str, Callable[[Workpiece, np.random.Generator], U8]]] = {
    "missing_seal": _missing_seal,
    "missing_screw": _missing_screw,
    "misprint": _misprint,
    "chipped_edge": _chipped_edge,
    "stain": _stain,
    "crack": _crack,
    "scratch": _scratch,
    "dent": _dent,
    "pinhole": _pinhole,
    "discolouration": _discolouration,
}
"""Each changes a good workpiece in place and returns the shape drawn, (h, w) working pixels, 0 outside."""
DEFECT_KINDS: Final[tuple[str, ...]] = tuple(DEFECTS)
"""From gross to barely visible."""
