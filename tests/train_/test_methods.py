"""The family by name: every method is a network of the same kind, learns good parts, and comes back from a bundle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.train_.networks import HW, WIDTH, mean_picture_error, trained, unseen
from tests.train_.parts import shaken, write_parts
from torch.utils.flop_counter import FlopCounterMode

from flawline_inspect.bundle import WEIGHTS, Bundle
from flawline_inspect.errors import BundleError, InputError
from flawline_train import learning, train, training
from flawline_train.autoencoders import Batch
from flawline_train.autoencoders.methods import METHOD_NAMES, METHODS, build, network_from_bundle, settings_of

GENERATIVE = [name for name in METHOD_NAMES if METHODS[name].generative]
WORTH_OF_MEAN = {"ssim": 0.75, "variational": 0.6, "beta": 0.6, "masked": 0.7}
"""Largest squared error after 300 steps, of the mean picture's; 0.4 where nothing is said. SSIM is trained for something
else, variational codes are noisy while they learn, and a masked network answers for what it cannot see."""


def batch_of(x: torch.Tensor) -> Batch:
    return Batch(x, x, torch.zeros_like(x[:, :1]), 0.5)


# The registry


def test_the_methods_are_these() -> None:
    """By the names that bundles hold; the default is the first that the help lists."""
    assert METHOD_NAMES == (
        "filtering", "vanilla", "convolutional", "ssim", "denoising", "sparse", "contractive", "variational", "beta",
        "vector-quantized", "hierarchical", "masked", "attention",
    )  # fmt: skip
    assert GENERATIVE == ["variational", "beta", "vector-quantized", "hierarchical"]
    assert all(method.summary and "\n" not in method.summary for method in METHODS.values())


def test_an_unknown_method_is_the_users_mistake(tmp_path: Path) -> None:
    """One sentence that lists the names, before any picture is read."""
    with pytest.raises(
        InputError, match=r"--method is 'gan', expected one of filtering, vanilla, .*attention, or anomalib:NAME$"
    ):
        build("gan", 4, HW)
    with pytest.raises(InputError, match="--method is 'gan'"):
        train(tmp_path / "nothing here", tmp_path / "part.flawline", method="gan")


def test_an_unknown_setting_is_named() -> None:
    """With the settings that the method has."""
    with pytest.raises(InputError, match=r"method beta has no setting 'depth'; it has latent, beta, warm_up"):
        build("beta", 4, HW, depth=3)
    assert settings_of("beta", beta=2.0) == {"latent": 64, "beta": 2.0, "warm_up": 0.5}


# Every method as a plain module


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("hw", [(16, 48), (64, 32), (112, 80)], ids=str)
@torch.inference_mode()
def test_shape_is_kept(name: str, hw: tuple[int, int]) -> None:
    """Any multiples of 16, high or wide; the code is one vector a picture."""
    x = torch.rand(3, 3, *hw, generator=torch.Generator().manual_seed(0))
    network = shaken(build(name, 4, hw))
    y, code = network(x), network.embed(x)
    assert y.shape == x.shape and y.dtype == torch.float32 and bool(torch.isfinite(y).all())
    assert code.ndim == 2 and len(code) == 3 and bool((code.std(0) > 0).any())


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_cost_is_bounded(name: str) -> None:
    """At the default width and 128 x 96: at most 1.2 GFLOP and 3 M parameters, and no explosion at 512 x 384."""
    network = build(name, 32, (96, 128)).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, 96, 128))
    assert counter.get_total_flops() <= 1.2e9
    assert sum(p.numel() for p in network.parameters()) <= 3e6
    assert sum(p.numel() for p in build(name, 32, (384, 512)).parameters()) <= 6e6


@pytest.mark.parametrize("name", METHOD_NAMES)
@torch.inference_mode()
def test_inference_is_deterministic_and_alone(name: str) -> None:
    """The same picture gives the same answer, whatever else is in the batch."""
    network = shaken(build(name, 4, HW))
    x = unseen()[:4]
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_parameter_is_trained(name: str) -> None:
    """The gradient of the method's own loss reaches every parameter; the loss is one float32 number."""
    torch.manual_seed(0)
    network = shaken(build(name, 4, HW)).train()
    x = unseen()[:8].clone()
    loss = network.loss(batch_of(x)) + network.loss(batch_of(x.flip(3)))
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    dead = [key for key, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_bf16_changes_little(name: str) -> None:
    """Under autocast the loss stays float32, finite, and within a few per cent of what float32 gives."""
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = shaken(build(name, 4, HW)).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            network.loss(batch_of(unseen()[:8]))
            loss = network.loss(batch_of(unseen()[8:16]))
        loss.backward()
        assert loss.dtype == torch.float32 and bool(torch.isfinite(loss))
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


# What it learns


@pytest.mark.parametrize("name", METHOD_NAMES)
@torch.inference_mode()
def test_good_parts_are_reconstructed(name: str) -> None:
    """After 300 steps unseen good parts come back clearly better than as the mean picture: the code says something."""
    error = float((trained(name)(unseen()).clamp(0, 1) - unseen()).square().mean())
    share = error / mean_picture_error()
    assert share < WORTH_OF_MEAN.get(name, 0.4), f"{share:.2f} of the mean picture's error"


@pytest.mark.parametrize("name", GENERATIVE)
@torch.inference_mode()
def test_drawn_parts_look_like_good_parts(name: str) -> None:
    """Nearer to some good part than good parts' mean is to them, different from each other, and told by the seed."""
    network = trained(name)
    drawn = network.sample(16, torch.Generator().manual_seed(1))
    assert drawn.shape == (16, 3, *HW) and float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    distances = (drawn[:, None] - unseen()).square().mean((2, 3, 4))  # (16, 32)
    assert float(distances.min(1).values.mean()) < mean_picture_error()
    assert float(drawn.std(0).mean()) > 0.3 * float(unseen().std(0).mean())
    assert torch.equal(drawn, network.sample(16, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, network.sample(16, torch.Generator().manual_seed(2)))


def test_others_draw_nothing() -> None:
    """Only the methods that say so."""
    for name in sorted(set(METHOD_NAMES) - set(GENERATIVE)):
        with pytest.raises(NotImplementedError):
            build(name, 4, HW).sample(1, torch.Generator())


# Bundles


@pytest.fixture
def bundle_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bundle_of(name)`: trained for three steps; export and golden pictures, which are not looked at here, left out."""
    good = write_parts(tmp_path / "good", 12, (64, 48))
    monkeypatch.setattr(learning, "onnx_from_graph", lambda graph: b"no graph")
    monkeypatch.setattr(training, "choose_golden", lambda *_: SimpleNamespace(members={}, entries=[]))

    def make(name: str) -> Bundle:
        return train(good, tmp_path / "part.flawline", method=name, steps=3, width=WIDTH, size=64, device="cpu").bundle

    return make


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_network_comes_back_from_its_bundle(name: str, bundle_of: Any) -> None:
    """Method, settings, frame and every number, codebooks and priors included, are in the bundle."""
    bundle = bundle_of(name)
    method = bundle.manifest.method
    assert method.name == name and settings_of(name).items() <= method.parameters.items()
    network = network_from_bundle(bundle)
    assert type(network) is METHODS[name].network and not network.training
    stored = safetensors.torch.load(bundle.member(WEIGHTS))
    state = network.state_dict()
    assert stored.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(stored[key].to(tensor.dtype), tensor), key
    with torch.inference_mode():
        assert bool(torch.isfinite(network(torch.rand(2, 3, 48, 64))).all())


def test_a_bundle_of_another_method_is_refused(bundle_of: Any) -> None:
    """An unknown method, or weights that are another's: one sentence that names what does not fit."""
    bundle = bundle_of("vanilla")
    for change, message in (
        ({"name": "gan"}, "'gan' cannot be rebuilt"),
        ({"name": "sparse"}, "weights.safetensors does not fit the method 'sparse'"),
        ({"parameters": {}}, "'vanilla' cannot be rebuilt"),
    ):
        method = bundle.manifest.method.model_copy(update=change)
        other = SimpleNamespace(
            source="other.flawline",
            manifest=bundle.manifest.model_copy(update={"method": method}),
            member=bundle.member,
        )
        with pytest.raises(BundleError, match=message):
            network_from_bundle(other)  # type: ignore[arg-type]
