"""The filtering autoencoder as a plain module: shapes, size, numbers."""

from __future__ import annotations

import pytest
import torch
from tests.train_.parts import shaken

from flawline_train.autoencoders import FilteringAutoencoder


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("hw", [(16, 16), (16, 96), (48, 32), (64, 64), (112, 80)], ids=str)
@pytest.mark.parametrize("width", [4, 5, 8])
@torch.inference_mode()
def test_shape_is_kept(hw: tuple[int, int], width: int) -> None:
    """(B, 3, H, W) comes back as (B, 3, H, W) for any multiples of 16 and any width, odd ones too."""
    x = torch.rand(2, 3, *hw, generator=torch.Generator().manual_seed(0))
    y = shaken(FilteringAutoencoder(width))(x)
    assert y.shape == x.shape and y.dtype == torch.float32
    assert bool(torch.isfinite(y).all())


@pytest.mark.parametrize(("width", "millions", "most"), [(12, 0.33, 0.6), (32, 2.3, 2.5)])
def test_parameters_are_as_few_as_promised(width: int, millions: float, most: float) -> None:
    """Width 12 has 0.33 M parameters (at most 0.6 M), width 32 has 2.3 M."""
    found = count(FilteringAutoencoder(width)) / 1e6
    assert found == pytest.approx(millions, abs=0.05) and found <= most


def test_parameters_grow_with_the_square_of_the_width() -> None:
    """Doubling the width makes it nearly four times as large."""
    assert count(FilteringAutoencoder(64)) / count(FilteringAutoencoder(32)) == pytest.approx(4, abs=0.1)


@torch.inference_mode()
def test_untrained_it_returns_its_input() -> None:
    """The correction starts from none, so the identity is what training departs from."""
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(FilteringAutoencoder(4).eval()(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0], ids=["black", "grey", "white"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_constant_input_gives_numbers(value: float, training: bool) -> None:
    """A picture without any variance normalises to finite values, in batch statistics as in running ones."""
    network = shaken(FilteringAutoencoder(4)).train(training)
    x = torch.full((2, 3, 32, 32), value)
    y = network(x)
    y.square().mean().backward()
    assert bool(torch.isfinite(y).all())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_every_parameter_takes_part() -> None:
    """No branch is dead: the gradient of a loss reaches every parameter, skips and bottom included."""
    network = shaken(FilteringAutoencoder(4)).train()
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    (network(x) - x.flip(0)).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@torch.inference_mode()
def test_a_corner_is_seen_from_the_other_side() -> None:
    """At 128 pixels the bottom's dilated blocks see the whole part: a corner changes the opposite corner's correction."""
    network = shaken(FilteringAutoencoder(8))
    x = torch.full((1, 3, 128, 128), 0.5)
    changed = x.clone()
    changed[..., :16, :16] = 1
    difference = (network(changed) - network(x)).abs()
    assert float(difference[..., -16:, -16:].max()) > 0
