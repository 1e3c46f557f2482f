"""The data sets, in the usual folder layout, and what is expected of `flawline` on each.

Pictures are read from a folder outside the repository: their licences keep them out of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline_inspect.errors import InputError
from flawline_inspect.frame import find_pictures

__all__ = ["BARS", "GOOD", "SET_NAMES", "Bar", "Bars", "DataSet", "find_sets"]

GOOD = "good"


@dataclass(frozen=True, slots=True)
class Bar:
    """An AUROC that must be reached, and one that is aimed at."""

    must: float
    goal: float

    def judge(self, auroc: float) -> str:
        """`goal`, `must`, or what is missing to it, rounded up: 0.9299 does not reach 0.93."""
        if auroc >= self.goal:
            return "goal"
        return "must" if auroc >= self.must else f"{math.ceil(1000 * (self.must - auroc) - 1e-9) / 1000:.3f} short"


@dataclass(frozen=True, slots=True)
class Bars:
    image: Bar
    pixel: Bar | None = None


BARS: dict[str, Bars] = {
    "toy_alien": Bars(Bar(0.98, 0.995)),
    "elpv_mono_s": Bars(Bar(0.93, 0.95)),
    "bottle_cap": Bars(Bar(0.90, 0.97)),
    "screw_512": Bars(Bar(0.95, 0.985), pixel=Bar(0.97, 0.99)),
    "magnetic_tile_s": Bars(Bar(0.75, 0.90)),
}
SET_NAMES = tuple(BARS)


@dataclass(frozen=True, slots=True)
class DataSet:
    """`train/good`, `test/good`, `test/DEFECT` and perhaps `ground_truth/DEFECT/STEM_mask.png` below `folder`."""

    name: str
    folder: Path

    @property
    def good(self) -> Path:
        """The folder of good pictures to learn from."""
        return self.folder / "train" / GOOD

    def test(self) -> list[tuple[Path, str]]:
        """Each test picture with its kind: `good`, or the defect."""
        kinds = sorted(folder.name for folder in (self.folder / "test").iterdir() if folder.is_dir())
        return [(path, kind) for kind in kinds for path in find_pictures(self.folder / "test" / kind)]

    def mask_of(self, picture: Path, kind: str) -> Path | None:
        """The mask of a test picture, where there is one."""
        mask = self.folder / "ground_truth" / kind / f"{picture.stem}_mask.png"
        return mask if mask.is_file() else None


def find_sets(root: Path, names: Sequence[str]) -> list[DataSet]:
    """The sets `names` below `root`. Raises `InputError` naming the first that is not there."""
    for name in names:
        for part in ("train/good", "test/good"):
            if not (root / name / part).is_dir():
                raise InputError(
                    f"{root / name}: has no folder {part}; give the folder that holds the sets with --data, or choose with --sets"
                )
    return [DataSet(name, root / name) for name in names]
