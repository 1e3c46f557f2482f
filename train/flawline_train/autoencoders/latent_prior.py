"""What codes good parts have: a density fitted after training, to draw new codes from.

Training an autoencoder and then fitting a density to its codes gives better pictures than drawing from the prior that a
variational autoencoder was pulled towards, since the codes never fill that prior evenly (Ghosh et al. 2020, arXiv 1903.12436;
Dai & Wipf 2019, arXiv 1903.05789). The density here is a kernel density estimate on the codes' principal axes: it needs no
training of its own, keeps several kinds of good part apart and works from a few dozen pictures on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LatentPrior"]

MOST_AXES = 32
MOST_CENTRES = 256
BANDWIDTH = 0.5
"""Standard deviation of each kernel, of the codes' own on that axis: 0 repeats the training parts, large is one Gaussian."""
KEPT_VARIANCE = 0.98
"""The smallest axes are left out: there the codes are noise."""


class LatentPrior(nn.Module):
    """A density over vectors (D,). Before `fit` it is a standard Gaussian on the first axes. All of it is buffers.

    A sample is mean + (keep x centre + spread x noise) axes, with a centre that is a training picture's own; keep and
    spread make the samples' variance that of the codes (smoothed bootstrap, Silverman & Young 1987).
    """

    mean: Tensor
    axes: Tensor
    centres: Tensor
    scales: Tensor
    keep: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        count = min(size, MOST_AXES)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("axes", torch.eye(count, size))  # orthonormal rows
        self.register_buffer("scales", torch.ones(count))  # the codes' standard deviation along each
        self.register_buffer("centres", torch.zeros(MOST_CENTRES, count))  # in units of the scales
        self.register_buffer("keep", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def fit(self, codes: Tensor) -> None:
        """To `codes` (n, D) of n >= 2 good parts; deterministic. Of more than 256, every so-manieth counts."""
        if len(codes) < 2:
            return
        every = math.ceil(len(codes) / MOST_CENTRES)
        codes = codes[::every]
        mean = codes.mean(0)
        _, singular, axes = torch.linalg.svd(codes - mean, full_matrices=False)  # (r,), (r, D)
        explained = singular.square().cumsum(0) / singular.square().sum().clamp(min=1e-12)
        count = min(len(self.axes), int((explained < KEPT_VARIANCE).sum()) + 1, len(axes))
        scales = singular[:count] / math.sqrt(len(codes) - 1)
        centres = (codes - mean) @ axes[:count].T / scales.clamp(min=1e-12)  # (n, count)

        for buffer in (self.axes, self.scales, self.centres):
            buffer.zero_()
        self.mean.copy_(mean)
        self.axes[:count] = axes[:count]
        self.scales[:count] = scales
        self.centres[:, :count] = centres[torch.arange(MOST_CENTRES, device=codes.device) % len(codes)]
        self.keep.fill_(1 / math.sqrt(1 + BANDWIDTH**2))
        self.spread.fill_(BANDWIDTH / math.sqrt(1 + BANDWIDTH**2))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, D); `generator` lives on the CPU, so that a seed means the same everywhere."""
        which = torch.randint(MOST_CENTRES, (n,), generator=generator)
        noise = torch.randn((n, len(self.scales)), generator=generator).to(self.mean)
        coefficients = self.keep * self.centres[which.to(self.mean.device)] + self.spread * noise
        return self.mean + (coefficients * self.scales) @ self.axes
