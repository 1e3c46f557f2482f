"""The decision: what score, heatmap, threshold and review band make of a part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_inspect.decision import Decision, DecisionRule
from flawline_inspect.errors import InputError
from flawline_inspect.verdict import Reason, Result

QUIET = np.zeros((4, 6), np.float32)
ABOVE_2 = float(np.nextafter(np.float32(2), np.float32(3)))
BELOW_2 = float(np.nextafter(np.float32(2), np.float32(1)))
LARGEST = float(np.finfo(np.float32).max)
BAND = (0.5, 1.5)  # of a threshold of 2: above 1, up to 3

OK, NOT_OK = (Result.OK, Reason.NONE), (Result.NOT_OK, Reason.NONE)
REVIEW, NOT_FINITE = (Result.NOT_DECIDABLE, Reason.REVIEW), (Result.UNDEFINED, Reason.NOT_FINITE)

finite = st.floats(-(2.0**100), 2.0**100, width=32)
thresholds = st.floats(0, 2.0**100, width=32)
bands = st.none() | st.tuples(st.floats(0.125, 0.984375), st.floats(1, 8))


def with_pixel(value: float) -> NDArray[np.float32]:
    heatmap = QUIET.copy()
    heatmap[2, 3] = value
    return heatmap


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        pytest.param(0.0, OK, id="zero"),
        pytest.param(-7.5, OK, id="negative"),
        pytest.param(BELOW_2, OK, id="just below"),
        pytest.param(2.0, OK, id="equal passes"),
        pytest.param(ABOVE_2, NOT_OK, id="just above"),
        pytest.param(LARGEST, NOT_OK, id="largest float32"),
        pytest.param(float("nan"), NOT_FINITE, id="not a number"),
        pytest.param(float("inf"), NOT_FINITE, id="infinite"),
        pytest.param(float("-inf"), NOT_FINITE, id="infinitely good is no pass"),
    ],
)
def test_score_against_threshold(score: float, expected: tuple[Result, Reason]) -> None:
    """Above the threshold is NotOK, up to it OK, and a score that is no number is Undefined with score 0."""
    decision = DecisionRule(2.0).decide(score, QUIET)
    assert (decision.result, decision.reason) == expected
    assert decision.score == (0.0 if decision.result is Result.UNDEFINED else score)
    assert type(decision.score) is float


@pytest.mark.parametrize(
    ("heatmap", "expected"),
    [
        pytest.param(QUIET, OK, id="constant"),
        pytest.param(np.zeros((1, 1), np.float32), OK, id="one pixel"),
        pytest.param(np.full((4, 6), LARGEST, np.float32), OK, id="saturated, yet finite"),
        pytest.param(with_pixel(float("nan")), NOT_FINITE, id="one pixel not a number"),
        pytest.param(with_pixel(float("inf")), NOT_FINITE, id="one pixel infinite"),
        pytest.param(with_pixel(float("-inf")), NOT_FINITE, id="one pixel minus infinite"),
        pytest.param(np.full((1, 1), np.nan, np.float32), NOT_FINITE, id="the only pixel"),
    ],
)
def test_a_heatmap_that_is_not_finite_is_never_a_pass(
    heatmap: NDArray[np.float32], expected: tuple[Result, Reason]
) -> None:
    """The score decides, unless a pixel is not a finite number: then neither a good nor a bad score counts."""
    decision = DecisionRule(2.0).decide(1.0, heatmap)
    assert (decision.result, decision.reason) == expected
    if expected == NOT_FINITE:
        assert DecisionRule(2.0, BAND).decide(99.0, heatmap) == Decision.undefined(Reason.NOT_FINITE)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        pytest.param(1.0, OK, id="at the lower end"),
        pytest.param(float(np.nextafter(np.float32(1), np.float32(2))), REVIEW, id="just inside"),
        pytest.param(2.0, REVIEW, id="at the threshold"),
        pytest.param(3.0, REVIEW, id="at the upper end"),
        pytest.param(float(np.nextafter(np.float32(3), np.float32(4))), NOT_OK, id="just beyond"),
        pytest.param(float("nan"), NOT_FINITE, id="not a number"),
    ],
)
def test_review_band(score: float, expected: tuple[Result, Reason]) -> None:
    """Above low x threshold and up to high x threshold a person has to look; below is OK, beyond NotOK."""
    decision = DecisionRule(2.0, BAND).decide(score, QUIET)
    assert (decision.result, decision.reason) == expected


@pytest.mark.parametrize("threshold", [0.1, 1.1, 1.2101, 7.3])
def test_decides_in_float32(threshold: float) -> None:
    """A float32 score equal to the threshold passes also where the two differ as float64."""
    score = np.float32(threshold)
    assert DecisionRule(threshold).decide(score, QUIET).result is Result.OK
    assert DecisionRule(threshold).decide(np.nextafter(score, np.float32(9)), QUIET).result is Result.NOT_OK


@pytest.mark.parametrize(
    ("threshold", "band"),
    [
        pytest.param(float("nan"), None, id="threshold not a number"),
        pytest.param(float("inf"), None, id="threshold infinite"),
        pytest.param(1e39, None, id="threshold infinite in float32: everything would pass"),
        pytest.param(1.0, (0.0, 1.5), id="band from 0"),
        pytest.param(1.0, (-0.5, 1.5), id="band from below 0"),
        pytest.param(1.0, (1.1, 1.5), id="band above the threshold"),
        pytest.param(1.0, (0.5, 0.9), id="band below the threshold"),
        pytest.param(1.0, (1.0, 1.0), id="empty band"),
        pytest.param(1.0, (1.5, 0.5), id="band the wrong way round"),
        pytest.param(1.0, (float("nan"), 1.5), id="band not a number"),
    ],
)
def test_a_rule_that_cannot_decide_is_refused(threshold: float, band: tuple[float, float] | None) -> None:
    """What would make a comparison meaningless is refused when the rule is made, not when a part comes."""
    with pytest.raises(InputError, match=r"threshold is|review_band is"):
        DecisionRule(threshold, band)


@given(finite, thresholds, thresholds, bands)
def test_a_larger_threshold_never_rejects_more(
    score: float, one: float, other: float, band: tuple[float, float] | None
) -> None:
    """A part that is OK stays OK when the threshold is raised, with and without a review band."""
    low, high = sorted((one, other))
    if DecisionRule(low, band).decide(score, QUIET).result is Result.OK:
        assert DecisionRule(high, band).decide(score, QUIET).result is Result.OK


@given(finite, thresholds, bands)
def test_a_review_band_only_takes_parts_for_review(
    score: float, threshold: float, band: tuple[float, float] | None
) -> None:
    """With a band a result is what it was without one, or `review`."""
    plain, banded = (DecisionRule(threshold, each).decide(score, QUIET) for each in (None, band))
    assert banded == plain or (banded.result, banded.reason) == REVIEW


@settings(max_examples=50)
@given(st.sampled_from([reason for reason in Reason if reason.value]))
def test_undefined_has_score_zero(reason: Reason) -> None:
    """Whatever failed, the score of an Undefined result is 0."""
    assert Decision.undefined(reason) == Decision(Result.UNDEFINED, reason, 0.0)
