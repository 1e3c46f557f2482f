"""Pictures of known defects: what escapes at the threshold, and which threshold costs least.

They report and, only where the engineer asks for it, price the errors. They are never learnt from: a model that has seen
the known defects says nothing about the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.errors import HealthError, InputError, PictureError
from flawline_inspect.frame import FrameSpec, find_pictures, fit_picture, read_picture
from flawline_inspect.health import Health
from flawline_train.binomial import interval
from flawline_train.threshold import ExponentialTail

__all__ = ["CostModel", "DefectScores", "cheapest_threshold", "find_defects", "score_defects"]

DEFAULT_DEFECT_RATE = 0.01
_BELOW = 1e-3
"""The cheapest threshold lies this share below a defect's score: engines differ by less."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a rejected good part and an escaped defective one cost, in any one unit, and the share of defective parts."""

    false_reject: float
    escape: float
    defect_rate: float = DEFAULT_DEFECT_RATE

    def __post_init__(self) -> None:
        for option, value in (("--cost-false-reject", self.false_reject), ("--cost-escape", self.escape)):
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"{option} is {value}, expected a number above 0")
        if not 0 < self.defect_rate < 1:
            raise InputError(f"--defect-rate is {self.defect_rate}, expected a share between 0 and 1, such as 0.01")

    def per_part(self, false_reject_rate: float, escape_rate: float) -> float:
        """Expected cost of one part off the line."""
        good = self.false_reject * (1 - self.defect_rate) * false_reject_rate
        return good + self.escape * self.defect_rate * escape_rate


@dataclass(frozen=True, slots=True)
class DefectScores:
    """`kinds` and `scores` (n,) of the pictures that could be read; `skipped` names the others."""

    kinds: tuple[str, ...]
    scores: NDArray[np.float64]
    skipped: tuple[str, ...] = ()

    def escapes(self, threshold: float) -> dict[str, tuple[int, int]]:
        """Kind → (defective parts that would pass, all of that kind), sorted by kind."""
        passed = self.scores <= threshold
        return {
            kind: (sum(bool(p) for p, k in zip(passed, self.kinds, strict=True) if k == kind), self.kinds.count(kind))
            for kind in sorted(set(self.kinds))
        }

    def section(self, threshold: float) -> list[dict[str, object]]:
        """`DefectEntry` each, as the manifest holds them."""
        entries: list[dict[str, object]] = []
        for kind, (escaped, n) in self.escapes(threshold).items():
            entries.append({"kind": kind, "n": n, "escaped": escaped, "escape_interval": interval(escaped, n)})
        return entries


def find_defects(folder: Path, good: Path) -> list[tuple[Path, str]]:
    """Pictures of defects below `folder`, each with its kind: the sub-folder it lies in, or the folder's own name.

    Raises `InputError` when there is none, or when a folder lies within the other: defects would be learnt as good.
    """
    inner, outer = folder.resolve(), good.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InputError(
            f"--defects {folder}: overlaps with the good pictures' folder {good}, so that defects would be learnt as good or good "
            "parts counted as escapes; give a folder beside it"
        )
    paths = find_pictures(folder)
    if not paths:
        raise InputError(f"--defects {folder}: holds no picture; give a folder of pictures of known defects")
    return [
        (path, folder.resolve().name if path.parent == folder else path.parent.relative_to(folder).as_posix())
        for path in paths
    ]


def score_defects(
    model: bytes,
    spec: FrameSpec,
    pictures: list[tuple[Path, str]],
    health: Health | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> DefectScores:
    """Score the pictures of `find_defects` with the exported graph, by ONNX Runtime.

    What cannot be judged or scored is rejected on the line, so its score is infinite; what cannot be read is skipped and named.
    """
    kinds: list[str] = []
    scores: list[float] = []
    skipped: list[str] = []
    with OnnxRuntimeEngine(model, (spec.height, spec.width)) as engine:
        for done, (path, kind) in enumerate(pictures, 1):
            try:
                frame, placement = fit_picture(read_picture(path), spec)
                if health is not None:
                    health.check(frame, placement)
            except HealthError:
                kinds.append(kind)
                scores.append(np.inf)
            except PictureError as exc:
                skipped.append(str(exc))
            else:
                score = float(engine.infer(frame[None]).scores[0])
                kinds.append(kind)
                scores.append(score if np.isfinite(score) else np.inf)
            if on_progress is not None:
                on_progress(done, len(pictures))
    if not scores:
        raise InputError(f"--defects: none of {len(pictures)} pictures could be used, the first: {skipped[0]}")
    return DefectScores(tuple(kinds), np.array(scores), tuple(skipped))


def cheapest_threshold(
    good: NDArray[np.floating], defects: NDArray[np.floating], costs: CostModel
) -> tuple[float, float]:
    """The threshold of least expected cost, and that cost per part.

    False rejects by the tail of the `good` parts' scores (n,), escapes counted among the `defects`' (m,). Between two
    defects' scores only the false rejects change, so the best lies just below a defect's score, or at the largest: all pass.
    """
    tail = ExponentialTail(np.sort(np.asarray(good, np.float64)))
    finite = np.sort(defects[np.isfinite(defects)].astype(np.float64))
    ends = np.concatenate([[tail.scores[-1], tail.quantile(1e-9)], finite - _BELOW * np.abs(finite), finite[-1:]])
    priced = [
        (costs.per_part(tail.rate(float(value)), float((defects <= value).mean())), float(value))
        for value in np.unique(ends)
    ]
    cost, value = min(priced)
    return value, cost
