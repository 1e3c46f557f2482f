"""Calibration of textures, which have no places: one mean and one spread for all pixels, and no map is kept.

What the error map is made of and how it is weighed is found on crops of the size that was trained on, so that it costs the same
however large the frame. Then each held-out frame is looked at once, whole. Its score is that of its worst tile: as many of the
largest values count as would of one crop, so that a defect of a thousandth of the frame is not diluted by the rest.

Standardising all pixels alike keeps their order, so that the score of a picture without its own part in mean and spread follows from
three numbers a picture: the mean of its largest values, and mean and variance of all. Memory is that of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawline_inspect.calibration import Moments
from flawline_inspect.frame import Placement
from flawline_train.calibrate import Calibration, Look, mixture, settle, without
from flawline_train.graph import ErrorMap, tile_top_pixels
from flawline_train.kind import tile_hw
from flawline_train.light import Light

__all__ = ["calibrate_texture"]

MIN_CROPS = 24
"""Few held-out pictures are looked at in several places each."""


@torch.inference_mode()
def calibrate_texture(
    network: nn.Module,
    frames: NDArray[np.uint8],
    placement: Placement,
    *,
    false_reject_target: float,
    parts: Sequence[str] | None = None,
    doubted: Collection[str] = (),
    keep_suspects: bool = False,
    cross_fitted: NDArray[np.floating] | None = None,
    light: Light | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """As `flawline_train.calibrate.calibrate`, for a network that takes pictures of any size. `good` is the same for all pixels, and
    scores are means of the `tile_top_pixels` largest values."""
    n = len(frames)
    names = np.array([str(i) for i in range(n)] if parts is None else list(parts))
    device = next(network.parameters()).device
    crops, crop_of = _crops(frames, placement, light)
    crop_h, crop_w = crops.shape[1:3]
    error_map, _ = mixture(
        Look(network, None, device, places=False),
        crops,
        (0, 0, crop_w, crop_h),
        tile_top_pixels(placement),
        names[crop_of].tolist(),
        without(names, doubted)[crop_of],
    )
    tops, means, variances = _looked_at(
        error_map, Look(network, light, device, places=False), frames, placement, on_progress
    )

    def scored(kept: NDArray[np.bool_]) -> NDArray[np.float32]:
        good = Moments(means[kept], variances[kept])
        scores = np.empty(n, np.float32)
        mean, spread = good.leave_one_out(names[kept].tolist())
        scores[kept] = (tops[kept] - mean) / spread
        if not kept.all():
            mean_of_all, spread_of_all = good.pooled()
            scores[~kept] = (tops[~kept] - mean_of_all) / spread_of_all
        return scores

    maps = settle(
        names,
        scored,
        lambda kept: Moments(means[kept], variances[kept]).spread((frames.shape[1], frames.shape[2])),
        false_reject_target=false_reject_target,
        doubted=doubted,
        keep_suspects=keep_suspects,
        cross_fitted=cross_fitted,
    )
    return Calibration(maps.good, maps.scores, maps.parts, maps.part_scores, maps.threshold, error_map)


def _crops(
    frames: NDArray[np.uint8], placement: Placement, light: Light | None
) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """(m, h, w, 3) from random places that show the pictures, in the usual light, and the index of each one's frame (m,)."""
    rng = np.random.default_rng(0)
    hw = (frames.shape[1], frames.shape[2])
    h, w = tile_hw(hw)
    left, top, content_w, content_h = placement.content
    out = []
    each = math.ceil(MIN_CROPS / len(frames))
    for frame in frames:
        seen = frame if light is None else light.usual(frame[None])[0]
        for _ in range(each):
            # Where the picture is smaller than a crop, the frame's border has to do.
            y = min(top + int(rng.integers(0, max(0, content_h - h) + 1)), hw[0] - h)
            x = min(left + int(rng.integers(0, max(0, content_w - w) + 1)), hw[1] - w)
            out.append(seen[y : y + h, x : x + w])
    return np.stack(out), np.repeat(np.arange(len(frames)), each)


def _looked_at(
    error_map: ErrorMap,
    look: Look,
    frames: NDArray[np.uint8],
    placement: Placement,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each frame's error map (n,): mean of the largest values, mean and variance of all that show the picture."""
    left, top, content_w, content_h = placement.content
    count = tile_top_pixels(placement)
    rows = []
    for i in range(len(frames)):  # one by one: a large frame's layers fill the memory as a batch of small ones does
        for x, found in look.at(frames[i : i + 1]):
            inside = error_map(x, found)[0, 0, top : top + content_h, left : left + content_w].flatten()
            largest = inside.topk(count).values.double().mean()
            rows.append([largest.item(), inside.double().mean().item(), inside.double().var(correction=0).item()])
        if on_progress is not None:
            on_progress(i + 1, len(frames))
    tops, means, variances = np.array(rows).T
    return tops, means, variances
