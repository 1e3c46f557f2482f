"""Which pictures can be judged, learnt from the good ones: the bounds of `flawline_inspect.health`.

Good pictures show how far brightness, sharpness and so on vary while all is well. The bounds lie further out on both counts: by a
part of the range that was seen, the larger the fewer parts there are, and at least by a factor that neither a drift of
the light by 15 % nor any defective part of the real sets reaches (`python -m benchmarks.health` counts). Each measure is extrapolated
on a scale on which equal steps are equally serious: the logarithm of a quantity, the log-odds of a share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.bundle import ASPECT_TOLERANCE, MAX_PICTURE_SIZES
from flawline_inspect.health import MEASURES, Bound, Health, Measure, Measured, likeness, measured, told
from flawline_train.pictures import MIN_PICTURES, GoodPictures

__all__ = ["LearntHealth", "learn_health"]

RANGE_SHARE = 0.5
"""Beyond the good pictures' range by this share of it, however many there are: one in a few hundred lies beyond a hundred's."""
FEW_PARTS = 6
"""Divided by the number of parts, what is added to that share, and to the least margin as a share of it: eight normal variates
span 2.8 deviations, a hundred 5."""
LEAST_LIKENESS = 0.2
"""A bound below this would tell nothing: good parts lie too differently, or are, to be compared with their mean."""

_DARK_OFFSET = 8.0
"""Added to brightness, in grey values: on a dark background black level and stray light double the mean and mean nothing."""
_LEAST_CONTRAST, _LEAST_SHARPNESS = 0.1, 0.03
"""Below these, and below a share of 5 %, values count as these: there good pictures differ by chance."""
_LEAST_ODDS = 0.05 / 0.95


class _Scale(NamedTuple):
    """`to` where steps are equal, and back; `margin`, there, is the least distance of a bound from the good pictures.

    `grows`: that it grows where parts are few; not for what good pictures usually have none of. `ends`: the lowest and the
    highest that there can be, beyond which a limit says nothing.
    """

    to: Callable[[float], float]
    back: Callable[[float], float]
    margin: float
    sides: Literal["low", "high", "both"]
    grows: bool = True
    ends: tuple[float, float] = (0.0, math.inf)


def _log_odds(share: float) -> float:
    return math.log(max(_LEAST_ODDS, share / max(1e-6, 1 - share)))


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _log(offset: float = 0.0, least: float = 0.0) -> tuple[Callable[[float], float], Callable[[float], float]]:
    return lambda value: math.log(max(least, value + offset)), lambda log: math.exp(log) - offset


_SHARE = _Scale(_log_odds, _share, 2.0, "high", grows=False, ends=(0.0, 1.0))
"""28 % where good pictures have none, 94 % where they have 65 %."""
_SCALES: dict[Measure, _Scale] = {
    "aspect": _Scale(*_log(), math.log1p(ASPECT_TOLERANCE), "both", grows=False),
    "black": _SHARE,
    "white": _SHARE,
    "flat": _SHARE,
    "brightness": _Scale(*_log(_DARK_OFFSET), math.log(1.6), "both", ends=(0.0, 255.0)),
    # A label without its print has little contrast left, and is a defective part.
    "contrast": _Scale(*_log(least=_LEAST_CONTRAST), math.log(3.0), "low"),
    "sharpness": _Scale(*_log(least=_LEAST_SHARPNESS), math.log(1.8), "low"),
    "likeness": _Scale(float, float, 0.55, "low", ends=(-1.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class LearntHealth:
    """`health` as the bundle will have it; `notes`, a sentence each, name pictures that it would not admit without them."""

    health: Health
    notes: tuple[str, ...] = ()

    @property
    def section(self) -> dict[str, Any]:
        """As the manifest holds it."""
        reference = self.health.reference
        return {
            "bounds": {measure: asdict(bound) for measure, bound in self.health.bounds.items()},
            "reference": None if reference is None else [int(value) for value in reference.ravel()],
            "picture_whs": list(self.health.picture_whs),
        }


def learn_health(pictures: GoodPictures) -> LearntHealth:
    """From all good pictures, those that are learnt from and those that are held out: none of it depends on the model."""
    spec = pictures.spec
    seen = []
    for frame, file in zip(pictures.frames, pictures.files, strict=True):
        wh = file.wh if spec.roi is None else (spec.roi[2], spec.roi[3])
        seen.append(measured(frame, spec.content_of(wh), wh))
    values, reference = _all_values(seen)
    n_parts = max(MIN_PICTURES, len(set(pictures.parts)))  # many pictures of few parts show the light as well
    bounds = {measure: _bound(measure, values[measure], n_parts) for measure in MEASURES}
    bounds = {measure: bound for measure, bound in bounds.items() if bound.allowed != (None, None)}
    if "likeness" in bounds and (bounds["likeness"].allowed[0] or 0.0) < LEAST_LIKENESS:
        del bounds["likeness"]
    if "likeness" not in bounds:
        del values["likeness"]
    notes = _notes(values, n_parts, [file.file for file in pictures.files])
    kept = reference if "likeness" in bounds else None
    whs = tuple(wh for wh, _ in pictures.sizes.most_common()) if spec.roi is not None else ()
    health = Health(bounds, kept, spec.roi, whs if len(whs) <= MAX_PICTURE_SIZES else ())
    return LearntHealth(health, tuple(notes))


def _all_values(seen: Sequence[Measured]) -> tuple[dict[Measure, NDArray[np.float64]], NDArray[np.float32]]:
    """Each measure (n,) of the n pictures, and the mean thumbnail; the likeness is that to the mean of the others."""
    thumbnails = np.stack([each.thumbnail for each in seen])
    total, n = thumbnails.sum(0), len(seen)
    values: dict[Measure, NDArray[np.float64]] = {
        measure: np.array([each.values[measure] for each in seen]) for measure in MEASURES if measure != "likeness"
    }
    values["likeness"] = np.array([likeness(each, (total - each) / (n - 1)) for each in thumbnails])
    return values, np.rint(total / n).astype(np.float32)


def _bound(measure: Measure, values: NDArray[np.float64], n_parts: int) -> Bound:
    scale, few = _SCALES[measure], FEW_PARTS / n_parts
    lowest, highest = float(values.min()), float(values.max())
    low, high = scale.to(lowest), scale.to(highest)
    least = scale.margin * (1 + few) if scale.grows else scale.margin
    margin = max(least, (high - low) * (RANGE_SHARE + few))
    # A scale that ends before the values do, as at a contrast of 0, must not refuse what is good.
    at_least, at_most = min(lowest, scale.back(low - margin)), max(highest, scale.back(high + margin))
    return Bound(
        (lowest, highest),
        (
            at_least if scale.sides != "high" and at_least > scale.ends[0] else None,
            at_most if scale.sides != "low" and at_most < scale.ends[1] else None,
        ),
    )


def _notes(values: dict[Measure, NDArray[np.float64]], n_parts: int, files: Sequence[str]) -> list[str]:
    """Names the pictures that would not be judged by what the others show: they widen what is judged, and may be bad ones."""
    notes = []
    for measure, found in values.items():
        for i in {int(np.argmin(found)), int(np.argmax(found))}:
            others = np.delete(found, i)
            bound = _bound(measure, others, n_parts)
            if not bound.admits(float(found[i])):
                notes.append(
                    f"{files[i]} is {told(measure, float(found[i]), bound)}; look whether it is good, since pictures "
                    "like it will be judged"
                )
    return notes
