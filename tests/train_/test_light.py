"""The light that is taken out, and what is not taken for light."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.train_.parts import parts

from flawline_train.light import MARGIN, Light

H, W = 96, 128
U8 = NDArray[np.uint8]


def fitted(frames: U8 | None = None) -> Light:
    light = Light((H, W))
    light.fit(parts(12, (W, H)) if frames is None else frames)
    return light.eval()


def tensor(frames: U8) -> torch.Tensor:
    return torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255


def lit(x: torch.Tensor, gain: float, down: float = 0.0, across: float = 0.0) -> torch.Tensor:
    """As by another lamp: times exp(gain + down y + across x), x and y from -1 to 1."""
    y, z = torch.linspace(-1, 1, x.shape[2])[:, None], torch.linspace(-1, 1, x.shape[3])
    return (x * (gain + down * y + across * z).exp()).clamp(0, 1)


def on_white(frames: U8) -> U8:
    """The parts before a white, saturated background."""
    out = frames.copy()
    out[:, : H // 8] = out[:, -H // 8 :] = out[:, :, : W // 4] = out[:, :, -W // 4 :] = 255
    return out


@given(st.floats(-0.18, 0.18), st.floats(-0.15, 0.15), st.floats(-0.15, 0.15))
@settings(max_examples=25, deadline=None)
def test_other_light_is_found_and_taken_out(gain: float, down: float, across: float) -> None:
    """The coefficients within a hundredth, and with them a picture that differs by less than a grey value or two."""
    light, x = LIGHT, tensor(parts(1, (W, H), first=100))
    usual, _ = light(x)
    seen, taken = light(lit(x, gain, down, across))
    found = light.coefficients(lit(x, gain, down, across)) - light.coefficients(x)
    np.testing.assert_allclose(found[0].numpy(), [gain, down, across], atol=0.01)
    assert float((seen - usual).abs().mean()) < 1 / 255
    assert taken.shape == (1, 1, H, W) and bool((taken > 0).all())


LIGHT = fitted()


def test_a_defect_hardly_moves_it() -> None:
    """A black hole over a twentieth of the picture changes the gain by less than 3 %, and stays black."""
    x = tensor(parts(1, (W, H), first=100))
    hurt = x.clone()
    hurt[:, :, 30:54, 40:66] = 0.02
    seen, gain = LIGHT(hurt)
    assert float((gain / LIGHT(x)[1] - 1).abs().max()) < 0.03
    assert float(seen[:, :, 32:50, 42:60].max()) < 0.03


def test_what_light_cannot_explain_stays() -> None:
    """A part at 40 % of the usual brightness is followed to the margin and no further."""
    x = tensor(parts(1, (W, H), first=100))
    found = LIGHT.coefficients(x * 0.4)
    assert float(found[0, 0]) == pytest.approx(-MARGIN, abs=0.03) and float(found[0, 0]) > math.log(0.5)
    assert float(LIGHT(x * 0.4)[0].mean()) < 0.6 * float(x.mean())


def test_a_white_background_tells_nothing() -> None:
    """In more light the background stays saturated: the part's gain is found all the same, and the white stays white. In
    less light it comes back to white."""
    frames = on_white(parts(12, (W, H)))
    light, x = fitted(frames), tensor(on_white(parts(1, (W, H), first=100)))
    for gain in (0.14, -0.16):
        changed = lit(x, gain)
        seen, _ = light(changed)
        assert float(light.coefficients(changed)[0, 0]) == pytest.approx(gain, abs=0.03)
        assert float((seen - light(x)[0]).abs().mean()) < 2 / 255
        assert float(seen[..., : W // 5].min()) > 0.97


def test_bright_pixels_of_a_part_in_more_light_are_brought_back() -> None:
    """What is saturated but usually is not, is divided like everything else."""
    x = tensor(parts(1, (W, H), first=100))
    changed = lit(x, 0.18)
    changed[:, :, 40:44, 40:44] = 1.0
    seen, gain = LIGHT(changed)
    torch.testing.assert_close(seen[:, :, 40:44, 40:44], (1 / gain[:, :, 40:44, 40:44]).expand(-1, 3, -1, -1))


def test_before_it_is_fitted_pictures_pass() -> None:
    x = tensor(parts(2, (W, H)))
    seen, gain = Light((H, W))(x)
    assert torch.equal(seen, x) and torch.equal(gain, torch.ones(2, 1, H, W))


@pytest.mark.parametrize("value", [0, 128, 255], ids=["black", "grey", "white"])
def test_flat_pictures_give_numbers(value: int) -> None:
    """Nothing to divide by and nothing to learn: still a picture, with no value that is none."""
    frames = np.full((4, H, W, 3), value, np.uint8)
    seen, gain = fitted(frames)(tensor(np.concatenate([frames, parts(1, (W, H))])))
    assert bool(seen.isfinite().all()) and bool(gain.isfinite().all())
    np.testing.assert_allclose(seen[:4].numpy(), value / 255, atol=1e-4)


def test_frames_in_the_usual_light_are_rounded_pictures() -> None:
    """Same shape and order, and what the module says of the same picture."""
    frames = (parts(20, (W, H)) * 0.9).astype(np.uint8)
    usual = LIGHT.usual(frames)
    assert usual.dtype == np.uint8 and usual.shape == frames.shape
    np.testing.assert_array_equal(usual[17:18], (LIGHT(tensor(frames[17:18]))[0] * 255).round().permute(0, 2, 3, 1))
    assert abs(float(usual.mean()) - float(parts(20, (W, H)).mean())) < 1.5


def test_a_picture_is_seen_alone_as_in_a_batch() -> None:
    x = lit(tensor(parts(5, (W, H), first=50)), 0.1, 0.05)
    torch.testing.assert_close(LIGHT(x)[0][3:4], LIGHT(x[3:4])[0], rtol=0, atol=1e-6)
