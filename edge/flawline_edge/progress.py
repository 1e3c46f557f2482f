"""Whether the inspection goes on: who has to come round, and who has.

A lane is one loop that takes parts from trigger to verdict. It says so at every turn, also at those in which nothing was
there to do, and says when it begins to wait for something that may take its time. What is fed from here (the service
manager's watchdog, the status file) therefore starves when a lane hangs in a camera, an engine or a lock, whatever
other threads are alive.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Lane", "Progress"]


class Lane:
    """One loop's word that it goes round. Its methods belong to the loop's thread, and wait for nothing."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.rounds = 0
        self.is_waiting = False
        self.is_over = False
        self._clock = clock
        self._thread = threading.get_ident()
        self.last_round = clock()

    def came_round(self) -> None:
        self._thread = threading.get_ident()
        self.last_round = self._clock()
        self.rounds += 1

    @property
    def idle_s(self) -> float:
        return self._clock() - self.last_round

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait that may be long and is right to be: for the next picture of a slow folder, for a schedule."""
        self.is_waiting = True
        try:
            yield
        finally:
            self.came_round()
            self.is_waiting = False

    def over(self) -> None:
        """The loop has ended, and nobody need wait for it any more."""
        self.is_over = True

    def stack(self) -> str:
        """Where its thread is just now, as a traceback; empty when the thread is gone."""
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""


class Progress:
    """All lanes of a station. `has_advanced` is one caller's question; lanes may come and go meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lanes: tuple[Lane, ...] = ()
        self._seen: dict[Lane, int] = {}
        self._registering = threading.Lock()

    def lane(self, name: str) -> Lane:
        """A new lane, from the thread of its loop."""
        lane = Lane(name, self._clock)
        with self._registering:
            self._lanes = (*(other for other in self._lanes if not other.is_over), lane)
        return lane

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Those that are not over."""
        return tuple(lane for lane in self._lanes if not lane.is_over)

    def has_advanced(self) -> bool:
        """Whether every lane came round since this was last True, or waits for what it may wait for."""
        rounds = {lane: lane.rounds for lane in self.lanes}
        if any(self._seen.get(lane) == n and not lane.is_waiting for lane, n in rounds.items()):
            return False
        self._seen = rounds
        return True

    def stuck(self, after_s: float) -> list[Lane]:
        """The lanes that have not come round for this long, and do not wait."""
        return [lane for lane in self.lanes if not lane.is_waiting and lane.idle_s > after_s]
