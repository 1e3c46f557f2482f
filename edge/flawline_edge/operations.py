"""What whoever runs the station sees of it beside MQTT: metrics, the service manager's view, the status file.

All of it is fed from a thread of its own. A station that hangs feeds nothing: see `flawline_edge.progress`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from flawline_edge.disk import DiskWatch
from flawline_edge.messages import StationState
from flawline_edge.metrics import Figures, Metrics
from flawline_edge.metrics_server import MetricsServer
from flawline_edge.progress import Progress
from flawline_edge.service_manager import ServiceManager
from flawline_edge.status_file import HEALTHY_STATES, Status, renew_status, write_status
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import Config
from flawline_inspect.verdict import wall_time

__all__ = ["Operations"]

_log = logging.getLogger(__name__)

TICK_S = 1.0
STALE_S = 10.0
"""A status file older than this, and than two deadlines, belongs to a station that hangs."""
_JOIN_S = 2.0


class Operations:
    """A context manager that the station enters once its state directory is its own, and leaves last.

    `figures` is asked whenever somebody reads the metrics. `on_disk` is told why the disk is an alarm, and "" when it is none: the
    first time once the station has shown itself ready. Raises `ConfigError` where the metrics' port is taken.

        with Operations(config, figures) as operations:
            operations.state_changed(state)            # at every change
            with operations.progress.watch(loop): ...  # around each loop that must not hang
            operations.metrics(inspection)             # an observer
    """

    def __init__(
        self, config: Config, figures: Callable[[], Figures | None], on_disk: Callable[[str], None] = lambda text: None
    ) -> None:
        self.progress = Progress()
        self.metrics = Metrics(config.station, config.state_dir, [camera.name for camera in config.cameras], figures)
        self._config = config
        self._stale_s = max(STALE_S, 2 * config.deadline_ms / 1e3)
        self._disk = DiskWatch(config.state_dir, on_disk)
        self._manager = ServiceManager()
        self._changed = threading.Event()
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._is_written = False
        self._has_been_ready = False
        self._has_failed = False
        self._stuck: frozenset[str] = frozenset()
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._run, name="operations", daemon=True)

    def __enter__(self) -> Operations:
        metrics = self._config.metrics
        if metrics.port:
            self._stack.enter_context(MetricsServer(metrics.host, metrics.port, self.metrics.registry))
        watchdog_s = self._manager.watchdog_s
        if watchdog_s is not None and watchdog_s < self._stale_s:
            _log.warning(
                "WatchdogSec is %g s; a part may take up to deadline_ms, so take at least %g s",
                watchdog_s,
                self._stale_s,
            )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        status = self._status
        if status is not None and status.state != "stopped":  # it ends with a fault
            self._manager.stopping(str(status))
        self._left.set()
        self._changed.set()
        self._thread.join(_JOIN_S)
        self._stack.close()

    def state_changed(self, state: StationState) -> None:
        """The station is something else now, or runs something else. Waits for no disk."""
        with self._lock:  # the order in which it changed is the order in which it is told
            status = self._described(state)
            if status == self._status:
                return
            self._status, self._is_written = status, False
            self._tell_manager(status)
        self._changed.set()

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around the configuration's being read again: `systemctl reload` waits for its end."""
        if not self._has_been_ready:  # nobody waits for it yet, and `ready` would come too early
            yield
            return
        self._manager.reloading()
        try:
            yield
        finally:
            self._manager.ready(str(self._status))

    def _tell_manager(self, status: Status) -> None:
        if status.state in HEALTHY_STATES and not self._has_been_ready:
            self._has_been_ready = True
            self._manager.ready(str(status))
        elif status.state == "stopped":
            self._manager.stopping(str(status))
        else:
            self._manager.status(str(status))

    def _described(self, state: StationState) -> Status:
        before = self._status
        same = before is not None and (before.state, before.reason) == (state.state, state.reason)
        return Status(
            station=self._config.station,
            state=state.state,
            reason=state.reason,
            since=before.since if same and before is not None else wall_time(wall_clock()),
            boot=state.boot,
            recipe=state.recipe,
            model=state.model,
            engine=state.engine,
            precision=state.precision,
            pid=os.getpid(),
            stale_after_s=self._stale_s,
        )

    def _run(self) -> None:
        tick_s = min(TICK_S, (self._manager.watchdog_s or TICK_S) / 4)
        while not self._left.is_set():
            self._changed.wait(tick_s)
            self._changed.clear()
            self._keep_status()
            self._report_stuck()
            if self._has_been_ready:
                self._disk.look()
            if self.progress.has_advanced():
                self._manager.alive()
                self._renew_status()
        self._keep_status()

    def _keep_status(self) -> None:
        with self._lock:
            status, is_written = self._status, self._is_written
        if status is None or is_written:
            return
        try:
            write_status(self._config.state_dir, status)
        except OSError as exc:
            # Tried again at the next tick; the file that is there grows old meanwhile, and says nothing any more.
            if not self._has_failed:
                _log.warning("%s: the status file cannot be written (%s)", self._config.state_dir, exc)
            self._has_failed = True
            return
        self._has_failed = False
        with self._lock:
            self._is_written = self._status == status

    def _renew_status(self) -> None:
        if not self._is_written:
            return
        try:
            renew_status(self._config.state_dir)
        except OSError:
            self._is_written = False  # gone: it is written anew

    def _report_stuck(self) -> None:
        stuck = self.progress.stuck(self._stale_s)
        names = frozenset(loop.name for loop in stuck)
        for loop in stuck:
            if loop.name not in self._stuck:
                _log.error(
                    "the lane of %s has stood still for %g s; the watchdog is not fed any more. It stands here:\n%s",
                    loop.name,
                    self._stale_s,
                    loop.stack(),
                )
        for name in self._stuck - names:
            _log.warning("the lane of %s goes on", name)
        self._stuck = names
