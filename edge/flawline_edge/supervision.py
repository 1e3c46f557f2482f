"""A thread for each lane, and what happens when one ends.

A lane that breaks on what was foreseen (its camera is not there, its engine fails its self-test) is tried again every
10 s, as long as there are other lanes to serve; alone it ends the station, as its message says who has to act. A lane
that dies of anything else is started again at once, 5 times in a minute at most: beyond that the fault is not the part's,
and the service manager should start the whole anew.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flawline_edge.lane import Lane
from flawline_inspect.errors import FlawlineError

__all__ = ["RestartBudget", "Supervisor"]

_log = logging.getLogger(__name__)

RETRY_S = 10.0
"""Pause before a lane that could not be opened is tried again."""
RESTART_S = 0.2
"""Pause before a lane that has died is started again."""
RESTARTS = (5, 60.0)
"""How many restarts there may be in so many seconds."""
END_S = 10.0
"""How long the end waits for lanes that are in the middle of a part."""
POLL_S = 0.05


class RestartBudget:
    """At most so many restarts within so many seconds."""

    def __init__(self, times: int, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._times, self._within_s, self._clock = times, within_s, clock
        self._used: deque[float] = deque()

    def allows(self) -> bool:
        """Whether one more is within the budget; if so it counts."""
        now = self._clock()
        while self._used and now - self._used[0] > self._within_s:
            self._used.popleft()
        if len(self._used) >= self._times:
            return False
        self._used.append(now)
        return True


class _Up(NamedTuple):
    """A lane has opened what it needs."""


class _Over(NamedTuple):
    """A lane has come to its end."""


class _LaneStop(threading.Event):
    """Set for one lane, or by the station's stop: a lane that saw that late would begin another part."""

    def __init__(self, station: threading.Event) -> None:
        super().__init__()
        self._station = station

    def is_set(self) -> bool:
        return super().is_set() or self._station.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(timeout) or self.is_set()


class Supervisor:
    """A context manager: on entering every lane is started, on leaving every one is ended and closed.

    `stop` ends the station.
    """

    def __init__(self, lanes: Sequence[Lane], stop: threading.Event) -> None:
        self.restarts = 0
        """How often a lane that had died was started again."""
        self.left_out: list[Lane] = []
        """Lanes that broke and cannot be started again."""
        self._lanes = lanes
        self._stop = stop
        self._first_error: Exception | None = None
        self._news: queue.SimpleQueue[tuple[Lane, _Up | _Over | BaseException]] = queue.SimpleQueue()
        self._may_begin = threading.Event()
        self._running: dict[Lane, tuple[threading.Thread, threading.Event]] = {}
        self._again_at: dict[Lane, float] = {}
        self._opening: set[Lane] = set()
        self._budget = RestartBudget(*RESTARTS)

    def __enter__(self) -> Supervisor:
        for lane in self._lanes:
            self._start(lane)
        return self

    def __exit__(self, *exc: object) -> None:
        for _, stop in self._running.values():
            stop.set()
        until = time.monotonic() + END_S
        for lane in self._lanes:
            thread = self._running[lane][0] if lane in self._running else None
            if thread is not None:
                thread.join(max(0.0, until - time.monotonic()))
            hangs = thread is not None and thread.is_alive()
            if hangs:
                _log.error("camera %s: its part does not come to an end; leaving it behind", lane.name)
            lane.close(hangs=hangs)

    def open(self) -> None:
        """Wait until every lane is open or has failed. Raises what is wrong when none can be served."""
        while self._opening and not self._stop.is_set() and self._hear():
            pass
        if not self._running and self._first_error is not None:
            raise self._first_error

    def begin(self) -> None:
        """Let the lanes make verdicts."""
        self._may_begin.set()

    def watch(self) -> bool:
        """Until `stop` or the end of every source. False: a lane dies again and again, and the station must end.

        Raises what the last lane broke on, and what is meant to end the program, such as `KeyboardInterrupt`.
        """
        while (self._running or self._again_at) and not self._stop.is_set():
            if not self._hear():
                return False
            due = [lane for lane, at in self._again_at.items() if at <= time.monotonic()]
            for lane in due:
                del self._again_at[lane]
                self._start(lane)
        return True

    def _start(self, lane: Lane) -> None:
        stop = _LaneStop(self._stop)

        def run() -> None:
            news: _Over | BaseException = _Over()
            try:
                lane.serve(lambda: self._news.put((lane, _Up())), self._may_begin, stop)
            except BaseException as exc:  # the top of the thread: `watch` decides
                news = exc
            self._news.put((lane, news))

        thread = threading.Thread(target=run, name=f"lane-{lane.name}", daemon=True)
        self._running[lane] = (thread, stop)
        self._opening.add(lane)
        thread.start()

    def _hear(self) -> bool:
        """Take one piece of news, if there is any. Returns whether the station may go on."""
        try:
            lane, news = self._news.get(timeout=POLL_S)
        except queue.Empty:
            return True
        self._opening.discard(lane)
        if isinstance(news, _Up):
            return True
        self._running.pop(lane)[0].join()
        if isinstance(news, _Over):
            return True
        if not isinstance(news, Exception):
            raise news
        return self._bury(lane, news)

    def _bury(self, lane: Lane, error: Exception) -> bool:
        self._first_error = self._first_error or error
        if isinstance(error, FlawlineError):
            if not self._running and not self._again_at:
                raise error
            lane.fail(error)
            if lane.is_live:
                _log.error("camera %s: %s; trying again in %g s", lane.name, error, RETRY_S)
                self._again_at[lane] = time.monotonic() + RETRY_S
            else:
                # From the beginning it would show the parts again that have their verdicts.
                _log.error("camera %s: %s; it is left out, the others go on", lane.name, error)
                self.left_out.append(lane)
            return True
        _log.error("camera %s: has died of what was not foreseen", lane.name, exc_info=error)
        lane.fail(error)
        if not self._budget.allows():
            _log.error("more than %d lanes have died within %g s; the station ends", *RESTARTS)
            return False
        self.restarts += 1
        self._again_at[lane] = time.monotonic() + RESTART_S
        return True
