"""What goes wrong between the training and the line: changed pictures, fewer of them, and wrong ones among the good.

A change of the light, the lens or the link is made to the test pictures as the camera gave them, 8-bit, (h, w) or (h, w, 3),
before anything of `flawline` sees them; where the part moves its mask moves along.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from benchmarks.accuracy.sets import GOOD, DataSet
from numpy.typing import NDArray

from flawline_inspect.errors import InputError
from flawline_inspect.frame import find_pictures, read_picture

__all__ = [
    "CHANGES",
    "Change",
    "blurred",
    "brightened",
    "changed_copy",
    "contaminated",
    "jpeg",
    "lit_from_a_side",
    "shifted",
    "some_good",
]

U8 = NDArray[np.uint8]
REFERENCE_SIDE = 256
"""Pixels of the long side that a blur's sigma is given for."""


def brightened(picture: U8, gain: float) -> U8:
    """Every grey value times `gain`, saturated."""
    return _saturated(picture * np.float32(gain))


def lit_from_a_side(picture: U8, amplitude: float) -> U8:
    """Gain that rises linearly from 1 - `amplitude` at the left edge to 1 + `amplitude` at the right one."""
    gain = np.linspace(1 - amplitude, 1 + amplitude, picture.shape[1], dtype=np.float32)
    return _saturated(picture * (gain if picture.ndim == 2 else gain[:, None]))


def blurred(picture: U8, sigma: float) -> U8:
    """Out of focus: a Gaussian of `sigma` pixels, were the picture's long side 256."""
    sigma *= max(picture.shape[:2]) / REFERENCE_SIDE
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)


def jpeg(picture: U8, quality: int) -> U8:
    """Once through a JPEG."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes every 8-bit picture"
    flag = cv2.IMREAD_GRAYSCALE if picture.ndim == 2 else cv2.IMREAD_COLOR
    return np.asarray(cv2.imdecode(data, flag), np.uint8)


def shifted(picture: U8, share: float, border: int = cv2.BORDER_REPLICATE) -> U8:
    """Moved right and down by `share` of its width and height, in whole pixels."""
    height, width = picture.shape[:2]
    dx, dy = round(share * width), round(share * height)
    return np.asarray(cv2.copyMakeBorder(picture, dy, 0, dx, 0, border)[:height, :width], np.uint8)


def _kept(mask: U8) -> U8:
    return mask


@dataclass(frozen=True, slots=True)
class Change:
    picture: Callable[[U8], U8]
    mask: Callable[[U8], U8] = _kept


CHANGES: dict[str, Change] = {
    "brightness +15 %": Change(lambda picture: brightened(picture, 1.15)),
    "brightness -15 %": Change(lambda picture: brightened(picture, 0.85)),
    "light from a side, ±15 %": Change(lambda picture: lit_from_a_side(picture, 0.15)),
    "blur, sigma 1 px at 256 px": Change(lambda picture: blurred(picture, 1.0)),
    "JPEG, quality 50": Change(lambda picture: jpeg(picture, 50)),
    "shift by 2 %": Change(
        lambda picture: shifted(picture, 0.02), lambda mask: shifted(mask, 0.02, cv2.BORDER_CONSTANT)
    ),
}


def changed_copy(data: DataSet, change: Change, to: Path) -> DataSet:
    """A copy of the set's test pictures and masks below `to`, changed. Raises `InputError` for a picture that is not 8-bit."""
    for path, kind in data.test():
        _write(to / "test" / kind / f"{path.stem}.png", change.picture(_read(path)))
        mask = data.mask_of(path, kind)
        if mask is not None:
            _write(to / "ground_truth" / kind / mask.name, change.mask(_read(mask)))
    return DataSet(data.name, to)


def some_good(data: DataSet, count: int, seed: int, to: Path) -> Path:
    """`count` of the set's good training pictures, drawn at random, copied into the folder `to`."""
    paths = find_pictures(data.good)
    if count > len(paths):
        raise InputError(f"{data.name}: has {len(paths)} good training pictures, {count} were asked for")
    to.mkdir(parents=True)
    for i in np.random.default_rng(seed).choice(len(paths), count, replace=False):
        shutil.copy(paths[i], to / paths[i].name)
    return to


def contaminated(data: DataSet, share: float, seed: int, to: Path) -> DataSet:
    """A copy of the set below `to` whose good training pictures are defective to `share`; those left the test.

    A defective picture is filed behind a good one drawn at random, so that their order tells nothing.
    """
    rng = np.random.default_rng(seed)
    shutil.copytree(data.folder / "train", to / "train")
    shutil.copytree(data.folder / "test", to / "test")
    if (data.folder / "ground_truth").is_dir():
        shutil.copytree(data.folder / "ground_truth", to / "ground_truth")
    copy = DataSet(data.name, to)
    good = find_pictures(copy.good)
    bad = [(path, kind) for path, kind in copy.test() if kind != GOOD]
    count = max(1, round(share / (1 - share) * len(good)))
    if count >= len(bad):
        raise InputError(f"{data.name}: has {len(bad)} defective test pictures, {count} would have to leave the test")
    for i, j in zip(
        rng.choice(len(bad), count, replace=False), rng.choice(len(good), count, replace=False), strict=True
    ):
        path, kind = bad[i]
        mask = copy.mask_of(path, kind)
        path.rename(copy.good / f"{good[j].stem}+{kind}-{path.name}")
        if mask is not None:
            mask.unlink()
    return copy


def _saturated(values: NDArray[np.float32]) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _read(path: Path) -> U8:
    picture = read_picture(path)
    if picture.dtype != np.uint8 or (picture.ndim == 3 and picture.shape[2] == 4):
        raise InputError(
            f"{path}: {picture.dtype} of shape {picture.shape}; changes are made to 8-bit grey or colour pictures without alpha"
        )
    return np.asarray(picture, np.uint8)


def _write(path: Path, picture: U8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture):
        raise InputError(f"{path}: cannot be written; is the disk full?")
