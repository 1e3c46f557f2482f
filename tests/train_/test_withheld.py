"""Damage that no network is trained on: seen where it can be, inside the picture, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from tests.train_.parts import part, varied_parts

from flawline_train.withheld import VISIBLE_SHARE, WITHHELD, damage

KINDS = tuple(WITHHELD)
SEEN_LEVELS = 11
"""Of 255: what is called visible, less the rounding to whole levels."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wh", [(64, 48), (48, 64), (352, 16), (31, 17)], ids=str)
def test_damage_is_seen_and_keeps_to_what_a_picture_is(kind: str, wh: tuple[int, int]) -> None:
    """On a part with edges, whatever the seed: uint8 of the same shape, some pixels clearly changed, its input not."""
    frame = varied_parts(1, wh)[0]
    before = frame.copy()
    for seed in range(12):
        found = damage(frame, kind, np.random.default_rng(seed))
        assert found.dtype == np.uint8 and found.shape == frame.shape
        changed = np.abs(found.astype(int) - frame).mean(2)
        assert (changed > SEEN_LEVELS).mean() >= VISIBLE_SHARE, f"seed {seed}: up to {changed.max():.1f} levels"
        assert (changed > SEEN_LEVELS).mean() < 0.6, f"seed {seed}: damage is local"
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides(kind: str) -> None:
    """The same seed gives the same bits, another one other damage."""
    frame = part(0, (64, 48))
    one, again, other = (damage(frame, kind, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_tried_until_damage_shows(kind: str) -> None:
    """Black but for a corner with a pattern: brighter, darker and turned places show only there."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[8:32, 8:40] = np.random.default_rng(0).integers(100, 200, (24, 32, 1))
    for seed in range(6):
        changed = np.abs(damage(frame, kind, np.random.default_rng(seed)).astype(int) - frame).mean(2)
        assert (changed > SEEN_LEVELS).mean() >= VISIBLE_SHARE


@pytest.mark.parametrize("value", [0, 128, 255], ids=["black", "grey", "white"])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_pictures(kind: str, value: int) -> None:
    """Nothing to erase or twist in them, and nothing to be seen on black; grey and white still get spots, lines and shadows."""
    frame = np.full((32, 48, 3), value, np.uint8)
    found = damage(frame, kind, np.random.default_rng(0))
    if kind in ("erased", "twisted") or value == 0:
        np.testing.assert_allclose(found.astype(int), frame.astype(int), atol=1)
    else:
        assert (np.abs(found.astype(int) - frame).mean(2) > SEEN_LEVELS).mean() >= VISIBLE_SHARE


def test_a_view_is_damaged_like_its_copy() -> None:
    """The content of a frame with border is no contiguous array."""
    frame = varied_parts(1, (64, 48))[0]
    for kind in KINDS:
        view, copy = frame[4:40, 6:60], frame[4:40, 6:60].copy()
        found = [damage(picture, kind, np.random.default_rng(1)) for picture in (view, copy)]
        np.testing.assert_array_equal(*found)
