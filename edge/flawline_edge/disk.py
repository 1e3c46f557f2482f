"""Whether the disk that the journal lies on runs full: told before it is, while somebody can still make room."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["DiskWatch"]

LEAST_FREE_BYTES = 500_000_000
LEAST_FREE_SHARE = 0.05
"""Of the disk, where that is less: on a small disk half a gigabyte may be all there ever was."""
ENOUGH = 1.5
"""So many times the least ends the alarm: one that comes and goes with every picture says nothing."""
CHECK_S = 10.0


class DiskWatch:
    """`on_change` gets a sentence when the disk runs full, and an empty one when there is room again. Called from one thread."""

    def __init__(self, folder: Path, on_change: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_change = on_change
        self._is_low: bool | None = None
        self._due = 0.0

    def look(self) -> None:
        """At most every ten seconds; cheap otherwise. A disk that cannot be asked is the journal's to tell of."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + CHECK_S
        try:
            disk = shutil.disk_usage(self._folder)
        except OSError:
            return
        least = min(LEAST_FREE_BYTES, LEAST_FREE_SHARE * disk.total)
        is_low = disk.free < (ENOUGH * least if self._is_low else least)
        if is_low != self._is_low:
            self._is_low = is_low
            # No figure in the text: each new one would be another message.
            self._on_change(
                f"the disk of {self._folder} runs full; make room, or lower journal.max_gb" if is_low else ""
            )
