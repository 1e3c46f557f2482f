"""A station on a captured camera: whatever happens to the camera, a trigger gets 0 `camera` or its own part's verdict."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.edge.stand_ins import Wire, config, running, script_judge, wait_until, wire

from flawline_edge.capture import CapturedCamera
from flawline_edge.capture.task import CaptureTask
from flawline_edge.station import Inspection, Station
from flawline_inspect.config import CameraConfig
from flawline_inspect.verdict import Verdict

__all__ = ["wire"]  # the fixture

pytestmark = pytest.mark.timeout(90)

_TRIGGERS = {"kind": "mqtt"}
_SOON_S = 30.0


@pytest.fixture
def cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CapturedCamera]:
    """The station's camera is the one that `mode` in tmp_path turns; the list has it once the station runs."""
    made: list[CapturedCamera] = []
    task = CaptureTask(
        "top", "tests.edge.capture.fakes:TurnedCamera", {"folder": str(tmp_path), "fps": 50.0}, 20.0, 1.0, 0.3
    )

    def of(camera: CameraConfig) -> CapturedCamera:
        made.append(CapturedCamera(task))
        return made[-1]

    monkeypatch.setattr(CapturedCamera, "of", of)
    return made


def _ask(wire: Wire, name: str) -> Verdict:
    told = len(wire.told)
    wire.trigger(name)
    wait_until(lambda: len(wire.told) > told, f"the verdict on {name}", _SOON_S)
    assert wire.told[-1].trigger == name
    return wire.told[-1]


def _kill(camera: CapturedCamera) -> None:
    assert camera.pid is not None
    os.kill(camera.pid, signal.SIGKILL)


@pytest.mark.parametrize("what", ["kill", "hang", "frozen", "fail", "empty", "die"])
def test_no_verdict_but_camera_while_it_is_lost(
    tmp_path: Path, wire: Wire, cameras: list[CapturedCamera], what: str
) -> None:
    """From the fault on: 0 `camera`, the alarm and the state say so; after it the next trigger is judged again."""
    station = Station(config(tmp_path, trigger=_TRIGGERS))
    with running(station, wire):
        assert _ask(wire, "T-1").result != 0
        if what == "kill":
            _kill(cameras[0])
        else:
            (tmp_path / "mode").write_text(what, encoding="utf-8")
        wait_until(lambda: cameras[0].error is not None, "the error", _SOON_S)
        if what != "kill":  # that one is back by itself, perhaps at once
            lost = _ask(wire, "T-2")
            assert (lost.result, lost.reason) == (0, "camera")
            (tmp_path / "mode").unlink()
        wait_until(lambda: cameras[0].error is None, "the camera to be back", _SOON_S)
        wait_until(lambda: wire.state_words[-1] == "ready", "the state", _SOON_S)
        assert _ask(wire, "T-3").result != 0
    assert "fault camera" in wire.state_words
    assert ("camera", True) in [(name, active) for _, name, active, _ in wire.alarms]


def test_triggers_that_wait_get_their_own_frames(
    tmp_path: Path, wire: Wire, cameras: list[CapturedCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten at once and a judgement that takes ten frames: the last trigger gets a frame of its time, not of its turn."""
    script_judge(monkeypatch, lambda n: time.sleep(0.2))
    seen: list[Inspection] = []
    station = Station(config(tmp_path, trigger=_TRIGGERS), observers=[seen.append])
    with running(station, wire):
        for n in range(10):
            wire.trigger(f"T-{n}")
        wait_until(lambda: len(wire.told) == 10, "ten verdicts", _SOON_S)
    by_trigger = sorted(seen, key=lambda each: each.verdict.seq)
    numbers = [int(each.verdict.part[1:]) for each in by_trigger]
    assert numbers == sorted(numbers)
    assert numbers[-1] - numbers[0] < 40  # 90 and more passed until its turn
    assert all(each.verdict.result != 0 for each in by_trigger)


def test_a_free_running_station_on_a_captured_camera(tmp_path: Path, wire: Wire, cameras: list[CapturedCamera]) -> None:
    """Every part is of another frame; a killed process costs frames, and no verdict is made up for them."""
    station = Station(config(tmp_path))
    with running(station, wire):
        wait_until(lambda: len(wire.told) >= 3, "verdicts", _SOON_S)
        _kill(cameras[0])
        wait_until(lambda: "fault camera" in wire.state_words, "the fault", _SOON_S)
        there = len(wire.told)
        wait_until(lambda: len(wire.told) >= there + 3, "verdicts again", _SOON_S)
    assert [v.seq for v in wire.told] == list(range(1, len(wire.told) + 1))
    assert all(v.result != 0 for v in wire.told)
    assert wire.state_words[-3:] == ["fault camera", "ready", "stopped"]
