"""Autoencoders with a discrete code: `vector-quantized` (VQ-VAE) and `hierarchical` (VQ-VAE-2).

van den Oord et al. 2017 (arXiv 1711.00937) and Razavi et al. 2019 (arXiv 1906.00446). What cannot be said in the codebook's words
does not come through. Theirs draw new pictures by a large autoregressive model over the codes, which a few dozen parts
cannot train; here vectors are drawn from a density over the encoder's outputs and replaced by their nearest codes, so that
a sample is made of the same words as every reconstruction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flawline_train.autoencoders.autoencoder import Batch
from flawline_train.autoencoders.blocks import Decoder, Encoder, Residual, convolution
from flawline_train.autoencoders.bottlenecks import Bottleneck
from flawline_train.autoencoders.codebook import Codebook
from flawline_train.autoencoders.composed import GenerativeAutoencoder

__all__ = ["HierarchicalAutoencoder", "VectorQuantizedAutoencoder"]

COMMITMENT = 0.25
"""Weight of the pull of the encoder towards the codes, in units of the pictures' variation, as in the paper."""
CONTINUOUS_SHARE = 0.2
"""Of the training, before vectors are replaced by codes."""
DEPTH = 2
"""Halvings after the entrance: the (lower) grid of codes has an eighth of the resolution."""
TOP_ALONE = 0.125
"""Share of the training pictures that the hierarchical decoder sees without the lower codes."""


def _grid_hw(frame_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    return frame_hw[0] // stride, frame_hw[1] // stride


class QuantizedBottleneck(Bottleneck):
    """(B, C, h, w) → vectors (B, D, h, w) → their nearest codes, widened to (B, C, h, w)."""

    def __init__(self, channels: int, grid_hw: tuple[int, int], codes: int, dimension: int) -> None:
        super().__init__()
        self.code_shape = (dimension, *grid_hw)
        # Normalised, so that the encoder cannot run away from the codes (Lancucki et al. 2020, arXiv 2005.08520).
        self.squeeze = nn.Sequential(nn.Conv2d(channels, dimension, 1), nn.BatchNorm2d(dimension, affine=False))
        self.codebook = Codebook(codes, dimension)
        self.widen = nn.Conv2d(dimension, channels, 1)

    def code(self, features: Tensor) -> Tensor:
        """The vectors before they are replaced."""
        out: Tensor = self.squeeze(features)
        return out

    def expand(self, code: Tensor) -> Tensor:
        out: Tensor = self.widen(self.codebook(code))
        return out

    def learn(self, features: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """One training step at `share` of it: the widened codes with the gradient passed straight through, and the commitment.

        At first the vectors pass as they are while the codebook already follows them: an encoder that has learnt nothing
        has few different things to say, and would go on with those.
        """
        vectors = self.code(features).float()
        if self.training:
            self.codebook.learn(vectors.detach())
        if share < CONTINUOUS_SHARE:
            return self.widen(vectors), vectors.new_zeros(())
        nearest = self.codebook(vectors)
        straight = vectors + (nearest - vectors).detach()
        return self.widen(straight), COMMITMENT * (vectors - nearest.detach()).square().mean()


class VectorQuantizedAutoencoder(GenerativeAutoencoder):
    """One grid of codes at an eighth of the resolution, each one of `codes`."""

    bottleneck: QuantizedBottleneck

    def __init__(self, width: int, frame_hw: tuple[int, int], *, codes: int = 128, dimension: int = 16) -> None:
        encoder = Encoder(width, DEPTH)
        bottleneck = QuantizedBottleneck(encoder.channels, _grid_hw(frame_hw, encoder.stride), codes, dimension)
        super().__init__(encoder, bottleneck, Decoder(width, DEPTH), frame_hw)

    def objective(self, batch: Batch) -> Tensor:
        features, commitment = self.bottleneck.learn(self.encoder(batch.inputs), batch.share)
        return self.reconstruction_loss(self.complete(features), batch.target) + commitment * self.variation(
            batch.target
        )

    def indices(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → the codes' numbers, (B, H / 8, W / 8) int64."""
        return self.bottleneck.codebook.indices(self.encode(x))


class TwoLevelBottleneck(Bottleneck):
    """(B, C, h, w) → codes at (h / 2, w / 2) for what is coarse, and at (h, w) for what these leave open.

    The code is both levels' vectors, flattened and joined, top first. Other than in the paper the lower level does not see the
    upper one's codes: what the two have to share they learn through the decoder, which gets the sum, and few parts suffice.
    """

    def __init__(self, channels: int, grid_hw: tuple[int, int], codes: int, dimension: int) -> None:
        super().__init__()
        top_hw = _grid_hw(grid_hw, 2)
        self.rise = nn.Sequential(convolution(channels, channels, stride=2), Residual(channels))
        self.top = QuantizedBottleneck(channels, top_hw, codes, dimension)
        self.sink = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), convolution(channels, channels))
        self.bottom = QuantizedBottleneck(channels, grid_hw, codes, dimension)
        self.top_numbers = math.prod(self.top.code_shape)
        self.code_shape = (self.top_numbers + math.prod(self.bottom.code_shape),)

    def code(self, features: Tensor) -> Tensor:
        top, bottom = self.top.code(self.rise(features)), self.bottom.code(features)
        return torch.cat([top.flatten(1), bottom.flatten(1)], 1)

    def expand(self, code: Tensor) -> Tensor:
        top, bottom = self.split(code)
        out: Tensor = self.sink(self.top.expand(top)) + self.bottom.expand(bottom)
        return out

    def split(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """The two levels' vectors, (B, D, h / 2, w / 2) and (B, D, h, w)."""
        return (
            code[:, : self.top_numbers].reshape(-1, *self.top.code_shape),
            code[:, self.top_numbers :].reshape(-1, *self.bottom.code_shape),
        )

    def learn(self, features: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """As `QuantizedBottleneck.learn`; some pictures go without the lower codes, or the top would be left unused."""
        top, top_commitment = self.top.learn(self.rise(features), share)
        bottom, bottom_commitment = self.bottom.learn(features, share)
        kept = torch.rand((len(features), 1, 1, 1), device=features.device) >= TOP_ALONE
        return self.sink(top) + bottom * kept, top_commitment + bottom_commitment


class HierarchicalAutoencoder(GenerativeAutoencoder):
    """Two grids of codes, at a sixteenth and an eighth of the resolution, each with a codebook of `codes`."""

    bottleneck: TwoLevelBottleneck

    def __init__(self, width: int, frame_hw: tuple[int, int], *, codes: int = 64, dimension: int = 16) -> None:
        encoder = Encoder(width, DEPTH)
        bottleneck = TwoLevelBottleneck(encoder.channels, _grid_hw(frame_hw, encoder.stride), codes, dimension)
        super().__init__(encoder, bottleneck, Decoder(width, DEPTH), frame_hw)

    def objective(self, batch: Batch) -> Tensor:
        features, commitment = self.bottleneck.learn(self.encoder(batch.inputs), batch.share)
        return self.reconstruction_loss(self.complete(features), batch.target) + commitment * self.variation(
            batch.target
        )

    def decode_top(self, x: Tensor) -> Tensor:
        """What the upper level alone says of a picture, (B, 3, H, W) → the same shape, not clamped."""
        bottleneck = self.bottleneck
        top, _ = bottleneck.split(self.encode(x))
        return self.complete(bottleneck.sink(bottleneck.top.expand(top)))

    def indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → the codes' numbers, (B, H / 16, W / 16) and (B, H / 8, W / 8) int64."""
        top, bottom = self.bottleneck.split(self.encode(x))
        return self.bottleneck.top.codebook.indices(top), self.bottleneck.bottom.codebook.indices(bottom)
