"""Whether the inspection goes on: who has to come round, and who has.

A loop takes parts from trigger to verdict, or pictures from a camera. It says so at every turn, also at those in which
nothing was there to do: while it waits for a camera or a trigger it comes round ten times a second. What is fed from here
(the service manager's watchdog, the status file) therefore starves when a loop hangs in a camera, an engine or a lock,
whatever other threads are alive.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Loop", "Progress"]


class Loop:
    """One loop's word that it goes round. `came_round` belongs to the loop's thread, and waits for nothing."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.rounds = 0
        self._clock = clock
        self.last_round = clock()
        self._thread = threading.get_ident()

    def came_round(self) -> None:
        self._thread = threading.get_ident()
        self.last_round = self._clock()
        self.rounds += 1

    @property
    def idle_s(self) -> float:
        """Since it last came round."""
        return self._clock() - self.last_round

    def stack(self) -> str:
        """Where its thread is just now, as a traceback; empty when the thread is gone."""
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""


class Progress:
    """The loops of a station that have to come round. `has_advanced` is one caller's question; loops come and go."""

    def __init__(self) -> None:
        self._loops: tuple[Loop, ...] = ()
        self._seen: dict[Loop, int] = {}
        self._changing = threading.Lock()

    @contextmanager
    def watch(self, loop: Loop) -> Iterator[None]:
        """Around the loop, on its own thread."""
        loop.came_round()
        with self._changing:
            self._loops = (*self._loops, loop)
        try:
            yield
        finally:
            with self._changing:
                self._loops = tuple(other for other in self._loops if other is not loop)

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Those that are watched."""
        return self._loops

    def has_advanced(self) -> bool:
        """Whether every loop came round since this was last True."""
        rounds = {loop: loop.rounds for loop in self._loops}
        if any(self._seen.get(loop) == n for loop, n in rounds.items()):
            return False
        self._seen = rounds
        return True

    def stuck(self, after_s: float) -> list[Loop]:
        """The loops that have not come round for this long."""
        return [loop for loop in self._loops if loop.idle_s > after_s]
