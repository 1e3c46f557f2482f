"""Calibration without fooling oneself: what good parts' reconstruction errors look like, and where to cut.

A picture standardised with statistics that contain it can never stand out: with n pictures no |z| exceeds
(n - 1) / sqrt(n). So each held-out good picture is scored with mean and spread of the *others* (leave-one-out, in
closed form), the threshold comes from those scores, and only the maps that go into the graph use all pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import InputError

__all__ = ["GoodSpread", "Threshold", "fit_spread", "leave_one_out", "threshold_from_scores"]

MIN_CALIBRATION_PICTURES = 3
"""Below this the leave-one-out spread does not exist."""

SHRINK_PICTURES = 20
"""The pooled spread counts as much as this many pictures: (n s^2 + 20 pooled) / (n + 20)."""

POOL_SHARE = 1 / 12
"""Side of the box over which the spread is pooled, as a share of the frame's long side."""

FLOOR_SHARE = 0.3
"""No pixel's spread falls below this share of the frame's mean spread: a pixel that happened never to vary in a few
pictures must not turn sensor noise into a defect."""

MAX_EXTRAPOLATION = 10.0
"""The tail is never followed further than this multiple of the largest score seen: beyond it nothing would be rejected."""

_LOG_FLOOR = 1e-3


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


def leave_one_out(errors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Heatmaps (n, H, W) of the same pictures, each standardised by the n - 1 others.

    Mean and variance without picture i follow from those with all (Welford's update, backwards), so this costs n
    passes over single maps and not n passes over the whole stack.
    """
    values = _checked(errors)
    n = len(values)
    mean, variance = values.mean(0), values.var(0, ddof=1)
    out = np.empty(values.shape, np.float32)
    for i, value in enumerate(values):
        others_mean = (n * mean - value) / (n - 1)
        others_variance = ((n - 1) * variance - n / (n - 1) * (value - mean) ** 2) / (n - 2)
        others = _shrunk(others_mean, np.maximum(others_variance, 0.0), n - 1)
        out[i] = others.standardise(value.astype(np.float32))
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


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where the cut lies and what stands behind it.

    `false_reject_target`: share of good parts that may be rejected, 0–1. `promised_false_reject_rate`: the expected
    rate that `n` exchangeable held-out pictures guarantee without any assumption, 1 / (n + 1) at best.
    `basis`: `order_statistic` when the target is within that promise, else `log_normal`: an extrapolation, an estimate.
    """

    value: float
    n: int
    false_reject_target: float
    promised_false_reject_rate: float
    basis: str


def threshold_from_scores(scores: NDArray[np.floating], false_reject_target: float) -> Threshold:
    """The threshold for n leave-one-out `scores` (n,) of good pictures.

    With k = floor(target (n + 1)) >= 1 the k-th largest score is a cut that a new good part exceeds with probability
    at most k / (n + 1) (exchangeability; the bound of conformal prediction, Vovk et al. 2005). When n is too small for the
    target the tail is extrapolated: scores are treated as log-normal and the cut is their upper prediction bound for
    one new part, never below the largest score that was seen and never above ten times that.
    """
    values = np.sort(np.asarray(scores, np.float64))
    n = len(values)
    if n < MIN_CALIBRATION_PICTURES or not np.isfinite(values).all():
        raise InputError(f"{n} calibration scores, expected at least {MIN_CALIBRATION_PICTURES}, all finite")
    if not 0 < false_reject_target < 1:
        raise InputError(f"false-reject target is {false_reject_target}, expected a share between 0 and 1")
    allowed = math.floor(false_reject_target * (n + 1) + 1e-9)
    if allowed >= 1:
        return Threshold(float(values[n - allowed]), n, false_reject_target, allowed / (n + 1), "order_statistic")
    logs = np.log(np.maximum(values, _LOG_FLOOR * max(1.0, float(values[-1]))))
    quantile = _student_t_quantile(1 - false_reject_target, n - 1)
    exponent = float(logs.mean()) + quantile * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / n)
    largest = float(values[-1])
    bound = math.exp(min(exponent, math.log(MAX_EXTRAPOLATION * max(largest, 1e-6))))
    return Threshold(max(bound, largest), n, false_reject_target, 1 / (n + 1), "log_normal")


def _student_t_quantile(p: float, degrees: int) -> float:
    """Student's t quantile, to a thousandth, for 0.5 < p < 1.

    With t = sqrt(v) tan(a) the density becomes cos(a)^(v - 1) on a finite interval, where a sum is accurate.
    The edge's short dependency list has no SciPy, and this is all that would be used of it.
    """
    angles = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(p, 0.5 + 0.5 * cumulative / cumulative[-1], angles))
    return math.sqrt(degrees) * math.tan(angle)
