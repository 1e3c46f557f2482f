"""A camera in a process of its own, with real processes: what is handed out, and every way in which one can fail."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.edge.capture.fakes import exposed
from tests.edge.mjpeg import serving

from flawline_edge.cameras import CameraFrame
from flawline_edge.capture import CapturedCamera
from flawline_edge.capture import captured as captured_module
from flawline_edge.capture import process as process_module
from flawline_edge.capture.process import CaptureProcess
from flawline_edge.capture.task import CaptureTask
from flawline_inspect.config import CameraConfig, SimulatedSource, StreamSource
from flawline_inspect.errors import CameraError

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and record locks as Linux has them"),
]

_SOON_S = 30.0
"""Long enough for Python to start on a busy machine; what is awaited comes at once on an idle one."""


def _task(folder: Path, *, frozen_after_s: float = 0.0, read_timeout_s: float = 20.0, **arguments: Any) -> CaptureTask:
    return CaptureTask(
        "top",
        "tests.edge.capture.fakes:TurnedCamera",
        {"folder": str(folder), **arguments},
        open_timeout_s=20.0,
        read_timeout_s=read_timeout_s,
        frozen_after_s=frozen_after_s,
    )


def _turn(folder: Path, mode: str) -> None:
    (folder / "new").write_text(mode, encoding="utf-8")
    (folder / "new").rename(folder / "mode")


def _events(folder: Path, kind: str) -> list[int]:
    """The processes that entered or left the camera, in order."""
    path = folder / "events"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(kind)]


def _until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + _SOON_S
    while not condition():
        if time.monotonic() > limit:
            pytest.fail(f"waited {_SOON_S:g} s in vain for {what}", pytrace=False)
        time.sleep(0.005)


def _frame(camera: CapturedCamera) -> CameraFrame:
    limit = time.monotonic() + _SOON_S
    while (frame := camera.get(1.0)) is None:
        if time.monotonic() > limit:
            pytest.fail(f"waited {_SOON_S:g} s in vain for a frame; error: {camera.error}", pytrace=False)
    return frame


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _rings() -> int:
    """Rings in this process's memory."""
    gc.collect()  # of earlier tests
    return Path("/proc/self/maps").read_text().count("flawline-frames")


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


# --- what it hands out -------------------------------------------------------------------------------------------------


def test_frames_come_as_the_camera_gave_them(tmp_path: Path) -> None:
    """Pixels, part, truth and times, the latter on this process's clocks; and the camera is released at the end."""
    before, wall_before = time.monotonic(), time.time()  # noqa: TID251
    with CapturedCamera(_task(tmp_path, shape=(30, 40, 3))) as camera:
        frame = _frame(camera)
        pid = camera.pid
    assert frame.picture.shape == (30, 40, 3) and frame.picture.dtype == np.uint8
    assert frame.picture.std() > 10
    assert frame.part.startswith("C") and frame.truth is not None and frame.truth.defect is None
    assert before < frame.captured_monotonic <= frame.arrived_monotonic <= time.monotonic()
    assert wall_before - 1 < frame.captured < time.time() + 1  # noqa: TID251
    assert pid is not None and _gone(pid)
    assert _events(tmp_path, "entered") == _events(tmp_path, "left") == [pid]


def test_each_frame_once_the_newest_wins_and_the_rest_is_counted(tmp_path: Path) -> None:
    """A slow consumer gets the newest, loses none twice, and the numbers add up."""
    with CapturedCamera(_task(tmp_path, fps=200.0)) as camera:
        numbers = []
        for _ in range(10):
            frame = _frame(camera)
            numbers.append(int(frame.part[1:]))
            time.sleep(0.05)
        dropped = camera.dropped
    assert numbers == sorted(set(numbers))
    assert dropped == numbers[-1] - len(numbers) > 10


def test_a_consumer_that_does_not_come_never_slows_the_camera(tmp_path: Path) -> None:
    """Not even when the station stands still and hears no message: the camera's own pace stays."""
    with CapturedCamera(_task(tmp_path, fps=500.0)) as camera:
        first = _frame(camera)
        with camera._changed:  # the supervising thread cannot put anything away: the connection runs full
            time.sleep(2.0)
        while time.monotonic() - (last := _frame(camera)).captured_monotonic > 0.5:
            pass
        counts = camera.counts
    passed = int(last.part[1:]) - int(first.part[1:])
    rate = passed / (last.captured_monotonic - first.captured_monotonic)
    assert passed > 300  # what a connection holds, at which a writer that waits would have stopped
    assert rate > 50
    assert counts.dropped >= passed - 100 and (counts.restarts, counts.failures) == (0, 0)


def test_a_trigger_gets_the_first_frame_that_began_after_it(tmp_path: Path) -> None:
    """Not one that was on its way, nor a later one, through the other process too; asked at once or a little late."""
    began: dict[int, float] = {}
    with CapturedCamera(_task(tmp_path, fps=100.0)) as camera:
        _frame(camera)
        asked: list[tuple[float, CameraFrame | None]] = []
        for n in range(30):
            at = time.monotonic()
            time.sleep(0.004 * (n % 4))
            asked.append((at, camera.get_after(at, _SOON_S)))
            for arrival in list(camera._arrivals):
                frame = arrival.load()
                if frame is not None:
                    began[int(frame.part[1:])] = frame.captured_monotonic
    for at, answer in asked:
        assert answer is not None
        number = int(answer.part[1:])
        assert answer.captured_monotonic >= at
        assert number - 1 not in began or began[number - 1] < at


@pytest.mark.parametrize("buffers", [1, 4])
def test_no_picture_of_a_driver_is_older_than_the_trigger(tmp_path: Path, buffers: int) -> None:
    """Its buffers hold the past, the process may have been stopped for a while: the exposure began after the trigger."""
    node = tmp_path / "video0"
    node.touch()
    arguments = {"node": str(node), "fps": 60.0, "buffers": buffers}
    task = CaptureTask("top", "tests.edge.capture.fakes:buffering_device", arguments, 20.0, 20.0)
    with CapturedCamera(task) as camera:
        _frame(camera)
        assert camera.pid is not None
        late = []
        for n in range(40):
            if n % 5 == 4:  # the driver's thread stops as well, and its buffers are full of old pictures afterwards
                os.kill(camera.pid, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(camera.pid, signal.SIGCONT)
            time.sleep(0.003 * (n % 7))
            at = time.monotonic()
            frame = camera.get_after(at, _SOON_S)
            assert frame is not None
            late.append(exposed(frame.picture) - at)
    assert min(late) >= 0.0
    assert sorted(late)[len(late) // 2] < 1.0  # and not just anything later


def test_an_expected_frame_is_set_aside(tmp_path: Path) -> None:
    """A trigger that waits for its turn while the ring goes round more than once still gets its own frame."""
    with CapturedCamera(_task(tmp_path, fps=200.0)) as camera:
        _frame(camera)
        at = time.monotonic()
        camera.expect(at)
        number = int(_frame(camera).part[1:])
        _until(lambda: int(_frame(camera).part[1:]) > number + 100, "a hundred frames to pass")
        answer = camera.get_after(at, 0.0)
        assert answer is not None
        assert at <= answer.captured_monotonic < at + 1.0
        assert int(answer.part[1:]) <= number + 1
        assert camera.get_after(at, 0.0) is None  # handed out, and long overwritten
        assert camera.missed == 1


def test_a_finite_source_ends_after_its_last_frame(tmp_path: Path) -> None:
    """And is not started again."""
    source = SimulatedSource(kind="simulated", fps=50, parts=5)
    with CapturedCamera.of(CameraConfig(name="top", source=source)) as camera:
        parts = []
        while not camera.ended:
            frame = camera.get(1.0)
            if frame is not None:
                parts.append(frame.part)
        _until(lambda: camera.pid is None, "the process to end")
        assert camera.error is None
        assert camera.get(60) is None and camera.get_after(time.monotonic(), 60) is None
        assert camera.counts.restarts == 0
    assert len(parts) + camera.dropped == 5


def test_a_simulated_line_at_rest_is_not_frozen() -> None:
    """Its camera has noise, as every real one."""
    source = SimulatedSource(kind="simulated", fps=100, defect_rate=0.0)
    with CapturedCamera.of(CameraConfig(name="top", source=source, frozen_after_s=0.05)) as camera:
        for _ in range(20):
            _frame(camera)
        assert (camera.counts.repeated, camera.counts.failures) == (0, 0)


def test_it_can_be_entered_again_but_not_twice(tmp_path: Path) -> None:
    """Counts start at nothing with every entering."""
    camera = CapturedCamera(_task(tmp_path, fps=500.0))
    for _ in range(2):
        with camera:
            with pytest.raises(RuntimeError, match="entered already"):
                camera.__enter__()
            _frame(camera)
            assert camera.counts.restarts == 0
    assert camera.pid is None and camera.get(0.0) is None


def test_leaving_wakes_who_waits(tmp_path: Path) -> None:
    """In whichever way."""
    answers: list[CameraFrame | None] = []
    with CapturedCamera(_task(tmp_path, fps=0.01)) as camera:
        waiters = [
            threading.Thread(target=lambda: answers.append(camera.get(80)), daemon=True),
            threading.Thread(target=lambda: answers.append(camera.get_after(1.0, 80)), daemon=True),
        ]
        for waiter in waiters:
            waiter.start()
        time.sleep(0.05)
    for waiter in waiters:
        waiter.join(_SOON_S)
    assert answers == [None, None]


def test_what_the_camera_logs_is_logged_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With its logger's name; a failure nobody foresaw with its traceback, once for each."""
    _turn(tmp_path, "surprise")
    with caplog.at_level(logging.INFO), CapturedCamera(_task(tmp_path, fps=500.0)) as camera:
        _until(lambda: camera.error is not None, "the error")
        assert "not foreseen: RuntimeError('driver bug')" in str(camera.error)
        _turn(tmp_path, "")
        _frame(camera)
    told = [record for record in caplog.records if record.name == "flawline_edge.capture.child"]
    assert told and told[0].levelno == logging.ERROR
    assert "Traceback" in told[0].getMessage() and "driver bug" in told[0].getMessage()


# --- cameras that fail -------------------------------------------------------------------------------------------------


def test_a_camera_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """When the station starts: the camera's own sentence and exit code, and no process is left."""
    _turn(tmp_path, "absent")
    camera = CapturedCamera(_task(tmp_path))
    with pytest.raises(CameraError, match="no camera there") as caught:
        camera.__enter__()
    assert caught.value.exit_code == 2
    assert camera.pid is None and not psutil.Process().children()


def test_opening_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that the camera has for it."""
    monkeypatch.setattr(captured_module, "LEAVE_S", 0.1)
    _turn(tmp_path, "hang in opening")
    task = CaptureTask("top", "tests.edge.capture.fakes:TurnedCamera", {"folder": str(tmp_path)}, 0.2, 20.0)
    with pytest.raises(CameraError, match=r"top: opening the camera does not return for 1\.2 s"):
        CapturedCamera(task).__enter__()
    assert not psutil.Process().children()


def test_a_read_that_never_returns_is_killed_and_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Within the read time-out and a second; the error shows until the new process gives frames."""
    with CapturedCamera(_task(tmp_path, read_timeout_s=1.5)) as camera:
        _frame(camera)
        hung = camera.pid
        _turn(tmp_path, "hang")
        began = time.monotonic()
        _until(lambda: camera.error is not None, "the error")
        took_s = time.monotonic() - began
        _turn(tmp_path, "")
        assert "top: the camera's read does not return for 2.5 s" in str(camera.error)
        assert 2.4 < took_s < 8.0
        assert hung is not None and _gone(hung)
        camera.get(0.0)  # the last before
        _frame(camera)
        assert camera.error is None and camera.pid != hung
        counts = camera.counts
    assert (counts.timeouts, counts.restarts, counts.failures) == (1, 1, 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_is_killed_is_replaced(tmp_path: Path, number: signal.Signals) -> None:
    """The error names the signal and shows until a frame comes; the old ring goes with its last frame."""
    rings_before = _rings()
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        killed = camera.pid
        assert killed is not None
        os.kill(killed, number)
        _until(lambda: camera.error is not None, "the error")
        assert f"ended unexpectedly (killed by {number.name}); it is started again" in str(camera.error)
        camera.get(0.0)
        late = time.monotonic()
        _frame(camera)
        assert camera.error is None and camera.pid not in (None, killed)
        assert camera.get_after(late, _SOON_S) is not None
        assert (camera.counts.restarts, camera.counts.timeouts) == (1, 0)
        for _ in range(70):  # more than the window holds
            _frame(camera)
        assert _rings() == rings_before + 1
    assert _rings() == rings_before
    assert _events(tmp_path, "entered")[0] == killed and len(_events(tmp_path, "entered")) == 2


def test_a_trigger_of_before_a_failure_is_not_answered_after_it(tmp_path: Path) -> None:
    """Its frame may have been lost with the process; the first of the new one shows another part."""
    with CapturedCamera(_task(tmp_path, fps=50.0)) as camera:
        _frame(camera)
        pid = camera.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.1)  # what had been sent is here
        at = time.monotonic()
        camera.expect(at)
        os.kill(pid, signal.SIGKILL)
        _until(lambda: camera.error is not None, "the error")
        _until(lambda: camera.get(0.1) is not None and camera.error is None, "the camera to be back")
        assert camera.get_after(at, 0.0) is None
        assert camera.missed == 1


def test_a_process_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start the station is refused; later it is tried again, also after what nobody foresaw."""
    refusals: list[Exception] = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))]

    def start(task: CaptureTask) -> CaptureProcess:
        if refusals:
            raise refusals.pop(0)
        return CaptureProcess(task)

    monkeypatch.setattr(captured_module, "CaptureProcess", start)
    with pytest.raises(CameraError, match=r"top: no process to capture it can be started \(Resource temporarily"):
        CapturedCamera(_task(tmp_path)).__enter__()
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        refusals += [OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), RuntimeError("nobody knows")]
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGKILL)
        _until(lambda: camera.counts.restarts == 3, "the third try")
        camera.get(0.0)
        _frame(camera)
        assert camera.error is None
    assert "nobody knows" in caplog.text


def test_a_process_that_cannot_even_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that hangs inside the kernel: it is given up with a line in the log, and nobody waits for it."""
    monkeypatch.setattr(process_module, "_REAP_S", 0.1)
    _turn(tmp_path, "hang")
    process = CaptureProcess(_task(tmp_path))
    _until(lambda: _events(tmp_path, "entered"), "the camera to be entered")
    kill, process.kill = process.kill, lambda: None  # type: ignore[method-assign]
    monkeypatch.setattr(process._process, "wait", functools.partial(_never_ends, process._process))
    began = time.monotonic()
    assert process.reap() == "cannot be killed"
    assert time.monotonic() - began < 5.0
    assert f"the capture process {process.pid} cannot be killed" in caplog.text
    monkeypatch.undo()
    kill()
    assert process.reap() == "killed by SIGKILL"


def _never_ends(process: subprocess.Popen[bytes], timeout: float) -> int:
    raise subprocess.TimeoutExpired(process.args, timeout)


def test_a_process_that_dies_at_every_start_is_not_started_without_pause(tmp_path: Path) -> None:
    """The pauses grow from 0.2 s, so that a machine with a broken driver has time for other work."""
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        _turn(tmp_path, "die")
        _until(lambda: camera.counts.restarts >= 3, "three starts")
        assert "killed by SIGSEGV" in str(camera.error)
    starts = len(_events(tmp_path, "entered"))
    assert 3 <= starts <= 5


@pytest.mark.parametrize("mode", ["fail", "lose one", "None", "empty", "objects", "a row"])
def test_garbage_is_an_error_until_a_picture_comes(tmp_path: Path, mode: str) -> None:
    """None of it reaches the consumer, and the process stays."""
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        pid = camera.pid
        _turn(tmp_path, mode)
        _until(lambda: camera.error is not None, "the error")
        camera.get(0.0)
        assert camera.get(0.05) is None
        _turn(tmp_path, "")
        assert _frame(camera).picture.shape == (48, 64, 3)
        assert camera.error is None
        assert (camera.pid, camera.counts.restarts, camera.counts.failures) == (pid, 0, 1)


def test_pictures_of_changing_size(tmp_path: Path) -> None:
    """Each as it is; a ring that is too small is made anew, and no frame of the old one is confused with it."""
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        for mode, largest in (("changing", (144, 128, 3)), ("huge", (2000, 1500, 3)), ("", (48, 64, 3))):
            _turn(tmp_path, mode)
            for _ in range(10):
                shape = _frame(camera).picture.shape
                assert all(side <= limit for side, limit in zip(shape, (2000, 1500, 3), strict=True))
            if mode != "changing":
                _until(lambda largest=largest: _frame(camera).picture.shape == largest, "the new size")
        assert camera.counts.failures == 0


def test_a_frozen_picture_is_an_error_until_it_changes(tmp_path: Path) -> None:
    """The first of the same is news, those after it are not handed out, and soon the camera counts as frozen."""
    with CapturedCamera(_task(tmp_path, frozen_after_s=0.5)) as camera:
        _frame(camera)
        _turn(tmp_path, "frozen")
        began = time.monotonic()
        same = []
        while camera.error is None and time.monotonic() < began + _SOON_S:
            frame = camera.get(0.01)
            same += [frame.part] if frame is not None and frame.picture.min() == frame.picture.max() == 77 else []
        took_s = time.monotonic() - began
        assert "top: frozen, its picture or the driver's clock has stood still for 0.5 s" in str(camera.error)
        assert len(same) == 1
        assert 0.45 < took_s < 8.0
        assert camera.get(0.1) is None and camera.error is not None
        assert camera.get_after(began, 0.1) is None or same  # only the one that was news
        assert camera.get_after(time.monotonic(), 0.1) is None
        _turn(tmp_path, "")
        assert _frame(camera).picture.std() > 10
        assert camera.error is None
        counts = camera.counts
    assert counts.repeated > 5 and (counts.failures, counts.restarts) == (1, 0)


def test_a_clock_that_stands_still_is_frozen_too(tmp_path: Path) -> None:
    """The driver's time of the pictures went before; that the pictures differ does not help."""
    _turn(tmp_path, "clock")
    with CapturedCamera(_task(tmp_path, frozen_after_s=0.5)) as camera:
        for _ in range(5):
            _frame(camera)
        assert camera.counts.repeated == 0
        _turn(tmp_path, "stuck clock")
        _until(lambda: camera.error is not None, "the error")
        assert "frozen" in str(camera.error)
        _turn(tmp_path, "clock")
        camera.get(0.0)
        _frame(camera)
        assert camera.error is None


def test_a_camera_without_noise_may_be_told_so(tmp_path: Path) -> None:
    """frozen_after_s 0: the same picture again and again is a frame each time."""
    _turn(tmp_path, "frozen")
    with CapturedCamera(_task(tmp_path, frozen_after_s=0.0)) as camera:
        parts = [_frame(camera).part for _ in range(5)]
        assert len(set(parts)) == 5 and camera.counts.repeated == 0


def test_a_camera_that_is_not_released_does_not_hold_the_station(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving takes as long as the camera has for it, then its process is ended."""
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        pid = camera.pid
        _turn(tmp_path, "hang in leaving")
        began = time.monotonic()
    assert 1.5 < time.monotonic() - began < 10.0
    assert pid is not None and _gone(pid)


def test_no_frame_is_torn_under_load() -> None:
    """A camera at full speed, a consumer at full speed, each way of asking: every picture is of one moment."""
    task = CaptureTask("top", "tests.edge.capture.fakes:StepCamera", {"shape": [1500, 2000]}, 20.0, 20.0)
    with CapturedCamera(task) as camera:
        until, asked = time.monotonic() + 3.0, 0
        next_ones: list[int] = []
        while time.monotonic() < until or len(next_ones) < 10:
            asked += 1
            frame = camera.get(_SOON_S) if asked % 2 else camera.get_after(time.monotonic() - 0.02, 0.5)
            if frame is None:
                continue
            number = int(frame.part[1:])
            if asked % 2:
                next_ones.append(number)
            rows = frame.picture[:, 0]
            assert rows.min() == rows.max() == number
            assert frame.truth is not None and frame.truth.mask is not None
            assert (frame.truth.mask == number % 251).all()
        assert next_ones == sorted(set(next_ones))
        assert camera.error is None


# --- processes that end -----------------------------------------------------------------------------------------------

_STATION = """
    import sys, time
    sys.path[:] = {path!r}
    from flawline_edge.capture import CapturedCamera
    from flawline_edge.capture.task import CaptureTask

    task = CaptureTask("top", "tests.edge.capture.fakes:TurnedCamera", {{"folder": {folder!r}}}, 20.0, 20.0)
    with CapturedCamera(task) as camera:
        assert camera.get(30.0) is not None
        print(camera.pid, flush=True)
        time.sleep(60)
"""


def _station(folder: Path) -> tuple[subprocess.Popen[str], int]:
    program = textwrap.dedent(_STATION).format(path=sys.path, folder=str(folder))
    station = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert station.stdout is not None
    line = station.stdout.readline()
    assert line, "the station did not start"
    return station, int(line)


@pytest.mark.parametrize("mode", ["", "hang", "hang in leaving"])
def test_the_process_ends_with_its_station(tmp_path: Path, mode: str) -> None:
    """Killed without a chance to say goodbye: the camera is released, or at least its process ends, and nothing stays."""
    shared_before = _shared_memory()
    station, pid = _station(tmp_path)
    with station:
        _turn(tmp_path, mode)
        time.sleep(0.1)
        station.kill()
    _until(lambda: _gone(pid), "the capture process to end")
    assert _events(tmp_path, "left") == [pid]
    assert _shared_memory() <= shared_before


def test_nothing_is_left_when_both_are_killed(tmp_path: Path) -> None:
    """The memory has no name: there is nothing to clean up."""
    shared_before = _shared_memory()
    station, pid = _station(tmp_path)
    with station:
        os.kill(pid, signal.SIGKILL)
        station.kill()
    _until(lambda: _gone(pid), "the capture process to end")
    assert _shared_memory() <= shared_before


def test_signals_to_the_whole_service_do_not_end_the_capture_first(tmp_path: Path) -> None:
    """systemd and a terminal send them to every process; the station still needs frames for the part in work."""
    with CapturedCamera(_task(tmp_path)) as camera:
        _frame(camera)
        pid = camera.pid
        assert pid is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        time.sleep(0.2)
        camera.get(0.0)
        _frame(camera)
        assert (camera.pid, camera.counts.restarts) == (pid, 0)
        assert os.getsid(pid) != os.getsid(0)


def test_a_password_shows_neither_in_the_process_list_nor_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the camera's, nor the broker's, which is none of the camera's business."""
    monkeypatch.setenv("FLAWLINE_MQTT_PASSWORD", "brokersecret")
    monkeypatch.setenv("FLAWLINE_MQTT_KEY_PASSWORD", "keysecret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    with CapturedCamera(_task(tmp_path, shape=[8, 8])) as camera:
        process = psutil.Process(camera.pid)
        arguments, environment = process.cmdline(), process.environ()
    assert arguments[1:3] == ["-m", "flawline_edge.capture.child"]
    assert len(arguments) == 4 and arguments[3].isdecimal()
    assert not {"FLAWLINE_MQTT_PASSWORD", "FLAWLINE_MQTT_KEY_PASSWORD", "NOTIFY_SOCKET"} & set(environment)


def test_a_stream_that_stalls_and_comes_back() -> None:
    """The camera's own time-out says so first; it is reconnected inside the same process."""
    with serving() as server:
        url = f"http://127.0.0.1:{server.server_port}/video"
        source = StreamSource(kind="stream", url=url, open_timeout_s=5, read_timeout_s=1)
        with CapturedCamera.of(CameraConfig(name="top", source=source)) as camera:
            assert _frame(camera).picture.shape == (32, 48, 3)
            pid = camera.pid
            server.stalled.set()
            _until(lambda: camera.error is not None, "the error")
            assert "no frame for 1 s" in str(camera.error)
            server.stalled.clear()
            camera.get(0.0)
            _frame(camera)
            assert (camera.pid, camera.counts.restarts, camera.counts.failures) == (pid, 0, 1)


def test_a_stream_that_is_not_there_is_masked(tmp_path: Path) -> None:
    """The address reaches the child with its password, and messages without."""
    source = StreamSource(kind="stream", url="http://joe:hunter2@127.0.0.1:9/stream", open_timeout_s=5)
    with pytest.raises(CameraError, match=r"http://\*\*\*@127\.0\.0\.1:9/stream") as caught:
        CapturedCamera.of(CameraConfig(name="top", source=source)).__enter__()
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2
