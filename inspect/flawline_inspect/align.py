"""Parts that move: where the part lies in a picture, so that the frame can follow it.

Training chooses a reference from the good parts' pictures (`flawline_train.alignment`); here a picture's part is found
against it, in a small grey copy of the picture, the canvas. What the network sees is then cut out of the picture itself
in one warp (`flawline_inspect.frame`).

Two kinds. `shift`: the whole picture moves. `rotate`: the part moves before a plain background, turns by any angle and
comes closer or goes further, as far as the good parts did; the frame is the reference's picture: the part with a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.affine import Affine, composed, resizing, similarity
from flawline_inspect.errors import InputError, PlacementError
from flawline_inspect.foreground import find_foreground
from flawline_inspect.registration import Match, Motion
from flawline_inspect.template import Template

__all__ = ["AlignKind", "Alignment", "Bounds", "Design", "canvas_of", "canvas_wh_for", "letterbox"]

AlignKind = Literal["shift", "rotate"]

CANVAS_SIDES = (192, 256)
"""The canvas's long side in pixels: coarse enough for milliseconds, fine enough for a tenth of a frame's pixel."""
_SHIFT_REACH = 0.15
"""How far `shift` looks, as a share of the long side."""
_RUNAWAY = 1.5  # times the reach, corners included
_TURN_REACH = 0.12
_FAR_REACH = 0.35
_ANGLES = 3
_MANY_ANGLES = 24
_SAME_SCALE = 0.04
_CLEARLY = 0.02
"""By how much likelier a far place must look: a screw with a stain also looks likely one turn of its thread further on."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Beyond these a part counts as not placed; learnt from good pictures, with a margin.

    `correlation`: lowest accepted; below `doubt` (both of the reference and the picture) the part is looked for
    everywhere before its best place is believed. `contrast`: of foreground to background in grey values. `inside`: share of the
    reference's area that lies in the picture.
    """

    correlation: float = 0.0
    doubt: float = 0.0
    contrast: float = 0.0
    inside: float = 0.0


@dataclass(frozen=True, slots=True)
class Design:
    """One look of a good part: its reference, (h, w) uint8 grey. There are several where good parts differ in print.

    `centre` and `area` of its foreground, in the reference's pixels, the former from the middle; unused by `shift`.
    """

    reference: NDArray[np.uint8]
    centre: complex = 0
    area: float = 0.0


class Alignment:
    """Finds the part in pictures; built once a bundle, then shared and never changed.

    `canvas_wh`: size of the small copies in which parts are looked for. `scale`: pixels of the canvas for one of the
    reference. `scales`: the lowest and highest size of a part relative to the reference, equal when sizes are fixed.
    """

    def __init__(
        self,
        kind: AlignKind,
        designs: Sequence[Design],
        *,
        canvas_wh: tuple[int, int],
        scale: float,
        scales: tuple[float, float] = (1.0, 1.0),
        bounds: Bounds | None = None,
    ) -> None:
        if not designs or len({design.reference.shape for design in designs}) > 1:
            raise InputError(f"an alignment of {len(designs)} references, expected one or more of the same size")
        self.kind, self.designs, self.canvas_wh, self.scale = kind, tuple(designs), canvas_wh, scale
        self.bounds = bounds or Bounds()
        self.motion = Motion(kind == "rotate", scales)
        self._templates = [
            Template(design.reference.astype(np.float32), scale=scale, motion=self.motion, centre=design.centre)
            for design in designs
        ]

    @property
    def reference_wh(self) -> tuple[int, int]:
        height, width = self.designs[0].reference.shape
        return width, height

    def place(self, region: NDArray[np.uint8], frame_wh: tuple[int, int]) -> Affine:
        """The map from a region of interest, BGR (h, w, 3), to the frame. Raises `PlacementError`."""
        canvas, to_canvas = canvas_of(region, self.canvas_wh)
        match = self.locate(canvas)
        return composed(self.to_frame(match, frame_wh), to_canvas)

    def to_frame(self, match: Match, frame_wh: tuple[int, int]) -> Affine:
        """From the canvas to the frame, whose middle is the reference's."""
        frame_scale = min(frame_wh[0] / self.reference_wh[0], frame_wh[1] / self.reference_wh[1])
        back = frame_scale / match.turn  # canvas → reference → frame
        return similarity(back, complex((frame_wh[0] - 1) / 2, (frame_wh[1] - 1) / 2) - back * match.middle)

    def locate(self, canvas: NDArray[np.float32]) -> Match:
        """Where the part lies in a canvas. Raises `PlacementError` when it is nowhere, or only partly in the picture."""
        match = self._shifted(canvas) if self.kind == "shift" else self._turned(canvas)
        bounds = self.bounds
        if match.correlation < bounds.correlation:
            raise PlacementError(
                f"the part cannot be placed: the picture agrees with the reference by {match.correlation:.2f}, good parts by "
                f"{bounds.doubt:.2f} and more; look whether a part is there and in focus"
            )
        inside = self.inside(match)
        if inside < bounds.inside:
            raise PlacementError(
                f"the part cannot be placed: only {inside:.0%} of it lies in the picture, expected at least {bounds.inside:.0%}; "
                "look whether part and camera are where they were in training"
            )
        return match

    def inside(self, match: Match) -> float:
        """Share of the reference's area that lies in the canvas, 0-1."""
        (width, height), (canvas_w, canvas_h) = self.reference_wh, self.canvas_wh
        corners = [complex(x * width / 2, y * height / 2) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        seen = [match.middle + match.turn * corner for corner in corners]
        outline = np.array([[z.real, z.imag] for z in seen], np.float32)
        edge = np.array([[0, 0], [canvas_w - 1, 0], [canvas_w - 1, canvas_h - 1], [0, canvas_h - 1]], np.float32)
        common, _ = cv2.intersectConvexConvex(outline, edge)
        return float(common) / max(1e-6, float(cv2.contourArea(outline)))

    def _shifted(self, canvas: NDArray[np.float32]) -> Match:
        middle = complex((canvas.shape[1] - 1) / 2, (canvas.shape[0] - 1) / 2)
        start = Match(complex(self.scale), middle)
        farthest = _RUNAWAY * _SHIFT_REACH * max(canvas.shape)
        found = []
        for template in self._templates:
            blurred = template.blurred(canvas)
            match = template.refine(blurred, [template.look_around(blurred[0], start, _SHIFT_REACH)])
            if abs(match.middle - middle) > farthest:  # nothing looks like the reference: judge it as it lies
                match = replace(start, correlation=template.fine.correlation(blurred[1], start))
            found.append(match)
        return max(found, key=lambda match: match.likeness)

    def _turned(self, canvas: NDArray[np.float32]) -> Match:
        foreground = find_foreground(canvas)
        if foreground is None or foreground.contrast < self.bounds.contrast:
            found = 0.0 if foreground is None else foreground.contrast
            raise PlacementError(
                f"no part found: nothing stands out from the background by more than {found:.0f} grey values, expected "
                f"at least {self.bounds.contrast:.0f}; look whether a part is there and lit"
            )
        lowest, highest = self.motion.scales
        matches = []
        for i, (design, template) in enumerate(zip(self.designs, self._templates, strict=True)):
            blurred = template.blurred(canvas)
            size = math.sqrt(foreground.area / max(1.0, design.area)) / self.scale
            likely = [min(max(size, lowest), highest)]
            if highest > lowest * (1 + _SAME_SCALE) and not lowest <= size <= highest:
                likely = [lowest, math.sqrt(lowest * highest), highest]  # a piece is missing or too much
            guesses = [
                (scale, angle)
                for scale in likely
                for angle in template.angles(blurred[1], foreground.centre, scale, _ANGLES)
            ]
            match = self._best(template, blurred, foreground.centre, guesses, _TURN_REACH)
            if match.correlation < self.bounds.doubt:
                steps = [2 * math.pi * i / _MANY_ANGLES for i in range(_MANY_ANGLES)]
                sizes = [lowest] if lowest == highest else [lowest, math.sqrt(lowest * highest), highest]
                guesses = [(scale, angle) for scale in sizes for angle in steps]
                again = self._best(template, blurred, foreground.centre, guesses, _FAR_REACH)
                if again.likeness > match.likeness + _CLEARLY:
                    match = again
            matches.append(replace(match, design=i))
        return max(matches, key=lambda match: match.likeness)

    def _best(
        self,
        template: Template,
        blurred: tuple[NDArray[np.float32], NDArray[np.float32]],
        centre: complex,
        guesses: list[tuple[float, float]],
        reach: float,
    ) -> Match:
        candidates = []
        for scale, angle in guesses:
            turn = self.scale * scale * complex(math.cos(angle), math.sin(angle))
            start = Match(turn, centre - turn * template.centre)
            candidates.append(template.look_around(blurred[0], start, reach))
        match = template.refine(blurred, candidates)
        lowest, highest = self.motion.scales
        scale = abs(match.turn) / self.scale
        if not lowest <= scale <= highest:  # a part is as large as parts are; the rest is a defect
            match = replace(match, turn=match.turn * min(max(scale, lowest), highest) / scale)
            match = replace(match, correlation=template.fine.correlation(blurred[1], match))
        return match


def letterbox(wh: tuple[int, int], into_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a picture of `wh` lies in one of `into_wh` when its aspect ratio is kept: left, top, width, height."""
    scale = min(into_wh[0] / wh[0], into_wh[1] / wh[1])
    width = min(into_wh[0], max(1, round(wh[0] * scale)))
    height = min(into_wh[1], max(1, round(wh[1] * scale)))
    return (into_wh[0] - width) // 2, (into_wh[1] - height) // 2, width, height


def canvas_wh_for(wh: tuple[int, int]) -> tuple[int, int]:
    """The canvas for pictures of `wh`: of all long sides that are allowed, the one that keeps the aspect ratio best."""
    long, short = max(wh), min(wh)

    def error(side: int) -> float:
        other = short * side / long
        return abs(other - max(8, round(other))) / other

    lowest, highest = CANVAS_SIDES
    side = long if long <= highest else min(range(highest, lowest - 1, -1), key=error)
    other = max(8, round(short * side / long))
    return (side, other) if wh[0] >= wh[1] else (other, side)


def canvas_of(region: NDArray[np.uint8], canvas_wh: tuple[int, int]) -> tuple[NDArray[np.float32], Affine]:
    """A small grey copy of a BGR picture (h, w, 3), (canvas height, canvas width) in 0-255, and the map to it."""
    wh = region.shape[1], region.shape[0]
    left, top, width, height = letterbox(wh, canvas_wh)
    small = region
    if (width, height) != wh:
        interpolation = cv2.INTER_AREA if width < wh[0] else cv2.INTER_LINEAR
        small = np.asarray(cv2.resize(region, (width, height), interpolation=interpolation), np.uint8)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.float32)
    right, bottom = canvas_wh[0] - width - left, canvas_wh[1] - height - top
    if left or top or right or bottom:
        grey = np.asarray(cv2.copyMakeBorder(grey, top, bottom, left, right, cv2.BORDER_REPLICATE), np.float32)
    return grey, resizing(wh, (width, height), left, top)
