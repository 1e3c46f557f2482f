"""Parts of the simulated line as files, in the layout that data sets of good and defective parts have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2

from flawline_edge.simulation.defects import DEFECT_KINDS
from flawline_edge.simulation.line import SimulatedLine, check_whole
from flawline_edge.simulation.raster import U8

__all__ = ["write_dataset"]


def write_dataset(
    folder: Path,
    *,
    seed: int = 0,
    n_train: int = 200,
    n_test_good: int = 100,
    n_test_per_defect: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write parts of one line as PNG in the usual layout; no part is in two places.

    `train/good`, `test/good` and `test/KIND` hold `000.png` and on, `ground_truth/KIND` the masks
    `000_mask.png`. `progress` is called with the number of pictures written and that of all. FileExistsError
    when the folder is there and not empty.
    """
    folder = Path(folder)
    check_whole("n_train", n_train)
    check_whole("n_test_good", n_test_good)
    check_whole("n_test_per_defect", n_test_per_defect)
    line = SimulatedLine(seed=seed)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; expected a new or empty one, so that nothing is lost")
    sections: list[tuple[str, str | None, int]]
    sections = [("train", None, n_train), ("test", None, n_test_good)]
    sections += [("test", kind, n_test_per_defect) for kind in DEFECT_KINDS]
    total = sum(count for _, _, count in sections)
    indices = itertools.count()
    for split, defect, count in sections:
        pictures, masks = folder / split / (defect or "good"), folder / "ground_truth" / (defect or "")
        for needed in (pictures,) if defect is None else (pictures, masks):
            needed.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            part = line.part(next(indices), defect)
            _write_png(pictures / f"{number:03d}.png", part.picture)
            if part.is_defective:
                _write_png(masks / f"{number:03d}_mask.png", part.mask)
            if progress is not None:
                progress(part.index + 1, total)


def _write_png(path: Path, picture: U8) -> None:
    done, encoded = cv2.imencode(".png", picture)
    assert done
    # imwrite would lose non-ASCII paths on some systems, and hide a full disk
    path.write_bytes(encoded.tobytes())
