"""Corruption: damage that looks like its name, stays inside its mask and inside 0-1, at any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_train import corruption
from flawline_train.corruption import (
    GAIN,
    OFFSET,
    SHAPES,
    SHIFT_SHARE,
    TEXTURES,
    VISIBLE,
    corrupt,
    jitter,
    smooth_noise,
)

F32 = NDArray[np.float32]
HW = (96, 128)
SEEDS = range(60)

sides = st.integers(16, 72)
seeds = st.integers(0, 2**32 - 1)


def picture(hw: tuple[int, int], seed: int = 0) -> F32:
    return np.random.default_rng(seed).random((*hw, 3), np.float32)


def drawn(shape: str, hw: tuple[int, int] = HW) -> Iterator[F32]:
    return (SHAPES[shape][1](np.random.default_rng(seed), hw) for seed in SEEDS)


def contours(opacity: F32) -> list[NDArray[np.int32]]:
    found, _ = cv2.findContours((opacity > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(contour, np.int32) for contour in found]


# What always holds


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, seed=seeds, kind=st.sampled_from(["noise", "black", "white", "two-coloured"]))
def test_damage_stays_in_range_and_inside_its_mask(height: int, width: int, seed: int, kind: str) -> None:
    """Any size from 16 x 16, any picture: float32 in 0-1, mask of 0 and 1, hardly a change outside the mask."""
    good = {
        "noise": picture((height, width), seed),
        "black": np.zeros((height, width, 3), np.float32),
        "white": np.ones((height, width, 3), np.float32),
        "two-coloured": np.rint(picture((height, width), seed)).astype(np.float32),
    }[kind]
    before = good.copy()
    damaged, mask = corrupt(good, picture((height, width), seed + 1), np.random.default_rng(seed))
    assert damaged.shape == good.shape and damaged.dtype == np.float32
    assert damaged.min() >= 0 and damaged.max() <= 1
    assert mask.shape == (height, width) and mask.dtype == np.uint8 and mask.max() <= 1
    # Outside, opacity is at most VISIBLE, and colours differ by at most 1.
    assert np.abs(damaged - good)[mask == 0].max(initial=0) <= VISIBLE + 1e-6
    np.testing.assert_array_equal(good, before)


@settings(max_examples=30, deadline=None)
@given(height=sides, width=sides, seed=seeds)
def test_the_same_seed_does_the_same_damage(height: int, width: int, seed: int) -> None:
    """Everything random comes from the generator that is handed in."""
    good, other = picture((height, width)), picture((height, width), 1)
    first, again = (corrupt(good, other, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_damage_differs_from_seed_to_seed_and_is_mostly_there() -> None:
    """Of 200 seeds hardly two agree; at least four of five masks hold something, and inside them something changed."""
    good, other = picture(HW) * np.float32(0.2) + np.float32(0.4), picture(HW, 1)
    done = [corrupt(good, other, np.random.default_rng(seed)) for seed in range(200)]
    hit = [np.abs(damaged - good)[mask == 1].mean() for damaged, mask in done if mask.any()]
    assert len({damaged.tobytes() for damaged, _ in done}) > 180
    assert len(hit) >= 160
    assert np.median(hit) > 0.05


@pytest.mark.parametrize("choices", [SHAPES, TEXTURES], ids=["shapes", "textures"])
def test_shares_are_respected(
    monkeypatch: pytest.MonkeyPatch, choices: dict[str, tuple[float, Callable[..., F32]]]
) -> None:
    """Over 2000 pictures every shape and texture comes as often as its share says, within five deviations."""
    total = sum(share for share, _ in choices.values())
    seen: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., F32]) -> Callable[..., F32]:
        def call(*args: object) -> F32:
            seen[name] += 1
            return function(*args)

        return call

    for name, (share, function) in list(choices.items()):
        monkeypatch.setitem(choices, name, (share, counted(name, function)))
    good, rng, n = picture((16, 16)), np.random.default_rng(0), 2000
    for _ in range(n):
        corrupt(good, good, rng)
    assert sum(seen.values()) == n
    for name, (share, _) in choices.items():
        p = share / total
        assert seen[name] == pytest.approx(n * p, abs=5 * np.sqrt(n * p * (1 - p))), name


def test_a_draw_on_the_border_of_two_shares_takes_the_second() -> None:
    """A draw below the first share takes the first choice, one on it the second, and one just below 1 the last."""

    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    shares = np.cumsum([0.25, 0.75])
    choices = [(0.25, "first"), (0.75, "second")]
    for value, expected in ((0.0, "first"), (0.2499, "first"), (0.25, "second"), (1 - 1e-12, "second")):
        assert corruption._pick(Fixed(value), shares, choices) == expected  # type: ignore[arg-type]


# Shapes


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes_are_opacities(shape: str) -> None:
    """(H, W) float32 in 0-1 for wide, tall and tiny pictures."""
    for hw in (HW, (128, 32), (16, 16)):
        for opacity in drawn(shape, hw):
            assert opacity.shape == hw and opacity.dtype == np.float32
            assert opacity.min() >= 0 and opacity.max() <= 1


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes_scale_with_the_picture(shape: str) -> None:
    """At four times the side a shape covers about the same share of the picture, so damage can be done to either."""
    small, large = (float(np.mean([(opacity > 0.5).mean() for opacity in drawn(shape, hw)])) for hw in (HW, (384, 512)))
    # Lines and dots have whole pixels and soft rims, which weigh more in a small picture.
    assert large == pytest.approx(small, rel=0.45), f"{small:.4f} at {HW}, {large:.4f} at four times that"


def test_blob_is_islands_within_a_disc() -> None:
    """All or nothing, within a disc of 0.4 of the side, and ragged: it does not fill its hull."""
    filled = []
    for opacity in drawn("blob"):
        assert set(np.unique(opacity)) <= {0.0, 1.0}
        ys, xs = np.nonzero(opacity)
        if len(xs) > 20:
            assert max(np.ptp(xs), np.ptp(ys)) <= 2 * 0.4 * max(HW) + 2
            hull = cv2.convexHull(np.stack([xs, ys], 1).astype(np.int32))
            filled.append(len(xs) / max(1.0, cv2.contourArea(hull)))
    assert len(filled) > 30 and np.mean(filled) < 0.8


def test_scratch_is_thin_and_of_one_piece() -> None:
    """Nowhere wider than 4/128 of the side and its rim, far longer than wide, never torn."""
    hw = (384, 512)
    lengths = []
    for opacity in drawn("scratch", hw):
        solid = np.pad((opacity > 0.5).astype(np.uint8), 1)
        half_width = float(cv2.distanceTransform(solid, cv2.DIST_L2, 5).max())
        assert half_width <= 4 * max(hw) / 128 / 2 + 3
        ys, xs = np.nonzero(solid)
        lengths.append(float(np.hypot(np.ptp(xs), np.ptp(ys))) / (2 * half_width))
        assert len(contours(opacity)) <= 2  # a part may leave the picture and come back
    assert np.median(lengths) > 8


def test_ellipse_is_one_convex_piece_of_limited_size() -> None:
    """Filled, convex, half axes at most 0.15 of the side."""
    hw = (384, 512)
    for opacity in drawn("ellipse", hw):
        (contour,) = contours(opacity)
        assert cv2.contourArea(contour) >= 0.9 * cv2.contourArea(cv2.convexHull(contour))
        (_, axes, _) = cv2.minAreaRect(contour)
        assert max(axes) <= 2 * 0.15 * max(hw) + 3


def test_polygon_has_straight_sides() -> None:
    """One filled piece; four corners, unless the picture's edge cuts some off and adds some."""
    hw = (384, 512)
    corners = []
    for opacity in drawn("polygon", hw):
        (contour,) = contours(opacity)
        assert cv2.contourArea(contour) >= 0.7 * cv2.contourArea(cv2.convexHull(contour))
        n = len(cv2.approxPolyDP(contour, 4, True))
        assert n <= 8
        corners.append(n)
    assert np.mean(np.array(corners) == 4) > 0.6


def test_specks_are_one_to_five_small_dots() -> None:
    """No dot is larger than a twentieth of the side, and there are never more than five."""
    hw = (384, 512)
    counts = set()
    for opacity in drawn("specks", hw):
        dots = contours(opacity)
        counts.add(len(dots))
        if len(dots) == 1:
            continue  # two may touch; a single one is measured below
        for dot in dots:
            _, _, w, h = cv2.boundingRect(dot)
            assert max(w, h) <= 2 * (2 * (max(hw) // 40) + 3)
    assert counts <= {1, 2, 3, 4, 5} and len(counts) >= 4


def test_smooth_noise_is_centred_and_smooth() -> None:
    """Mean about 0, variance about 1, and neighbours alike: it is cloud, not grain."""
    clouds = [smooth_noise(np.random.default_rng(seed), (64, 96)) for seed in range(300)]
    assert all(cloud.shape == (64, 96) and cloud.dtype == np.float32 for cloud in clouds)
    assert float(np.mean(clouds)) == pytest.approx(0, abs=0.1)
    assert 0.5 < np.mean([cloud.var() for cloud in clouds]) < 1.5
    steps = np.mean([np.square(np.diff(cloud, axis=axis)).mean() for cloud in clouds for axis in (0, 1)])
    assert steps < 0.3  # white noise of variance 1 has 2


# Textures


def textured(texture: str, good: F32, other: F32) -> Iterator[F32]:
    for seed in SEEDS:
        shown = np.asarray(TEXTURES[texture][1](np.random.default_rng(seed), good, other))
        assert shown.shape == good.shape
        yield shown


def test_elsewhere_shows_the_same_pixels_in_another_place() -> None:
    """Its values are those of this or the other picture, at most brightened as a whole, and hardly ever in place."""
    good, other = picture((48, 64)), picture((48, 64), 1) ** 2
    origins: Counter[str] = Counter()
    in_place = 0
    for shown in textured("elsewhere", good, other):
        values = np.sort(shown.reshape(-1))
        misfits = {}
        for name, source in (("this", good), ("other", other)):
            line = np.polyfit(np.sort(source.reshape(-1)), values, 1)
            misfits[name] = float(np.abs(np.polyval(line, np.sort(source.reshape(-1))) - values).max())
        nearest = min(misfits, key=lambda name: misfits[name])
        assert misfits[nearest] < 1e-4  # float32 gain and offset
        origins[nearest] += 1
        in_place += np.corrcoef(shown.reshape(-1), good.reshape(-1))[0, 1] > 0.9
    assert min(origins["this"], origins["other"]) > 15 and in_place <= 1


def test_shifted_is_the_same_place_in_another_tone() -> None:
    """One number per colour is added; grey shifts are strong enough to be seen and no tint exceeds 0.6."""
    good = picture((48, 64))
    grey = 0
    for shown in textured("shifted", good, good):
        shift = (shown - good).reshape(-1, 3)
        np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-6)
        if np.ptp(shift[0]) < 1e-6:
            grey += 1
            assert 0.08 - 1e-6 <= abs(shift[0, 0]) <= 0.6 + 1e-6
        assert np.abs(shift).max() <= 0.6 + 1e-6
    assert 20 < grey < 55  # 60 % of 60


def test_noise_has_nothing_of_the_picture_but_its_mean() -> None:
    """Grain and cloud around the picture's mean colour, unrelated to its structure, never flat."""
    good = picture((48, 64)) * np.float32(0.5)
    means = []
    for shown in textured("noise", good, good):
        assert shown.std((0, 1)).min() > 0.01
        grain = np.corrcoef((shown - cv2.blur(shown, (5, 5))).reshape(-1), (good - cv2.blur(good, (5, 5))).reshape(-1))
        assert abs(grain[0, 1]) < 0.1
        means.append(shown.mean((0, 1)))
    np.testing.assert_allclose(np.mean(means, 0), good.mean((0, 1)), atol=0.1)


def test_flat_is_one_colour() -> None:
    """Every pixel alike, in 0-1; about half of them grey."""
    grey = 0
    for shown in textured("flat", picture((48, 64)), picture((48, 64))):
        assert np.ptp(shown, axis=(0, 1)).max() == 0 and shown.min() >= 0 and shown.max() <= 1
        grey += np.ptp(shown[0, 0]) == 0
    assert 15 < grey < 45


# Jitter


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, seed=seeds)
def test_jitter_keeps_shape_and_range(height: int, width: int, seed: int) -> None:
    """Any picture stays float32 in 0-1 and is not written into."""
    good = picture((height, width), seed)
    before = good.copy()
    moved = jitter(good, np.random.default_rng(seed))
    assert moved.shape == good.shape and moved.dtype == np.float32
    assert moved.min() >= 0 and moved.max() <= 1
    np.testing.assert_array_equal(good, before)


def test_jitter_changes_brightness_a_little() -> None:
    """A grey picture stays flat within gain and offset, and all of that range is used."""
    tones = []
    for seed in range(200):
        moved = jitter(np.full((32, 32, 3), 0.5, np.float32), np.random.default_rng(seed))
        assert np.ptp(moved) < 1e-6
        tones.append(float(moved[0, 0, 0]))
    reach = 0.5 * GAIN + OFFSET
    assert 0.5 - reach - 1e-6 <= min(tones) < 0.5 - reach / 2
    assert 0.5 + reach / 2 < max(tones) <= 0.5 + reach + 1e-6


def test_jitter_moves_by_a_small_share_of_the_side() -> None:
    """A ramp shows the shift: at most 1.5 % of the longer side, in both directions of both axes."""
    height, width = 120, 200
    shifts = []
    for axis, length in ((0, height), (1, width)):
        ramp = np.linspace(0.2, 0.8, length, dtype=np.float32)
        good = np.broadcast_to(ramp[:, None, None] if axis == 0 else ramp[None, :, None], (height, width, 3)).copy()
        for seed in range(60):
            moved = jitter(good, np.random.default_rng(seed))
            inner = moved[20:-20, 20:-20, 0].mean(1 - axis)
            slope, start = np.polyfit(np.arange(20, length - 20), inner, 1)
            gain = slope / (0.6 / (length - 1))
            # moved(x) = gain (0.2 + step (x - shift)) + offset: gain and offset of the same seed on a flat picture
            flat = float(jitter(np.full_like(good, 0.5), np.random.default_rng(seed))[0, 0, 0])
            offset = flat - 0.5 * gain
            shifts.append((gain * 0.2 + offset - start) / slope)
    limit = SHIFT_SHARE * width
    assert max(np.abs(shifts)) <= limit + 0.1  # OpenCV interpolates at 32nds of a pixel
    assert min(shifts) < -limit / 2 and max(shifts) > limit / 2
