"""Autoencoders whose code is kept from copying by a penalty on it: `sparse` and `contractive`."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flawline_train.autoencoders.autoencoder import Batch
from flawline_train.autoencoders.blocks import Decoder, Encoder
from flawline_train.autoencoders.bottlenecks import Bottleneck, SparseBottleneck, VectorBottleneck
from flawline_train.autoencoders.composed import ComposedAutoencoder
from flawline_train.autoencoders.convolutional import ConvolutionalAutoencoder
from flawline_train.autoencoders.penalties import jacobian_norm

__all__ = ["ContractiveAutoencoder", "SparseAutoencoder"]

VARIANCE_FLOOR = 1e-6
"""Of the code, summed over its dimensions: pictures that are all the same divide by this."""


class SparseAutoencoder(ConvolutionalAutoencoder):
    """Many units, few of them active: L1 on the activations (Olshausen & Field 1996; Ng 2011).

    `sparsity` weighs the mean activation, where 1 stands for as much as there is to be gained from a code; 0 leaves about
    half of the units active.
    """

    def __init__(self, width: int, frame_hw: tuple[int, int], *, code_channels: int = 0, sparsity: float = 1.0) -> None:
        super().__init__(width, frame_hw, code_channels=code_channels or 4 * width)
        self.sparsity = sparsity

    @staticmethod
    def _bottleneck(channels: int, code_channels: int, grid_hw: tuple[int, int]) -> Bottleneck:
        return SparseBottleneck(channels, code_channels, grid_hw)

    def penalty(self, batch: Batch, code: Tensor) -> Tensor:
        return self.sparsity * code.float().abs().mean()


class ContractiveAutoencoder(ComposedAutoencoder):
    """The code may not follow small changes of the picture: a penalty on the encoder's Jacobian (Rifai et al. 2011).

    The paper ties the decoder's weights to the encoder's, so that the code cannot simply be made small. Here the norm is
    divided by the code's variance over the batch instead: what counts is how far a changed pixel moves the code, measured
    in the distances between good parts. `contraction` is its weight.
    """

    def __init__(self, width: int, frame_hw: tuple[int, int], *, latent: int = 64, contraction: float = 0.04) -> None:
        encoder = Encoder(width)
        grid_hw = (frame_hw[0] // encoder.stride, frame_hw[1] // encoder.stride)
        super().__init__(encoder, VectorBottleneck(encoder.channels, grid_hw, latent), Decoder(width), frame_hw)
        self.contraction = contraction

    def objective(self, batch: Batch) -> Tensor:
        return super().objective(replace(batch, inputs=batch.inputs.detach().requires_grad_()))

    def penalty(self, batch: Batch, code: Tensor) -> Tensor:
        variance = code.float().var(0).sum()
        return self.contraction * jacobian_norm(code, batch.inputs, create_graph=True) / (variance + VARIANCE_FLOOR)
