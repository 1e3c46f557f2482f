"""What the family's networks are built from: convolutions, and an encoder and a decoder that mirror each other."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder", "Encoder", "Residual", "convolution", "start_at_zero"]

COLOURS = 3
BLOCK = 2  # side of the space-to-depth block at the entrance: half resolution without losing a pixel


def convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """3 x 3, batch normalisation, SiLU; (B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


def start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """A last layer that says nothing yet: what it corrects is what training departs from."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """Two convolutions and a way past them; shape kept."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = convolution(channels, channels, dilation=dilation)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(self.first(x)))


def _widths(width: int, depth: int) -> list[int]:
    return [width, 2 * width, 4 * width, 4 * width][: depth + 1]


class Encoder(nn.Module):
    """(B, inputs, H, W) → (B, `channels`, H / 2^(depth + 1), W / 2^(depth + 1)); `depth` is 2 or 3."""

    def __init__(self, width: int, depth: int = 3, inputs: int = COLOURS) -> None:
        super().__init__()
        widths = _widths(width, depth)
        layers: list[nn.Module] = [nn.PixelUnshuffle(BLOCK), convolution(inputs * BLOCK**2, width)]
        for before, after in pairwise(widths):
            layers += [convolution(before, after, stride=2), Residual(after)]
        self.layers = nn.Sequential(*layers)
        self.channels = widths[-1]
        self.stride = BLOCK * 2**depth

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Decoder(nn.Module):
    """The encoder backwards, without skips: (B, channels, h, w) → (B, 3, H, W); 0 before training."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        widths = _widths(width, depth)[::-1]
        layers: list[nn.Module] = [Residual(widths[0])]
        for before, after in pairwise(widths):
            layers += [nn.Upsample(scale_factor=2.0, mode="nearest"), convolution(before, after)]
            layers.append(Residual(after) if after > width else convolution(after, after))
        last = nn.Conv2d(width, COLOURS * BLOCK**2, 3, padding=1)
        start_at_zero(last)
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(BLOCK))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out
