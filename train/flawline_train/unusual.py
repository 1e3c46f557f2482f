"""How unusual each picture is among others, without a network: three closed-form measures, each of which sees what the others miss.

- **whole**: what a linear autoencoder of the reduced colour picture leaves over. Large, faint damage of aligned parts.
- **detail**: the same at full resolution, of the grey picture without its shading and contrast, in units of how much
  good pictures leave over at the same place. Scratches and missing pieces of aligned parts, in any light.
- **texture**: how far 7 x 7 patches lie from the cloud of all patches (Mahalanobis distance), in such units too. Needs no fixed
  places: textures, and parts that could not be aligned.

Cross-fitted: pictures are judged by what was learnt without their part, and without any picture of their fold. Pictures of one part are
one vote: a burst of frames would else take principal components for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from flawline_inspect.frame import Roi
from flawline_train.autoencoders.linear import CELLS, LinearAutoencoder

__all__ = ["MEASURES", "Looks"]

MEASURES = ("whole", "detail", "texture")

SIDE = 128
"""Larger frames are reduced to this long side: seconds, not minutes."""
FOLDS = 5
LEAST_SHARE = 0.075
"""Of the parts, that have to make a principal component: the same dirt on one part in twenty would else be learnt as a way to be."""
EXTREME_SHARE = 0.1
"""Of the pictures, on either side, that do not count for what is usual at a place."""
MAX_LEARNT = 400
"""Parts that one fold's model learns from, spread evenly over the set: principal components cost the square of their number."""
TOP_SHARE = 0.003
"""A picture's measure is the mean over this share of its pixels."""

_LEAST_SIDE = 16
_LOCAL = 12.0
"""Sigma in pixels of the neighbourhood whose mean and contrast are made alike."""
_LEAST_CONTRAST = 0.01
"""Of full scale, two to three grey levels: the noise of a blank wall is not made into detail."""
_WHOLE_SIGMA, _DETAIL_SIGMA, _TEXTURE_SIGMA, _TEXTURE_AREA = 1.0, 1.5, 0.7, 2.0
_LEAST_DISTANCE = 0.1
"""Squared; that of good patches is as large as the number of their values."""
_PATCH = 7
_RIDGE = 1e-3
"""Of the mean eigenvalue, added to each: directions in which patches do not vary at all decide nothing."""
_FLOOR_SHARE = 0.1
"""Of the mean spread over all places, added to each: where good pictures agree to the last grey level, noise is no defect."""
_LEAST_SPREAD = 1e-3
"""Of either measure that is divided by a spread: both are about 1 where pictures vary."""
_NOISE = 1 / 255
"""A residual of less than a grey level is rounding."""
_NOTHING = 1e-3
_BATCH = 64

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Looks:
    """Pictures, prepared to be compared. `frames` (n, H, W, 3) BGR uint8, of which `content` (x, y, width, height) is looked at;
    `parts` names the part of each."""

    def __init__(self, frames: NDArray[np.uint8], parts: Sequence[str], content: Roi) -> None:
        left, top, width, height = content
        scale = min(1.0, SIDE / max(width, height))
        wh = (max(_LEAST_SIDE, round(width * scale)), max(_LEAST_SIDE, round(height * scale)))
        inside = frames[:, top : top + height, left : left + width]
        self._colour = np.stack([cv2.resize(picture, wh, interpolation=cv2.INTER_AREA) for picture in inside])
        grey = [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255 for picture in self._colour]
        self._detail = np.stack([_local_detail(picture) for picture in grey])
        self._even = np.stack([_even(picture) for picture in grey])
        numbers = {part: number for number, part in enumerate(dict.fromkeys(parts))}
        # Folds by chance and not by order: a drift over the time of taking the pictures is to be learnt, not judged.
        fold_of_part = np.random.default_rng(0).permutation(len(numbers)) % FOLDS
        self._fold = np.array([fold_of_part[numbers[part]] for part in parts])
        _, first = np.unique([numbers[part] for part in parts], return_index=True)
        self._is_first = np.isin(np.arange(len(parts)), first)

    def measure(self, learn_from: NDArray[np.bool_]) -> F64:
        """(n, len(MEASURES)), above 0: how unusual each picture is, in units of each measure's own. Cross-fitted; where
        `learn_from` (n,) is False nothing is learnt."""
        folds = []
        for fold in np.unique(self._fold):
            learnt = np.flatnonzero((self._fold != fold) & self._is_first & learn_from)
            if len(learnt) > MAX_LEARNT:
                learnt = learnt[np.linspace(0, len(learnt) - 1, MAX_LEARNT).round().astype(int)]
            folds.append(_Fold(np.flatnonzero(self._fold == fold), learnt))
        whole = _residuals(self._colour, folds, CELLS)
        detail = _residuals(self._detail[..., None], folds, max(self._detail.shape[1:]))
        distances = _patch_distances(self._even, folds)
        rough = _in_spreads(np.sqrt(_smooth(distances, _TEXTURE_SIGMA)), folds)
        # Over some patches either way: where a texture is smeared, patches lie closer to the usual one than good ones do.
        either = np.abs(_in_spreads(np.log(_smooth(distances, _TEXTURE_AREA) + _LEAST_DISTANCE), folds))
        columns = [
            _top(_smooth(whole**2, _WHOLE_SIGMA)) + _NOISE**2,
            _top(_in_spreads(_smooth(detail, _DETAIL_SIGMA), folds)),
            _top(np.maximum(rough, either)),
        ]
        return np.stack(columns, 1)


class _Fold(NamedTuple):
    """Indices of the pictures that are `judged` by what is `learnt` from others."""

    judged: NDArray[np.intp]
    learnt: NDArray[np.intp]


def _local_detail(grey: F32) -> F32:
    """Without shading, and with the same contrast everywhere."""
    detail = grey - cv2.GaussianBlur(grey, (0, 0), _LOCAL)
    contrast = cv2.GaussianBlur(detail * detail, (0, 0), _LOCAL)
    return np.asarray(detail / np.sqrt(contrast + _LEAST_CONTRAST**2), np.float32)


def _even(grey: F32) -> F32:
    """Half the size, mean 0, spread 1."""
    height, width = grey.shape
    half = cv2.resize(grey, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray((half - half.mean()) / (half.std() + _LEAST_CONTRAST), np.float32)


def _residuals(pictures: NDArray[np.generic], folds: Sequence[_Fold], cells: int) -> F32:
    """(n, H, W, C), if of integers in 0-255 -> (n, h, w): what a linear autoencoder leaves over, root mean square over C."""
    height, width, colours = pictures.shape[1:]

    def batches(indices: NDArray[np.intp]) -> Iterator[torch.Tensor]:
        for start in range(0, len(indices), _BATCH):
            batch = torch.from_numpy(pictures[indices[start : start + _BATCH]]).permute(0, 3, 1, 2)
            yield batch if batch.is_floating_point() else batch.float() / 255

    out: dict[int, F32] = {}
    for judged, learnt in folds:
        network = LinearAutoencoder((height, width), colours=colours, cells=cells)
        network.fit(batches(learnt), least_share=LEAST_SHARE)
        rows = torch.cat([(network.reduce(x) - network(x)).square().mean(1).sqrt() for x in batches(judged)])
        out |= zip(judged.tolist(), rows.numpy(), strict=True)
    return np.stack([out[i] for i in range(len(pictures))])


def _patch_distances(pictures: F32, folds: Sequence[_Fold]) -> F32:
    """(n, H, W) -> (n, h, w): each patch's squared Mahalanobis distance to those that were learnt from."""
    n_values = _PATCH * _PATCH
    moments = np.empty((len(pictures), n_values, n_values))
    means = np.empty((len(pictures), n_values))
    for i, picture in enumerate(pictures):
        patches = _patches(picture).reshape(-1, n_values)
        moments[i], means[i] = patches.T @ patches / len(patches), patches.mean(0)
    out: dict[int, F32] = {}
    for judged, learnt in folds:
        mean = means[learnt].mean(0)
        values, vectors = np.linalg.eigh(moments[learnt].mean(0) - np.outer(mean, mean))
        whitening = (vectors / np.sqrt(np.maximum(values, 0) + _RIDGE * max(values.mean(), _RIDGE))).astype(np.float32)
        for i in judged:
            out[int(i)] = (((_patches(pictures[i]) - mean.astype(np.float32)) @ whitening) ** 2).sum(
                -1, dtype=np.float32
            )
    return np.stack([out[i] for i in range(len(pictures))])


def _patches(picture: F32) -> F32:
    """(H, W) -> (h, w, values): one around every other pixel, the edge replicated."""
    edge = _PATCH // 2
    padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    every_other = sliding_window_view(padded, (_PATCH, _PATCH))[::2, ::2]
    return np.asarray(every_other.reshape(*every_other.shape[:2], -1), np.float32)


def _in_spreads(maps: F32, folds: Sequence[_Fold]) -> F32:
    """(n, h, w) in units of the spread that those learnt from, themselves cross-fitted, have at the same place, about their mean.

    The extremes of each place are left out of both: one damaged picture would else hide what lies there in all folds but its own.
    """
    out = np.empty_like(maps)
    for judged, learnt in folds:
        values = np.ascontiguousarray(maps[learnt].reshape(len(learnt), -1).T)  # (places, learnt)
        cut = min(math.ceil(EXTREME_SHARE * len(learnt)), (len(learnt) - 1) // 2)
        middle = np.partition(values, (cut, len(learnt) - cut - 1), 1)[:, cut : len(learnt) - cut]
        usual, spread = (each.reshape(maps.shape[1:]) for each in (middle.mean(1), middle.std(1)))
        out[judged] = (maps[judged] - usual) / (spread + _FLOOR_SHARE * spread.mean() + _LEAST_SPREAD)
    return out


def _smooth(maps: F32, sigma: float) -> F32:
    return np.stack([np.asarray(cv2.GaussianBlur(one, (0, 0), sigma), np.float32) for one in maps])


def _top(maps: F32) -> F64:
    """(n, h, w) -> (n,): the mean of the largest values, above 0."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, round(TOP_SHARE * flat.shape[1]))
    top = np.partition(flat, flat.shape[1] - count, 1)[:, -count:].mean(1, dtype=np.float64)
    return np.maximum(top, _NOTHING)
