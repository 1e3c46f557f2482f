"""The graph: everything after the frame, in one ONNX file, so that no two engines can disagree about it.

    frames uint8 (N, H, W, 3) BGR -> scores float32 (N,), heatmaps float32 (N, H, W), expected uint8 (N, H, W, 3) BGR

Before the network the picture is brought to the usual light, and what was expected is shown in the picture's own.

Up to five errors are weighed into one map: the absolute error; structural dissimilarity (1 - SSIM) and the dissimilarity of
gradients at three scales (1 - MSGMS), both of the grey picture; the absolute error against the network's coarse
reconstruction, where it has one; and how unusual the picture's patches are against that, or else against the
reconstruction. Each is divided by the root of its own mean over the picture: a picture that is rebuilt
badly everywhere, because it is bright or noisy, is not defective everywhere (Poisson noise relates mean and spread
just so). The sum is smoothed once by a Gaussian and then standardised per pixel by the good parts' mean and spread. The
score is the mean of the largest 0.3 % of the heatmap: one hot pixel is noise, a few dozen are a defect.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import warnings
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_engines.engine import MAX_BATCH
from flawline_inspect.calibration import GoodSpread
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import Autoencoder, Reconstruction
from flawline_train.dissimilarity import coarse_error, gradient_dissimilarity, structural_dissimilarity
from flawline_train.kind import tile_hw
from flawline_train.light import Light
from flawline_train.patches import PatchDistance, log_ratio

__all__ = ["ErrorMap", "InspectionGraph", "onnx_from_graph", "reconstruct"]

OPSET = 18  # TensorRT 10.3 reads it; the exporter's default of 20 is not needed
_PRIVATE = frozenset({"pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"})
TOP_SHARE = 0.003
MAX_TOP_PIXELS = 3840  # TensorRT's limit on TopK
SMOOTHING_SHARE = 2 / 128
"""Standard deviation of the smoothing, as a share of the frame's long side."""
_BATCH = 16
_BATCH_PIXELS = _BATCH * 256 * 256
ERROR_CHANNELS = ("absolute", "ssim", "msgms", "coarse", "patches")


def top_pixels(placement: Placement) -> int:
    """How many of the heatmap's largest values the score is the mean of."""
    return _top_pixels(placement.content[2:])


def tile_top_pixels(placement: Placement) -> int:
    """The same of a texture: as many as of its worst tile, however large the frame."""
    _, _, w, h = placement.content
    return _top_pixels(tile_hw((w, h)))


def _top_pixels(sides: tuple[int, int]) -> int:
    return min(MAX_TOP_PIXELS, max(1, round(TOP_SHARE * sides[0] * sides[1])))


def gaussian_taps(sigma: float, longest_radius: int = sys.maxsize) -> Tensor:
    """A normalised Gaussian over 3 sigma each side, (2r + 1,), cut at `longest_radius` pixels."""
    radius = min(max(1, math.ceil(3 * sigma)), longest_radius)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (taps / taps.sum()).float()


class ErrorMap(nn.Module):
    """Picture and reconstruction, (B, 3, H, W) in 0-1 → smoothed reconstruction error (B, 1, H, W), weighted.

    For frames of `hw` (height, width). `channels`: which of `ERROR_CHANNELS` are formed. `weights` (C,) bring them to the
    same scale; `floors` (C,) are added to a channel's mean over the picture, whose root divides it; `patches` knows the good
    parts' patches. See `calibrate`.
    """

    weights: Tensor
    floors: Tensor
    taps: Tensor

    def __init__(self, hw: tuple[int, int], channels: tuple[str, ...] = ERROR_CHANNELS[:3]) -> None:
        super().__init__()
        if not channels or set(channels) - set(ERROR_CHANNELS):
            raise ValueError(f"error channels are {channels}, expected some of {ERROR_CHANNELS}")
        self.names = channels
        self.register_buffer("weights", torch.ones(len(channels)))
        self.register_buffer("floors", torch.ones(len(channels)))
        self.patches = PatchDistance()
        # Reflection at the border reaches no further than the frame is wide.
        self.register_buffer("taps", gaussian_taps(SMOOTHING_SHARE * max(hw), min(hw) - 1))

    def channels(self, x: Tensor, found: Reconstruction) -> Tensor:
        """The unsmoothed errors, (B, C, H, W), in the order of `names`. `found.expected` lies in 0-1."""
        grey, expected_grey = x.mean(1, keepdim=True), found.expected.mean(1, keepdim=True)
        out = []
        for name in self.names:
            if name == "absolute":
                out.append((x - found.expected).abs().mean(1, keepdim=True))
            elif name == "ssim":
                out.append(structural_dissimilarity(grey, expected_grey))
            elif name == "msgms":
                out.append(gradient_dissimilarity(grey, expected_grey))
            elif name == "patches":
                out.append(self.patches(self.ratio(x, found)))
            else:
                assert found.coarse is not None, "the coarse error is formed for networks that have a coarse picture"
                out.append(coarse_error(x, found.coarse))
        return torch.cat(out, 1)

    @staticmethod
    def ratio(x: Tensor, found: Reconstruction) -> Tensor:
        """What the patches are cut from, (B, 1, H, W)."""
        return log_ratio(x, found.expected if found.coarse is None else found.coarse)

    def divisors(self, channels: Tensor) -> Tensor:
        """What each picture's `channels` (B, C, H, W) are divided by, (B, C, 1, 1)."""
        return (channels.mean((2, 3), keepdim=True) + self.floors.view(1, -1, 1, 1)).sqrt()

    def smooth(self, errors: Tensor) -> Tensor:
        """(B, 1, H, W) → the same, by two one-dimensional convolutions."""
        radius = self.taps.numel() // 2
        padded = F.pad(errors, (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, self.taps.view(1, 1, 1, -1)), self.taps.view(1, 1, -1, 1))

    def forward(self, x: Tensor, found: Reconstruction) -> Tensor:
        channels = self.channels(x, found)
        factors = self.weights.view(1, -1, 1, 1) / self.divisors(channels)
        return self.smooth((channels * factors).sum(1, keepdim=True))


def reconstruct(network: nn.Module, x: Tensor, *, places: bool = True) -> Reconstruction:
    """What `network` makes of x (B, 3, H, W), its picture clamped to 0-1; a plain module's output is its picture.

    Without `places`, for textures, there is no coarse picture: what the whole lets expect at a place means nothing.
    """
    whole = places and isinstance(network, Autoencoder)
    found = cast(Autoencoder, network).reconstruct(x) if whole else Reconstruction(network(x))
    return found._replace(expected=found.expected.clamp(0, 1))


class InspectionGraph(nn.Module):
    """The network wrapped into the graph's contract; its parts are shared, not copied. Without `light` pictures are taken as they are.
    `places`: False for textures, whose score is that of the worst tile."""

    mean: Tensor
    inverse_spread: Tensor

    def __init__(
        self,
        network: nn.Module,
        error_map: nn.Module,
        good: GoodSpread,
        placement: Placement,
        light: Light | None = None,
        *,
        places: bool = True,
    ) -> None:
        super().__init__()
        self.light = light
        self.network = network
        self.error_map = error_map
        x, y, w, h = placement.content
        inverse = np.zeros_like(good.spread)
        inverse[y : y + h, x : x + w] = (
            1 / good.spread[y : y + h, x : x + w]
        )  # replicated border is no part of the part
        self.register_buffer("mean", torch.from_numpy(good.mean))
        self.register_buffer("inverse_spread", torch.from_numpy(inverse))
        self.top_pixels = top_pixels(placement) if places else tile_top_pixels(placement)
        self.places = places

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = frames.float().permute(0, 3, 1, 2) / 255  # Cast first: TensorRT takes no other operation on uint8
        x, gain = (x, None) if self.light is None else self.light(x)
        found = reconstruct(self.network, x, places=self.places)
        heatmaps = (self.error_map(x, found)[:, 0] - self.mean) * self.inverse_spread  # (N, H, W)
        scores = torch.topk(heatmaps.flatten(1), self.top_pixels, dim=1).values.mean(1)
        shown = found.expected if gain is None else (found.expected * gain).clamp(max=1)
        expected = (shown * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
        return scores, heatmaps, expected


def onnx_from_graph(graph: InspectionGraph) -> bytes:
    """Export for a dynamic batch of 1 to 64, in float32, as one self-contained file."""
    graph = graph.cpu().eval()
    height, width = graph.mean.shape
    # Two pictures: with one, the exporter would fix the batch at 1.
    example = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    batch = torch.export.Dim("n", min=1, max=MAX_BATCH)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=["frames"],
                output_names=["scores", "heatmaps", "expected"],
                dynamic_shapes={"frames": {0: batch}},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        # Where on the training machine the code lay is nobody's business; the scopes stay, `quantize` goes by them.
        kept = [entry for entry in node.metadata_props if entry.key not in _PRIVATE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return cast(bytes, model.SerializeToString())


@torch.inference_mode()
def run_graph(graph: InspectionGraph, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    """The graph in torch: scores (N,), heatmaps (N, H, W), expected (N, H, W, 3)."""
    device = graph.mean.device
    # Fewer of larger frames at once, or they fill the memory.
    batch = min(_BATCH, max(1, _BATCH_PIXELS // (frames.shape[1] * frames.shape[2])))
    parts = [graph(torch.from_numpy(frames[i : i + batch]).to(device)) for i in range(0, len(frames), batch)]
    return tuple(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
