"""What the bundle, the model card and the notes say of a threshold: promised and estimated, each in its own words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from flawline_train.binomial import CONFIDENCE, parts_needed, upper_bound
from flawline_train.calibrate import MapCalibration
from flawline_train.known_defects import CostModel, DefectScores, cheapest_threshold
from flawline_train.threshold import stands_out, threshold_at

__all__ = [
    "ThresholdChoice",
    "apply_choice",
    "calibration_notes",
    "calibration_section",
    "promise_sentence",
    "suspect_reasons",
]

ThresholdChoice = Literal["promised", "cheapest"]


def apply_choice(
    calibration: MapCalibration, known: DefectScores | None, costs: CostModel | None, choice: ThresholdChoice
) -> MapCalibration:
    """The same calibration at the threshold of `choice`; "cheapest" needs `known` defects and `costs`."""
    if choice == "promised" or known is None or costs is None:
        return calibration
    value, _ = _cheapest(calibration, known, costs)
    threshold = threshold_at(
        calibration.part_scores,
        value,
        calibration.threshold.target,
        suspects=calibration.threshold.skipped,
        compared=len(calibration.part_scores) + 1,  # as many promises as there can be numbers of exceedances
    )
    return replace(calibration, threshold=threshold)


def calibration_section(
    calibration: MapCalibration, known: DefectScores | None, costs: CostModel | None
) -> dict[str, Any]:
    """`CalibrationSection` of the manifest."""
    threshold, scores = calibration.threshold, [float(score) for score in calibration.part_scores]
    defects: dict[str, Any] | None = None
    if known is not None:
        defects = {"kinds": known.section(threshold.value), "costs": None}
    if defects is not None and known is not None and costs is not None:
        value, cost = _cheapest(calibration, known, costs)
        escape_rate = float((known.scores <= threshold.value).mean())
        defects["costs"] = {
            "false_reject": costs.false_reject,
            "escape": costs.escape,
            "defect_rate": costs.defect_rate,
            "cost_per_part": costs.per_part(threshold.estimated, escape_rate),
            "cheapest_threshold": value,
            "cheapest_cost_per_part": cost,
        }
    return {
        "scores": scores,
        "threshold": threshold.value,
        "basis": threshold.basis,
        "false_reject_target": threshold.target,
        "promised_false_reject_rate": threshold.promised,
        "parts": list(calibration.parts),
        "exceedances": threshold.exceedances,
        "confidence": CONFIDENCE,
        "estimated_false_reject_rate": threshold.estimated,
        "suspects": [
            {"part": calibration.parts[i], "score": scores[i], "skipped": i in threshold.skipped}
            for i in _named(calibration)
        ],
        "defects": defects,
    }


def promise_sentence(calibration: MapCalibration) -> str:
    """The model card's: what is promised, and whether the target is."""
    threshold = calibration.threshold
    beyond = (
        "the target lies within that promise"
        if threshold.promised <= threshold.target
        else f"the target of {threshold.target:.2%} is beyond it: {threshold.estimated:.2%} are estimated from their scores, not promised"
    )
    return (
        f"{threshold.n} held-out good parts, {threshold.exceedances} of them above the threshold, promise a false-reject rate of at "
        f"most {threshold.promised:.1%} (confidence {CONFIDENCE:.0%}); {beyond}."
    )


def calibration_notes(calibration: MapCalibration) -> list[str]:
    """What the engineer should know of the threshold, a sentence each."""
    threshold = calibration.threshold
    notes = list(suspect_reasons(calibration).values())
    if threshold.promised > threshold.target and threshold.basis != "cheapest":
        needed = parts_needed(threshold.target)
        notes.append(
            f"with {threshold.n} held-out parts the best that can be promised is {upper_bound(0, threshold.n):.1%} false rejects; "
            f"{needed} would allow the target of {threshold.target:.2%}, which is only estimated"
        )
    return notes


def suspect_reasons(calibration: MapCalibration) -> dict[str, str]:
    """By part, a sentence for each held-out part that stands far above the others."""
    threshold = calibration.threshold
    median = float(np.median(calibration.part_scores))
    reasons: dict[str, str] = {}
    for i in _named(calibration):
        score = float(calibration.part_scores[i])
        times = f", {score / median:.0f} times the median of the held-out good parts" if median > 0 else ""
        if i in threshold.skipped:
            meaning = "the threshold was set without it, but it counts against the promise; --keep-suspects keeps it"
        elif score > threshold.value:
            meaning = "it lies above the threshold and counts against the promise"
        else:
            meaning = "the threshold lets it pass, and with it every defect that is less unusual"
        reasons[calibration.parts[i]] = (
            f"{calibration.parts[i]}: scores {score:.1f}{times}; is it good? {meaning[0].upper()}{meaning[1:]}"
        )
    return reasons


def _named(calibration: MapCalibration) -> list[int]:
    """Suspects, skipped or not."""
    return sorted({*calibration.threshold.skipped, *stands_out(calibration.part_scores)})


def _cheapest(calibration: MapCalibration, known: DefectScores, costs: CostModel) -> tuple[float, float]:
    clean = np.delete(calibration.part_scores, list(calibration.threshold.skipped))
    return cheapest_threshold(clean, known.scores, costs)
