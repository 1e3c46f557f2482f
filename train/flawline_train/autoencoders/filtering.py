"""The filtering autoencoder: what is not part of a good part does not come through.

A U-shaped convolutional autoencoder without a vector bottleneck. Space-to-depth at the entrance works at half resolution
without losing a pixel; three downsamplings and dilated residual blocks see the whole part; skip connections keep fine
detail, which is safe only because it is trained to repair (see `flawline_train.fit`): a plain autoencoder with skips would
learn the identity and let every defect through.

The network puts out the correction, starting from none: the kept noise makes the identity the best answer on good pixels,
and what need not be learnt leaves its minutes of training to the repair (half the steps to the same AUROC, benchmarks/LOG.md).

Beside it a linear autoencoder of the whole picture at low resolution watches for what is too large and faint to look
like damage; see `flawline_train.autoencoders.linear`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_train.autoencoders.autoencoder import Autoencoder, Batch, Corruption, Reconstruction, repair_loss
from flawline_train.autoencoders.blocks import Residual, convolution, start_at_zero
from flawline_train.autoencoders.linear import LinearAutoencoder

__all__ = ["FilteringAutoencoder"]

_CHANNELS = 3
_BLOCK = 2  # side of the space-to-depth block


class FilteringAutoencoder(Autoencoder):
    """(B, 3, H, W) in 0-1 → reconstruction of the same shape, about 0-1 (not clamped). H and W are multiples of 16.

    `width` is the number of channels at half resolution; cost and parameters grow with its square
    (32: 2.3 M parameters, 12: 0.33 M). `frame_hw`: (H, W) of the frames.
    """

    corruption: ClassVar[Corruption] = "structured"
    any_size: ClassVar[bool] = True

    def __init__(self, width: int = 32, frame_hw: tuple[int, int] = (128, 128)) -> None:
        super().__init__()
        c = width
        self.width = width
        self.entrance = nn.Sequential(nn.PixelUnshuffle(_BLOCK), convolution(_CHANNELS * _BLOCK**2, c))
        self.down1 = nn.Sequential(convolution(c, 2 * c, stride=2), Residual(2 * c))
        self.down2 = nn.Sequential(convolution(2 * c, 4 * c, stride=2), Residual(4 * c))
        self.bottom = nn.Sequential(
            convolution(4 * c, 4 * c, stride=2), Residual(4 * c, 1), Residual(4 * c, 2), Residual(4 * c, 4)
        )
        self.up3 = nn.Sequential(convolution(8 * c, 4 * c), Residual(4 * c, 2))
        self.up2 = nn.Sequential(convolution(6 * c, 2 * c), Residual(2 * c))
        self.up1 = nn.Sequential(convolution(3 * c, c), convolution(c, c))
        last = nn.Conv2d(c, _CHANNELS * _BLOCK**2, 3, padding=1)
        start_at_zero(last)
        self.exit = nn.Sequential(last, nn.PixelShuffle(_BLOCK))
        self.whole = LinearAutoencoder(frame_hw)

    def forward(self, x: Tensor) -> Tensor:
        h0, h1, h2 = self._encode(x)
        y = self.bottom(h2)  # (B, 4c, H/16, W/16)
        y = self.up3(torch.cat([_double(y), h2], 1))
        y = self.up2(torch.cat([_double(y), h1], 1))
        y = self.up1(torch.cat([_double(y), h0], 1))
        correction: Tensor = self.exit(y)
        return x + correction

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h0 = self.entrance(x)  # (B, c, H/2, W/2)
        h1 = self.down1(h0)  # (B, 2c, H/4, W/4)
        return h0, h1, self.down2(h1)  # (B, 4c, H/8, W/8)

    def loss(self, batch: Batch) -> Tensor:
        return repair_loss(self(batch.inputs), batch)

    def reconstruct(self, x: Tensor) -> Reconstruction:
        return Reconstruction(self(x), self.whole(x))

    def finish(self, pictures: Iterable[Tensor]) -> None:
        self.whole.fit(pictures)

    def embed(self, x: Tensor) -> Tensor:
        return self.bottom(self._encode(x)[2]).mean((2, 3))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
