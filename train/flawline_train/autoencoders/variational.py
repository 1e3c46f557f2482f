"""Variational autoencoders: a code that is a distribution, and new good parts drawn from it.

Kingma & Welling 2013 (arXiv 1312.6114); with beta, Higgins et al. 2017. The loss is the negative evidence lower bound of a Gaussian
with standard deviation `PIXEL_SIGMA`, times 2 sigma^2 / pixel values: the mean squared error stays on the scale that other
methods have, and beta = 1 is the bound itself. At inference the code is its mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flawline_train.autoencoders.autoencoder import Batch
from flawline_train.autoencoders.blocks import COLOURS, Decoder, Encoder
from flawline_train.autoencoders.bottlenecks import VectorBottleneck
from flawline_train.autoencoders.composed import GenerativeAutoencoder
from flawline_train.autoencoders.penalties import gaussian_kl

__all__ = ["BetaVariationalAutoencoder", "VariationalAutoencoder"]

PIXEL_SIGMA = 0.1
"""Standard deviation that a pixel is taken to have around its reconstruction, of full scale."""
LOG_VARIANCE_RANGE = (-10.0, 4.0)
"""Beyond it the exponential only makes numbers that overflow bf16 sums."""


class Posterior(NamedTuple):
    """`mean` and `log_variance`, both (B, D) float32."""

    mean: Tensor
    log_variance: Tensor


class GaussianBottleneck(VectorBottleneck):
    """A vector with a mean and a variance; `code` is the mean."""

    def __init__(self, channels: int, grid_hw: tuple[int, int], size: int) -> None:
        super().__init__(channels, grid_hw, size)
        self.to_log_variance = nn.Linear(self.to_code.in_features, size)

    def posterior(self, features: Tensor) -> Posterior:
        flat = self.squeeze(features)
        return Posterior(self.to_code(flat).float(), self.to_log_variance(flat).float().clamp(*LOG_VARIANCE_RANGE))


class VariationalAutoencoder(GenerativeAutoencoder):
    """A code of `latent` numbers, each with its variance; maximises the evidence lower bound."""

    bottleneck: GaussianBottleneck
    beta = 1.0
    warm_up = 0.0
    """Share of the training over which the KL's weight rises from 0."""

    def __init__(self, width: int, frame_hw: tuple[int, int], *, latent: int = 64) -> None:
        encoder = Encoder(width)
        grid_hw = (frame_hw[0] // encoder.stride, frame_hw[1] // encoder.stride)
        super().__init__(encoder, GaussianBottleneck(encoder.channels, grid_hw, latent), Decoder(width), frame_hw)
        self.kl_weight = 2 * PIXEL_SIGMA**2 / (COLOURS * math.prod(frame_hw))

    def objective(self, batch: Batch) -> Tensor:
        mean, log_variance = self.bottleneck.posterior(self.encoder(batch.inputs))
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)  # the reparameterisation trick
        weight = self.beta * (min(1.0, batch.share / self.warm_up) if self.warm_up else 1.0) * self.kl_weight
        kl = gaussian_kl(mean, log_variance).sum()
        return self.reconstruction_loss(self.decode(code), batch.target) + weight * kl

    @torch.no_grad()
    def kl_per_dimension(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (D,) nats. A dimension near 0 says nothing of the picture: its posterior has collapsed."""
        return gaussian_kl(*self.bottleneck.posterior(self.encoder(x)))


class BetaVariationalAutoencoder(VariationalAutoencoder):
    """The KL weighs `beta` times as much: fewer dimensions are used, each for one kind of variation.

    Pulled from the first step, a decoder that has learnt nothing yet would make every code the same and never use it again
    (posterior collapse); the weight therefore rises over the first `warm_up` of the training (Bowman et al. 2016).
    """

    def __init__(
        self, width: int, frame_hw: tuple[int, int], *, latent: int = 64, beta: float = 8.0, warm_up: float = 0.5
    ) -> None:
        super().__init__(width, frame_hw, latent=latent)
        self.beta = beta
        self.warm_up = warm_up
