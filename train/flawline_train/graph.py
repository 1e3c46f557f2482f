"""The graph: everything after the frame, in one ONNX file, so that no two engines can disagree about it.

    frames uint8 (N, H, W, 3) BGR -> scores float32 (N,), heatmaps float32 (N, H, W), expected uint8 (N, H, W, 3) BGR

The error map is a weighted sum of absolute error and structural dissimilarity (1 - SSIM, Wang et al. 2004, over a
7x7 box), smoothed once by a Gaussian and then standardised per pixel by the good parts' mean and spread. The score is
the mean of the largest 0.3 % of the heatmap: one hot pixel is noise, a few dozen are a defect.
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

__all__ = ["ErrorMap", "InspectionGraph", "onnx_from_graph", "structural_dissimilarity"]

OPSET = 18  # TensorRT 10.3 reads it; the exporter's default of 20 is not needed
TOP_SHARE = 0.003
MAX_TOP_PIXELS = 3840  # TensorRT's limit on TopK
SSIM_WINDOW = 7
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SMOOTHING_SHARE = 2 / 128
"""Standard deviation of the smoothing, as a share of the frame's long side."""
ERROR_CHANNELS = ("absolute", "ssim")


def top_pixels(placement: Placement) -> int:
    """How many of the heatmap's largest values the score is the mean of."""
    _, _, w, h = placement.content
    return min(MAX_TOP_PIXELS, max(1, round(TOP_SHARE * w * h)))


def gaussian_taps(sigma: float, longest_radius: int = sys.maxsize) -> Tensor:
    """A normalised Gaussian over 3 sigma each side, (2r + 1,), cut at `longest_radius` pixels."""
    radius = min(max(1, math.ceil(3 * sigma)), longest_radius)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (taps / taps.sum()).float()


class ErrorMap(nn.Module):
    """Picture and reconstruction, both (B, 3, H, W) in 0-1 → smoothed reconstruction error (B, 1, H, W), weighted.

    For frames of `hw` (height, width). `weights` (2,) bring absolute error and structural dissimilarity to the same scale; see `calibrate`.
    """

    weights: Tensor
    taps: Tensor

    def __init__(self, hw: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(len(ERROR_CHANNELS)))
        # Reflection at the border reaches no further than the frame is wide.
        self.register_buffer("taps", gaussian_taps(SMOOTHING_SHARE * max(hw), min(hw) - 1))

    def channels(self, x: Tensor, repaired: Tensor) -> Tensor:
        """The unsmoothed errors, (B, 2, H, W), in the order of `ERROR_CHANNELS`."""
        absolute = (x - repaired).abs().mean(1, keepdim=True)
        return torch.cat([absolute, structural_dissimilarity(x, repaired)], 1)

    def smooth(self, errors: Tensor) -> Tensor:
        """(B, 1, H, W) → the same, by two one-dimensional convolutions."""
        radius = self.taps.numel() // 2
        padded = F.pad(errors, (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, self.taps.view(1, 1, 1, -1)), self.taps.view(1, 1, -1, 1))

    def forward(self, x: Tensor, repaired: Tensor) -> Tensor:
        weighted = (self.channels(x, repaired) * self.weights.view(1, -1, 1, 1)).sum(1, keepdim=True)
        return self.smooth(weighted)


def structural_dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """1 - SSIM, averaged over the colours: (B, 3, H, W) twice → (B, 1, H, W) in 0-2.

    Written with d = x - y, whose statistics are small where x and y agree: the textbook form subtracts nearly equal
    numbers there, and its rounding errors, divided by a small spread, would look like defects that differ by engine.
    """
    d = x - y
    colours = x.shape[1]
    stack = torch.cat([x, d, d * d, x * x + y * y], 1)
    radius = SSIM_WINDOW // 2
    means = F.avg_pool2d(F.pad(stack, (radius, radius, radius, radius), mode="reflect"), SSIM_WINDOW, 1)
    mean_x, mean_d, mean_dd, mean_squares = torch.split(means, colours, 1)
    mean_y = mean_x - mean_d
    squares = mean_x * mean_x + mean_y * mean_y
    luminance = mean_d * mean_d / (squares + SSIM_C1)
    variances = (mean_squares - squares).clamp(min=0)
    structure = (mean_dd - mean_d * mean_d).clamp(min=0) / (variances + SSIM_C2)
    # 1 - (1 - luminance)(1 - structure), multiplied out
    return (luminance + structure - luminance * structure).mean(1, keepdim=True)


class InspectionGraph(nn.Module):
    """The network wrapped into the graph's contract; the network and the error map are shared, not copied."""

    mean: Tensor
    inverse_spread: Tensor

    def __init__(self, network: nn.Module, error_map: nn.Module, good: GoodSpread, placement: Placement) -> None:
        super().__init__()
        self.network = network
        self.error_map = error_map
        x, y, w, h = placement.content
        inverse = np.zeros_like(good.spread)
        inverse[y : y + h, x : x + w] = (
            1 / good.spread[y : y + h, x : x + w]
        )  # replicated border is no part of the part
        self.register_buffer("mean", torch.from_numpy(good.mean))
        self.register_buffer("inverse_spread", torch.from_numpy(inverse))
        self.top_pixels = top_pixels(placement)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = frames.float().permute(0, 3, 1, 2) / 255  # Cast first: TensorRT takes no other operation on uint8
        repaired = self.network(x).clamp(0, 1)
        heatmaps = (self.error_map(x, repaired)[:, 0] - self.mean) * self.inverse_spread  # (N, H, W)
        scores = torch.topk(heatmaps.flatten(1), self.top_pixels, dim=1).values.mean(1)
        expected = (repaired * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
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
    return cast(bytes, program.model_proto.SerializeToString())


@torch.inference_mode()
def run_graph(graph: InspectionGraph, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    """The graph in torch: scores (N,), heatmaps (N, H, W), expected (N, H, W, 3)."""
    device = graph.mean.device
    parts = [graph(torch.from_numpy(frames[i : i + 16]).to(device)) for i in range(0, len(frames), 16)]
    return tuple(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
