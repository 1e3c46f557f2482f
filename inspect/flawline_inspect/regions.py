"""Area rules: which regions of a heatmap make a part NotOK, where a line says that not all of them do.

A logo that may look like anything, a rim that is cut off later, a speck that is smaller than the drawing allows: the score knows none
of them. A rule may lower a NotOK to OK, and nothing else; what it cannot be applied to stays NotOK.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import InputError
from flawline_inspect.frame import Placement, read_picture

__all__ = ["RegionRule"]

_CONNECTIVITY = 8  # a scratch runs diagonally, too


@dataclass(frozen=True, slots=True)
class RegionRule:
    """Only regions of at least `min_area_px` camera pixels whose heatmap lies above `level`, in units of the good parts' spread, count;
    pixels where `ignored` (picture height, picture width) is True belong to none. `level` None is the threshold in force.

    Raises `InputError` for numbers that no region can have.
    """

    level: float | None = None
    min_area_px: int = 1
    ignored: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    mask_sha256: str = ""
    """Of the mask's file, by which rules are told apart."""

    def __post_init__(self) -> None:
        if self.level is not None and not 0 < self.level <= float(np.finfo(np.float32).max):
            raise InputError(f"regions.level is {self.level}, expected a number above 0")
        if self.min_area_px < 1:
            raise InputError(f"regions.min_area_px is {self.min_area_px}, expected at least 1")

    @classmethod
    def of(cls, level: float | None, min_area_px: int, mask: Path | None) -> RegionRule:
        """`mask`: a picture of the camera's size whose pixels above 0 are ignored. Raises `InputError` where it cannot be read."""
        if mask is None:
            return cls(level, min_area_px)
        picture = read_picture(mask)
        colours = picture[..., None] if picture.ndim == 2 else picture[..., :3]
        ignored = np.asarray(colours.astype(np.bool_).any(2), np.bool_)
        return cls(level, min_area_px, ignored, hashlib.sha256(mask.read_bytes()).hexdigest())

    def fits(self, placement: Placement) -> bool:
        """Whether the mask, if there is one, has the size of the camera's picture; else the rule is not applied."""
        return self.ignored is None or self.ignored.shape[::-1] == placement.picture_wh

    def lowers(self, heatmap: NDArray[np.float32], placement: Placement, threshold: float) -> bool:
        """Whether a part above the threshold is good all the same: none of its regions counts, and the rule is the reason."""
        heat = placement.heatmap_to_camera(heatmap)
        if not self.fits(placement):
            return False  # nobody knows what the mask was drawn on
        hot = heat > np.float32(threshold if self.level is None else self.level)
        if self.level is None and not hot.any():
            return (
                False  # the score is a mean of many places that lie just below: nothing here was ignored or too small
            )
        if self.ignored is not None:
            hot &= ~self.ignored
        _, _, statistics, _ = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=_CONNECTIVITY)
        areas = statistics[1:, cv2.CC_STAT_AREA]  # the first is what is not hot
        return not bool((areas >= self.min_area_px).any())
