"""The station: one part after the other from trigger to verdict.

    trigger → camera → fit to frame → engine → decision → journal → MQTT
                                                            └→ observers (console, pictures of rejects)

The inspection runs on the thread that calls `run`. Beside it: a reader for a live camera, the journal's writer, the
publisher's threads and the deadline clock. This module starts and ends them and says where parts come from; what
happens to a part is `verdict_path`'s.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from flawline_edge.cameras import Camera, CameraFrame, PictureLost, open_camera
from flawline_edge.cameras.newest import NewestFrame
from flawline_edge.commands import TriggerCommands
from flawline_edge.inspector import Inspector
from flawline_edge.journal import Journal, JournalError, next_boot
from flawline_edge.metrics import CameraFigures, Figures
from flawline_edge.operations import Operations
from flawline_edge.publisher import Publisher, StationState
from flawline_edge.trigger import Trigger
from flawline_edge.verdict_path import Alarms, Counts, Inspection, Observer, VerdictPath
from flawline_inspect.config import EMBEDDED_BROKER, Config, mqtt_key_password, mqtt_password
from flawline_inspect.decision import Decision
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, CameraError, ConfigError, EngineError, FlawlineError
from flawline_inspect.verdict import Reason

__all__ = ["Counts", "Inspection", "Observer", "Station"]

_log = logging.getLogger(__name__)

POLL_S = 0.1
"""How long the loop waits for a frame or trigger before it looks whether it should stop."""
CONNECT_WAIT_S = 5.0
"""How long a start waits for the broker: verdicts made before it is there would only go to history."""
DRAIN_S = 10.0
RATE_SLACK = 0.25
"""A frame may come this share of the shortest interval early: a camera's clock is not ours, and its frames tremble."""
_ALARMS = ("camera", "engine", "health", "journal")


class Station:
    """Building it reads and verifies the bundle and touches nothing else; `run` does the rest, once.

    `camera` stands in for the configured one. `observers` are told of each verdict after it was published.
    """

    def __init__(self, config: Config, *, observers: Sequence[Observer] = (), camera: Camera | None = None) -> None:
        self.config = config
        self.counts = Counts([0, 0, 0, 0])
        self._observers = tuple(observers)
        self._camera = camera or open_camera(config.cameras[0].source)
        self._inspector = Inspector(
            config.recipe,
            config.recipes[config.recipe],
            config.engine,
            public_key=config.security.public_key,
            roi=config.cameras[0].roi,
            state_dir=config.state_dir,
            on_switch=self._on_switch,
        )
        self._state = StationState("starting", "", config.recipe, self._inspector.bundle.model_id, "", "", "")
        self._commands: TriggerCommands | None = None
        self._journal: Journal | None = None
        self._operations = Operations(config, self._figures)

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> int:
        """Serve until `stop` is set or a finite source ends.

        Returns the exit code: 0, or 1 when a verdict was not acknowledged by the broker. Raises what cannot be served
        on: a camera that is not there, an engine that fails its self-test, a state directory in use.
        """
        config = self.config
        with ExitStack() as stack:
            stack.enter_context(_locked(config.state_dir))
            stack.enter_context(self._operations)
            boot = next_boot(config.state_dir)
            self._state = replace(self._state, boot=boot)
            host, port = self._broker(stack)
            journal = self._journal = stack.enter_context(Journal(config.state_dir / "journal.sqlite"))
            if restarted := journal.recover(boot):
                _log.warning("%d parts had no verdict when the station last ended; `restart` on history", restarted)
            self._publisher = Publisher(
                mqtt=config.mqtt,
                host=host,
                port=port,
                client_id=f"{config.station}-{boot}",
                state=self._state,
                journal=journal,
                deadline_s=config.deadline_ms / 1e3,
                on_command=self._on_command if config.trigger.kind == "mqtt" else None,
                password=_revealed(mqtt_password()),
                key_password=_revealed(mqtt_key_password()),
            )
            self._alarms = Alarms(self._publisher, _ALARMS)
            path = VerdictPath(
                boot=boot,
                inspector=self._inspector,
                journal=journal,
                publisher=self._publisher,
                alarms=self._alarms,
                deadline_s=config.deadline_ms / 1e3,
                journal_required=config.journal == "required",
                counts=self.counts,
                observers=(*self._observers, self._operations.observer(config.cameras[0].name)),
            )
            commands = self._commands = TriggerCommands(
                path,
                acknowledge=self._publisher.acknowledge,
                status=self._status,
                journal_required=config.journal == "required",
            )
            self._operations.state_changed(self._state)
            self._publisher.start()
            try:
                with path:
                    try:
                        self._serve(path, commands, stop)
                    finally:
                        commands.close()
            except BaseException as exc:
                self._set_state("fault", reason=_state_reason(exc))
                self._publisher.stop(timeout_s=1.0)
                raise
            self._set_state("stopped")
            if journal.undelivered():
                _log.info("waiting up to %.0f s for the broker to acknowledge what is left", DRAIN_S)
            everything_sent = self._publisher.stop(timeout_s=DRAIN_S)
            undelivered = journal.undelivered()
        if undelivered or not everything_sent:
            _log.warning(
                "%d verdicts, earlier ones included, were not acknowledged by the broker; they are in the journal",
                undelivered,
            )
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

    def _serve(self, path: VerdictPath, commands: TriggerCommands, stop: threading.Event) -> None:
        with ExitStack() as stack:
            newest = stack.enter_context(NewestFrame(self._camera)) if self._camera.live else None
            if newest is None:
                stack.enter_context(self._camera)
            stack.enter_context(self._inspector)
            self._state = replace(self._state, engine=self._inspector.engine_kind, precision=self._inspector.precision)
            self._wait_for_broker(stop)
            self._lane = self._operations.lane(self.config.cameras[0].name)
            stack.callback(self._lane.over)
            self._set_state("ready")
            if self.config.trigger.kind == "mqtt":
                commands.open()
                if newest is not None:
                    self._answer_with_newest(newest, path, commands, stop)
                else:
                    self._answer_with_each(path, commands, stop)
            elif newest is not None:
                self._inspect_newest(newest, path, stop)
            else:
                self._inspect_each(path, stop)

    def _wait_for_broker(self, stop: threading.Event) -> None:
        until = time.monotonic() + CONNECT_WAIT_S
        while not self._publisher.connected and time.monotonic() < until and not stop.is_set():
            time.sleep(0.005)
        if not self._publisher.connected and not stop.is_set():
            reason = self._publisher.last_error
            _log.warning("no broker yet (%s); inspecting all the same, verdicts go to history", reason)

    def _set_state(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self._state.state, self._state.reason):
            _log.info("%s: %s%s", self.config.station, state, f" ({reason})" if reason else "")
        self._state = replace(self._state, state=state, reason=reason)
        self._publisher.set_state(self._state)
        self._operations.state_changed(self._state)

    def _on_switch(self) -> None:
        """Another engine serves from the next part on."""
        self._state = replace(self._state, engine=self._inspector.engine_kind, precision=self._inspector.precision)
        self._publisher.set_state(self._state)
        self._operations.state_changed(self._state)

    def _on_command(self, name: str, payload: bytes, retained: bool) -> None:
        assert self._commands is not None
        self._commands.on_command(name, payload, retained)

    def _status(self) -> dict[str, object]:
        """What every acknowledgement says of the station."""
        return {
            "state": self._state.state,
            "recipe": self._state.recipe,
            "model": self._state.model,
            "threshold": round(self._inspector.rule.threshold, 4),
        }

    def _figures(self) -> Figures | None:
        """For the metrics, on their reader's thread."""
        journal, commands = self._journal, self._commands
        if journal is None or commands is None:
            return None
        try:
            undelivered = journal.undelivered()
        except JournalError:
            undelivered = None
        idle_s = {lane.name: lane.idle_s for lane in self._operations.progress.lanes}
        name = self.config.cameras[0].name
        camera = CameraFigures(
            name, commands.waiting, self.counts.dropped, self.counts.camera_losses, idle_s.get(name, 0.0)
        )
        return Figures(
            state=self._state,
            cameras=(camera,),
            unjournaled=self.counts.unjournaled,
            connected=self._publisher.connected,
            broker=self._publisher.counters,
            undelivered=undelivered,
            no_subscriber=self._publisher.no_subscriber,
        )

    # --- where parts come from -------------------------------------------------------------------------------------

    def _inspect_newest(self, newest: NewestFrame, path: VerdictPath, stop: threading.Event) -> None:
        """Free-running, live camera: the newest frame is a part; older ones are dropped and counted."""
        shortest_s = 1 / self.config.trigger.max_rate
        ready = due = time.monotonic()
        too_early = 0
        while not stop.is_set() and not newest.ended:
            frame = newest.get(POLL_S)
            self._lane.came_round()
            self._note_camera(newest.error)
            if frame is None or frame.arrived_monotonic < ready:
                continue  # what passed during the start was not inspected, and says nothing about now
            earliest = due - RATE_SLACK * shortest_s
            if frame.arrived_monotonic < earliest:
                too_early += 1
            else:
                due = max(due, frame.arrived_monotonic - RATE_SLACK * shortest_s) + shortest_s
                self._inspect_free(path, frame)
            self.counts.dropped = newest.dropped + too_early

    def _inspect_each(self, path: VerdictPath, stop: threading.Event) -> None:
        """Free-running folder or video: picture by picture, paced, none dropped."""
        interval_s = max(self._camera.interval_s, 1 / self.config.trigger.max_rate)
        due = time.monotonic()
        for picture in _each(self._camera):
            with self._lane.waiting():
                if stop.wait(max(0.0, due - time.monotonic())):
                    return
            due = max(due + interval_s, time.monotonic())
            if isinstance(picture, PictureLost):
                _log.warning("%s", picture)
                trigger, _ = path.accept(picture.part)
                path.settle(trigger, Decision.undefined(Reason.CAMERA))
            else:
                # The deadline runs from here, not from the reading ahead.
                self._inspect_free(path, replace(picture, arrived_monotonic=time.monotonic()))

    def _inspect_free(self, path: VerdictPath, frame: CameraFrame) -> None:
        trigger, _ = path.accept(frame.part, started=frame.arrived_monotonic)
        path.inspect(trigger, frame)

    def _answer_with_newest(
        self, newest: NewestFrame, path: VerdictPath, commands: TriggerCommands, stop: threading.Event
    ) -> None:
        """Triggers from MQTT, live camera: the answer is the first frame that began after the trigger."""
        while not stop.is_set() and not newest.ended:
            self._note_camera(newest.error)
            self._lane.came_round()
            trigger = commands.next(timeout_s=POLL_S)
            if trigger is None:
                continue
            frame = self._frame_after(trigger, newest, stop)
            if frame is None:
                path.settle(trigger, Decision.undefined(Reason.STOPPED if stop.is_set() else Reason.CAMERA))
            else:
                trigger.part = trigger.part or frame.part
                path.inspect(trigger, frame)

    def _frame_after(self, trigger: Trigger, newest: NewestFrame, stop: threading.Event) -> CameraFrame | None:
        after = trigger.started + self.config.trigger.delay_ms / 1e3
        while not stop.is_set() and not newest.ended and newest.error is None and not trigger.claimed:
            frame = newest.get_after(after, POLL_S)
            self._lane.came_round()
            if frame is not None:
                return frame
        return None

    def _answer_with_each(self, path: VerdictPath, commands: TriggerCommands, stop: threading.Event) -> None:
        """Triggers from MQTT, folder or video: one picture a trigger, until there are no more."""
        for picture in _each(self._camera):
            trigger = commands.next(timeout_s=POLL_S)
            while trigger is None:
                if stop.is_set():
                    return
                trigger = commands.next(timeout_s=POLL_S)
                self._lane.came_round()
            self._lane.came_round()
            trigger.part = trigger.part or picture.part
            if isinstance(picture, PictureLost):
                _log.warning("%s", picture)
                path.settle(trigger, Decision.undefined(Reason.CAMERA))
            else:
                path.inspect(trigger, picture)
            if stop.is_set():
                return

    def _note_camera(self, error: CameraError | None) -> None:
        """A lost camera shows as alarm and state, once when it goes and once when it is back."""
        if self._alarms.set("camera", str(error) if error is not None else ""):
            self.counts.camera_losses += error is not None
            self._set_state("fault" if error is not None else "ready", reason="camera" if error is not None else "")


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


def _state_reason(exc: BaseException) -> str:
    for kind, reason in ((CameraError, "camera"), (EngineError, "engine"), (JournalError, "journal")):
        if isinstance(exc, kind):
            return reason
    return "config" if isinstance(exc, FlawlineError) else "error"


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
