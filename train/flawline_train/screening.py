"""Which of the good pictures may not be good: a ranking of all, and the few that stand out.

Nobody's good set is clean. What is defective in it teaches the network to pass such defects and widens what counts as
usual. So the pictures are ranked before anything is learnt, by how unlike the others they are (`flawline_train.unusual`), each judged by
what was learnt without it.

Who stands out: logarithms of good parts' scores are close enough to normal (of 300, the largest lies some 3 deviations out). Each part's
distance from their median, in robust deviations, is taken for a Student's t of as many degrees of freedom as the deviation was
estimated with, and Benjamini and Hochberg's procedure (1995) keeps the expected share of good parts among the suspects below `FALSE_SHARE`:
it demands more of a single odd picture than of one among many. Then once more without the suspects, which no longer hide one another.

Where more than `MAX_SHARE` of the parts stand out there are none: that is a second kind of part, or another light, not dirt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.frame import Roi
from flawline_train.unusual import Looks

__all__ = ["MAX_SHARE", "MIN_PARTS_TO_SCREEN", "Screening", "screen", "screening_reasons", "standing_out"]

FALSE_SHARE = 0.02
"""Expected share of good parts among the suspects."""
MAX_SHARE = 0.1
"""Of the parts, rounded up: more are no accident."""
MIN_PARTS_TO_SCREEN = 12
"""Fewer cannot say which of them is the odd one."""

_MAD_TO_DEVIATION = 1.4826
_MAD_EFFICIENCY = 0.37
"""Of the median absolute deviation against the standard deviation, for normal values: n of them tell as much as 0.37 n."""
_LEAST_DEVIATION = 0.05
"""Of logarithms: scores that agree to 5 % are no measure of what is unusual."""
_AGREEING = 2
"""So many of the measures, the largest, are averaged: no damage shows in all of them, and one alone errs more often."""
_ROUNDS = 2

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Screening:
    """`scores` (n,) of the pictures: robust deviations above the median part. `suspects`: names of the parts that stand out, the
    most unusual first. `too_many`: that many stood out, and so none is a suspect."""

    scores: F64
    suspects: tuple[str, ...] = ()
    too_many: int = 0

    def notes(self, n_parts: int) -> list[str]:
        """What the engineer should know besides the suspects."""
        if not self.too_many:
            return []
        return [
            f"{self.too_many} of {n_parts} parts look unlike the others, more than dirt would be: perhaps another kind of part, or "
            "another light; none was left out. The report shows the most unusual; take out what is not good"
        ]

    @property
    def ranking(self) -> list[int]:
        """Indices of the pictures, the most unusual first."""
        return [int(i) for i in np.argsort(-self.scores, kind="stable")]


def screen(frames: NDArray[np.uint8], parts: Sequence[str], content: Roi) -> Screening:
    """Rank good `frames` (n, H, W, 3) BGR of the named `parts`, at least two; only `content` (x, y, width, height) is looked at."""
    looks, names = Looks(frames, parts, content), np.array(parts)
    found: list[str] = []
    for _ in range(_ROUNDS):
        allowed = math.ceil(MAX_SHARE * len(set(parts)))
        suspects = found[:allowed]
        scores, by_part = _in_deviations(looks.measure(~np.isin(names, suspects)), names)
        stands = standing_out(list(by_part.values()))
        found = [part for part, stands_out in zip(by_part, stands, strict=True) if stands_out]
        found.sort(key=lambda part: -by_part[part])
        if set(found) <= set(suspects):
            break
    return Screening(scores, too_many=len(found)) if len(found) > allowed else Screening(scores, tuple(found))


def standing_out(deviations: Sequence[float] | F64) -> NDArray[np.bool_]:
    """Which of n parts, by their robust `deviations` (n,), are taken for no good ones."""
    from scipy.stats import t  # its import takes longer than the rest of a command's start

    values = np.asarray(deviations, np.float64)
    n = len(values)
    if n < MIN_PARTS_TO_SCREEN:
        return np.zeros(n, np.bool_)
    order = np.argsort(-values, kind="stable")
    chances = t.sf(values[order], _MAD_EFFICIENCY * n)
    passed = np.flatnonzero(chances <= FALSE_SHARE * np.arange(1, n + 1) / n)
    return np.isin(np.arange(n), order[: passed[-1] + 1 if len(passed) else 0])


def _in_deviations(measures: F64, parts: NDArray[np.str_]) -> tuple[F64, dict[str, float]]:
    """Measures (n, k) above 0 as one score (n,), and by part the largest of its pictures'."""
    logs = np.log(measures)
    each = np.stack([(column - np.median(column)) / _spread(column) for column in logs.T], 1)
    mixed = np.sort(each, 1)[:, -_AGREEING:].mean(1)
    by_part = {str(part): float(mixed[parts == part].max()) for part in dict.fromkeys(parts.tolist())}
    usual, unit = np.median(list(by_part.values())), _spread(np.array(list(by_part.values())))
    return (mixed - usual) / unit, {part: float((value - usual) / unit) for part, value in by_part.items()}


def _spread(values: F64) -> float:
    return max(_LEAST_DEVIATION, _MAD_TO_DEVIATION * float(np.median(np.abs(values - np.median(values)))))


def screening_reasons(
    screening: Screening, parts: Sequence[str], *, held_out: Collection[str], keep_suspects: bool
) -> dict[str, str]:
    """By part, a sentence for each suspect: how unusual it is, what became of it, and what to do. `parts` (n,) of the pictures."""
    names = np.array(parts)
    reasons = {}
    for part in screening.suspects:
        shown = names == part
        pictures = f" ({shown.sum()} pictures)" if shown.sum() > 1 else ""
        if keep_suspects:
            fate = "it is kept, by --keep-suspects"
        elif part in held_out:
            fate = "it is held out, and counts against the promise where it scores above the threshold"
        else:
            fate = "it was not learnt from"
        reasons[part] = (
            f"{part}{pictures}: unlike the other good parts by {screening.scores[shown].max():.1f} robust deviations; is it good? "
            f"{fate[0].upper()}{fate[1:]}; {'take it out' if keep_suspects else 'take it out, or keep it with --keep-suspects'}"
        )
    return reasons
