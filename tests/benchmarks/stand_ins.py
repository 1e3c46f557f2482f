"""A small data set, a product that trains in no time, and lines as if something had been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from benchmarks.accuracy.product import Recipe, UnavailableError
from benchmarks.accuracy.runs import Key, Machine, Measured, Run
from benchmarks.accuracy.sets import DataSet
from numpy.typing import NDArray

from flawline_inspect.frame import find_pictures

MACHINE = Machine("Abacus 9", 2, 1)


def write(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def small_set(folder: Path, *, good: int = 30, test_good: int = 6, bad: int = 8, seed: int = 0) -> DataSet:
    """Grey plates, 48 x 40; defective ones have a white corner, and a mask that says so."""
    rng = np.random.default_rng(seed)

    def plate() -> NDArray[np.uint8]:
        return (rng.integers(60, 90) + rng.integers(0, 6, (40, 48))).astype(np.uint8)

    for i in range(good):
        write(folder / "train" / "good" / f"{i:03d}.png", plate())
    for i in range(test_good):
        write(folder / "test" / "good" / f"{i:03d}.png", plate())
    for i in range(bad):
        kind = ("chip", "dent")[i % 2]
        picture, mask = plate(), np.zeros((40, 48), np.uint8)
        picture[2:10, 3:11], mask[2:10, 3:11] = 255, 255
        write(folder / "test" / kind / f"{i:03d}.png", picture)
        write(folder / "ground_truth" / kind / f"{i:03d}_mask.png", mask)
    return DataSet(folder.name, folder)


class StandIn:
    """A product whose AUROC is 0.9 and whose bundle says how many pictures it was made of."""

    def __init__(self, *, refuses: str = "") -> None:
        self.refuses = refuses
        self.trained: list[Recipe] = []
        self.evaluated: list[tuple[int, int, int]] = []
        """Training pictures of the bundle, good and defective test pictures."""

    def train(self, good: Path, bundle: Path, recipe: Recipe) -> float:
        if recipe.method == self.refuses:
            raise UnavailableError(f"no method {recipe.method}")
        self.trained.append(recipe)
        bundle.write_text(str(len(find_pictures(good))))
        return 12.0

    def evaluate(self, bundle: Path, dataset: Path) -> dict[str, Any]:
        kinds = [kind for _, kind in DataSet("", dataset).test()]
        n_good = kinds.count("good")
        self.evaluated.append((int(bundle.read_text()), n_good, len(kinds) - n_good))
        return figures(0.9)

    def describe(self, bundle: Path) -> dict[str, Any]:
        return {"steps": 7, "frame_wh": (64, 48), "parameters": 1000, "gflop": 0.5}


def figures(auroc: float, **more: Any) -> dict[str, Any]:
    """What `flawline eval --json` says, as far as tables read it."""
    return {
        "image_auroc": auroc,
        "image_auroc_interval": [auroc - 0.02, auroc + 0.01],
        "pixel_auroc": None,
        "aupro": None,
        "false_reject_rate": 0.125,
        "false_reject_interval": [0.05, 0.25],
        "escape_rate": 0.25,
        "promised_false_reject_rate": 0.1,
        "promise_kept": True,
        "n_good": 40,
        "n_bad": 20,
        **more,
    }


def run(
    experiment: str,
    set_: str,
    method: str = "filtering",
    *,
    auroc: float = 0.9,
    variant: str = "",
    seed: int = 0,
    budget: str = "2 min",
    size: int | None = None,
    code: str = "c0de",
    machine: Machine = MACHINE,
    **more: Any,
) -> Run:
    key = Key(experiment, set_, method, variant, seed, budget, size, code, machine)
    measured = Measured(figures(auroc, **more), 60.0, 100 + seed, (256, 256), 2_300_000, 1.5)
    return Run(key, measured, "abc1234567", "2026-11-20", 0.5, {"torch": "2"})
