"""Which pixels are the part."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tests.moving_parts import Pose, key, scene

from flawline_inspect.foreground import find_foreground


def grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)


@pytest.mark.parametrize("pose", [Pose(), Pose(70, (100, 130)), Pose(200, (120, 110), 0.8)])
@pytest.mark.parametrize("light", [0.7, 1.0, 1.15])
def test_the_part_is_found_whatever_the_light(pose: Pose, light: float) -> None:
    """Its middle to a few pixels, its area to a tenth, although the table is not evenly lit."""
    part = find_foreground(grey(scene(key(), pose, light=light)))
    level = find_foreground(grey(scene(key(), Pose())))
    assert part is not None and level is not None
    offset = level.centre - complex(120, 120)
    assert abs(part.centre - complex(*pose.at(offset.real, offset.imag))) < 2
    assert part.area == pytest.approx(level.area * pose.scale**2, rel=0.1)
    assert part.contrast > 60
    assert part.mask.sum() == part.area


def test_a_part_at_the_edge_of_the_picture_is_no_background() -> None:
    """It covers a fifth of the border, whose plane it does not tilt."""
    picture = scene(key(), Pose(0, (60, 120)))
    part = find_foreground(grey(picture))
    assert part is not None and part.contrast > 60 and part.mask[5:60].sum() == 0


def test_there_may_be_none() -> None:
    """In a flat picture nothing differs from the border; in noise what does differs little."""
    assert find_foreground(np.full((64, 80), 90, np.float32)) is None
    noise = np.random.default_rng(0).normal(120, 3, (120, 160)).astype(np.float32)
    part = find_foreground(noise)
    assert part is None or part.contrast < 10
