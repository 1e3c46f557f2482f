"""Vector quantisation: a vector is replaced by the nearest of a few learnt ones (van den Oord et al. 2017, arXiv 1711.00937).

The codebook follows the vectors by exponential moving averages (appendix A.1 there; Razavi et al. 2019, arXiv 1906.00446).
Codes that are no longer chosen are put where vectors are: without that most of a codebook is never used (Dhariwal et al. 2020,
arXiv 2005.00341). A new codebook is dead all over, and so starts among the first batch's vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Codebook", "perplexity"]

DECAY = 0.95
"""Of the counts and sums a step; the paper's 0.99 lags behind an encoder that has a thousand steps in all."""
DEAD_SHARE = 0.05
"""A code that is chosen less often than this share of the average is dead."""


class Codebook(nn.Module):
    """`codes` (K, D), chosen `counts` (K,) times a batch on average. Buffers, trained by `learn` and not by gradients."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(size, dimension))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dimension))

    def indices(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) → the nearest codes, (B, h, w) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            rows = vectors.float().permute(0, 2, 3, 1)  # (B, h, w, D)
            # |v - c|^2 without |v|^2, which is the same for all codes
            distances = self.codes.square().sum(1) - 2 * (rows @ self.codes.T)  # (B, h, w, K)
        return distances.argmin(-1)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) → each vector's nearest code, (B, D, h, w) float32."""
        return F.embedding(self.indices(vectors), self.codes).permute(0, 3, 1, 2)

    @torch.no_grad()
    def learn(self, vectors: Tensor) -> None:
        """Move the codes towards the vectors (B, D, h, w) that chose them, and revive dead ones."""
        rows = vectors.float().permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
        chosen = self.indices(vectors).flatten()  # (N,)
        size = len(self.codes)
        self.counts.lerp_(torch.bincount(chosen, minlength=size).float(), 1 - DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, chosen, rows), 1 - DECAY)
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-6)[:, None])

        average = len(rows) / size
        dead = (self.counts < DEAD_SHARE * average).nonzero()[:, 0]
        if len(dead):
            fresh = rows[torch.randint(len(rows), (len(dead),), device=rows.device)]
            self.codes[dead] = fresh
            self.counts[dead] = average  # time enough to be chosen
            self.sums[dead] = fresh * average


def perplexity(indices: Tensor, size: int) -> float:
    """How many codes of `size` are in use, if all were used alike: 1 to `size`. `indices` of any shape."""
    shares = torch.bincount(indices.flatten(), minlength=size).double() / indices.numel()
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))
