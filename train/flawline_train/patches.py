"""How unlike the patches of good parts a patch is, whatever its place: the distance that suits textures.

The logarithm of the picture's cells against that of its reconstruction's, cut into 5x5 patches at two scales, each patch's distance
from the usual one measured in the good patches' own covariance (Mahalanobis), which is the RX detector of remote sensing
(Reed & Yu 1990). Absolute error takes neighbouring pixels for independent; whitening knows how they go together, so
that a faint crack across the grain outweighs stronger grain, and the logarithm sees it in the dark as well as in the light.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_inspect.errors import InputError

__all__ = ["PatchDistance", "log_ratio"]

SIDE = 5
SCALES = (1, 2)
"""Of what the patches are cut from: the error map's cells are two pixels wide."""
OFFSET = 0.02
"""Added before the logarithm: in the dark, ratios say nothing."""
RIDGE = 1e-4
"""Of the largest variance, added to all: directions that good patches never show are not infinitely far."""
_NOTHING = 1e-12


def log_ratio(grey: Tensor, expected: Tensor) -> Tensor:
    """Grey picture (B, 1, H, W) and what was expected (B, C, h, w), of that size or another by a power of 2, in 0-1 -> (B, 1, H, W)."""
    usual = expected.mean(1, keepdim=True).clamp(0, 1)
    if usual.shape[2] > grey.shape[2]:
        usual = F.avg_pool2d(usual, usual.shape[2] // grey.shape[2])
    usual = (usual + OFFSET).log()
    if usual.shape[2] < grey.shape[2]:
        usual = F.interpolate(usual, size=grey.shape[2:], mode="bilinear", align_corners=False)
    return (grey + OFFSET).log() - usual


class PatchDistance(nn.Module):
    """How far the patches around each place of (B, 1, H, W), as of `log_ratio`, are: their whitened root mean square, about 1.

    H and W are multiples of 8. Before `fit` it whitens nothing.
    """

    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        centred = torch.eye(SIDE**2) - 1 / SIDE**2
        self.register_buffer("whitening", centred.repeat(len(SCALES), 1, 1))  # (scales, 25, 25)

    def distances(self, ratio: Tensor) -> list[Tensor]:
        """(B, 1, H, W) and (B, 1, H / 2, W / 2), whose sum is the distance."""
        out = []
        for whitening, scale in zip(self.whitening.unbind(), SCALES, strict=True):
            whitened = F.conv2d(_padded(_reduced(ratio, scale)), whitening.view(-1, 1, SIDE, SIDE))
            out.append(torch.linalg.vector_norm(whitened, dim=1, keepdim=True) / (SIDE * len(SCALES)))
        return out

    @torch.no_grad()
    def fit(self, ratios: Iterable[Tensor]) -> None:
        """From good pictures' ratios (B, 1, H, W), batch by batch. Raises `InputError` where they are no numbers."""
        products = torch.zeros_like(self.whitening, dtype=torch.float64)
        count = torch.zeros(len(SCALES), dtype=torch.float64, device=products.device)
        for ratio in ratios:
            for i, scale in enumerate(SCALES):
                patches = F.unfold(_padded(_reduced(ratio, scale)), SIDE)  # (B, 25, hw)
                patches = (patches - patches.mean(1, keepdim=True)).double()
                products[i] += torch.einsum("bkp,blp->kl", patches, patches)
                count[i] += patches.shape[0] * patches.shape[2]
        if not products.isfinite().all():
            raise InputError("error maps of good pictures contain non-finite values: the autoencoder diverged")
        values, vectors = torch.linalg.eigh(products / count.clamp(min=1)[:, None, None])
        largest = values[:, -1:].clamp(min=_NOTHING)
        # The direction of all ones has no variance left, and none is made up for it.
        gains = torch.where(values > RIDGE * largest * 1e-3, (values + RIDGE * largest).rsqrt(), 0.0)
        self.whitening.copy_(gains[:, :, None] * vectors.transpose(1, 2))


def _reduced(x: Tensor, factor: int) -> Tensor:
    return F.avg_pool2d(x, factor) if factor > 1 else x


def _padded(x: Tensor) -> Tensor:
    radius = SIDE // 2
    return F.pad(x, (radius, radius, radius, radius), mode="reflect")
