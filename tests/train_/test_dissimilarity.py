"""The errors that the graph weighs, against textbook formulas in float64."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from flawline_train.dissimilarity import coarse_error, gradient_dissimilarities, structural_dissimilarity
from flawline_train.graph import brought_to

F64 = NDArray[np.float64]
KINDS = ["unrelated", "nearly equal", "equal", "inverted", "brighter", "flat and flat", "black and white"]
SIZES = [(16, 16), (32, 48), (64, 16), (16, 352)]


def pair(hw: tuple[int, int], kind: str) -> tuple[F64, F64]:
    """Picture and reconstruction (3, H, W) in 0-1, values that float32 holds exactly."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, *hw)).astype(np.float64) / 256
    y = {
        "unrelated": rng.integers(0, 256, (3, *hw)) / 256,
        "nearly equal": x + rng.integers(-1, 2, (3, *hw)) / 256,
        "equal": x,
        "inverted": 255 / 256 - x,
        "brighter": x * 0.5 + 0.25,
        "flat and flat": np.full_like(x, 0.25),
        "black and white": np.ones_like(x),
    }[kind]
    if kind == "flat and flat":
        x = np.full_like(x, 0.75)
    if kind == "black and white":
        x = np.zeros_like(x)
    return x, np.asarray(y, np.float64)


def plain_structural(x: F64, y: F64, side: int = 7) -> F64:
    """1 - SSIM as in Wang et al. 2004, uniform window of `side` pixels: (H, W) twice → (H, W)."""

    def windows(picture: F64) -> F64:
        padded = np.pad(picture, side // 2, mode="reflect")
        return sliding_window_view(padded, (side, side)).reshape(*picture.shape, side**2)

    c1, c2 = 0.01**2, 0.03**2
    wx, wy = windows(x), windows(y)
    mu_x, mu_y = wx.mean(-1), wy.mean(-1)
    covariance = ((wx - mu_x[..., None]) * (wy - mu_y[..., None])).mean(-1)
    ssim = ((2 * mu_x * mu_y + c1) * (2 * covariance + c2)) / (
        (mu_x**2 + mu_y**2 + c1) * (wx.var(-1) + wy.var(-1) + c2)
    )
    return np.asarray(1 - ssim, np.float64)


def plain_gradient(x: F64, y: F64) -> F64:
    """1 - MSGMS by Prewitt's filters at full and half size, enlarged by OpenCV: (H, W) twice → (H, W)."""

    def magnitude(picture: F64) -> F64:
        across, down = (ndimage.prewitt(picture, axis, mode="mirror") / 3 for axis in (1, 0))
        return np.hypot(across, down)

    height, width = x.shape
    maps = []
    for factor in (1, 2):
        a, b = (magnitude(block_means(picture, factor)) for picture in (x, y))
        similarity = (2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026)
        maps.append(cv2.resize(1 - similarity, (width, height), interpolation=cv2.INTER_LINEAR))
    return np.mean(maps, 0)


def block_means(picture: F64, factor: int) -> F64:
    """(..., H, W) → (..., H / f, W / f)."""
    *lead, height, width = picture.shape
    return picture.reshape(*lead, height // factor, factor, width // factor, factor).mean((-3, -1))


def gradient_dissimilarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sum of both scales, (B, 1, H, W)."""
    return brought_to((x.shape[2], x.shape[3]), gradient_dissimilarities(x, y))


def tensor(picture: F64) -> torch.Tensor:
    """(H, W) or (C, H, W) → (1, C, H, W) float32."""
    return torch.from_numpy(picture.reshape(1, -1, *picture.shape[-2:])).float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_structural_dissimilarity_against_plain_numpy(hw: tuple[int, int], kind: str) -> None:
    """Textbook 1 - SSIM in float64, within 1e-5: float32 has 1e-7, divided by C2 = 9e-4. Of grey and of colour."""
    x, y = pair(hw, kind)
    by_colour = [plain_structural(a, b) for a, b in zip(x, y, strict=True)]
    found = structural_dissimilarity(tensor(x), tensor(y))
    assert found.shape == (1, 1, *hw) and found.dtype == torch.float32
    np.testing.assert_allclose(found[0, 0].numpy(), np.mean(by_colour, 0), atol=1e-5)
    np.testing.assert_allclose(structural_dissimilarity(tensor(x[0]), tensor(y[0]))[0, 0], by_colour[0], atol=1e-5)
    of_three = structural_dissimilarity(tensor(x[0]), tensor(y[0]), 3)
    np.testing.assert_allclose(of_three[0, 0], plain_structural(x[0], y[0], 3), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_gradient_dissimilarity_against_scipy(hw: tuple[int, int], kind: str) -> None:
    """Textbook 1 - MSGMS in float64, within 1e-5: float32 has 1e-7, divided by c = 2.6e-3."""
    x, y = (picture.mean(0) for picture in pair(hw, kind))
    found = gradient_dissimilarity(tensor(x), tensor(y))
    assert found.shape == (1, 1, *hw) and found.dtype == torch.float32
    np.testing.assert_allclose(found[0, 0].numpy(), plain_gradient(x, y), atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 8, 16])
@pytest.mark.parametrize("hw", [(16, 352), (48, 64)], ids=str)
def test_coarse_error_against_opencv(hw: tuple[int, int], factor: int) -> None:
    """Block means compared, down to a single row."""
    x, _ = pair(hw, "unrelated")
    coarse = np.random.default_rng(1).random((3, hw[0] // factor, hw[1] // factor))
    wanted = np.abs(block_means(x, factor) - coarse).mean(0)
    found = coarse_error(tensor(x), tensor(coarse))
    assert found.shape == (1, 1, *wanted.shape)
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("of", [structural_dissimilarity, gradient_dissimilarity, coarse_error])
@pytest.mark.parametrize("kind", ["unrelated", "flat and flat", "black and white"])
def test_equal_pictures_are_not_unlike_at_all(of: object, kind: str) -> None:
    """Exactly 0, not a rounding error that a small spread would blow up."""
    x = tensor(pair((32, 48), kind)[0])
    if of is not coarse_error:
        x = x.mean(1, keepdim=True)
    assert not of(x, x.clone()).any()  # type: ignore[operator]


@pytest.mark.parametrize(("of", "largest"), [(structural_dissimilarity, 2.0), (gradient_dissimilarity, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_and_symmetry(of: object, largest: float, kind: str) -> None:
    """Never below 0 nor above the largest, and it does not matter which picture is which (within rounding: the formula of
    the difference treats them differently)."""
    x, y = (tensor(picture.mean(0)) for picture in pair((32, 48), kind))
    one, other = of(x, y), of(y, x)  # type: ignore[operator]
    assert float(one.min()) >= 0
    assert float(one.max()) <= largest + 1e-6
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_gradients_do_not_see_an_even_change_of_brightness() -> None:
    """What SSIM calls another luminance has the same edges; a step moved by three pixels has not."""
    x = np.zeros((32, 48))
    x[:, 20:] = 0.5
    assert float(gradient_dissimilarity(tensor(x), tensor(x + 0.25)).max()) < 1e-10
    moved = gradient_dissimilarity(tensor(x), tensor(np.roll(x, 3, 1)))[0, 0]
    assert float(moved[:, 18:26].max()) > 0.5
    assert float(moved[:, 36:44].max()) < 1e-6


def test_the_loss_has_finite_gradients_everywhere() -> None:
    """Also where a picture is flat, and the root of its gradient's square has none by itself."""
    x = torch.full((1, 1, 16, 16), 0.5)
    y = x.clone().requires_grad_()
    (structural_dissimilarity(x, y).mean() + gradient_dissimilarity(x, y).mean()).backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())
