"""The light that a picture was taken in, against the usual one: its gain and slope, estimated and taken out.

A lamp that ages, a window behind the station, an exposure that drifts: none of them is a defect, and all of them change every
pixel. The logarithm of a picture, at a fraction of its size, against that of the usual picture is a plane where only the light
differs; the plane is fitted robustly (Huber 1964, by repeated least squares with clipped residuals), so that a defect, which is
small or strong, hardly moves it. Everything after it then sees the part in the usual light.

What light cannot explain stays: a part that is darker than any good one by more than `MARGIN` is not made bright again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_train.autoencoders.linear import reduction

__all__ = ["Light"]

MARGIN = math.log(1.2)
"""How far beyond the good pictures' own light a picture is followed, in the logarithm of the gain at the middle and at an edge."""
OFFSET = 0.02
"""Added before the logarithm: in the dark, ratios say nothing."""
CLIPS = (1.0, 0.2, 0.1, 0.1)
"""Of the residuals' logarithm in each of the fits. The first takes the light, the others let go of what is no light."""
WHITE = (0.96, 0.99)
"""A value between these is more and more taken for saturated: it tells only that the picture is at least so bright."""
_TAILS = 0.01
_BATCH = 16
_BATCH_PIXELS = _BATCH * 256 * 256
"""Fewer of larger frames at once, or they fill the memory."""


class Light(nn.Module):
    """(B, 3, H, W) in 0-1 -> the picture in the usual light, (B, 3, H, W) in 0-1, and the gain (B, 1, H, W) that was taken out.

    Until `fit` the gain is 1. `frame_hw`: (H, W). Exports to plain elementwise operations and sums: no matrix product, which
    an engine might compute in less than float32.
    """

    log_usual: Tensor
    usually_white: Tensor
    white_cells: Tensor
    plane: Tensor
    solve: Tensor
    lowest: Tensor
    highest: Tensor
    down: Tensor
    across: Tensor

    def __init__(self, frame_hw: tuple[int, int]) -> None:
        super().__init__()
        self.factor = reduction(frame_hw)
        h, w = frame_hw[0] // self.factor, frame_hw[1] // self.factor
        ones = torch.ones(h, w)
        plane = torch.stack([ones, _slope(h)[:, None] * ones, _slope(w) * ones]).flatten(1)  # (3, hw)
        self.register_buffer("plane", plane)
        self.register_buffer("log_usual", torch.zeros(h * w))
        self.register_buffer("usually_white", torch.zeros(1, 1, *frame_hw))
        self.register_buffer("white_cells", torch.zeros(h * w))
        self.register_buffer("solve", torch.zeros_like(plane))
        self.register_buffer("lowest", torch.zeros(3))
        self.register_buffer("highest", torch.zeros(3))
        self.register_buffer("down", _slope(frame_hw[0])[:, None])
        self.register_buffer("across", _slope(frame_hw[1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.coefficients(x).view(-1, 3, 1, 1)
        # The plane's exponential is a product of one of the rows and one of the columns, which are few.
        rows, columns = found[:, :1] + found[:, 1:2] * self.down, found[:, 2:] * self.across
        inverse = (-rows).exp() * (-columns).exp()
        # What is usually white and is white stays white: how much brighter it would have been nobody knows.
        white = _whiteness(x) * self.usually_white
        return (x * (inverse + white * (1 - inverse))).clamp(0, 1), rows.exp() * columns.exp()

    def coefficients(self, x: Tensor) -> Tensor:
        """(B, 3): the logarithm of the gain in the middle, what it gains from there to the bottom, and to the right."""
        found = self._fitted(x)
        return torch.minimum(torch.maximum(found, self.lowest), self.highest)

    def _fitted(self, x: Tensor) -> Tensor:
        seen = (self._small(x.mean(1, keepdim=True)) + OFFSET).log() - self.log_usual  # (B, hw)
        white = self._small(_whiteness(x)) * self.white_cells
        found = torch.zeros_like(seen[:, :3])
        for clip in CLIPS:
            rest = seen - (found[:, :, None] * self.plane).sum(1)
            rest = rest + white * F.relu(-rest)  # a saturated cell may be any amount brighter than it looks
            found = found + (rest.clamp(-clip, clip)[:, None] * self.solve).sum(2)
        return found

    def _small(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, hw)."""
        return (F.avg_pool2d(x, self.factor) if self.factor > 1 else x).flatten(1)

    @torch.no_grad()
    def fit(self, frames: NDArray[np.uint8]) -> None:
        """Learn the usual light from good `frames` (n, H, W, 3). Where all of them are white or black there is none to learn."""
        usual = torch.cat([self._small(x.mean(1, keepdim=True)) for x in self._batches(frames)]).mean(0)
        # Residuals are small against the grey values and not against their logarithms; what is saturated knows nothing.
        weights = usual.square() * ((WHITE[1] - usual) / (WHITE[1] - WHITE[0])).clamp(0, 1)
        normal = (self.plane * weights) @ self.plane.T
        if not float(torch.linalg.cond(normal.double())) < 1e6:  # neither for what is no number
            return
        self.log_usual.copy_((usual + OFFSET).log())
        white = torch.cat([self._small(_whiteness(x)) for x in self._batches(frames)]).mean(0)
        self.white_cells.copy_(white)
        cells = white.view(1, 1, *(side // self.factor for side in self.usually_white.shape[2:]))
        self.usually_white.copy_(
            F.interpolate(cells, size=self.usually_white.shape[2:], mode="bilinear", align_corners=False)
        )
        self.solve.copy_(torch.linalg.solve(normal, self.plane * weights))
        found = torch.cat([self._fitted(x) for x in self._batches(frames)])
        self.lowest.copy_(found.quantile(_TAILS, dim=0) - MARGIN)
        self.highest.copy_(found.quantile(1 - _TAILS, dim=0) + MARGIN)

    @torch.no_grad()
    def usual(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`frames` (n, H, W, 3) in the usual light, rounded: what a network is trained on."""
        seen = [self(x)[0].mul(255).round().to(torch.uint8) for x in self._batches(frames)]
        return torch.cat(seen).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _batches(self, frames: NDArray[np.uint8]) -> Iterator[Tensor]:
        height, width = frames.shape[1:3]
        batch = min(_BATCH, max(1, _BATCH_PIXELS // (height * width)))
        for i in range(0, len(frames), batch):
            yield torch.from_numpy(frames[i : i + batch]).to(self.plane.device).float().permute(0, 3, 1, 2) / 255


def _slope(n: int) -> Tensor:
    return torch.linspace(-1, 1, n)


def _whiteness(x: Tensor) -> Tensor:
    """How far the brightest colour (B, 1, H, W) is saturated, 0-1."""
    return ((x.amax(1, keepdim=True) - WHITE[0]) / (WHITE[1] - WHITE[0])).clamp(0, 1)
