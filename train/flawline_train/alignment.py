"""Choosing how parts are aligned, and what to, from the good parts' pictures alone.

`auto` aligns only where it clearly makes good parts agree more with one another: a warp that is not needed costs
sharpness, milliseconds and the risk of a part that is placed wrongly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np

from flawline_inspect.align import Alignment
from flawline_inspect.errors import InputError
from flawline_train.references import Canvas, fit_shift, fit_turn, placed_in, view_of

__all__ = ["MAX_CANVASES", "AlignChoice", "FittedAlignment", "align_members", "fit_alignment"]

_log = logging.getLogger(__name__)

AlignChoice = Literal["auto", "none", "shift", "rotate"]

MAX_CANVASES = 64
"""More good pictures would not change the reference, only the time it takes."""
SHIFT_GAIN, ROTATE_GAIN = 0.75, 0.5
"""An alignment is worth it when it leaves at most this share of the disagreement that there is without it."""
LEAST_GAIN = 0.03
"""And takes at least so much of it away: parts that agree already need no warp."""
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


def fit_alignment(canvases: Sequence[Canvas], choice: AlignChoice | Alignment) -> FittedAlignment:
    """Choose and fit from good parts' canvases (`flawline_inspect.align.canvas_of`), all of one size.

    An `Alignment` is taken as it is. Raises `InputError` when a kind that was asked for by name cannot be had with these
    pictures.
    """
    found: dict[str, Alignment | None] = {"none": None}
    disagreement = {"none": _disagreement(canvases, None)}
    if isinstance(choice, Alignment):
        return FittedAlignment(choice, {**disagreement, choice.kind: _disagreement(canvases, choice)})
    for kind in ("shift", "rotate"):
        if choice not in ("auto", kind):
            continue
        try:
            found[kind] = (fit_shift if kind == "shift" else fit_turn)(canvases)
            disagreement[kind] = _disagreement(canvases, found[kind])
        except InputError as exc:
            if choice == kind:
                raise
            _log.info("no alignment of kind %s: %s", kind, exc)
    if choice != "auto":
        return FittedAlignment(found[choice], disagreement)
    best = "none"
    for kind, share in (("shift", SHIFT_GAIN), ("rotate", ROTATE_GAIN)):
        left = disagreement.get(kind, 1.0)
        if left <= ALIKE and left <= share * disagreement[best] and left <= disagreement["none"] - LEAST_GAIN:
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
    groups: dict[int, list[Canvas]] = {0: list(canvases)}
    if alignment is not None:
        groups = {}
        for canvas, match in placed_in(canvases, alignment):
            groups.setdefault(match.design, []).append(view_of(canvas, alignment, match))
    off: list[float] = []
    for views in groups.values():
        stack = np.stack([_standardised(view) for view in views])
        median = _standardised(np.median(stack, 0))
        off += [1 - float((view * median).mean()) for view in stack]
    return float(np.mean(off))


def _standardised(view: Canvas) -> Canvas:
    """Less its light: the plane of brightness and the contrast."""
    height, width = view.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    ramps = np.linalg.qr(np.stack([np.ones_like(x), x, y]).reshape(3, -1).T)[0].T
    flat = view.ravel() - (ramps @ view.ravel()) @ ramps
    return np.asarray((flat / max(1e-6, float(flat.std()))).reshape(view.shape), np.float32)
