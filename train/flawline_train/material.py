"""The pictures of a training, read and split into what is learnt from and what is held out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline_train.options import TrainOptions
from flawline_train.pictures import GoodPictures, load_good_pictures

__all__ = ["Material", "read_material"]


@dataclass(frozen=True, slots=True)
class Material:
    """`train` and `held_out` are indices of `pictures`, ascending. `reading_s`: seconds that reading one took."""

    pictures: GoodPictures
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    reading_s: float

    @property
    def train_frames(self) -> NDArray[np.uint8]:
        return self.pictures.frames[self.train]

    @property
    def held_out_frames(self) -> NDArray[np.uint8]:
        return self.pictures.frames[self.held_out]

    @property
    def held_out_parts(self) -> list[str]:
        """The part's name for each held-out picture."""
        return [self.pictures.parts[i] for i in self.held_out]

    def paths_by_score(self, scores: NDArray[np.float32]) -> list[Path]:
        """Held-out pictures, the lowest of their `scores` first, then those that were learnt from."""
        order = [*(int(self.held_out[i]) for i in np.argsort(scores)), *map(int, self.train)]
        return [self.pictures.files[i].path for i in order]


def read_material(options: TrainOptions, on_progress: Callable[[int, int], None]) -> Material:
    """Raises `InputError` for pictures that cannot be trained on, or not further from an earlier model."""
    previous = options.previous
    began = time.monotonic()
    pictures = load_good_pictures(
        options.good,
        size=options.size,
        roi=options.roi,
        align=options.align,
        group=options.group,
        frame=None if previous is None else previous.bundle.frame,
        on_progress=on_progress,
    )
    reading_s = (time.monotonic() - began) / len(pictures.files)
    if previous is not None:
        previous.check_pictures(pictures.placement.picture_wh, options.roi)
    known = None if previous is None else previous.roles
    train, held_out = pictures.split(np.random.default_rng(options.seed), known)
    return Material(pictures, train, held_out, reading_s)
