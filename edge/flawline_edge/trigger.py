"""A trigger, its one slot, and the clock that closes it.

Each accepted trigger has one slot, and whoever takes it publishes the trigger's verdict. That is the whole of "exactly
one verdict": nobody publishes without the slot, and the slot is taken once.

    open ──decide──> decided    the inspection, before the deadline
     ├────expire──> expired     the deadline clock, from the deadline on: Undefined `deadline`
     └────refuse──> refused     whoever cannot serve it: Undefined `overrun`, `paused`, `stopped` ...
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

__all__ = ["DeadlineClock", "Slot", "Terms", "Trigger"]

_log = logging.getLogger(__name__)


class Slot(Enum):
    OPEN = "open"
    DECIDED = "decided"
    EXPIRED = "expired"
    REFUSED = "refused"


class Terms(NamedTuple):
    """What a part is judged by, fixed when its trigger is accepted."""

    recipe: int
    model: str
    threshold: float


_NO_TERMS = Terms(0, "", 0.0)


@dataclass(eq=False, slots=True)
class Trigger:
    """An accepted trigger. `accepted` is wall clock (s since the epoch); `started` and `deadline` are monotonic (s).

    `started` is the acceptance for a trigger that was sent, and the capture for a frame that is one by itself. Times
    given to the methods are monotonic, too.
    """

    seq: int
    id: str
    part: str
    accepted: float
    started: float
    deadline: float
    terms: Terms = _NO_TERMS
    camera: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _slot: Slot = Slot.OPEN

    def decide(self, now: float) -> bool:
        """Whether the caller, who has a decision, may publish it: the slot is open and the deadline not over."""
        return now < self.deadline and self._take(Slot.DECIDED)

    def expire(self, now: float) -> bool:
        """Whether the caller has to publish that the deadline is over."""
        return now >= self.deadline and self._take(Slot.EXPIRED)

    def refuse(self) -> bool:
        """Whether the caller has to publish why the trigger is not served."""
        return self._take(Slot.REFUSED)

    @property
    def slot(self) -> Slot:
        with self._lock:
            return self._slot

    @property
    def is_open(self) -> bool:
        """Whether the trigger still waits for its verdict."""
        return self.slot is Slot.OPEN

    def _take(self, slot: Slot) -> bool:
        with self._lock:
            if self._slot is not Slot.OPEN:
                return False
            self._slot = slot
            return True


class DeadlineClock:
    """Calls `on_deadline(trigger)` for each trigger whose slot was still open at its deadline; who is called takes it.

    A context manager around one thread. Triggers may be watched in any order: a frame's time begins with its capture,
    so that it may have less of it left than a trigger that was accepted before it.
    """

    def __init__(self, on_deadline: Callable[[Trigger], None]) -> None:
        self._on_deadline = on_deadline
        self._changed = threading.Condition()
        self._watched: list[tuple[float, int, Trigger]] = []  # a heap; the number keeps triggers from being compared
        self._number = 0
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
            self._number += 1
            heapq.heappush(self._watched, (trigger.deadline, self._number, trigger))
            if self._watched[0][2] is trigger:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._watched and not self._watched[0][2].is_open:
                    heapq.heappop(self._watched)
                if self._stopped:
                    return
                if not self._watched:
                    self._changed.wait()
                    continue
                wait_s = self._watched[0][0] - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                due = heapq.heappop(self._watched)[2]
            try:
                self._on_deadline(due)
            except Exception:
                # The top of the thread: without it every later deadline would pass in silence.
                _log.exception("the deadline of trigger %s could not be served", due.id)
