"""How far a counted share can be trusted: exact binomial intervals (Clopper & Pearson 1934).

The same bound serves the threshold. If it is the (k + 1)-th largest of n independent scores, the rate at which new parts
exceed it is Beta(k + 1, n - k) whatever the scores' distribution (Wilks 1941), and that law's 95 % quantile is the
Clopper-Pearson upper bound for k exceedances among n.
"""

from __future__ import annotations

import math

from flawline_inspect.errors import InputError

__all__ = ["CONFIDENCE", "interval", "parts_needed", "upper_bound"]

CONFIDENCE = 0.95


def upper_bound(k: int, n: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound, 0–1, on the rate of an event that happened `k` times in `n` independent trials.

    >>> round(upper_bound(0, 60), 4)
    0.0487
    """
    _check(k, n)
    return 1.0 if k == n else _beta_quantile(confidence, k + 1, n - k)


def interval(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided interval, 0–1, for the rate of an event that happened `k` times in `n` independent trials."""
    _check(k, n)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else _beta_quantile(tail, k, n - k + 1)
    high = 1.0 if k == n else _beta_quantile(1 - tail, k + 1, n - k)
    return low, high


def parts_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many held-out parts, none of them above the threshold, promise at most `rate` (0–1, exclusive) false rejects.

    >>> parts_needed(0.005)
    598
    """
    if not 0 < rate < 1:
        raise InputError(f"a rate of {rate} cannot be promised, expected a share between 0 and 1")
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate) - 1e-9)


def _check(k: int, n: int) -> None:
    if not (n >= 1 and 0 <= k <= n):
        raise InputError(f"{k} of {n} is no share, expected at least one trial and no more events than trials")


def _beta_quantile(p: float, a: float, b: float) -> float:
    from scipy.special import betaincinv  # scipy's import takes longer than the rest of a command's start

    return float(betaincinv(a, b, p))
