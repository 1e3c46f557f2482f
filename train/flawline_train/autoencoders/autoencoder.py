"""What every autoencoder of the family is: a network that rebuilds pictures, and the loss that it is trained with.

A method is one composition of encoder and decoder, bottleneck, corruption and penalty. The first two are the module, the
corruption is what `flawline_train.fit` does to its pictures, and the penalty is part of `loss`. Fitting, export, calibration
and scoring know nothing else of a method, so that all of them are compared on the same ground.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Autoencoder", "Batch", "Corruption", "Reconstruction", "repair_loss"]

INSIDE_WEIGHT = 0.5

Corruption = Literal["none", "noise", "structured"]
"""Done to the input only: nothing; independent Gaussian noise to be removed; structured damage plus noise to be kept."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's pictures, float32 on the training device, about 0-1, channels last in memory.

    `inputs` (B, 3, H, W) are what the network sees, `target` (B, 3, H, W) what it shall put out, `mask` (B, 1, H, W) is 1
    where the input was damaged. `share`: 0-1 of the training that is done, for warm-ups.
    """

    inputs: Tensor
    target: Tensor
    mask: Tensor
    share: float


class Reconstruction(NamedTuple):
    """`expected` (B, 3, H, W), not clamped; `coarse` (B, 3, h, w): what the whole picture lets expect at a fraction of the
    size, H / h = W / w, from networks that know it, else None."""

    expected: Tensor
    coarse: Tensor | None = None


class Autoencoder(nn.Module, ABC):
    """(B, 3, H, W) in 0-1 -> reconstruction of the same shape. H and W are multiples of 16.

    `forward` is what is exported: deterministic, without Python branches on data.
    """

    corruption: ClassVar[Corruption] = "none"
    error_channels: ClassVar[tuple[str, ...] | None] = None
    """Of the graph's `ERROR_CHANNELS`, those that the method is scored by; None leaves it to calibration."""
    any_size: ClassVar[bool] = False
    """Whether `loss` and `forward` take pictures of any multiple of 16 whatever the frame, as what is trained on crops has to;
    what knows whole frames beside that is fitted in `finish`."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction, (B, 3, H, W), about 0-1 and not clamped."""

    def reconstruct(self, x: Tensor) -> Reconstruction:
        """What the graph needs: the reconstruction, and a coarse one where the network has it."""
        return Reconstruction(self(x))

    def loss(self, batch: Batch) -> Tensor:
        """The scalar to be minimised; float32 even under autocast. Default: mean squared error."""
        return (self(batch.inputs).float() - batch.target).square().mean()

    def finish(self, pictures: Iterable[Tensor]) -> None:
        """After the last step, once, in evaluation mode: fit what needs the trained network, such as a prior.

        `pictures`: the training pictures without damage, (B, 3, H, W) in 0-1, batch by batch. Default: nothing.
        """

    def embed(self, x: Tensor) -> Tensor:
        """The bottleneck as one vector a picture, (B, D), for maps of the latent space."""
        raise NotImplementedError(f"{type(self).__name__} has no bottleneck to look at")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n new good parts, (n, 3, H, W) in 0-1. Only generative methods can."""
        raise NotImplementedError(f"{type(self).__name__} is no generative model")


def repair_loss(output: Tensor, batch: Batch) -> Tensor:
    """Squared error averaged separately inside and outside the damage, half and half.

    A scratch of twenty pixels then weighs as much as the rest of the part.
    """
    error = (output.float() - batch.target).square().mean(1, keepdim=True)  # (B, 1, H, W)
    inside = (error * batch.mask).sum() / (batch.mask.sum() + 1)
    outside = (error * (1 - batch.mask)).sum() / ((1 - batch.mask).sum() + 1)
    return INSIDE_WEIGHT * inside + (1 - INSIDE_WEIGHT) * outside
