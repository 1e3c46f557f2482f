"""The station as systemd and a health check see it: ready when it is, alive while parts can pass, and only then."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.edge.stand_ins import (
    OK_LEVEL,
    ListCamera,
    LiveCamera,
    Wire,
    config,
    running,
    script_judge,
    wait_until,
    wire,
)

from flawline_edge import operations as operations_module
from flawline_edge.inspector import Inspector
from flawline_edge.messages import StationState
from flawline_edge.operations import Operations
from flawline_edge.station import Station
from flawline_edge.status_file import FILE, StatusError, read_status
from flawline_inspect.errors import CameraError, EngineError

__all__ = ["wire"]  # the fixture

WATCHDOG_S = 0.4
FEEDS_S = 0.1
"""A quarter of it: how often the watchdog is fed."""
READY = StationState("ready", "001f9c21", 1, "level-01234567", "onnxruntime", "fp32")


class Systemd:
    """Its end of the notification socket: everything it was told, in order."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        self._told: list[str] = []

    @property
    def told(self) -> list[str]:
        while True:
            try:
                self._told.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self._told

    @property
    def words(self) -> list[str]:
        """What is not the watchdog's and not mere status."""
        words = [message.split("\n")[0] for message in self.told]
        return [word for word in words if word != "WATCHDOG=1" and not word.startswith("STATUS=")]

    def feeds(self) -> int:
        return self.told.count("WATCHDOG=1")

    def feeds_within(self, seconds: float) -> int:
        before = self.feeds()
        time.sleep(seconds)
        return self.feeds() - before

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    address = str(tmp_path / "notify")
    made = Systemd(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    yield made
    made.close()


def live(folder: Path, gates: dict[int, threading.Event] | None = None, **changes: object) -> Station:
    return Station(config(folder, **changes), camera=LiveCamera([OK_LEVEL] * 20_000, gates=gates))


def test_ready_comes_with_ready_and_stopping_with_the_end(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """READY=1 once, not before the station says ready; the watchdog is fed; STOPPING=1 before it ends."""
    made = live(tmp_path)
    assert systemd.told == []
    with running(made, wire):
        wait_until(lambda: systemd.words == ["READY=1"], "READY=1")
        wait_until(lambda: systemd.feeds() >= 3, "three feeds")
        status = next(message for message in systemd.told if message.startswith("READY=1"))
        assert "STATUS=press-7: ready since " in status and "onnxruntime fp32" in status
    assert systemd.words == ["READY=1", "STOPPING=1"]


def test_a_station_that_does_not_come_up_never_says_ready(
    tmp_path: Path, wire: Wire, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test fails: a fault, and the end."""

    def fail(*_: object) -> None:
        raise EngineError("self-test failed")

    monkeypatch.setattr("flawline_edge.inspector.Inspector._self_test", fail)
    with pytest.raises(EngineError):
        live(tmp_path).run(threading.Event())
    assert systemd.words == ["STOPPING=1"]
    assert any("STATUS=press-7: fault (engine)" in message for message in systemd.told)


def test_an_engine_that_hangs_starves_the_watchdog(
    tmp_path: Path, wire: Wire, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every other thread lives, the deadline's verdicts go out; systemd hears nothing until the lane goes on."""
    monkeypatch.setattr(operations_module, "STALE_S", 0.3)
    go_on, hangs = threading.Event(), threading.Event()

    def hang(number: int) -> None:
        if number == 5:
            hangs.set()
            go_on.wait(20.0)

    script_judge(monkeypatch, hang)
    with running(live(tmp_path, deadline_ms=100), wire):
        assert hangs.wait(10.0)
        time.sleep(3 * FEEDS_S)  # the last round before it
        assert systemd.feeds_within(3 * WATCHDOG_S) == 0
        wait_until(lambda: any(v.reason.value == "deadline" for v in wire.told), "the deadline's verdict")
        wait_until(lambda: "the lane of top has stood still" in caplog.text, "a line in the log")
        assert "go_on.wait(20.0)" in caplog.text  # where it stands
        go_on.set()
        wait_until(lambda: systemd.feeds_within(0.05) > 0, "the watchdog to be fed again")
    assert caplog.text.count("has stood still") == 1 and caplog.text.count("the lane of top goes on") == 1


def test_a_station_without_triggers_is_alive(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """The PLC asks for nothing all night: no reason to restart."""
    with running(live(tmp_path, trigger={"kind": "mqtt"}), wire):
        assert systemd.feeds_within(3 * WATCHDOG_S) >= 3


def test_a_station_whose_camera_is_silent_is_alive(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """A free-running live camera that waits for light or for its own trigger: the loop comes round."""
    gate = threading.Event()
    with running(live(tmp_path, gates={3: gate}), wire):
        assert systemd.feeds_within(3 * WATCHDOG_S) >= 3
        gate.set()


def test_a_station_whose_camera_is_lost_is_alive_and_at_fault(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """A restart would not bring the cable back; the status says what is wrong."""
    shots = [OK_LEVEL, *[CameraError("unplugged")] * 50_000]
    with running(Station(config(tmp_path), camera=LiveCamera(shots)), wire):
        wait_until(lambda: any("fault (camera)" in message for message in systemd.told), "the fault's status")
        assert systemd.feeds_within(3 * WATCHDOG_S) >= 3
        wait_until(lambda: read_status(tmp_path / "state").state == "fault", "the fault in the status file")


def test_a_slow_folder_is_alive(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """Its pause between two pictures is many watchdogs long, and right."""
    camera = ListCamera([OK_LEVEL] * 3, interval_s=30.0)
    with running(Station(config(tmp_path), camera=camera), wire):
        assert systemd.feeds_within(3 * WATCHDOG_S) >= 3


def test_one_lane_that_hangs_is_enough(
    tmp_path: Path, wire: Wire, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other camera's parts go on, and its loop goes round: the watchdog starves all the same."""
    go_on, hangs = threading.Event(), threading.Event()
    judge = Inspector.judge
    marked = OK_LEVEL + 1

    def hang_at_the_left(self: Inspector, picture: Any) -> Any:
        if picture[0, 0, 0] == marked:
            hangs.set()
            go_on.wait(20.0)
        return judge(self, picture)

    monkeypatch.setattr(Inspector, "judge", hang_at_the_left)
    cameras = [{"name": name, "source": {"kind": "simulated"}} for name in ("left", "right")]
    sources = {"left": LiveCamera([marked] * 20_000), "right": LiveCamera([OK_LEVEL] * 20_000)}
    with running(Station(config(tmp_path, cameras=cameras), cameras=sources), wire):
        assert hangs.wait(10.0)
        time.sleep(3 * FEEDS_S)
        assert systemd.feeds_within(3 * WATCHDOG_S) == 0
        before = len(wire.told)
        wait_until(lambda: len(wire.told) > before + 3, "the right camera's parts")
        go_on.set()
        wait_until(lambda: systemd.feeds_within(0.05) > 0, "the watchdog to be fed again")


@pytest.mark.parametrize("kind", ["free", "mqtt"])
def test_a_folder_whose_disk_hangs_is_not(tmp_path: Path, wire: Wire, systemd: Systemd, kind: str) -> None:
    """The read does not return, on the thread that judges or on the one beside it: no wait that anybody chose."""

    class Hanging(ListCamera):
        def read(self) -> None:
            gate.wait(20.0)

    gate = threading.Event()
    with running(Station(config(tmp_path, trigger={"kind": kind}), camera=Hanging([])), wire):
        time.sleep(3 * FEEDS_S)
        assert systemd.feeds_within(3 * WATCHDOG_S) == 0
        gate.set()


def test_a_paused_station_is_alive(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """Somebody wants it so; a health check is content."""
    commands = {**config(tmp_path).mqtt.model_dump(), "commands": ["pause"]}
    with running(live(tmp_path, mqtt=commands), wire):
        wire.command("pause", {"id": "1"})
        wait_until(lambda: any("STATUS=press-7: paused" in message for message in systemd.told), "the status")
        assert systemd.feeds_within(3 * WATCHDOG_S) >= 3
        wait_until(lambda: read_status(tmp_path / "state").state == "paused", "paused in the status file")


def test_a_reload_of_the_station_is_told(tmp_path: Path, wire: Wire, systemd: Systemd) -> None:
    """`systemctl reload` ends when it is done, well or not."""
    made = live(tmp_path)
    made_again = Station(made.config, camera=LiveCamera([OK_LEVEL] * 20_000), reread=lambda: made.config)
    with running(made_again, wire):
        wait_until(lambda: systemd.words == ["READY=1"], "READY=1")
        made_again.reload()
        wait_until(lambda: systemd.words == ["READY=1", "RELOADING=1", "READY=1"], "the reload's end")


def test_a_watchdog_shorter_than_a_part_is_warned_of(
    tmp_path: Path, wire: Wire, systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    """It would restart a station that does what it should."""
    with running(live(tmp_path, deadline_ms=30_000), wire):
        assert "WatchdogSec is 0.4 s; a part may take up to deadline_ms, so take at least 60 s" in caplog.text


# --- the status file -------------------------------------------------------------------------------------------------


def test_the_status_file_follows_the_station(tmp_path: Path, wire: Wire) -> None:
    """ready with its engine while it runs, renewed; stopped afterwards."""
    made = live(tmp_path)
    with running(made, wire):
        wait_until((tmp_path / "state" / FILE).exists, "the file")
        wait_until(lambda: read_status(tmp_path / "state").state == "ready", "ready")
        status = read_status(tmp_path / "state")
        assert (status.station, status.engine, status.precision) == ("press-7", "onnxruntime", "fp32")
        assert status.pid == os.getpid() and status.boot == wire.states[-1][1].boot
        first = (tmp_path / "state" / FILE).stat().st_mtime_ns
        wait_until(lambda: (tmp_path / "state" / FILE).stat().st_mtime_ns > first, "its renewal")
    assert read_status(tmp_path / "state").state == "stopped"


def test_a_hanging_station_s_status_grows_old(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not renewed, so that a health check finds out."""
    monkeypatch.setattr(operations_module, "STALE_S", 0.2)
    monkeypatch.setattr(operations_module, "TICK_S", 0.05)
    go_on = threading.Event()
    script_judge(monkeypatch, lambda number: go_on.wait(20.0) if number == 3 else None)  # type: ignore[arg-type, func-returns-value]

    def hangs() -> bool:
        try:
            read_status(tmp_path / "state")
        except StatusError as exc:
            return "hangs or is dead" in str(exc)
        return False

    with running(live(tmp_path, deadline_ms=50), wire):
        wait_until(hangs, "an old status file")
        go_on.set()
        wait_until(lambda: not hangs(), "a fresh one")


def quiet(folder: Path, **changes: object) -> Operations:
    (folder / "state").mkdir()
    return Operations(config(folder, **changes), lambda: None)


def test_a_status_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; meanwhile nothing says ready that may not be."""
    monkeypatch.setattr(operations_module, "TICK_S", 0.02)
    write = operations_module.write_status
    broken = threading.Event()
    broken.set()

    def maybe(*arguments: object) -> None:
        if broken.is_set():
            raise OSError(28, "No space left on device")
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(operations_module, "write_status", maybe)
    with quiet(tmp_path) as operations:
        operations.state_changed(READY)
        wait_until(lambda: "cannot be written" in caplog.text, "a warning")
        time.sleep(0.1)
        assert not (tmp_path / "state" / FILE).exists()
        broken.clear()
        wait_until((tmp_path / "state" / FILE).exists, "the file")
    assert caplog.text.count("cannot be written") == 1


def test_since_is_the_state_s_own(tmp_path: Path) -> None:
    """Another engine in the same state does not make the state younger."""
    with quiet(tmp_path) as operations:
        operations.state_changed(READY)
        wait_until((tmp_path / "state" / FILE).exists, "the file")
        before = json.loads((tmp_path / "state" / FILE).read_text())
        time.sleep(0.01)
        operations.state_changed(StationState(**{**{k: before[k] for k in
            ("state", "boot", "recipe", "model", "precision", "reason")}, "engine": "tensorrt"}))  # fmt: skip
    after = json.loads((tmp_path / "state" / FILE).read_text())
    assert after["engine"] == "tensorrt" and after["since"] == before["since"]


def test_a_reload_is_told_and_ended(tmp_path: Path, systemd: Systemd) -> None:
    """Also when it fails: the station goes on with what it had."""
    with quiet(tmp_path) as operations:
        operations.state_changed(READY)
        with operations.reloading():
            assert systemd.words == ["READY=1", "RELOADING=1"]
        with pytest.raises(ValueError, match="unknown key"), operations.reloading():
            raise ValueError("unknown key")
        assert systemd.words == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]


def test_a_reload_before_ready_says_nothing(tmp_path: Path, systemd: Systemd) -> None:
    """READY=1 would come too early."""
    with quiet(tmp_path) as operations:
        with operations.reloading():
            pass
        assert systemd.words == []


def test_a_change_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inspection says it between two parts; a disk that hangs is not its business."""
    go_on = threading.Event()
    monkeypatch.setattr(operations_module, "write_status", lambda *_: go_on.wait(20.0))
    with quiet(tmp_path) as operations:
        began = time.monotonic()
        operations.state_changed(READY)
        time.sleep(0.05)
        operations.state_changed(StationState("fault", "001f9c21", 1, "m", "e", "p", "camera"))
        assert time.monotonic() - began < 2.0
        go_on.set()


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
