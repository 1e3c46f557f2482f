"""Test pictures for a report, taken one by one as `flawline_train.evaluate` judges them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flawline_train.evaluate import GOOD, Evaluation, Judged
from flawline_train.report.curves import pro_curve, roc_curve
from flawline_train.report.data import Curves, DefectRow, ReportData, ScoredPicture, Triple
from flawline_train.report.pictures import thumbnail, triple

__all__ = ["JudgedPictures"]

GOOD_SHOWN = 4
WEAKEST_SHOWN, STRONGEST_SHOWN = 4, 2
"""Of each kind of defect."""
DEFECTS_SHOWN = 10
"""At most, over all kinds of defects."""


class JudgedPictures:
    """`evaluate(..., on_judged=pictures.add)`, then `pictures.into(data, evaluation)`.

    Of most pictures only the score and a thumbnail are kept. `embed` gives a frame's place in the latent space.
    """

    def __init__(
        self, threshold: float, embed: Callable[[NDArray[np.uint8]], NDArray[np.floating]] | None = None
    ) -> None:
        self._threshold = threshold
        self._embed = embed
        self._scored: list[ScoredPicture] = []
        self._heatmaps: list[NDArray[np.float32]] = []
        self._masks: list[NDArray[np.uint8]] = []
        self._extremes: dict[str, list[Judged]] = {}
        self.embeddings: list[NDArray[np.floating]] = []
        """One a picture, in order; empty without `embed`."""

    def add(self, judged: Judged) -> None:
        good = judged.kind == GOOD
        name = f"{judged.path.parent.name}/{judged.path.name}"
        score = self._finite(judged.score)
        self._scored.append(
            ScoredPicture(
                name,
                "test_good" if good else "defect",
                score,
                "" if good else judged.kind,
                thumbnail=thumbnail(judged.frame, judged.placement),
            )
        )
        if judged.mask is not None:
            self._heatmaps.append(judged.heatmap)
            self._masks.append(judged.mask)
        if self._embed is not None:
            self.embeddings.append(self._embed(judged.frame))
        kept = self._extremes.setdefault(judged.kind, [])
        kept.append(judged)
        kept.sort(key=lambda one: self._finite(one.score), reverse=good)
        # Of good parts the highest scores; of a defect the lowest, and the very highest.
        first, last = (GOOD_SHOWN, 0) if good else (WEAKEST_SHOWN, STRONGEST_SHOWN)
        if len(kept) > first + last:
            del kept[first]

    @property
    def scored(self) -> tuple[ScoredPicture, ...]:
        return tuple(self._scored)

    def into(self, data: ReportData, evaluation: Evaluation) -> ReportData:
        """The data with these pictures' dots, triples and curves, instead of those of an earlier test."""
        shown = [one for one in data.scored if one.role not in ("test_good", "defect")]
        triples = [one for one in data.triples if one.role in ("train", "held_out")]  # golden ones stood in for these
        return dataclasses.replace(
            data,
            scored=(*shown, *self._scored),
            triples=(*triples, *self._triples()),
            curves=self._curves(evaluation),
        )

    def _triples(self) -> list[Triple]:
        defects = [one for kind, kept in self._extremes.items() if kind != GOOD for one in kept]
        defects.sort(key=lambda one: self._finite(one.score))
        if len(defects) > DEFECTS_SHOWN:
            defects = [*defects[: DEFECTS_SHOWN - STRONGEST_SHOWN], *defects[-STRONGEST_SHOWN:]]
        return [
            triple(
                f"{one.path.parent.name}/{one.path.name}",
                "test_good" if one.kind == GOOD else "defect",
                "" if one.kind == GOOD else one.kind,
                self._finite(one.score),
                frame=one.frame,
                expected=one.expected,
                heatmap=one.heatmap,
                placement=one.placement,
                threshold=self._threshold,
            )
            for one in (*self._extremes.get(GOOD, []), *defects)
        ]

    def _curves(self, evaluation: Evaluation) -> Curves:
        # What cannot be judged has no dot, but is rejected like a score that is no number.
        unjudged = [False] * evaluation.n_good_unhealthy + [True] * evaluation.n_bad_unhealthy
        labels = np.array([*(one.role == "defect" for one in self._scored), *unjudged], bool)
        scores = [*(one.score for one in self._scored), *(self._finite(math.inf) for _ in unjudged)]
        roc, levels = roc_curve(np.array(scores), labels)
        has_pixels = evaluation.aupro is not None
        return Curves(
            n_good=evaluation.n_good,
            n_bad=evaluation.n_bad,
            false_reject_rate=evaluation.false_reject_rate,
            escape_rate=evaluation.escape_rate,
            image_auroc=evaluation.image_auroc,
            average_precision=evaluation.average_precision,
            by_defect=tuple(
                DefectRow(kind, row.n, row.image_auroc, row.escape_rate) for kind, row in evaluation.by_defect.items()
            ),
            roc=roc,
            levels=levels,
            pro=pro_curve(self._heatmaps, self._masks) if has_pixels else (),
            pixel_auroc=evaluation.pixel_auroc,
            aupro=evaluation.aupro,
        )

    def _finite(self, score: float) -> float:
        """What cannot be scored is rejected: it is drawn as far out as nothing else is."""
        return score if math.isfinite(score) else NOT_FINITE_AT * max(self._threshold, 1e-6)


NOT_FINITE_AT = 1e4
"""Multiple of the threshold that stands for a score that is no number."""
