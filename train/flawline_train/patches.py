"""How unlike the patches of good parts a patch is, whatever its place: the distance that suits textures.

The picture's logarithm against that of its reconstruction, cut into 5x5 patches at half and quarter size, each patch's distance
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
SCALES = (2, 4)
OFFSET = 0.02
"""Added before the logarithm: in the dark, ratios say nothing."""
RIDGE = 1e-4
"""Of the largest variance, added to all: directions that good patches never show are not infinitely far."""
_NOTHING = 1e-12


def log_ratio(x: Tensor, expected: Tensor) -> Tensor:
    """Picture (B, 3, H, W) and what was expected, at that size or a fraction of it, both in 0-1 -> (B, 1, H, W), grey."""
    grey, usual = x.mean(1, keepdim=True), expected.mean(1, keepdim=True).clamp(0, 1)
    if usual.shape[2:] != grey.shape[2:]:
        usual = F.interpolate(usual, size=grey.shape[2:], mode="bilinear", align_corners=False)
    return (grey + OFFSET).log() - (usual + OFFSET).log()


class PatchDistance(nn.Module):
    """(B, 1, H, W), as of `log_ratio` -> root mean square of the whitened patches around each pixel, (B, 1, H, W), about 1.

    H and W are multiples of 16. Before `fit` it whitens nothing.
    """

    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        centred = torch.eye(SIDE**2) - 1 / SIDE**2
        self.register_buffer("whitening", centred.repeat(len(SCALES), 1, 1))  # (scales, 25, 25)

    def forward(self, ratio: Tensor) -> Tensor:
        return torch.stack([self._distance(ratio, i) for i in range(len(SCALES))]).mean(0)

    def _distance(self, ratio: Tensor, i: int) -> Tensor:
        filters = self.whitening[i].view(-1, 1, SIDE, SIDE)
        whitened = F.conv2d(_padded(F.avg_pool2d(ratio, SCALES[i])), filters)
        distance = torch.linalg.vector_norm(whitened, dim=1, keepdim=True) / SIDE
        return F.interpolate(distance, size=ratio.shape[2:], mode="bilinear", align_corners=False)

    @torch.no_grad()
    def fit(self, ratios: Iterable[Tensor]) -> None:
        """From good pictures' ratios (B, 1, H, W), batch by batch. Raises `InputError` where they are no numbers."""
        products = torch.zeros_like(self.whitening, dtype=torch.float64)
        count = torch.zeros(len(SCALES), dtype=torch.float64, device=products.device)
        for ratio in ratios:
            for i, scale in enumerate(SCALES):
                patches = F.unfold(_padded(F.avg_pool2d(ratio, scale)), SIDE)  # (B, 25, hw)
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


def _padded(x: Tensor) -> Tensor:
    radius = SIDE // 2
    return F.pad(x, (radius, radius, radius, radius), mode="reflect")
