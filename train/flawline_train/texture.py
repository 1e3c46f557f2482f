"""Calibration of textures, which have no places: one mean and one spread for all pixels, and no map is kept.

What the error map is made of and how it is weighed is found on crops of the size that was trained on, so that it costs the same
however large the frame. Then each held-out frame is looked at once, whole. Its score is that of its worst tile: as many of the
largest values count as would of one crop, so that a defect of a thousandth of the frame is not diluted by the rest.

Only the edge is a place of its own: what is cut off there is guessed by mirroring or left empty, and no thread goes on so. Its band
has its own mean and spread, or good cloth would be worst where the picture ends.

Standardising all pixels alike keeps their order, so that the score of a picture without its own part in mean and spread follows from
its largest values within and at the edge, and mean and variance of either. Memory is that of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawline_inspect.calibration import GoodSpread, Moments
from flawline_inspect.frame import Placement
from flawline_train.calibrate import Calibration, Look, mixture, settle, without
from flawline_train.graph import CELL, ErrorMap, cells_of, tile_top_cells
from flawline_train.kind import tile_hw
from flawline_train.light import Light

__all__ = ["calibrate_texture"]

EDGE = 16
"""Pixels, as far as patches of five by five at a quarter of the size reach, with the smoothing; at most a quarter of the short side."""
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
    """As `flawline_train.calibrate.calibrate`, for a network that takes pictures of any size. `good` is the same for all pixels of
    the edge and for all others; scores are means of the `tile_top_cells` largest values."""
    n = len(frames)
    names = np.array([str(i) for i in range(n)] if parts is None else list(parts))
    device = next(network.parameters()).device
    crops, crop_of = _crops(frames, placement, light)
    crop_h, crop_w = crops.shape[1:3]
    edge = min(EDGE, min(crop_h, crop_w) // 4)
    error_map, _ = mixture(
        Look(network, None, device, places=False),
        crops,
        (edge, edge, crop_w - 2 * edge, crop_h - 2 * edge),
        tile_top_cells(placement),
        names[crop_of].tolist(),
        without(names, doubted)[crop_of],
    )
    seen = _looked_at(error_map, Look(network, light, device, places=False), frames, placement, on_progress)

    def scored(kept: NDArray[np.bool_]) -> NDArray[np.float32]:
        values = []
        for region in seen:
            good = Moments(region.means[kept], region.variances[kept])
            mean, spread = (np.full(n, value) for value in good.pooled())
            mean[kept], spread[kept] = good.leave_one_out(names[kept].tolist())
            values.append((region.largest - mean[:, None]) / spread[:, None])
        count = tile_top_cells(placement)
        return np.sort(np.concatenate(values, 1), 1)[:, -count:].mean(1).astype(np.float32)

    def fitted(kept: NDArray[np.bool_]) -> GoodSpread:
        hw = (frames.shape[1] // CELL, frames.shape[2] // CELL)
        inner, edge = (Moments(region.means[kept], region.variances[kept]).spread(hw) for region in seen)
        is_inner = np.zeros(hw, np.bool_)
        is_inner[_inner(placement)] = True
        return GoodSpread(np.where(is_inner, inner.mean, edge.mean), np.where(is_inner, inner.spread, edge.spread))

    maps = settle(
        names,
        scored,
        fitted,
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


class _Region(NamedTuple):
    """Of n error maps, all places within or all places at the edge: the `largest` values (n, k), as many as may count, mean and
    variance of all (n,)."""

    largest: NDArray[np.float64]
    means: NDArray[np.float64]
    variances: NDArray[np.float64]


def _inner(placement: Placement) -> tuple[slice, slice]:
    """The cells that show the picture, without its edge."""
    left, top, w, h = cells_of(placement.content)
    edge = min(EDGE // CELL, min(w, h) // 4)
    return np.s_[top + edge : top + h - edge, left + edge : left + w - edge]


def _looked_at(
    error_map: ErrorMap,
    look: Look,
    frames: NDArray[np.uint8],
    placement: Placement,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[_Region, _Region]:
    """All within, all at the edge."""
    left, top, w, h = cells_of(placement.content)
    count = tile_top_cells(placement)
    hw = (frames.shape[1] // CELL, frames.shape[2] // CELL)
    is_inner = torch.zeros(hw, dtype=torch.bool, device=look.device)
    is_edge = is_inner.clone()
    is_inner[_inner(placement)] = True
    is_edge[top : top + h, left : left + w] = True
    is_edge &= ~is_inner
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    moments: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for i in range(len(frames)):  # one by one: a large frame's layers fill the memory as a batch of small ones does
        for x, found in look.at(frames[i : i + 1]):
            errors = error_map(x, found)[0, 0]
            for k, mask in enumerate((is_inner, is_edge)):
                values = errors[mask].double()
                rows[k].append(values.topk(min(count, len(values))).values.cpu())
                moments[k].append((values.mean().item(), values.var(correction=0).item()))
        if on_progress is not None:
            on_progress(i + 1, len(frames))
    inner, edge = (_Region(torch.stack(rows[k]).numpy(), *np.array(moments[k], np.float64).T) for k in range(len(rows)))
    return inner, edge
