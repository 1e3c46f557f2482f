"""`vanilla`: the autoencoder of the textbooks, fully connected (Rumelhart, Hinton & Williams 1986)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from flawline_train.autoencoders.blocks import COLOURS, start_at_zero
from flawline_train.autoencoders.bottlenecks import Bottleneck
from flawline_train.autoencoders.composed import ComposedAutoencoder

__all__ = ["VanillaAutoencoder"]

LONG_SIDE = 32
"""Of the picture inside, in cells: dense layers on every pixel would have millions of weights."""
HIDDEN_PER_WIDTH = 12


class VanillaAutoencoder(ComposedAutoencoder):
    """Dense layers on a reduced picture of at most 32 cells a side, and a code of `latent` numbers.

    What is smaller than a cell (4 pixels at 128) is averaged away before it is seen: a defect of that size is only noticed by
    the error that it leaves. At most 2 x 3072 x 12 width weights, whatever the frame.
    """

    def __init__(self, width: int, frame_hw: tuple[int, int], *, latent: int = 32) -> None:
        cell = max(1, math.ceil(max(frame_hw) / LONG_SIDE))
        hidden = HIDDEN_PER_WIDTH * width
        reduce = _Reduce(frame_hw, cell)
        numbers = COLOURS * math.prod(reduce.cells_hw)
        encoder = nn.Sequential(reduce, nn.Flatten(), nn.Linear(numbers, hidden), nn.BatchNorm1d(hidden), nn.SiLU())
        last = nn.Linear(hidden, numbers)
        start_at_zero(last)
        decoder = nn.Sequential(last, nn.Unflatten(1, (COLOURS, *reduce.cells_hw)), _Enlarge(frame_hw, cell))
        super().__init__(encoder, _DenseBottleneck(hidden, latent), decoder, frame_hw)


class _Reduce(nn.Module):
    """(B, 3, H, W) → the mean of each cell, (B, 3, h, w); the border is replicated up to whole cells."""

    def __init__(self, frame_hw: tuple[int, int], cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.cells_hw = (math.ceil(frame_hw[0] / cell), math.ceil(frame_hw[1] / cell))
        self.padding = (0, self.cells_hw[1] * cell - frame_hw[1], 0, self.cells_hw[0] * cell - frame_hw[0])

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, self.padding, mode="replicate")
        return F.avg_pool2d(x, self.cell)


class _Enlarge(nn.Module):
    """(B, 3, h, w) → (B, 3, H, W), linear between the cells' centres."""

    def __init__(self, frame_hw: tuple[int, int], cell: int) -> None:
        super().__init__()
        self.frame_hw = frame_hw
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, scale_factor=float(self.cell), mode="bilinear", align_corners=False)
        return large[:, :, : self.frame_hw[0], : self.frame_hw[1]]


class _DenseBottleneck(Bottleneck):
    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.code_shape = (size,)
        self.to_code = nn.Linear(features, size)
        self.from_code = nn.Sequential(nn.Linear(size, features), nn.BatchNorm1d(features), nn.SiLU())

    def code(self, features: Tensor) -> Tensor:
        out: Tensor = self.to_code(features)
        return out

    def expand(self, code: Tensor) -> Tensor:
        out: Tensor = self.from_code(code)
        return out
