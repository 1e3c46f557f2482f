"""Several cameras on one station, every kind of trigger, and lanes that fail: what one does touches no other."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from tests.edge.stand_ins import (
    BAD_LEVEL,
    OK_LEVEL,
    ListCamera,
    LiveCamera,
    Shot,
    Wire,
    config,
    level_bundle,
    run_to_end,
    running,
    script_judge,
    wait_until,
    wire,
)

from flawline_edge import lane as lane_module
from flawline_edge import station as station_module
from flawline_edge import supervision as supervision_module
from flawline_edge.inspector import Inspector, Judgement
from flawline_edge.lane import WAITING_FRAMES, Lane
from flawline_edge.station import Inspection, Station
from flawline_edge.supervision import RestartBudget
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, CameraError, EngineError
from flawline_inspect.verdict import Reason, Result, Verdict

__all__ = ["wire"]  # the fixture

WAIT_S = 10.0
MQTT = {"kind": "mqtt"}


def two(
    folder: Path, left: ListCamera, right: ListCamera, seen: list[Inspection] | None = None, **changes: Any
) -> Station:
    """Camera `left` serves recipe 1, camera `right` recipe 2, of another model."""
    tree: dict[str, Any] = {
        "cameras": [
            {"name": "left", "source": {"kind": "simulated"}},
            {"name": "right", "source": {"kind": "simulated"}, "recipe": 2},
        ],
        "recipes": {1: str(level_bundle(folder)), 2: str(level_bundle(folder, "cap"))},
    }
    return Station(
        config(folder, **(tree | changes)),
        cameras={"left": left, "right": right},
        observers=[] if seen is None else [seen.append],
    )


def of(wire: Wire, camera: str) -> list[Verdict]:
    """The verdicts below a camera's topic, in order of publication."""
    return [v for v, below in zip(wire.told, list(wire.below), strict=False) if below == camera]


def results(verdicts: list[Verdict]) -> list[tuple[int, str]]:
    return [(int(verdict.result), verdict.reason.value) for verdict in verdicts]


OK, NOT_OK = (1, ""), (2, "")


def fail_for(monkeypatch: pytest.MonkeyPatch, recipe: int, what: Callable[[], None]) -> None:
    """`what` happens before each judgement of this recipe."""
    judge = Inspector.judge

    def scripted(self: Inspector, raw: NDArray[Any]) -> Judgement:
        if self.number == recipe:
            what()
        return judge(self, raw)

    monkeypatch.setattr(Inspector, "judge", scripted)


# --- several cameras -------------------------------------------------------------------------------------------------


def test_each_camera_has_its_own_topics_and_recipe(tmp_path: Path, wire: Wire) -> None:
    """seq is the station's, and so are state, boot and counts; order holds for each camera."""
    seen: list[Inspection] = []
    made = two(tmp_path, ListCamera([OK_LEVEL] * 20), ListCamera([BAD_LEVEL] * 20), seen)
    assert run_to_end(made) == EXIT_DONE
    assert wire.topic_cameras == ["left", "right"]
    left, right = of(wire, "left"), of(wire, "right")
    assert results(left) == [OK] * 20 and results(right) == [NOT_OK] * 20
    assert [v.part for v in left] == [v.part for v in right] == [f"P{n}" for n in range(1, 21)]
    assert {v.recipe for v in left} == {1} and {v.recipe for v in right} == {2}
    assert len({v.model for v in wire.told}) == 2 and len({v.boot for v in wire.told}) == 1
    assert sorted(v.seq for v in wire.told) == list(range(1, 41))
    for one in (left, right):
        assert [v.seq for v in one] == sorted(v.seq for v in one)
        assert [v.trigger for v in one] == [f"F{v.seq}" for v in one]
    assert {(each.camera, each.verdict.recipe) for each in seen} == {("left", 1), ("right", 2)}
    assert made.counts.by_result == [0, 20, 20, 0]
    assert wire.state_words == ["starting", "ready", "stopped"]


def test_one_camera_has_no_level_of_its_own(tmp_path: Path, wire: Wire) -> None:
    """Its topics stay as they were, whatever it is called."""
    run_to_end(Station(config(tmp_path), camera=ListCamera([OK_LEVEL])))
    assert wire.topic_cameras == [] and wire.below == [""]


def test_the_station_ends_with_its_last_source(tmp_path: Path, wire: Wire) -> None:
    """A source that ends early leaves the others to go on, and the state as it is."""
    made = two(tmp_path, ListCamera([OK_LEVEL]), ListCamera([OK_LEVEL] * 10, interval_s=0.02))
    assert run_to_end(made) == EXIT_DONE
    assert len(of(wire, "left")) == 1 and len(of(wire, "right")) == 10
    assert wire.state_words == ["starting", "ready", "stopped"]


def test_a_lost_camera_leaves_the_other_alone(tmp_path: Path, wire: Wire) -> None:
    """The alarm names it, the state stays `ready`, its own triggers get 0 `camera`; both are served when it is back."""
    back = threading.Event()
    lost: list[Shot] = [OK_LEVEL, CameraError("the cable was pulled"), *([OK_LEVEL] * 100_000)]
    made = two(tmp_path, LiveCamera(lost, gates={3: back}), LiveCamera([BAD_LEVEL] * 100_000), trigger=MQTT)
    with running(made, wire):
        wait_until(lambda: bool(wire.alarms), "the alarm")
        wire.trigger("L-1", camera="left")
        wire.trigger("R-1", camera="right")
        wait_until(lambda: len(wire.told) == 2, "both verdicts")
        assert results(of(wire, "left")) == [(0, "camera")] and results(of(wire, "right")) == [NOT_OK]
        assert made.lanes[0].state == ("fault", "camera") and made.lanes[1].state == ("ready", "")
        assert wire.ack("L-1")["state"] == "fault" and wire.ack("R-1")["state"] == "ready"
        back.set()
        wait_until(lambda: len(wire.alarms) == 2, "the alarm's end")
        wire.trigger("L-2", camera="left")
        wait_until(lambda: len(wire.told) == 3, "the verdict")
    assert results(of(wire, "left")) == [(0, "camera"), OK]
    assert [alarm[1:] for alarm in wire.alarms] == [
        ("camera", True, "left: the cable was pulled"),
        ("camera", False, ""),
    ]
    assert wire.state_words == ["starting", "ready", "stopped"]


def test_all_cameras_lost_is_a_fault(tmp_path: Path, wire: Wire) -> None:
    """Nothing is left that the line could rely on."""
    shots: list[Shot] = [OK_LEVEL, CameraError("no power")]
    cameras = [LiveCamera([*shots, *([OK_LEVEL] * 5)], gates={1: wire.ready}, period_s=0.1) for _ in range(2)]
    run_to_end(two(tmp_path, *cameras))
    words = [word for word in wire.state_words if word != "fault camera"]
    assert "fault camera" in wire.state_words and list(dict.fromkeys(words)) == ["starting", "ready", "stopped"]


def test_an_engine_that_hangs_leaves_the_other_alone(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part is 0 `deadline` in time; the other camera's parts do not notice."""
    free = threading.Event()
    fail_for(monkeypatch, 1, lambda: free.wait(WAIT_S) and None)
    made = two(
        tmp_path, LiveCamera([OK_LEVEL] * 100_000), LiveCamera([OK_LEVEL] * 100_000), trigger=MQTT, deadline_ms=500
    )
    with running(made, wire):
        wire.trigger("L-1", camera="left")
        for n in range(1, 11):
            wire.trigger(f"R-{n}", camera="right")
            wait_until(lambda n=n: len(of(wire, "right")) == n, "the verdict")
        wait_until(lambda: len(of(wire, "left")) == 1, "the deadline")
        assert results(of(wire, "left")) == [(0, "deadline")]
        assert made.lanes[1].progress > made.lanes[0].progress + 0.1, "progress does not tell which lane hangs"
        free.set()
    assert set(results(of(wire, "right"))) <= {OK, (0, "deadline")} and results(of(wire, "right")).count(OK) >= 8


def test_an_engine_that_fails_leaves_the_other_alone(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 `engine` for its parts, and the alarm says whose it is until that one works again."""

    def fails() -> None:
        raise EngineError("the graphics card is gone")

    fail_for(monkeypatch, 1, fails)
    run_to_end(two(tmp_path, ListCamera([OK_LEVEL] * 5), ListCamera([OK_LEVEL] * 5)))
    assert results(of(wire, "left")) == [(0, "engine")] * 5 and results(of(wire, "right")) == [OK] * 5
    assert [alarm[1:] for alarm in wire.alarms] == [("engine", True, "left: the graphics card is gone")]


def test_a_folder_that_breaks_answers_what_waits(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and so does it with what comes afterwards; the acknowledgements say how this camera is."""
    busy, free = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        free.wait(WAIT_S)

    fail_for(monkeypatch, 1, block)
    broken = ListCamera([OK_LEVEL, CameraError("the folder is gone")])
    made = two(tmp_path, broken, LiveCamera([OK_LEVEL] * 100_000), trigger=MQTT)
    with running(made, wire):
        wire.trigger("L-1", camera="left")
        assert busy.wait(WAIT_S)
        free.set()
        wait_until(lambda: made.lanes[0].state == ("fault", "camera"), "the fault")
        wire.trigger("L-2", camera="left")
        wait_until(lambda: len(of(wire, "left")) == 2, "both verdicts")
        assert wire.ack("L-2")["state"] == "fault"
    assert results(of(wire, "left")) == [OK, (0, "camera")]


class Missing(LiveCamera):
    """Is not there the first `times` times."""

    def __init__(self, times: int, shots: list[Shot]) -> None:
        super().__init__(shots)
        self._times = times

    def __enter__(self) -> Any:
        if self._times > 0:
            self._times -= 1
            raise CameraError("/dev/video7: does not exist", exit_code=2)
        self._over.clear()
        return super().__enter__()


def test_a_camera_that_is_missing_at_the_start(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are served; it is tried again, its triggers are refused meanwhile, and then it is one of them."""
    monkeypatch.setattr(supervision_module, "RETRY_S", 0.3)
    made = two(tmp_path, Missing(2, [OK_LEVEL] * 100_000), LiveCamera([BAD_LEVEL] * 100_000), trigger=MQTT)
    with running(made, wire):
        wire.trigger("L-1", camera="left")
        wire.trigger("R-1", camera="right")
        wait_until(lambda: len(wire.told) == 2, "both verdicts")
        assert results(of(wire, "left")) == [(0, "camera")] and results(of(wire, "right")) == [NOT_OK]
        wait_until(lambda: made.lanes[0].state[0] == "ready", "the camera")
        wire.trigger("L-2", camera="left")
        wait_until(lambda: len(of(wire, "left")) == 2, "the verdict")
    assert results(of(wire, "left"))[1] == OK
    assert [alarm[1:3] for alarm in wire.alarms] == [("camera", True), ("camera", False)]
    assert wire.state_words == ["starting", "ready", "stopped"] and made.restarts == 0


def test_no_camera_at_all_is_the_users_mistake(tmp_path: Path, wire: Wire) -> None:
    """The first one's error, as with a single camera."""
    with pytest.raises(CameraError, match="video7"):
        run_to_end(two(tmp_path, Missing(9, []), Missing(9, [])))
    assert wire.state_words == ["starting", "fault camera"] and wire.told == []


def test_a_folder_that_breaks_is_left_out(tmp_path: Path, wire: Wire) -> None:
    """From its beginning it would show parts twice. The others go on, and the exit code says that something was wrong."""
    broken = ListCamera([OK_LEVEL, CameraError("the folder is gone"), OK_LEVEL])
    made = two(tmp_path, broken, ListCamera([OK_LEVEL] * 20, interval_s=0.02))
    assert run_to_end(made) == EXIT_FAILURE
    assert len(of(wire, "left")) == 1 and len(of(wire, "right")) == 20
    assert wire.alarms[0][1:] == ("camera", True, "left: the folder is gone")


# --- lanes that die --------------------------------------------------------------------------------------------------


def dies(monkeypatch: pytest.MonkeyPatch, camera: str, times: int) -> None:
    """The lane's thread meets what nobody foresaw, so often, outside of any judgement."""
    inspect, left = Lane.inspect, [times]

    def scripted(self: Lane, frame: Any) -> None:
        if self.name == camera and left[0] > 0:
            left[0] -= 1
            raise RuntimeError("unforeseen")
        inspect(self, frame)

    monkeypatch.setattr(Lane, "inspect", scripted)


def test_a_lane_that_dies_is_started_again(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With its camera and its engine, and the traceback is in the log; the other lane does not notice."""
    dies(monkeypatch, "left", 2)
    seen: list[Inspection] = []
    cameras = LiveCameraThatComesBack([OK_LEVEL] * 100_000), LiveCamera([OK_LEVEL] * 100_000)
    made = two(tmp_path, *cameras, seen)
    with running(made, wire):
        wait_until(lambda: len(of(wire, "left")) >= 3, "the lane to be back")
    assert made.restarts == 2 and cameras[0].entered == 3
    assert caplog.text.count("RuntimeError: unforeseen") == 2
    assert wire.state_words == ["starting", "ready", "stopped"]
    assert [alarm[1:3] for alarm in wire.alarms] == [("engine", True), ("engine", False)] * 2
    assert [v.seq for v in sorted(wire.told, key=lambda v: v.seq)] == list(range(1, len(wire.told) + 1))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mqtt", "capture_on_demand"),
        ("interval", "capture_on_demand"),
        ("camera", "capture_each"),
        ("interval", "tick"),
    ],
)
def test_whatever_dies_beside_takes_the_lane_along(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """The thread that captures, and the clock: without them no part would ever come again, and nobody would know."""
    times = [2]

    def dying(original: Callable[..., None]) -> Callable[..., None]:
        def work(*arguments: Any) -> None:
            if times[0] > 0:
                times[0] -= 1
                raise RuntimeError("unforeseen")
            original(*arguments)

        return work

    monkeypatch.setattr(lane_module, name, dying(getattr(lane_module, name)))
    trigger = {"kind": kind, "interval_ms": 20}
    made = Station(config(tmp_path, trigger=trigger), camera=LiveCameraThatComesBack([OK_LEVEL] * 100_000))
    with running(made, wire):
        wait_until(lambda: made.restarts == 2 and made.lanes[0].state[0] == "ready", "the lane to be back")
        if kind == "mqtt":
            wire.trigger("T-1")
        wait_until(lambda: OK in results(wire.told), "a verdict")
    assert wire.state_words[:3] == ["starting", "ready", "fault engine"]


class LiveCameraThatComesBack(LiveCamera):
    def __enter__(self) -> Any:
        self._over.clear()
        return super().__enter__()


def test_a_lane_that_dies_again_and_again_ends_the_station(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the budget: fault, exit code 1, and the service manager starts it anew."""
    monkeypatch.setattr(supervision_module, "RESTART_S", 0.01)
    dies(monkeypatch, "top", 1000)
    made = Station(config(tmp_path), camera=LiveCameraThatComesBack([OK_LEVEL] * 100_000))
    assert run_to_end(made) == EXIT_FAILURE
    assert made.restarts == 5 and wire.told == []
    assert wire.state_words[-1] == "fault error" and "stopped" not in wire.state_words


def test_the_budget_is_per_time() -> None:
    """Five within a minute; those before it are forgiven."""
    now = [0.0]
    budget = RestartBudget(5, 60.0, lambda: now[0])
    for now[0] in (0.0, 10.0, 20.0, 30.0, 40.0):
        assert budget.allows()
    for now[0] in (50.0, 60.0):
        assert not budget.allows()
    for now[0], allowed in ((61.0, True), (62.0, False), (71.0, True), (130.0, True)):
        assert budget.allows() is allowed, now[0]


def test_a_lane_that_hangs_does_not_keep_the_station_from_ending(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its trigger had its deadline, and those that wait behind it get `stopped`."""
    monkeypatch.setattr(supervision_module, "END_S", 0.2)
    busy, free = threading.Event(), threading.Event()

    def before(n: int) -> None:
        busy.set()
        free.wait(WAIT_S)

    script_judge(monkeypatch, before)
    made = Station(config(tmp_path, trigger=MQTT, deadline_ms=300), camera=LiveCamera([OK_LEVEL] * 100_000))
    with running(made, wire) as run:
        wire.trigger("T-1")
        assert busy.wait(WAIT_S)
        wait_until(lambda: len(wire.told) == 1, "the deadline")
        wire.trigger("T-2")
        run.stop.set()
        run.join()
    free.set()
    assert run.code == EXIT_DONE
    assert results(wire.told) == [(0, "deadline"), (0, "stopped")]
    assert "top: its part does not come to an end" in caplog.text


# --- the kinds of trigger --------------------------------------------------------------------------------------------


def test_every_frame_of_a_triggered_camera_is_a_part(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is dropped by rate or by a busy lane: what cannot be served has its `overrun`, in its place."""
    busy, free = threading.Event(), threading.Event()

    def before(n: int) -> None:
        if n == 1:
            busy.set()
            free.wait(WAIT_S)

    script_judge(monkeypatch, before)
    total = 1 + WAITING_FRAMES + 20
    shots: list[Shot] = [OK_LEVEL] * total
    camera = LiveCamera(shots, period_s=0.005, gates={1: wire.ready})
    made = Station(config(tmp_path, trigger={"kind": "camera", "max_rate": 1}), camera=camera)
    with running(made, wire) as run:
        assert busy.wait(WAIT_S)
        wait_until(lambda: len(wire.told) == 20, "those that are too many")
        assert set(results(wire.told)) == {(0, "overrun")}
        assert made.lanes[0].waiting == WAITING_FRAMES
        free.set()
        run.join()
    assert sorted(v.seq for v in wire.told) == list(range(1, total + 1))
    served = [v for v in wire.told if v.result is Result.OK]
    assert len(served) == 1 + WAITING_FRAMES
    assert [v.part for v in served] == [f"P{v.seq}" for v in served], "a frame was lost without a verdict"
    assert made.counts.dropped == 0 and made.counts.by_reason == {"overrun": 20}


def test_a_frame_that_was_replaced_unseen_has_its_verdict(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera was faster than the thread that looks: each of its frames was still a part."""
    refuse = Lane.refuse_unseen
    slow: list[int] = []

    def counted(self: Lane, reason: Reason) -> None:
        slow.append(1)
        refuse(self, reason)

    monkeypatch.setattr(Lane, "refuse_unseen", counted)
    note = Lane.note_camera

    def slowly(self: Lane, error: CameraError | None) -> None:
        time.sleep(0.03)
        note(self, error)

    monkeypatch.setattr(Lane, "note_camera", slowly)
    camera = LiveCamera([OK_LEVEL] * 40, period_s=0.005, gates={1: wire.ready})
    made = Station(config(tmp_path, trigger={"kind": "camera"}), camera=camera)
    run_to_end(made)
    assert slow and made.counts.by_reason.get("overrun", 0) >= len(slow)
    assert sorted(v.seq for v in wire.told) == list(range(1, len(wire.told) + 1)) and len(wire.told) >= 38


def test_a_folder_triggers_by_itself(tmp_path: Path, wire: Wire) -> None:
    """Without `max_rate`, which is for free running: at its own pace."""
    made = Station(config(tmp_path, trigger={"kind": "camera", "max_rate": 1}), camera=ListCamera([OK_LEVEL] * 30))
    began = time.monotonic()
    assert run_to_end(made) == EXIT_DONE
    assert len(wire.told) == 30 and time.monotonic() - began < 10.0


@pytest.mark.parametrize("camera", ["live", "folder"])
def test_a_part_every_so_often(tmp_path: Path, wire: Wire, camera: str) -> None:
    """interval: the clock triggers, and the answer is the first frame that began after that, or the next picture."""
    seen: list[Inspection] = []
    shots: list[Shot] = [OK_LEVEL] * (100_000 if camera == "live" else 6)
    source = LiveCamera(shots, period_s=0.005) if camera == "live" else ListCamera(shots)
    trigger = {"kind": "interval", "interval_ms": 100, "delay_ms": 20}
    made = Station(config(tmp_path, trigger=trigger), camera=source, observers=[seen.append])
    with running(made, wire) as run:
        wait_until(lambda: len(wire.told) >= 6, "six parts")
        run.stop.set()
        run.join()
    assert run.code == EXIT_DONE and set(results(wire.told)[:6]) == {OK}
    assert [v.trigger for v in wire.told[:6]] == [f"F{n}" for n in range(1, 7)]
    moments = [at for at, _ in wire.verdicts][:6]
    assert 0.4 <= moments[-1] - moments[0] < 1.5
    if camera == "live":
        apart = [
            later.frame.captured_monotonic - earlier.frame.captured_monotonic
            for earlier, later in itertools.pairwise(seen)
            if earlier.frame is not None and later.frame is not None
        ]
        assert sum(apart) / len(apart) == pytest.approx(0.1, abs=0.03)


def test_a_waiting_trigger_gets_its_own_frame(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the newest one when its turn comes at last, which shows a later part, but the first that began after it."""
    busy, free = threading.Event(), threading.Event()

    def before(n: int) -> None:
        if n == 1:
            busy.set()
            free.wait(WAIT_S)

    script_judge(monkeypatch, before)
    seen: list[Inspection] = []
    made = Station(
        config(tmp_path, trigger={**MQTT, "delay_ms": 30}),
        camera=LiveCamera([OK_LEVEL] * 100_000, period_s=0.01),
        observers=[seen.append],
    )
    asked = []
    with running(made, wire):
        for n in range(1, 5):
            asked.append(time.monotonic())
            wire.trigger(f"T-{n}")
            assert busy.wait(WAIT_S)
            time.sleep(0.15)
        free.set()
        wait_until(lambda: len(seen) == 4, "the verdicts")
    for moment, each in zip(asked, seen, strict=True):
        assert each.frame is not None
        assert 0.03 <= each.frame.captured_monotonic - moment < 0.03 + 0.1, "a frame of a later part"


def test_each_camera_is_asked_on_its_own_topic(tmp_path: Path, wire: Wire) -> None:
    """The same id at two cameras is two triggers; a camera that is not asked says so, and so does the station."""
    cameras = [
        {"name": "left", "source": {"kind": "simulated"}, "trigger": MQTT},
        {"name": "right", "source": {"kind": "simulated"}, "trigger": MQTT},
        {"name": "third", "source": {"kind": "simulated"}, "trigger": {"kind": "free"}},
    ]
    made = Station(
        config(tmp_path, cameras=cameras),
        cameras={name: LiveCamera([OK_LEVEL] * 100_000) for name in ("left", "right")} | {"third": ListCamera([])},
    )
    with running(made, wire):
        for camera in ("left", "right"):
            wire.trigger("T-1", camera=camera)
        wait_until(lambda: len(wire.told) == 2, "both verdicts")
        assert sorted(wire.below) == ["left", "right"]
        wait_until(lambda: len(wire.acks) == 2, "both acknowledgements")
        assert sorted(name for _, name, _ in wire.acks) == ["left/trigger", "right/trigger"]
        wire.trigger("T-2", camera="third")
        assert wire.acks[-1][1:] == ("third/trigger", wire.acks[-1][2]) and wire.acks[-1][2]["error"] == "not_enabled"
        wire.trigger("T-3")
        assert wire.ack("T-3")["error"] == "no_camera" and wire.acks[-1][1] == "trigger"
    assert len(wire.told) == 2


# --- paused ----------------------------------------------------------------------------------------------------------

ALL = ["trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"]


def obeying(folder: Path, **changes: Any) -> Any:
    return config(folder, mqtt={"host": "broker.invalid", "root": "acme/press-7", "commands": ALL}, **changes)


def test_a_paused_station_says_so_and_refuses(tmp_path: Path, wire: Wire) -> None:
    """State `paused`; a trigger is acknowledged and gets 0 `paused` at once; resumed it is judged."""
    made = Station(obeying(tmp_path, trigger=MQTT), camera=LiveCamera([OK_LEVEL] * 100_000))
    with running(made, wire):
        wire.command("pause", {"id": "1"})
        assert (wire.ack("1")["ok"], wire.ack("1")["state"]) == (True, "paused")
        wire.trigger("T-1")
        assert results(wire.told) == [(0, "paused")]
        assert wire.ack("T-1")["ok"] is True
        wire.command("resume", {"id": "2"})
        assert wire.ack("2")["state"] == "ready"
        wire.trigger("T-2")
        wait_until(lambda: len(wire.told) == 2, "the verdict")
    assert results(wire.told) == [(0, "paused"), OK]
    assert wire.state_words == ["starting", "ready", "paused", "ready", "stopped"]


@pytest.mark.parametrize("kind", ["free", "interval", "folder"])
def test_what_triggers_itself_pauses(tmp_path: Path, wire: Wire, kind: str) -> None:
    """Nobody has asked, so there are no verdicts; a folder's pictures wait for the end of it."""
    trigger = {"kind": "interval", "interval_ms": 20} if kind == "interval" else {"kind": "free", "max_rate": 1e6}
    source = ListCamera([OK_LEVEL] * 60, interval_s=0.01) if kind == "folder" else LiveCamera([OK_LEVEL] * 100_000)
    made = Station(obeying(tmp_path, trigger=trigger), camera=source)
    with running(made, wire) as run:
        wait_until(lambda: len(wire.told) >= 3, "some parts")
        wire.command("pause", {"id": "1"})
        time.sleep(0.1)  # the part in work, and what waits
        paused_at = len(wire.told)
        time.sleep(0.3)
        assert len(wire.told) == paused_at
        wire.command("resume", {"id": "2"})
        wait_until(lambda: len(wire.told) >= paused_at + 3, "parts again")
        if kind == "folder":
            run.join()
            assert [v.part for v in wire.told] == [f"P{n}" for n in range(1, 61)]
    assert {v.reason for v in wire.told} <= {Reason.NONE, Reason.STOPPED}


def test_cameras_pause_one_by_one_or_all(tmp_path: Path, wire: Wire) -> None:
    """The station is paused when all of them are; ROOT/cmd speaks to all."""
    made = two(
        tmp_path,
        LiveCamera([OK_LEVEL] * 100_000),
        LiveCamera([OK_LEVEL] * 100_000),
        trigger=MQTT,
        mqtt={"host": "broker.invalid", "root": "acme/press-7", "commands": ALL},
    )
    with running(made, wire):
        wire.command("pause", {"id": "1"}, camera="left")
        assert wire.ack("1")["state"] == "paused" and wire.state_words[-1] == "ready"
        wire.trigger("L-1", camera="left")
        wire.trigger("R-1", camera="right")
        wait_until(lambda: len(wire.told) == 2, "both verdicts")
        assert results(of(wire, "left")) == [(0, "paused")] and results(of(wire, "right")) == [OK]
        wire.command("pause", {"id": "2"}, camera="right")
        assert wire.state_words[-1] == "paused"
        wire.command("resume", {"id": "3"})
        assert wire.state_words[-1] == "ready" and [lane.is_paused for lane in made.lanes] == [False, False]


def test_what_ops_may_look_at(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue depth, progress and state of each lane, counts by result and reason: read while it runs."""
    busy, free = threading.Event(), threading.Event()

    def before(n: int) -> None:
        busy.set()
        free.wait(WAIT_S)

    script_judge(monkeypatch, before)
    made = Station(config(tmp_path, trigger=MQTT), camera=LiveCamera([OK_LEVEL] * 100_000))
    assert made.lanes == () and made.restarts == 0
    with running(made, wire):
        (lane,) = made.lanes
        first = lane.progress
        wait_until(lambda: lane.progress > first, "progress of an idle lane")
        wire.trigger("T-1")
        assert busy.wait(WAIT_S)
        stuck = lane.progress
        for n in range(2, 5):
            wire.trigger(f"T-{n}")
        assert (lane.name, lane.waiting, lane.state) == ("top", 3, ("ready", ""))
        time.sleep(0.2)
        assert lane.progress == stuck, "a lane that is stuck in a part makes no progress"
        free.set()
        wait_until(lambda: len(wire.told) == 4, "the verdicts")
    assert made.counts.by_result == [0, 4, 0, 0] and made.counts.by_reason == {} and made.state.state == "stopped"


def test_two_real_simulated_cameras(tmp_path: Path, wire: Wire) -> None:
    """As a configuration alone makes them, free and on an interval."""
    cameras = [
        {"name": "left", "source": {"kind": "simulated", "fps": 50}},
        {"name": "right", "source": {"kind": "simulated", "fps": 50},
         "trigger": {"kind": "interval", "interval_ms": 60}},
    ]  # fmt: skip
    bundle = str(Path(station_module.__file__).with_name("demo.flawline"))
    made = Station(config(tmp_path, cameras=cameras, recipes={1: bundle}))
    with running(made, wire) as run:
        wait_until(lambda: len(of(wire, "left")) > 2 and len(of(wire, "right")) > 2, "verdicts of both")
        run.stop.set()
        run.join()
    assert run.code == EXIT_DONE
    assert sorted(v.seq for v in wire.told) == list(range(1, len(wire.told) + 1))
