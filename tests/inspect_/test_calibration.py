"""Calibration against plain loops, SciPy and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_inspect.calibration import (
    FLOOR_SHARE,
    POOL_SHARE,
    SHRINK_PICTURES,
    fit_spread,
    leave_one_out,
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


def test_leave_one_out_leaves_a_whole_part_out() -> None:
    """Three frames of a part are standardised by maps that are made anew from the other parts alone, pixel by pixel."""
    errors, parts = error_maps(9, 6, 10), ["a", "b", "b", "c", "a", "d", "a", "e", "f"]
    found = leave_one_out(errors, parts)
    for i, part in enumerate(parts):
        others = errors[[other != part for other in parts]].astype(np.float64)
        mean, spread = plain_spread(others)
        np.testing.assert_allclose(found[i], (errors[i] - mean) / spread, rtol=1e-4, atol=1e-4)


def test_a_part_never_helps_its_own_frames() -> None:
    """Two frames that share an odd spot stand out as one part, and hide each other as two."""
    errors = error_maps(8, 8, 12)
    errors[2:4, 4, 6] += 3.0
    as_two = leave_one_out(errors)
    as_one = leave_one_out(errors, [0, 1, 2, 2, 4, 5, 6, 7])
    assert (as_one[2:4, 4, 6] > 1.5 * as_two[2:4, 4, 6]).all()


def test_one_part_in_all_pictures_cannot_be_left_out() -> None:
    """Fewer than two pictures of other parts have no spread: the sentence says how many show the one part."""
    with pytest.raises(InputError, match="4 of 5 calibration pictures show one part"):
        leave_one_out(error_maps(5, 6, 8), ["a", "a", "b", "a", "a"])
