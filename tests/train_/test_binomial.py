"""Exact binomial bounds against SciPy's binomial test, published values and each other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flawline_inspect.errors import InputError
from flawline_train.binomial import interval, parts_needed, upper_bound


@pytest.mark.parametrize(
    ("k", "n", "percent"),
    [
        pytest.param(0, 60, 4.87, id="60 parts, none above"),
        pytest.param(0, 10, 25.89, id="10 parts, none above"),
        pytest.param(1, 10, 39.42, id="10 parts, one above"),
        pytest.param(0, 299, 0.997, id="299 promise one in a hundred"),
        pytest.param(0, 298, 1.0003, id="298 do not quite"),
        pytest.param(3, 3, 100.0, id="all above"),
        pytest.param(0, 1, 95.0, id="one part"),
    ],
)
def test_upper_bound(k: int, n: int, percent: float) -> None:
    """One-sided, 95 %: without exceedances 1 - 0.05^(1/n), the rule of three made exact."""
    assert 100 * upper_bound(k, n) == pytest.approx(percent, rel=3e-4)


@pytest.mark.parametrize(("k", "n"), [(0, 18), (1, 18), (7, 60), (59, 60), (60, 60), (3, 1000)])
def test_interval_against_scipy(k: int, n: int) -> None:
    """The two-sided interval is SciPy's `exact` one."""
    expected = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("rate", "parts"), [(0.005, 598), (0.01, 299), (0.05, 59), (0.5, 5), (0.95, 1)])
def test_parts_needed(rate: float, parts: int) -> None:
    """The smallest number whose promise without exceedances reaches the rate; one less does not."""
    assert parts_needed(rate) == parts == math.ceil(math.log(0.05) / math.log(1 - rate) - 1e-9)
    assert upper_bound(0, parts) <= rate + 1e-12
    assert parts == 1 or upper_bound(0, parts - 1) > rate


@given(st.integers(1, 400), st.data())
def test_more_exceedances_never_lower_the_bound(n: int, data: st.DataObject) -> None:
    """More of them, or fewer trials, give a larger bound; both interval ends rise, and they hold the share between them."""
    k = data.draw(st.integers(0, n - 1))
    assert upper_bound(k, n) < upper_bound(k + 1, n)
    assert upper_bound(k, n + 1) < upper_bound(k, n)
    (low, high), (next_low, next_high) = interval(k, n), interval(k + 1, n)
    assert low < next_low and high < next_high
    assert low <= k / n <= high and high > upper_bound(k, n)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(k: int, n: int) -> None:
    """No trials, or more events than trials."""
    for function in (upper_bound, interval):
        with pytest.raises(InputError, match=f"{k} of {n} is no share"):
            function(k, n)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_no_number_of_parts_promises_nothing_or_everything(rate: float) -> None:
    """0 % cannot be promised by any number of parts."""
    with pytest.raises(InputError, match="cannot be promised"):
        parts_needed(rate)
