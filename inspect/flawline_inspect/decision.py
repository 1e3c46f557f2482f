"""From a score and a heatmap to a result. In float32, as the design says, so that every engine decides alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import InputError
from flawline_inspect.frame import Placement
from flawline_inspect.regions import RegionRule
from flawline_inspect.verdict import Reason, Result

__all__ = ["Decision", "DecisionRule"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one picture. `score` is 0 when the result is UNDEFINED, and when the picture cannot be judged."""

    result: Result
    reason: Reason
    score: float

    @classmethod
    def undefined(cls, reason: Reason) -> Decision:
        return cls(Result.UNDEFINED, reason, 0.0)

    @classmethod
    def unhealthy(cls) -> Decision:
        """For a picture that cannot be judged (`HealthError`): nothing was."""
        return cls(Result.NOT_DECIDABLE, Reason.HEALTH, 0.0)


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """The threshold and what surrounds it.

    `review_band`: two factors of the threshold, low < 1 < high or equal to it; a score above low x threshold and
    up to high x threshold is NotDecidable `review`. None switches it off. `regions`: the area rule, which may lower a NotOK to OK.
    """

    threshold: float
    review_band: tuple[float, float] | None = None
    regions: RegionRule | None = None

    def __post_init__(self) -> None:
        if not abs(self.threshold) <= float(np.finfo(np.float32).max):  # NaN too
            raise InputError(f"threshold is {self.threshold}, expected a number that is finite in float32")
        if self.review_band is not None:
            low, high = self.review_band
            if not 0 < low <= 1 <= high or low == high:
                raise InputError(f"review_band is [{low}, {high}], expected factors with 0 < low <= 1 <= high")

    def decide(
        self, score: float | np.floating, heatmap: NDArray[np.float32], placement: Placement | None = None
    ) -> Decision:
        """`heatmap` (H, W). A score equal to the threshold passes; a non-finite score or pixel is never a pass. The area rule speaks of
        camera pixels: without the frame's `placement` it is not applied."""
        value = np.float32(score)
        if not np.isfinite(value) or not np.isfinite(heatmap).all():
            return Decision.undefined(Reason.NOT_FINITE)
        threshold = np.float32(self.threshold)
        if self.review_band is not None:
            low, high = (np.float32(factor) * threshold for factor in self.review_band)
            if low < value <= high:
                return Decision(Result.NOT_DECIDABLE, Reason.REVIEW, float(value))
        result = Result.NOT_OK if value > threshold else Result.OK
        if (
            result is Result.NOT_OK
            and self.regions is not None
            and placement is not None
            and self.regions.lowers(heatmap, placement, float(threshold))
        ):
            result = Result.OK
        return Decision(result, Reason.NONE, float(value))
