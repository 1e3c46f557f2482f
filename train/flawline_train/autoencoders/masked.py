"""`masked`: what is hidden is told from what is seen (He et al. 2022, arXiv 2111.06377; for inspection RIAD, Zavrtanik et al. 2021).

In training random patches are hidden, and only they are counted. At inference two complementary chessboards of patches are hidden
in two copies of each picture, and the answer is put together from what was hidden in each: no pixel of it was seen by the network
when that pixel was predicted, so that a defect inside a patch cannot be copied.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from flawline_train.autoencoders.autoencoder import Batch
from flawline_train.autoencoders.blocks import COLOURS, Decoder, Encoder
from flawline_train.autoencoders.bottlenecks import AttentionBottleneck
from flawline_train.autoencoders.composed import ComposedAutoencoder

__all__ = ["MaskedAutoencoder"]

PATCHES_A_SIDE = 8
COPIES = 2
WIDTH_SHARE = 0.7
"""Two copies go through the network: at 0.7 of the width they cost what one does in other methods."""


class MaskedAutoencoder(ComposedAutoencoder):
    """Hides patches of an eighth of the long side; `hidden` is the share of them that is hidden in training."""

    masks: Tensor

    def __init__(self, width: int, frame_hw: tuple[int, int], *, hidden: float = 0.5) -> None:
        width = max(4, round(WIDTH_SHARE * width))
        encoder = Encoder(width, inputs=COLOURS + 1)
        grid_hw = (frame_hw[0] // encoder.stride, frame_hw[1] // encoder.stride)
        # No squeeze: nothing has to be kept from passing that was not seen.
        bottleneck = AttentionBottleneck(encoder.channels, encoder.channels, grid_hw)
        super().__init__(encoder, bottleneck, Decoder(width), frame_hw)
        self.hidden = hidden
        self.patch = max(frame_hw) // PATCHES_A_SIDE
        self.patches_hw = (math.ceil(frame_hw[0] / self.patch), math.ceil(frame_hw[1] / self.patch))
        self.frame_hw = frame_hw
        rows, columns = torch.arange(self.patches_hw[0]), torch.arange(self.patches_hw[1])
        board = ((rows[:, None] + columns) % 2).float()[None, None]
        # 1 where hidden; each copy is followed by its complement.
        self.register_buffer("masks", self._to_pixels(torch.cat([board, 1 - board])))  # (2, 1, H, W)

    def _to_pixels(self, patches: Tensor) -> Tensor:
        """(B, 1, rows, columns) → (B, 1, H, W)."""
        large = patches.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        return large[:, :, : self.frame_hw[0], : self.frame_hw[1]]

    def forward(self, x: Tensor) -> Tensor:
        masks = self.masks[:, None]  # (2, 1, 1, H, W)
        answers = self.fill(*self._copies(x)).reshape(COPIES, -1, *x.shape[1:])  # (2, B, 3, H, W)
        return (answers * masks).sum(0)

    def fill(self, x: Tensor, mask: Tensor) -> Tensor:
        """Predict where `mask` (B, 1, H, W) is 1, from where it is 0; elsewhere the answer means nothing."""
        return self.decode(self.encode(_hide(x, mask)))

    def _copies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each picture twice, and what is hidden in it: (2 B, 3, H, W), (2 B, 1, H, W)."""
        pictures = torch.cat([x] * COPIES)
        ones = torch.ones_like(x[:, :1])
        return pictures, torch.cat([ones * self.masks[i] for i in range(COPIES)])

    def objective(self, batch: Batch) -> Tensor:
        shape = (len(batch.inputs), 1, *self.patches_hw)
        mask = self._to_pixels((torch.rand(shape, device=batch.inputs.device) < self.hidden).float())
        error = (self.fill(batch.inputs, mask) - batch.target).square().mean(1, keepdim=True)
        return (error * mask).sum() / (mask.sum() + 1)

    def embed(self, x: Tensor) -> Tensor:
        """Of the whole picture, with nothing hidden."""
        return self.encode(F.pad(x, (0, 0, 0, 0, 0, 1))).flatten(1)


def _hide(x: Tensor, mask: Tensor) -> Tensor:
    """Mid-grey where hidden, and the mask as a fourth channel: (B, 4, H, W)."""
    return torch.cat([x * (1 - mask) + 0.5 * mask, mask], 1)
