"""Which tail should a threshold be extrapolated with, from 10 to 300 scores of good parts? A simulation.

    python benchmarks/threshold/estimators.py [--trials 1000] [--seed 0]

Scores are drawn from distributions whose tail is known, each estimator sets its threshold, and what is printed is the
false-reject rate that it truly has there on average, as a multiple of the target, and the threshold (median and 90 % of the
draws) as a multiple of the true quantile: a rate above 1 rejects more good parts than asked for, a threshold far above 1 lets
defects escape.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from flawline_train.threshold import ExponentialTail, threshold_from_scores

F64 = NDArray[np.float64]
Estimator = Callable[[F64, float], float]
MAX_EXTRAPOLATION = 10.0

DISTRIBUTIONS = {
    "Weibull, shape 3 (light)": stats.weibull_min(3),
    "normal, 4 ± 1 (light)": stats.truncnorm(-4, np.inf, loc=4),
    "gamma, shape 4": stats.gamma(4),
    "log-normal, sigma 0.3": stats.lognorm(0.3),
    "log-normal, sigma 0.6": stats.lognorm(0.6),
    "Pareto, index 5 (heavy)": stats.pareto(5),
    "Pareto, index 3 (heavy)": stats.pareto(3),
}


def log_normal(scores: F64, target: float) -> float:
    """The upper prediction bound of a log-normal for one new part."""
    logs, n = np.log(scores), len(scores)
    bound = logs.mean() + stats.t.ppf(1 - target, n - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
    return clipped(math.exp(min(bound, 700)), scores)


def pareto_by_moments(scores: F64, target: float, *, logs: bool, shape: tuple[float, float]) -> float:
    """A generalised Pareto tail over the median by probability-weighted moments (Hosking & Wallis 1987), shape clipped."""
    values = np.sort(np.log(scores) if logs else scores)
    n = len(values)
    over = values[n // 2 :]
    base = values[n // 2 - 1]
    excess = over - base
    m = len(excess)
    b0 = excess.mean()
    b1 = (excess * (1 - (np.arange(1, m + 1) - 0.35) / m)).mean()
    xi = float(np.clip(2 - b0 / max(b0 - 2 * b1, 1e-12), *shape))
    scale = b0 * (1 - xi)  # keeps the mean when the shape was clipped
    share = target / (m / n)
    step = scale * (-math.log(share) if abs(xi) < 1e-6 else (share**-xi - 1) / xi)
    bound = base + step
    return clipped(math.exp(min(bound, 700)) if logs else bound, scores)


def log_exponential(scores: F64, target: float) -> float:
    """Logarithms above the median as exponential; the predictive bound for one new part (Lomax)."""
    return clipped(math.exp(min(ExponentialTail(np.sort(np.log(scores))).quantile(target), 700)), scores)


def exponential(scores: F64, target: float) -> float:
    """Scores above the median as exponential; the predictive bound for one new part (Lomax)."""
    return ExponentialTail(np.sort(scores)).quantile(target)


def rule(scores: F64, target: float) -> float:
    """What `flawline train` does: the promise where it reaches the target, else the tail, without suspects."""
    return threshold_from_scores(scores, target).value


def largest(scores: F64, target: float) -> float:
    """No extrapolation."""
    return float(scores.max())


def clipped(bound: float, scores: F64) -> float:
    top = float(scores.max())
    return min(max(bound, top), MAX_EXTRAPOLATION * top)


ESTIMATORS: dict[str, Estimator] = {
    "largest score": largest,
    "log-normal, t": log_normal,
    "GPD, PWM": lambda s, p: pareto_by_moments(s, p, logs=False, shape=(-0.2, 0.5)),
    "log GPD, PWM": lambda s, p: pareto_by_moments(s, p, logs=True, shape=(-0.5, 0.1)),
    "log exponential": log_exponential,
    "exponential": exponential,
    "the rule": rule,
}


def table(name: str, trials: int, seed: int, size: int, target: float, odd: float | None) -> None:
    """One table; `odd`: the score, in true medians, of one part of each draw that does not belong there."""
    rng = np.random.default_rng(seed)
    print(f"\n{name}: {size} scores, target {target:.1%}\n")
    print("| scores | " + " | ".join(ESTIMATORS) + " |")
    print("|---" * (len(ESTIMATORS) + 1) + "|")
    for law_name, law in DISTRIBUTIONS.items():
        draws = law.ppf(rng.random((trials, size)))
        if odd is not None:
            draws[:, 0] = odd * law.median()
        cells = []
        for estimator in ESTIMATORS.values():
            found = np.array([estimator(row, target) for row in draws])
            ratio = found / law.ppf(1 - target)
            high = np.quantile(ratio, 0.9)
            cells.append(f"{law.sf(found).mean() / target:.1f} · {np.median(ratio):.2f} to {high:.2f}")
        print(f"| {law_name} | " + " | ".join(cells) + " |", flush=True)


def promise_table(trials: int, seed: int) -> None:
    """How often the promise is broken, which must be at most 5 % of the time, and how often a good part is suspected."""
    rng = np.random.default_rng(seed)
    sizes = (10, 25, 75, 300)
    print("\npromise broken (at most 5.0 %) · threshold without a part that was good, target 1.0%\n")
    print("| scores | " + " | ".join(map(str, sizes)) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for name, law in DISTRIBUTIONS.items():
        cells = []
        for size in sizes:
            found = [threshold_from_scores(row, 0.01) for row in law.ppf(rng.random((trials, size)))]
            broken = np.mean([law.sf(each.value) > each.promised for each in found])
            cells.append(f"{broken:.1%} · {np.mean([bool(each.skipped) for each in found]):.1%}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for target in (0.01, 0.005):
        for size in (10, 25, 75, 300):
            table("good parts only", arguments.trials, arguments.seed, size, target, None)
    table("one of them 15 times the median", arguments.trials, arguments.seed, 10, 0.01, 15.0)
    promise_table(arguments.trials, arguments.seed)
