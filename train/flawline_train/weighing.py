"""Which errors to believe, and how much: let withheld damage on held-out good pictures choose.

No single error wins on every part (benchmarks/LOG.md). Equal weights are robust and never best; fitted weights are best where there
are pictures to fit them with, which ten held-out ones are not. So only few mixtures compete, and the usual one wins ties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.calibration import fit_pooled, fit_spread, leave_one_out, leave_one_out_pooled
from flawline_train.withheld import WITHHELD, damage

__all__ = ["damaged_copies", "step_of", "weigh"]

USUAL = {"absolute": 2.0, "ssim": 1.0, "msgms": 1.0, "coarse": 4.5, "patches": 9.0}
OTHERS = {"absolute": (0.0, 1.0, 2.0), "ssim": (1.0,), "msgms": (1.0,), "coarse": (0.0, 4.5, 9.0), "patches": (9.0,)}
LINEAR = ("coarse", "patches")
HALF_AT = 40
"""What rests on principal components knows only how the parts that it has seen vary: with so many held-out parts (a quarter of
all) it weighs half of the above, with many all of it, with few next to nothing."""
MARGIN = 0.18
"""Over the root of the number of held-out parts, as an AUROC's standard error falls: by more than so much, in mean AUROC over the
kinds, another mixture has to be better than the usual one. 0.02 for 80 parts; nine would choose by luck (benchmarks/LOG.md)."""
MAX_PICTURES, MIN_COPIES = 24, 24
"""Held-out pictures that are damaged, and damaged copies a kind."""
_LARGE = 256
"""Maps of frames beyond this long side are as much smoother as they are larger: fewer places say as much, in less memory."""


def step_of(frame_hw: tuple[int, int]) -> int:
    """How many cells apart the places are at which maps of frames of (H, W) are weighed."""
    return max(1, max(frame_hw) // _LARGE)


def damaged_copies(frames: NDArray[np.uint8], content: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Good frames (n, H, W, 3) → copies (K m, H, W, 3) with damage inside `content` (x, y, w, h), m of each of K kinds."""
    rng = np.random.default_rng(0)
    x, y, w, h = content
    chosen = np.linspace(0, len(frames) - 1, min(MAX_PICTURES, len(frames))).round().astype(int)
    chosen = np.tile(chosen, -(-MIN_COPIES // len(chosen)))
    out = []
    for kind in WITHHELD:
        for frame in frames[chosen]:
            copy = frame.copy()
            copy[y : y + h, x : x + w] = damage(frame[y : y + h, x : x + w], kind, rng)
            out.append(copy)
    return np.stack(out)


def weigh(
    names: tuple[str, ...],
    good: NDArray[np.float32],
    damaged: NDArray[np.float32],
    top_cells: int,
    parts: Sequence[Hashable] | None = None,
    *,
    step: int = 1,
    places: bool = True,
) -> tuple[float, ...]:
    """Weights (C,) of the channels `names` that tell damaged pictures from good ones best.

    `good` (n, C, h, w) and `damaged` (K m, C, h, w), as of `damaged_copies`, are smoothed error maps in units of the channels' own
    spread, at every `step`th cell. Every mixture is judged as the line would: standardised per cell, or for all cells alike
    without `places`, good pictures by those of other `parts`, and scored by its largest values, `top_cells` of them where every cell
    counts.
    """
    count = len(good) if parts is None else len(set(parts))
    trust = np.array([count / (count + HALF_AT) if name in LINEAR else 1.0 for name in names], np.float32)
    usual = tuple(USUAL[name] for name in names)
    best, best_auroc = usual, -1.0
    margin = MARGIN / math.sqrt(count)
    top = max(1, top_cells // step**2)
    fitted, judged = (fit_spread, leave_one_out) if places else (fit_pooled, leave_one_out_pooled)
    for weights in itertools.product(*(OTHERS[name] for name in names)):
        mixed, hurt = (
            np.einsum("nchw,c->nhw", errors, np.array(weights, np.float32) * trust) for errors in (good, damaged)
        )
        good_scores = _scores(judged(mixed, parts), top)
        hurt_scores = _scores(fitted(mixed).standardise(hurt), top).reshape(len(WITHHELD), -1)
        auroc = float(np.mean([_auroc(good_scores, scores) for scores in hurt_scores])) + margin * (weights == usual)
        if auroc > best_auroc:
            best, best_auroc = weights, auroc
    return tuple(float(weight * share) for weight, share in zip(best, trust, strict=True))


def _scores(heatmaps: NDArray[np.float32], top: int) -> NDArray[np.float32]:
    """(n, h, w) → (n,), the mean of the `top` largest values."""
    flat = heatmaps.reshape(len(heatmaps), -1)
    return np.partition(flat, flat.shape[1] - top, 1)[:, -top:].mean(1)


def _auroc(good: NDArray[np.float32], bad: NDArray[np.float32]) -> float:
    """Share of (good, bad) pairs in which the bad one scores higher; ties count half."""
    difference = bad[:, None] - good[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)
