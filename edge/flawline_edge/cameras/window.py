"""What came from a live camera last, and who waits for it: newest first for a line that runs freely, in order for a trigger.

A window holds a few arrivals, not pictures: an arrival is when a frame was captured and a way to load it. Where the
frames lie, in this process or in a ring that another one writes, is the business of who fills the window.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from flawline_edge.cameras.camera import CameraFrame
from flawline_inspect.errors import CameraError

__all__ = ["FrameWindow"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A frame whose capture began at `captured_monotonic`; nothing began after `previous_monotonic` and before it.

    `load` gives None once the frame was overwritten.
    """

    captured_monotonic: float
    previous_monotonic: float
    load: Callable[[], CameraFrame | None]


_MOST_EXPECTED = 64
"""Frames set aside for triggers; more than a station lets wait."""


class _Request:
    """A frame is wanted; whoever fills the window sets it aside, or newer ones could overtake the first."""

    __slots__ = ("after", "frame")

    def __init__(self, after: float) -> None:
        self.after = after
        self.frame: CameraFrame | None = None


class FrameWindow:
    """The last `length` frames of a live camera. One consumer at a time, by `get` (every frame is a part) or
    `get_after` (a trigger asks for one); `expect` and `forget` may come from other threads.

    A subclass fills it with `_put`, `_fail` and `_end` between `_open` and `_close`.
    """

    _taken: int
    _dropped: int

    def __init__(self, length: int) -> None:
        self._changed = threading.Condition()
        self._length = length
        self._open()
        self._closed = True

    # --- for the consumer --------------------------------------------------------------------------------------------

    def get(self, timeout_s: float) -> CameraFrame | None:
        """The newest frame, once it is newer than the last one handed out.

        None after `timeout_s` seconds without one; at once when the source has ended.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._changed.wait_for(self._has_news, until - time.monotonic())
                if self._read == self._taken or self._closed:
                    return None
                frame = self._arrivals[-1].load()
                passed, self._taken = self._read - self._taken, self._read
                self._dropped += passed - (frame is not None)
                if frame is not None:
                    return frame

    def get_after(self, monotonic: float, timeout_s: float) -> CameraFrame | None:
        """The first frame whose capture began at `monotonic` (`time.monotonic()`) or later, and no other.

        None after `timeout_s` seconds without one; at once when the source has ended. Asked so late that this frame
        was overwritten, or lost while the camera failed, it is None as well and counted in `missed`: a later frame may
        show the next part. What passed before is not a dropped frame: nobody asked for it.
        """
        with self._changed:
            request = self._expected.pop(monotonic, None) or self._request(monotonic)
            try:
                self._changed.wait_for(lambda: request.frame is not None or self._is_finished(), timeout_s)
            finally:
                self._forget(request)
            if request.frame is None and self._over:
                self._taken = self._read  # too old for this trigger, and so for every later one
            return None if self._closed else request.frame

    def expect(self, monotonic: float) -> None:
        """Set the frame of `get_after(monotonic)` aside when it comes, for a trigger that has to wait for its turn.

        It is held until then, or until `forget`.
        """
        with self._changed:
            self._expected[monotonic] = self._request(monotonic)
            if len(self._expected) > _MOST_EXPECTED:
                self._forget(self._expected.pop(next(iter(self._expected))))

    def forget(self, monotonic: float) -> None:
        """Nobody will ask for the frame that was expected."""
        with self._changed:
            request = self._expected.pop(monotonic, None)
            if request is not None:
                self._forget(request)

    @property
    def dropped(self) -> int:
        """Frames that were replaced by a newer one before `get` came for them."""
        with self._changed:
            return self._dropped

    @property
    def missed(self) -> int:
        """Triggers whose frame was gone when `get_after` came for it."""
        with self._changed:
            return self._missed

    @property
    def failures(self) -> int:
        """How often the camera was lost."""
        with self._changed:
            return self._failures

    @property
    def ended(self) -> bool:
        """Whether the source was finite, is over, and its last frame was handed out."""
        with self._changed:
            return self._over and self._taken == self._read

    @property
    def error(self) -> CameraError | None:
        """Why no frames come; None as soon as one does."""
        with self._changed:
            return self._error

    # --- for who fills it --------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Empty and waiting, all counts at 0."""
        self._arrivals: deque[_Arrival] = deque(maxlen=self._length)
        self._requests: list[_Request] = []
        self._expected: dict[float, _Request] = {}
        self._read = 0  # frames that came
        self._taken = 0  # number of the last frame handed out, from 1
        self._dropped = self._missed = self._failures = 0
        self._missed_after = -math.inf
        self._latest = -math.inf  # when the capture of the last frame that came began
        self._lost_until = -math.inf  # frames before this may have been lost to a failure
        self._over = False
        self._error: CameraError | None = None
        self._closed = False

    def _close(self) -> None:
        """Nobody waits any longer, and nothing more is handed out."""
        with self._changed:
            self._closed = True
            self._arrivals.clear()  # and with them the memory that frames lie in
            self._expected.clear()
            self._changed.notify_all()

    def _put(self, captured_monotonic: float, load: Callable[[], CameraFrame | None], *, passed: int = 1) -> None:
        """A frame has come, the last of `passed` since the one before; the others are gone already."""
        with self._changed:
            if self._closed:
                return
            if self._error is not None:
                _log.info("the camera is back")
                self._error = None
            # Of frames that nobody told of, any may have been the first after a trigger.
            previous = max(self._latest if passed == 1 else captured_monotonic, self._lost_until)
            arrival = _Arrival(captured_monotonic, previous, load)
            self._arrivals.append(arrival)
            self._latest = captured_monotonic
            self._read += passed
            answered = [each for each in self._requests if captured_monotonic >= each.after]
            if answered:
                frame = load()  # once for all
                for request in answered:
                    request.frame = self._load_first(replace(arrival, load=lambda: frame), request.after)
                    self._requests.remove(request)
                self._taken = self._read
            self._changed.notify_all()

    def _fail(self, error: CameraError) -> None:
        """No frames come. It shows until one does; the first of a row is logged."""
        with self._changed:
            if self._error is None:
                self._failures += 1
                _log.warning("the camera is lost: %s", error, exc_info=error.__cause__)
            self._error = error
            self._lost_until = time.monotonic()

    def _end(self) -> None:
        """The source was finite and is over."""
        with self._changed:
            self._error = None
            self._over = True
            self._changed.notify_all()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _request(self, after: float) -> _Request:
        """Answered with what is here already, or among those whom the next frames answer."""
        request = _Request(after)
        here = next((each for each in self._arrivals if each.captured_monotonic >= after), None)
        if here is not None:
            self._taken = self._read
            request.frame = self._load_first(here, after)
        else:
            self._requests.append(request)
        return request

    def _forget(self, request: _Request) -> None:
        if request in self._requests:
            self._requests.remove(request)

    def _load_first(self, arrival: _Arrival, after: float) -> CameraFrame | None:
        """The frame of the first arrival known to have begun at `after` or later, if it surely is the first."""
        frame = arrival.load() if arrival.previous_monotonic < after else None
        if frame is None and after != self._missed_after:
            self._missed, self._missed_after = self._missed + 1, after
            _log.warning("the first frame after a trigger was gone before it was asked for")
        return frame

    def _has_news(self) -> bool:
        return self._read > self._taken or self._is_finished()

    def _is_finished(self) -> bool:
        return self._over or self._closed
