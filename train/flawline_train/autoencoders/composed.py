"""Encoder, bottleneck and decoder put together; what the methods of the family have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flawline_train.autoencoders.autoencoder import Autoencoder, Batch
from flawline_train.autoencoders.blocks import COLOURS
from flawline_train.autoencoders.bottlenecks import Bottleneck
from flawline_train.autoencoders.latent_prior import LatentPrior

__all__ = ["ComposedAutoencoder", "GenerativeAutoencoder"]

SLOWEST_FOLLOWING = 0.01
"""A plain mean over the first hundred batches, a moving one over about a hundred afterwards."""
SAMPLES_AT_ONCE = 8
"""More large pictures would not fit into a small machine's memory."""


class ComposedAutoencoder(Autoencoder):
    """usual + decoder(bottleneck(encoder(x))), trained with `reconstruction_loss` + `penalty`: each may be a method's own.

    `usual` is the mean of the training pictures, followed like a batch normalisation's statistics: the network has to learn
    only in what a part differs from it. A code that says nothing gives back the usual picture.
    """

    usual: Tensor
    steps: Tensor

    def __init__(
        self, encoder: nn.Module, bottleneck: Bottleneck, decoder: nn.Module, frame_hw: tuple[int, int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.register_buffer("usual", torch.zeros(COLOURS, *frame_hw))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → the code, (B, *bottleneck.code_shape)."""
        return self.bottleneck.code(self.encoder(x))

    def decode(self, code: Tensor) -> Tensor:
        """The code, (B, *bottleneck.code_shape) → (B, 3, H, W), not clamped."""
        return self.complete(self.bottleneck.expand(code))

    def complete(self, features: Tensor) -> Tensor:
        """What the bottleneck let through → (B, 3, H, W) float32, not clamped."""
        return self.usual + self.decoder(features)

    def loss(self, batch: Batch) -> Tensor:
        if self.training:
            self._follow(batch.target)
        return self.objective(batch)

    def objective(self, batch: Batch) -> Tensor:
        """`loss` without its bookkeeping, float32."""
        code = self.encode(batch.inputs)
        penalty = self.penalty(batch, code) * self.variation(batch.target)
        return self.reconstruction_loss(self.decode(code), batch.target) + penalty

    @torch.no_grad()
    def variation(self, target: Tensor) -> Tensor:
        """Squared error of the usual picture: what there is to be gained. Penalties are in this unit, so that one weight suits
        parts that differ much and parts that hardly do."""
        return (target - self.usual).square().mean()

    @torch.no_grad()
    def _follow(self, target: Tensor) -> None:
        self.steps += 1
        self.usual.lerp_(target.mean(0), max(SLOWEST_FOLLOWING, 1 / int(self.steps)))

    def reconstruction_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Both (B, 3, H, W) float32 → a scalar. Default: mean squared error."""
        return (output - target).square().mean()

    def penalty(self, batch: Batch, code: Tensor) -> Tensor:
        """On the code of `batch.inputs`, in units of the `variation`; a float32 scalar. Default: none."""
        return torch.zeros((), device=code.device)

    def embed(self, x: Tensor) -> Tensor:
        return self.encode(x).flatten(1)


class GenerativeAutoencoder(ComposedAutoencoder):
    """Draws new good parts: codes from a prior that is fitted to the training pictures' codes at the end of training."""

    def __init__(
        self, encoder: nn.Module, bottleneck: Bottleneck, decoder: nn.Module, frame_hw: tuple[int, int]
    ) -> None:
        super().__init__(encoder, bottleneck, decoder, frame_hw)
        self.prior = LatentPrior(math.prod(bottleneck.code_shape))

    @torch.no_grad()
    def finish(self, pictures: Iterable[Tensor]) -> None:
        self.prior.fit(torch.cat([self.embed(batch).float() for batch in pictures]))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        codes = self.prior.sample(n, generator)
        parts = torch.split(codes.reshape(n, *self.bottleneck.code_shape), SAMPLES_AT_ONCE)
        return torch.cat([self.decode(part).clamp(0, 1) for part in parts])
