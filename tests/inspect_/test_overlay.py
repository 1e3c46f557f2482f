"""Pictures for people: what is under the threshold stays as it was seen, and a colour means the same every day."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_inspect.frame import FrameSpec, fit_picture
from flawline_inspect.overlay import heatmap_overlay, rejection_picture, to_display

THRESHOLD = 4.0
NEARLY_WHITE = 225  # a smoothed line


def scene(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def grey(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 120, np.uint8)


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 1e6, allow_subnormal=False),
)
def test_below_half_the_threshold_nothing_is_painted(height: int, width: int, seed: int, threshold: float) -> None:
    """Up to half the threshold the picture is what the camera saw, pixel by pixel."""
    rng = np.random.default_rng(seed)
    heatmap = (rng.random((height, width)) * 0.4999 * threshold).astype(np.float32)
    heatmap.flat[0] = -threshold
    picture = scene(height, width)
    np.testing.assert_array_equal(heatmap_overlay(picture, heatmap, threshold), picture)


def test_only_what_is_hot_is_painted() -> None:
    """A hot spot changes the picture where it lies and, but for its outline, nowhere else."""
    heatmap = np.zeros((40, 60), np.float32)
    heatmap[10:20, 30:45] = 3 * THRESHOLD
    picture = scene()
    found = heatmap_overlay(picture, heatmap, THRESHOLD)
    changed = (found != picture).any(-1)
    assert changed[11:19, 31:44].all()
    changed[8:22, 28:47] = False  # the outline is smoothed over two pixels
    assert not changed.any()


def test_the_given_picture_is_not_painted_on() -> None:
    """What is returned is a copy; the picture may still be archived."""
    picture = scene()
    before = picture.copy()
    heatmap_overlay(picture, np.full((40, 60), 9 * THRESHOLD, np.float32), THRESHOLD)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("level", [0.6, 0.9, 1.0, 1.5, 2.0])
def test_colours_do_not_depend_on_the_brightest_pixel(level: float) -> None:
    """The same heat gets the same colour on a quiet day and beside a burning spot."""
    quiet = np.zeros((40, 60), np.float32)
    quiet[30, 5] = level * THRESHOLD
    loud = quiet.copy()
    loud[5:9, 40:50] = 1000 * THRESHOLD
    one, other = (heatmap_overlay(grey(), heatmap, THRESHOLD) for heatmap in (quiet, loud))
    np.testing.assert_array_equal(one[20:, :30], other[20:, :30])


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_colours_are_tied_to_the_threshold(scale: float) -> None:
    """Only the ratio of heat to threshold counts, not the model's units."""
    heatmap = np.linspace(0, 3 * THRESHOLD, 2400, dtype=np.float32).reshape(40, 60)
    found = heatmap_overlay(grey(), heatmap * np.float32(scale), THRESHOLD * scale)
    expected = heatmap_overlay(grey(), heatmap, THRESHOLD)
    # The last bit of a float32 may move a level or the outline's rounding.
    assert np.mean(np.abs(found.astype(int) - expected).max(-1) > 1) < 0.01


def _painted(level: float) -> NDArray[np.int64]:
    """The colour of heat of `level` thresholds on grey, away from any outline."""
    heatmap = np.full((40, 60), level * THRESHOLD, np.float32)
    return np.asarray(heatmap_overlay(grey(), heatmap, THRESHOLD)[20, 30], np.int64)


def test_yellow_at_the_threshold_red_from_twice_it() -> None:
    """Yellow at the threshold, red at twice it; beyond that nothing gets any redder."""
    blue, green, red = _painted(1.0)
    assert red > green > blue + 40
    blue, green, red = _painted(2.0)
    assert red > green + 40 and red > blue + 40
    np.testing.assert_array_equal(_painted(2.0), _painted(1e6))
    strength = [int(np.abs(_painted(level) - 120).max()) for level in (0.5, 0.6, 0.8, 1.0, 2.0)]
    assert strength == sorted(strength) and strength[0] == 0


def test_what_exceeds_the_threshold_gets_an_outline() -> None:
    """A white line runs around what is above the threshold, and around nothing that equals it."""
    heatmap = np.zeros((40, 60), np.float32)
    heatmap[10:20, 30:45] = THRESHOLD
    assert not (heatmap_overlay(grey(), heatmap, THRESHOLD) > NEARLY_WHITE).all(-1).any()
    heatmap[10:20, 30:45] = np.nextafter(np.float32(THRESHOLD), np.float32(9))
    outlined = (heatmap_overlay(grey(), heatmap, THRESHOLD) > NEARLY_WHITE).all(-1)
    assert outlined[10, 32:43].all() and outlined[12:18, 30].all()
    assert not outlined[12:18, 32:43].any()


@pytest.mark.parametrize(
    "heatmap",
    [
        pytest.param(np.zeros((1, 1), np.float32), id="one pixel"),
        pytest.param(np.full((1, 1), 99, np.float32), id="one hot pixel"),
        pytest.param(np.full((5, 7), np.finfo(np.float32).max, np.float32), id="saturated"),
        pytest.param(np.full((5, 7), -np.finfo(np.float32).max, np.float32), id="saturated below"),
        pytest.param(np.zeros((1, 90), np.float32), id="one row"),
    ],
)
def test_overlay_keeps_the_pictures_shape(heatmap: NDArray[np.float32]) -> None:
    """(h, w, 3) uint8 in, the same out, without a warning."""
    picture = scene(*heatmap.shape)
    found = heatmap_overlay(picture, heatmap, THRESHOLD)
    assert found.shape == picture.shape and found.dtype == np.uint8


# The picture of a reject

ROI = (5, 3, 50, 30)


PICTURES = [
    pytest.param(scene(), 8, id="8-bit colour"),
    pytest.param(scene()[..., 0], 8, id="8-bit grey"),
    pytest.param(scene()[..., :1], 8, id="one channel"),
    pytest.param(np.dstack([scene(), scene()[..., 0]]), 8, id="alpha"),
    pytest.param(scene().astype(np.uint16) * 257, 16, id="16-bit colour"),
    pytest.param(scene()[..., 0].astype(np.uint16) * 16, 12, id="12-bit grey"),
    pytest.param((scene() / 255).astype(np.float32), 8, id="float"),
    pytest.param(scene() / 255, 8, id="double"),
    pytest.param(scene()[..., 0] > 127, 8, id="bool"),
]


@pytest.mark.parametrize("roi", [pytest.param(None, id="whole"), pytest.param(ROI, id="region")])
@pytest.mark.parametrize(("picture", "bit_depth"), PICTURES)
def test_what_is_shown_is_what_was_judged(
    picture: NDArray[np.generic], bit_depth: int, roi: tuple[int, int, int, int] | None
) -> None:
    """Any depth is shown as BGR uint8 at the region's own size, with the brightness that the model saw."""
    spec = FrameSpec(64, 48, bit_depth)
    _, placement = fit_picture(picture, spec, roi)
    x, y, w, h = placement.roi
    shown = to_display(picture, spec, placement)
    assert shown.shape == (h, w, 3) and shown.dtype == np.uint8
    side = FrameSpec(16, 16, bit_depth)
    for px, py in ((0, 0), (w - 1, 0), (w - 1, h - 1), (w // 2, h // 2)):
        pixel, _ = fit_picture(picture, side, (x + px, y + py, 1, 1))
        np.testing.assert_array_equal(shown[py, px], pixel[0, 0])


@pytest.mark.parametrize(("picture", "bit_depth"), PICTURES)
def test_rejection_picture(picture: NDArray[np.generic], bit_depth: int) -> None:
    """Seen, marked, expected: three pictures of the region side by side with white between them."""
    spec = FrameSpec(64, 48, bit_depth, ROI)
    frame, placement = fit_picture(picture, spec)
    heatmap = np.zeros((48, 64), np.float32)
    heatmap[20:26, 30:36] = 3 * THRESHOLD
    before = picture.copy()
    found = rejection_picture(picture, heatmap, frame, spec=spec, placement=placement, threshold=THRESHOLD)
    np.testing.assert_array_equal(picture, before)
    _, _, w, h = ROI
    gap = (found.shape[1] - 3 * w) // 2
    assert found.shape == (h, 3 * w + 2 * gap, 3) and found.dtype == np.uint8 and gap > 0

    seen, marked, expected = (found[:, i * (w + gap) :][:, :w] for i in range(3))
    np.testing.assert_array_equal(seen, to_display(picture, spec, placement))
    np.testing.assert_array_equal(expected, placement.picture_to_camera(frame))
    changed = (marked != seen).any(-1)
    assert changed.any() and not changed[:6].any() and not changed[-6:].any()
    for i in (1, 2):
        assert (found[:, i * w + (i - 1) * gap :][:, :gap] == 255).all()
