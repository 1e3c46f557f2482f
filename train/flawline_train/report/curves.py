"""ROC and PRO as curves; their areas are `flawline_train.evaluate`'s."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["pro_curve", "roc_curve"]

MAX_POINTS = 200
PRO_LIMIT = 0.3
"""False-positive rate at which the per-region overlap ends, as usual since Bergmann et al. 2019."""
MAX_BACKGROUND = 2_000_000
"""Good pixels beyond this number are thinned evenly: they cost seconds and move the curve by less than a line's width."""

Points = tuple[tuple[float, float], ...]


def roc_curve(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> tuple[Points, tuple[float, ...]]:
    """(false-reject rate, share caught) at each distinct score of n pictures, strictest first, and those scores.

    A part is rejected at its own score here: the curve begins with the highest and ends at (1, 1). Scores are finite.
    """
    levels, place = np.unique(scores, return_inverse=True)
    bad = np.bincount(place.ravel(), weights=labels, minlength=len(levels))[::-1].cumsum()
    good = np.bincount(place.ravel(), weights=~labels, minlength=len(levels))[::-1].cumsum()
    keep = _thinned(len(levels))
    points = [(0.0, 0.0), *zip((good / good[-1])[keep].tolist(), (bad / bad[-1])[keep].tolist(), strict=True)]
    kept = levels[::-1][keep].tolist()
    return tuple(points), (kept[0], *kept)


def pro_curve(heatmaps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.uint8]]) -> Points:
    """(false-positive rate, mean overlap of the 8-connected regions) of n (H, W) heatmaps and masks of 0 and 1.

    Up to a false-positive rate of 0.3, at `MAX_POINTS` evenly spaced rates. Empty when no mask marks a pixel.
    """
    regions: list[NDArray[np.float32]] = []
    background: list[NDArray[np.float32]] = []
    for heatmap, mask in zip(heatmaps, masks, strict=True):
        shown = np.nan_to_num(heatmap, nan=np.inf)
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        regions += [np.sort(shown[labels == k]) for k in range(1, count)]
        background.append(shown[labels == 0])
    if not regions:
        return ()
    values = np.concatenate(background)
    values = np.sort(values[:: max(1, len(values) // MAX_BACKGROUND)])
    places = len(values) - 1 - np.linspace(0, PRO_LIMIT * (len(values) - 1), MAX_POINTS).astype(np.intp)
    levels = np.unique(values[places])[::-1]
    rates = 1 - np.searchsorted(values, levels, side="left") / len(values)
    inside = rates <= PRO_LIMIT
    levels, rates = levels[inside], rates[inside]
    overlaps = np.mean([1 - np.searchsorted(region, levels, side="left") / len(region) for region in regions], 0)
    return ((0.0, 0.0), *zip(rates.tolist(), overlaps.tolist(), strict=True))


def _thinned(n: int) -> NDArray[np.intp]:
    """At most `MAX_POINTS` of n indices, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_POINTS)).round().astype(np.intp))
