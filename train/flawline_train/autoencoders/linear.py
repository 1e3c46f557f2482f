"""A linear autoencoder of whole pictures at a fraction of their size: principal components, in closed form.

A network that repairs what looks like damage passes what does not, and large, faint changes do not: a solar cell's dark
corner comes through. Few principal components know how whole parts vary and nothing else, so a dark corner stays in their
residual. On fixed poses this costs nothing and sees what the network is blind to (benchmarks/LOG.md); where parts
move or have no shape its residual is large everywhere and the calibration takes its weight away.

A lamp that ages is no defect: the usual picture itself, and it brightening to one side or to the top, belong to the subspace
whatever the pictures show, so that gain and slow gradients leave no residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LinearAutoencoder", "reduction"]

CELLS = 64
"""About so many cells along the frame's long side."""
COMPONENTS = 48
"""Few against the number of good parts: what varies between them, not what one of them has."""
PICTURES_PER_COMPONENT = 4
_MAX_FACTOR = 16
_COLOURS = 3
_LIGHT = 3
_NOTHING = 1e-6


def reduction(frame_hw: tuple[int, int], cells: int = CELLS) -> int:
    """By what power of 2 frames of (H, W) are made smaller for about so many cells along the long side."""
    return min(_MAX_FACTOR, max(1, 2 ** round(math.log2(max(frame_hw) / cells))))


class LinearAutoencoder(nn.Module):
    """(B, C, H, W) in 0-1 -> (B, C, H / f, W / f): the reduced picture, projected onto light and `COMPONENTS` principal components.

    Reduced to about `cells` along the long side. Before `fit` it returns the reduced picture as it is.
    """

    basis: Tensor
    fitted: Tensor

    def __init__(self, frame_hw: tuple[int, int], *, colours: int = _COLOURS, cells: int = CELLS) -> None:
        super().__init__()
        self.factor = reduction(frame_hw, cells)
        height, width = frame_hw[0] // self.factor, frame_hw[1] // self.factor
        self.register_buffer("basis", torch.zeros(_LIGHT + COMPONENTS, colours * height * width))
        self.register_buffer("fitted", torch.zeros(()))

    def reduce(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / f, W / f), averaged."""
        return F.avg_pool2d(x, self.factor) if self.factor > 1 else x

    def forward(self, x: Tensor) -> Tensor:
        small = self.reduce(x)
        rebuilt = (small.flatten(1) @ self.basis.T @ self.basis).reshape(small.shape)
        return small + self.fitted * (rebuilt - small)

    @torch.no_grad()
    def fit(self, pictures: Iterable[Tensor], *, least_share: float = 0.0) -> None:
        """From good pictures (B, C, H, W) in 0-1, batch by batch; as many components as they can carry.

        A component that fewer than `least_share` of the pictures make is left out: what a few have is no way in which parts vary.
        """
        small = torch.cat([self.reduce(batch.float()) for batch in pictures])  # (n, C, h, w)
        n, _, height, width = small.shape
        rows = small.flatten(1).double()
        usual = small.mean(0)
        down = torch.linspace(-1, 1, height, device=small.device)[:, None]
        across = torch.linspace(-1, 1, width, device=small.device)
        light = torch.stack([usual, usual * down, usual * across]).flatten(1).double()  # (_LIGHT, Chw)
        light = _orthonormal(light)
        rest = rows - rows.mean(0)
        rest = rest - rest @ light.T @ light
        # The eigenvectors of the n x n products give the same components as those of the much larger covariance.
        _, vectors = torch.linalg.eigh(rest @ rest.T)
        # How many pictures make a component: n when all do alike, n / 3 when normally distributed, 1 when it is one picture.
        made_by = 1 / vectors.pow(4).sum(0)
        vectors = vectors[:, made_by >= least_share * n]
        count = min(COMPONENTS, n // PICTURES_PER_COMPONENT, vectors.shape[1])
        components = vectors[:, vectors.shape[1] - count :].T @ rest
        basis = _orthonormal(torch.cat([light, components]))
        self.basis.zero_()
        self.basis[: len(basis)] = basis.to(self.basis)
        self.fitted.fill_(1.0)


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of what the rows (k, D) span; what is nothing but rounding is left out."""
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[values > _NOTHING * max([1e-12, *values.tolist()])]
