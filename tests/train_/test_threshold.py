"""The threshold: what it promises against simulation, what it estimates against plain formulas, and who is a suspect."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from flawline_inspect.errors import InputError
from flawline_train.binomial import upper_bound
from flawline_train.threshold import (
    ExponentialTail,
    find_suspects,
    stands_out,
    threshold_at,
    threshold_from_scores,
)

F64 = NDArray[np.float64]
CALM = [4.1, 5.0, 5.2, 5.9, 6.1, 6.6, 7.0, 7.7, 9.1]
ODD = np.array([*CALM, 101.0])
"""Ten held-out parts, one of them 16 times the median: the case of benchmarks/LOG.md."""


@pytest.mark.parametrize(
    ("n", "target", "exceedances"),
    [
        pytest.param(59, 0.05, 0, id="just enough for 5 %"),
        pytest.param(93, 0.05, 1, id="one may lie above"),
        pytest.param(299, 0.01, 0, id="just enough for 1 %"),
        pytest.param(300, 0.05, 8, id="eight may lie above"),
        pytest.param(5, 0.5, 0, id="a lenient target"),
        pytest.param(3, 0.99, 2, id="nearly all"),
    ],
)
def test_a_target_within_reach_is_promised(n: int, target: float, exceedances: int) -> None:
    """The (k + 1)-th largest score, with the largest k whose Clopper-Pearson bound is within the target."""
    scores = np.random.default_rng(n).gamma(4, 1, n)
    found = threshold_from_scores(scores, target)
    assert (found.basis, found.n, found.exceedances, found.target) == ("order_statistic", n, exceedances, target)
    assert int((scores > found.value).sum()) == exceedances and found.value in scores
    assert found.promised == upper_bound(exceedances, n) <= target
    assert exceedances + 1 == n or upper_bound(exceedances + 1, n) > target
    assert found.estimated == pytest.approx((exceedances + 1) / (n + 1))


@pytest.mark.parametrize(("n", "target"), [(58, 0.05), (298, 0.01), (60, 0.005), (10, 0.01), (3, 0.01)])
def test_beyond_the_promise_the_tail_is_extrapolated(n: int, target: float) -> None:
    """Excesses over the median as exponential, their scale unknown: the Lomax quantile, worked out by SciPy."""
    scores = np.sort(np.random.default_rng(n).gamma(4, 1, n))
    found = threshold_from_scores(scores, target)
    base, above = scores[n // 2 - 1], scores[n // 2 :]
    m, total = len(above), float((above - base).sum())
    expected = base + stats.lomax.isf(target * (n + 1) / (m + 1), m, scale=total)
    bounded = min(max(expected, scores[-1]), base + 10 * (scores[-1] - base))
    assert found.basis == "exponential_tail" and found.value == pytest.approx(bounded)
    assert found.value >= scores[-1] and found.exceedances == 0
    assert found.promised == upper_bound(0, n) > target
    if bounded == expected:
        assert found.estimated == pytest.approx(target)


def test_one_odd_part_of_ten_is_skipped_but_counts_against_the_promise() -> None:
    """The threshold is a little above that of the nine others, far below 101, and the promise is that of one exceedance."""
    found = threshold_from_scores(ODD, 0.01)
    assert found.skipped == (9,) and found.exceedances == 1
    assert max(CALM) < found.value < 25
    # As if it had scored no less than the largest of the others, whether 30 or 3000.
    assert threshold_from_scores(np.array(CALM), 0.01).value < found.value
    assert found.value == threshold_from_scores(np.array([*CALM, 3000.0]), 0.01).value
    assert found.promised == pytest.approx(upper_bound(1, 10))
    assert found.promised > threshold_from_scores(np.array(CALM), 0.01).promised


def test_who_is_doubted_for_other_reasons_is_skipped_where_it_scores_above_the_others() -> None:
    """Two tops of ten, not far enough by themselves: skipped when doubted, and they count. One that scores like others asks nothing."""
    scores = np.array([*CALM, 17.0, 19.0])
    doubted = threshold_from_scores(scores, 0.01, doubted=(0, 9, 10))
    assert threshold_from_scores(scores, 0.01).skipped == () and doubted.skipped == (9, 10)
    assert doubted.value < threshold_from_scores(scores, 0.01).value
    assert doubted.exceedances == sum(scores > doubted.value) and doubted.promised == upper_bound(
        doubted.exceedances, 11
    )
    assert threshold_from_scores(scores, 0.01, doubted=(9, 10), keep_suspects=True).skipped == ()
    # Where too few would be left nobody's doubts count.
    assert threshold_from_scores(scores[:4], 0.01, doubted=(0, 1)).skipped == ()


def test_suspects_are_kept_on_request() -> None:
    """As a score like others it drags the threshold above itself, and nothing exceeds that."""
    found = threshold_from_scores(ODD, 0.01, keep_suspects=True)
    assert found.skipped == () and found.exceedances == 0 and found.value >= 101


def test_a_promised_threshold_already_has_room_for_the_suspect() -> None:
    """With enough parts the one exceedance lies within the target: the order statistic, with the same value as without."""
    scores = np.append(np.random.default_rng(0).normal(10, 1, 199), 200.0)
    found = threshold_from_scores(scores, 0.05)
    assert (found.basis, found.skipped) == ("order_statistic", (199,))
    assert found.exceedances >= 1 and found.promised <= 0.05 and found.value < 20
    assert found.value == threshold_from_scores(scores, 0.05, keep_suspects=True).value


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param(CALM, (), id="nobody"),
        pytest.param([*CALM, 101.0], (9,), id="far and alone"),
        pytest.param([101.0, *CALM], (0,), id="wherever it stands"),
        pytest.param([*CALM, 17.0], (), id="alone, but not far"),
        pytest.param([2.1, 2.2, 2.7, 3.1, 4.2, 4.6, 5.4, 6.0, 7.1, 44.1], (9,), id="less far, but quite alone"),
        pytest.param([2.1, 2.2, 2.7, 3.1, 4.2, 4.6, 5.4, 6.0, 12.1, 44.1], (), id="less far, and not alone enough"),
        pytest.param([*CALM, 60.0, 101.0], (), id="two of eleven are no accident"),
        pytest.param([*CALM * 5, 95.0, 101.0], (45, 46), id="two of forty-seven are"),
        pytest.param([*CALM * 5, 20.0, 37.0, 101.0], (47,), id="only what stands alone"),
        pytest.param([5.0, 6.0, 7.0, 6.0, 101.0], (), id="five cannot say"),
        pytest.param([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0], (), id="a wide scatter"),
        pytest.param([3.0] * 9 + [9.0], (9,), id="no scatter at all"),
        pytest.param([-2.0] * 9 + [9.0], (), id="no logarithm"),
        pytest.param([0.0] * 3 + [5.0] * 7 + [99.0], (10,), id="some at zero"),
        pytest.param([], (), id="no scores"),
    ],
)
def test_suspects(scores: list[float], expected: tuple[int, ...]) -> None:
    """Far above the median in robust deviations of the logarithm, apart from the next, and few."""
    assert find_suspects(np.array(scores)) == expected


@pytest.mark.parametrize(
    ("scores", "expected"), [([1.0, 1.0, 1.0, 6.0], (3,)), ([1.0, 1.0, 5.0], ()), ([-1.0, -1.0, 9.0], ())]
)
def test_what_stands_out_is_named_in_any_number(scores: list[float], expected: tuple[int, ...]) -> None:
    """More than five times the median, also of three scores."""
    assert stands_out(np.array(scores)) == expected


@pytest.mark.parametrize(
    ("scores", "target", "expected"),
    [
        pytest.param([5.0, 5.0, 5.0], 0.01, 5.0, id="constant, extrapolated"),
        pytest.param([5.0, 5.0, 5.0], 0.7, 5.0, id="constant, promised"),
        pytest.param([0.0, 0.0, 0.0], 0.01, 0.0, id="zeros"),
        pytest.param([1e30, 1e30, 1e30], 0.01, 1e30, id="saturated"),
    ],
)
def test_threshold_of_odd_scores(scores: list[float], target: float, expected: float) -> None:
    """Scores without spread give themselves."""
    assert threshold_from_scores(np.array(scores), target).value == pytest.approx(expected)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 1.0], [-3.0, -2.0, -1.0], [0.001, 0.001, 1.0], [1e30, 2e30, 3e30]])
@pytest.mark.parametrize("target", [1e-2, 1e-5, 1e-300])
def test_an_extreme_target_gives_a_number(scores: list[float], target: float) -> None:
    """However small the target, the threshold is finite, above every score and not beyond ten times the spread."""
    value = threshold_from_scores(np.array(scores), target).value
    assert math.isfinite(value)
    assert max(scores) <= value <= scores[0] + 10.001 * (max(scores) - scores[0])


@pytest.mark.parametrize(
    ("scores", "target", "sentence"),
    [
        pytest.param([], 0.1, "0 calibration scores", id="no score"),
        pytest.param([1.0, 2.0], 0.1, "2 calibration scores", id="two scores"),
        pytest.param([1.0, 2.0, math.nan], 0.1, "all finite", id="not a number"),
        pytest.param([1.0, 2.0, math.inf], 0.1, "all finite", id="infinite"),
        pytest.param([1.0, 2.0, 3.0], 0.0, "target is 0", id="target 0"),
        pytest.param([1.0, 2.0, 3.0], 1.0, "target is 1", id="target 1"),
        pytest.param([1.0, 2.0, 3.0], math.nan, "target is nan", id="target not a number"),
    ],
)
def test_what_gives_no_threshold_is_refused(scores: list[float], target: float, sentence: str) -> None:
    """Too few scores, scores that are not finite and targets that are no share are an InputError."""
    with pytest.raises(InputError, match=sentence):
        threshold_from_scores(np.array(scores), target)


def test_cross_fitted_scores_sharpen_the_estimate_and_not_the_promise() -> None:
    """Thirty calm scores more bring the extrapolation closer; n, the promise and the floor stay those of the held-out."""
    held_out = np.array(CALM)
    further = np.random.default_rng(1).uniform(4, 9, 30)
    alone, both = (threshold_from_scores(held_out, 0.01, cross_fitted=c) for c in (None, further))
    assert both.value < alone.value and both.value >= max(CALM)
    assert (both.n, both.promised, both.exceedances) == (alone.n, alone.promised, alone.exceedances)


def test_a_threshold_that_costs_chose_promises_less() -> None:
    """What was picked from eleven is promised with the error shared among eleven; a low one has exceedances."""
    scores = np.array([*CALM, 10.0])
    chosen = threshold_at(scores, 6.8, 0.01, suspects=(), compared=11)
    assert (chosen.basis, chosen.exceedances) == ("cheapest", 4)
    assert chosen.promised == pytest.approx(upper_bound(4, 10, 1 - 0.05 / 11)) and chosen.promised > upper_bound(4, 10)
    assert chosen.estimated == pytest.approx(ExponentialTail(scores).rate(6.8))


score_lists = st.lists(st.floats(0.001, 1000), min_size=3, max_size=80)
targets = st.floats(0.001, 0.9)


@settings(deadline=None)  # a busy machine is no failure
@given(score_lists, targets, st.randoms(use_true_random=False))
def test_the_order_of_scores_does_not_matter(scores: list[float], target: float, shuffler: random.Random) -> None:
    """The same parts in another order give the same threshold and promise; only the suspects' places move."""
    shuffled = list(scores)
    shuffler.shuffle(shuffled)
    one, other = (threshold_from_scores(np.array(each), target) for each in (scores, shuffled))
    assert (one.value, one.promised, one.exceedances) == (other.value, other.promised, other.exceedances)
    assert sorted(scores[i] for i in one.skipped) == sorted(shuffled[i] for i in other.skipped)


@settings(deadline=None)  # a busy machine is no failure
@given(score_lists, targets, targets)
def test_a_smaller_target_never_lowers_the_threshold(scores: list[float], one: float, other: float) -> None:
    """Who accepts fewer false rejects gets a higher threshold or the same, across both bases and with suspects."""
    few, many = sorted((one, other))
    values = [threshold_from_scores(np.array(scores), target).value for target in (few, many)]
    assert values[0] >= values[1] * (1 - 1e-12)


@settings(deadline=None)  # a busy machine is no failure
@given(score_lists, targets)
def test_an_estimate_never_lies_below_what_was_seen(scores: list[float], target: float) -> None:
    """The extrapolated threshold is at least the largest score that was not skipped, and skips few."""
    found = threshold_from_scores(np.array(scores), target)
    assume(found.basis == "exponential_tail")
    kept = [score for i, score in enumerate(scores) if i not in found.skipped]
    assert found.value >= max(kept) and len(found.skipped) <= max(1, len(scores) // 20)
    assert found.exceedances == sum(score > found.value for score in scores) <= len(found.skipped)
    assert found.promised == upper_bound(found.exceedances, len(scores))


@settings(deadline=None)  # a busy machine is no failure
@given(score_lists, targets, st.floats(0.01, 100))
def test_scaled_scores_give_a_scaled_threshold(scores: list[float], target: float, factor: float) -> None:
    """The unit of the score plays no part."""
    values = np.array(scores)
    one, other = threshold_from_scores(values, target), threshold_from_scores(values * factor, target)
    assume(one.skipped == other.skipped)  # a gap of exactly 2 may fall to either side by rounding
    assert other.value == pytest.approx(factor * one.value, rel=1e-6)
    assert other.promised == one.promised and other.estimated == pytest.approx(one.estimated, rel=1e-6)


@settings(deadline=None)  # a busy machine is no failure
@given(score_lists, st.lists(st.floats(-10, 3000), min_size=2, max_size=10))
def test_the_tail_s_rate_falls(scores: list[float], values: list[float]) -> None:
    """A larger value is exceeded no more often; every rate is a share."""
    tail = ExponentialTail(np.sort(np.array(scores)))
    rates = [tail.rate(value) for value in sorted(values)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize(("n", "target"), [(59, 0.05), (93, 0.05), (30, 0.1), (10, 0.01), (25, 0.01)], ids=str)
@pytest.mark.parametrize(
    "law",
    [
        pytest.param(stats.lognorm(1.0), id="log-normal"),
        pytest.param(stats.pareto(2), id="heavy tail"),
        pytest.param(stats.uniform(1, 1), id="no tail"),
    ],
)
def test_the_promise_holds(n: int, target: float, law: stats.rv_continuous) -> None:
    """The true rate at the threshold lies above the promise in at most 5 % of the calibrations, whatever the distribution."""
    trials = 1500
    rows = law.ppf(np.random.default_rng(7 * n).random((trials, n)))
    broken = np.mean(
        [law.sf(found.value) > found.promised for found in (threshold_from_scores(r, target) for r in rows)]
    )
    assert broken <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize(
    ("draw", "most"),
    [
        pytest.param(lambda rng, shape: rng.gamma(4, 1, shape), 1.0, id="gamma"),
        pytest.param(lambda rng, shape: rng.normal(4, 1, shape), 1.0, id="normal"),
        pytest.param(lambda rng, shape: rng.lognormal(0, 0.3, shape), 1.0, id="log-normal"),
        pytest.param(lambda rng, shape: 1 + rng.pareto(5, shape), 2.5, id="heavy tail"),
    ],
)
@pytest.mark.parametrize("n", [10, 30])
def test_the_estimate_is_near_the_target(
    n: int, draw: Callable[[np.random.Generator, tuple[int, int]], F64], most: float
) -> None:
    """On average no more new parts are rejected than the target says; a heavy tail costs up to two and a half times that."""
    target, trials = 0.02, 4000
    scores = draw(np.random.default_rng(3), (trials, n + 1))
    found = [threshold_from_scores(row[:n], target) for row in scores]
    rate = float(np.mean([row[n] > each.value for row, each in zip(scores, found, strict=True)]))
    assert rate <= most * target + 4 * math.sqrt(target / trials)
