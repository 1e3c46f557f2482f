"""What both kinds of plots share: roles with their words, colours and markers, and where each dot lies.

Colours are Okabe and Ito's (2008), which stay apart for colour-blind readers, the blue a little lighter so that it is seen
on a dark page too; markers say the same once more for print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flawline_train.report.data import ReportData, Role, ScoredPicture

__all__ = ["BLUE", "LOOKS", "VERMILION", "Look", "Row", "is_logarithmic", "place_on_axis", "rows_of"]

BLUE, SKY, GREEN, VERMILION, PURPLE, SLATE = "#2482BD", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#8695A4"
ORANGE = "#E69F00"
_JITTER = 0.30
"""Half the height of a row's cloud of dots, of the distance between rows."""
_LOG_FROM = 8.0
"""The axis is logarithmic where scores reach this multiple of the threshold."""
_LOWEST = 0.02
"""Of the threshold: a logarithmic axis begins here, and what lies below is drawn here."""


@dataclass(frozen=True, slots=True)
class Look:
    words: str
    colour: str
    marker: str
    """matplotlib's name; Bokeh's follows from it."""


LOOKS: dict[Role, Look] = {
    "train": Look("good, trained on", SLATE, "o"),
    "held_out": Look("good, held out", BLUE, "o"),
    "left_out": Look("suspect, left out", ORANGE, "D"),
    "test_good": Look("good, test", SKY, "s"),
    "golden_good": Look("good, golden", SKY, "s"),
    "defect": Look("defect", VERMILION, "^"),
    "golden_damaged": Look("synthetic damage, golden", PURPLE, "D"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the score plot: pictures of one role and kind, at heights around `y`."""

    label: str
    look: Look
    y: float
    pictures: tuple[ScoredPicture, ...]
    heights: tuple[float, ...]


def rows_of(data: ReportData) -> list[Row]:
    """Good parts on top, then each kind of defect."""
    groups: dict[tuple[int, str, Role], list[ScoredPicture]] = {}
    for picture in data.scored:
        groups.setdefault((list(LOOKS).index(picture.role), picture.kind, picture.role), []).append(picture)
    rows = []
    for i, ((_, kind, role), pictures) in enumerate(sorted(groups.items(), key=lambda item: item[0])):
        y = float(len(groups) - 1 - i)
        # Van der Corput's sequence: spread evenly and the same every time, which random jitter is not.
        heights = tuple(y + _JITTER * (2 * _radical_inverse(k + 1) - 1) for k in range(len(pictures)))
        rows.append(Row(f"{kind or LOOKS[role].words} ({len(pictures)})", LOOKS[role], y, tuple(pictures), heights))
    return rows


def is_logarithmic(data: ReportData) -> bool:
    return data.threshold > 0 and max(picture.score for picture in data.scored) > _LOG_FROM * data.threshold


def place_on_axis(score: float, data: ReportData) -> float:
    """Where a score is drawn: itself, but on a logarithmic axis never below its beginning."""
    return max(score, _LOWEST * data.threshold) if is_logarithmic(data) else score


def size_of(score: float, data: ReportData) -> float:
    """Diameter of a dot on the map of the latent space, in pixels: 7 for the most ordinary, 16 from twice the threshold."""
    share = score / data.threshold if data.threshold > 0 else 0.0
    return 7 + 9 * min(1.0, max(0.0, share / 2))


def _radical_inverse(k: int) -> float:
    """Van der Corput's number in base 2, in 0-1."""
    bits = max(1, math.ceil(math.log2(k + 1)))
    return sum(((k >> bit) & 1) / 2 ** (bit + 1) for bit in range(bits))
