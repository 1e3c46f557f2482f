"""Calibration without fooling oneself: what good parts' reconstruction errors look like.

A picture standardised with statistics that contain it can never stand out: with n pictures no |z| exceeds
(n - 1) / sqrt(n). So each held-out good picture is scored with mean and spread of the *other parts* (leave-one-out, in
closed form), the threshold comes from those scores, and only the maps that go into the graph use all pictures.

A texture has no places: there, mean and spread are those of all places of the other parts' error maps together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import InputError

__all__ = [
    "MIN_CALIBRATION_PICTURES",
    "GoodSpread",
    "Moments",
    "fit_pooled",
    "fit_spread",
    "leave_one_out",
    "leave_one_out_pooled",
]

MIN_CALIBRATION_PICTURES = 3
"""Below this the leave-one-out spread does not exist."""

SHRINK_PICTURES = 20
"""The pooled spread counts as much as this many pictures: (n s^2 + 20 pooled) / (n + 20)."""

POOL_SHARE = 1 / 12
"""Side of the box over which the spread is pooled, as a share of the frame's long side."""

FLOOR_SHARE = 0.75
"""No pixel's spread falls below this share of the frame's mean spread: a pixel that happened never to vary in a few
pictures must not turn sensor noise into a defect. On five real sets 0.6 to 0.9 were best (benchmarks/LOG.md)."""


_NO_VARIANCE = 1e-16
"""Below the rounding of float32; taken where error maps do not vary at all."""


@dataclass(frozen=True, slots=True)
class GoodSpread:
    """Mean and spread (standard deviation) of good parts' error maps, both (H, W) float32; spread > 0."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def standardise(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Error maps (n, H, W) or (H, W) → heatmaps of the same shape, in units of the good parts' spread."""
        return ((errors - self.mean) / self.spread).astype(np.float32)


def fit_spread(errors: NDArray[np.float32]) -> GoodSpread:
    """Mean and shrunk spread of the error maps (n, H, W) of n >= 3 held-out good pictures."""
    values = _checked(errors)
    return _shrunk(values.mean(0), values.var(0, ddof=1), len(values))


def leave_one_out(
    errors: NDArray[np.float32],
    parts: Sequence[Hashable] | None = None,
    others: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Heatmaps (k, H, W) of the same pictures, each standardised by those of the other parts.

    `parts`: which part each of the k pictures shows; every picture another one where None. `others` (m, H, W): error maps of
    pictures of none of these parts, which count for each of them. Mean and variance
    without a part follow from those with all (Chan, Golub & LeVeque 1983, backwards), so this costs k passes over single maps
    and not k passes over the whole stack. Raises `InputError` when fewer than 2 pictures of other parts remain.
    """
    values = _checked(errors if others is None else np.concatenate([errors, others]))
    n = len(values)
    mean, squares = values.mean(0), values.var(0) * n
    members: dict[Hashable, list[int]] = {}
    for i, part in enumerate(range(len(errors)) if parts is None else parts):
        members.setdefault(part, []).append(i)
    out = np.empty(errors.shape, np.float32)
    for indices in members.values():
        own = values[indices]
        m, rest = len(own), n - len(own)
        if rest < 2:
            raise InputError(f"{m} of {n} calibration pictures show one part, expected at least 2 of other parts")
        others_mean = (n * mean - own.sum(0)) / rest
        between = m * rest / n * (own.mean(0) - others_mean) ** 2
        others_squares = squares - own.var(0) * m - between
        good = _shrunk(others_mean, np.maximum(others_squares / (rest - 1), 0.0), rest)
        out[indices] = good.standardise(own.astype(np.float32))
    return out


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each of n >= 3 held-out good pictures' error maps over all its places, (n,) each: all that calibration
    without places needs to know of them. Raises `InputError` for fewer, and for what is no number."""

    means: NDArray[np.float64]
    variances: NDArray[np.float64]

    def __post_init__(self) -> None:
        if len(self.means) < MIN_CALIBRATION_PICTURES:
            raise InputError(
                f"there are error maps of {len(self.means)} pictures, expected at least {MIN_CALIBRATION_PICTURES}"
            )
        if not (np.isfinite(self.means).all() and np.isfinite(self.variances).all()):
            raise InputError("error maps of good pictures contain non-finite values: the autoencoder diverged")

    def pooled(self) -> tuple[float, float]:
        """Mean and spread over all places of all pictures; spread > 0."""
        return _pooled(self.means, self.variances)

    def spread(self, hw: tuple[int, int]) -> GoodSpread:
        """The same for every place of (H, W)."""
        mean, spread = self.pooled()
        return GoodSpread(np.full(hw, mean, np.float32), np.full(hw, spread, np.float32))

    def leave_one_out(self, parts: Sequence[Hashable] | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For each picture mean and spread over all places of the other parts' pictures, (n,) each; `parts` and errors as in
        the function of this name."""
        n = len(self.means)
        names: dict[Hashable, int] = {}
        part_of = np.array([names.setdefault(part, len(names)) for part in (range(n) if parts is None else parts)])
        out = np.empty((2, n))
        for part in range(len(names)):
            own = part_of == part
            if n - own.sum() < 2:
                raise InputError(
                    f"{own.sum()} of {n} calibration pictures show one part, expected at least 2 of other parts"
                )
            out[:, own] = np.array(_pooled(self.means[~own], self.variances[~own]))[:, None]
        return out[0], out[1]


def fit_pooled(errors: NDArray[np.float32]) -> GoodSpread:
    """As `fit_spread`, for textures: one mean and one spread for all places."""
    return _moments(errors).spread((errors.shape[1], errors.shape[2]))


def leave_one_out_pooled(errors: NDArray[np.float32], parts: Sequence[Hashable] | None = None) -> NDArray[np.float32]:
    """As `leave_one_out`, for textures."""
    means, spreads = _moments(errors).leave_one_out(parts)
    return np.asarray((errors - means[:, None, None]) / spreads[:, None, None], np.float32)


def _moments(errors: NDArray[np.float32]) -> Moments:
    values = _checked(errors).reshape(len(errors), -1)
    return Moments(values.mean(1), values.var(1))


def _pooled(means: NDArray[np.float64], variances: NDArray[np.float64]) -> tuple[float, float]:
    """What varies within pictures and what varies between them, both count."""
    return float(means.mean()), float(np.sqrt(max(variances.mean() + means.var(ddof=1), _NO_VARIANCE)))


def _checked(errors: NDArray[np.float32]) -> NDArray[np.float64]:
    if errors.ndim != 3 or len(errors) < MIN_CALIBRATION_PICTURES:
        raise InputError(
            f"error maps have shape {errors.shape}, expected (n, H, W) with n >= {MIN_CALIBRATION_PICTURES}"
        )
    values = errors.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("error maps of good pictures contain non-finite values: the autoencoder diverged")
    return values


def _shrunk(mean: NDArray[np.float64], variance: NDArray[np.float64], n: int) -> GoodSpread:
    side = max(3, round(max(variance.shape) * POOL_SHARE) | 1)
    pooled = cv2.blur(variance, (side, side), borderType=cv2.BORDER_REFLECT)
    shrunk = (n * variance + SHRINK_PICTURES * pooled) / (n + SHRINK_PICTURES)
    floor = FLOOR_SHARE**2 * max(float(variance.mean()), _NO_VARIANCE)
    return GoodSpread(mean.astype(np.float32), np.sqrt(np.maximum(shrunk, floor)).astype(np.float32))
