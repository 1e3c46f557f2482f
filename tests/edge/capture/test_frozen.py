"""A picture that stands still: the same bits, or the same time of a clock that went."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge.capture.frozen import FrozenPicture
from flawline_edge.simulation import SimulatedLine

_A = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def _changed(row: int = 1, column: int = 1) -> NDArray[np.uint8]:
    """One pixel of `_A` by one level."""
    changed = _A.copy()
    changed[row, column, 0] ^= 1
    return changed


def _look(after_s: float, seen: list[tuple[float, NDArray[np.generic], float | None]]) -> tuple[list[bool], list[bool]]:
    """Which of the pictures were repeats, and after which the camera was frozen; as the child asks."""
    watch, last = FrozenPicture(after_s), None
    repeats, frozen = [], []
    for now, picture, stamp in seen:
        repeats.append(watch.is_repeat(picture, last, stamp, now))
        frozen.append(watch.frozen)
        if not repeats[-1]:
            last = picture
    return repeats, frozen


def test_the_same_picture_is_a_repeat_and_after_a_while_frozen() -> None:
    """The first is news; at `after_s` since it, and no earlier, the camera is frozen; a change ends it."""
    seen = [(0.0, _A, None), (0.5, _A.copy(), None), (1.9, _A, None), (2.0, _A, None), (3.0, _A, None)]
    repeats, frozen = _look(2.0, [*seen, (3.1, _changed(), None), (3.2, _changed(), None)])
    assert repeats == [False, True, True, True, True, False, True]
    assert frozen == [False, False, False, True, True, False, False]


@pytest.mark.parametrize("at", [(0, 0), (1, 1), (37, 74), (119, 159), (36, 38)])
def test_one_pixel_by_one_level_is_a_change(at: tuple[int, int]) -> None:
    """Wherever it is, on the rows and columns that are looked at first or between them."""
    repeats, _ = _look(2.0, [(0.0, _A, None), (9.0, _changed(*at), None)])
    assert repeats == [False, False]


@pytest.mark.parametrize("other", [_A[:-1], _A[:, :, 0], _A.astype(np.uint16)], ids=["shape", "dimensions", "type"])
def test_another_format_is_a_change(other: NDArray[np.generic]) -> None:
    """Also where the pixels are the same numbers."""
    assert _look(2.0, [(0.0, _A, None), (9.0, other, None)]) == ([False, False], [False, False])


def test_zero_sees_nothing() -> None:
    """For cameras without noise."""
    assert _look(0.0, [(0.0, _A, 1.0), (9.0, _A, 1.0), (99.0, _A, 1.0)]) == ([False] * 3, [False] * 3)


def test_a_clock_that_went_and_stands_still() -> None:
    """The pictures differ all the same: some drivers hand out one half of a buffer anew. Frozen until it goes again."""
    seen = [(float(n), _changed(n), min(n, 3) / 10) for n in range(8)]
    repeats, frozen = _look(2.0, [*seen, (8.0, _changed(8), 0.9)])
    assert frozen == [False] * 5 + [True] * 3 + [False]
    assert repeats == frozen


@pytest.mark.parametrize("stamp", [None, 7.0])
def test_a_clock_that_never_went_says_nothing(stamp: float | None) -> None:
    """A driver without one gives the same number always."""
    _, frozen = _look(2.0, [(float(n), _changed(n), stamp) for n in range(8)])
    assert frozen == [False] * 8


def test_a_camera_that_was_opened_anew_starts_its_clock_over() -> None:
    """Its first stamp may be any; a repeat of the last picture stays one."""
    watch = FrozenPicture(2.0)
    for n in range(3):
        watch.is_repeat(_changed(n), _A, float(n), float(n))
    watch.reopened()
    assert not watch.is_repeat(_changed(5), _changed(2), 2.0, 10.0) and not watch.frozen
    assert watch.is_repeat(_changed(5), _changed(5), 2.1, 10.1) and not watch.frozen


def test_simulated_parts_differ_from_one_another() -> None:
    """The shipped simulation passes for a live camera."""
    line = SimulatedLine(seed=0, defect_rate=0.0)
    pictures = [line.part(index).picture for index in range(20)]
    repeats, frozen = _look(0.01, [(float(n), picture, None) for n, picture in enumerate(pictures)])
    assert not any(repeats) and not any(frozen)
