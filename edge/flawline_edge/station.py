"""The station: what its cameras share, and the life of the whole.

    trigger → camera → fit to frame → engine → decision → journal → MQTT
                                                            └→ observers (console, pictures of rejects)

Each camera has a lane with a thread of its own (`lane`); what happens to a part is `verdict_path`'s. Here is what there is
once: the boot, the journal, the publisher, the alarms, the commands, and the state that the PLC sees.
"""

from __future__ import annotations

import fcntl
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from flawline_edge.cameras import Camera, NewestFrame, open_camera
from flawline_edge.capture import CapturedCamera
from flawline_edge.changes import Changes
from flawline_edge.commands import Commands
from flawline_edge.engine_pool import EnginePool
from flawline_edge.journal import JOURNAL_FILE, Bounds, Journal, JournalError, next_boot
from flawline_edge.lane import Lane
from flawline_edge.messages import Command
from flawline_edge.metrics import CameraFigures, Figures
from flawline_edge.operations import Operations
from flawline_edge.publisher import Publisher, StationState
from flawline_edge.recipes import Recipes
from flawline_edge.supervision import Supervisor
from flawline_edge.verdict_path import Alarms, Counts, Inspection, Observer, VerdictPath
from flawline_inspect.config import EMBEDDED_BROKER, CameraConfig, Config, mqtt_key_password, mqtt_password
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, CameraError, ConfigError, EngineError, FlawlineError
from flawline_inspect.overrides import load_overrides

__all__ = ["Counts", "Inspection", "Observer", "Station"]

_log = logging.getLogger(__name__)

CONNECT_WAIT_S = 5.0
"""How long a start waits for the broker: verdicts made before it is there would only go to history."""
DRAIN_S = 10.0
SWITCH_INTERVAL_S = 0.0005
"""After so long a thread that computes in Python gives way to one that waits; 5 ms, Python's own, is more than a verdict takes here."""
_ALARMS = ("camera", "engine", "health", "journal")
_BEST_FIRST = ("ready", "paused", "starting", "fault", "over")
"""A station is in the best state that any of its cameras is in."""


class Station:
    """Building it reads and verifies the bundles and touches nothing else; `run` does the rest, once.

    `camera` stands in for the configured one, `cameras` for those that it names, and is read in this process. `observers`
    are told of each verdict after it was published. `reread` reads the configuration anew for `reload`.
    """

    def __init__(
        self,
        config: Config,
        *,
        observers: Sequence[Observer] = (),
        camera: Camera | None = None,
        cameras: Mapping[str, Camera] | None = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self.config = config
        self.lanes: tuple[Lane, ...] = ()
        """One for each camera, in the configuration's order; none before `run`."""
        self._counts = Counts([0, 0, 0, 0])
        self._observers = tuple(observers)
        self._reread = reread
        given = {config.cameras[0].name: camera} if camera is not None else dict(cameras or {})
        self._sources = [_source(each, given.get(each.name)) for each in config.cameras]
        self._operations = Operations(
            config, self._figures, on_disk=lambda text: self._publisher.alarm("disk", bool(text), text)
        )
        # One camera has its engine for itself: no other thread stands between its parts and their verdicts.
        pool = EnginePool(len(config.cameras), self._operations.progress) if config.has_several_cameras else None
        self._recipes = Recipes(config, load_overrides(config.state_dir), pool)
        self._inspectors = [self._recipes.inspector_at_start(each, self._show) for each in config.cameras]
        first = self._inspectors[0]
        self._state = StationState("starting", "", first.number, first.bundle.model_id, "", "", "")
        self._showing = threading.Lock()
        self._is_serving = False
        self._commands: Commands | None = None
        self._supervisor: Supervisor | None = None
        self._journal: Journal | None = None

    # --- for those who look on -------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """As they are now."""
        return replace(self._counts, dropped=sum(lane.dropped for lane in self.lanes))

    @property
    def state(self) -> StationState:
        """What ROOT/state says."""
        return self._state

    @property
    def restarts(self) -> int:
        """How often a lane that had died was started again."""
        return self._supervisor.restarts if self._supervisor is not None else 0

    def reload(self) -> None:
        """Read the configuration anew, in the background; what came of it is logged."""
        if self._commands is None:
            _log.warning("reload is refused: the station has not been started")
        else:
            self._commands.reload()

    # --- life ------------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> int:
        """Serve until `stop` is set or every finite source has ended.

        Returns the exit code: 0, or 1 when a verdict was not acknowledged by the broker or a lane could not be kept
        alive. Raises what cannot be served on: a camera that is not there, an engine that fails its self-test, a state
        directory in use.
        """
        config = self.config
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        with ExitStack() as stack:
            stack.enter_context(_locked(config.state_dir))
            stack.enter_context(self._operations)
            boot = next_boot(config.state_dir)
            self._state = replace(self._state, boot=boot)
            self._operations.state_changed(self._state)
            host, port = self._broker(stack)
            journal = self._journal = stack.enter_context(
                Journal(config.state_dir / JOURNAL_FILE, Bounds.of(config.journal))
            )
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
                on_command=self._on_command if config.commands else None,
                password=_revealed(mqtt_password()),
                key_password=_revealed(mqtt_key_password()),
                cameras=[camera.name for camera in config.cameras] if config.has_several_cameras else (),
            )
            path = self._build(boot, journal)
            self._publisher.start()
            try:
                with path:
                    is_well = self._serve(stop)
            except BaseException as exc:
                self._set_state("fault", reason=_state_reason(exc))
                self._publisher.stop(timeout_s=1.0)
                raise
            if is_well:
                self._set_state("stopped")
            else:
                self._set_state("fault", reason="error")
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
        return EXIT_DONE if is_well else EXIT_FAILURE

    def _broker(self, stack: ExitStack) -> tuple[str, int]:
        mqtt = self.config.mqtt
        if mqtt.host != EMBEDDED_BROKER:
            return mqtt.host, mqtt.port
        from flawline_edge.broker import EmbeddedBroker

        broker = stack.enter_context(EmbeddedBroker(mqtt.port))
        _log.info("embedded broker on 127.0.0.1:%d, for demonstration only", broker.port)
        return "127.0.0.1", broker.port

    def _build(self, boot: str, journal: Journal) -> VerdictPath:
        """The path, the lanes and the commands. Touches nothing."""
        config = self.config
        alarms = Alarms(self._publisher, _ALARMS, has_several_cameras=config.has_several_cameras)
        path = VerdictPath(
            boot=boot,
            journal=journal,
            publisher=self._publisher,
            alarms=alarms,
            deadline_s=config.deadline_ms / 1e3,
            journal_required=config.journal.policy == "required",
            counts=self._counts,
            observers=(*self._observers, self._operations.metrics),
            with_cameras=config.has_several_cameras,
        )
        self.lanes = tuple(
            Lane(
                camera,
                source,
                config.trigger_of(camera),
                inspector,
                path=path,
                alarms=alarms,
                on_change=self._show,
                progress=self._operations.progress,
                frames=frames,
            )
            for camera, (source, frames), inspector in zip(config.cameras, self._sources, self._inspectors, strict=True)
        )
        self._commands = Commands(
            {lane.name if config.has_several_cameras else "": lane for lane in self.lanes},
            Changes(
                self._recipes,
                self.lanes,
                on_switch=self._show,
                reread=self._reread,
                reloading=self._operations.reloading,
            ),
            journal,
            enabled=config.commands,
            acknowledge=self._publisher.acknowledge,
            status=self._status,
            journal_required=config.journal.policy == "required",
        )
        return path

    def _serve(self, stop: threading.Event) -> bool:
        """Returns whether it ended well."""
        assert self._commands is not None
        self._supervisor = supervisor = Supervisor(self.lanes, stop)
        with supervisor, self._commands as commands:
            supervisor.open()
            self._wait_for_broker(stop)
            self._is_serving = True
            commands.open()  # before anybody is told `ready`
            supervisor.begin()
            try:
                return supervisor.watch() and not supervisor.left_out
            finally:
                commands.close()
                self._is_serving = False

    def _wait_for_broker(self, stop: threading.Event) -> None:
        until = time.monotonic() + CONNECT_WAIT_S
        while not self._publisher.connected and time.monotonic() < until and not stop.is_set():
            time.sleep(0.005)
        if not self._publisher.connected and not stop.is_set():
            reason = self._publisher.last_error
            _log.warning("no broker yet (%s); inspecting all the same, verdicts go to history", reason)

    def _figures(self) -> Figures | None:
        """For the metrics, on their reader's thread."""
        journal = self._journal
        if journal is None or not self.lanes:
            return None
        now = time.monotonic()
        try:
            undelivered = journal.undelivered()
        except JournalError:
            undelivered = None
        return Figures(
            state=self._state,
            cameras=tuple(
                CameraFigures(lane.name, lane.waiting, lane.dropped, lane.camera_losses, now - lane.progress)
                for lane in self.lanes
            ),
            lane_restarts=self.restarts,
            unjournaled=self._counts.unjournaled,
            connected=self._publisher.connected,
            broker=self._publisher.counters,
            undelivered=undelivered,
            no_subscriber=self._publisher.no_subscriber,
            evicted=journal.evicted,
        )

    # --- what the PLC sees -----------------------------------------------------------------------------------------

    def _show(self) -> None:
        """State, recipe and engine as the lanes have them now, if that is new; by whichever thread changed it."""
        if not self._is_serving:
            return
        with self._showing:
            # One camera that fails does not stop the line at the others: its own triggers get Undefined all the while.
            state, reason = min((lane.state for lane in self.lanes), key=lambda each: _BEST_FIRST.index(each[0]))
            if state in ("starting", "over"):
                return  # the station is about to end, and says so itself
            first = self.lanes[0]
            self._publish(
                replace(
                    self._state,
                    state=state,
                    reason=reason,
                    recipe=first.terms.recipe,
                    model=first.terms.model,
                    engine=first.inspector.engine_kind or self._state.engine,
                    precision=first.inspector.precision or self._state.precision,
                )
            )

    def _set_state(self, state: str, reason: str = "") -> None:
        with self._showing:
            self._publish(replace(self._state, state=state, reason=reason))

    def _publish(self, state: StationState) -> None:
        before, self._state = self._state, state
        if state == before:
            return
        if (state.state, state.reason) != (before.state, before.reason):
            _log.info("%s: %s%s", self.config.station, state.state, f" ({state.reason})" if state.reason else "")
        self._publisher.set_state(state)
        self._operations.state_changed(state)

    def _on_command(self, command: Command) -> None:
        assert self._commands is not None
        self._commands.on_command(command)

    def _status(self, lane: Lane | None) -> dict[str, object]:
        """What every acknowledgement says: of the camera that was asked, or of the station and its first camera."""
        state = self._state.state
        if lane is not None and self._is_serving:
            state = lane.state[0].replace("over", "stopped")
        terms = (lane or self.lanes[0]).terms
        return {
            "state": state,
            "recipe": terms.recipe,
            "model": terms.model,
            "threshold": round(terms.threshold, 4),
        }


def _source(camera: CameraConfig, stand_in: Camera | None) -> tuple[Camera, Callable[[], NewestFrame | CapturedCamera]]:
    """A camera for its pictures one by one, and what captures it if it is live: a process, or a thread for a stand-in."""
    if stand_in is not None:
        return stand_in, lambda: NewestFrame(stand_in)
    return open_camera(camera.source), lambda: CapturedCamera.of(camera)


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
