"""What is said of a threshold: every sentence with its own word, promised or estimated, and every suspect by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flawline_inspect.bundle import CalibrationSection
from flawline_inspect.calibration import GoodSpread
from flawline_train.calibrate import Calibration
from flawline_train.graph import ErrorMap
from flawline_train.known_defects import CostModel, DefectScores
from flawline_train.promise import apply_choice, calibration_notes, calibration_section, promise_sentence
from flawline_train.threshold import threshold_from_scores

CALM = [4.1, 5.0, 5.2, 5.9, 6.1, 6.6, 7.0, 7.7, 9.1]
MAPS = np.ones((32, 32), np.float32)


def calibration(scores: list[float], target: float = 0.01, **options: Any) -> Calibration:
    values = np.array(scores, np.float32)
    return Calibration(
        good=GoodSpread(MAPS, MAPS),
        scores=values,
        parts=tuple(f"{i}.png" for i in range(len(scores))),
        part_scores=values,
        threshold=threshold_from_scores(values, target, **options),
        error_map=ErrorMap((32, 32)),
    )


def test_the_section_is_what_the_manifest_takes() -> None:
    """Scores with their parts, the bound with n and k, the estimate beside it, suspects by name."""
    found = CalibrationSection.model_validate(calibration_section(calibration([*CALM, 101.0]), None, None))
    assert found.parts[-1] == "9.png" and len(found.scores) == len(found.parts) == 10
    assert (found.basis, found.exceedances, found.confidence) == ("exponential_tail", 1, 0.95)
    assert found.promised_false_reject_rate == pytest.approx(0.3942, abs=1e-4)
    assert found.estimated_false_reject_rate == pytest.approx(0.01, rel=0.01) and not found.within_promise
    ((suspect),) = found.suspects
    assert (suspect.part, suspect.score, suspect.skipped) == ("9.png", 101.0, True)
    assert found.defects is None


@pytest.mark.parametrize(
    ("scores", "options", "sentence"),
    [
        pytest.param([*CALM, 101.0], {}, "9.png: scores 101.0, 16 times the median of the held-out good parts; is it good? The "
                     "threshold was set without it, but it counts against the promise", id="skipped"),
        pytest.param([*CALM, 101.0], {"keep_suspects": True}, "The threshold lets it pass, and with it every defect", id="kept"),
        pytest.param([4.0, 5.0, 101.0], {}, "The threshold lets it pass", id="too few to skip"),
        pytest.param([5.0] * 198 + [40.0, 90.0], {"target": 0.05, "keep_suspects": True}, "lies above the threshold", id="above"),
    ],
)  # fmt: skip
def test_suspects_are_named_with_what_follows(scores: list[float], options: dict[str, Any], sentence: str) -> None:
    """By their part's name, with the score, and with what the threshold made of it."""
    notes = calibration_notes(calibration(scores, **options))
    assert any(sentence in note for note in notes)
    assert any(note.startswith(f"{len(scores) - 1}.png: scores") for note in notes)


def test_what_can_be_promised_is_said_with_the_number_that_would_do() -> None:
    """Sixty parts for half a per cent: 4.9 %, and 598 would do. Nothing is said when the target is promised."""
    scores = list(np.random.default_rng(0).normal(10, 1, 60))
    (note,) = calibration_notes(calibration(scores, 0.005))
    assert note == (
        "with 60 held-out parts the best that can be promised is 4.9% false rejects; 598 would allow the target of 0.50%, which is "
        "only estimated"
    )
    assert calibration_notes(calibration(scores, 0.05)) == []


def test_the_card_keeps_the_two_words_apart() -> None:
    """Promised with its confidence; estimated only where the target is beyond the promise."""
    scores = list(np.random.default_rng(0).normal(10, 1, 60))
    beyond, within = (promise_sentence(calibration(scores, target)) for target in (0.005, 0.05))
    assert "promise a false-reject rate of at most 4.9% (confidence 95%)" in beyond
    assert "estimated from their scores, not promised" in beyond
    assert "within that promise" in within and "estimate" not in within


def test_the_cheapest_threshold_is_applied_only_when_asked_for() -> None:
    """The same scores: reported beside the promised one, or taken, and then the promise is that of the one taken."""
    good = calibration(list(np.random.default_rng(0).normal(10, 1, 60)))
    known = DefectScores(("dent",) * 20, np.random.default_rng(1).normal(14, 2, 20))
    costs = CostModel(1.0, 30.0, 0.05)
    assert apply_choice(good, known, costs, "promised") is good
    taken = apply_choice(good, known, costs, "cheapest")
    reported = calibration_section(good, known, costs)["defects"]["costs"]
    assert taken.threshold.value == reported["cheapest_threshold"] != good.threshold.value
    assert reported["cheapest_cost_per_part"] < reported["cost_per_part"]
    section = CalibrationSection.model_validate(calibration_section(taken, known, costs))
    assert section.basis == "cheapest" and section.exceedances == int((good.part_scores > taken.threshold.value).sum())
    assert not any("best that can be promised" in note for note in calibration_notes(taken))
