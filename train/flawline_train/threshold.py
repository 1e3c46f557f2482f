"""The threshold of held-out parts' scores, what it promises and what is only estimated.

Two words, never mixed. **Promised** is what the order statistic of n independent held-out parts guarantees without any
assumption on the scores: with k of them above the threshold, the Clopper-Pearson 95 % upper bound on the rate at which good
parts will be rejected. **Estimated** is what a tail fitted to the scores says beyond that.

The tail: what the upper half of the scores has above the median is taken as exponential, and the threshold is the
upper prediction bound for one new part. The unknown scale makes that bound a generalised Pareto (Lomax) tail whose shape is
1 / m for m scores: the fewer they are, the heavier. A fitted shape is no better informed with 5 to 30 excesses:
`benchmarks/threshold` compares. It knows neither zero nor unit, so scores may be shifted and scaled.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.calibration import MIN_CALIBRATION_PICTURES
from flawline_inspect.errors import InputError
from flawline_train.binomial import CONFIDENCE, upper_bound

__all__ = ["ExponentialTail", "Threshold", "find_suspects", "stands_out", "threshold_at", "threshold_from_scores"]

MAX_EXTRAPOLATION = 10.0
"""The tail is never followed further above the median than this multiple of the largest score's distance from it:
beyond, nothing would be rejected."""

SUSPECT_DEVIATIONS_BY_GAP = ((4.0, 2.0), (3.0, 4.0))
"""A suspect's logarithm lies this many robust deviations (1.4826 MAD) above the median of all, and its score is that many times that
of the next part below: alone, not the end of a long tail. The second pair is for ten scores, whose deviation is little known: on the
distributions of `benchmarks/threshold` it skips no more than the first alone."""
SUSPECT_SHARE = 0.05
"""At most this share of the held-out parts, or one, is skipped: more are no accident but the product."""
MIN_PARTS_TO_SUSPECT = 8
"""Fewer scores cannot say which of them is the odd one."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where the cut lies and what stands behind it. Rates are shares in 0–1.

    `n` held-out parts, `exceedances` of them above `value`: `promised` is the upper bound on the false-reject rate that
    follows, with a confidence of 95 %. `estimated` is the expected rate by the tail, which leaves suspects out.
    `basis`: `order_statistic` when the target is promised, `exponential_tail` when it is estimated, `cheapest` when the
    costs of errors chose. `skipped`: indices of the suspects that the value did not have to let pass.
    """

    value: float
    basis: str
    n: int
    exceedances: int
    target: float
    promised: float
    estimated: float
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExponentialTail:
    """The rate at which a new part's score exceeds a value, from n scores: counted below `base`, extrapolated above.

    `censored` further parts are known to score no less than the largest of them. They count as exponential lifetimes do that
    an experiment's end cut short: their time adds to the total, and no failure is seen.
    """

    scores: NDArray[np.float64]
    """(n,), ascending."""
    censored: int = 0

    @property
    def base(self) -> float:
        return float(self.scores[len(self.scores) // 2 - 1])

    @property
    def _excess(self) -> tuple[float, int]:
        """Sum of all excesses over `base`, and the number of those that are known."""
        above = self.scores[len(self.scores) // 2 :]
        total = (above - self.base).sum() + self.censored * (self.scores[-1] - self.base)
        return float(total), len(above)

    def _share(self, of: int) -> float:
        """Expected share of new parts beyond the `of` largest of those that are known."""
        return (of + self.censored + 1) / (len(self.scores) + self.censored + 1)

    def rate(self, value: float) -> float:
        """Expected share of new parts above `value`, 0–1."""
        total, m = self._excess
        if value < self.base or total <= 0:
            return self._share(int((self.scores > value).sum()))
        return self._share(m) * (1 + (value - self.base) / total) ** -m

    def quantile(self, rate: float) -> float:
        """The value that a share of `rate` exceeds, never below the largest score, and bounded."""
        total, m = self._excess
        largest = float(self.scores[-1])
        share = rate / self._share(m)
        # In logarithms, and bounded before the power is taken: a tiny rate must not overflow.
        power = min(-np.log(share) / m, np.log1p(MAX_EXTRAPOLATION * m))
        step = min(total * float(np.expm1(power)), MAX_EXTRAPOLATION * (largest - self.base))
        return max(self.base + step, largest)


def threshold_from_scores(
    scores: NDArray[np.floating],
    target: float,
    *,
    doubted: Sequence[int] = (),
    keep_suspects: bool = False,
    cross_fitted: NDArray[np.floating] | None = None,
) -> Threshold:
    """The threshold for `scores` (n,) of independent held-out parts and a `target` share of false rejects.

    With enough parts it is the smallest score at which the promise is at most `target`. Else the tail is
    extrapolated, never below the largest score. Suspects (`find_suspects`, and those of the indices `doubted`, known for other
    reasons, that score above all that are not) count there as parts that score no less than the
    largest of the others, how much more is not believed, and in the promise as exceedances;
    with `keep_suspects` they are scores like others. `cross_fitted`: scores of parts by networks that did not learn from
    them; they sharpen the estimate and never enter the promise.
    """
    values = np.asarray(scores, np.float64)
    n = len(values)
    if n < MIN_CALIBRATION_PICTURES or not np.isfinite(values).all():
        raise InputError(f"{n} calibration scores, expected at least {MIN_CALIBRATION_PICTURES}, all finite")
    if not 0 < target < 1:
        raise InputError(f"false-reject target is {target}, expected a share between 0 and 1")
    suspects = () if keep_suspects else _suspects(values, doubted)
    clean = np.sort(np.delete(values, suspects))
    ordered = np.sort(values)
    further = np.empty(0) if cross_fitted is None else np.asarray(cross_fitted, np.float64)
    tail = ExponentialTail(np.sort(np.concatenate([clean, further])), len(suspects))

    allowed = _most_allowed(n, target)
    if allowed >= len(suspects):
        value, expected = float(ordered[n - 1 - allowed]), (allowed + 1) / (n + 1)
        return Threshold(value, "order_statistic", n, allowed, target, upper_bound(allowed, n), expected, suspects)
    value = max(tail.quantile(target), float(clean[-1]))
    exceedances = int((values > value).sum())
    return Threshold(
        value, "exponential_tail", n, exceedances, target, upper_bound(exceedances, n), tail.rate(value), suspects
    )


def threshold_at(
    scores: NDArray[np.floating], value: float, target: float, *, suspects: Sequence[int], compared: int
) -> Threshold:
    """The threshold `value` that costs chose among `compared` ones, and what `scores` (n,) promise and estimate there.

    The promise holds for all of those that were compared, and so for the chosen one (Bonferroni).
    """
    values = np.asarray(scores, np.float64)
    k = int((values > value).sum())
    promised = upper_bound(k, len(values), 1 - (1 - CONFIDENCE) / compared)
    tail = ExponentialTail(np.sort(np.delete(values, list(suspects))))
    return Threshold(value, "cheapest", len(values), k, target, promised, tail.rate(value), tuple(suspects))


def _suspects(values: NDArray[np.float64], doubted: Sequence[int]) -> tuple[int, ...]:
    found = {*find_suspects(values), *doubted}
    others = np.delete(values, list(found))
    if len(others) < MIN_CALIBRATION_PICTURES:
        return find_suspects(values)
    # One that scores like a good part asks nothing of the threshold that good parts do not.
    return tuple(sorted(i for i in found if values[i] > others.max()))


def _most_allowed(n: int, target: float) -> int:
    """The largest number of exceedances among n whose upper bound is within `target`; -1 when not even none is."""
    return bisect.bisect_right(range(n), target, key=lambda k: upper_bound(k, n)) - 1


def find_suspects(scores: NDArray[np.floating]) -> tuple[int, ...]:
    """Indices of the `scores` (n,) that stand far above and apart from all others: likely no good part, or no part.

    Far: by the median and its deviation on a logarithmic scale. Apart: by the distance to the next score below. Few: at
    most one in twenty, or one. Without logarithms (median not above zero) and with fewer than 8 scores: none.
    """
    values = np.asarray(scores, np.float64)
    n = len(values)
    median = float(np.median(values)) if n else 0.0
    if n < MIN_PARTS_TO_SUSPECT or median <= 0:
        return ()
    order = np.argsort(values, kind="stable")
    logs = np.log(np.maximum(values[order], 1e-3 * median))
    deviation = 1.4826 * float(np.median(np.abs(logs - np.log(median))))
    gaps = np.diff(logs, prepend=logs[0])
    suspect = np.zeros(n, np.bool_)
    for deviations, gap in SUSPECT_DEVIATIONS_BY_GAP:
        suspect |= (logs > np.log(median) + deviations * deviation) & (gaps > np.log(gap))
    for count in range(max(1, int(SUSPECT_SHARE * n)), 0, -1):
        if suspect[n - count]:
            return tuple(sorted(int(i) for i in order[n - count :]))
    return ()


def stands_out(scores: NDArray[np.floating], factor: float = 5.0) -> tuple[int, ...]:
    """Indices of `scores` (n,) above `factor` times the median: to be named, whether or not they may be skipped."""
    values = np.asarray(scores, np.float64)
    median = float(np.median(values))
    return tuple(int(i) for i in np.flatnonzero(values > factor * median)) if median > 0 else ()
