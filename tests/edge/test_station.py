"""The station as a whole: exactly one verdict a part, in order, inside the deadline, whatever fails."""

from __future__ import annotations

import errno
import fcntl
import inspect
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.edge.mosquitto import mosquitto
from tests.edge.stand_ins import (
    BAD_LEVEL,
    LIMIT_LEVEL,
    OK_LEVEL,
    THRESHOLD,
    ListCamera,
    LiveCamera,
    Running,
    Shot,
    Wire,
    config,
    level_bundle,
    level_bundle_bytes,
    observed,
    picture,
    run_to_end,
    running,
    script_judge,
    wait_until,
    wire,
)
from tests.inspect_.bundles import with_health

from flawline_edge import station as station_module
from flawline_edge.cameras import PictureLost
from flawline_edge.inspector import Inspector
from flawline_edge.journal import Journal, JournalError
from flawline_edge.lane import WAITING_TRIGGERS
from flawline_edge.publisher import Publisher
from flawline_edge.station import Inspection, Station
from flawline_engines.engine import Inference
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    BundleError,
    CameraError,
    ConfigError,
    EngineError,
    PictureError,
    PlacementError,
)
from flawline_inspect.verdict import Reason, Result, Verdict

__all__ = ["wire"]  # the fixture

MQTT = {"kind": "mqtt"}
WAIT_S = 10.0


def station(
    folder: Path, shots: list[Shot] | ListCamera, seen: list[Inspection] | None = None, **changes: Any
) -> Station:
    camera = ListCamera(shots) if isinstance(shots, list) else shots
    return Station(config(folder, **changes), camera=camera, observers=[] if seen is None else [seen.append])


def results(verdicts: list[Verdict]) -> list[tuple[int, str]]:
    return [(int(verdict.result), verdict.reason.value) for verdict in verdicts]


def rows(folder: Path, columns: str) -> list[tuple[Any, ...]]:
    """The journal's rows, in order of acceptance."""
    connection = sqlite3.connect(folder / "state" / "journal.sqlite")
    try:
        return connection.execute(f"SELECT {columns} FROM parts ORDER BY id").fetchall()
    finally:
        connection.close()


def done(error: BaseException | None = None) -> Future[None]:
    future: Future[None] = Future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


OK, NOT_OK = (1, ""), (2, "")


def test_the_stand_in_has_the_publishers_interface() -> None:
    """What the station calls on the stand-in it can call on the real one."""
    real = inspect.signature(Publisher.__init__).parameters
    assert list(real) == list(inspect.signature(Wire.__call__).parameters)
    for name in ("start", "stop", "set_state", "publish_verdict", "acknowledge", "alarm"):
        assert inspect.signature(getattr(Publisher, name)) == inspect.signature(getattr(Wire, name)), name


# --- one verdict a part ------------------------------------------------------------------------------------------


def test_every_picture_has_one_verdict_in_order(tmp_path: Path, wire: Wire) -> None:
    """A finite camera that loses none: wire, observers, counts and journal agree on each of its parts."""
    levels = [OK_LEVEL, BAD_LEVEL, LIMIT_LEVEL, LIMIT_LEVEL + 1, 255, 90, 30, OK_LEVEL, BAD_LEVEL, 100, 0, 95]
    seen: list[Inspection] = []
    camera = ListCamera(list(levels))
    made = station(tmp_path, camera, seen)
    assert run_to_end(made) == EXIT_DONE
    expected = [NOT_OK if abs(level - 90) / 10 > THRESHOLD else OK for level in levels]
    told = wire.told
    assert results(told) == expected
    assert [v.seq for v in told] == list(range(1, 13))
    assert [v.trigger for v in told] == [f"F{n}" for n in range(1, 13)]
    assert [v.part for v in told] == [f"P{n}" for n in range(1, 13)]
    assert [v.score for v in told] == pytest.approx([abs(level - 90) / 10 for level in levels])
    assert {(v.threshold, v.recipe, v.model) for v in told} == {(THRESHOLD, 1, made.config.recipe and told[0].model)}
    assert {v.boot for v in told} == {told[0].boot} and len(told[0].boot) == 8
    assert all(v.ms > 0 for v in told)
    assert observed(seen) == told and not any(each.late for each in seen)
    assert all(each.frame is not None and each.judgement is not None for each in seen)
    assert all(each.overhead_ms >= 0 and each.journal_ms >= 0 for each in seen)
    assert made.counts.by_result == [0, expected.count(OK), expected.count(NOT_OK), 0]
    assert (made.counts.inspected, made.counts.late, made.counts.dropped, made.counts.unjournaled) == (12, 0, 0, 0)
    assert rows(tmp_path, "seq, trigger, part, result, late_result, delivered") == [
        (v.seq, v.trigger, v.part, int(v.result), None, 1) for v in told
    ]
    assert (camera.entered, camera.left) == (1, 1)


def test_states_of_a_good_day(tmp_path: Path, wire: Wire) -> None:
    """starting, ready, stopped; ready names the engine; one client id a start."""
    made = station(tmp_path, [OK_LEVEL])
    run_to_end(made)
    assert wire.state_words == ["starting", "ready", "stopped"]
    first, ready = wire.states[0][1], wire.states[1][1]
    assert (first.engine, first.precision) == ("", "")
    assert (ready.engine, ready.precision, ready.recipe) == ("onnxruntime", "fp32", 1)
    assert ready.boot == first.boot == wire.told[0].boot and ready.model == wire.told[0].model
    assert wire.options["client_id"] == f"press-7-{ready.boot}" and wire.options["deadline_s"] == 20.0
    assert (wire.started, wire.stopped) == (1, 1)
    assert wire.alarms == []
    assert wire.states[1][0] < wire.verdicts[0][0] < wire.states[-1][0]


def test_each_start_has_its_own_boot_and_counts_from_1(tmp_path: Path, wire: Wire) -> None:
    """(boot, seq) never comes twice."""
    for _ in range(2):
        run_to_end(station(tmp_path, [OK_LEVEL, OK_LEVEL]))
    assert [v.seq for v in wire.told] == [1, 2, 1, 2]
    boots = [v.boot for v in wire.told]
    assert boots[0] == boots[1] != boots[2] == boots[3]
    assert [int(boot[:4], 16) for boot in (boots[0], boots[2])] == [1, 2]


def test_an_empty_camera_ends_well(tmp_path: Path, wire: Wire) -> None:
    """Nothing to inspect is no failure."""
    made = station(tmp_path, [])
    assert run_to_end(made) == EXIT_DONE
    assert wire.told == [] and made.counts.inspected == 0
    assert wire.state_words == ["starting", "ready", "stopped"]


def test_building_a_station_touches_nothing(tmp_path: Path, wire: Wire) -> None:
    """No folder, no camera, no broker; a bundle that cannot be used is refused here."""
    camera = ListCamera([OK_LEVEL])
    station(tmp_path, camera)
    assert not (tmp_path / "state").exists() and not camera.entered and not wire.states
    with pytest.raises(BundleError):
        station(tmp_path, camera, recipes={1: "none.flawline"})


def test_pictures_come_at_the_cameras_pace(tmp_path: Path, wire: Wire) -> None:
    """`interval_s` apart, or `max_rate` where that is slower; reading and inspecting is part of it."""
    for camera, max_rate in ((ListCamera([OK_LEVEL] * 5, interval_s=0.05), 1e6), (ListCamera([OK_LEVEL] * 5), 20)):
        seen: list[Inspection] = []
        run_to_end(station(tmp_path, camera, seen, trigger={"kind": "free", "max_rate": max_rate}))
        moments = [each.frame.arrived_monotonic for each in seen if each.frame is not None]
        assert len(moments) == 5 and 0.15 <= moments[-1] - moments[0] < 1.0


def test_stop_ends_it_between_two_parts(tmp_path: Path, wire: Wire) -> None:
    """At once, also while it waits for the next part's time."""
    made = station(tmp_path, ListCamera([OK_LEVEL] * 100, interval_s=30.0))
    with running(made, wire) as run:
        wait_until(lambda: len(wire.told) == 1, "the first verdict")
        began = time.monotonic()
        run.stop.set()
        run.join()
    assert time.monotonic() - began < 2.0
    assert run.code == EXIT_DONE and len(wire.told) == 1
    assert wire.state_words == ["starting", "ready", "stopped"]


def test_a_stop_before_the_start(tmp_path: Path, wire: Wire) -> None:
    """Nothing is inspected, and it does not wait for the broker."""
    wire.connected = False
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    assert station(tmp_path, [OK_LEVEL]).run(stop) == EXIT_DONE
    assert time.monotonic() - began < 2.0 and wire.told == []


def test_without_a_broker_it_inspects_all_the_same(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a short wait, said once with the reason."""
    monkeypatch.setattr(station_module, "CONNECT_WAIT_S", 0.05)
    wire.connected = False
    run_to_end(station(tmp_path, [OK_LEVEL, BAD_LEVEL]))
    assert results(wire.told) == [OK, NOT_OK]
    assert caplog.text.count("no broker yet (the wire is cut)") == 1


def test_what_is_not_acknowledged_makes_the_exit_code_1(tmp_path: Path, wire: Wire) -> None:
    """The verdicts are in the journal, and the caller learns of it."""
    wire.acknowledging = False
    assert run_to_end(station(tmp_path, [OK_LEVEL])) == EXIT_FAILURE
    assert rows(tmp_path, "result, delivered") == [(1, 0)]


# --- what can fail in one part -----------------------------------------------------------------------------------


def test_an_engine_that_fails_once(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 `engine` for that part, an alarm, and the next part is judged."""

    def before(n: int) -> None:
        if n == 2:
            raise EngineError("the graphics card is gone")

    script_judge(monkeypatch, before)
    made = station(tmp_path, [OK_LEVEL, OK_LEVEL, BAD_LEVEL])
    assert run_to_end(made) == EXIT_DONE
    assert results(wire.told) == [OK, (0, "engine"), NOT_OK]
    assert wire.told[1].score == 0.0 and wire.told[1].part == "P2"
    assert [alarm[1:] for alarm in wire.alarms][:1] == [("engine", True, "the graphics card is gone")]
    assert made.counts.by_result == [1, 1, 1, 0]


def test_the_engines_alarm_ends_with_the_trouble(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was judged again says that the engine works."""

    def before(n: int) -> None:
        if n == 1:
            raise EngineError("once")

    script_judge(monkeypatch, before)
    run_to_end(station(tmp_path, [OK_LEVEL, OK_LEVEL]))
    assert [alarm[1:3] for alarm in wire.alarms] == [("engine", True), ("engine", False)]


@pytest.mark.parametrize("what", ["score", "heatmap"])
def test_not_finite(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A NaN score or one infinite pixel: 0 `not_finite`, score 0, and the journal takes it."""
    infer = OnnxRuntimeEngine.infer

    def spoilt(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        told = infer(self, frames)
        if (frames == 7).all():
            if what == "score":
                told.scores[0] = np.nan
            else:
                told.heatmaps[0, 3, 3] = np.inf
        return told

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", spoilt)
    run_to_end(station(tmp_path, [OK_LEVEL, 7, OK_LEVEL]))
    assert results(wire.told) == [OK, (0, "not_finite"), OK]
    assert rows(tmp_path, "result, reason, score")[1] == (0, "not_finite", 0.0)


def test_a_picture_that_cannot_be_fitted(tmp_path: Path, wire: Wire) -> None:
    """0 `camera` for that part."""
    run_to_end(station(tmp_path, [OK_LEVEL, np.zeros((4, 4), np.int32), picture(BAD_LEVEL)]))
    assert results(wire.told) == [OK, (0, "camera"), NOT_OK]


def test_a_picture_that_is_lost(tmp_path: Path, wire: Wire) -> None:
    """0 `camera` with its part's id; the camera itself goes on."""
    seen: list[Inspection] = []
    run_to_end(station(tmp_path, [OK_LEVEL, PictureLost("x.png: is empty", part="x"), BAD_LEVEL], seen))
    assert results(wire.told) == [OK, (0, "camera"), NOT_OK]
    assert [v.part for v in wire.told] == ["P1", "x", "P3"]
    assert seen[1].frame is None and seen[1].judgement is None
    assert wire.state_words == ["starting", "ready", "stopped"] and wire.alarms == []


def test_the_review_band(tmp_path: Path, wire: Wire) -> None:
    """3 `review` goes out with its score."""
    recipe = {"bundle": str(level_bundle(tmp_path)), "review_band": [0.5, 1.5]}
    run_to_end(station(tmp_path, [OK_LEVEL, LIMIT_LEVEL + 5, 200], recipes={1: recipe}))
    assert results(wire.told) == [OK, (3, "review"), NOT_OK]
    assert wire.told[1].score == pytest.approx(4.5)


# --- the deadline --------------------------------------------------------------------------------------------------


def test_a_slow_judgement_is_overtaken_by_the_deadline(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 `deadline` leaves at the deadline, not when the judgement ends; the late result is the journal's alone."""
    ended: list[float] = []
    began: list[float] = []

    def before(n: int) -> None:
        if n == 2:
            began.append(time.monotonic())
            time.sleep(1.2)
            ended.append(time.monotonic())

    script_judge(monkeypatch, before)
    seen: list[Inspection] = []
    made = station(tmp_path, [OK_LEVEL, BAD_LEVEL, OK_LEVEL], seen, deadline_ms=400)
    assert run_to_end(made) == EXIT_DONE
    assert results(wire.told) == [OK, (0, "deadline"), OK]
    at = wire.when(2)
    assert 0.35 <= at - began[0] <= 0.8, "not at about the deadline"
    assert at < ended[0] - 0.2, "not before the slow judgement ended"
    assert wire.told[1].ms == pytest.approx(400, abs=300) and wire.told[1].part == "P2"
    late = [each for each in seen if each.late]
    assert [(each.verdict.seq, each.verdict.result) for each in late] == [(2, Result.NOT_OK)]
    assert observed(seen) == wire.told
    assert made.counts.by_result == [1, 2, 0, 0] and made.counts.late == 1
    found = rows(tmp_path, "seq, result, reason, late_result, late_score, delivered")
    assert found[0] == (1, 1, "", None, None, 1)
    assert found[1] == (2, 0, "deadline", 2, pytest.approx(6.0), 1)
    assert found[2] == (3, 1, "", None, None, 1)


def test_the_time_on_the_way_counts(tmp_path: Path, wire: Wire) -> None:
    """Live and free-running, the deadline runs from the picture's arrival: one that was held up is late."""

    class HeldUp(LiveCamera):
        def read(self) -> Any:
            frame = super().read()
            if self._number == 2:
                time.sleep(0.6)
            return frame

    camera = HeldUp([OK_LEVEL, BAD_LEVEL, OK_LEVEL], gates={1: wire.ready}, period_s=0.1)
    run_to_end(station(tmp_path, camera, deadline_ms=400))
    assert results(wire.told) == [OK, (0, "deadline"), OK]


def test_the_wait_for_light_does_not_count(tmp_path: Path, wire: Wire) -> None:
    """A camera may be read long before its picture comes."""
    camera = LiveCamera([OK_LEVEL, BAD_LEVEL], gates={1: wire.ready}, period_s=0.5)
    run_to_end(station(tmp_path, camera, deadline_ms=400))
    assert results(wire.told) == [OK, NOT_OK]


def test_what_passed_during_the_start_is_no_part(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live camera is read before the model is loaded; the part that stood there then is gone."""
    enter = Inspector.__enter__

    def slowly(self: Inspector) -> Inspector:
        time.sleep(0.3)  # as a model of usual size loads
        return enter(self)

    monkeypatch.setattr(Inspector, "__enter__", slowly)
    shots: list[Shot] = [BAD_LEVEL, BAD_LEVEL, OK_LEVEL]
    run_to_end(station(tmp_path, LiveCamera(shots, period_s=0.001, gates={3: wire.ready})))
    assert results(wire.told) == [OK] and wire.told[0].seq == 1


def test_many_slow_judgements_in_a_row(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """About at the deadline either side may win: always exactly one verdict, and what the PLC was told stands."""
    script_judge(monkeypatch, lambda n: time.sleep(0.02 + 0.002 * (n % 6)))
    seen: list[Inspection] = []
    made = station(tmp_path, [BAD_LEVEL] * 60, seen, deadline_ms=27)
    run_to_end(made)
    assert sorted(v.seq for v in wire.told) == list(range(1, 61))
    assert set(results(wire.told)) <= {NOT_OK, (0, "deadline")}
    by_seq = {v.seq: v for v in wire.told}
    for seq, result, reason, late_result in rows(tmp_path, "seq, result, reason, late_result"):
        assert (result, reason) == results([by_seq[seq]])[0], seq
        assert late_result == (2 if reason == "deadline" else None), seq
    assert made.counts.inspected == 60
    assert made.counts.late == sum(each.late for each in seen) == made.counts.by_result[0]


# --- the journal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["best_effort", "required"])
def test_a_journal_that_fails(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """best_effort: the verdict goes out; required: 0 `journal`. Either way it is counted and the alarm is on."""
    decide = Journal.decide

    def failing(self: Journal, verdict: Verdict, *, overrules: bool = False) -> Future[None]:
        if verdict.seq in (2, 3):
            return done(JournalError("the disk is full"))
        return decide(self, verdict, overrules=overrules)

    monkeypatch.setattr(Journal, "decide", failing)
    seen: list[Inspection] = []
    made = station(tmp_path, [OK_LEVEL, OK_LEVEL, BAD_LEVEL, BAD_LEVEL], seen, journal=policy)
    run_to_end(made)
    refused = (0, "journal")
    assert results(wire.told) == (
        [OK, OK, NOT_OK, NOT_OK] if policy == "best_effort" else [OK, refused, refused, NOT_OK]
    )
    assert wire.told[1].score == (1.0 if policy == "best_effort" else 0.0)
    assert made.counts.unjournaled == 2 and made.counts.late == 0
    assert [alarm[1:3] for alarm in wire.alarms][:1] == [("journal", True)] and wire.alarms[0][3]
    assert observed(seen) == wire.told


def test_the_journals_alarm_ends_with_the_trouble(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that was written again says that the disk works."""
    decide = Journal.decide

    def failing(self: Journal, verdict: Verdict, *, overrules: bool = False) -> Future[None]:
        if verdict.seq == 1:
            return done(JournalError("the disk is full"))
        return decide(self, verdict, overrules=overrules)

    monkeypatch.setattr(Journal, "decide", failing)
    run_to_end(station(tmp_path, [OK_LEVEL, OK_LEVEL]))
    assert [alarm[1:3] for alarm in wire.alarms] == [("journal", True), ("journal", False)]


@pytest.mark.parametrize("policy", ["best_effort", "required"])
def test_a_journal_that_hangs(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """The deadline does not wait for the disk: 0 `deadline`, and the decided verdict stays unpublished."""
    monkeypatch.setattr(Journal, "decide", lambda self, verdict, *, overrules=False: Future())
    made = station(tmp_path, [OK_LEVEL, BAD_LEVEL], deadline_ms=200, journal=policy)
    began = time.monotonic()
    run_to_end(made)
    assert time.monotonic() - began < 3.0
    assert results(wire.told) == [(0, "deadline")] * 2
    assert all(150 <= v.ms < 800 for v in wire.told)
    assert made.counts.late == 2 and made.counts.by_result == [2, 0, 0, 0]


def test_a_verdict_waits_for_its_commit(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published when it is on the disk, not before."""
    committed: list[float] = []

    def slow(self: Journal, verdict: Verdict, *, overrules: bool = False) -> Future[None]:
        future: Future[None] = Future()

        def commit() -> None:
            committed.append(time.monotonic())
            future.set_result(None)

        threading.Timer(0.15, commit).start()
        return future

    monkeypatch.setattr(Journal, "decide", slow)
    seen: list[Inspection] = []
    run_to_end(station(tmp_path, [OK_LEVEL], seen))
    assert results(wire.told) == [OK] and wire.when(1) >= committed[0]
    assert seen[0].journal_ms >= 140


def test_a_part_that_a_crash_left_open_is_settled_at_the_next_start(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """0 `restart` under its old boot, for history only; and it is said."""

    def before(n: int) -> None:
        if n == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        script_judge(patched, before)
        with pytest.raises(KeyboardInterrupt):
            run_to_end(station(tmp_path, [OK_LEVEL, OK_LEVEL]))
    old = wire.told[0].boot
    wire.verdicts.clear()
    assert run_to_end(station(tmp_path, [OK_LEVEL])) == EXIT_DONE
    assert results(wire.told) == [OK] and wire.told[0].boot != old
    assert rows(tmp_path, "boot, seq, result, reason, route")[1] == (old, 2, 0, "restart", "history")
    assert [(v.boot, v.seq, v.reason) for v in wire.history] == [(old, 2, Reason.RESTART)]
    assert "1 parts had no verdict" in caplog.text


# --- the camera ------------------------------------------------------------------------------------------------------


def test_a_lost_camera_shows_and_comes_back(tmp_path: Path, wire: Wire) -> None:
    """Alarm and state fault/camera while it is gone, both taken back with the first frame; no verdict is invented."""
    lost = CameraError("the cable was pulled")
    made = station(tmp_path, LiveCamera([OK_LEVEL, lost, lost, BAD_LEVEL], period_s=0.15, gates={1: wire.ready}))
    assert run_to_end(made) == EXIT_DONE
    assert wire.state_words == ["starting", "ready", "fault camera", "ready", "stopped"]
    assert [alarm[1:] for alarm in wire.alarms] == [("camera", True, "the cable was pulled"), ("camera", False, "")]
    assert results(wire.told) == [OK, NOT_OK]
    assert wire.alarms[0][0] < wire.alarms[1][0] < wire.when(2)


def test_a_camera_that_was_never_there(tmp_path: Path, wire: Wire) -> None:
    """State fault/camera for whoever listens, and the error for whoever started it."""

    class Missing(ListCamera):
        def __enter__(self) -> Any:
            raise CameraError("/dev/video7: does not exist", exit_code=2)

    with pytest.raises(CameraError, match="video7"):
        run_to_end(station(tmp_path, Missing([])))
    assert wire.state_words == ["starting", "fault camera"] and wire.stopped == 1


def test_a_camera_of_pictures_that_breaks(tmp_path: Path, wire: Wire) -> None:
    """Not live, the folder itself is gone: an error, state fault/camera; the parts before it have their verdicts."""
    camera = ListCamera([OK_LEVEL, CameraError("the folder is gone"), OK_LEVEL])
    with pytest.raises(CameraError):
        run_to_end(station(tmp_path, camera))
    assert results(wire.told) == [OK] and wire.state_words[-1] == "fault camera" and camera.left == 1


def test_frames_that_nobody_came_for_are_counted(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live: the newest frame wins. A dropped frame is no trigger: seq has no gap."""
    script_judge(monkeypatch, lambda n: time.sleep(0.05))
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 40, period_s=0.01, gates={1: wire.ready}))
    run_to_end(made)
    parts = [int(v.part[1:]) for v in wire.told]
    assert [v.seq for v in wire.told] == list(range(1, len(parts) + 1))
    assert parts == sorted(set(parts)) and parts[-1] == 40
    assert made.counts.dropped > 0 and made.counts.dropped + made.counts.inspected == 40


def test_frames_beyond_max_rate_are_counted(tmp_path: Path, wire: Wire) -> None:
    """Live at about 100 a second, 10 wanted."""
    camera = LiveCamera([OK_LEVEL] * 50, period_s=0.01, gates={1: wire.ready})
    made = station(tmp_path, camera, trigger={"kind": "free", "max_rate": 10})
    run_to_end(made)
    assert 3 <= len(wire.told) <= 12
    assert made.counts.dropped + made.counts.inspected >= 49  # the last ones may go with the end


def test_a_camera_at_max_rate_loses_nothing_to_jitter(tmp_path: Path, wire: Wire) -> None:
    """20 frames a second and `max_rate: 20`: a frame that comes 2 ms early is still one of twenty a second."""

    class Jittery(LiveCamera):
        def read(self) -> Any:
            frame = super().read()
            if self._number == 1:
                self._first = time.monotonic()
            if frame is None:
                return None
            moment = self._first + 0.05 * self._number + (0.002 if self._number % 2 else -0.002)
            time.sleep(max(0.0, moment - time.monotonic()))
            return replace(frame, captured_monotonic=moment, arrived_monotonic=moment)

    camera = Jittery([OK_LEVEL] * 20, period_s=0.001, gates={1: wire.ready})
    made = station(tmp_path, camera, trigger={"kind": "free", "max_rate": 20})
    run_to_end(made)
    assert made.counts.inspected >= 19, f"{made.counts.inspected} of 20"


def test_a_start_ends_the_alarms_of_the_last_one(tmp_path: Path, wire: Wire) -> None:
    """Killed while the camera was lost: once it runs again, alarm/camera must not say `active` for ever."""
    camera = LiveCamera([OK_LEVEL, CameraError("the cable was pulled")], gates={1: wire.ready})
    with pytest.raises(KeyboardInterrupt):
        station(tmp_path, camera).run(_Killed(wire))
    assert [alarm[1:3] for alarm in wire.alarms] == [("camera", True)]
    run_to_end(station(tmp_path, LiveCamera([OK_LEVEL] * 20)))
    assert ("camera", False) in [alarm[1:3] for alarm in wire.every_alarm]


class _Killed(threading.Event):
    """A stop event that interrupts as soon as an alarm is on."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def is_set(self) -> bool:
        if self._wire.alarms:
            raise KeyboardInterrupt
        return super().is_set()


# --- triggers by MQTT --------------------------------------------------------------------------------------------------


def test_a_trigger_is_acknowledged_and_answered(tmp_path: Path, wire: Wire) -> None:
    """The acknowledgement says what is loaded, the verdict carries the trigger's and the part's id."""
    made = station(tmp_path, LiveCamera([BAD_LEVEL] * 10_000), trigger=MQTT)
    with running(made, wire):
        wire.command("trigger", {"id": "17", "trigger": "T-00918", "part": "SN12345"})
        ack = wire.ack("17")
        wait_until(lambda: len(wire.told) == 1, "the verdict")
    verdict = wire.told[0]
    assert ack == {
        "id": "17", "ok": True, "error": "", "state": "ready", "recipe": 1, "model": verdict.model, "threshold": 4.0,
    }  # fmt: skip
    assert (verdict.seq, verdict.trigger, verdict.part) == (1, "T-00918", "SN12345")
    assert results(wire.told) == [NOT_OK]
    assert rows(tmp_path, "trigger, part, result, late_result") == [("T-00918", "SN12345", 2, None)]


@pytest.mark.parametrize("delay_ms", [0, 150])
def test_a_trigger_is_answered_by_a_frame_that_began_after_it(tmp_path: Path, wire: Wire, delay_ms: int) -> None:
    """What the camera was busy with when the trigger came shows the part before; `delay_ms` comes on top."""
    seen: list[Inspection] = []
    made = station(
        tmp_path, LiveCamera([OK_LEVEL] * 10_000, period_s=0.02), seen, trigger={**MQTT, "delay_ms": delay_ms}
    )
    asked: list[float] = []
    with running(made, wire):
        for n in range(1, 6):
            asked.append(time.monotonic())
            wire.trigger(f"T-{n}")
            wait_until(lambda n=n: len(wire.told) == n, "the verdict")
            time.sleep(0.007)
    for moment, each in zip(asked, seen, strict=True):
        assert each.frame is not None
        waited = each.frame.captured_monotonic - moment
        assert 1e-3 * delay_ms <= waited < 1e-3 * delay_ms + 0.5
    assert [v.trigger for v in wire.told] == [f"T-{n}" for n in range(1, 6)]


def test_a_folder_gives_one_picture_a_trigger(tmp_path: Path, wire: Wire) -> None:
    """In order, its stem as part where the trigger names none; the station ends after the last one."""
    lost = PictureLost("x.png: is empty", part="x")
    made = station(tmp_path, [OK_LEVEL, BAD_LEVEL, lost, OK_LEVEL], trigger=MQTT)
    with running(made, wire) as run:
        for n, part in enumerate(["", "SN2", "", ""], 1):
            wire.trigger(f"T-{n}", part)
            wait_until(lambda n=n: len(wire.told) == n, "the verdict")
        run.join()
    assert run.code == EXIT_DONE
    assert results(wire.told) == [OK, NOT_OK, (0, "camera"), OK]
    assert [v.part for v in wire.told[:2]] == ["P1", "SN2"] and wire.told[3].part == "P4"
    assert wire.state_words == ["starting", "ready", "stopped"]


def test_a_lost_picture_of_a_trigger_keeps_its_part(tmp_path: Path, wire: Wire) -> None:
    """The folder knows which picture it is that cannot be read."""
    made = station(tmp_path, [PictureLost("x.png: is empty", part="x")], trigger=MQTT)
    with running(made, wire) as run:
        wire.trigger("T-1")
        run.join()
    assert [(v.part, v.reason) for v in wire.told] == [("x", Reason.CAMERA)]


def block(monkeypatch: pytest.MonkeyPatch, number: int = 1) -> tuple[threading.Event, threading.Event]:
    """(busy, free): judgement `number` sets the one and waits for the other."""
    busy, free = threading.Event(), threading.Event()

    def before(n: int) -> None:
        if n == number:
            busy.set()
            free.wait(WAIT_S)

    script_judge(monkeypatch, before)
    return busy, free


def test_triggers_beyond_the_queue_are_overrun(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in work, 16 waiting, and the next ones get 0 `overrun` at once; all others are answered in order."""
    busy, free = block(monkeypatch)
    seen: list[Inspection] = []
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 100_000, period_s=0.002), seen, trigger=MQTT)
    total = 1 + WAITING_TRIGGERS + 3
    with running(made, wire):
        wire.trigger("T-1")
        assert busy.wait(WAIT_S)
        for n in range(2, total + 1):
            wire.trigger(f"T-{n}")
        overrun = [f"T-{n}" for n in range(total - 2, total + 1)]
        assert [(v.trigger, v.reason) for v in wire.told] == [(name, Reason.OVERRUN) for name in overrun]
        free.set()
        wait_until(lambda: len(wire.told) == total, "all verdicts")
        assert all(wire.ack(f"T-{n}")["ok"] for n in range(1, total + 1))
    answered = wire.told[3:]
    assert [v.trigger for v in answered] == [f"T-{n}" for n in range(1, total - 2)]
    assert results(answered) == [OK] * (total - 3)
    assert sorted(v.seq for v in wire.told) == list(range(1, total + 1))
    assert made.counts.by_result == [3, total - 3, 0, 0]
    assert sorted(v.seq for v in observed(seen)) == list(range(1, total + 1))


def test_waiting_triggers_are_stopped_with_the_station(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in work is finished, those behind it get 0 `stopped`, before the state says so."""
    busy, free = block(monkeypatch)
    made = station(tmp_path, LiveCamera([BAD_LEVEL] * 100_000, period_s=0.002), trigger=MQTT)
    with running(made, wire) as run:
        wire.trigger("T-1")
        assert busy.wait(WAIT_S)
        for n in range(2, 6):
            wire.trigger(f"T-{n}")
        run.stop.set()
        free.set()
        run.join()
    assert run.code == EXIT_DONE
    assert results(wire.told) == [NOT_OK] + [(0, "stopped")] * 4
    assert [v.trigger for v in wire.told] == [f"T-{n}" for n in range(1, 6)]
    assert wire.states[-1][1].state == "stopped" and wire.states[-1][0] > wire.verdicts[-1][0]


def test_waiting_triggers_have_their_deadlines(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a judgement that hangs: each is 0 `deadline` at its own deadline, in order, and only once."""
    busy, free = block(monkeypatch)
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 100_000, period_s=0.002), trigger=MQTT, deadline_ms=300)
    asked: dict[int, float] = {}
    with running(made, wire) as run:
        for n in range(1, 5):
            asked[n] = time.monotonic()
            wire.trigger(f"T-{n}")
            assert busy.wait(WAIT_S)
            time.sleep(0.03)
        wait_until(lambda: len(wire.told) == 4, "the deadlines")
        assert not free.is_set()
        free.set()
        wait_until(lambda: made.counts.late == 4, "the late results")
        wire.trigger("T-5")
        wait_until(lambda: len(wire.told) == 5, "the next verdict")
        run.stop.set()
        run.join()
    assert [v.seq for v in wire.told] == [1, 2, 3, 4, 5]
    assert results(wire.told) == [(0, "deadline")] * 4 + [OK]
    assert all(0.29 <= wire.when(n) - asked[n] < 0.8 for n in asked)


def test_a_camera_that_is_lost_answers_with_camera(tmp_path: Path, wire: Wire) -> None:
    """A trigger while there is no camera is 0 `camera` at once, and the next one after it is back is judged."""
    back = threading.Event()
    shots: list[Shot] = [OK_LEVEL, CameraError("the cable was pulled"), *([BAD_LEVEL] * 10_000)]
    made = station(tmp_path, LiveCamera(shots, gates={3: back}), trigger=MQTT)
    with running(made, wire):
        wait_until(lambda: "fault camera" in wire.state_words, "the fault")
        wire.trigger("T-1")
        wait_until(lambda: len(wire.told) == 1, "the verdict")
        assert wire.ack("T-1")["state"] == "fault"
        back.set()
        wait_until(lambda: wire.state_words[-1] == "ready", "the camera to be back")
        wire.trigger("T-2")
        wait_until(lambda: len(wire.told) == 2, "the verdict")
    assert results(wire.told) == [(0, "camera"), NOT_OK]
    assert [alarm[1:3] for alarm in wire.alarms] == [("camera", True), ("camera", False)]


def test_a_repeated_request_is_inspected_once(tmp_path: Path, wire: Wire) -> None:
    """MQTT delivers at least once: the second is acknowledged as a duplicate and does nothing."""
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 10_000), trigger=MQTT)
    with running(made, wire):
        for _ in range(3):
            wire.command("trigger", {"id": "17", "trigger": "T-1"})
        wire.command("trigger", {"id": "18", "trigger": "T-1"})
        wait_until(lambda: len(wire.told) == 2, "both verdicts")
        wait_until(lambda: len(wire.acks) == 4, "the acknowledgements")
    by_id = [(ack["id"], ack["ok"], ack.get("duplicate")) for _, _, ack in wire.acks]
    assert sorted(by_id, key=str) == [("17", True, None), ("17", True, True), ("17", True, True), ("18", True, None)]
    assert [v.seq for v in wire.told] == [1, 2]


@pytest.mark.parametrize(
    ("name", "payload", "request_id", "error"),
    [
        ("trigger", b"not json", "", "bad_json"),
        ("trigger", b'{"id":"17","trigger":"has a space"}', "17", "bad_id"),
        ("trigger", b"[" * 1000, "", "bad_json"),
        ("recipe", b'{"id":"17","recipe":2}', "", "not_enabled"),
        ("nonsense", b"", "", "not_enabled"),
    ],
)
def test_what_is_no_trigger_is_answered_and_not_inspected(
    tmp_path: Path, wire: Wire, name: str, payload: bytes, request_id: str, error: str
) -> None:
    """One word that says why."""
    with running(station(tmp_path, LiveCamera([OK_LEVEL] * 10_000), trigger=MQTT), wire):
        wire.command(name, payload)
        ack = wire.ack(request_id)
        assert (ack["ok"], ack["error"]) == (False, error) and wire.acks[0][1] == name
        wire.trigger("T-1")
        wait_until(lambda: len(wire.told) == 1, "the verdict")
    assert wire.told[0].seq == 1


def test_before_ready_there_are_no_triggers(tmp_path: Path, wire: Wire) -> None:
    """`not_ready`, nothing accepted, and the same id may be asked again once it is ready."""
    wire.connected = False
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 10_000), trigger=MQTT)
    run = Running(made)
    try:
        wait_until(lambda: bool(wire.started), "the publisher")
        wire.trigger("T-1")
        ack = wire.ack("T-1")
        assert (ack["ok"], ack["error"], ack["state"]) == (False, "not_ready", "starting")
        wire.acks.clear()
        wire.connected = True
        wait_until(lambda: wire.state_words[-1] == "ready", "ready")
        wire.trigger("T-1")
        assert wire.ack("T-1")["ok"] is True
        wait_until(lambda: len(wire.told) == 1, "the verdict")
    finally:
        run.stop.set()
        run.join()
    wire.acks.clear()
    wire.trigger("T-2")
    assert wire.ack("T-2")["error"] == "not_ready"
    assert len(wire.told) == 1


@pytest.mark.parametrize(("policy", "error"), [("best_effort", ""), ("required", "journal")])
def test_a_trigger_that_cannot_be_written_down(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, policy: str, error: str
) -> None:
    """required: the acknowledgement says so. Either way the trigger has its verdict."""
    monkeypatch.setattr(Journal, "accept", lambda self, trigger: done(JournalError("the disk is full")))
    monkeypatch.setattr(
        Journal, "decide", lambda self, verdict, *, overrules=False: done(JournalError("the disk is full"))
    )
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 10_000), trigger=MQTT, journal=policy)
    with running(made, wire):
        wire.trigger("T-1")
        ack = wire.ack("T-1")
        assert (ack["ok"], ack["error"]) == (not error, error)
        wait_until(lambda: len(wire.told) == 1, "the verdict")
    assert results(wire.told) == ([OK] if policy == "best_effort" else [(0, "journal")])


def test_the_acknowledgement_waits_for_the_disk(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted means committed; capture and inspection do not wait for that."""
    commits: list[Future[None]] = []

    def accept(self: Journal, trigger: object) -> Future[None]:
        commits.append(Future())
        return commits[-1]

    monkeypatch.setattr(Journal, "accept", accept)
    with running(station(tmp_path, LiveCamera([OK_LEVEL] * 10_000), trigger=MQTT), wire):
        wire.trigger("T-1")
        wait_until(lambda: len(wire.told) == 1, "the verdict")
        assert wire.acks == []
        commits[0].set_result(None)
        assert wire.ack("T-1")["ok"] is True


def test_triggers_from_many_threads(tmp_path: Path, wire: Wire) -> None:
    """seq has no gap and no double, and every trigger has one verdict."""
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 100_000, period_s=0.001), trigger=MQTT)
    with running(made, wire):

        def ask(who: int) -> None:
            for n in range(10):
                wire.trigger(f"{who}-{n}")
                time.sleep(0.01)

        threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        wait_until(lambda: len(wire.told) >= 40, "all verdicts")
    assert sorted(v.seq for v in wire.told) == list(range(1, 41))
    assert sorted(v.trigger for v in wire.told) == sorted(f"{who}-{n}" for who in range(4) for n in range(10))
    assert set(results(wire.told)) <= {OK, (0, "overrun")}


# --- those who look on, and the lock -----------------------------------------------------------------------------------


def test_an_observer_that_fails_does_not_affect_verdicts(
    tmp_path: Path, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, the next observer is told, the next part is judged."""

    def failing(inspection: Inspection) -> None:
        raise RuntimeError("the page is down")

    seen: list[Inspection] = []
    made = Station(config(tmp_path), camera=ListCamera([OK_LEVEL, BAD_LEVEL]), observers=[failing, seen.append])
    assert run_to_end(made) == EXIT_DONE
    assert results(wire.told) == [OK, NOT_OK] and observed(seen) == wire.told
    assert made.counts.by_result == [0, 1, 1, 0]
    assert caplog.text.count("an observer failed") == 2 and "the page is down" in caplog.text


def test_observers_come_after_the_verdict(tmp_path: Path, wire: Wire) -> None:
    """A slow one delays no verdict of its own part."""
    told: list[int] = []
    made = Station(config(tmp_path), camera=ListCamera([OK_LEVEL]), observers=[lambda _: told.append(len(wire.told))])
    run_to_end(made)
    assert told == [1]


def test_observers_are_called_one_at_a_time(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever thread published, the deadline clock's or the inspection's: an observer needs no locks."""
    script_judge(monkeypatch, lambda n: time.sleep(0.06))
    inside, together, threads = [0], [0], set()

    def observe(_: Inspection) -> None:
        threads.add(threading.get_ident())
        inside[0] += 1
        together[0] = max(together[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1

    made = Station(config(tmp_path, deadline_ms=50), camera=ListCamera([OK_LEVEL] * 4), observers=[observe])
    run_to_end(made)
    assert len(threads) == 2 and together == [1]


def test_a_state_dir_serves_one_station(tmp_path: Path, wire: Wire) -> None:
    """The second one is the user's mistake and disturbs nothing; afterwards the folder is free."""
    first = station(tmp_path, ListCamera([OK_LEVEL] * 1000, interval_s=30.0))
    with running(first, wire) as run:
        wait_until(lambda: len(wire.told) == 1, "the first verdict")
        camera = ListCamera([OK_LEVEL])
        with pytest.raises(ConfigError, match="state: another flawline runs with this state_dir"):
            run_to_end(station(tmp_path, camera))
        assert not camera.entered and run.alive
        assert wire.state_words == ["starting", "ready"]
    assert run.code == EXIT_DONE
    assert run_to_end(station(tmp_path, [OK_LEVEL])) == EXIT_DONE


def test_the_lock_is_the_kernels(tmp_path: Path, wire: Wire) -> None:
    """A lock file that a crash left behind keeps nobody out; one that is held does."""
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError):
            run_to_end(station(tmp_path, [OK_LEVEL]))
    assert run_to_end(station(tmp_path, [OK_LEVEL])) == EXIT_DONE


def test_a_state_dir_that_cannot_be_made(tmp_path: Path, wire: Wire) -> None:
    """One sentence with the path and the key to look at."""
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(ConfigError, match=r"file/state: the state directory cannot be used .*check state_dir"):
        run_to_end(station(tmp_path, [OK_LEVEL], state_dir="file/state"))


# --- what ends a station -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("unforeseen"), MemoryError(), OSError(errno.EIO, "io"), AssertionError()], ids=type
)
def test_a_surprise_costs_one_part(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """What nobody foresaw in a judgement: 0 `engine`, the alarm, the traceback in the log; the line goes on."""

    def before(n: int) -> None:
        if n == 2:
            raise error

    script_judge(monkeypatch, before)
    assert run_to_end(station(tmp_path, [OK_LEVEL, OK_LEVEL, BAD_LEVEL])) == EXIT_DONE
    assert results(wire.told) == [OK, (0, "engine"), NOT_OK]
    assert wire.state_words == ["starting", "ready", "stopped"]
    assert [alarm[1:3] for alarm in wire.alarms] == [("engine", True), ("engine", False)]
    assert type(error).__name__ in wire.alarms[0][3] and "Traceback" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=type)
def test_a_crash_shows_as_fault(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """What ends the program, such as the second Ctrl-C: the PLC sees state fault; camera and lock are released."""

    def before(n: int) -> None:
        if n == 2:
            raise error

    camera = ListCamera([OK_LEVEL] * 3)
    with monkeypatch.context() as patched:
        script_judge(patched, before)
        with pytest.raises(type(error)):
            run_to_end(station(tmp_path, camera))
    assert results(wire.told) == [OK]
    assert wire.state_words == ["starting", "ready", "fault error"] and wire.stopped == 1
    assert camera.left == 1
    assert run_to_end(station(tmp_path, [OK_LEVEL])) == EXIT_DONE


def test_an_engine_that_fails_its_self_test(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """State fault/engine, never ready, no verdict."""
    infer = OnnxRuntimeEngine.infer

    def off(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        told = infer(self, frames)
        return told._replace(scores=told.scores * np.float32(1.05))

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", off)
    camera = ListCamera([OK_LEVEL])
    with pytest.raises(EngineError, match="self-test failed"):
        run_to_end(station(tmp_path, camera))
    assert wire.state_words == ["starting", "fault engine"] and wire.told == [] and camera.left == 1


def test_after_a_crash_no_trigger_is_accepted(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the fault is being published the PLC must not be told that its trigger was taken on."""
    script_judge(monkeypatch, _raise(KeyboardInterrupt()))
    asked: list[str] = []
    stop = wire.stop

    def stopping(*, timeout_s: float = 10.0) -> bool:
        if not asked:
            asked.append("T-2")
            wire.trigger("T-2")  # the connection is still there, for a second
        return stop(timeout_s=timeout_s)

    wire.stop = stopping  # type: ignore[method-assign]
    made = station(tmp_path, LiveCamera([OK_LEVEL] * 10_000), trigger=MQTT)
    with running(made, wire) as run:
        wire.trigger("T-1")
        run.join()
    assert isinstance(run.error, KeyboardInterrupt)
    assert wire.ack("T-2")["error"] == "not_ready"


def _raise(error: BaseException) -> Callable[[int], None]:
    def before(n: int) -> None:
        raise error

    return before


def test_a_journal_that_cannot_be_opened(tmp_path: Path, wire: Wire) -> None:
    """An error before anything is inspected; nothing was published."""
    (tmp_path / "state" / "journal.sqlite").mkdir(parents=True)
    with pytest.raises(JournalError, match="cannot be opened"):
        run_to_end(station(tmp_path, [OK_LEVEL]))
    assert wire.states == []


def test_a_picture_error_is_logged_with_its_trigger(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that the log leads to the part."""
    script_judge(monkeypatch, _raise(PictureError("the picture is upside down")))
    with caplog.at_level(logging.WARNING):
        run_to_end(station(tmp_path, [OK_LEVEL]))
    assert "trigger F1: the picture is upside down" in caplog.text


def test_a_part_that_cannot_be_placed_is_not_decidable(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Result 3 with the reason health and score 0, and an alarm until the next part is placed."""

    def before(n: int) -> None:
        if n == 1:
            raise PlacementError("no part found")

    script_judge(monkeypatch, before)
    run_to_end(station(tmp_path, [OK_LEVEL, OK_LEVEL]))
    assert results(wire.told) == [(3, "health"), OK] and wire.told[0].score == 0
    assert [alarm[1:] for alarm in wire.alarms] == [("health", True, "no part found"), ("health", False, "")]


def test_a_picture_that_cannot_be_judged_is_not_decidable(tmp_path: Path, wire: Wire) -> None:
    """Result 3 with the reason health, whatever its score would be, and an alarm that says why until one can be judged."""
    path = tmp_path / "bounded.flawline"
    path.write_bytes(with_health(level_bundle_bytes(), brightness=(60, 160)))
    run_to_end(station(tmp_path, [OK_LEVEL, 12, 20, BAD_LEVEL, 200, OK_LEVEL], recipes={1: str(path)}))
    health = (3, "health")
    assert results(wire.told) == [OK, health, health, NOT_OK, health, OK]
    assert {verdict.score for verdict in wire.told if verdict.result == 3} == {0}
    told = [alarm[1:] for alarm in wire.alarms]
    assert [(name, active) for name, active, _ in told] == [("health", active) for active in (True, False) * 2]
    assert told[0][2].startswith("too dark: mean 12, good pictures 81 to 130; look at the light")
    assert told[2][2].startswith("too bright: mean 200, good pictures 81 to 130; ")
    assert rows(tmp_path, "result")[1:3] == [(3,), (3,)]


# --- on the wire -----------------------------------------------------------------------------------------------------------


class Listener:
    """All that a broker has to say under ROOT, in order."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._on_message
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("acme/#", 1)
        assert subscribed.wait(WAIT_S)

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self.heard.append((message.topic.removeprefix("acme/press-7/"), bytes(message.payload), message.retain))

    def on(self, topic: str) -> list[bytes]:
        return [payload for heard, payload, _ in list(self.heard) if heard == topic]

    def send(self, topic: str, payload: bytes, **options: Any) -> None:
        self._client.publish(f"acme/press-7/{topic}", payload, 1, **options)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_the_whole_way_on_a_real_broker(tmp_path: Path) -> None:
    """Trigger in, acknowledgement, verdict and code out; ready and stopped retained; nothing left for history."""
    with mosquitto() as broker:
        listener = Listener(broker.port)
        mqtt = {"host": "127.0.0.1", "port": broker.port, "root": "acme/press-7", "scalar_topics": True}
        made = station(tmp_path, LiveCamera([BAD_LEVEL] * 100_000), trigger=MQTT, mqtt=mqtt)
        run = Running(made)
        try:
            wait_until(lambda: any(b'"ready"' in state for state in listener.on("state")), "ready")
            listener.send("cmd/trigger", b'{"id":"17","trigger":"T-1","part":"SN1"}')
            listener.send("cmd/trigger", b'{"id":"18","trigger":"T-2"}')
            listener.send("cmd/trigger", b'{"id":"18","trigger":"T-2"}')
            listener.send("cmd/recipe", b'{"id":"19","recipe":2}')
            wait_until(lambda: len(listener.on("verdict")) == 2, "the verdicts")
            wait_until(lambda: len(listener.on("ack/trigger")) == 3, "the acknowledgements")
            wait_until(lambda: len(listener.on("ack/recipe")) == 1, "the refusal")
        finally:
            run.stop.set()
            run.join()
        wait_until(lambda: b'"stopped"' in listener.on("state")[-1], "stopped")
        listener.close()
        late = Listener(broker.port)
        wait_until(lambda: bool(late.heard), "what is retained")
        time.sleep(0.1)
        late.close()
    assert run.code == EXIT_DONE
    verdicts = [Verdict.from_json(payload) for payload in listener.on("verdict")]
    assert [(v.seq, v.trigger, v.part) for v in verdicts] == [(1, "T-1", "SN1"), (2, "T-2", verdicts[1].part)]
    assert results(verdicts) == [NOT_OK, NOT_OK]
    assert listener.on("verdict/code") == [b"1;T-1;2", b"2;T-2;2"]
    assert sorted(json.loads(ack).get("duplicate", False) for ack in listener.on("ack/trigger")) == [False, False, True]
    assert json.loads(listener.on("ack/recipe")[0])["error"] == "not_enabled"
    states = [json.loads(state) for state in listener.on("state")]
    words = [state["state"] for state in states]
    assert [word for n, word in enumerate(words) if words[n - 1 : n] != [word]] == ["starting", "ready", "stopped"]
    assert states[-1]["boot"] == verdicts[0].boot
    assert listener.on("heartbeat") and not listener.on("history")
    retained = {topic: json.loads(payload) for topic, payload, kept in late.heard if kept}
    assert retained.pop("state")["state"] == "stopped"
    assert {topic: alarm["active"] for topic, alarm in retained.items()} == {
        "alarm/camera": False,
        "alarm/disk": False,
        "alarm/engine": False,
        "alarm/health": False,
        "alarm/journal": False,
        "alarm/no_subscriber": False,
        "alarm/outbox": False,
    }
    assert rows(tmp_path, "result, delivered") == [(2, 1), (2, 1)]


def test_a_free_run_on_a_real_broker(tmp_path: Path) -> None:
    """A finite camera: every verdict is live, acknowledged, and the exit code 0."""
    with mosquitto() as broker:
        listener = Listener(broker.port)
        mqtt = {"host": "127.0.0.1", "port": broker.port, "root": "acme/press-7"}
        made = station(tmp_path, [OK_LEVEL, BAD_LEVEL] * 10, mqtt=mqtt)
        assert run_to_end(made) == EXIT_DONE
        wait_until(lambda: len(listener.on("verdict")) == 20, "the verdicts")
        listener.close()
    verdicts = [Verdict.from_json(payload) for payload in listener.on("verdict")]
    assert [v.seq for v in verdicts] == list(range(1, 21))
    assert results(verdicts) == [OK, NOT_OK] * 10
    assert not listener.on("history") and not listener.on("verdict/code")
