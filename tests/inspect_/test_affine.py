"""Affine maps and warping by them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline_inspect.affine import Affine, composed, inverted, resizing, similarity, warp

IDENTITY: Affine = (1, 0, 0, 0, 1, 0)
coordinates = st.floats(-50, 50)
maps = st.builds(
    lambda scale, angle, x, y: similarity(scale * complex(np.cos(angle), np.sin(angle)), complex(x, y)),
    st.floats(0.1, 10),
    st.floats(-4, 4),
    coordinates,
    coordinates,
)


def applied(affine: Affine, x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = affine
    return a * x + b * y + c, d * x + e * y + f


@given(maps, maps, coordinates, coordinates)
def test_composed_is_one_after_the_other(first: Affine, second: Affine, x: float, y: float) -> None:
    """And a map undone by its inverse is none."""
    assert applied(composed(second, first), x, y) == pytest.approx(applied(second, *applied(first, x, y)), abs=1e-6)
    assert composed(inverted(first), first) == pytest.approx(IDENTITY, abs=1e-6)


@pytest.mark.parametrize(("from_wh", "to_wh"), [((64, 48), (16, 12)), ((63, 47), (21, 47)), ((10, 10), (30, 20))])
def test_resizing_is_what_opencv_resizes_by(from_wh: tuple[int, int], to_wh: tuple[int, int]) -> None:
    """A ramp has the value at each pixel that the map says it comes from, away from the border."""
    ramp = np.tile(np.arange(from_wh[0], dtype=np.float32), (from_wh[1], 1))
    interpolation = cv2.INTER_AREA if to_wh[0] <= from_wh[0] else cv2.INTER_LINEAR
    resized = cv2.resize(ramp, to_wh, interpolation=interpolation)
    back = inverted(resizing(from_wh, to_wh))
    expected = [applied(back, x, 0)[0] for x in range(2, to_wh[0] - 2)]
    np.testing.assert_allclose(resized[to_wh[1] // 2, 2:-2], expected, atol=1e-3)


def test_the_identity_changes_nothing() -> None:
    """Bit for bit, in colour and in grey."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(warp(picture, IDENTITY, (30, 20)), picture)
    np.testing.assert_array_equal(warp(picture[..., 0].copy(), IDENTITY, (30, 20)), picture[..., 0])


@pytest.mark.parametrize("shrink", [1.5, 2, 3.7, 4, 9, 40])
@pytest.mark.parametrize("angle", [0, 0.4])
def test_shrinking_averages(shrink: float, angle: float) -> None:
    """Fine stripes become grey, not moiré, and a single bright pixel leaves a trace."""
    side, small = 400, max(4, int(400 / shrink))
    turn = complex(np.cos(angle), np.sin(angle)) / shrink
    centre, small_centre = complex(side - 1, side - 1) / 2, complex(small - 1, small - 1) / 2
    affine = similarity(turn, small_centre - turn * centre)
    stripes = np.zeros((side, side), np.float32)
    stripes[:, ::2] = 200
    inner = warp(stripes, affine, (small, small))[small // 3 : -small // 3, small // 3 : -small // 3]
    assert abs(inner - 100).max() <= (67 if shrink < 2 else 30)

    dot = np.zeros((side, side), np.float32)
    dot[199, 201] = 1
    seen = warp(dot, affine, (small, small), border=cv2.BORDER_CONSTANT)
    assert seen.max() > 0
    assert seen.sum() == pytest.approx(1 / shrink**2, rel=0.5)


def test_outside_is_the_border_or_a_value() -> None:
    """Replicated unless told otherwise."""
    picture = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    moved: Affine = (1, 0, 20, 0, 1, 20)
    assert (warp(picture, moved, (8, 8)) == (10, 20, 30)).all()
    out = warp(picture, moved, (8, 8), border=cv2.BORDER_CONSTANT, value=(1.0, 2.0, 3.0))
    assert (out == (1, 2, 3)).all()
