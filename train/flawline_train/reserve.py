"""Of `--minutes`, how much belongs to the fit: the rest is kept for what comes after it."""

from __future__ import annotations

import time

__all__ = ["end_of_fit", "has_time_for_report"]

_RESERVE_S = 14.0
"""Kept for export and writing."""
_RESERVE_PER_PICTURE_S = 0.06
_RESERVE_PER_TILE_S = 0.02
"""Beyond the first: a quarter of the pictures, golden and shown ones go through the network whole."""
_RESERVE_PER_READING = 40.0
"""Golden pictures are read, damaged and written at camera size; all of it takes about this many times the reading of one."""
_RESERVE_REPORT_S = 6.0
"""Collecting and rendering take 5 to 6 s of one core for 300 pictures at 128 or 256 px and 2.3 M parameters."""
_RESERVE_LIMIT = 0.5
"""At least half of the time that is left goes into training."""


def end_of_fit(
    started: float, minutes: float, n_pictures: int, reading_s: float, report: bool = False, tiles: float = 1.0
) -> float:
    """The moment of the monotonic clock at which the fit has to end so that all since `started` takes `minutes`.

    `reading_s`: seconds that reading one picture took. `report`: one is to follow. `tiles`: how many
    times the pixels of a crop a texture's frame has.
    """
    end, now = started + 60 * minutes, time.monotonic()
    wanted = _RESERVE_S + _RESERVE_PER_PICTURE_S * n_pictures + _RESERVE_PER_READING * reading_s
    wanted += _RESERVE_REPORT_S * report + _RESERVE_PER_TILE_S * (tiles - 1) * n_pictures
    reserve = min(wanted, _RESERVE_LIMIT * (end - now))
    return max(now + 1.0, end - reserve)


def has_time_for_report(started: float, minutes: float) -> bool:
    """Whether at least half of what a report usually takes is left of `minutes`."""
    return started + 60 * minutes - time.monotonic() >= _RESERVE_REPORT_S / 2
