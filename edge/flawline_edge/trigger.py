"""A trigger, its one slot, and the clock that closes it.

Each accepted trigger has one slot, and whoever claims it first publishes: the inspection with its verdict, or the deadline
clock with Undefined `deadline`. That is the whole of "exactly one verdict": nobody publishes without a claim.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["DeadlineClock", "Trigger"]

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Trigger:
    """An accepted trigger. `accepted` is wall clock (s since the epoch); `started` and `deadline` are monotonic (s).

    `started` is the acceptance for a trigger that was sent, and the capture for a free-running frame.
    """

    seq: int
    id: str
    part: str
    accepted: float
    started: float
    deadline: float
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _claimed: bool = False

    def claim(self) -> bool:
        """True exactly once, for the caller who may publish this trigger's verdict."""
        with self._lock:
            if self._claimed:
                return False
            self._claimed = True
            return True

    @property
    def claimed(self) -> bool:
        with self._lock:
            return self._claimed


class DeadlineClock:
    """Calls `on_deadline(trigger)` for each trigger that it could claim at its deadline.

    A context manager around one thread. Triggers are watched in order of acceptance; all have the same time, so
    their deadlines come in that order too.
    """

    def __init__(self, on_deadline: Callable[[Trigger], None]) -> None:
        self._on_deadline = on_deadline
        self._changed = threading.Condition()
        self._watched: deque[Trigger] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="deadline", daemon=True)

    def __enter__(self) -> DeadlineClock:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(2.0)

    def watch(self, trigger: Trigger) -> None:
        with self._changed:
            self._watched.append(trigger)
            if len(self._watched) == 1:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._watched and self._watched[0].claimed:
                    self._watched.popleft()
                if self._stopped:
                    return
                if not self._watched:
                    self._changed.wait()
                    continue
                wait_s = self._watched[0].deadline - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                due = self._watched.popleft()
            if due.claim():
                try:
                    self._on_deadline(due)
                except Exception:
                    # The top of the thread: without it every later deadline would pass in silence.
                    _log.exception("the deadline of trigger %s could not be served", due.id)
