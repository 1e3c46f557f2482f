"""The methods by name, and how a network is made from a name or from a bundle."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from flawline_inspect.bundle import WEIGHTS, Bundle
from flawline_inspect.errors import BundleError, InputError
from flawline_train.autoencoders.autoencoder import Autoencoder
from flawline_train.autoencoders.convolutional import (
    AttentionAutoencoder,
    ConvolutionalAutoencoder,
    DenoisingAutoencoder,
    SsimAutoencoder,
)
from flawline_train.autoencoders.dense import VanillaAutoencoder
from flawline_train.autoencoders.filtering import FilteringAutoencoder
from flawline_train.autoencoders.masked import MaskedAutoencoder
from flawline_train.autoencoders.quantized import HierarchicalAutoencoder, VectorQuantizedAutoencoder
from flawline_train.autoencoders.regularised import ContractiveAutoencoder, SparseAutoencoder
from flawline_train.autoencoders.variational import BetaVariationalAutoencoder, VariationalAutoencoder

__all__ = [
    "ANOMALIB",
    "DEFAULT_METHOD",
    "METHODS",
    "METHOD_NAMES",
    "Method",
    "build",
    "network_from_bundle",
    "settings_of",
]

DEFAULT_METHOD = "filtering"
ANOMALIB = "anomalib:"
"""Before the name of a model that anomalib has: see `flawline_train.anomalib_method`."""
Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Method:
    """`summary`: one line for people. `network`: takes the width, the frame's (height, width) and its own settings."""

    summary: str
    network: type[Autoencoder]
    generative: bool = False


METHODS: dict[str, Method] = {
    "filtering": Method("repairs structured damage; sharp, finds small defects (the default)", FilteringAutoencoder),
    "vanilla": Method("fully connected, on a picture reduced to 32 cells a side", VanillaAutoencoder),
    "convolutional": Method("convolutions and a narrow code, squared error", ConvolutionalAutoencoder),
    "ssim": Method("the same, trained and scored by structural similarity", SsimAutoencoder),
    "denoising": Method("takes noise away", DenoisingAutoencoder),
    "sparse": Method("many units of which few are active", SparseAutoencoder),
    "contractive": Method("a code that small changes of the picture do not move", ContractiveAutoencoder),
    "variational": Method("a code that is a distribution; draws new parts", VariationalAutoencoder, generative=True),
    "beta": Method(
        "variational with fewer, separate kinds of variation; draws new parts",
        BetaVariationalAutoencoder,
        generative=True,
    ),
    "vector-quantized": Method(
        "a code of words from a learnt codebook; draws new parts", VectorQuantizedAutoencoder, generative=True
    ),
    "hierarchical": Method(
        "two levels of such words, coarse and fine; draws new parts", HierarchicalAutoencoder, generative=True
    ),
    "masked": Method("tells hidden patches from the rest of the part", MaskedAutoencoder),
    "attention": Method("convolutional, with a code whose places see each other", AttentionAutoencoder),
}
METHOD_NAMES = tuple(METHODS)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"--method is {name!r}, expected one of {', '.join(METHOD_NAMES)}, or {ANOMALIB}NAME")
    return METHODS[name]


def settings_of(name: str, **given: Setting) -> dict[str, Setting]:
    """What a method can be set to besides width and frame: its defaults, with `given` in their place.

    Raises `InputError` for a method or setting that does not exist.
    """
    parameters = inspect.signature(_method(name).network).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    if unknown := sorted(given.keys() - defaults.keys()):
        has = ", ".join(defaults) or "none"
        raise InputError(f"method {name} has no setting {unknown[0]!r}; it has {has}")
    return {**defaults, **given}


def build(name: str, width: int, frame_hw: tuple[int, int], **parameters: Setting) -> Autoencoder:
    """A new network of a method for frames of (height, width), both multiples of 16; weights from torch's generator.

    Raises `InputError` for a method or setting that does not exist.
    """
    settings = settings_of(name, **parameters)
    network: Any = _method(name).network  # each with its own keywords
    if "frame_hw" in inspect.signature(network).parameters:
        settings = {"frame_hw": frame_hw, **settings}  # type: ignore[dict-item]
    return network(width, **settings)


def network_from_bundle(bundle: Bundle) -> Autoencoder:
    """The network as it was trained (its weights rounded to fp16), in evaluation mode, on the CPU.

    Raises `BundleError` when the bundle's method is unknown here, or its weights are not this method's.
    """
    method, frame = bundle.manifest.method, bundle.manifest.frame
    try:
        settings = {key: method.parameters[key] for key in settings_of(method.name) if key in method.parameters}
        width = method.parameters["width"]
        assert isinstance(width, int)
        network = build(method.name, width, (frame.height, frame.width), **settings)  # type: ignore[arg-type]
    except (InputError, KeyError, AssertionError) as exc:
        raise BundleError(
            f"{bundle.source}: its method {method.name!r} cannot be rebuilt by this flawline; train again"
        ) from exc
    try:
        weights: Mapping[str, torch.Tensor] = safetensors.torch.load(bundle.member(WEIGHTS))
        network.load_state_dict(weights)
    except (safetensors.SafetensorError, RuntimeError) as exc:
        raise BundleError(
            f"{bundle.source}: {WEIGHTS} does not fit the method {method.name!r} of this flawline; train again"
        ) from exc
    return network.eval()
