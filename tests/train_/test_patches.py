"""The distance of patches: whitened by good ones, the same for all of those, large for what goes against the grain."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from flawline_inspect.errors import InputError
from flawline_train.graph import brought_to
from flawline_train.patches import OFFSET, SCALES, SIDE, PatchDistance, log_ratio

HW = (64, 96)
F32 = NDArray[np.float32]


def grain(n: int, first: int = 0, strength: float = 0.1) -> torch.Tensor:
    """Vertical grain (n, 1, H, W): noise smoothed along the columns."""
    out = []
    for seed in range(first, first + n):
        noise = np.random.default_rng(seed).normal(0, 1, HW)
        out.append(ndimage.gaussian_filter1d(noise, 6.0, axis=0, mode="mirror"))
    return torch.from_numpy(strength * np.stack(out)[:, None] / np.std(out)).float()


def fitted(ratios: torch.Tensor) -> PatchDistance:
    distance = PatchDistance()
    distance.fit(ratios.split(3))
    return distance.eval()


def seen_by(distance: PatchDistance, ratio: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W): both scales together."""
    return brought_to((ratio.shape[2], ratio.shape[3]), distance.distances(ratio))


def plain_distance(train: F32, picture: F32) -> F32:
    """Mahalanobis by NumPy, patch by patch, (H, W)."""
    maps = []
    for scale in SCALES:
        small = [cv2.resize(each, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA) for each in train]
        rows = np.concatenate([_patches(each) for each in small])
        covariance = rows.T @ rows / len(rows)
        values, vectors = np.linalg.eigh(covariance)
        kept = values > 1e-7 * values[-1]
        one = cv2.resize(picture, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
        coordinates = _patches(one) @ vectors[:, kept] / np.sqrt(values[kept] + 1e-4 * values[-1])
        distance = np.sqrt((coordinates**2).sum(1)).reshape(one.shape) / SIDE
        maps.append(cv2.resize(distance, HW[::-1], interpolation=cv2.INTER_LINEAR))
    return np.asarray(np.mean(maps, 0), np.float32)


def _patches(picture: F32) -> NDArray[np.float64]:
    radius = SIDE // 2
    padded = np.pad(picture.astype(np.float64), radius, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE)).reshape(-1, SIDE**2)
    return np.asarray(windows - windows.mean(1, keepdims=True), np.float64)


@torch.inference_mode()
def test_against_numpy() -> None:
    train, picture = grain(6), grain(1, first=50)
    found = seen_by(fitted(train), picture)[0, 0].numpy()
    np.testing.assert_allclose(found, plain_distance(train[:, 0].numpy(), picture[0, 0].numpy()), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_good_patches_are_about_one_and_a_line_across_the_grain_is_not() -> None:
    """A line across of the grain's own contrast stands out by more than in the absolute error; one along it less."""
    distance, good = fitted(grain(8)), grain(4, first=60)
    usual = seen_by(distance, good)
    assert float(usual.mean()) == pytest.approx(0.8, abs=0.15)
    across, along = good.clone(), good.clone()
    across[:, :, 30:33, 20:70] += 0.15
    along[:, :, 10:60, 40:43] += 0.15
    there = seen_by(distance, across)[:, :, 29:34, 25:65].mean() / usual.mean()
    plain = across.abs()[:, :, 30:33, 25:65].mean() / good.abs().mean()
    assert float(there) > 1.2 * float(plain)
    assert float(there) > 1.3 * float(seen_by(distance, along)[:, :, 15:55, 39:44].mean() / usual.mean())


@torch.inference_mode()
def test_contrast_of_the_whole_makes_no_difference_where_it_was_learnt() -> None:
    """Ten times the contrast, learnt and seen, is the same distance."""
    one, ten = fitted(grain(6)), fitted(grain(6, strength=1.0))
    torch.testing.assert_close(
        seen_by(one, grain(1, 50)), seen_by(ten, grain(1, 50, strength=1.0)), rtol=1e-3, atol=1e-4
    )


@torch.inference_mode()
def test_level_makes_no_difference() -> None:
    """A patch's own mean is taken off: light is not texture."""
    distance, x = fitted(grain(6)), grain(1, 50)
    torch.testing.assert_close(seen_by(distance, x + 0.3), seen_by(distance, x), rtol=0, atol=2e-4)


@torch.inference_mode()
def test_batches_make_no_difference() -> None:
    x = grain(7)
    one, by_threes = PatchDistance(), fitted(x)
    one.fit([x])
    torch.testing.assert_close(seen_by(one, x), seen_by(by_threes, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_good_pictures_give_numbers(value: float) -> None:
    """Nothing varies: no direction is infinitely far."""
    distance = fitted(torch.full((3, 1, *HW), value))
    assert bool(seen_by(distance, grain(1)).isfinite().all())
    assert not seen_by(distance, torch.full((1, 1, *HW), value)).any()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="diverged"):
        PatchDistance().fit([torch.full((1, 1, *HW), torch.nan)])


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_ratio_is_of_grey_values_at_the_picture_s_size(factor: int) -> None:
    """Against a reconstruction of any size; a picture twice as bright is log 2 above."""
    expected = torch.full((2, 3, HW[0] // factor, HW[1] // factor), 0.25)
    x = torch.full((2, 1, *HW), 0.5)
    found = log_ratio(x, expected)
    assert found.shape == (2, 1, *HW)
    torch.testing.assert_close(found, torch.full_like(found, float(np.log((0.5 + OFFSET) / (0.25 + OFFSET)))))
    assert bool(log_ratio(torch.zeros_like(x), expected - 1).isfinite().all())
