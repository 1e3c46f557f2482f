"""The linear autoencoder against NumPy's SVD and least squares, and what it was made to see and not to see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.train_.parts import varied_parts
from torch import Tensor

from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.autoencoders.linear import COMPONENTS, LinearAutoencoder
from flawline_train.dissimilarity import coarse_error

F64 = NDArray[np.float64]
HW = (48, 64)


def pictures(n: int, hw: tuple[int, int] = HW, seed: int = 0) -> Tensor:
    """(n, 3, H, W) in 0-1."""
    frames = varied_parts(n, (hw[1], hw[0]), seed)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def fitted_to(x: Tensor) -> LinearAutoencoder:
    network = LinearAutoencoder((x.shape[2], x.shape[3]))
    network.fit([x])
    return network


def block_means(x: Tensor, factor: int) -> F64:
    """(n, 3, H, W) → (n, 3, H / f, W / f)."""
    n, c, height, width = x.shape
    blocks = x.double().numpy().reshape(n, c, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean((3, 5)), np.float64)


def plain_projection(learnt: F64, others: F64, components: int) -> F64:
    """`others` (m, 3, h, w) as combinations of light and `components` principal components of `learnt` (n, 3, h, w)."""
    n, _, height, width = learnt.shape
    usual = learnt.mean(0)
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    light = np.stack([usual, usual * down, usual * across]).reshape(3, -1)
    rows = (learnt - usual).reshape(n, -1)
    rest = rows - (np.linalg.lstsq(light.T, rows.T, rcond=None)[0].T @ light)
    directions = np.linalg.svd(rest, full_matrices=False)[2][:components]
    basis = np.concatenate([light, directions])
    flat = others.reshape(len(others), -1)
    weights = np.linalg.lstsq(basis.T, flat.T, rcond=None)[0]
    return np.asarray((weights.T @ basis).reshape(others.shape), np.float64)


@pytest.mark.parametrize(
    ("n", "hw", "factor", "components"),
    [
        pytest.param(4 * COMPONENTS + 8, HW, 1, COMPONENTS, id="all components"),
        pytest.param(13, HW, 1, 3, id="one for four pictures"),
        pytest.param(3, HW, 1, 0, id="light alone"),
        pytest.param(20, (16, 352), 4, 5, id="long and thin"),
        pytest.param(20, (32, 16), 1, 5, id="small"),
        pytest.param(12, (96, 256), 4, 3, id="wide"),
    ],
)
def test_projection_against_numpy(n: int, hw: tuple[int, int], factor: int, components: int) -> None:
    """Of pictures it knows and of others: SVD and least squares in float64, within float32's rounding."""
    learnt, others = pictures(n, hw), pictures(6, hw, seed=1)
    network = fitted_to(learnt)
    assert network.factor == factor
    small = block_means(learnt, factor)
    for x in (learnt, others):
        found = network(x)
        assert found.shape == (len(x), 3, hw[0] // factor, hw[1] // factor) and found.dtype == torch.float32
        np.testing.assert_allclose(found, plain_projection(small, block_means(x, factor), components), atol=2e-5)


@pytest.mark.parametrize(("hw", "small_hw"), [((16, 16), (16, 16)), ((1024, 32), (64, 2)), ((2048, 1536), (128, 96))])
def test_the_reduced_picture_is_never_empty(hw: tuple[int, int], small_hw: tuple[int, int]) -> None:
    """About 64 cells along the long side, but no reduction beyond 16, which every frame's sides are multiples of."""
    with torch.device("meta"):
        network = LinearAutoencoder(hw)
        assert network(torch.empty(1, 3, *hw)).shape == (1, 3, *small_hw)


def test_before_the_fit_nothing_is_missing() -> None:
    """It answers with the reduced picture, so the coarse error is exactly 0 and no untrained network has one."""
    x = pictures(2)
    assert not coarse_error(x, LinearAutoencoder(HW)(x)).any()


def test_the_basis_is_orthonormal_and_as_large_as_the_pictures_allow() -> None:
    """Three rows of light, one for four pictures up to 32, the rest zero."""
    for n in (3, 4, 9, 31, 32, 60):
        basis = fitted_to(pictures(n)).basis.double()
        count = 3 + min(COMPONENTS, n // 4)
        wanted = torch.diag((torch.arange(len(basis)) < count).double())
        torch.testing.assert_close(basis @ basis.T, wanted, rtol=0, atol=1e-5)


def lit(x: Tensor, gain: float, down: float, across: float) -> Tensor:
    height, width = x.shape[2:]
    slope = down * torch.linspace(-1, 1, height)[:, None] + across * torch.linspace(-1, 1, width)
    return x * (1 + gain + slope)


@pytest.mark.parametrize(
    ("gain", "down", "across"),
    [(0.15, 0, 0), (-0.15, 0, 0), (0, 0.15, 0), (0, 0, -0.15), (-0.05, 0.1, 0.1)],
)
def test_light_leaves_no_residual_and_a_dark_corner_does(gain: float, down: float, across: float) -> None:
    """On parts in one pose: gain and slow gradients only brighten what noise leaves; a corner 15 % darker stands
    out of it many times over, where it is."""
    rng = torch.Generator().manual_seed(0)
    usual = pictures(1)
    noise = 0.01 * torch.randn(41, 3, *HW, generator=rng)
    network = fitted_to(usual + noise[:40])
    x = usual + noise[40:]
    plain = coarse_error(x, network(x))
    changed = lit(x, gain, down, across)
    assert float((coarse_error(changed, network(changed)) - plain).abs().max()) < 1.5 / 255
    assert float(coarse_error(changed, network(changed)).mean()) < 1.2 * float(plain.mean())

    dark = x.clone()
    dark[..., :16, :20] *= 0.85
    error = coarse_error(dark, network(dark))[0, 0]
    assert float(error[2:14, 2:18].mean()) > 4 * float(plain.mean())
    assert float(error[24:, 32:].mean()) < 0.3 * float(error[2:14, 2:18].mean())


def test_pictures_in_any_batches_give_the_same_fit() -> None:
    """Only all pictures together count; and the same pictures give the same bits."""
    x = pictures(17)
    whole, again = fitted_to(x), fitted_to(x)
    by_fives = LinearAutoencoder(HW)
    by_fives.fit(x.split(5))
    assert torch.equal(whole.basis, again.basis)
    torch.testing.assert_close(by_fives(x), whole(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0], ids=["black", "grey", "white"])
def test_pictures_without_any_variation(n: int, value: float) -> None:
    """They come back as they are, and nothing that is no number comes in; what they are not does not come through."""
    x = torch.full((n, 3, *HW), value)
    network = fitted_to(x)
    torch.testing.assert_close(network(x), network.reduce(x), rtol=0, atol=3e-5)
    spot = x[:1].clone()
    spot[..., 10:20, 10:20] = 0.75
    error = coarse_error(spot, network(spot))
    assert bool(torch.isfinite(error).all()) and float(error[..., 12:18, 12:18].mean()) > 0.1


def test_a_second_fit_replaces_the_first() -> None:
    """Nothing of other pictures stays, also where the new ones are fewer."""
    network = fitted_to(pictures(40))
    network.fit([pictures(8, seed=2)])
    torch.testing.assert_close(network.basis, fitted_to(pictures(8, seed=2)).basis)


def test_the_filtering_autoencoder_finishes_with_it() -> None:
    """`finish` fits it, `reconstruct` puts it beside the picture, weights carry it, and the picture does not depend on it."""
    x = pictures(16)
    network = FilteringAutoencoder(4, HW).eval()
    before = network(x)
    network.finish(iter(x.split(4)))
    copy = FilteringAutoencoder(4, HW).eval()
    copy.load_state_dict(network.state_dict())
    for one in (network, copy):
        found = one.reconstruct(x)
        torch.testing.assert_close(found.expected, before, rtol=0, atol=0)
        assert found.coarse is not None
        torch.testing.assert_close(found.coarse, fitted_to(x)(x), rtol=0, atol=1e-6)


def test_what_few_pictures_have_is_no_component() -> None:
    """A bright spot on two of forty: with a least share of 10 % it stays in the residual, else it is learnt."""
    x = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.4
    x[:2, :, 4:8, 4:8] += 0.5
    left_over = []
    for least_share in (0.0, 0.1):
        network = LinearAutoencoder((16, 16), colours=1, cells=16)
        network.fit([x], least_share=least_share)
        assert network(x).shape == x.shape
        left_over.append(float((network(x) - x)[:2, :, 4:8, 4:8].abs().mean()))
    assert left_over[0] < 0.05 and left_over[1] > 0.3
