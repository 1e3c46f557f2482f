"""Pictures for people: a heatmap over the camera picture, with colours tied to the threshold.

The same colour means the same thing every day: transparent up to half the threshold, yellow at it, red from twice it up.
A scale that follows the brightest pixel of the day would paint a perfect part red.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.frame import FrameSpec, Placement, bgr_8_bit

__all__ = ["heatmap_overlay", "rejection_picture", "to_display"]

_MAX_OPACITY = 0.65
_FULL_SCALE = 2.0  # times the threshold
_START = 0.5
_YELLOW, _RED = np.array([0, 230, 255], np.float32), np.array([30, 0, 230], np.float32)
_GAP = 4


def to_display(picture: NDArray[np.generic], spec: FrameSpec, placement: Placement) -> NDArray[np.uint8]:
    """A camera picture of any depth as BGR uint8 of its region of interest, not resized."""
    x, y, w, h = placement.roi
    region = picture[y : y + h, x : x + w]
    return bgr_8_bit(region, spec.bit_depth)  # the frame's own conversion: what is shown is what was judged


def heatmap_overlay(picture: NDArray[np.uint8], heatmap: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Lay `heatmap` (h, w) over `picture` (h, w, 3) BGR; what exceeds the threshold gets an outline. Returns a copy."""
    level = heatmap / max(threshold, 1e-6)
    heat = np.clip((level - _START) / (_FULL_SCALE - _START), 0, 1).astype(np.float32)[..., None]
    colour = _YELLOW + (_RED - _YELLOW) * np.clip((level[..., None] - 1) / (_FULL_SCALE - 1), 0, 1)
    opacity = _MAX_OPACITY * np.sqrt(heat)
    out = np.clip(picture * (1 - opacity) + colour * opacity, 0, 255).astype(np.uint8)
    contours, _ = cv2.findContours((level > 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(out, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)
    return out


def rejection_picture(
    picture: NDArray[np.generic],
    heatmap: NDArray[np.float32],
    expected: NDArray[np.uint8],
    *,
    spec: FrameSpec,
    placement: Placement,
    threshold: float,
) -> NDArray[np.uint8]:
    """What was seen, where it differs, what was expected: side by side, (roi height, 3 roi width + gaps, 3) BGR.

    `heatmap` (H, W) and `expected` (H, W, 3) are the graph's outputs for this picture.
    """
    x, y, w, h = placement.roi
    seen = to_display(picture, spec, placement)
    heat = placement.heatmap_to_camera(heatmap)[y : y + h, x : x + w]
    gap = np.full((h, _GAP, 3), 255, np.uint8)
    return np.hstack(
        [seen, gap, heatmap_overlay(seen, heat, threshold), gap, placement.picture_to_camera(expected)]
    ).astype(np.uint8, copy=False)
