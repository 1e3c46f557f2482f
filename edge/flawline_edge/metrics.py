"""Figures for Prometheus: what the station did, how long it took and how it is now.

Verdicts and durations are counted as they are told, a few microseconds each, after publishing. Everything else is asked
for when somebody reads, on the reader's thread, so that an idle page costs nothing and a slow reader delays nobody.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, StateSetMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flawline_edge.journal.bounds import Evicted
from flawline_edge.messages import StationState
from flawline_edge.publisher import Counters
from flawline_edge.verdict_path import Inspection
from flawline_inspect import __version__
from flawline_inspect.verdict import Result

__all__ = ["CameraFigures", "Figures", "Metrics"]

_log = logging.getLogger(__name__)

BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""From a fast engine's share of a part to the slowest camera's."""
STATES = ("starting", "ready", "paused", "fault", "stopped")


@dataclass(frozen=True, slots=True)
class CameraFigures:
    """One camera since the start; `waiting` triggers stand behind the one in work, now."""

    name: str
    waiting: int = 0
    dropped: int = 0
    restarts: int = 0
    idle_s: float = 0.0
    """How long ago its lane last came round."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How a station is just now. `undelivered`: verdicts that no broker has acknowledged; None where the disk does not say. `evicted`:
    verdicts that were deleted to keep the journal's bounds."""

    state: StationState
    cameras: tuple[CameraFigures, ...]
    lane_restarts: int
    unjournaled: int
    connected: bool
    broker: Counters
    undelivered: int | None
    no_subscriber: bool | None
    evicted: Evicted = field(default_factory=Evicted)


class Metrics:
    """An observer that counts, into a registry of its own: two stations in one process do not count into each other.

    The series of `cameras` are there, at zero, from the beginning: a rate needs one. `figures` is called at every reading;
    None as long as the station has not come far enough to have any.
    """

    def __init__(
        self, station: str, state_dir: Path, cameras: Sequence[str], figures: Callable[[], Figures | None]
    ) -> None:
        self.registry = CollectorRegistry()
        self._verdicts = Counter(
            "flawline_verdicts",
            "Verdicts published, live or routed to history",
            ["camera", "result", "reason"],
            registry=self.registry,
        )
        self._late = Counter(
            "flawline_late",
            "Inspections that ended after their deadline; each also counts as a verdict with the reason deadline",
            ["camera"],
            registry=self.registry,
        )
        self._stages = Histogram(
            "flawline_stage_seconds",
            "Time of a part: capture (trigger to picture), fit, infer, decide, journal (wait for the disk), "
            "total (trigger to decision)",
            ["camera", "stage"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(_Now(station, state_dir, figures))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        for camera in cameras:
            self._late.labels(camera)
            for result in (Result.OK, Result.NOT_OK, Result.NOT_DECIDABLE):
                self._verdicts.labels(camera, result.label, "")

    def __call__(self, inspection: Inspection) -> None:
        """What observers are told, counted."""
        verdict, judgement, camera = inspection.verdict, inspection.judgement, inspection.camera
        if inspection.late:
            self._late.labels(camera).inc()
        else:
            self._verdicts.labels(camera, verdict.result.label, verdict.reason.value).inc()
            self._observe(camera, "total", verdict.ms)
        if inspection.frame is not None:
            self._observe(camera, "capture", inspection.capture_ms)
            self._observe(camera, "journal", inspection.journal_ms)
        if judgement is not None:
            self._observe(camera, "fit", judgement.fit_ms)
            self._observe(camera, "infer", judgement.infer_ms)
            self._observe(camera, "decide", judgement.decide_ms)

    def _observe(self, camera: str, stage: str, ms: float) -> None:
        self._stages.labels(camera, stage).observe(ms / 1e3)


class _Now(Collector):
    """What is asked for at the moment of reading."""

    def __init__(self, station: str, state_dir: Path, figures: Callable[[], Figures | None]) -> None:
        self._station, self._state_dir, self._figures = station, state_dir, figures
        self._reading = threading.Lock()

    def describe(self) -> list[Metric]:
        return []  # nothing is asked of a station while it is being put together

    def collect(self) -> Iterator[Metric]:
        with self._reading:  # one at a time: the undelivered are counted in the journal
            figures = self._figures()
        yield InfoMetricFamily(
            "flawline_station", "The station", value={"station": self._station, "version": __version__}
        )
        yield from self._disk()
        if figures is not None:
            yield from _state(figures.state)
            yield from _cameras(figures.cameras)
            yield _counter(
                "flawline_lane_restarts", "Times that a lane had died and was started again", figures.lane_restarts
            )
            yield from _delivery(figures)

    def _disk(self) -> Iterator[Metric]:
        try:
            free = shutil.disk_usage(self._state_dir).free
            journal = sum(path.stat().st_size for path in self._state_dir.glob("journal.sqlite*"))
        except OSError as exc:
            _log.debug("%s: cannot be measured (%s)", self._state_dir, exc)
            return
        yield _gauge("flawline_disk_free_bytes", "Free on the disk that state_dir lies on", free)
        yield _gauge("flawline_journal_bytes", "The journal with its write-ahead log", journal)


def _state(state: StationState) -> Iterator[Metric]:
    yield StateSetMetricFamily(
        "flawline_state", "What ROOT/state says", value={name: name == state.state for name in STATES}
    )
    yield InfoMetricFamily(
        "flawline_engine", "What runs the model", value={"engine": state.engine, "precision": state.precision}
    )
    yield InfoMetricFamily(
        "flawline_model", "The model in force", value={"recipe": str(state.recipe), "model": state.model}
    )
    yield InfoMetricFamily("flawline_boot", "This start of the station", value={"boot": state.boot})


def _cameras(cameras: tuple[CameraFigures, ...]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("flawline_queue_depth", "Triggers that wait behind the one in work", labels=["camera"])
    idle = GaugeMetricFamily("flawline_lane_idle_seconds", "Since the camera's lane last came round", labels=["camera"])
    dropped = CounterMetricFamily(
        "flawline_frames_dropped", "Frames that a newer one replaced; they were no triggers", labels=["camera"]
    )
    restarts = CounterMetricFamily(
        "flawline_camera_restarts", "Times that a camera was lost and opened again", labels=["camera"]
    )
    for camera in cameras:
        waiting.add_metric([camera.name], camera.waiting)
        idle.add_metric([camera.name], camera.idle_s)
        dropped.add_metric([camera.name], camera.dropped)
        restarts.add_metric([camera.name], camera.restarts)
    yield from (waiting, idle, dropped, restarts)


def _delivery(figures: Figures) -> Iterator[Metric]:
    broker = figures.broker
    yield _gauge("flawline_mqtt_connected", "1 while the broker has said yes", figures.connected)
    if figures.no_subscriber is not None:
        yield _gauge("flawline_mqtt_no_subscriber", "1 while nobody has subscribed to verdicts", figures.no_subscriber)
    if figures.undelivered is not None:
        yield _gauge("flawline_undelivered", "Verdicts that no broker has acknowledged yet", figures.undelivered)
    yield _counter("flawline_unjournaled", "Verdicts that the journal could not take", figures.unjournaled)
    evicted = CounterMetricFamily(
        "flawline_journal_evicted", "Verdicts deleted to keep the journal's bounds", labels=["delivered"]
    )
    evicted.add_metric(["yes"], figures.evicted.delivered)
    evicted.add_metric(["no"], figures.evicted.undelivered)
    yield evicted
    yield _counter("flawline_mqtt_reconnects", "Connections after the first", broker.reconnects)
    yield _counter("flawline_mqtt_published", "Verdicts acknowledged on the live topic", broker.published)
    yield _counter("flawline_mqtt_diverted", "Verdicts that were not and went to history", broker.undelivered)
    yield _counter("flawline_mqtt_history", "Verdicts acknowledged on the history topic", broker.history)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))
