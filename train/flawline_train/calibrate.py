"""From held-out good pictures to the error map's weights, the good parts' spread and the threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawline_inspect.calibration import (
    GoodSpread,
    Threshold,
    fit_spread,
    leave_one_out,
    threshold_from_scores,
)
from flawline_inspect.frame import Placement
from flawline_train.graph import ErrorMap, top_pixels

__all__ = ["Calibration", "MapCalibration", "calibrate", "calibrate_maps"]

_BATCH = 16


@dataclass(frozen=True, slots=True)
class MapCalibration:
    """`scores` (n,) are leave-one-out; `good` are the maps over all n held-out pictures, for the graph."""

    good: GoodSpread
    scores: NDArray[np.float32]
    threshold: Threshold


@dataclass(frozen=True, slots=True)
class Calibration(MapCalibration):
    """With the error map, weighted."""

    error_map: ErrorMap


@torch.inference_mode()
def calibrate(
    network: nn.Module,
    frames: NDArray[np.uint8],
    placement: Placement,
    *,
    false_reject_target: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibrate with held-out good `frames` (n, H, W, 3). Deterministic; in float32 whatever training used."""
    device = next(network.parameters()).device
    error_map = ErrorMap((frames.shape[1], frames.shape[2])).to(device)
    smoothed = []  # per channel, still unweighted: smoothing and weighting may be swapped
    for start in range(0, len(frames), _BATCH):
        x = torch.from_numpy(frames[start : start + _BATCH]).to(device).float().permute(0, 3, 1, 2) / 255
        channels = error_map.channels(x, network(x).clamp(0, 1))  # (B, 2, H, W)
        n, count, height, width = channels.shape
        flat = error_map.smooth(channels.reshape(n * count, 1, height, width))
        smoothed.append(flat.reshape(n, count, height, width).cpu())
        if on_progress is not None:
            on_progress(min(start + _BATCH, len(frames)), len(frames))
    errors = torch.cat(smoothed).numpy()  # (n, 2, H, W)

    left, top, content_w, content_h = placement.content
    inside = errors[:, :, top : top + content_h, left : left + content_w]
    # Each error in units of its own typical spread over good parts, then with equal weight: a mixture is rarely the best
    # single error and never the worst.
    typical = np.maximum(inside.std(0, ddof=1).mean((1, 2)), 1e-8)
    error_map.weights.copy_(torch.from_numpy((1 / typical).astype(np.float32)))
    combined = np.einsum("nchw,c->nhw", errors, 1 / typical).astype(np.float32)
    maps = calibrate_maps(combined, placement, false_reject_target=false_reject_target)
    return Calibration(maps.good, maps.scores, maps.threshold, error_map)


def calibrate_maps(errors: NDArray[np.float32], placement: Placement, *, false_reject_target: float) -> MapCalibration:
    """Calibrate with the raw error maps (n, H, W) of held-out good pictures, whoever made them."""
    left, top, content_w, content_h = placement.content
    heatmaps = leave_one_out(errors)[:, top : top + content_h, left : left + content_w].reshape(len(errors), -1)
    scores = np.sort(heatmaps, 1)[:, -top_pixels(placement) :].mean(1, dtype=np.float32)
    return MapCalibration(fit_spread(errors), scores, threshold_from_scores(scores, false_reject_target))
