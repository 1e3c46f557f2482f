"""The wall clock, in one place: it jumps, so it is for what people read; durations use `time.monotonic`."""

from __future__ import annotations

import time

__all__ = ["wall_clock"]


def wall_clock() -> float:
    """Seconds since the epoch, UTC."""
    return time.time()  # noqa: TID251  # the one allowed place
