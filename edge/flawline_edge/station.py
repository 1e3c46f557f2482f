"""The station: one part after the other from trigger to verdict.

    trigger → camera → fit to frame → engine → decision → journal → MQTT
                                                            └→ observers (console, pictures of rejects)

The inspection runs on the thread that calls `run`. Beside it: a reader for a live camera, the journal's writer, the
publisher's threads and the deadline clock. Observers come last and must not block: nothing they do delays a verdict.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from flawline_edge.cameras import Camera, CameraFrame, PictureLost, open_camera
from flawline_edge.cameras.newest import NewestFrame
from flawline_edge.commands import Duplicates, RequestError, parse_request
from flawline_edge.inspector import Inspector, Judgement
from flawline_edge.journal import Accepted, Journal, JournalError, next_boot
from flawline_edge.publisher import Publisher, StationState
from flawline_edge.trigger import DeadlineClock, Trigger
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import EMBEDDED_BROKER, Config, mqtt_key_password, mqtt_password
from flawline_inspect.decision import Decision
from flawline_inspect.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    CameraError,
    ConfigError,
    EngineError,
    FlawlineError,
    PictureError,
)
from flawline_inspect.verdict import Reason, Verdict

__all__ = ["Counts", "Inspection", "Observer", "Station"]

_log = logging.getLogger(__name__)

POLL_S = 0.1
"""How long the loop waits for a frame or trigger before it looks whether it should stop."""
CONNECT_WAIT_S = 5.0
"""How long a start waits for the broker: verdicts made before it is there would only go to history."""
DRAIN_S = 10.0
WAITING_TRIGGERS = 16
"""Triggers that may wait behind the one in work; the next one gets `overrun` at once."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What observers get: a verdict and what led to it. Durations in milliseconds.

    `late`: the deadline had passed and this verdict was not published. `overhead_ms` runs from the trigger (free: from
    the frame's arrival) to the verdict's hand-over to MQTT, less inference; `journal_ms` is the wait for the disk in it.
    """

    verdict: Verdict
    frame: CameraFrame | None
    judgement: Judgement | None
    late: bool = False
    overhead_ms: float = 0.0
    journal_ms: float = 0.0


Observer = Callable[[Inspection], None]


@dataclass(slots=True)
class Counts:
    """Since the start. `dropped`: frames that were replaced by a newer one; they were no triggers."""

    by_result: list[int]
    dropped: int = 0
    late: int = 0
    unjournaled: int = 0

    @property
    def inspected(self) -> int:
        return sum(self.by_result)


class Station:
    """Building it reads and verifies the bundle and touches nothing else; `run` does the rest and returns the exit code.

    `camera` stands in for the configured one. Observers are called on the inspecting thread, after publishing.
    """

    def __init__(self, config: Config, *, observers: Sequence[Observer] = (), camera: Camera | None = None) -> None:
        self.config = config
        self.counts = Counts([0, 0, 0, 0])
        self._observers = tuple(observers)
        self._camera_config = config.cameras[0]
        self._camera = camera or open_camera(self._camera_config.source)
        self._inspector = Inspector(
            config.recipe, config.recipes[config.recipe], config.engine, roi=self._camera_config.roi
        )
        self._deadline_s = config.deadline_ms / 1e3
        self._seq = 0
        self._accepting = threading.Lock()
        self._triggers: queue.Queue[Trigger] = queue.Queue(WAITING_TRIGGERS)
        self._duplicates = Duplicates()
        self._ready = False
        self._alarms: set[str] = set()
        self._boot = ""
        self._state = StationState("starting", "", config.recipe, self._inspector.bundle.model_id, "", "", "")

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> int:
        """Serve until `stop` is set or a finite source ends. 0, or 1 when a verdict could not be handed to the broker."""
        with ExitStack() as stack:
            stack.enter_context(_locked(self.config.state_dir))
            self._boot = next_boot(self.config.state_dir)
            self._state = replace(self._state, boot=self._boot)
            host, port = self._broker(stack)
            self._journal = stack.enter_context(Journal(self.config.state_dir / "journal.sqlite"))
            restarted = self._journal.recover(self._boot)
            if restarted:
                _log.warning(
                    "%d parts had no verdict when the station was last stopped; sent as `restart` on history",
                    restarted,
                )
            self._publisher = Publisher(
                mqtt=self.config.mqtt,
                host=host,
                port=port,
                client_id=f"{self.config.station}-{self._boot}",
                state=self._state,
                journal=self._journal,
                deadline_s=self._deadline_s,
                on_command=self._on_command if self.config.trigger.kind == "mqtt" else None,
                password=_revealed(mqtt_password()),
                key_password=_revealed(mqtt_key_password()),
            )
            self._publisher.start()
            try:
                self._clock = stack.enter_context(DeadlineClock(self._on_deadline))
                self._serve(stop)
            except FlawlineError as exc:
                self._set_state("fault", reason=_state_reason(exc))
                self._publisher.stop(timeout_s=1.0)
                raise
            except BaseException:
                self._set_state("fault", reason="error")
                self._publisher.stop(timeout_s=1.0)
                raise
            self._finish_waiting()
            self._set_state("stopped")
            everything_sent = self._publisher.stop(timeout_s=DRAIN_S)
            undelivered = self._journal.undelivered()
        if undelivered or not everything_sent:
            _log.warning("%d verdicts were not acknowledged by the broker; they are in the journal", undelivered)
            return EXIT_FAILURE
        return EXIT_DONE

    def _broker(self, stack: ExitStack) -> tuple[str, int]:
        mqtt = self.config.mqtt
        if mqtt.host != EMBEDDED_BROKER:
            return mqtt.host, mqtt.port
        from flawline_edge.broker import EmbeddedBroker

        broker = stack.enter_context(EmbeddedBroker(mqtt.port))
        _log.info("embedded broker on 127.0.0.1:%d, for demonstration only", broker.port)
        return "127.0.0.1", broker.port

    def _serve(self, stop: threading.Event) -> None:
        with ExitStack() as stack:
            newest = stack.enter_context(NewestFrame(self._camera)) if self._camera.live else None
            if newest is None:
                stack.enter_context(self._camera)
            stack.enter_context(self._inspector)
            self._state = replace(self._state, engine=self._inspector.engine_kind, precision=self._inspector.precision)
            until = time.monotonic() + CONNECT_WAIT_S
            while not self._publisher.connected and time.monotonic() < until and not stop.is_set():
                time.sleep(0.005)
            if not self._publisher.connected and not stop.is_set():
                _log.warning(
                    "no broker yet (%s); inspecting all the same, verdicts go to history",
                    self._publisher.last_error,
                )
            self._ready = True
            self._set_state("ready")
            if self.config.trigger.kind == "mqtt":
                self._serve_triggers(newest, stop)
            elif newest is not None:
                self._serve_newest(newest, stop)
            else:
                self._serve_each(stop)
            self._ready = False

    def _set_state(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self._state.state, self._state.reason):
            _log.info("%s: %s%s", self.config.station, state, f" ({reason})" if reason else "")
        self._state = replace(self._state, state=state, reason=reason)
        self._publisher.set_state(self._state)

    # --- where parts come from -------------------------------------------------------------------------------------

    def _serve_newest(self, newest: NewestFrame, stop: threading.Event) -> None:
        """Free-running, live camera: the newest frame is a part; older ones are dropped and counted."""
        shortest_s = 1 / self.config.trigger.max_rate
        too_early = 0
        ready = time.monotonic()
        last = float("-inf")
        while not stop.is_set() and not newest.ended:
            frame = newest.get(POLL_S)
            self._note_camera(newest.error)
            if frame is None or frame.arrived_monotonic < ready:
                continue  # what passed during the start was not inspected, and says nothing about now
            if frame.arrived_monotonic - last < shortest_s:
                too_early += 1
            else:
                last = frame.arrived_monotonic
                self._serve_free(frame)
            self.counts.dropped = newest.dropped + too_early

    def _serve_each(self, stop: threading.Event) -> None:
        """Free-running folder or video: picture by picture, paced, none dropped."""
        interval_s = max(self._camera.interval_s, 1 / self.config.trigger.max_rate)
        due = time.monotonic()
        for picture in _each(self._camera):
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            due = max(due + interval_s, time.monotonic())
            if isinstance(picture, PictureLost):
                _log.warning("%s", picture)
                self._settle(self._accept(picture.part), Decision.undefined(Reason.CAMERA), None, None)
            else:
                # The deadline runs from here, not from the reading ahead.
                self._serve_free(replace(picture, arrived_monotonic=time.monotonic()))

    def _serve_free(self, frame: CameraFrame) -> None:
        self._inspect(self._accept(frame.part, started=frame.arrived_monotonic), frame)

    def _serve_triggers(self, newest: NewestFrame | None, stop: threading.Event) -> None:
        """Triggers from MQTT. A live camera answers with the first frame that began after the trigger."""
        pictures = None if newest is not None else _each(self._camera)
        upcoming = next(pictures, None) if pictures is not None else None
        while not stop.is_set():
            if (newest is not None and newest.ended) or (pictures is not None and upcoming is None):
                return
            if newest is not None:
                self._note_camera(newest.error)
            try:
                trigger = self._triggers.get(timeout=POLL_S)
            except queue.Empty:
                continue
            frame: CameraFrame | None
            if newest is not None:
                frame = self._frame_after(trigger, newest, stop)
            else:
                assert pictures is not None
                frame = upcoming if isinstance(upcoming, CameraFrame) else None
                upcoming = next(pictures, None)
            if frame is None:
                self._settle(
                    trigger,
                    Decision.undefined(Reason.STOPPED if stop.is_set() else Reason.CAMERA),
                    None,
                    None,
                )
                continue
            if not trigger.part and frame.part:
                trigger.part = frame.part
            self._inspect(trigger, frame)

    def _frame_after(self, trigger: Trigger, newest: NewestFrame, stop: threading.Event) -> CameraFrame | None:
        after = trigger.started + self.config.trigger.delay_ms / 1e3
        while not stop.is_set() and not newest.ended and newest.error is None and not trigger.claimed:
            frame = newest.get_after(after, POLL_S)
            if frame is not None:
                return frame
        return None

    def _note_camera(self, error: CameraError | None) -> None:
        """A lost camera shows as alarm and state, once when it goes and once when it is back."""
        changed = self._alarm("camera", str(error) if error is not None else "")
        if changed:
            self._set_state("fault" if error is not None else "ready", reason="camera" if error is not None else "")

    def _alarm(self, name: str, text: str) -> bool:
        """Raise an alarm, or end it with an empty text. Returns whether that changed anything."""
        if bool(text) == (name in self._alarms):
            return False
        self._alarms.symmetric_difference_update({name})
        self._publisher.alarm(name, bool(text), text)
        return True

    # --- one part ------------------------------------------------------------------------------------------------

    def _accept(self, part: str, *, trigger_id: str | None = None, started: float | None = None) -> Trigger:
        """Give a trigger its seq, write it down (not waited for here) and start its deadline."""
        trigger, _ = self._accept_with_commit(part, trigger_id=trigger_id, started=started)
        return trigger

    def _accept_with_commit(
        self, part: str, *, trigger_id: str | None = None, started: float | None = None
    ) -> tuple[Trigger, Future[None]]:
        with self._accepting:
            self._seq += 1
            seq = self._seq
            now = time.monotonic()
            started = now if started is None else started
            trigger = Trigger(
                seq=seq,
                id=trigger_id or f"F{seq}",
                part=part,
                accepted=wall_clock(),
                started=started,
                deadline=started + self._deadline_s,
            )
            committed = self._journal.accept(
                Accepted(
                    boot=self._boot,
                    seq=seq,
                    trigger=trigger.id,
                    part=part,
                    recipe=self._inspector.number,
                    model=self._inspector.bundle.model_id,
                    threshold=self._inspector.rule.threshold,
                    accepted=trigger.accepted,
                )
            )
            self._clock.watch(trigger)
        return trigger, committed

    def _inspect(self, trigger: Trigger, frame: CameraFrame) -> None:
        judgement: Judgement | None = None
        try:
            judgement = self._inspector.judge(frame.picture)
            decision = judgement.decision
        except PictureError as exc:
            _log.warning("trigger %s: %s", trigger.id, exc)
            decision = Decision.undefined(Reason.CAMERA)
        except EngineError as exc:
            _log.error("trigger %s: %s", trigger.id, exc)
            self._alarm("engine", str(exc))
            decision = Decision.undefined(Reason.ENGINE)
        except Exception as exc:
            # One part that nobody foresaw must not stop the line; it gets its verdict, and the log the traceback.
            _log.exception("trigger %s: inspection failed", trigger.id)
            self._alarm("engine", f"inspection failed: {type(exc).__name__}")
            decision = Decision.undefined(Reason.ENGINE)
        else:
            self._alarm("engine", "")
        self._settle(trigger, decision, frame, judgement)

    def _settle(
        self, trigger: Trigger, decision: Decision, frame: CameraFrame | None, judgement: Judgement | None
    ) -> None:
        """Decided: commit, claim, publish, tell the observers."""
        verdict = self._verdict(trigger, decision, frame)
        before = time.monotonic()
        commit = self._journal.decide(verdict)
        try:
            commit.result(timeout=max(0.0, trigger.deadline - before))
        except JournalError:
            verdict = self._unjournaled(trigger, verdict, frame)
        except FutureTimeoutError:
            pass  # the deadline clock has the trigger by now, or takes it in the next instant
        else:
            self._alarm("journal", "")
        journal_ms = 1e3 * (time.monotonic() - before)
        if time.monotonic() < trigger.deadline and trigger.claim():
            self._publisher.publish_verdict(verdict)
            # A frame that waited in the camera is not the daemon's overhead: count from the start of its journey here.
            began = max(trigger.started, frame.arrived_monotonic if frame is not None else trigger.started)
            spent_ms = 1e3 * (time.monotonic() - began) - (judgement.infer_ms if judgement is not None else 0.0)
            self._tell(Inspection(verdict, frame, judgement, overhead_ms=spent_ms, journal_ms=journal_ms))
        else:
            if trigger.claim():  # past the deadline, but the clock's thread has not come to it yet
                self._on_deadline(trigger)
            self.counts.late += 1
            self._tell(Inspection(verdict, frame, judgement, late=True, journal_ms=journal_ms))

    def _unjournaled(self, trigger: Trigger, verdict: Verdict, frame: CameraFrame | None) -> Verdict:
        """The disk refused. By policy the verdict goes out all the same, or becomes Undefined `journal`."""
        self.counts.unjournaled += 1
        self._alarm("journal", "the journal cannot be written; check the disk")
        if self.config.journal == "required":
            return self._verdict(trigger, Decision.undefined(Reason.JOURNAL), frame)
        return verdict

    def _verdict(self, trigger: Trigger, decision: Decision, frame: CameraFrame | None) -> Verdict:
        return Verdict(
            seq=trigger.seq,
            boot=self._boot,
            trigger=trigger.id,
            part=trigger.part,
            result=decision.result,
            reason=decision.reason,
            score=decision.score,
            threshold=self._inspector.rule.threshold,
            recipe=self._inspector.number,
            model=self._inspector.bundle.model_id,
            captured=frame.captured if frame is not None else trigger.accepted,
            ms=1e3 * (time.monotonic() - trigger.started),
        )

    def _on_deadline(self, trigger: Trigger) -> None:
        """The trigger is claimed and its time is over: publish first, the disk may be what is late."""
        verdict = self._verdict(trigger, Decision.undefined(Reason.DEADLINE), None)
        self._publisher.publish_verdict(verdict)
        self._journal.decide(verdict, overrules=True)
        self._tell(Inspection(verdict, None, None))

    def _tell(self, inspection: Inspection) -> None:
        if not inspection.late:
            self.counts.by_result[inspection.verdict.result] += 1
        for observer in self._observers:
            try:
                observer(inspection)
            except Exception:
                _log.exception("an observer failed; the verdict is not affected")

    def _finish_waiting(self) -> None:
        """Triggers that were accepted and not served get their verdict all the same."""
        while True:
            try:
                trigger = self._triggers.get_nowait()
            except queue.Empty:
                return
            self._settle(trigger, Decision.undefined(Reason.STOPPED), None, None)

    # --- commands --------------------------------------------------------------------------------------------------

    def _on_command(self, name: str, payload: bytes) -> None:
        """On paho's thread: must not wait for anything."""
        if name != "trigger":
            self._acknowledge(name, "", error="not_enabled")
            return
        try:
            request = parse_request(payload)
        except RequestError as exc:
            self._acknowledge(name, exc.id, error=exc.code)
            return
        if not self._ready:
            self._acknowledge(name, request.id, error="not_ready")
            return
        if not self._duplicates.is_new(request.id):
            self._acknowledge(name, request.id, duplicate=True)
            return
        trigger, committed = self._accept_with_commit(request.part, trigger_id=request.trigger)
        committed.add_done_callback(partial(self._acknowledge_acceptance, request.id))
        try:
            self._triggers.put_nowait(trigger)
        except queue.Full:
            if trigger.claim():
                verdict = self._verdict(trigger, Decision.undefined(Reason.OVERRUN), None)
                self._journal.decide(verdict)
                self._publisher.publish_verdict(verdict)
                self._tell(Inspection(verdict, None, None))

    def _acknowledge_acceptance(self, request_id: str, committed: Future[None]) -> None:
        refused = committed.exception() is not None and self.config.journal == "required"
        self._acknowledge("trigger", request_id, error="journal" if refused else "")

    def _acknowledge(self, name: str, request_id: str, *, error: str = "", duplicate: bool = False) -> None:
        payload: dict[str, object] = {
            "id": request_id,
            "ok": not error,
            "error": error,
            "state": self._state.state,
            "recipe": self._state.recipe,
            "model": self._state.model,
            "threshold": round(self._inspector.rule.threshold, 4),
        }
        if duplicate:
            payload["duplicate"] = True
        self._publisher.acknowledge(name, payload)


def _each(camera: Camera) -> Iterator[CameraFrame | PictureLost]:
    """The pictures of a camera that loses none; one that cannot be read comes as its error."""
    for _ in itertools.count():
        try:
            frame = camera.read()
        except PictureLost as lost:
            yield lost
        else:
            if frame is None:
                return
            yield frame


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for this daemon alone. Raises `ConfigError`."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("w")
    except OSError as exc:
        raise ConfigError(f"{state_dir}: the state directory cannot be used ({exc.strerror}); check state_dir") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"{state_dir}: another flawline runs with this state_dir; stop it, or give this one its own"
            ) from exc
        yield


def _state_reason(exc: FlawlineError) -> str:
    for kind, reason in ((CameraError, "camera"), (EngineError, "engine"), (JournalError, "journal")):
        if isinstance(exc, kind):
            return reason
    return "error"


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
