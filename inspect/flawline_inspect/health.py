"""Picture health: whether a picture can be judged at all, whatever its part is like.

A dark, blurred, overexposed or torn picture says nothing of its part; a score of it would be a number all the same. A few
cheap measures of the picture in the model's frame are held against bounds that training learnt from the good pictures
(`flawline_train.health`). Defective parts have to stay within them: each measure is of the picture as a whole, and is bounded
only on the side on which pictures fail. A picture outside is NotDecidable `health`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import HealthError, InputError
from flawline_inspect.frame import Placement, Roi

__all__ = [
    "MEASURES",
    "THUMBNAIL_SIDE",
    "Bound",
    "Health",
    "Measure",
    "Measured",
    "health_rows",
    "likeness",
    "measured",
    "told",
]

Measure = Literal["aspect", "black", "white", "brightness", "flat", "contrast", "sharpness", "likeness"]
"""In the order in which they are held against their bounds: a black picture is out of focus too, but that is not its fault.

`aspect`: width by height of what is fitted into the frame. `black`, `white`: shares of pixels at the ends of the scale.
`brightness`, `contrast`: mean and standard deviation of the grey values, 0-255. `flat`: share of pixels that equal all their
neighbours, as where a picture did not arrive.
`sharpness`: energy of the detail of 4 to 8 pixels of the frame by that of twice the size; the same at any brightness and
contrast, and hardly below 1/16. `likeness`: correlation with the mean good picture, both 12 x 12 pixels.
"""
MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)

THUMBNAIL_SIDE: Final = 12
"""Coarse enough that a defect of a few percent of the picture hardly shows."""
_BLACK, _WHITE = 4, 251
"""Grey values up to and from which a pixel counts as black or white: noise and resizing leave few at 0 and 255 exactly."""
_NEAR = np.ones((3, 3), np.uint8)
_OCTAVE = np.array([1, 4, 6, 4, 1], np.float32) / 16  # pyrDown's own, a Gaussian of sigma 1
_NOTHING = 1e-3
"""Added to energies, in squared grey values: far below the rounding of 8 bits, so that a constant picture has sharpness 0."""


class Measured(NamedTuple):
    """`values` of all but the likeness, which needs the mean good picture; `thumbnail` (12, 12) in grey values 0-255."""

    values: dict[Measure, float]
    thumbnail: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bound:
    """`good`: the lowest and the highest of the good pictures. `allowed`: what can be judged; None where there is no limit."""

    good: tuple[float, float]
    allowed: tuple[float | None, float | None]

    def admits(self, value: float) -> bool:
        low, high = self.allowed
        return (low is None or value >= low) and (high is None or value <= high)


@dataclass(frozen=True, slots=True)
class Health:
    """What a bundle knows of its good pictures.

    `reference` (12, 12): the mean of their thumbnails, there if `likeness` is bounded: where good parts lie alike. `picture_whs`:
    the sizes of the pictures from which a region of interest of fixed pixels was cut; none where whole pictures were used.
    """

    bounds: Mapping[Measure, Bound] = field(default_factory=lambda: MappingProxyType({}))
    reference: NDArray[np.float32] | None = None
    region: Roi | None = None
    picture_whs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if ("likeness" in self.bounds) is not (self.reference is not None):
            raise InputError("picture health bounds the likeness and has no reference, or the other way round")
        if self.reference is not None and self.reference.shape != (THUMBNAIL_SIDE, THUMBNAIL_SIDE):
            raise InputError(
                f"the reference of picture health has shape {self.reference.shape}, expected {(THUMBNAIL_SIDE,) * 2}"
            )

    def check(self, frame: NDArray[np.uint8], placement: Placement) -> None:
        """Of a picture as `fit_picture` gave it, (H, W, 3) BGR. Raises `HealthError`, which says what is wrong and by how much."""
        complaint = self._size(placement) or self._outside(frame, placement)
        if complaint:
            raise HealthError(complaint)

    def measure(self, frame: NDArray[np.uint8], placement: Placement) -> dict[Measure, float]:
        """All that can be measured of the picture, the likeness only where there is a reference."""
        seen = measured(frame, placement.content, placement.roi[2:])
        if self.reference is not None:
            seen.values["likeness"] = likeness(seen.thumbnail, self.reference)
        return seen.values

    def _size(self, placement: Placement) -> str:
        """The same pixels of a picture of another size show something else."""
        if placement.roi != self.region or not self.picture_whs or placement.picture_wh in self.picture_whs:
            return ""
        (width, height), known = placement.picture_wh, ", ".join(f"{w}x{h}" for w, h in self.picture_whs)
        return (
            f"of another size: the picture has {width}x{height} pixels, and the region of interest was learnt in pictures of "
            f"{known}; set the camera as it was"
        )

    def _outside(self, frame: NDArray[np.uint8], placement: Placement) -> str:
        if not self.bounds:
            return ""
        values = self.measure(frame, placement)
        for measure in MEASURES:
            bound = self.bounds.get(measure)
            if bound is not None and not bound.admits(values[measure]):
                return f"{told(measure, values[measure], bound)}; {_WORDS[measure].cure}"
        return ""


def measured(frame: NDArray[np.uint8], content: Roi, region_wh: tuple[int, int]) -> Measured:
    """Measure the part of a frame (H, W, 3), BGR, that holds the picture; `region_wh` is its size before, in camera pixels."""
    x, y, w, h = content
    grey = cv2.cvtColor(frame[y : y + h, x : x + w], cv2.COLOR_BGR2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    half = np.asarray(cv2.pyrDown(grey.astype(np.float32)), np.float32)
    smooth, fine = _octave(half)
    quarter = np.ascontiguousarray(smooth[::2, ::2])
    _, coarse = _octave(quarter)
    values: dict[Measure, float] = {
        "aspect": region_wh[0] / region_wh[1],
        "black": _share(grey <= _BLACK),
        "white": _share(grey >= _WHITE),
        "flat": _share(cv2.dilate(grey, _NEAR) == cv2.erode(grey, _NEAR)),
        "brightness": float(mean.item()),
        "contrast": float(deviation.item()),
        "sharpness": fine / (coarse + _NOTHING),
    }
    # INTER_AREA takes ten times as long on the whole picture as on a quarter of it.
    thumbnail = cv2.resize(quarter, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return Measured(values, np.asarray(thumbnail, np.float32))


def likeness(thumbnail: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Correlation of two thumbnails, -1 to 1; 0 where one of them is constant."""
    a, b = (each - each.mean() for each in (thumbnail, reference))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norms if norms > _NOTHING else 0.0


def _octave(picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """The picture without its finest octave, and the mean square of that."""
    smooth = cv2.sepFilter2D(picture, cv2.CV_32F, _OCTAVE, _OCTAVE, borderType=cv2.BORDER_REFLECT)
    return np.asarray(smooth, np.float32), cv2.norm(picture, smooth, cv2.NORM_L2SQR) / picture.size


def _share(mask: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(mask)) / mask.size


class _Words(NamedTuple):
    """How a measure is told: what is too little or too much of it, what it is of a picture, and what to do."""

    low: str
    high: str
    what: str
    cure: str
    form: Callable[[float], str]


def _grey(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


_percent, _ratio = "{:.0%}".format, "{:.2f}".format
_LIGHT = "look at the light, the exposure and the lens cap"
_WORDS: Final[Mapping[Measure, _Words]] = {
    "aspect": _Words(
        "too narrow",
        "too wide",
        "width by height",
        "use the camera and the region of interest of the training",
        _ratio,
    ),
    "black": _Words("", "too much black", "share of black pixels", _LIGHT, _percent),
    "white": _Words("", "overexposed", "share of white pixels", "look at the light and the exposure", _percent),
    "flat": _Words(
        "", "incomplete", "share of pixels without any detail", "look whether the picture arrives whole", _percent
    ),
    "brightness": _Words("too dark", "too bright", "mean", _LIGHT, _grey),
    "contrast": _Words(
        "without contrast", "", "deviation of grey values", "look whether a part is there, and at light and lens", _grey
    ),
    "sharpness": _Words(
        "out of focus", "", "sharpness", "look at the focus, the lens and what may shake the camera", _ratio
    ),
    "likeness": _Words(
        "unlike any good part",
        "",
        "correlation with their mean",
        "look whether part and camera are where they were",
        _ratio,
    ),
}


def told(measure: Measure, value: float, bound: Bound) -> str:
    """What is wrong with a value that the bound does not admit, and by how much."""
    words, low = _WORDS[measure], bound.allowed[0]
    fault = words.low if low is not None and not value >= low else words.high
    return f"{fault}: {words.what} {words.form(value)}, good pictures {_range(measure, *bound.good)}"


def health_rows(health: Health) -> list[tuple[str, str, str]]:
    """For people: each bounded measure's name, the good pictures' range, and what can be judged."""
    return [
        (measure, _range(measure, *bound.good), _range(measure, *bound.allowed))
        for measure in MEASURES
        if (bound := health.bounds.get(measure)) is not None
    ]


def _range(measure: Measure, low: float | None, high: float | None) -> str:
    """`81 to 130`, one number where both are told alike, `at least 51` or `at most 28%`."""
    lowest, highest = (None if limit is None else _WORDS[measure].form(limit) for limit in (low, high))
    if lowest is None or highest is None:
        return f"at least {lowest}" if highest is None else f"at most {highest}"
    return lowest if lowest == highest else f"{lowest} to {highest}"
