"""The pictures of a training, read, screened and split into what is learnt from, what is held out and what is left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline_train.options import TrainOptions
from flawline_train.pictures import GoodPictures, load_good_pictures
from flawline_train.screening import Screening, screen, screening_reasons

__all__ = ["Material", "read_material"]


@dataclass(frozen=True, slots=True)
class Material:
    """`train`, `held_out` and `left_out` are indices of `pictures`, ascending. `reading_s`: seconds that reading one took.

    What is left out are the suspects that would have been learnt from. `doubted`: the parts' names of those that are held
    out. Both are empty where suspects are kept.
    """

    pictures: GoodPictures
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    left_out: NDArray[np.intp]
    doubted: frozenset[str]
    screening: Screening
    reading_s: float
    keep_suspects: bool = False

    def suspect_reasons(self) -> dict[str, str]:
        """By part, a sentence for each that looked unlike the others before anything was learnt."""
        return screening_reasons(
            self.screening,
            self.pictures.parts,
            held_out=set(self.held_out_parts),
            keep_suspects=self.keep_suspects,
        )

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
        kind=options.kind_to_find,
        group=options.group,
        frame=None if previous is None else previous.bundle.frame,
        on_progress=on_progress,
    )
    reading_s = (time.monotonic() - began) / len(pictures.files)
    if previous is not None:
        previous.check_pictures(pictures.placement.picture_wh, options.roi)
    known = None if previous is None else previous.roles
    train, held_out = pictures.split(np.random.default_rng(options.seed), known)
    # After the split and without a say in it: what is held out must stay a fair sample of what comes.
    screening = screen(pictures.frames, pictures.parts, pictures.placement.content)
    suspects = frozenset() if options.keep_suspects else frozenset(screening.suspects)
    is_suspect = np.array([part in suspects for part in pictures.parts])
    return Material(
        pictures,
        train[~is_suspect[train]],
        held_out,
        train[is_suspect[train]],
        frozenset(pictures.parts[i] for i in held_out[is_suspect[held_out]]),
        screening,
        reading_s,
        options.keep_suspects,
    )
