"""The convolutional autoencoders: one network, and what it is trained for.

`convolutional`: squared error and a bottleneck that is too small for the picture. `ssim`: the same with structural
similarity (Bergmann et al. 2018, arXiv 1807.02011). `denoising`: noise in, the clean picture out (Vincent et al. 2008).
`attention`: every place of the bottleneck sees the whole part.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from flawline_train.autoencoders.autoencoder import Corruption
from flawline_train.autoencoders.blocks import Decoder, Encoder
from flawline_train.autoencoders.bottlenecks import AttentionBottleneck, Bottleneck, GridBottleneck
from flawline_train.autoencoders.composed import ComposedAutoencoder
from flawline_train.autoencoders.penalties import ssim_loss

__all__ = ["AttentionAutoencoder", "ConvolutionalAutoencoder", "DenoisingAutoencoder", "SsimAutoencoder"]

CODE_SHARE = 2
"""A code has the width divided by this many channels at a sixteenth of the resolution: 16 for 768 pixel values at width 32."""


class ConvolutionalAutoencoder(ComposedAutoencoder):
    """A grid code at a sixteenth of the resolution. `code_channels` 0 takes half the width."""

    def __init__(self, width: int, frame_hw: tuple[int, int], *, code_channels: int = 0) -> None:
        encoder = Encoder(width)
        grid_hw = (frame_hw[0] // encoder.stride, frame_hw[1] // encoder.stride)
        bottleneck = self._bottleneck(encoder.channels, code_channels or max(4, width // CODE_SHARE), grid_hw)
        super().__init__(encoder, bottleneck, Decoder(width), frame_hw)

    @staticmethod
    def _bottleneck(channels: int, code_channels: int, grid_hw: tuple[int, int]) -> Bottleneck:
        return GridBottleneck(channels, code_channels, grid_hw)


class SsimAutoencoder(ConvolutionalAutoencoder):
    """Trained and scored by structural similarity: where a pattern changes, not how bright it is."""

    error_channels: ClassVar[tuple[str, ...] | None] = ("ssim",)

    def reconstruction_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return ssim_loss(output, target)


class DenoisingAutoencoder(ConvolutionalAutoencoder):
    """Noise keeps it from copying, not a narrow code: `code_channels` 0 takes four times the width, as the encoder gives."""

    corruption: ClassVar[Corruption] = "noise"

    def __init__(self, width: int, frame_hw: tuple[int, int], *, code_channels: int = 0) -> None:
        super().__init__(width, frame_hw, code_channels=code_channels or 4 * width)


class AttentionAutoencoder(ConvolutionalAutoencoder):
    """Transformer blocks around the code, so that what is seen at one end of a part tells what to expect at the other."""

    @staticmethod
    def _bottleneck(channels: int, code_channels: int, grid_hw: tuple[int, int]) -> Bottleneck:
        return AttentionBottleneck(channels, code_channels, grid_hw)
