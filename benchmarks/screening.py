"""Are defective pictures among the good ones found, and good ones left alone? Prints a table; minutes for all sets.

    python -m benchmarks.screening --seeds 0,1,2,3

Started at the repository's root. The sets are those of `benchmarks/accuracy`. For each seed 5 % of the training pictures are replaced as
there, by defective ones from the test; then `flawline_train.screening` sees what it would see in a training.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.accuracy.changes import contaminated, some_good
from benchmarks.accuracy.floors import auroc
from benchmarks.accuracy.runs import ROOT
from benchmarks.accuracy.sets import SET_NAMES, DataSet, find_sets
from benchmarks.accuracy.tables import markdown
from cyclopts import App
from numpy.typing import NDArray

from flawline_inspect.errors import EXIT_DONE, FlawlineError
from flawline_inspect.frame import find_pictures
from flawline_train.pictures import load_good_pictures
from flawline_train.screening import screen

CONTAMINATION = 0.05
CLEAN_SHARE = 0.8
FEW = 20
DATA = Path(os.environ.get("FLAWLINE_TEST_DATA") or ROOT.parent / "shared" / "data")

app = App(name="python -m benchmarks.screening", help=__doc__, help_format="markdown")


@dataclass(frozen=True, slots=True)
class Screened:
    """One folder of pictures: `is_bad` and `is_suspect` (n,), their `scores` (n,), the number that stood out if too many did."""

    scores: NDArray[np.float64]
    is_bad: NDArray[np.bool_]
    is_suspect: NDArray[np.bool_]
    too_many: int
    seconds: float


def screened(folder: Path, good: set[str], size: int) -> Screened:
    """The pictures of a folder, of which only those named in `good` are."""
    pictures = load_good_pictures(folder, size=size, align="auto")
    began = time.monotonic()
    found = screen(pictures.frames, pictures.parts, pictures.placement.content)
    return Screened(
        found.scores,
        np.array([file.path.name not in good for file in pictures.files]),
        np.array([part in found.suspects for part in pictures.parts]),
        found.too_many,
        time.monotonic() - began,
    )


def row(data: DataSet, seeds: Sequence[int], size: int) -> list[str]:
    """A set's line: ranking and flags over its dirty copies, then wrong flags in clean subsets, of four in five and of 20."""
    good = {path.name for path in find_pictures(data.good)}
    dirty: list[Screened] = []
    wrong: dict[int, list[int]] = {round(CLEAN_SHARE * len(good)): [], FEW: []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            dirty.append(screened(contaminated(data, CONTAMINATION, seed, folder / "dirty").good, good, size))
            for count, flags in wrong.items():
                clean = screened(some_good(data, count, seed, folder / str(count)), good, size)
                flags.append(int(clean.is_suspect.sum()))
    caught = sum(int((one.is_bad & one.is_suspect).sum()) for one in dirty)
    flagged = sum(int(one.is_suspect.sum()) for one in dirty)
    bad = sum(int(one.is_bad.sum()) for one in dirty)
    aurocs = [auroc(one.scores, one.is_bad) for one in dirty]
    return [
        data.name,
        f"{len(good)}",
        f"{np.mean(aurocs):.3f} ({min(aurocs):.3f} to {max(aurocs):.3f})",
        f"{caught} of {bad}",
        f"{flagged - caught}",
        f"{sum(one.too_many > 0 for one in dirty)}",
        *(", ".join(map(str, flags)) for flags in wrong.values()),
        f"{max(one.seconds for one in dirty):.1f} s",
    ]


@app.default
def measure(*, sets: str = ",".join(SET_NAMES), seeds: str = "0,1,2,3", size: int = 128, data: Path = DATA) -> int:
    """Print the table.

    Parameters
    ----------
    sets
        Names of sets, separated by commas.
    seeds
        Of what is drawn, separated by commas.
    size
        Long side of the frame in pixels.
    data
        The folder that holds the sets.
    """
    chosen = [int(seed) for seed in seeds.split(",")]
    headings = [
        "set",
        "good pictures",
        "AUROC of the ranking",
        "defective ones found",
        "good ones suspected",
        "sets with too many",
        "suspects in four fifths, clean",
        f"suspects in {FEW}, clean",
        "longest",
    ]
    rows = []
    for one in find_sets(data, sets.split(",")):
        rows.append(row(one, chosen, size))
        print(f"{one.name}: measured", file=sys.stderr, flush=True)
    print(markdown(headings, rows))
    return EXIT_DONE


if __name__ == "__main__":
    try:
        sys.exit(app(result_action="return_value"))
    except FlawlineError as exc:
        print(f"screening: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
