"""A lane: one camera, what triggers it, and the recipe that judges its pictures.

A lane's life is `serve`, on a thread of its own. Nothing that fails in it reaches another lane: they share the verdict's
path, which only passes on, and where they judge by the same model its engine, which tells each of its own frames.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from flawline_edge.acquisition import (
    POLL_S,
    capture_each,
    capture_in_order,
    capture_on_demand,
    run_free,
    run_through,
    tick,
)
from flawline_edge.cameras import Camera, CameraFrame, FrameWindow, NewestFrame
from flawline_edge.capture import CapturedCamera
from flawline_edge.inspector import Inspector
from flawline_edge.intake import Change, Intake, Waiting
from flawline_edge.progress import Loop, Progress
from flawline_edge.trigger import Terms
from flawline_edge.verdict_path import Alarms, VerdictPath
from flawline_inspect.config import CameraConfig, TriggerConfig
from flawline_inspect.decision import Decision, DecisionRule
from flawline_inspect.errors import CameraError
from flawline_inspect.verdict import Reason

__all__ = ["WAITING_FRAMES", "WAITING_TRIGGERS", "Lane"]

_log = logging.getLogger(__name__)

WAITING_TRIGGERS = 16
"""Triggers that may wait behind the one in work; the next one gets `overrun` at once."""
WAITING_FRAMES = 8
"""The same where each brings its picture: a camera's frames are large."""
_JOIN_S = 2.0


class Lane:
    """`trigger` and `camera` are the configuration in force; what can be changed live is read anew for each part.

    `on_change()` is called, by any thread, when state, recipe or threshold have changed. `progress` watches its loops.
    `frames()` gives what captures a camera that is live; one that is not is read through `source`. Building it touches
    nothing.
    """

    def __init__(
        self,
        camera: CameraConfig,
        source: Camera,
        trigger: TriggerConfig,
        inspector: Inspector,
        *,
        path: VerdictPath,
        alarms: Alarms,
        on_change: Callable[[], None],
        progress: Progress,
        frames: Callable[[], NewestFrame | CapturedCamera],
    ) -> None:
        self.name = camera.name
        self.camera = camera
        self.trigger = trigger
        self.inspector = inspector
        """Of the triggers that are accepted from now on."""
        limit = WAITING_FRAMES if trigger.kind == "camera" else WAITING_TRIGGERS
        self.intake = Intake(path, camera.name, inspector.terms, limit)
        self.dropped = 0
        """Frames that were replaced by a newer one and were no triggers."""
        self.camera_losses = 0
        """How often its camera was lost."""
        self._progress = progress
        self._judges = Loop(camera.name)
        self._captures = Loop(f"{camera.name} (capture)")
        self._source = source
        self._frames = frames
        self._judging = inspector
        self._path = path
        self._alarms = alarms
        self._on_change = on_change
        self._lock = threading.Lock()
        self._retiring: list[threading.Thread] = []
        self._is_paused = False
        self._is_up = False
        self._is_over = False
        self._camera_is_lost = False
        self._failure: tuple[str, Reason] | None = None

    # --- what it is like -------------------------------------------------------------------------------------------

    @property
    def state(self) -> tuple[str, str]:
        """State and reason, as ROOT/state says them: starting, ready, paused or fault; and over at a source's end."""
        if self._failure is not None:
            return "fault", self._failure[0]
        if self._camera_is_lost:
            return "fault", "camera"
        if self._is_over:
            return "over", ""
        if not self._is_up:
            return "starting", ""
        return ("paused", "") if self._is_paused else ("ready", "")

    @property
    def progress(self) -> float:
        """When the thread that judges last came round, monotonic s: older than the longest part, it hangs."""
        return self._judges.last_round

    @property
    def is_live(self) -> bool:
        """Whether its camera can be started again without showing a part twice."""
        return self._source.live

    @property
    def is_up(self) -> bool:
        """Whether it is being served, at least while its camera is lost."""
        return self._is_up

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    @property
    def terms(self) -> Terms:
        """Recipe, model and threshold of the next trigger."""
        return self.intake.terms

    @property
    def waiting(self) -> int:
        """How many triggers wait behind the one in work."""
        return self.intake.depth

    # --- what is asked of it ---------------------------------------------------------------------------------------

    def pause(self, paused: bool) -> None:
        """From now on triggers get `paused`, and frames that are none by themselves are no parts; or no longer."""
        self._is_paused = paused
        self._show()

    def switch(self, inspector: Inspector) -> bool:
        """Take over an entered inspector between two parts. Returns False, and does not, if nobody serves the lane."""
        with self._lock:
            if not self._is_up:
                return False
            self.inspector = inspector
            self.intake.change(inspector.terms, lambda: self._take_over(inspector))
        self._on_change()
        return True

    def set_rule(self, rule: DecisionRule) -> None:
        """Decide by another threshold or band from the next trigger on."""
        with self._lock:
            inspector = self.inspector
            terms = self.terms._replace(threshold=rule.threshold)
            self.intake.change(terms, lambda: setattr(inspector, "rule", rule))
        self._on_change()

    # --- its life --------------------------------------------------------------------------------------------------

    def serve(self, up: Callable[[], None], may_begin: threading.Event, stop: threading.Event) -> None:
        """Open camera and engine, call `up`, wait for `may_begin`, then make verdicts until `stop` or the source's end.

        `stop` is this call's own. Raises what the lane cannot be served on, and may be called again then.
        """
        with ExitStack() as stack:
            newest = stack.enter_context(self._frames()) if self._source.live else None
            if newest is None:
                stack.enter_context(self._source)
            self._judging.__enter__()
            stack.callback(lambda: self._judging.__exit__(None, None, None))
            stack.callback(self._down)
            self.idle()
            with self._lock:
                self._is_up = True
            up()
            while not may_begin.wait(POLL_S):
                self._judges.came_round()
                if stop.is_set():
                    return
            self._begin()
            with self._progress.watch(self._judges):
                self._make_verdicts(newest, stop)
            self._is_over = True

    def fail(self, error: BaseException) -> None:
        """It is not served any more, or not for now: triggers are refused, those that wait too, and the state says why."""
        word, reason = ("camera", Reason.CAMERA) if isinstance(error, CameraError) else ("engine", Reason.ENGINE)
        self._failure = (word, reason)
        self._alarms.set(word, str(error) or type(error).__name__, camera=self.name)
        self._show()
        self.intake.give_up(Decision.undefined(reason))

    def close(self, *, hangs: bool = False) -> None:
        """After its thread has ended, or if that `hangs`: what still waits gets `stopped`, engines are freed."""
        with self._lock:
            self._is_up = False
        self.intake.finish()
        self.intake.drain()
        if hangs:
            return  # freeing what a thread is in would crash the process, and it is about to end anyway
        self._judging.__exit__(None, None, None)
        for thread in self._retiring:
            thread.join(_JOIN_S)

    def _begin(self) -> None:
        self.intake.begin()
        self._failure, self._camera_is_lost = None, False
        for alarm in ("camera", "engine"):
            self._alarms.set(alarm, "", camera=self.name)
        self._show()

    def _down(self) -> None:
        with self._lock:
            self._is_up = False

    def _make_verdicts(self, newest: FrameWindow | None, stop: threading.Event) -> None:
        kind, source = self.trigger.kind, self._source
        if newest is None and kind in ("free", "camera"):
            run_through(self, source, stop)
        elif newest is None:
            with self._beside(stop, lambda: capture_in_order(self, source, stop)):
                self._judge_what_waits(stop)
        elif kind == "free":
            run_free(self, newest, stop)
        else:
            capture = capture_each if kind == "camera" else capture_on_demand
            with self._beside(stop, lambda: capture(self, newest, stop)):
                self._judge_what_waits(stop)

    @contextmanager
    def _beside(self, stop: threading.Event, capture: Callable[[], None]) -> Iterator[None]:
        """Capture on a thread, and a clock on another where that is the trigger; ended with this block."""

        def passing_on(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as exc:  # for the thread that judges, which raises it
                self.intake.finish(exc)

        def until_the_end() -> None:
            with self._progress.watch(self._captures):
                capture()
            self.intake.finish()

        works = {"capture": until_the_end}
        if self.trigger.kind == "interval":
            works["interval"] = lambda: tick(self, stop)
        threads = [
            threading.Thread(target=passing_on, args=(work,), name=f"{what}-{self.name}", daemon=True)
            for what, work in works.items()
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(_JOIN_S)
                if thread.is_alive():
                    _log.warning("%s does not end; leaving it behind", thread.name)

    def _judge_what_waits(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._judges.came_round()
            head = self.intake.next(POLL_S)
            if isinstance(head, Change):
                head.apply()
            elif head is not None:
                self._serve_waiting(head)
            elif self.intake.is_over:
                break
        if self.intake.error is not None:
            raise self.intake.error

    def _serve_waiting(self, waiting: Waiting) -> None:
        trigger, answer = waiting.trigger, waiting.answer
        if isinstance(answer, CameraFrame) and trigger.is_open:
            self._path.inspect(trigger, answer, self._judging)
        elif isinstance(answer, CameraFrame):
            # Its time was over before its turn came: judging it would only make those behind it late, too.
            self._path.settle(trigger, Decision.undefined(Reason.OVERRUN), answer)
        else:
            assert answer is not None
            self._path.settle(trigger, answer)

    # --- for the acquisition ---------------------------------------------------------------------------------------

    def inspect(self, frame: CameraFrame) -> None:
        """A frame that is a part by itself, from acceptance to publication."""
        trigger, changes = self.intake.accept(frame.part, started=frame.arrived_monotonic)
        for change in changes:
            change.apply()
        self._path.inspect(trigger, frame, self._judging)

    def settle_unseen(self, part: str, decision: Decision) -> None:
        """A part without a picture."""
        trigger, changes = self.intake.accept(part)
        for change in changes:
            change.apply()
        self._path.settle(trigger, decision)

    def refuse_unseen(self, reason: Reason) -> None:
        """A part whose picture was lost before anybody saw it, refused at once."""
        self.intake.refuse_one(reason)

    def idle(self) -> None:
        """Between two parts, by the thread that judges where triggers do not wait: a sign of life, and changes."""
        self._judges.came_round()
        while (change := self.intake.next_change()) is not None:
            change.apply()

    def capture_came_round(self) -> None:
        """By the thread that captures beside the one that judges: a sign of life."""
        self._captures.came_round()

    def note_camera(self, error: CameraError | None) -> None:
        """A lost camera shows as alarm and state, once when it goes and once when it is back."""
        if self._camera_is_lost != (error is not None):
            self._camera_is_lost = error is not None
            self.camera_losses += error is not None
            self._alarms.set("camera", str(error) if error is not None else "", camera=self.name)
            self._show()

    def _take_over(self, inspector: Inspector) -> None:
        before, self._judging = self._judging, inspector
        if before is not inspector:
            # On a thread: freeing a large model takes longer than a part may wait.
            thread = threading.Thread(
                target=before.__exit__, args=(None, None, None), name=f"retired-{self.name}", daemon=True
            )
            self._retiring = [each for each in self._retiring if each.is_alive()] + [thread]
            thread.start()

    def _show(self) -> None:
        # A lost camera is not among the reasons: whoever captures says so, trigger by trigger, until it is back.
        why = self._failure[1] if self._failure is not None else None
        self.intake.refuse(why or (Reason.PAUSED if self._is_paused else None))
        self._on_change()
