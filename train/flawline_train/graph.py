"""The graph: everything after the frame, in one ONNX file, so that no two engines can disagree about it.

    frames uint8 (N, H, W, 3) BGR -> scores float32 (N,), heatmaps float32 (N, H, W), expected uint8 (N, H, W, 3) BGR

Before the network the picture is brought to the usual light, and what was expected is shown in the picture's own.

Up to five errors are weighed into one map: the absolute error; structural dissimilarity (1 - SSIM) and the dissimilarity of
gradients at two scales (1 - MSGMS), both of the grey picture; the absolute error against the network's coarse
reconstruction, where it has one; and how unusual the picture's patches are against that, or else against the
reconstruction. Each is divided by the root of its own mean over the picture: a picture that is rebuilt
badly everywhere, because it is bright or noisy, is not defective everywhere (Poisson noise relates mean and spread
just so). The sum is smoothed once by a Gaussian and then standardised per cell by the good parts' mean and spread. The
score is the mean of the largest 0.3 % of the map: one hot cell is noise, a dozen are a defect.

The map has one value for each cell of 2x2 pixels, and the heatmap is that map brought back to the frame's size. What is smoothed
over ten pixels anyway says nothing more at full size, where it costs four times as much (benchmarks/LOG.md).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_engines.engine import MAX_BATCH
from flawline_inspect.calibration import GoodSpread
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import Autoencoder, Reconstruction
from flawline_train.dissimilarity import coarse_error, gradient_dissimilarities, structural_dissimilarity
from flawline_train.kind import tile_hw
from flawline_train.light import Light
from flawline_train.patches import PatchDistance, log_ratio

__all__ = ["ErrorMap", "InspectionGraph", "onnx_from_graph", "reconstruct"]

OPSET = 18  # TensorRT 10.3 reads it; the exporter's default of 20 is not needed
_PRIVATE = frozenset({"pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"})
TOP_SHARE = 0.003
MAX_TOP_CELLS = 3840  # TensorRT's limit on TopK
CELL = 2
"""Pixels of the frame along a side of one cell of the error map."""
SMOOTHING_SHARE = 2 / 128
"""Standard deviation of the smoothing, as a share of the frame's long side."""
SSIM_WINDOW = 3
"""Of cells."""
_BATCH = 16
_BATCH_PIXELS = _BATCH * 256 * 256
ERROR_CHANNELS = ("absolute", "ssim", "msgms", "coarse", "patches")


Box = tuple[int, int, int, int]
"""x, y, width, height."""


def cells_of(box: Box, cell: int = CELL) -> Box:
    """The cells that lie wholly within a box of pixels, at least one."""
    x, y, w, h = box
    left, top = -(-x // cell), -(-y // cell)
    return left, top, max(1, (x + w) // cell - left), max(1, (y + h) // cell - top)


def top_cells(placement: Placement, cell: int = CELL) -> int:
    """How many of the map's largest values the score is the mean of, where the map has cells of so many pixels a side."""
    return _top_cells(placement.content[2:], cell)


def tile_top_cells(placement: Placement) -> int:
    """The same of a texture: as many as of its worst tile, however large the frame."""
    _, _, w, h = placement.content
    return _top_cells(tile_hw((w, h)), CELL)


def _top_cells(sides: tuple[int, int], cell: int) -> int:
    return min(MAX_TOP_CELLS, max(1, round(TOP_SHARE * sides[0] * sides[1] / cell**2)))


def gaussian_taps(sigma: float, longest_radius: int = sys.maxsize) -> Tensor:
    """A normalised Gaussian over 3 sigma each side, (2r + 1,), cut at `longest_radius` pixels."""
    radius = min(max(1, math.ceil(3 * sigma)), longest_radius)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (taps / taps.sum()).float()


def grey_cells(x: Tensor) -> Tensor:
    """(B, C, H, W) → the grey level of each cell, (B, 1, H / 2, W / 2). By a convolution: for a pooling, engines pad the colours to
    sixteen planes."""
    colours = x.shape[1]
    share = torch.full((1, colours, CELL, CELL), 1 / (colours * CELL**2), dtype=x.dtype, device=x.device)
    return F.conv2d(x, share, stride=CELL)


def doubled(x: Tensor) -> Tensor:
    """(B, 1, H, W) → (B, 1, 2H, 2W), bilinear. As a convolution, which engines compute several times as fast as their resizing."""
    near, far = torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.75, 0.25])
    kernels = torch.stack([torch.outer(down, across) for down in (near, far) for across in (near, far)])
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernels.unsqueeze(1).to(x)), 2)


def brought_to(size: tuple[int, int], maps: Sequence[Tensor]) -> Tensor:
    """The sum (B, 1, *size) of maps, whose sides are those of `size` or smaller by powers of 2. Keeps their means."""
    by_height = sorted(maps, key=lambda each: each.shape[2])
    total = by_height[0]
    for each in by_height[1:]:
        while total.shape[2] < each.shape[2]:
            total = doubled(total)
        total = total + each
    while total.shape[2] < size[0]:
        total = doubled(total)
    return total


def _usual(expected_grey: Tensor, found: Reconstruction) -> Tensor:
    return expected_grey if found.coarse is None else found.coarse


class ErrorMap(nn.Module):
    """Picture and reconstruction, (B, 3, H, W) in 0-1 → smoothed reconstruction error (B, 1, H / 2, W / 2), weighted.

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
        # Reflection at the border reaches no further than the map is wide.
        self.register_buffer("taps", gaussian_taps(SMOOTHING_SHARE * max(hw) / CELL, min(hw) // CELL - 1))

    def channels(self, x: Tensor, found: Reconstruction) -> Tensor:
        """The unsmoothed errors, (B, C, H / 2, W / 2), in the order of `names`. `found.expected` lies in 0-1."""
        size = (x.shape[2] // CELL, x.shape[3] // CELL)
        return torch.cat([brought_to(size, maps) for maps in self._maps(x, found)], 1)

    def _maps(self, x: Tensor, found: Reconstruction) -> list[list[Tensor]]:
        """Of each error the maps that it is the sum of, (B, 1, h, w), each at the size at which it is formed."""
        grey, expected_grey = grey_cells(x), grey_cells(found.expected)
        out = []
        for name in self.names:
            if name == "absolute":
                # At full size, or a bright and a dark pixel in one cell would cancel out.
                out.append([grey_cells((x - found.expected).abs())])
            elif name == "ssim":
                out.append([structural_dissimilarity(grey, expected_grey, SSIM_WINDOW)])
            elif name == "msgms":
                out.append(gradient_dissimilarities(grey, expected_grey))
            elif name == "patches":
                out.append(self.patches.distances(log_ratio(grey, _usual(expected_grey, found))))
            else:
                assert found.coarse is not None, "the coarse error is formed for networks that have a coarse picture"
                error = coarse_error(x, found.coarse)
                # Of a small frame the coarse picture is no smaller.
                out.append([F.avg_pool2d(error, CELL) if error.shape[2] > grey.shape[2] else error])
        return out

    @staticmethod
    def ratio(x: Tensor, found: Reconstruction) -> Tensor:
        """What the patches are cut from, (B, 1, H / 2, W / 2)."""
        return log_ratio(grey_cells(x), _usual(grey_cells(found.expected), found))

    def smooth(self, errors: Tensor) -> Tensor:
        """(B, 1, h, w) → the same, by two one-dimensional convolutions."""
        radius = self.taps.numel() // 2
        padded = F.pad(errors, (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, self.taps.view(1, 1, 1, -1)), self.taps.view(1, 1, -1, 1))

    def forward(self, x: Tensor, found: Reconstruction) -> Tensor:
        # As `channels`, weighed where each map is formed: what is small is brought to size once, as one sum.
        channels = self._maps(x, found)
        means = [torch.stack([part.mean((1, 2, 3)) for part in maps]).sum(0) for maps in channels]
        factors = self.weights / (torch.stack(means, 1) + self.floors).sqrt()  # (B, C)
        sums: dict[int, Tensor] = {}
        for i, maps in enumerate(channels):
            for part in maps:
                weighed = part * factors[:, i].view(-1, 1, 1, 1)
                height = part.shape[2]
                sums[height] = sums[height] + weighed if height in sums else weighed
        return self.smooth(brought_to((x.shape[2] // CELL, x.shape[3] // CELL), list(sums.values())))


def reconstruct(network: nn.Module, x: Tensor, *, places: bool = True) -> Reconstruction:
    """What `network` makes of x (B, 3, H, W), its picture clamped to 0-1; a plain module's output is its picture.

    Without `places`, for textures, there is no coarse picture: what the whole lets expect at a place means nothing.
    """
    whole = places and isinstance(network, Autoencoder)
    found = cast(Autoencoder, network).reconstruct(x) if whole else Reconstruction(network(x))
    return found._replace(expected=found.expected.clamp(0, 1))


class InspectionGraph(nn.Module):
    """The network wrapped into the graph's contract; its parts are shared, not copied. Without `light` pictures are taken as they are.
    `good`: of the error maps, (H / 2, W / 2). `places`: False for textures, whose score is that of the worst tile."""

    mean: Tensor
    inverse_spread: Tensor
    cell: ClassVar[int] = CELL

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
        self._calibrate(good, placement)
        self.top = top_cells(placement, self.cell) if places else tile_top_cells(placement)
        self.places = places

    def _calibrate(self, good: GoodSpread, placement: Placement) -> None:
        x, y, w, h = cells_of(placement.content, self.cell)
        inverse = np.zeros_like(good.spread)
        inverse[y : y + h, x : x + w] = 1 / good.spread[y : y + h, x : x + w]  # a border is no part of the part
        self.register_buffer("mean", torch.from_numpy(good.mean))
        self.register_buffer("inverse_spread", torch.from_numpy(inverse))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = frames.float().permute(0, 3, 1, 2) / 255  # Cast first: TensorRT takes no other operation on uint8
        x, gain = (x, None) if self.light is None else self.light(x)
        found = reconstruct(self.network, x, places=self.places)
        scores, heatmaps = self._judged(self.error_map(x, found))
        shown = found.expected if gain is None else (found.expected * gain).clamp(max=1)
        expected = (shown * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
        return scores, heatmaps, expected

    def _judged(self, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Error maps (N, 1, h, w) → scores (N,) and heatmaps (N, H, W)."""
        standardised = (errors - self.mean) * self.inverse_spread
        scores = torch.topk(standardised.flatten(1), self.top, dim=1).values.mean(1)
        if self.cell > 1:
            standardised = doubled(standardised)
        return scores, standardised[:, 0]

    @property
    def frame_hw(self) -> tuple[int, int]:
        height, width = self.mean.shape
        return height * self.cell, width * self.cell


def onnx_from_graph(graph: InspectionGraph) -> bytes:
    """Export for a dynamic batch of 1 to 64, in float32, as one self-contained file."""
    graph = graph.cpu().eval()
    height, width = graph.frame_hw
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
