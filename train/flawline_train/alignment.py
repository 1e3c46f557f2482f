"""Choosing how parts are aligned, and what to, from the good parts' pictures alone.

`auto` aligns only where it clearly makes good parts agree more with one another: a warp that is not needed costs
sharpness, milliseconds and the risk of a part that is placed wrongly.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.affine import similarity, warp
from flawline_inspect.align import Alignment, Bounds, Design
from flawline_inspect.errors import InputError, PlacementError
from flawline_inspect.foreground import Foreground, find_foreground
from flawline_inspect.registration import Match

__all__ = ["MAX_CANVASES", "AlignChoice", "FittedAlignment", "align_members", "fit_alignment"]

_log = logging.getLogger(__name__)

AlignChoice = Literal["auto", "none", "shift", "rotate"]
Canvas = NDArray[np.float32]

MAX_CANVASES = 64
"""More good pictures would not change the reference, only the time it takes."""
MARGIN = 0.06
"""Around the part in the frame, on each side, as a share of its long side."""
REFERENCE_PIXELS = 14_000
_MIN_AREA, _MAX_AREA = 0.004, 0.8
_MIN_CONTRAST = 8.0
_MIN_PLACED = 0.8
_MEDOIDS, _MEDOID_SAMPLE = 4, 10
_ROUNDS = 2
_FIXED_SIZE = 1.15
"""Parts whose sizes differ less than by this factor (5th to 95th percentile) are taken to be all of one size."""
_SIZE_MARGIN = 1.12
_ELONGATED = 1.3
_MAX_DESIGNS = 4
_ODD_CORRELATION = 0.15
_MIN_ODD = 3
_ODD_SHARE = 0.06
SHIFT_GAIN, ROTATE_GAIN = 0.75, 0.5
"""An alignment is worth it when it leaves at most this share of the disagreement that there is without it."""
ALIKE = 0.15
"""Where good parts still disagree more when they are aligned, there is no one look to align to: textures, mixed parts."""


@dataclass(frozen=True, slots=True)
class FittedAlignment:
    """`disagreement`: of each kind that was tried, 1 - the good parts' mean correlation with their median picture."""

    alignment: Alignment | None
    disagreement: dict[str, float]

    def note(self) -> str:
        """For the engineer, one sentence."""
        kind = "none" if self.alignment is None else self.alignment.kind
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.disagreement.items())
        return f"alignment {kind}: good parts disagree with their median picture by {figures} (0 is all alike)"


def fit_alignment(canvases: Sequence[Canvas], choice: AlignChoice) -> FittedAlignment:
    """Choose and fit from good parts' canvases (`flawline_inspect.align.canvas_of`), all of one size.

    Raises `InputError` when a kind that was asked for by name cannot be had with these pictures.
    """
    found: dict[str, Alignment | None] = {"none": None}
    disagreement = {"none": _disagreement(canvases, None)}
    for kind in ("shift", "rotate"):
        if choice not in ("auto", kind):
            continue
        try:
            found[kind] = (_fit_shift if kind == "shift" else _fit_turn)(canvases)
            disagreement[kind] = _disagreement(canvases, found[kind])
        except InputError as exc:
            if choice == kind:
                raise
            _log.info("no alignment of kind %s: %s", kind, exc)
    if choice != "auto":
        return FittedAlignment(found[choice], disagreement)
    best = "none"
    for kind, gain in (("shift", SHIFT_GAIN), ("rotate", ROTATE_GAIN)):
        if disagreement.get(kind, 1.0) <= ALIKE and disagreement[kind] <= gain * disagreement[best]:
            best = kind
    return FittedAlignment(found[best], disagreement)


def align_members(fitted: FittedAlignment | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's `frame.align` and the bundle's members that go with it."""
    if fitted is None or fitted.alignment is None:
        return {"kind": "none", "disagreement": {} if fitted is None else fitted.disagreement}, {}
    alignment, members, entries = fitted.alignment, {}, []
    for i, design in enumerate(alignment.designs):
        name = f"align/reference_{i}.png"
        done, data = cv2.imencode(".png", design.reference, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        assert done
        members[name] = data.tobytes()
        entries.append({"member": name, "centre": (design.centre.real, design.centre.imag), "area": design.area})
    placing = {
        "canvas_wh": alignment.canvas_wh,
        "scale": alignment.scale,
        "scales": alignment.motion.scales,
        "bounds": asdict(alignment.bounds),
        "references": entries,
    }
    return {"kind": alignment.kind, "disagreement": fitted.disagreement, "placing": placing}, members


def _disagreement(canvases: Sequence[Canvas], alignment: Alignment | None) -> float:
    views: Sequence[Canvas] = canvases
    if alignment is not None:
        views = [_view(canvas, alignment, match) for canvas, match in _placed(canvases, alignment)]
    stack = np.stack([_standardised(view) for view in views])
    median = _standardised(np.median(stack, 0))
    return float(np.mean([1 - float((view * median).mean()) for view in stack]))


def _standardised(view: Canvas) -> Canvas:
    """Less its light: the plane of brightness and the contrast."""
    height, width = view.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    ramps = np.linalg.qr(np.stack([np.ones_like(x), x, y]).reshape(3, -1).T)[0].T
    flat = view.ravel() - (ramps @ view.ravel()) @ ramps
    return np.asarray((flat / max(1e-6, float(flat.std()))).reshape(view.shape), np.float32)


def _placed(canvases: Sequence[Canvas], alignment: Alignment) -> list[tuple[Canvas, Match]]:
    """Those that can be placed. Raises `InputError` when too few can."""
    placed = []
    reason = ""
    for canvas in canvases:
        try:
            placed.append((canvas, alignment.locate(canvas)))
        except PlacementError as exc:
            reason = str(exc)
    if len(placed) < _MIN_PLACED * len(canvases):
        raise InputError(
            f"--align {alignment.kind}: only {len(placed)} of {len(canvases)} good parts can be placed, the last that cannot: {reason}; "
            "use --align none, or pictures of parts before a plain background"
        )
    return placed


def _view(canvas: Canvas, alignment: Alignment, match: Match) -> Canvas:
    """The canvas as the reference would have it, same size as the reference."""
    wh = alignment.reference_wh
    return warp(canvas, alignment.to_frame(match, wh), wh)


def _median_picture(views: Sequence[Canvas], box_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """The views' median, each brought to the brightness and contrast that they usually have in the middle `box_wh`."""
    height, width = views[0].shape
    left, top = (width - box_wh[0]) // 2, (height - box_wh[1]) // 2
    boxes = [view[top : top + box_wh[1], left : left + box_wh[0]] for view in views]
    levels = np.array([(float(box.mean()), max(1e-6, float(box.std()))) for box in boxes])
    brightness, contrast = np.median(levels, 0)
    alike = [
        (view - mean) * (contrast / spread) + brightness for view, (mean, spread) in zip(views, levels, strict=True)
    ]
    return np.clip(np.rint(np.median(np.stack(alike), 0)), 0, 255).astype(np.uint8)


# --- shift ---------------------------------------------------------------------------------------------------------


def _fit_shift(canvases: Sequence[Canvas]) -> Alignment:
    height, width = canvases[0].shape
    scale = max(1.0, math.sqrt(width * height / REFERENCE_PIXELS))
    wh = max(8, round(width / scale)), max(8, round(height / scale))
    to_reference = similarity(
        complex(1 / scale), complex((wh[0] - 1) / 2, (wh[1] - 1) / 2) - complex(width - 1, height - 1) / 2 / scale
    )
    views = [warp(canvas, to_reference, wh) for canvas in canvases]
    alignment = Alignment("shift", [Design(_median_picture(views, wh))], canvas_wh=(width, height), scale=scale)
    for _ in range(_ROUNDS):
        placed = _placed(canvases, alignment)
        # The middle of all shifts is no shift: the frame shows the usual place.
        middle = complex((width - 1) / 2, (height - 1) / 2)
        drift = complex(*(float(np.median([getattr(m.middle, axis) for _, m in placed])) for axis in ("real", "imag")))
        centred = [(c, Match(m.turn, m.middle - drift + middle, m.correlation)) for c, m in placed]
        reference = _median_picture([_view(canvas, alignment, match) for canvas, match in centred], wh)
        alignment = Alignment("shift", [Design(reference)], canvas_wh=(width, height), scale=scale)
    return _bounded(alignment, canvases)


# --- rotate --------------------------------------------------------------------------------------------------------


def _fit_turn(canvases: Sequence[Canvas]) -> Alignment:
    parts = [(canvas, part) for canvas in canvases if (part := _part(canvas)) is not None]
    if len(parts) < _MIN_PLACED * len(canvases):
        raise InputError(
            f"--align rotate: a part stands out from a plain background in only {len(parts)} of {len(canvases)} good pictures; use "
            "--align none or shift, or a background that differs from the part"
        )
    alignment = _first_design(parts)
    everyone = [canvas for canvas, _ in parts]
    for _ in range(_ROUNDS):
        placed = _placed(everyone, alignment)
        fit = sorted(m.correlation for _, m in placed)
        usual = [(c, m) for c, m in placed if m.correlation >= fit[len(fit) // 2] - _ODD_CORRELATION]
        alignment = _recut(alignment, usual)
    alignment = _with_more_designs(alignment, parts)
    return _bounded(alignment, everyone)


def _part(canvas: Canvas) -> Foreground | None:
    part = find_foreground(canvas)
    if part is None or part.contrast < _MIN_CONTRAST or not _MIN_AREA <= part.area / canvas.size <= _MAX_AREA:
        return None
    return part


def _first_design(parts: Sequence[tuple[Canvas, Foreground]]) -> Alignment:
    """The good part that the others agree with most, of a few of the usual size."""
    sizes = np.sqrt([part.area for _, part in parts])
    usual = float(np.median(sizes))
    low, high = np.percentile(sizes, [5, 95])
    varies = high / low > _FIXED_SIZE
    nearest = np.argsort(np.abs(sizes - usual), kind="stable")[:_MEDOIDS]
    sample = [parts[i][0] for i in np.linspace(0, len(parts) - 1, min(_MEDOID_SAMPLE, len(parts))).round().astype(int)]
    best: tuple[float, Alignment] | None = None
    for i in nearest:
        size = float(sizes[i])
        scales = (float(sizes.min()) / size / _SIZE_MARGIN, float(sizes.max()) / size * _SIZE_MARGIN)
        canvas, part = parts[i]
        alignment = _cut_out(canvas, part, scales if varies else (1.0, 1.0))
        agreement = float(np.median([_correlation(canvas, alignment) for canvas in sample]))
        if best is None or agreement > best[0]:
            best = agreement, alignment
    assert best is not None
    return best[1]


def _correlation(canvas: Canvas, alignment: Alignment) -> float:
    try:
        return alignment.locate(canvas).correlation
    except PlacementError:
        return 0.0


def _cut_out(canvas: Canvas, part: Foreground, scales: tuple[float, float]) -> Alignment:
    """An alignment to one picture's part, lying level when it is longer than wide."""
    level = _level_angle(part.mask)
    turn = complex(math.cos(level), math.sin(level))
    ys, xs = np.nonzero(part.mask)
    points = ((xs + 1j * ys) - part.centre) / turn
    return _cut(canvas, turn, part.centre, points, scales)


def _cut(
    canvas: Canvas, turn: complex, centre: complex, points: NDArray[np.complexfloating], scales: tuple[float, float]
) -> Alignment:
    """The box about the part's `points` (turned, from `centre`, in canvas pixels) with a margin becomes the reference."""
    low = complex(points.real.min(), points.imag.min())
    high = complex(points.real.max(), points.imag.max())
    margin = MARGIN * max((high - low).real, (high - low).imag)
    width, height = (high - low).real + 1 + 2 * margin, (high - low).imag + 1 + 2 * margin
    scale = max(1.0, math.sqrt(width * height / REFERENCE_PIXELS))
    wh = max(8, round(width / scale)), max(8, round(height / scale))
    middle = (low + high) / 2
    box = Match(turn * scale, centre + turn * middle, 1.0)
    blank = Design(np.zeros((wh[1], wh[0]), np.uint8), -middle / scale, len(points) / scale**2)
    canvas_wh = canvas.shape[1], canvas.shape[0]
    to_reference = similarity(1 / box.turn, complex((wh[0] - 1) / 2, (wh[1] - 1) / 2) - box.middle / box.turn)
    reference = np.clip(np.rint(warp(canvas, to_reference, wh)), 0, 255).astype(np.uint8)
    return Alignment(
        "rotate", [Design(reference, blank.centre, blank.area)], canvas_wh=canvas_wh, scale=scale, scales=scales
    )


def _level_angle(mask: NDArray[np.uint8]) -> float:
    """The angle of the part's long axis in radians; 0 for what is about as long as wide."""
    moments = cv2.moments(mask, binaryImage=True)
    xx, yy, xy = moments["mu20"], moments["mu02"], moments["mu11"]
    root = math.hypot(xx - yy, 2 * xy)
    if xx + yy + root < _ELONGATED**2 * (xx + yy - root):
        return 0.0
    return 0.5 * math.atan2(2 * xy, xx - yy)


def _recut(alignment: Alignment, placed: Sequence[tuple[Canvas, Match]]) -> Alignment:
    """The median of the aligned parts as the new reference, its box about what most of them cover."""
    width, height = alignment.reference_wh
    # Cut generously first: the box of one part may have missed what others have.
    wide = round(1.3 * max(width, height))
    big = (width + wide, height + wide)
    views, masks = [], []
    for canvas, match in placed:
        part = find_foreground(canvas)
        if part is None:
            continue
        back = 1 / match.turn
        to_big = similarity(back, complex((big[0] - 1) / 2, (big[1] - 1) / 2) - back * match.middle)
        views.append(warp(canvas, to_big, big))
        masks.append(warp(part.mask.astype(np.float32), to_big, big, border=cv2.BORDER_CONSTANT))
    mask = np.mean(masks, 0) >= 0.5
    median = _median_picture(views, (width, height)).astype(np.float32)
    ys, xs = np.nonzero(mask)
    middle = complex((big[0] - 1) / 2, (big[1] - 1) / 2)
    points = (xs + 1j * ys) - middle
    fresh = _cut(median, 1 + 0j, middle, points, alignment.motion.scales)
    return Alignment(
        "rotate",
        fresh.designs,
        canvas_wh=alignment.canvas_wh,
        scale=alignment.scale * fresh.scale,
        scales=alignment.motion.scales,
    )


def _with_more_designs(alignment: Alignment, parts: Sequence[tuple[Canvas, Foreground]]) -> Alignment:
    """Add a reference for each sizeable group of good parts that agree with one another but not with those there are."""
    while len(alignment.designs) < _MAX_DESIGNS:
        fits = np.array([_correlation(canvas, alignment) for canvas, _ in parts])
        odd = [part for part, fit in zip(parts, fits, strict=True) if fit < float(np.median(fits)) - _ODD_CORRELATION]
        if len(odd) < max(_MIN_ODD, _ODD_SHARE * len(parts)):
            break
        own = _first_design(odd)
        first = alignment.designs[0]
        size = math.sqrt(first.area) * alignment.scale / (math.sqrt(own.designs[0].area) * own.scale)
        placed = [(canvas, match) for canvas, match in _placed([c for c, _ in odd], own)]
        # In the frame of the first: same size of part and of reference.
        turn_scale = alignment.scale / own.scale / size
        width, height = alignment.reference_wh
        views = []
        for canvas, match in placed:
            turn = match.turn * turn_scale
            at = match.middle + match.turn * own.designs[0].centre - turn * first.centre
            back = 1 / turn
            to_reference = similarity(back, complex((width - 1) / 2, (height - 1) / 2) - back * at)
            views.append(warp(canvas, to_reference, (width, height)))
        reference = _median_picture(views, (width, height))
        wider = Alignment(
            "rotate",
            [*alignment.designs, Design(reference, first.centre, first.area)],
            canvas_wh=alignment.canvas_wh,
            scale=alignment.scale,
            scales=alignment.motion.scales,
        )
        before = np.array([_correlation(canvas, alignment) for canvas, _ in odd])
        after = np.array([_correlation(canvas, wider) for canvas, _ in odd])
        if np.median(after) - np.median(before) < _ODD_CORRELATION / 2:
            break
        alignment = wider
    return alignment


# --- bounds --------------------------------------------------------------------------------------------------------


def _bounded(alignment: Alignment, canvases: Sequence[Canvas]) -> Alignment:
    """The same with the bounds that these good parts allow, generously."""
    placed = _placed(canvases, alignment)
    correlations = [match.correlation for _, match in placed]
    lowest, usual = float(np.percentile(correlations, 2)), float(np.median(correlations))
    inside = min(alignment.inside(match) for _, match in placed)
    contrast = 0.0
    if alignment.kind == "rotate":
        contrast = min(part.contrast for canvas, _ in placed if (part := find_foreground(canvas)) is not None)
    bounds = Bounds(
        # Far below any defect: a cap with another print still agrees by more than half of what good ones do.
        correlation=max(0.0, min(0.3 * lowest, lowest - 2 * (usual - lowest))),
        doubt=max(0.0, lowest),
        contrast=0.25 * contrast,
        inside=0.5 * inside,
    )
    return Alignment(
        alignment.kind,
        alignment.designs,
        canvas_wh=alignment.canvas_wh,
        scale=alignment.scale,
        scales=alignment.motion.scales,
        bounds=bounds,
    )
