"""Calibration without fooling oneself: what good parts' reconstruction errors look like.

A picture standardised with statistics that contain it can never stand out: with n pictures no |z| exceeds
(n - 1) / sqrt(n). So each held-out good picture is scored with mean and spread of the *other parts* (leave-one-out, in
closed form), the threshold comes from those scores, and only the maps that go into the graph use all pictures.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import InputError

__all__ = ["MIN_CALIBRATION_PICTURES", "GoodSpread", "fit_spread", "leave_one_out"]

MIN_CALIBRATION_PICTURES = 3
"""Below this the leave-one-out spread does not exist."""

SHRINK_PICTURES = 20
"""The pooled spread counts as much as this many pictures: (n s^2 + 20 pooled) / (n + 20)."""

POOL_SHARE = 1 / 12
"""Side of the box over which the spread is pooled, as a share of the frame's long side."""

FLOOR_SHARE = 0.3
"""No pixel's spread falls below this share of the frame's mean spread: a pixel that happened never to vary in a few
pictures must not turn sensor noise into a defect."""


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


def leave_one_out(errors: NDArray[np.float32], parts: Sequence[Hashable] | None = None) -> NDArray[np.float32]:
    """Heatmaps (n, H, W) of the same pictures, each standardised by those of the other parts.

    `parts`: which part each of the n pictures shows; every picture another one where None. Mean and variance
    without a part follow from those with all (Chan, Golub & LeVeque 1983, backwards), so this costs n passes over single maps
    and not n passes over the whole stack. Raises `InputError` when fewer than 2 pictures of other parts remain.
    """
    values = _checked(errors)
    n = len(values)
    mean, squares = values.mean(0), values.var(0) * n
    members: dict[Hashable, list[int]] = {}
    for i, part in enumerate(range(n) if parts is None else parts):
        members.setdefault(part, []).append(i)
    out = np.empty(values.shape, np.float32)
    for indices in members.values():
        own = values[indices]
        m, rest = len(own), n - len(own)
        if rest < 2:
            raise InputError(f"{m} of {n} calibration pictures show one part, expected at least 2 of other parts")
        others_mean = (n * mean - own.sum(0)) / rest
        between = m * rest / n * (own.mean(0) - others_mean) ** 2
        others_squares = squares - own.var(0) * m - between
        others = _shrunk(others_mean, np.maximum(others_squares / (rest - 1), 0.0), rest)
        out[indices] = others.standardise(own.astype(np.float32))
    return out


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
    floor = FLOOR_SHARE**2 * max(float(variance.mean()), 1e-16)
    return GoodSpread(mean.astype(np.float32), np.sqrt(np.maximum(shrunk, floor)).astype(np.float32))
