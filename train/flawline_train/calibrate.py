"""From held-out good pictures to the error map's weights, the good parts' spread and the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawline_inspect.calibration import GoodSpread, fit_spread, leave_one_out
from flawline_inspect.frame import Placement
from flawline_train.graph import ERROR_CHANNELS, ErrorMap, top_pixels
from flawline_train.threshold import Threshold, threshold_from_scores

__all__ = ["Calibration", "MapCalibration", "calibrate", "calibrate_maps"]

_BATCH = 16


@dataclass(frozen=True, slots=True)
class MapCalibration:
    """`scores` (n,) are those of the n pictures, each by maps without its part; `good` are the maps over all n, for the
    graph. `parts` are the held-out parts in the order of their pictures, `part_scores` their largest scores, from
    which `threshold` follows."""

    good: GoodSpread
    scores: NDArray[np.float32]
    parts: tuple[str, ...]
    part_scores: NDArray[np.float32]
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
    parts: Sequence[str] | None = None,
    keep_suspects: bool = False,
    cross_fitted: NDArray[np.floating] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibrate with held-out good `frames` (n, H, W, 3). Deterministic; in float32 whatever training used.

    `parts`: the part's name for each of the n frames, every one another part where None. `keep_suspects` and
    `cross_fitted`, scores of further parts by networks that did not learn from them, as in `threshold_from_scores`. A training
    picture's score by *this* network is none of those: what was learnt from scores lower, by an amount that only
    training again without it can tell.
    """
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
    weights = 1 / np.maximum(inside.std(0, ddof=1).mean((1, 2)), 1e-8)
    preferred = getattr(network, "error_channels", None) or ERROR_CHANNELS
    weights *= [channel in preferred for channel in ERROR_CHANNELS]
    error_map.weights.copy_(torch.from_numpy(weights.astype(np.float32)))
    combined = np.einsum("nchw,c->nhw", errors, weights).astype(np.float32)

    maps = calibrate_maps(
        combined,
        placement,
        false_reject_target=false_reject_target,
        parts=parts,
        keep_suspects=keep_suspects,
        cross_fitted=cross_fitted,
    )
    return Calibration(maps.good, maps.scores, maps.parts, maps.part_scores, maps.threshold, error_map)


def calibrate_maps(
    errors: NDArray[np.float32],
    placement: Placement,
    *,
    false_reject_target: float,
    parts: Sequence[str] | None = None,
    keep_suspects: bool = False,
    cross_fitted: NDArray[np.floating] | None = None,
) -> MapCalibration:
    """Calibrate with the raw error maps (n, H, W) of held-out good pictures, whoever made them. Arguments as in `calibrate`."""
    left, top, content_w, content_h = placement.content
    names = [str(i) for i in range(len(errors))] if parts is None else list(parts)
    heatmaps = leave_one_out(errors, names)[:, top : top + content_h, left : left + content_w]
    pixels = heatmaps.reshape(len(errors), -1)
    scores = np.sort(pixels, 1)[:, -top_pixels(placement) :].mean(1, dtype=np.float32)
    distinct = tuple(dict.fromkeys(names))
    largest = {part: max(float(s) for s, name in zip(scores, names, strict=True) if name == part) for part in distinct}
    part_scores = np.array([largest[part] for part in distinct], np.float32)
    threshold = threshold_from_scores(
        part_scores, false_reject_target, keep_suspects=keep_suspects, cross_fitted=cross_fitted
    )
    return MapCalibration(fit_spread(errors), scores, distinct, part_scores, threshold)
