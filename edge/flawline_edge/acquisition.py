"""Where a lane's parts come from: the kinds of trigger, on a camera that is live or on one that loses no picture.

    free       live: the newest frame is a part, older ones are dropped and counted; else picture by picture
    camera     each frame is a part: the hardware has triggered it; what cannot be served gets `overrun`
    mqtt       somebody asks, and the first frame that began after it is the answer; else the next picture
    interval   as mqtt, and a clock asks

`run_free` and `run_through` inspect on the thread that calls them; the others run beside the one that judges, so that
a part is captured while the one before it is judged. All return when `stop` is set or the source has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from flawline_edge.cameras import Camera, CameraFrame, FrameWindow, PictureLost
from flawline_inspect.decision import Decision
from flawline_inspect.verdict import Reason

if TYPE_CHECKING:
    from flawline_edge.intake import Waiting
    from flawline_edge.lane import Lane

__all__ = ["POLL_S", "capture_each", "capture_in_order", "capture_on_demand", "run_free", "run_through", "tick"]

_log = logging.getLogger(__name__)

POLL_S = 0.1
"""How long anything here waits before it looks whether it should stop."""
RATE_SLACK = 0.25
"""A frame may come this share of the shortest interval early: a camera's clock is not ours, and its frames tremble."""

_CAMERA = Decision.undefined(Reason.CAMERA)


def run_free(lane: Lane, newest: FrameWindow, stop: threading.Event) -> None:
    """Free-running, live: the newest frame is a part, at most `max_rate` a second."""
    ready = due = time.monotonic()
    dropped_before, too_early = lane.dropped, 0
    while not stop.is_set() and not newest.ended:
        lane.idle()
        frame = newest.get(POLL_S)
        lane.note_camera(newest.error)
        if frame is None or frame.arrived_monotonic < ready or lane.is_paused:
            continue  # what passed during the start was not inspected, and says nothing about now
        shortest_s = 1 / lane.trigger.max_rate
        if frame.arrived_monotonic < due - RATE_SLACK * shortest_s:
            too_early += 1
        else:
            due = max(due, frame.arrived_monotonic - RATE_SLACK * shortest_s) + shortest_s
            lane.inspect(frame)
        lane.dropped = dropped_before + newest.dropped + too_early


def run_through(lane: Lane, camera: Camera, stop: threading.Event) -> None:
    """A folder or video, free-running or triggering by itself: picture by picture at its own pace, none dropped."""
    due = time.monotonic()
    for picture in _each(camera):
        while (wait_s := due - time.monotonic()) > 0 or lane.is_paused:
            lane.idle()
            if stop.wait(min(POLL_S, wait_s) if wait_s > 0 else POLL_S):
                return
        if stop.is_set():
            return
        lane.idle()
        shortest_s = 1 / lane.trigger.max_rate if lane.trigger.kind == "free" else 0.0
        due = max(due + max(camera.interval_s, shortest_s), time.monotonic())
        if isinstance(picture, PictureLost):
            _log.warning("%s", picture)
            lane.settle_unseen(picture.part, _CAMERA)
        else:
            # The deadline runs from here, not from the reading ahead.
            lane.inspect(replace(picture, arrived_monotonic=time.monotonic()))


def capture_each(lane: Lane, newest: FrameWindow, stop: threading.Event) -> None:
    """A live camera that the hardware triggers: every frame is a part, also one that was replaced before it was seen."""
    ready, missed_before = time.monotonic(), newest.dropped
    while not stop.is_set() and not newest.ended:
        lane.capture_came_round()
        frame = newest.get(POLL_S)
        lane.note_camera(newest.error)
        missed, missed_before = newest.dropped - missed_before, newest.dropped
        if frame is None or frame.arrived_monotonic < ready:
            continue
        for _ in range(missed):
            lane.refuse_unseen(Reason.OVERRUN)
        lane.intake.offer(frame.part, started=frame.arrived_monotonic, frame=frame)


def capture_on_demand(lane: Lane, newest: FrameWindow, stop: threading.Event) -> None:
    """A live camera that is asked: the answer is the first frame that began `delay_ms` after the trigger, or later."""
    while not stop.is_set() and not newest.ended:
        lane.capture_came_round()
        lane.note_camera(newest.error)
        waiting = lane.intake.next_to_capture(POLL_S)
        if waiting is None:
            continue
        after = waiting.trigger.started + lane.trigger.delay_ms / 1e3
        frame = None
        while not (stop.is_set() or newest.ended or newest.error is not None) and waiting.trigger.is_open:
            lane.capture_came_round()
            frame = newest.get_after(after, POLL_S)
            if frame is not None:
                break
        _answer(lane, waiting, frame, Reason.STOPPED if stop.is_set() else Reason.CAMERA)


def capture_in_order(lane: Lane, camera: Camera, stop: threading.Event) -> None:
    """A folder or video that is asked: one picture a trigger, until there are no more."""
    for picture in _each(camera):
        while (waiting := lane.intake.next_to_capture(POLL_S)) is None:
            lane.capture_came_round()
            if stop.is_set():
                return
        lane.capture_came_round()
        if isinstance(picture, PictureLost):
            _log.warning("%s", picture)
            waiting.trigger.part = waiting.trigger.part or picture.part
            lane.intake.fill(waiting, _CAMERA)
        else:
            _answer(lane, waiting, picture, Reason.CAMERA)
        if stop.is_set():
            return


def tick(lane: Lane, stop: threading.Event) -> None:
    """A trigger every `interval_ms`, from the clock; ticks that a busy machine overslept are not made up for."""
    due = time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        if not lane.is_paused:
            lane.intake.offer()
        due = max(due + lane.trigger.interval_ms / 1e3, time.monotonic())


def _answer(lane: Lane, waiting: Waiting, frame: CameraFrame | None, otherwise: Reason) -> None:
    if frame is not None:
        waiting.trigger.part = waiting.trigger.part or frame.part
    lane.intake.fill(waiting, frame or Decision.undefined(otherwise))


def _each(camera: Camera) -> Iterator[CameraFrame | PictureLost]:
    """The pictures of a camera that loses none; one that cannot be read comes as its error."""
    while True:
        try:
            frame = camera.read()
        except PictureLost as lost:
            yield lost
        else:
            if frame is None:
                return
            yield frame
