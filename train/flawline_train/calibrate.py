"""From held-out good pictures to the error map's weights, the good parts' spread and the threshold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawline_inspect.calibration import MIN_CALIBRATION_PICTURES, GoodSpread, fit_spread, leave_one_out
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import Reconstruction
from flawline_train.graph import CELL, ERROR_CHANNELS, Box, ErrorMap, cells_of, reconstruct, top_cells
from flawline_train.light import Light
from flawline_train.threshold import Threshold, threshold_from_scores
from flawline_train.weighing import damaged_copies, step_of, weigh

__all__ = ["Calibration", "Look", "MapCalibration", "calibrate", "calibrate_maps", "mixture", "settle", "without"]

_BATCH = 16

FLOOR_SHARE = 0.1
"""Of an error's mean over good pictures, added before its root divides: a picture rebuilt perfectly is not divided by 0."""
SMALLEST_FLOOR = 1e-6
"""Also where all of them are: below the rounding of float32 there is nothing to compare."""
MOST_LEARNT = 500
"""Pictures that were learnt from, evenly over all of them, whose error maps help to tell what is usual: more take time for nothing."""
SMALLEST_SPREAD = 1e-3
"""Of an error, relative to the root of its mean: of five real sets the smallest is 0.025. A network that has learnt nothing yet gives
back what it gets, and the spread of its error is that of rounding, which is another one on every engine."""


@dataclass(frozen=True, slots=True)
class MapCalibration:
    """`scores` (n,) are those of the n pictures, each by maps without its part; `good` are the maps for the graph, over all n but
    skipped suspects, and over what was learnt from. `parts` are the held-out parts in the order of their pictures, `part_scores`
    their largest scores, from which `threshold` follows."""

    good: GoodSpread
    scores: NDArray[np.float32]
    parts: tuple[str, ...]
    part_scores: NDArray[np.float32]
    threshold: Threshold


@dataclass(frozen=True, slots=True)
class Calibration(MapCalibration):
    """With the error map, weighted."""

    error_map: ErrorMap


@dataclass(frozen=True, slots=True)
class Look:
    """Looks at frames as the graph does."""

    network: nn.Module
    light: Light | None
    device: torch.device
    places: bool = True
    """False for textures; see `flawline_train.texture`."""

    def at(self, frames: NDArray[np.uint8]) -> Iterator[tuple[Tensor, Reconstruction]]:
        """Batches of `frames` (n, H, W, 3) as the network sees them, (B, 3, H, W), and what it makes of them."""
        for start in range(0, len(frames), _BATCH):
            x = torch.from_numpy(frames[start : start + _BATCH]).to(self.device).float().permute(0, 3, 1, 2) / 255
            seen = x if self.light is None else self.light(x)[0]
            yield seen, reconstruct(self.network, seen, places=self.places)


def mixture(
    look: Look,
    frames: NDArray[np.uint8],
    content: Box,
    top: int,
    names: Sequence[str],
    trusted: NDArray[np.bool_],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ErrorMap, NDArray[np.float32]]:
    """The error map, weighted by the `trusted` (n,) of good `frames` (n, H, W, 3), and theirs, (n, H / 2, W / 2).

    `content`: the pixels that show pictures, `top`: how many of its cells are scored, `names`: each frame's part.
    """
    hw = (frames.shape[1], frames.shape[2])
    inside = _within(cells_of(content))
    candidates = ErrorMap(hw, _channels(look, frames)).to(look.device)
    if "patches" in candidates.names:
        candidates.patches.fit(candidates.ratio(x, found) for x, found in look.at(frames[trusted]))
    good = _smoothed(candidates, look, frames, on_progress=on_progress)
    floors = np.maximum(FLOOR_SHARE * good.means[trusted].mean(0), SMALLEST_FLOOR)
    candidates.floors.copy_(torch.from_numpy(floors))
    errors = good.relative(candidates)  # (n, C, H / 2, W / 2)
    # Each error in units of its own typical spread over good parts: a mixture of equal weights is rarely the best single
    # error and never the worst, so the weighing starts from it.
    spreads = (
        errors[inside][trusted].std(0, ddof=1).mean((1, 2)) if look.places else errors[inside][trusted].std((0, 2, 3))
    )
    units = 1 / np.maximum(spreads, SMALLEST_SPREAD)  # (C,)
    weights = units
    if getattr(look.network, "error_channels", None) is None:
        step = step_of(hw)
        coarser = _within(cells_of(content), step)
        copies = damaged_copies(frames[trusted], content)
        damaged = _smoothed(candidates, look, copies, coarser).relative(candidates)
        in_units = units.astype(np.float32)[:, None, None]
        weights = units * np.array(
            weigh(
                candidates.names,
                errors[coarser][trusted] * in_units,
                damaged * in_units,
                top,
                [name for name, is_trusted in zip(names, trusted, strict=True) if is_trusted],
                step=step,
                places=look.places,
            )
        )
    # What weighs nothing is not formed on the line either.
    used = np.flatnonzero(weights)
    error_map = ErrorMap(hw, tuple(candidates.names[i] for i in used)).to(look.device)
    error_map.weights.copy_(torch.from_numpy(weights[used]))
    error_map.floors.copy_(torch.from_numpy(floors[used]))
    error_map.patches.load_state_dict(candidates.patches.state_dict())
    return error_map, np.einsum("nchw,c->nhw", errors, weights).astype(np.float32)


@torch.inference_mode()
def calibrate(
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
    learnt: NDArray[np.uint8] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibrate with held-out good `frames` (n, H, W, 3). Deterministic; in float32 whatever training used.

    `learnt` (m, H, W, 3): what the network has learnt from. Up to `MOST_LEARNT` of these tell where an error is usual, too, and how
    much it varies there: their errors are smaller than those of new parts, but at the same places, and there are three times as
    many. No weight and no score is taken from them.

    `parts`: the part's name for each of the n frames, every one another part where None. `doubted`: parts that may not be good;
    they shape neither weights nor spread, and are suspects of the threshold. `keep_suspects` and
    `cross_fitted`, scores of further parts by networks that did not learn from them, as in `threshold_from_scores`. A training
    picture's score by *this* network is none of those: what was learnt from scores lower, by an amount that only
    training again without it can tell. `light`: brings the frames to the light that the network was trained in.
    """
    device = next(network.parameters()).device
    names = [str(i) for i in range(len(frames))] if parts is None else list(parts)
    look = Look(network, light, device)
    trusted = without(np.array(names), doubted)
    shown = frames[:0] if learnt is None else learnt
    shown = shown[np.linspace(0, len(shown) - 1, min(len(shown), MOST_LEARNT)).astype(np.intp)]

    def told(done: int) -> None:
        if on_progress is not None:
            on_progress(done, len(frames) + len(shown))

    error_map, combined = mixture(
        look,
        frames,
        placement.content,
        top_cells(placement),
        names,
        trusted,
        on_progress=lambda done, _: told(done),
    )
    seen = [np.empty((0, *combined.shape[1:]), np.float32)]
    for x, found in look.at(shown):
        seen.append(error_map(x, found)[:, 0].cpu().numpy())
        told(len(frames) + sum(map(len, seen)))
    maps = calibrate_maps(
        combined,
        placement,
        learnt=np.concatenate(seen),
        false_reject_target=false_reject_target,
        parts=parts,
        doubted=doubted,
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
    doubted: Collection[str] = (),
    keep_suspects: bool = False,
    cross_fitted: NDArray[np.floating] | None = None,
    learnt: NDArray[np.float32] | None = None,
    cell: int = CELL,
) -> MapCalibration:
    """Calibrate with the raw error maps (n, h, w) of held-out good pictures, whoever made them, whose values are those of cells of
    `cell` pixels a side. `learnt` (m, h, w): those of pictures of other parts, which count for mean and spread and have no score.
    Other arguments as in `calibrate`."""
    inside, top = _within(cells_of(placement.content, cell)), top_cells(placement, cell)
    names = np.array([str(i) for i in range(len(errors))] if parts is None else list(parts))

    def judged(heatmaps: NDArray[np.float32]) -> NDArray[np.float32]:
        values = heatmaps[inside].reshape(len(heatmaps), -1)
        return np.sort(values, 1)[:, -top:].mean(1, dtype=np.float32)

    def scored(kept: NDArray[np.bool_]) -> NDArray[np.float32]:
        scores = np.empty(len(errors), np.float32)
        scores[kept] = judged(leave_one_out(errors[kept], names[kept].tolist(), learnt))
        if not kept.all():
            scores[~kept] = judged(fitted(kept).standardise(errors[~kept]))
        return scores

    def fitted(kept: NDArray[np.bool_]) -> GoodSpread:
        return fit_spread(errors[kept] if learnt is None else np.concatenate([errors[kept], learnt]))

    return settle(
        names,
        scored,
        fitted,
        false_reject_target=false_reject_target,
        doubted=doubted,
        keep_suspects=keep_suspects,
        cross_fitted=cross_fitted,
    )


def settle(
    names: NDArray[np.str_],
    scored: Callable[[NDArray[np.bool_]], NDArray[np.float32]],
    fitted: Callable[[NDArray[np.bool_]], GoodSpread],
    *,
    false_reject_target: float,
    doubted: Collection[str],
    keep_suspects: bool,
    cross_fitted: NDArray[np.floating] | None,
) -> MapCalibration:
    """The threshold, and who of the n pictures shapes the maps: neither `doubted` parts nor suspects that the threshold skips.

    `names` (n,): each picture's part. `scored` and `fitted` make scores (n,) and maps out of those of the pictures that are kept,
    (n,) boolean. The others as in `calibrate`.
    """
    distinct = list(dict.fromkeys(names.tolist()))

    def cut() -> tuple[NDArray[np.float32], Threshold]:
        by_part = np.array([scores[names == part].max() for part in distinct], np.float32)
        found = threshold_from_scores(
            by_part,
            false_reject_target,
            doubted=[i for i, part in enumerate(distinct) if part in doubted],
            keep_suspects=keep_suspects,
            cross_fitted=cross_fitted,
        )
        return by_part, found

    kept = without(names, doubted)
    scores = scored(kept)
    part_scores, threshold = cut()
    without_skipped = without(names, {*doubted, *(distinct[i] for i in threshold.skipped)})
    if not np.array_equal(without_skipped, kept):
        # What is skipped must not hide defects by its spread either: one odd arm makes every missing arm usual.
        kept = without_skipped
        scores = scored(kept)
        part_scores, threshold = cut()
    return MapCalibration(fitted(kept), scores, tuple(distinct), part_scores, threshold)


def _within(box: Box, step: int = 1) -> tuple[EllipsisType | slice, ...]:
    """The index of maps (..., h, w) for every `step`th place of a box."""
    x, y, w, h = box
    return np.s_[..., y : y + h : step, x : x + w : step]


def without(names: NDArray[np.str_], parts: Collection[str]) -> NDArray[np.bool_]:
    """Which of the pictures show none of these parts; all of them where too few would be left."""
    left = ~np.isin(names, list(parts))
    return left if len(set(names[left])) >= MIN_CALIBRATION_PICTURES else np.ones(len(names), np.bool_)


@dataclass(frozen=True, slots=True)
class _Errors:
    """`maps` (n, C, h, w), or what was kept of them, are smoothed and not yet divided; `means` (n, C) are those of the whole
    errors before the smoothing."""

    maps: NDArray[np.float32]
    means: NDArray[np.float32]

    def relative(self, error_map: ErrorMap) -> NDArray[np.float32]:
        """The maps, each divided as `error_map` divides it: smoothing and dividing may be swapped."""
        divisors = np.sqrt(self.means + error_map.floors.cpu().numpy())
        return np.asarray(self.maps / divisors[:, :, None, None], np.float32)


def _channels(look: Look, frames: NDArray[np.uint8]) -> tuple[str, ...]:
    """The errors that the method asks for, else all that its reconstruction allows."""
    preferred: tuple[str, ...] | None = getattr(look.network, "error_channels", None)
    if preferred is not None:
        return preferred
    _, found = next(look.at(frames[:1]))
    return tuple(name for name in ERROR_CHANNELS if name != "coarse" or found.coarse is not None)


def _smoothed(
    error_map: ErrorMap,
    look: Look,
    frames: NDArray[np.uint8],
    keep: tuple[EllipsisType | slice, ...] = (...,),
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> _Errors:
    """The errors of `frames` (n, H, W, 3); of the maps only the index `keep`, since hundreds of whole ones fill the memory."""
    maps, means, done = [], [], 0
    for x, found in look.at(frames):
        channels = error_map.channels(x, found)  # (B, C, H / 2, W / 2)
        n, count, height, width = channels.shape
        means.append(channels.mean((2, 3)).cpu())
        flat = error_map.smooth(channels.reshape(n * count, 1, height, width))
        maps.append(flat.reshape(n, count, height, width)[keep].contiguous().cpu())
        done += n
        if on_progress is not None:
            on_progress(done, len(frames))
    return _Errors(torch.cat(maps).numpy(), torch.cat(means).numpy())
