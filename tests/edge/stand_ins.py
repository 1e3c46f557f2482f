"""Stand-ins for the station's outside: a model whose scores can be worked out by hand, cameras, a publisher.

The model is a real bundle with a real graph: grey level 90 is good, and a pixel's heat is its distance from that in
tens. A flat picture of level 100 scores 1, one of level 150 scores 6, and the threshold is 4.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.inspect_.bundles import png, small_manifest

from flawline_edge import station as station_module
from flawline_edge.cameras import CameraFrame
from flawline_edge.inspector import Inspector, Judgement
from flawline_edge.journal import Journal
from flawline_edge.messages import Command, Message, Reply
from flawline_edge.publisher import StationState
from flawline_edge.station import Inspection, Station
from flawline_inspect.bundle import MODEL, bundle_bytes
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import Config, MqttConfig, parse_config
from flawline_inspect.decision import Decision, DecisionRule
from flawline_inspect.frame import FrameSpec, fit_picture
from flawline_inspect.verdict import Verdict

SIDE = 32
SPEC = FrameSpec(SIDE, SIDE)
THRESHOLD = 4.0
GOOD_LEVEL = 90
PER_UNIT = 10
OK_LEVEL, BAD_LEVEL, LIMIT_LEVEL = 100, 150, 130
WAIT_S = 10.0


# --- the model ---------------------------------------------------------------------------------------------------


@functools.cache
def level_graph() -> bytes:
    """heatmap = |mean of B, G and R - 90| / 10, score = its maximum, expected = 90 everywhere."""

    def constant(name: str, value: float) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, [], [value])

    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "channel"], ["grey"], keepdims=0),
        helper.make_node("Sub", ["grey", "good"], ["signed"]),
        helper.make_node("Abs", ["signed"], ["distance"]),
        helper.make_node("Div", ["distance", "unit"], ["heatmaps"]),
        helper.make_node("ReduceMax", ["heatmaps", "area"], ["scores"], keepdims=0),
        helper.make_node("Mul", ["pixels", "nothing"], ["black"]),
        helper.make_node("Add", ["black", "good"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["expected"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "level",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["N", SIDE, SIDE]),
            helper.make_tensor_value_info("expected", TensorProto.UINT8, ["N", SIDE, SIDE, 3]),
        ],
        [
            helper.make_tensor("channel", TensorProto.INT64, [1], [3]),
            helper.make_tensor("area", TensorProto.INT64, [2], [1, 2]),
            constant("good", GOOD_LEVEL),
            constant("unit", PER_UNIT),
            constant("nothing", 0.0),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9  # what the oldest ONNX Runtime of our range reads
    onnx.checker.check_model(model)
    return model.SerializeToString()


def score_of(frame: NDArray[np.uint8]) -> float:
    """What the graph says of one frame, worked out by NumPy."""
    return float(np.abs(frame.astype(np.float64).mean(2) - GOOD_LEVEL).max() / PER_UNIT)


def picture(level: int, wh: tuple[int, int] = (48, 48)) -> NDArray[np.uint8]:
    """(h, w, 3) BGR, flat."""
    return np.full((wh[1], wh[0], 3), level, np.uint8)


def _golden(label: str, index: int) -> NDArray[np.uint8]:
    """(96, 96, 3) BGR: soft bands, so that resizing has something to average; a damaged one has a bright square."""
    rows = np.linspace(80 + index, 100 + index, 96)
    raw = np.repeat(np.rint(rows)[:, None, None], 96, 1).repeat(3, 2).astype(np.uint8)
    if label == "damaged":
        raw[30:60, 30 + index : 60] = 180
    return raw


@functools.cache
def level_bundle_bytes(name: str = "level", golden: int = 8) -> bytes:
    members, entries = {MODEL: level_graph()}, []
    for label in ("good", "damaged"):
        for index in range(golden):
            raw = _golden(label, index)
            fitted, _ = fit_picture(raw, SPEC)
            names = {"raw": f"golden/{label}{index}.raw.png", "fitted": f"golden/{label}{index}.png"}
            members |= {names["raw"]: png(raw), names["fitted"]: png(fitted)}
            entries.append({**names, "label": label, "score": score_of(fitted)})
    return bundle_bytes(small_manifest(name=name, golden=entries), members)


def level_bundle(folder: Path, name: str = "level", golden: int = 8) -> Path:
    path = folder / f"{name}.flawline"
    path.write_bytes(level_bundle_bytes(name, golden))
    return path


def config(folder: Path, **changes: Any) -> Config:
    """A station without a broker, on the level model and ONNX Runtime; `changes` replaces whole keys."""
    tree: dict[str, Any] = {
        "station": "press-7",
        "state_dir": "state",
        "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
        "trigger": {"kind": "free", "max_rate": 1e6},
        "recipes": {1: str(level_bundle(folder))},
        "engine": {"kind": "onnxruntime", "threads": 1},
        "deadline_ms": 20_000,  # the machine may be busy; tests of the deadline set their own
        "mqtt": {"host": "broker.invalid", "root": "acme/press-7"},
    }
    return parse_config(tree | changes, base=folder)


def inspection(
    seq: int = 1,
    level: int = OK_LEVEL,
    *,
    part: str = "SN1",
    decision: Decision | None = None,
    wh: tuple[int, int] = (48, 48),
    roi: tuple[int, int, int, int] | None = None,
    late: bool = False,
    ms: float = 7.4,
    camera: str = "top",
    **frame: Any,
) -> Inspection:
    """What observers are told of a flat picture; `decision` instead of the level's, `frame` for `CameraFrame`."""
    raw = picture(level, wh)
    fitted, placement = fit_picture(raw, SPEC, roi)
    heatmap = (np.abs(fitted.astype(np.float32).mean(2) - GOOD_LEVEL) / PER_UNIT).astype(np.float32)
    judged = decision or DecisionRule(THRESHOLD).decide(heatmap.max(), heatmap)
    verdict = Verdict(
        seq, "001f9c21", f"F{seq}", part, judged.result, judged.reason, judged.score, THRESHOLD, 1, "level-01234567",
        wall_clock(), ms,
    )  # fmt: skip
    judgement = Judgement(judged, heatmap, np.full_like(fitted, GOOD_LEVEL), placement, 0.1, 1.0)
    return Inspection(
        verdict, CameraFrame(raw, wall_clock(), time.monotonic(), part, **frame), judgement, late, camera=camera
    )


# --- cameras -----------------------------------------------------------------------------------------------------

Shot = int | NDArray[np.generic] | Exception | None
"""A grey level, a picture, an error to raise, or None for the end."""


class ListCamera:
    """Not live: one shot a read, none lost. Parts are called P1, P2 and so on; errors count."""

    live = False

    def __init__(self, shots: Iterable[Shot], *, interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        self.entered = self.left = 0
        self._shots: Iterator[Shot] = iter(shots)
        self._number = 0

    def __enter__(self) -> ListCamera:
        self.entered += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.left += 1

    def read(self) -> CameraFrame | None:
        self._number += 1
        return self._frame(next(self._shots, None), time.monotonic())

    def _frame(self, shot: Shot, began: float) -> CameraFrame | None:
        if isinstance(shot, Exception):
            raise shot
        if shot is None:
            return None
        shown = picture(shot) if isinstance(shot, int) else shot
        return CameraFrame(shown, wall_clock(), began, f"P{self._number}")


class LiveCamera(ListCamera):
    """Live: a shot every `period_s`, whoever looks. `gates` maps the number of a shot to an event it waits for."""

    live = True

    def __init__(
        self, shots: Iterable[Shot], *, period_s: float = 0.01, gates: dict[int, threading.Event] | None = None
    ) -> None:
        super().__init__(shots)
        self._period_s = period_s
        self._gates = gates or {}
        self._over = threading.Event()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._over.set()

    def read(self) -> CameraFrame | None:
        self._number += 1
        gate = self._gates.get(self._number)
        if gate is not None:
            gate.wait(WAIT_S)
            self._over.wait(0.05)  # what is said first is done soon after
        began = time.monotonic()
        self._over.wait(self._period_s)
        return self._frame(next(self._shots, None), began)


# --- the engine ----------------------------------------------------------------------------------------------------


def script_judge(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """`before(n)` runs before the n-th judgement, from 1; it may wait or raise."""
    judge = Inspector.judge
    count = iter(range(1, 1_000_000))

    def scripted(self: Inspector, raw: NDArray[np.generic]) -> Judgement:
        before(next(count))
        return judge(self, raw)

    monkeypatch.setattr(Inspector, "judge", scripted)


# --- the broker ----------------------------------------------------------------------------------------------------


class Wire:
    """Stands where `flawline_edge.station.Publisher` stands and keeps what would have gone to the broker.

    `verdicts`, `states`, `alarms` and `acks` come with the moment of the monotonic clock at which they were sent.
    `ready` is set from the first `ready` on.
    """

    def __init__(self) -> None:
        self.connected = True
        self.acknowledging = True
        self.last_error = "the wire is cut"
        self.verdicts: list[tuple[float, Verdict]] = []
        self.states: list[tuple[float, StationState]] = []
        self.alarms: list[tuple[float, str, bool, str]] = []
        self.every_alarm: list[tuple[float, str, bool, str]] = []  # with the ends that every start sends
        self.acks: list[tuple[float, str, dict[str, Any]]] = []
        self.options: dict[str, Any] = {}
        self.started = self.stopped = 0
        self.ready = threading.Event()
        self.history: list[Verdict] = []
        self._journal: Journal | None = None
        self._on_command: Callable[[Command], None] | None = None
        self.topic_cameras: list[str] = []
        self.below: list[str] = []  # the camera of each verdict's topic

    def __call__(
        self,
        *,
        mqtt: MqttConfig,
        host: str,
        port: int,
        client_id: str,
        state: StationState,
        journal: Journal | None,
        deadline_s: float,
        on_command: Callable[[Command], None] | None = None,
        password: str | None = None,
        key_password: str | None = None,
        cameras: Sequence[str] = (),
    ) -> Wire:
        self.topic_cameras = list(cameras)
        self.options = {"mqtt": mqtt, "host": host, "port": port, "client_id": client_id, "deadline_s": deadline_s}
        self.states.append((time.monotonic(), state))
        self._journal, self._on_command = journal, on_command
        return self

    def start(self) -> None:
        self.started += 1

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        self.stopped += 1
        if self.acknowledging and self._journal is not None:
            waiting = self._journal.next_history(1000)
            self.history += waiting
            self._journal.delivered([(verdict.boot, verdict.seq) for verdict in waiting])
        return self.acknowledging

    def set_state(self, state: StationState) -> None:
        self.states.append((time.monotonic(), state))
        if state.state == "ready":
            self.ready.set()

    def messages_of(self, verdict: Verdict, camera: str = "") -> list[Message]:
        return []

    def publish_verdict(
        self,
        verdict: Verdict,
        *,
        until: float | None = None,
        camera: str = "",
        messages: Sequence[Message] | None = None,
    ) -> bool:
        verdict.to_json()
        self.below.append(camera)
        self.verdicts.append((time.monotonic(), verdict))
        if self.acknowledging and self._journal is not None:
            self._journal.delivered([(verdict.boot, verdict.seq)])
        return True

    def acknowledge(
        self, name: str, payload: dict[str, object], *, camera: str = "", reply: Reply | None = None
    ) -> None:
        json.dumps(payload)
        self.acks.append((time.monotonic(), f"{camera}/{name}" if camera else name, dict(payload)))

    def alarm(self, name: str, active: bool, text: str = "") -> None:
        self.every_alarm.append((time.monotonic(), name, active, text))
        if active or any(name == known for _, known, _, _ in self.alarms):
            self.alarms.append(self.every_alarm[-1])

    # What a test asks and sends.

    @property
    def told(self) -> list[Verdict]:
        """The verdicts in order of publication."""
        return [verdict for _, verdict in list(self.verdicts)]

    @property
    def state_words(self) -> list[str]:
        """`ready`, `fault camera` and so on, in order, repetitions left out."""
        words: list[str] = []
        for _, state in list(self.states):
            word = f"{state.state} {state.reason}".strip()
            if words[-1:] != [word]:
                words.append(word)
        return words

    def when(self, seq: int) -> float:
        return next(at for at, verdict in list(self.verdicts) if verdict.seq == seq)

    def command(self, name: str, payload: bytes | dict[str, Any], *, camera: str = "", retained: bool = False) -> None:
        """As if it had come from the broker, on this thread."""
        assert self._on_command is not None, "the station has not subscribed to commands"
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._on_command(Command(camera, name, data, retained))

    def trigger(self, name: str, part: str = "", *, camera: str = "") -> None:
        self.command("trigger", {"trigger": name, "part": part}, camera=camera)

    def ack(self, request_id: str) -> dict[str, Any]:
        """The first acknowledgement of this request; waited for."""
        found: list[dict[str, Any]] = []

        def answered() -> bool:
            found[:] = [payload for _, _, payload in list(self.acks) if payload["id"] == request_id]
            return bool(found)

        wait_until(answered, f"an acknowledgement of {request_id}")
        return found[0]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire()
    monkeypatch.setattr(station_module, "Publisher", made)
    return made


# --- running ---------------------------------------------------------------------------------------------------------


def wait_until(is_true: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    until = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > until:
            pytest.fail(f"waited {timeout_s} s in vain for {what}", pytrace=False)
        time.sleep(0.002)


class Running:
    """A station on a thread of its own; `code` or `error` once it has ended."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.stop = threading.Event()
        self.code: int | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="station-under-test", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.code = self.station.run(self.stop)
        except BaseException as exc:  # handed to the test
            self.error = exc

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        if self.alive:
            pytest.fail("the station does not end", pytrace=False)


@contextmanager
def running(station: Station, wire: Wire) -> Iterator[Running]:
    """From `ready` on; stopped at the end if it still runs."""
    run = Running(station)
    try:
        wait_until(lambda: "ready" in wire.state_words or not run.alive, "the station to be ready")
        yield run
    finally:
        run.stop.set()
        run.join()


def run_to_end(station: Station) -> int:
    """A station whose camera ends by itself."""
    return station.run(threading.Event())


def observed(seen: list[Inspection]) -> Sequence[Verdict]:
    return [each.verdict for each in seen if not each.late]
