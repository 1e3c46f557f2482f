"""Calibration against plain loops, SciPy and simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from flawline_inspect.calibration import (
    FLOOR_SHARE,
    POOL_SHARE,
    SHRINK_PICTURES,
    Threshold,
    _student_t_quantile,
    fit_spread,
    leave_one_out,
    threshold_from_scores,
)
from flawline_inspect.errors import InputError

FLOAT32 = 2e-6  # a few roundings of a float32, relative


def error_maps(n: int, h: int, w: int, seed: int = 0) -> NDArray[np.float32]:
    """Error maps (n, h, w) as reconstructions leave them: positive, skewed, with a noisy and a quiet side."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.01, 0.3, w, dtype=np.float32)
    return (rng.gamma(2.0, 1.0, (n, h, w)).astype(np.float32) * scale).astype(np.float32)


def plain_spread(errors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and shrunk spread, pixel by pixel as the module's docstrings tell it."""
    n, h, w = errors.shape
    mean, variance = np.zeros((h, w)), np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            column = [float(value) for value in errors[:, y, x]]
            mean[y, x] = sum(column) / n
            variance[y, x] = sum((value - mean[y, x]) ** 2 for value in column) / (n - 1)
    side = max(3, round(max(h, w) * POOL_SHARE) | 1)
    padded = np.pad(variance, side // 2, mode="symmetric")
    spread = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            pooled = padded[y : y + side, x : x + side].mean()
            shrunk = (n * variance[y, x] + SHRINK_PICTURES * pooled) / (n + SHRINK_PICTURES)
            spread[y, x] = math.sqrt(max(shrunk, FLOOR_SHARE**2 * max(variance.mean(), 1e-16)))
    return mean, spread


MAPS = [
    pytest.param(error_maps(3, 8, 12), id="3 pictures"),
    pytest.param(error_maps(12, 20, 30), id="12 pictures"),
    pytest.param(error_maps(5, 1, 1), id="one pixel"),
    pytest.param(error_maps(5, 1, 17), id="one row"),
    pytest.param(error_maps(5, 40, 2), id="two columns"),
    pytest.param(np.full((4, 6, 7), 0.25, np.float32), id="constant"),
    pytest.param(np.zeros((4, 6, 7), np.float32), id="nothing but zeros"),
    pytest.param(np.full((4, 6, 7), 1e6, np.float32) * np.array([1, 1, 1, 2]).reshape(4, 1, 1), id="saturated"),
]


@pytest.mark.parametrize("errors", MAPS)
def test_spread_against_a_plain_loop(errors: NDArray[np.float32]) -> None:
    """Mean and spread are those of a loop over pixels; both float32, and the spread never 0."""
    fitted = fit_spread(errors)
    mean, spread = plain_spread(errors.astype(np.float64))
    assert fitted.mean.dtype == fitted.spread.dtype == np.float32
    np.testing.assert_allclose(fitted.mean, mean, rtol=FLOAT32, atol=1e-12)
    # The box filter keeps a running sum, which costs a few more digits than the loop's own.
    np.testing.assert_allclose(fitted.spread, spread, rtol=10 * FLOAT32)
    assert (fitted.spread > 0).all()


@pytest.mark.parametrize("errors", [case for case in MAPS if len(case.values[0]) > 3])
def test_leave_one_out_really_leaves_each_out(errors: NDArray[np.float32]) -> None:
    """The closed form gives what fitting the n - 1 others, once a picture, gives."""
    found = leave_one_out(errors)
    expected = np.stack([fit_spread(np.delete(errors, i, axis=0)).standardise(errors[i]) for i in range(len(errors))])
    assert found.dtype == np.float32 and found.shape == errors.shape
    # Both divide differences of float32 maps: what is lost there is relative to the map, not to the difference.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_leave_one_out_of_three_pictures() -> None:
    """Three is the least: each is judged by the two others, which `fit_spread` alone would refuse."""
    errors = error_maps(3, 5, 7)
    found = leave_one_out(errors)
    for i in range(3):
        mean, spread = plain_spread(np.delete(errors, i, axis=0).astype(np.float64))
        np.testing.assert_allclose(found[i], (errors[i] - mean) / spread, rtol=1e-4, atol=1e-4)


def test_a_picture_among_its_own_judges_cannot_stand_out() -> None:
    """Why leave-one-out: without it no deviation exceeds (n - 1) / sqrt(n), with it an outlier does."""
    n = 8
    errors = np.ones((n, 1, 1), np.float32) + error_maps(n, 1, 1) * np.float32(0.01)
    errors[3] = 100
    assert float(np.abs(leave_one_out(errors)[3]).max()) > 1000
    assert float(np.abs(fit_spread(errors).standardise(errors)).max()) <= (n - 1) / math.sqrt(n) + 1e-4


@settings(deadline=None)
@given(st.integers(3, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(-8, 20))
def test_scale_does_not_matter(n: int, h: int, w: int, seed: int, exponent: int) -> None:
    """Heatmaps are in units of the good parts' spread: errors in other units give the same ones.

    From 2^-8 up: far below, the floor that keeps a spread from being 0 takes over.
    """
    errors = error_maps(n, h, w, seed)
    scaled = errors * np.float32(2.0**exponent)
    heatmaps = leave_one_out(errors)
    assert np.isfinite(heatmaps).all()
    np.testing.assert_allclose(leave_one_out(scaled), heatmaps, rtol=1e-4, atol=1e-4)


def test_standardise_takes_one_map_or_many() -> None:
    """(H, W) and (n, H, W) give heatmaps of the same shape, float32."""
    errors = error_maps(5, 4, 6)
    fitted = fit_spread(errors)
    together = fitted.standardise(errors)
    assert together.shape == errors.shape and together.dtype == np.float32
    for one, heatmap in zip(errors, together, strict=True):
        np.testing.assert_array_equal(fitted.standardise(one), heatmap)


@pytest.mark.parametrize("function", [fit_spread, leave_one_out])
@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        pytest.param(np.zeros((0, 4, 4), np.float32), r"shape \(0, 4, 4\), expected", id="no picture"),
        pytest.param(np.zeros((2, 4, 4), np.float32), r"shape \(2, 4, 4\), expected", id="too few"),
        pytest.param(np.zeros((4, 4), np.float32), r"shape \(4, 4\), expected", id="one map"),
        pytest.param(np.zeros((4, 1, 4, 4), np.float32), "expected .n, H, W.", id="with channels"),
        pytest.param(np.full((4, 4, 4), np.nan, np.float32), "diverged", id="not a number"),
        pytest.param(np.full((4, 4, 4), np.inf, np.float32), "diverged", id="infinite"),
    ],
)
def test_maps_that_say_nothing_are_refused(
    function: Callable[[NDArray[np.float32]], object], errors: NDArray[np.float32], sentence: str
) -> None:
    """Wrong shapes, too few pictures and values that are not finite are an InputError."""
    with pytest.raises(InputError, match=sentence):
        function(errors)


@pytest.mark.parametrize("degrees", range(2, 61))
def test_student_t_quantile_against_scipy(degrees: int) -> None:
    """Within 1 % of SciPy's for every tail that a false-reject target asks for, 0.9 to 0.999."""
    tails = (0.9, 0.925, 0.95, 0.975, 0.98, 0.99, 0.995, 0.998, 0.999)
    found = {p: _student_t_quantile(p, degrees) / float(stats.t.ppf(p, degrees)) for p in tails}
    assert found == pytest.approx(dict.fromkeys(tails, 1.0), rel=0.01)


@pytest.mark.parametrize(
    ("n", "target", "allowed"),
    [
        pytest.param(3, 0.25, 1, id="3 scores promise a quarter"),
        pytest.param(19, 0.05, 1, id="exactly enough"),
        pytest.param(20, 0.05, 1, id="one more than enough"),
        pytest.param(39, 0.05, 2, id="two may be rejected"),
        pytest.param(99, 0.01, 1, id="the default target"),
        pytest.param(99, 0.29, 29, id="0.29 x 100 is 28.999999999999996"),
        pytest.param(99, 0.07, 7, id="0.07 x 100 is 7.000000000000001"),
        pytest.param(999, 0.01, 10, id="many"),
        pytest.param(9, 0.9, 9, id="nearly all"),
    ],
)
def test_order_statistic(n: int, target: float, allowed: int) -> None:
    """With k = target (n + 1) >= 1 the threshold is the k-th largest score, and k / (n + 1) is promised."""
    scores = np.random.default_rng(n).lognormal(0, 1, n)
    found = threshold_from_scores(scores, target)
    kth_largest = float(np.partition(scores, n - allowed)[n - allowed])
    assert found == Threshold(kth_largest, n, target, allowed / (n + 1), "order_statistic")
    assert int((scores > found.value).sum()) == allowed - 1
    assert found.promised_false_reject_rate <= target + 1e-9


@pytest.mark.parametrize(
    ("n", "target"),
    [
        pytest.param(98, 0.01, id="one too few"),
        pytest.param(18, 0.05, id="18 for one in 20"),
        pytest.param(20, 0.01, id="20 for one in 100"),
        pytest.param(4, 0.1, id="4 for one in 10"),
        pytest.param(3, 0.01, id="3 for one in 100"),
    ],
)
def test_log_normal_bound_against_scipy(n: int, target: float) -> None:
    """Too few scores: the upper prediction bound of a log-normal, as SciPy's quantile gives it, no less than the
    largest score and no more than ten times it. What is promised stays what n scores can promise."""
    scores = np.random.default_rng(n).lognormal(1, 0.4, n)
    found = threshold_from_scores(scores, target)
    logs = np.log(scores)
    bound = logs.mean() + stats.t.ppf(1 - target, n - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
    expected = min(max(math.exp(bound), scores.max()), 10 * scores.max())
    assert (found.basis, found.n, found.promised_false_reject_rate) == ("log_normal", n, 1 / (n + 1))
    # 1 % of the quantile is this much of the bound.
    assert found.value == pytest.approx(expected, rel=0.01 * abs(bound - logs.mean()) + 1e-9)
    assert found.value >= scores.max()


@pytest.mark.parametrize(
    ("scores", "target", "expected"),
    [
        pytest.param([5.0, 5.0, 5.0], 0.01, 5.0, id="constant, extrapolated"),
        pytest.param([5.0, 5.0, 5.0], 0.5, 5.0, id="constant, ordered"),
        pytest.param([0.0, 0.0, 0.0], 0.25, 0.0, id="zeros, ordered"),
        pytest.param([1e30, 1e30, 1e30], 0.01, 1e30, id="saturated"),
        pytest.param([-3.0, -2.0, -1.0], 0.25, -1.0, id="negative, ordered"),
    ],
)
def test_threshold_of_odd_scores(scores: list[float], target: float, expected: float) -> None:
    """Scores without spread give themselves."""
    assert threshold_from_scores(np.array(scores), target).value == pytest.approx(expected)


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param([0.0, 0.0, 0.0], id="zeros"),
        pytest.param([-3.0, -2.0, -1.0], id="negative"),
        pytest.param([0.001, 0.001, 1.0], id="one far out"),
    ],
)
@pytest.mark.parametrize("target", [1e-2, 1e-3, 1e-5, 1e-9])
def test_an_extreme_target_gives_a_number_or_a_sentence(scores: list[float], target: float) -> None:
    """However small the target, the threshold is finite and above every score, or the target is refused."""
    try:
        value = threshold_from_scores(np.array(scores), target).value
    except InputError:
        return
    assert math.isfinite(value) and value >= max(scores)


@pytest.mark.parametrize(
    ("scores", "target", "sentence"),
    [
        pytest.param([], 0.1, "0 calibration scores", id="no score"),
        pytest.param([1.0, 2.0], 0.1, "2 calibration scores", id="two scores"),
        pytest.param([1.0, 2.0, math.nan], 0.1, "all finite", id="not a number"),
        pytest.param([1.0, 2.0, math.inf], 0.1, "all finite", id="infinite"),
        pytest.param([1.0, 2.0, 3.0], 0.0, "target is 0", id="target 0"),
        pytest.param([1.0, 2.0, 3.0], 1.0, "target is 1", id="target 1"),
        pytest.param([1.0, 2.0, 3.0], -0.1, "target is -0.1", id="target below 0"),
        pytest.param([1.0, 2.0, 3.0], math.nan, "target is nan", id="target not a number"),
    ],
)
def test_what_gives_no_threshold_is_refused(scores: list[float], target: float, sentence: str) -> None:
    """Too few scores, scores that are not finite and targets that are no share are an InputError."""
    with pytest.raises(InputError, match=sentence):
        threshold_from_scores(np.array(scores), target)


score_lists = st.lists(st.floats(0, 1000), min_size=3, max_size=40)
targets = st.floats(0.001, 0.9)


@given(score_lists, targets, st.randoms(use_true_random=False))
def test_the_order_of_scores_does_not_matter(scores: list[float], target: float, shuffler: random.Random) -> None:
    """The same pictures in another order give the same threshold."""
    shuffled = list(scores)
    shuffler.shuffle(shuffled)
    assert threshold_from_scores(np.array(shuffled), target) == threshold_from_scores(np.array(scores), target)


@given(score_lists, targets, targets)
def test_a_larger_target_never_raises_the_threshold(scores: list[float], one: float, other: float) -> None:
    """Who accepts more false rejects gets a lower threshold or the same, across both bases."""
    few, many = sorted((one, other))
    values = [threshold_from_scores(np.array(scores), target).value for target in (few, many)]
    assert values[0] >= values[1] * (1 - 1e-12)


@pytest.mark.parametrize(("n", "target"), [(9, 0.1), (19, 0.1), (30, 0.05), (99, 0.01)], ids=str)
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda rng, shape: rng.lognormal(0, 1, shape), id="log-normal"),
        pytest.param(lambda rng, shape: np.abs(rng.standard_cauchy(shape)), id="heavy tail"),
        pytest.param(lambda rng, shape: rng.integers(0, 4, shape).astype(float), id="ties"),
        pytest.param(lambda rng, shape: rng.normal(rng.normal(0, 5, (shape[0], 1)), 1, shape), id="shifted days"),
    ],
)
def test_the_promise_holds(
    n: int, target: float, draw: Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
) -> None:
    """New good parts exceed the threshold no more often than promised, whatever the scores' distribution.

    Only exchangeability is needed: on `shifted days` scores of one calibration and its new part share a shift.
    """
    trials = 3000
    scores = draw(np.random.default_rng(7 * n), (trials, n + 1))
    found = [threshold_from_scores(row[:n], target) for row in scores]
    promise = found[0].promised_false_reject_rate
    assert {each.basis for each in found} == {"order_statistic"}
    rate = float(np.mean([row[n] > each.value for row, each in zip(scores, found, strict=True)]))
    noise = 4 * math.sqrt(promise * (1 - promise) / trials)  # 4 standard errors: one false alarm in 30,000
    assert rate <= promise + noise


def test_the_estimate_holds_for_what_it_assumes() -> None:
    """On log-normal scores the extrapolated threshold rejects about as often as the target says, not more."""
    n, target, trials = 20, 0.02, 5000
    scores = np.random.default_rng(3).lognormal(1, 0.5, (trials, n + 1))
    found = [threshold_from_scores(row[:n], target) for row in scores]
    assert {each.basis for each in found} == {"log_normal"}
    rate = float(np.mean([row[n] > each.value for row, each in zip(scores, found, strict=True)]))
    assert target / 2 < rate <= target + 4 * math.sqrt(target * (1 - target) / trials)
