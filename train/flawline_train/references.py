"""References that parts are aligned to, from good parts' pictures: a median of many, and the bounds that they allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.affine import similarity, warp
from flawline_inspect.align import Alignment, Bounds, Design
from flawline_inspect.errors import InputError, PlacementError
from flawline_inspect.foreground import Foreground, find_foreground
from flawline_inspect.registration import Match

__all__ = ["Canvas", "fit_shift", "fit_turn", "placed_in", "view_of"]

Canvas = NDArray[np.float32]
"""A small grey copy of a picture, see `flawline_inspect.align.canvas_of`."""

MARGIN = 0.06
"""Around the part in the frame, on each side, as a share of its long side."""
REFERENCE_PIXELS = 14_000
"""A reference has about so many at most: enough for a tenth of a frame's pixel, few enough for milliseconds."""
_MIN_AREA, _MAX_AREA = 0.004, 0.8
"""Of the picture: what is smaller is dirt, what is larger leaves no background."""
_MIN_CONTRAST = 8.0
_MIN_PLACED = 0.8
_MEDOIDS, _MEDOID_SAMPLE = 4, 10
_ROUNDS = 2
_FIXED_SIZE = 1.15
"""Parts whose sizes differ less than by this factor (5th to 95th percentile) are taken to be all of one size."""
_SIZE_MARGIN = 1.12
_ELONGATED = 1.3
"""A part whose axes of inertia differ by this factor is laid level."""
_MAX_DESIGNS = 4
_ODD_CORRELATION = 0.08
"""A part that agrees by so much less with the reference than most do may be of another design."""
_SAME_TURN = math.radians(8)
_MIN_ODD = 3
_ODD_SHARE = 0.1


def placed_in(canvases: Sequence[Canvas], alignment: Alignment) -> list[tuple[Canvas, Match]]:
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


def view_of(canvas: Canvas, alignment: Alignment, match: Match) -> Canvas:
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


def fit_shift(canvases: Sequence[Canvas]) -> Alignment:
    """An alignment of whole pictures that are shifted. Raises `InputError` when too few can be placed."""
    height, width = canvases[0].shape
    scale = max(1.0, math.sqrt(width * height / REFERENCE_PIXELS))
    wh = max(8, round(width / scale)), max(8, round(height / scale))
    to_reference = similarity(
        complex(1 / scale), complex((wh[0] - 1) / 2, (wh[1] - 1) / 2) - complex(width - 1, height - 1) / 2 / scale
    )
    views = [warp(canvas, to_reference, wh) for canvas in canvases]
    alignment = Alignment("shift", [Design(_median_picture(views, wh))], canvas_wh=(width, height), scale=scale)
    for _ in range(_ROUNDS):
        placed = placed_in(canvases, alignment)
        # The middle of all shifts is no shift: the frame shows the usual place.
        middle = complex((width - 1) / 2, (height - 1) / 2)
        drift = complex(*(float(np.median([getattr(m.middle, axis) for _, m in placed])) for axis in ("real", "imag")))
        centred = [(c, Match(m.turn, m.middle - drift + middle, m.correlation)) for c, m in placed]
        reference = _median_picture([view_of(canvas, alignment, match) for canvas, match in centred], wh)
        alignment = Alignment("shift", [Design(reference)], canvas_wh=(width, height), scale=scale)
    return _bounded(alignment, canvases)


def fit_turn(canvases: Sequence[Canvas]) -> Alignment:
    """An alignment of parts that turn before a plain background. Raises `InputError` when there is none, or no one look."""
    parts = [(canvas, part) for canvas in canvases if (part := _part(canvas)) is not None]
    if len(parts) < _MIN_PLACED * len(canvases):
        raise InputError(
            f"--align rotate: a part stands out from a plain background in only {len(parts)} of {len(canvases)} good pictures; use "
            "--align none or shift, or a background that differs from the part"
        )
    alignment = _first_design(parts)
    everyone = [canvas for canvas, _ in parts]
    for _ in range(_ROUNDS):
        placed = placed_in(everyone, alignment)
        well = _well([match.correlation for _, match in placed])
        usual = [(canvas, match) for canvas, match in placed if match.correlation >= well - _ODD_CORRELATION]
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
    back = 1 / (turn * scale)
    to_reference = similarity(back, complex((wh[0] - 1) / 2, (wh[1] - 1) / 2) - back * (centre + turn * middle))
    reference = np.clip(np.rint(warp(canvas, to_reference, wh)), 0, 255).astype(np.uint8)
    design = Design(reference, -middle / scale, len(points) / scale**2)
    return Alignment("rotate", [design], canvas_wh=(canvas.shape[1], canvas.shape[0]), scale=scale, scales=scales)


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
        # With every angle tried: a group that was merely placed wrongly is no design of its own.
        searching = _with(alignment, alignment.designs, Bounds(doubt=1.0))
        fits = np.array([_correlation(canvas, searching) for canvas, _ in parts])
        are_odd = fits < _well(fits) - _ODD_CORRELATION
        odd = [part for part, is_odd in zip(parts, are_odd, strict=True) if is_odd]
        if len(odd) < max(_MIN_ODD, _ODD_SHARE * len(parts)):
            break
        try:
            reference = _like_the_first(searching, _first_design(odd), [canvas for canvas, _ in odd])
        except InputError:  # they do not agree with one another either
            break
        first = alignment.designs[0]
        wider = _with(alignment, [*alignment.designs, Design(reference, first.centre, first.area)], Bounds())
        gains = np.array([_correlation(canvas, wider) for canvas, _ in odd]) - fits[are_odd]
        if float(np.median(gains)) < _ODD_CORRELATION:
            break
        alignment = wider
    return alignment


def _like_the_first(alignment: Alignment, own: Alignment, canvases: Sequence[Canvas]) -> NDArray[np.uint8]:
    """The median of a group that was aligned to its `own` design, as a reference like the first: size, place, angle."""
    first, other = alignment.designs[0], own.designs[0]
    part_scale = math.sqrt(first.area / other.area)  # the first's pixels for one of the other's, by the part's size
    placed = [(canvas, match, alignment.locate(canvas)) for canvas, match in placed_in(canvases, own)]
    # As most of the group were found against the first design: should it be the same after all, in another light, it must
    # not lie at another angle or place.
    turns = np.array([there.turn / match.turn for _, match, there in placed])
    turns /= np.abs(turns)
    agree = np.real(turns[:, None] / turns) > math.cos(_SAME_TURN)
    voter = int(agree.sum(1).argmax())
    middles = np.array([(there.middle - match.middle) / match.turn for _, match, there in placed])[agree[voter]]
    to_middle = complex(np.median(middles.real), np.median(middles.imag))
    wh = alignment.reference_wh
    views = []
    for canvas, match, _ in placed:
        back = part_scale / (match.turn * complex(turns[voter]))
        at = match.middle + match.turn * to_middle
        to_reference = similarity(back, complex((wh[0] - 1) / 2, (wh[1] - 1) / 2) - back * at)
        views.append(warp(canvas, to_reference, wh))
    return _median_picture(views, wh)


def _well(correlations: Sequence[float] | NDArray[np.floating]) -> float:
    """What parts of the reference's own design reach, while up to seven in ten are of another."""
    return float(np.percentile(correlations, 75))


def _with(alignment: Alignment, designs: Sequence[Design], bounds: Bounds) -> Alignment:
    return Alignment(
        alignment.kind,
        designs,
        canvas_wh=alignment.canvas_wh,
        scale=alignment.scale,
        scales=alignment.motion.scales,
        bounds=bounds,
    )


def _bounded(alignment: Alignment, canvases: Sequence[Canvas]) -> Alignment:
    """The same with the bounds that these good parts allow, generously."""
    placed = placed_in(canvases, alignment)
    correlations = [match.correlation for _, match in placed]
    lowest, usual = float(np.percentile(correlations, 2)), float(np.median(correlations))
    inside = min(alignment.inside(match) for _, match in placed)
    contrast = 0.0
    if alignment.kind == "rotate":
        contrast = min(part.contrast for canvas, _ in placed if (part := find_foreground(canvas)) is not None)
    bounds = Bounds(
        # Far below any defect: a cap with another print still agrees by more than half of what good ones do.
        correlation=max(0.0, min(0.3 * lowest, lowest - 2 * (usual - lowest))),
        doubt=max(0.0, lowest - max(0.05, usual - lowest)),
        contrast=0.25 * contrast,
        inside=0.5 * inside,
    )
    return _with(alignment, alignment.designs, bounds)
