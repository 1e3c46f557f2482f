"""Which pictures are refused before they are scored? Measured on real parts, good and defective, and on pictures damaged on purpose.

    python -m benchmarks.health

Started at the repository's root. Nothing is trained: the bounds follow from the good pictures alone. A good or defective part whose
picture is refused is a mistake, and so is one in a light that drifts by 15 %; a damaged picture should be refused.
Parts that are not found in the picture (alignment) count as refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from benchmarks.accuracy.changes import blurred, brightened, jpeg
from benchmarks.accuracy.runs import ROOT
from benchmarks.accuracy.sets import GOOD, SET_NAMES, DataSet, find_sets
from cyclopts import App
from numpy.typing import NDArray

from flawline_inspect.errors import HealthError
from flawline_inspect.frame import Placement, fit_picture, read_picture
from flawline_inspect.health import Health
from flawline_train.health import learn_health
from flawline_train.pictures import GoodPictures, load_good_pictures

U8 = NDArray[np.uint8]
DATA = Path(os.environ.get("FLAWLINE_TEST_DATA") or ROOT.parent / "shared" / "data")
FEW = (8, 20)
DRAWS = 20
"""How often that few pictures are drawn."""
_NOISE, _DARK_NOISE = 1.0, 3.0  # grey values: of a sensor, and of one at high gain
_REPEATS = 200

app = App(name="python -m benchmarks.health", help=__doc__, help_format="markdown")


def with_noise(picture: NDArray[np.floating], deviation: float = _NOISE) -> U8:
    """As a sensor would see it: noise that no blur takes away."""
    noise = np.random.default_rng(0).normal(0, deviation, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def torn(picture: U8, level: int) -> U8:
    """The lower half did not arrive."""
    out = picture.copy()
    out[len(out) // 2 :] = level
    return out


def empty(picture: U8) -> U8:
    """Only the background that the left and right edges show, and noise; for parts that lie before a plain one."""
    edges = [
        cv2.blur(edge.reshape(len(picture), 4, -1).astype(np.float32).mean(1), (1, 31))
        for edge in (picture[:, :4], picture[:, -4:])
    ]
    left, right = (edge.reshape(len(picture), 1, -1) for edge in edges)
    along = np.linspace(0, 1, picture.shape[1], dtype=np.float32)[None, :, None]
    return with_noise((left * (1 - along) + right * along).reshape(picture.shape), 2 * _NOISE)


PLAIN_BACKGROUND = frozenset({"toy_alien", "bottle_cap", "screw_512"})
HARMLESS: dict[str, Callable[[U8], U8]] = {
    "light -15 %": lambda picture: brightened(picture, 0.85),
    "light +15 %": lambda picture: brightened(picture, 1.15),
    "JPEG, quality 75": lambda picture: jpeg(picture, 75),
}
DAMAGES: dict[str, Callable[[U8], U8]] = {
    "defocus, sigma 2 % of the long side": lambda picture: with_noise(blurred(picture, 0.02 * 256).astype(np.float32)),
    "defocus, sigma 4 %": lambda picture: with_noise(blurred(picture, 0.04 * 256).astype(np.float32)),
    "black": np.zeros_like,
    "lens cap, with noise": lambda picture: with_noise(np.full(picture.shape, 4.0), _DARK_NOISE),
    "white": lambda picture: np.full_like(picture, 255),
    "overexposed, x 2": lambda picture: brightened(picture, 2.0),
    "underexposed, x 0.4": lambda picture: brightened(picture, 0.4),
    "lower half missing, black": lambda picture: torn(picture, 0),
    "lower half missing, grey": lambda picture: torn(picture, 128),
    "another shape, 3/4 of the width": lambda picture: picture[:, : picture.shape[1] * 3 // 4],
    "empty scene": empty,
}


def is_refused(health: Health, frame: U8, placement: Placement) -> bool:
    try:
        health.check(frame, placement)
    except HealthError:
        return True
    return False


@dataclass(frozen=True)
class Checked:
    """A set with its frame and what was learnt of its good pictures."""

    data: DataSet
    good: GoodPictures
    health: Health

    def refuses(self, picture: U8) -> bool:
        try:
            frame, placement = fit_picture(picture, self.good.spec)
        except HealthError:  # the part is not found
            return True
        return is_refused(self.health, frame, placement)

    def test(self, is_good: bool) -> list[U8]:
        """The test pictures, good or defective, all in memory: the sets are small."""
        return [
            np.asarray(read_picture(path), np.uint8) for path, kind in self.data.test() if (kind == GOOD) is is_good
        ]

    def by_few(self, n: int) -> Iterator[Health]:
        """What would be learnt from `n` pictures drawn at random."""
        rng = np.random.default_rng(0)
        for _ in range(DRAWS):
            chosen = np.sort(rng.choice(len(self.good.files), n, replace=False))
            some = replace(
                self.good,
                frames=self.good.frames[chosen],
                files=tuple(self.good.files[i] for i in chosen),
                groups=None,
            )
            yield learn_health(some).health


def _mistakes(checked: Checked, good: Sequence[U8], bad: Sequence[U8]) -> dict[str, str]:
    """Refused pictures that should not be, of how many."""
    rows = {
        "good": _count(map(checked.refuses, good)),
        "defective": _count(map(checked.refuses, bad)),
    }
    for name, change in HARMLESS.items():
        rows[f"good, {name}"] = _count(checked.refuses(change(picture)) for picture in good)
        rows[f"defective, {name}"] = _count(checked.refuses(change(picture)) for picture in bad)
    for n in FEW:
        healths = list(checked.by_few(n))
        for kind, pictures in (("good", good), ("defective", bad)):
            frames = [fit_picture(picture, checked.good.spec) for picture in pictures]
            rows[f"{kind}, learnt from {n} pictures, {DRAWS} times"] = _count(
                is_refused(health, *frame) for health in healths for frame in frames
            )
    return rows


def _count(refused: Iterator[bool]) -> str:
    results = list(refused)
    return f"{sum(results)} of {len(results)}"


def _table(title: str, columns: dict[str, dict[str, str]]) -> str:
    """Markdown: a column a set."""
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(rows.get(name, '') for rows in columns.values())} |" for name in names]
    return "\n".join(lines)


def _check_ms(checked: Checked) -> float:
    """Median of one check, in milliseconds, of a picture that passes all of it."""
    placement = checked.good.placement
    spent = []
    for i in range(_REPEATS):
        frame = checked.good.frames[i % len(checked.good.frames)]
        begin = time.perf_counter()
        checked.health.measure(frame, placement)
        spent.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(spent))


@app.default
def main(*, sets: str = ",".join(SET_NAMES), size: int = 128, data: Path = DATA) -> None:
    """Print two tables: mistakes, and damaged pictures that are caught.

    Parameters
    ----------
    sets
        Names of sets, separated by commas.
    size
        Long side of the frame in pixels.
    data
        The folder that holds the sets.
    """
    mistakes: dict[str, dict[str, str]] = {}
    caught: dict[str, dict[str, str]] = {}
    for found in find_sets(data, sets.split(",")):
        good_pictures = load_good_pictures(found.good, size=size, align="auto")
        checked = Checked(found, good_pictures, learn_health(good_pictures).health)
        good, bad = checked.test(True), checked.test(False)
        mistakes[found.name] = {**_mistakes(checked, good, bad), "one check, ms": f"{_check_ms(checked):.3f}"}
        caught[found.name] = {
            name: _count(checked.refuses(damage(picture)) for picture in good)
            for name, damage in DAMAGES.items()
            if damage is not empty or found.name in PLAIN_BACKGROUND
        }
    print(_table("refused by mistake", mistakes), _table("damaged and refused", caught), sep="\n\n")


if __name__ == "__main__":
    app()
