"""What trivial ways reach: figures that a model has to beat before it may be called one.

All work on grey pictures stretched to 128 x 128 px, in closed form and without a seed, and learn from every training picture:

- the **linear autoencoder**: 32 principal components of the pictures; the residual squared,
- the **golden template**: the mean good picture; the absolute difference, standardised per pixel by the good pictures' own,

both smoothed by a Gaussian of 2 px and scored by the mean of the largest 0.3 %. **Brightness, size, sharpness** learn nothing at
all: the mean, the number of pixels, the variance of the Laplacian; the best of the three, in the better of both directions,
is chosen by the test pictures themselves. A set that it separates is separated by how it was photographed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from benchmarks.accuracy.sets import GOOD, DataSet
from numpy.typing import NDArray

from flawline_inspect.frame import bgr_8_bit, find_pictures, read_picture

__all__ = [
    "FLOORS",
    "GOLDEN_TEMPLATE",
    "LINEAR",
    "SIDE",
    "TRIVIAL",
    "LinearAutoencoder",
    "Template",
    "auroc",
    "auroc_interval",
    "floor_figures",
]

SIDE = 128
COMPONENTS = 32
SMOOTHING = 2.0
TOP_SHARE = 0.003
RESAMPLES = 2000
_LEAST_SPREAD = 0.1
"""Of the mean spread, added to each pixel's: where good pictures agree to the last grey level, noise is no defect."""

LINEAR, GOLDEN_TEMPLATE, TRIVIAL = "linear autoencoder", "golden template", "brightness, size, sharpness"
FLOORS = (LINEAR, GOLDEN_TEMPLATE, TRIVIAL)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearAutoencoder:
    """`mean` (D,) and the orthonormal `components` (k, D) of pictures as rows."""

    mean: F64
    components: F64

    @classmethod
    def fit(cls, pictures: F32, components: int = COMPONENTS) -> LinearAutoencoder:
        """From (n, H, W); fewer components where n - 1 is smaller."""
        rows = pictures.reshape(len(pictures), -1).astype(np.float64)
        mean = rows.mean(0)
        centred = rows - mean
        # The eigenvectors of the n x n products are those of the D x D covariance, and n is a hundredth of D.
        values, vectors = np.linalg.eigh(centred @ centred.T)
        kept = values > 1e-10 * max(values[-1], 1e-300)
        kept[: max(0, len(values) - components)] = False
        return cls(mean, (vectors[:, kept] / np.sqrt(values[kept])).T @ centred)

    def residual(self, pictures: F32) -> F32:
        """Squared error of the reconstruction, (n, H, W)."""
        centred = pictures.reshape(len(pictures), -1) - self.mean
        rebuilt = centred @ self.components.T @ self.components
        return ((centred - rebuilt) ** 2).reshape(pictures.shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Template:
    """The mean good picture (H, W), and mean and spread of the good pictures' absolute difference from it."""

    picture: F32
    mean: F32
    spread: F32

    @classmethod
    def fit(cls, pictures: F32) -> Template:
        picture = pictures.mean(0)
        differences = np.abs(pictures - picture)
        spread = differences.std(0)
        return cls(picture, differences.mean(0), spread + _LEAST_SPREAD * spread.mean() + np.float32(1e-6))

    def residual(self, pictures: F32) -> F32:
        """The standardised difference, (n, H, W)."""
        return (np.abs(pictures - self.picture) - self.mean) / self.spread


def scores(residuals: F32) -> F64:
    """(n, H, W) → (n,): the mean of the largest 0.3 % after smoothing."""
    smooth = np.stack([cv2.GaussianBlur(residual, (0, 0), SMOOTHING) for residual in residuals])
    top = max(1, round(TOP_SHARE * smooth[0].size))
    return np.sort(smooth.reshape(len(smooth), -1), 1)[:, -top:].mean(1, dtype=np.float64)


def auroc(values: F64, labels: NDArray[np.bool_]) -> float:
    """How often a defective part scores above a good one; a tie counts half."""
    return float(_wins(values, labels).mean())


def auroc_interval(values: F64, labels: NDArray[np.bool_], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval over resamples of the good and of the defective parts, each by itself."""
    wins = _wins(values, labels)
    rng = np.random.default_rng(seed)
    bad, good = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in wins.shape)
    low, high = np.quantile(((bad @ wins) * good).sum(1), [0.025, 0.975])
    return float(low), float(high)


def floor_figures(name: str, data: DataSet) -> dict[str, Any]:
    """The figures of one of `FLOORS` on a set, named as `flawline eval --json` names them."""
    samples = data.test()
    labels = np.array([kind != GOOD for _, kind in samples])
    paths = [path for path, _ in samples]
    more: dict[str, Any] = {}
    if name == TRIVIAL:
        each = _plain_figures(paths)
        directed = {key: v if auroc(v, labels) >= 0.5 else -v for key, v in each.items()}
        best = max(directed, key=lambda key: auroc(directed[key], labels))
        values = directed[best]
        more = {"best": best, "each": {key: auroc(v, labels) for key, v in directed.items()}}
    else:
        good, test = _stretched(find_pictures(data.good)), _stretched(paths)
        model = LinearAutoencoder.fit(good) if name == LINEAR else Template.fit(good)
        values = scores(model.residual(test))
    return {
        "image_auroc": auroc(values, labels),
        "image_auroc_interval": list(auroc_interval(values, labels)),
        "n_good": int((~labels).sum()),
        "n_bad": int(labels.sum()),
        **more,
    }


def _wins(values: F64, labels: NDArray[np.bool_]) -> F64:
    """(defective, good): 1 where the defective part scores above the good one, 0.5 where they tie."""
    bad, good = values[labels][:, None], values[~labels]
    return (bad > good) + 0.5 * (bad == good)


def _grey(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(bgr_8_bit(read_picture(path), bit_depth=16), cv2.COLOR_BGR2GRAY), np.uint8)


def _stretched(paths: Sequence[Path]) -> F32:
    """(n, 128, 128) in 0-1."""
    small = [cv2.resize(_grey(path), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for path in paths]
    return np.stack(small).astype(np.float32) / np.float32(255)


def _plain_figures(paths: Sequence[Path]) -> dict[str, F64]:
    rows = []
    for path in paths:
        grey = _grey(path)
        rows.append((grey.mean(), grey.size, cv2.Laplacian(grey, cv2.CV_64F).var()))
    columns = np.array(rows, np.float64).T
    return dict(zip(("brightness", "size", "sharpness"), columns, strict=True))
