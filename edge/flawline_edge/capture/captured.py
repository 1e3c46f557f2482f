"""A live camera that a process of its own captures: watched, ended when it hangs, started again, told of honestly."""

from __future__ import annotations

import functools
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from flawline_edge.cameras.window import FrameWindow
from flawline_edge.capture.process import CaptureProcess
from flawline_edge.capture.ring import FrameRing
from flawline_edge.capture.task import LONGEST_RETRY_PAUSE_S, CaptureTask, task_of
from flawline_inspect.config import CameraConfig
from flawline_inspect.errors import CameraError

__all__ = ["CaptureCounts", "CapturedCamera"]

_log = logging.getLogger(__name__)

START_LIMIT_S = 60.0
"""For Python and OpenCV to come from a cold, slow disk."""
GRACE_S = 1.0
"""A driver that keeps to its time-outs says so itself, a little after them."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
"""Between the end of a process and the start of the next one; longer with each that gives no frame."""
LEAVE_S = 2.5
"""A little more than the child takes before it ends with or without its camera."""
_END_S = 3.0
_KEPT_ARRIVALS = 64
"""More than a ring has slots."""


@dataclass(frozen=True, slots=True)
class CaptureCounts:
    """Since entering. `restarts`: processes started after the first; `timeouts`: those ended because they hung;
    `failures`: times the camera was lost; `repeated`: pictures that were the last one again, and no news;
    `dropped` and `missed` as in `FrameWindow`."""

    restarts: int
    timeouts: int
    failures: int
    repeated: int
    dropped: int
    missed: int


class CapturedCamera(FrameWindow):
    """The frames of a camera in a process of its own.

    Entering waits until the camera is open, and raises `CameraError` when it cannot be opened. From then on whatever
    happens to it shows as `error` until a frame comes; a process that ends, or hangs for longer than the task allows,
    is replaced after 0.2 to 10 s, for as long as it takes.
    """

    def __init__(self, task: CaptureTask) -> None:
        super().__init__(_KEPT_ARRIVALS)
        self._task = task
        self._stop = threading.Event()
        self._entered = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: CaptureProcess | None = None
        self._ring: FrameRing | None = None
        self._seq = 0
        self._was_open = False
        self._restarts = self._timeouts = self._repeated = 0

    @classmethod
    def of(cls, camera: CameraConfig) -> CapturedCamera:
        """The camera as it is configured; its source must be a live one."""
        return cls(task_of(camera))

    def __enter__(self) -> CapturedCamera:
        if not self._closed:
            raise RuntimeError("CapturedCamera is entered already")
        self._open()
        self._stop, self._entered = threading.Event(), threading.Event()
        self._was_open = False
        self._restarts = self._timeouts = self._repeated = 0
        self._thread = threading.Thread(target=self._supervise, name=f"capture-{self._task.name}", daemon=True)
        self._thread.start()
        try:
            self._entered.wait()
            if not self._was_open:
                assert self.error is not None
                raise self.error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
        with self._changed:
            self._stop.set()
            process = self._process
        if process is not None:
            process.leave()
        if self._thread is not None:
            self._thread.join(LEAVE_S)
            if self._thread.is_alive() and process is not None:
                _log.warning(
                    "%s: the camera is not released within %g s; its process is ended", self._task.name, LEAVE_S
                )
                process.kill()
                self._thread.join(_END_S)
            self._thread = None
        self._ring = None

    @property
    def counts(self) -> CaptureCounts:
        with self._changed:
            return CaptureCounts(
                self._restarts, self._timeouts, self._failures, self._repeated, self._dropped, self._missed
            )

    @property
    def pid(self) -> int | None:
        """The capture process; None while there is none."""
        with self._changed:
            return self._process.pid if self._process is not None else None

    def _supervise(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set():
            frames_before = self._read
            try:
                if self._run_once():
                    return
            except Exception as exc:  # the top of the thread: without it a camera would be dead without a word
                _log.exception("%s: supervising the capture process failed", self._task.name)
                self._fail(CameraError(f"{self._task.name}: supervising the capture process failed: {exc!r}"))
            self._entered.set()  # with an error: a start that failed
            if self._read > frames_before:
                pause_s = FIRST_PAUSE_S
            if self._stop.wait(pause_s):
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._restarts += 1

    def _run_once(self) -> bool:
        """From the start of a process to its end. Returns whether that was the end of the source, or of the wish for it."""
        with self._changed:  # so that leaving finds either no process or this one
            if self._stop.is_set():
                return True
            try:
                process = self._process = CaptureProcess(self._task)
            except OSError as exc:
                self._fail(CameraError(f"{self._task.name}: no process to capture it can be started ({exc.strerror})"))
                return False
        self._seq = 0
        why = ""
        try:
            ended, why = self._follow(process)
        finally:
            with self._changed:
                self._process = None
            if why:
                process.kill()
            how = process.reap()
        if self._stop.is_set():
            return True
        if ended:
            self._end()
        else:
            said = why or f"its capture process ended unexpectedly ({how})"
            again = "; it is started again" if self._was_open else ""
            self._fail(CameraError(f"{self._task.name}: {said}{again}"))
        return ended

    def _follow(self, process: CaptureProcess) -> tuple[bool, str]:
        """Receive until the end of the source (true), or that of the process, or until it hangs (and how)."""
        task = self._task
        limit_s, doing = START_LIMIT_S, "the capture process does not start"
        heard = time.monotonic()
        while True:
            try:
                received = process.receive(heard + limit_s - time.monotonic())
            except EOFError:
                return False, ""
            if received is None:
                if self._stop.is_set():
                    return False, ""
                self._timeouts += 1
                return False, f"{doing} for {limit_s:g} s; check the camera, its cable and its driver"
            message, fd = received
            kind = message["kind"]
            if kind == "log":
                _log_as(message)
                continue
            heard = time.monotonic()
            if kind == "ended":
                return True, ""
            if kind == "opening":
                limit_s, doing = task.open_timeout_s + GRACE_S, "opening the camera does not return"
            elif kind == "error":
                # A read after a failure may pause and open the camera first.
                limit_s = LONGEST_RETRY_PAUSE_S + task.open_timeout_s + 2 * task.read_timeout_s + GRACE_S
                doing = "the lost camera is not heard of"
            else:
                limit_s, doing = task.read_timeout_s + GRACE_S, "the camera's read does not return"
            self._take(kind, message, fd)
            if kind in ("entered", "error"):
                self._was_open = self._was_open or kind == "entered"
                self._entered.set()

    def _take(self, kind: str, message: dict[str, Any], fd: int | None) -> None:
        if kind == "ring":
            assert fd is not None
            self._ring = FrameRing(fd, message["slots"], message["slot_bytes"])
        elif kind == "frame":
            assert self._ring is not None
            seq = message["seq"]
            load = functools.partial(self._ring.read, message["slot"], seq)
            self._put(message["captured_monotonic"], load, passed=seq - self._seq)
            self._seq = seq
        elif kind == "repeat":
            self._repeated += 1
            if message["error"]:
                self._fail(CameraError(message["error"]))
        elif kind == "error":
            self._fail(CameraError(message["error"], exit_code=message["exit_code"]))


def _log_as(message: dict[str, Any]) -> None:
    logging.getLogger(message["name"]).log(message["level"], "%s", message["text"])
