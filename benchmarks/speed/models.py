"""What is measured, with random weights: flawline's bundles, anomalib's models, and the SSIM autoencoder in plain torch.

The time of a network does not depend on its weights, and nothing has to be trained or downloaded. What is learnt from pictures
besides weights (Padim's statistics, EfficientAD's quantiles, our good parts' spread) is set, so that nothing is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_inspect.bundle import MODEL, save_bundle
from flawline_inspect.calibration import GoodSpread
from flawline_inspect.frame import Placement
from flawline_train.autoencoders.methods import build
from flawline_train.graph import CELL, ERROR_CHANNELS, ErrorMap, InspectionGraph, onnx_from_graph, reconstruct
from flawline_train.light import Light
from flawline_train.options import PRESETS
from flawline_train.precision import half_model, quantizable_model

__all__ = ["PEERS", "PRESET_NAMES", "AeSsim", "anomalib_model", "inspection_graph", "write_bundle"]

PRESET_NAMES = tuple(PRESETS)
PEERS = ("EfficientAd", "Padim", "Draem", "Ganomaly")
"""anomalib's, in its spelling; EfficientAd is its small one, Padim stands on a ResNet-18."""

_METHOD = "filtering"
_CALIBRATION_FRAMES = 4


def write_bundle(path: Path, preset: str, size: int, *, smaller: bool = False) -> None:
    """A bundle for square frames of `size` px; with `smaller` its fp16 and int8 graphs, too."""
    model = onnx_from_graph(inspection_graph(preset, size))
    members = {MODEL: model}
    if smaller:
        members["model.fp16.onnx"] = half_model(model)
        quantizable = quantizable_model(model, list(_frames(size)))
        members["model.int8.onnx"] = quantizable.with_int8(list(quantizable.convolutions))
    save_bundle(path, _manifest(f"{preset}-{size}", size), members)


def inspection_graph(preset: str, size: int) -> InspectionGraph:
    """The whole graph in torch, as a training makes it: light, network, every error, calibration, score."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    network = build(_METHOD, PRESETS[preset], (size, size)).eval()  # type: ignore[index]
    x = torch.from_numpy(_frames(size)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        network.finish([x])
        has_coarse = reconstruct(network, x[:1]).coarse is not None
    every = tuple(name for name in ERROR_CHANNELS if has_coarse or name != "coarse")
    channels = network.error_channels or every
    hw, cells = (size, size), (size // CELL, size // CELL)
    good = GoodSpread(
        mean=random.uniform(0.05, 0.3, cells).astype(np.float32),
        spread=random.uniform(0.05, 0.2, cells).astype(np.float32),
    )
    placement = Placement(hw, (0, 0, size, size), (0, 0, size, size))
    return InspectionGraph(network, ErrorMap(hw, channels), good, placement, Light(hw)).eval()


def _frames(size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (_CALIBRATION_FRAMES, size, size, 3), np.uint8)


def _manifest(name: str, size: int) -> dict[str, Any]:
    frame = {"width": size, "height": size, "bit_depth": 8, "roi": None, "picture_wh": [size, size], "align": None}
    calibration = {
        "scores": [1.0, 2.0, 3.0],
        "threshold": 4.0,
        "basis": "log_normal",
        "false_reject_target": 0.01,
        "promised_false_reject_rate": 0.25,
    }
    card = {"intended_use": "measuring speed", "limits": "untrained", "data": "noise", "who_may_be_wronged": "nobody"}
    return {
        "name": name,
        "created": "2026-11-20T00:00:00Z",
        "method": {"name": _METHOD, "parameters": {}},
        "frame": frame,
        "calibration": calibration,
        "data": {"pictures": [{"file": "noise.png", "sha256": "0" * 64, "role": "train"}]},
        "card": card,
        "golden": [],
        "versions": {},
    }


# --- peers -----------------------------------------------------------------------------------------------------------


def anomalib_model(name: str, size: int, folder: Path) -> Any:
    """A model of `PEERS` with its own pre- and postprocessing, in evaluation mode, for pictures of `size` px.

    `folder` is for the textures that Draem asks for and that inference does not use.
    """
    from anomalib import models

    torch.manual_seed(0)
    cls = getattr(models, name)
    options: dict[str, Any] = {"evaluator": False, "visualizer": False}
    if name == "Padim":
        options["pre_trained"] = False
    if name == "Draem":
        options["dtd_dir"] = folder / "no textures"
        options["dtd_dir"].mkdir(parents=True, exist_ok=True)
    module = cls(pre_processor=cls.configure_pre_processor((size, size)), **options).eval()
    if name == "Padim":
        patches = (size // 4) ** 2
        features = module.model.n_features
        module.model.gaussian.mean = torch.zeros(features, patches)
        module.model.gaussian.inv_covariance = torch.eye(features).repeat(patches, 1, 1)
    if name == "EfficientAd":
        for key, value in module.model.quantiles.items():
            value.data = torch.full_like(value.data, 0.1 if key.startswith("qa") else 0.9)
        module.model.mean_std["mean"].data += 0.1
        module.model.mean_std["std"].data = torch.ones_like(module.model.mean_std["std"].data)
    return module


class AeSsim(nn.Module):
    """The SSIM autoencoder: Bergmann et al. 2018, https://arxiv.org/abs/1807.02011, table 1, with the residual as its map.

    Pictures (B, 3, H, W) in 0-1, sides multiples of 16 from 128 on → scores (B,), maps (B, H - 10, W - 10). The table is
    for 128 px; for more, layers like its first halve the picture until its last leaves 8 x 8, as for 128.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        layers = [(32, 4, 2)] * max(1, round(np.log2(size / 64))) + [(32, 4, 2), (32, 3, 1), (64, 4, 2)]
        layers += [(64, 3, 1), (128, 4, 2), (64, 3, 1), (32, 3, 1)]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        channels = 3
        for i, (width, kernel, stride) in enumerate(layers):
            encoder += [nn.Conv2d(channels, width, kernel, stride, 1), nn.LeakyReLU(0.2)]
            last = nn.Identity() if i == 0 else nn.LeakyReLU(0.2)
            decoder = [nn.ConvTranspose2d(width, channels, kernel, stride, 1), last, *decoder]
            channels = width
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(32, 100, 8))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(100, 32, 8), nn.LeakyReLU(0.2), *decoder)
        axis = torch.arange(11) - 5.0
        taps = torch.exp(-(axis**2) / (2 * 1.5**2))
        window = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("window", window.expand(3, 1, 11, 11).clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.decoder(self.encoder(x))

        def mean(values: Tensor) -> Tensor:
            return F.conv2d(values, self.window, groups=3)  # type: ignore[arg-type]

        mean_x, mean_y = mean(x), mean(y)
        variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
        covariance = mean(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        ssim = luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)
        maps = 1 - ssim.mean(1)
        return maps.flatten(1).amax(1), maps
