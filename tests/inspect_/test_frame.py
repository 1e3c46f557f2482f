"""From a camera picture to the model's frame and back: shapes, depths, places, and files that are cut off."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from flawline_inspect.align import Alignment
from flawline_inspect.errors import InputError, PictureError
from flawline_inspect.frame import (
    FRAME_MULTIPLE,
    FrameSpec,
    Placement,
    Roi,
    fit_picture,
    frame_for,
    read_picture,
)

SQUARE = FrameSpec(32, 32)


def noise(shape: tuple[int, ...], dtype: DTypeLike = np.uint8, seed: int = 0) -> NDArray[np.generic]:
    """A picture full of everything its type may hold."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if kind.kind == "f":
        return rng.random(shape).astype(kind)
    return rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


sides = st.integers(1, 70)
frame_sides = st.integers(1, 4).map(lambda count: count * FRAME_MULTIPLE)
channels = st.sampled_from([(), (1,), (3,), (4,)])
dtypes = st.sampled_from([np.uint8, np.uint16, np.float16, np.float32, np.float64, np.bool_])


@st.composite
def regions(draw: st.DrawFn, width: int, height: int) -> Roi:
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y))


# The frame's own shape


@pytest.mark.parametrize(
    ("width", "height", "bit_depth", "sentence"),
    [
        pytest.param(16, 16, 8, None, id="smallest"),
        pytest.param(640, 480, 12, None, id="12-bit camera"),
        pytest.param(16, 4096, 16, None, id="long and thin"),
        pytest.param(0, 16, 8, "frame width is 0", id="no width"),
        pytest.param(16, -16, 8, "frame height is -16", id="negative"),
        pytest.param(24, 16, 8, "frame width is 24", id="no multiple of 16"),
        pytest.param(16, 15, 8, "frame height is 15", id="just too small"),
        pytest.param(16, 16, 7, "bit_depth is 7", id="7 bits"),
        pytest.param(16, 16, 17, "bit_depth is 17", id="17 bits"),
    ],
)
def test_frame_spec(width: int, height: int, bit_depth: int, sentence: str | None) -> None:
    """Sides are multiples of 16 and depths 8 to 16; anything else is refused with what was found."""
    if sentence is None:
        spec = FrameSpec(width, height, bit_depth)
        assert (spec.width, spec.height) == (width, height)
    else:
        with pytest.raises(InputError, match=sentence):
            FrameSpec(width, height, bit_depth)


@pytest.mark.parametrize(
    ("picture_wh", "size", "roi", "expected_wh"),
    [
        pytest.param((640, 480), 128, None, (128, 96), id="landscape"),
        pytest.param((480, 640), 128, None, (96, 128), id="portrait"),
        pytest.param((500, 500), 64, None, (64, 64), id="square"),
        pytest.param((300, 200), 128, None, (128, 96), id="85.3 rounds up"),
        pytest.param((900, 225), 64, None, (64, 16), id="exactly 16 stays 16"),
        pytest.param((10_000, 1), 64, None, (64, 16), id="a line camera's row"),
        pytest.param((1, 1), 32, None, (32, 32), id="one pixel"),
        pytest.param((640, 480), 64, (0, 0, 100, 400), (16, 64), id="the region of interest counts"),
    ],
)
def test_frame_for(picture_wh: tuple[int, int], size: int, roi: Roi | None, expected_wh: tuple[int, int]) -> None:
    """The long side is `size`, the short one the next multiple of 16 that keeps the aspect ratio."""
    spec = frame_for(picture_wh, size, bit_depth=12, roi=roi)
    assert (spec.width, spec.height, spec.bit_depth, spec.roi) == (*expected_wh, 12, roi)


@pytest.mark.parametrize(("size", "near"), [(0, 32), (16, 32), (31, 32), (100, 96), (1000, 992), (-5, 32)])
def test_a_size_that_is_no_frame_is_answered_with_one_that_is(size: int, near: int) -> None:
    """The sentence ends with the nearest size that works."""
    with pytest.raises(InputError, match=rf"--size is {size}, .* such as {near}\Z"):
        frame_for((640, 480), size)
    assert frame_for((640, 480), near).width == near


# To the frame


@settings(deadline=None)
@given(sides, sides, channels, dtypes, frame_sides, frame_sides, st.data())
def test_every_picture_becomes_the_frame(
    width: int,
    height: int,
    last: tuple[int, ...],
    dtype: DTypeLike,
    frame_w: int,
    frame_h: int,
    data: st.DataObject,
) -> None:
    """Whatever size, channels and depth come in: (H, W, 3) uint8 comes out, aspect ratio kept, input untouched."""
    picture = noise((height, width, *last), dtype)
    before = picture.copy()
    roi = data.draw(st.none() | regions(width, height))
    frame, placement = fit_picture(picture, FrameSpec(frame_w, frame_h), roi)
    assert frame.shape == (frame_h, frame_w, 3) and frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    np.testing.assert_array_equal(picture, before)

    x, y, w, h = placement.content
    roi_w, roi_h = placement.roi[2:]
    assert placement.picture_wh == (width, height)
    assert placement.roi == (roi or (0, 0, width, height))
    assert min(x, y) >= 0 and 1 <= w <= frame_w - x and 1 <= h <= frame_h - y
    assert w == frame_w or h == frame_h  # as large as fits
    scale = min(frame_w / roi_w, frame_h / roi_h)
    assert abs(w - roi_w * scale) < 1 and abs(h - roi_h * scale) < 1


@pytest.mark.parametrize(
    ("value", "dtype", "bit_depth", "expected"),
    [
        pytest.param(0, np.uint8, 8, 0, id="8-bit black"),
        pytest.param(131, np.uint8, 8, 131, id="8-bit grey"),
        pytest.param(255, np.uint8, 8, 255, id="8-bit saturated"),
        pytest.param(131, np.uint8, 12, 131, id="8-bit picture for a 12-bit frame"),
        pytest.param(0, np.uint16, 12, 0, id="12-bit black"),
        pytest.param(2064, np.uint16, 12, 129, id="12-bit grey"),
        pytest.param(4095, np.uint16, 12, 255, id="12-bit saturated"),
        pytest.param(65535, np.uint16, 12, 255, id="more than 12 bits saturates, never wraps"),
        pytest.param(1023, np.uint16, 10, 255, id="10-bit saturated"),
        pytest.param(0x8080, np.uint16, 16, 128, id="16-bit grey"),
        pytest.param(65535, np.uint16, 16, 255, id="16-bit saturated"),
        pytest.param(128, np.uint16, 8, 128, id="8 bits in a 16-bit file"),
        pytest.param(0.0, np.float32, 8, 0, id="float black"),
        pytest.param(0.2, np.float32, 8, 51, id="float grey"),
        pytest.param(1.0, np.float64, 8, 255, id="double saturated"),
        pytest.param(1.0, np.float16, 8, 255, id="half saturated"),
        pytest.param(False, np.bool_, 8, 0, id="bool black"),
        pytest.param(True, np.bool_, 8, 255, id="bool white"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 1, 3), (7, 90), (90, 7, 3), (40, 40, 4)], ids=str)
def test_a_constant_picture_stays_constant(
    shape: tuple[int, ...], value: float, dtype: DTypeLike, bit_depth: int, expected: int
) -> None:
    """Depths scale by a fixed factor, and neither resizing nor padding invents a value."""
    frame, _ = fit_picture(np.full(shape, value, dtype), FrameSpec(32, 48, bit_depth))
    np.testing.assert_array_equal(frame, expected)


def test_brightness_does_not_depend_on_the_rest_of_the_picture() -> None:
    """A 12-bit pixel keeps its value whatever else is in the picture: no stretching to the brightest."""
    dark = np.full((16, 16), 800, np.uint16)
    lit = dark.copy()
    lit[:, 8:] = 4095
    one, other = (fit_picture(picture, FrameSpec(16, 16, 12))[0] for picture in (dark, lit))
    np.testing.assert_array_equal(one[:, :8], other[:, :8])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.bool_])
def test_grey_alpha_and_colour_agree(dtype: DTypeLike) -> None:
    """Grey becomes three equal channels, alpha says nothing about the part, blue stays first."""
    grey = noise((40, 50), dtype)
    colour = noise((40, 50, 3), dtype, seed=1)
    alpha = noise((40, 50, 1), dtype, seed=2)

    def fitted(picture: NDArray[np.generic]) -> NDArray[np.uint8]:
        return fit_picture(picture, SQUARE)[0]

    np.testing.assert_array_equal(fitted(grey), fitted(grey[..., None]))
    np.testing.assert_array_equal(fitted(grey), fitted(np.dstack([grey, grey, grey])))
    np.testing.assert_array_equal(fitted(colour), fitted(np.dstack([colour, alpha])))
    np.testing.assert_array_equal(fitted(colour)[..., 0], fitted(np.ascontiguousarray(colour[..., 0]))[..., 0])


def test_a_picture_of_the_frames_size_is_the_frame() -> None:
    """Nothing is resampled where nothing has to be."""
    picture = noise((32, 48, 3))
    frame, placement = fit_picture(picture, FrameSpec(48, 32))
    np.testing.assert_array_equal(frame, picture)
    assert placement == Placement((48, 32), (0, 0, 48, 32), (0, 0, 48, 32))


def test_downsizing_is_the_mean_of_what_falls_together() -> None:
    """By a whole factor each frame pixel is the mean of its block: antialiased, within half a level of rounding for each halving."""
    picture = noise((96, 128, 3))
    frame, _ = fit_picture(picture, FrameSpec(32, 32))
    error = frame[4:28] - picture.reshape(24, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(error).max() <= 1 and abs(error.mean()) < 0.3


@pytest.mark.parametrize("wh", [(320, 240), (344, 258), (321, 241), (1000, 750)])
def test_halving_first_changes_little(wh: tuple[int, int]) -> None:
    """What is halved as often as it goes, and then averaged to size, is what is averaged at once, but for fractions of pixels."""
    picture = cv2.GaussianBlur(noise((wh[1], wh[0], 3)), (0, 0), 2.0)
    frame, _ = fit_picture(picture, FrameSpec(128, 96))
    at_once = cv2.resize(picture, (128, 96), interpolation=cv2.INTER_AREA)
    error = np.abs(frame.astype(float) - at_once)
    assert error.mean() < 1 and error.max() <= 8  # noise of two pixels: a contrast of 40


@given(sides, sides, frame_sides, frame_sides, st.data())
def test_stretching_fills_the_frame(width: int, height: int, frame_w: int, frame_h: int, data: st.DataObject) -> None:
    """Whatever the aspect ratio, the picture's edges are the frame's, and the way back has the region's size."""
    roi = data.draw(st.none() | regions(width, height))
    frame, placement = fit_picture(noise((height, width, 3)), FrameSpec(frame_w, frame_h, stretch=True), roi)
    assert frame.shape == (frame_h, frame_w, 3)
    assert placement.content == (0, 0, frame_w, frame_h)
    assert placement.picture_to_camera(frame).shape == (*placement.roi[:1:-1], 3)
    heatmap = placement.heatmap_to_camera(np.full((frame_h, frame_w), 5, np.float32))
    x, y, w, h = placement.roi
    np.testing.assert_allclose(heatmap[y : y + h, x : x + w], 5, rtol=1e-6)


def test_stretched_parts_of_many_shapes_coincide() -> None:
    """A block in the middle third lies on the same frame pixels however wide or high the picture is."""
    frames = []
    for width, height in ((96, 96), (192, 96), (96, 288), (48, 96)):
        picture = np.full((height, width), 50, np.uint8)
        picture[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 200
        frames.append(fit_picture(picture, FrameSpec(48, 48, stretch=True))[0][..., 0])
    inside, outside = np.s_[17:31, 17:31], np.ones((48, 48), bool)
    outside[15:33, 15:33] = False
    for frame in frames:
        assert (frame[inside] == 200).all() and (frame[outside] == 50).all()


@pytest.mark.parametrize("shape", [(8, 480), (480, 8)], ids=["wide", "high"])
def test_the_side_that_shrinks_is_averaged_also_where_the_other_grows(shape: tuple[int, int]) -> None:
    """Fine stripes along a long, thin picture become their mean and no moiré."""
    stripes = np.zeros(shape, np.uint8)
    stripes[(slice(None), slice(1, None, 2)) if shape[1] > shape[0] else slice(1, None, 2)] = 200
    frame, _ = fit_picture(stripes, FrameSpec(48, 48, stretch=True))
    np.testing.assert_allclose(frame.astype(float), 100, atol=1)


def test_a_stretched_pixel_comes_back_to_its_place() -> None:
    """Each axis has a scale of its own: 60x20 in 32x32, the last pixel in the corner."""
    _, placement = fit_picture(noise((20, 60)), FrameSpec(32, 32, stretch=True))
    to_frame = np.reshape(placement.to_frame, (2, 3))
    np.testing.assert_allclose(to_frame @ (29.5, 9.5, 1), (15.5, 15.5))  # centre to centre
    heatmap = np.zeros((32, 32), np.float32)
    heatmap[-1, -1] = 1
    back = placement.heatmap_to_camera(heatmap)
    assert back.shape == (20, 60) and np.unravel_index(back.argmax(), back.shape) == (19, 59)


def test_a_frame_stretches_or_aligns_but_not_both() -> None:
    """An aligned part has the reference's shape already."""
    alignment = Alignment.__new__(Alignment)  # only whether there is one is looked at
    with pytest.raises(InputError, match="either stretches pictures or aligns parts"):
        FrameSpec(32, 32, alignment=alignment, stretch=True)


def test_what_is_beside_the_picture_repeats_its_border() -> None:
    """A wide picture lies in the middle; above it stands its first row, below it its last."""
    picture = noise((16, 32, 3))
    frame, placement = fit_picture(picture, FrameSpec(32, 32))
    assert placement.content == (0, 8, 32, 16)
    np.testing.assert_array_equal(frame[8:24], picture)
    np.testing.assert_array_equal(frame[:8], np.broadcast_to(picture[0], (8, 32, 3)))
    np.testing.assert_array_equal(frame[24:], np.broadcast_to(picture[-1], (8, 32, 3)))


def test_memory_layout_does_not_matter() -> None:
    """Views, mirrored and transposed, and read-only arrays give what their copies give."""
    whole = noise((60, 80, 3))
    whole.flags.writeable = False
    for view in (whole[::2, ::2], whole[::-1], whole[:, ::-1], whole.transpose(1, 0, 2), np.asfortranarray(whole)):
        np.testing.assert_array_equal(fit_picture(view, SQUARE)[0], fit_picture(view.copy(), SQUARE)[0])


@pytest.mark.parametrize(
    "roi",
    [
        pytest.param((0, 0, 50, 40), id="whole picture"),
        pytest.param((10, 5, 20, 30), id="inside"),
        pytest.param((49, 39, 1, 1), id="the last pixel"),
        pytest.param((0, 39, 50, 1), id="the last row"),
    ],
)
def test_a_region_of_interest_is_a_crop(roi: Roi) -> None:
    """The frame shows the region and nothing else; one given to the call overrides the frame's own."""
    picture = noise((40, 50, 3))
    x, y, w, h = roi
    crop, _ = fit_picture(picture[y : y + h, x : x + w], SQUARE)
    by_spec, placed_by_spec = fit_picture(picture, FrameSpec(32, 32, 8, roi))
    by_call, placed_by_call = fit_picture(picture, FrameSpec(32, 32, 8, (1, 1, 2, 2)), roi)
    np.testing.assert_array_equal(by_spec, crop)
    np.testing.assert_array_equal(by_call, crop)
    assert placed_by_spec == placed_by_call and placed_by_spec.roi == roi


@pytest.mark.parametrize(
    "roi",
    [
        pytest.param((-1, 0, 10, 10), id="left of it"),
        pytest.param((0, -1, 10, 10), id="above it"),
        pytest.param((41, 0, 10, 10), id="right of it"),
        pytest.param((0, 31, 10, 10), id="below it"),
        pytest.param((50, 40, 1, 1), id="just outside"),
        pytest.param((0, 0, 51, 40), id="one too wide"),
        pytest.param((0, 0, 0, 10), id="no width"),
        pytest.param((0, 0, 10, -1), id="negative height"),
    ],
)
def test_a_region_outside_the_picture_is_refused(roi: Roi) -> None:
    """The sentence names the region and the picture's size; nothing is cropped to fit quietly."""
    for spec, given_roi in ((SQUARE, roi), (FrameSpec(32, 32, 8, roi), None)):
        with pytest.raises(PictureError) as caught:
            fit_picture(noise((40, 50)), spec, given_roi)
        assert str(list(roi)) in str(caught.value) and "50x40" in str(caught.value)


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        pytest.param(np.zeros((0, 0), np.uint8), r"shape \(0, 0\)", id="empty"),
        pytest.param(np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)", id="no rows"),
        pytest.param(np.zeros((5, 0), np.uint8), r"shape \(5, 0\)", id="no columns"),
        pytest.param(np.zeros((5, 5, 0), np.uint8), r"shape \(5, 5, 0\)", id="no channels"),
        pytest.param(np.zeros(5, np.uint8), r"shape \(5,\)", id="a row of numbers"),
        pytest.param(np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)", id="two channels"),
        pytest.param(np.zeros((5, 5, 5), np.uint8), r"shape \(5, 5, 5\)", id="five channels"),
        pytest.param(np.zeros((1, 5, 5, 3), np.uint8), r"shape \(1, 5, 5, 3\)", id="a batch"),
        pytest.param(np.zeros((5, 5), np.int16), "type int16", id="signed"),
        pytest.param(np.zeros((5, 5), np.int32), "type int32", id="32 bits"),
        pytest.param(np.zeros((5, 5), np.complex64), "type complex64", id="complex"),
        pytest.param(np.full((5, 5), 1.01, np.float32), "outside 0–1", id="float above 1"),
        pytest.param(np.full((5, 5), -0.01, np.float32), "outside 0–1", id="float below 0"),
        pytest.param(np.full((5, 5), np.nan, np.float32), "outside 0–1", id="float not a number"),
        pytest.param(np.full((5, 5), np.inf, np.float64), "outside 0–1", id="float infinite"),
    ],
)
def test_what_is_no_picture_is_refused(picture: NDArray[np.generic], sentence: str) -> None:
    """A wrong array is refused with what was found; nothing is transposed or rescaled quietly."""
    with pytest.raises(PictureError, match=sentence):
        fit_picture(picture, SQUARE)


# And back


@given(sides, sides, frame_sides, frame_sides, st.integers(0, 2**32 - 1), st.data())
def test_a_heatmap_comes_back_at_the_cameras_size(
    width: int, height: int, frame_w: int, frame_h: int, seed: int, data: st.DataObject
) -> None:
    """(picture height, picture width) float32, 0 outside the region, and no value that the frame did not have."""
    roi = data.draw(st.none() | regions(width, height))
    _, placement = fit_picture(noise((height, width)), FrameSpec(frame_w, frame_h), roi)
    heatmap = np.random.default_rng(seed).normal(3, 1, (frame_h, frame_w)).astype(np.float32)
    back = placement.heatmap_to_camera(heatmap)
    assert back.shape == (height, width) and back.dtype == np.float32
    x, y, w, h = placement.roi
    inside = back[y : y + h, x : x + w].copy()
    assert heatmap.min() - 1e-5 <= inside.min() and inside.max() <= heatmap.max() + 1e-5
    back[y : y + h, x : x + w] = 0
    assert not back.any()


@given(st.integers(32, 160), st.integers(32, 160), frame_sides, frame_sides, st.data())
def test_a_marked_pixel_comes_back_to_its_place(
    width: int, height: int, frame_w: int, frame_h: int, data: st.DataObject
) -> None:
    """A bright spot goes through frame and heatmap and comes out where the camera saw it, within one frame pixel."""
    roi = data.draw(st.none() | regions(width, height))
    left, top, roi_w, roi_h = roi or (0, 0, width, height)
    x = left + data.draw(st.integers(0, roi_w - 1))
    y = top + data.draw(st.integers(0, roi_h - 1))
    picture = np.zeros((height, width), np.uint8)
    picture[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 255  # wide enough to survive 8-bit rounding
    frame, placement = fit_picture(picture, FrameSpec(frame_w, frame_h), roi)
    back = placement.heatmap_to_camera(frame[..., 0].astype(np.float32))
    seen = np.zeros_like(picture)
    seen[top : top + roi_h, left : left + roi_w] = picture[top : top + roi_h, left : left + roi_w]

    tolerance_px = max(1.0, roi_w / placement.content[2], roi_h / placement.content[3])
    for found, marked in zip(_centre_xy(back), _centre_xy(seen), strict=True):
        assert abs(found - marked) <= tolerance_px


def _centre_xy(picture: NDArray[np.generic]) -> tuple[float, float]:
    weights = picture.astype(np.float64)
    ys, xs = np.indices(picture.shape)
    return float((xs * weights).sum() / weights.sum()), float((ys * weights).sum() / weights.sum())


@pytest.mark.parametrize(
    ("camera_xy", "frame_xy"),
    [
        pytest.param((0, 0), (0, 4), id="first pixel"),
        pytest.param((127, 95), (31, 27), id="last pixel"),
        pytest.param((64, 48), (16, 16), id="centre"),
        pytest.param((101, 7), (25, 5), id="anywhere"),
    ],
)
def test_marked_pixels_by_hand(camera_xy: tuple[int, int], frame_xy: tuple[int, int]) -> None:
    """128x96 in a 32x32 frame: four camera pixels a frame pixel, and four rows of border above."""
    picture = np.zeros((96, 128), np.uint8)
    picture[camera_xy[1], camera_xy[0]] = 255
    frame, placement = fit_picture(picture, SQUARE)
    assert placement.content == (0, 4, 32, 24)
    content = np.where(np.indices((32, 32))[0] // 4 % 7 > 0, frame[..., 0], 0)  # without the replicated border
    assert tuple(reversed(np.unravel_index(content.argmax(), content.shape))) == frame_xy

    heatmap = np.zeros((32, 32), np.float32)
    heatmap[frame_xy[1], frame_xy[0]] = 1
    ys, xs = np.nonzero(placement.heatmap_to_camera(heatmap) > 0.5)
    assert xs.min() <= camera_xy[0] <= xs.max() and ys.min() <= camera_xy[1] <= ys.max()
    assert np.ptp(xs) < 4 and np.ptp(ys) < 4


def test_a_constant_heatmap_fills_the_region() -> None:
    """No dark rim where the frame's border lay."""
    _, placement = fit_picture(noise((50, 90)), SQUARE, (10, 10, 60, 20))
    back = placement.heatmap_to_camera(np.full((32, 32), 5, np.float32))
    expected = np.zeros((50, 90), np.float32)
    expected[10:30, 10:70] = 5
    np.testing.assert_allclose(back, expected, rtol=1e-6)


@given(sides, sides, frame_sides, frame_sides)
def test_expected_comes_back_at_the_regions_size(width: int, height: int, frame_w: int, frame_h: int) -> None:
    """The reconstruction is shown beside the region of interest, so it gets its size."""
    frame, placement = fit_picture(noise((height, width, 3)), FrameSpec(frame_w, frame_h))
    back = placement.picture_to_camera(frame)
    assert back.shape == (height, width, 3) and back.dtype == np.uint8


def test_a_picture_of_the_frames_size_comes_back_unchanged() -> None:
    """There and back is the identity where nothing is resampled, region of interest included."""
    picture = noise((40, 60, 3))
    frame, placement = fit_picture(picture, FrameSpec(48, 32), (5, 3, 48, 32))
    np.testing.assert_array_equal(placement.picture_to_camera(frame), picture[3:35, 5:53])


# Masks


@given(sides, sides, frame_sides, frame_sides, st.booleans(), st.data())
def test_a_one_pixel_defect_stays_in_the_mask(
    width: int, height: int, frame_w: int, frame_h: int, stretch: bool, data: st.DataObject
) -> None:
    """However much smaller the frame is, the mask keeps at least a pixel, at the defect's place, in 0 and 1."""
    roi = data.draw(st.none() | regions(width, height))
    _, placement = fit_picture(noise((height, width)), FrameSpec(frame_w, frame_h, stretch=stretch), roi)
    x, y, w, h = placement.roi
    at_x, at_y = x + data.draw(st.integers(0, w - 1)), y + data.draw(st.integers(0, h - 1))
    mask = np.zeros((height, width), np.uint8)
    mask[at_y, at_x] = data.draw(st.integers(1, 255))
    found = placement.mask_to_frame(mask, (frame_h, frame_w))
    assert found.shape == (frame_h, frame_w) and found.dtype == np.uint8
    assert set(np.unique(found)) <= {0, 1} and found.any()

    left, top, content_w, content_h = placement.content
    scale_x, scale_y = content_w / w, content_h / h
    ys, xs = np.nonzero(found)
    for found_at, size, offset, at, scale in (
        (xs, content_w, left, at_x - x, scale_x),
        (ys, content_h, top, at_y - y, scale_y),
    ):
        # The pixel's own footprint in the frame, and one more on each side when it was enlarged.
        first, last = at * scale - max(1.0, scale), (at + 1) * scale + max(1.0, scale)
        assert first <= found_at.min() - offset and found_at.max() - offset <= last
        assert offset <= found_at.min() and found_at.max() < offset + size


@pytest.mark.parametrize(
    ("value", "expected"),
    [pytest.param(0, 0, id="no defect"), pytest.param(1, 1, id="in 0 and 1"), pytest.param(255, 1, id="in 0 and 255")],
)
def test_a_constant_mask(value: int, expected: int) -> None:
    """Nothing stays nothing, everything covers the picture's place in the frame and not its border."""
    _, placement = fit_picture(noise((48, 96)), SQUARE)
    found = placement.mask_to_frame(np.full((48, 96), value, np.uint8), (32, 32))
    wanted = np.zeros((32, 32), np.uint8)
    wanted[8:24] = expected
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("size", [20, 45, 90])
def test_a_defect_keeps_its_area(size: int) -> None:
    """A disc covers the same share of frame and picture, within the pixels on its rim."""
    mask = np.zeros((200, 200), np.uint8)
    cv2.circle(mask, (97, 103), size, 255, -1)
    _, placement = fit_picture(mask, FrameSpec(64, 64))
    found = placement.mask_to_frame(mask, (64, 64))
    rim = 2 * np.pi * size / 200 / 64
    assert float(found.mean()) == pytest.approx(float((mask > 0).mean()), abs=0.25 * rim)


def test_a_defect_outside_the_region_is_not_in_the_mask() -> None:
    """What the model never sees cannot be held against it."""
    mask = np.zeros((40, 50), np.uint8)
    mask[:, :20] = 255
    _, placement = fit_picture(mask, SQUARE, (20, 0, 30, 40))
    assert not placement.mask_to_frame(mask, (32, 32)).any()


@pytest.mark.parametrize("shape", [(40, 51), (41, 50), (50, 40), (1, 1)], ids=str)
def test_a_mask_of_another_size_is_refused(shape: tuple[int, int]) -> None:
    """The sentence names both sizes, width first."""
    _, placement = fit_picture(noise((40, 50)), SQUARE)
    with pytest.raises(PictureError, match=f"{shape[1]}x{shape[0]} pixels, its picture 50x40"):
        placement.mask_to_frame(np.zeros(shape, np.uint8), (32, 32))


# Files


def encoded(picture: NDArray[np.generic], suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, picture)
    assert done
    return bytes(data)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (40, 50, 3)], ids=str)
def test_a_lossless_file_gives_its_pixels(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    """BGR as it was written, down to one pixel."""
    picture = noise(shape)
    path = tmp_path / f"part{suffix}"
    path.write_bytes(encoded(picture, suffix))
    np.testing.assert_array_equal(read_picture(path), picture)


@pytest.mark.parametrize(
    ("picture", "suffix"),
    [
        pytest.param(noise((20, 30)), ".png", id="8-bit grey PNG"),
        pytest.param(noise((20, 30), np.uint16), ".png", id="16-bit grey PNG"),
        pytest.param(noise((20, 30, 3), np.uint16), ".png", id="16-bit colour PNG"),
        pytest.param(noise((20, 30), np.uint16) >> np.uint16(4), ".png", id="12 bits in a 16-bit PNG"),
        pytest.param(noise((20, 30), np.uint16), ".tiff", id="16-bit grey TIFF"),
        pytest.param(noise((20, 30), np.float32), ".tiff", id="float TIFF"),
    ],
)
def test_a_file_keeps_its_depth(tmp_path: Path, picture: NDArray[np.generic], suffix: str) -> None:
    """Grey stays grey and 16 bits stay 16 bits: what they mean is decided by the frame."""
    path = tmp_path / f"part{suffix}"
    path.write_bytes(encoded(picture, suffix))
    read = read_picture(path)
    assert read.dtype == picture.dtype
    np.testing.assert_array_equal(read, picture)
    assert fit_picture(read, SQUARE)[0].shape == (32, 32, 3)


def test_alpha_is_left_in_the_file(tmp_path: Path) -> None:
    """A PNG with an alpha channel is read as its colours."""
    picture = noise((20, 30, 4))
    path = tmp_path / "part.png"
    path.write_bytes(encoded(picture, ".png"))
    np.testing.assert_array_equal(read_picture(path), picture[..., :3])


def test_rotation_by_exif_is_applied(tmp_path: Path) -> None:
    """A picture taken with the camera on its side is read upright: 40 x 20 with orientation 6 becomes 20 x 40."""
    picture = np.full((20, 40, 3), 20, np.uint8)
    picture[:, :20] = 230
    entry = struct.pack("<HHII", 0x0112, 3, 1, 6)  # orientation, one SHORT: turn by 90 degrees clockwise
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    plain = encoded(picture, ".jpg")
    path = tmp_path / "part.jpg"
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    read = read_picture(path)
    assert read.shape == (40, 20, 3)
    assert read[:18].min() > 150 and read[22:].max() < 100  # what was left is now above


SUFFIXES = [".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm"]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99], ids=lambda kept: f"{kept:.0%}")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_picture_is_refused_and_named(tmp_path: Path, suffix: str, kept: float) -> None:
    """OpenCV fills what is missing with grey or black: such a picture is neither judged nor learnt."""
    data = encoded(noise((64, 80, 3)), suffix)
    path = tmp_path / f"part{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [1, 2, 5, 12])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_last_bytes_count(tmp_path: Path, suffix: str, missing: int) -> None:
    """Also a picture that lacks only its last bytes is called truncated."""
    path = tmp_path / f"part{suffix}"
    path.write_bytes(encoded(noise((64, 80, 3)), suffix)[:-missing])
    with pytest.raises(PictureError, match="truncated"):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_padding_behind_the_end_is_no_damage(tmp_path: Path, suffix: str) -> None:
    """Cameras fill a file up to the next block."""
    path = tmp_path / f"part{suffix}"
    data = encoded(noise((64, 80, 3)), suffix)
    path.write_bytes(data + bytes(512))
    assert read_picture(path).shape == (64, 80, 3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="one byte"),
        pytest.param(b"a note about the part\n", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40) + b"IEND\xaeB`\x82", id="PNG with nothing in it"),
        pytest.param(b"\xff\xd8\xff\xd9", id="JPEG with nothing in it"),
        pytest.param(bytes(5000), id="zeros"),
    ],
)
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, data: bytes) -> None:
    """One sentence that begins with the file."""
    path = tmp_path / "part 7.png"
    path.write_bytes(data)
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    """What the system says about the file is passed on."""
    for path, sentence in ((tmp_path / "gone.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(PictureError, match=sentence) as caught:
            read_picture(path)
        assert str(path) in str(caught.value)
