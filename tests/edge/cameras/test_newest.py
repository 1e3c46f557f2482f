"""The newest frame: what is handed out, what is dropped, and cameras that fail or hang."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from flawline_edge.cameras import CameraFrame
from flawline_edge.cameras.newest import NewestFrame
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(30)

_SOON_S = 5.0
"""Long enough for a busy machine; what is awaited comes at once."""


def _frame(number: int, captured_monotonic: float = 0.0) -> CameraFrame:
    return CameraFrame(np.full((2, 2, 3), number, np.uint8), 0.0, captured_monotonic, f"P{number}")


class _Camera:
    """A live camera played by the test: each read takes the next thing from a queue; an error is raised."""

    live = True
    interval_s = 0.0

    def __init__(self) -> None:
        self.script: queue.Queue[CameraFrame | Exception | None] = queue.Queue()
        self.reads = 0
        self.entered = self.left = 0

    def __enter__(self) -> _Camera:
        self.entered += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.left += 1
        self.script.put(CameraError("left"))

    def read(self) -> CameraFrame | None:
        self.reads += 1
        item = self.script.get()
        if isinstance(item, Exception):
            raise item
        return item

    def play(self, *items: CameraFrame | Exception | None) -> None:
        """Returns when all were read and the reader is back for more (or done, after None)."""
        target = self.reads + len(items) - (items[-1] is None)
        for item in items:
            self.script.put(item)
        _until(lambda: self.reads >= target and self.script.empty())


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + _SOON_S
    while not condition():
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.002)


def _part(frame: CameraFrame | None) -> str:
    return frame.part if frame else ""


@pytest.fixture
def camera() -> _Camera:
    return _Camera()


def _started(newest: NewestFrame, camera: _Camera) -> None:
    _until(lambda: camera.reads == 1)


def test_the_newest_wins_and_the_others_are_counted(camera: _Camera) -> None:
    """Of three frames that came unread, the last is handed out, two are dropped, none comes twice."""
    with NewestFrame(camera) as newest:
        _started(newest, camera)
        camera.play(_frame(1), _frame(2), _frame(3))
        assert _part(newest.get(_SOON_S)) == "P3"
        assert newest.dropped == 2
        assert newest.get(0.05) is None
        camera.play(_frame(4))
        assert _part(newest.get(_SOON_S)) == "P4"
        assert newest.dropped == 2


def test_get_waits_for_a_frame_to_come(camera: _Camera) -> None:
    """A consumer that is there first gets the frame when it comes."""
    with NewestFrame(camera) as newest:
        threading.Timer(0.1, camera.script.put, (_frame(1),)).start()
        assert _part(newest.get(_SOON_S)) == "P1"
        assert newest.dropped == 0


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 0.05])
def test_no_frame_is_none_after_the_timeout(camera: _Camera, timeout_s: float) -> None:
    """Without a frame, both ways of asking return None after the timeout, zero and negative ones at once."""
    with NewestFrame(camera) as newest:
        began = time.monotonic()
        assert newest.get(timeout_s) is None
        assert newest.get_after(0.0, timeout_s) is None
        assert 2 * max(0.0, timeout_s) * 0.9 <= time.monotonic() - began < 2
        assert not newest.ended


def test_get_after_never_gives_an_older_frame(camera: _Camera) -> None:
    """Frames captured before the trigger pass uncounted; the first captured at or after it is the answer."""
    with NewestFrame(camera) as newest:
        _started(newest, camera)
        camera.play(_frame(1, 10.0), _frame(2, 11.0))
        assert newest.get_after(12.0, 0.05) is None
        answers: list[CameraFrame | None] = []
        waiter = threading.Thread(target=lambda: answers.append(newest.get_after(12.0, _SOON_S)), daemon=True)
        waiter.start()
        _until(lambda: len(newest._requests) == 1)
        camera.play(_frame(3, 11.999), _frame(4, 12.0), _frame(5, 13.0), _frame(6, 14.0))
        waiter.join(_SOON_S)
        assert [_part(frame) for frame in answers] == ["P4"]
        assert newest.dropped == 0


def test_get_after_takes_a_frame_that_is_there_already(camera: _Camera) -> None:
    """A frame that fits need not be waited for, and answers both triggers that came before its capture."""
    with NewestFrame(camera) as newest:
        _started(newest, camera)
        camera.play(_frame(1, 10.0))
        assert _part(newest.get_after(9.0, 0.0)) == "P1"
        assert _part(newest.get_after(10.0, 0.0)) == "P1"
        assert newest.get_after(10.001, 0.0) is None


def test_an_answered_or_timed_out_request_leaves_nothing_behind(camera: _Camera) -> None:
    """A thousand unanswered triggers leave no request for the reader to look through."""
    with NewestFrame(camera) as newest:
        for _ in range(1000):
            newest.get_after(1e12, 0.0)
        assert newest._requests == []


def test_an_error_shows_while_it_lasts(camera: _Camera) -> None:
    """A failing camera is read again; its latest error shows until a frame comes."""
    with NewestFrame(camera) as newest:
        assert newest.error is None
        camera.script.put(CameraError("first"))
        camera.script.put(CameraError("second"))
        _until(lambda: str(newest.error) == "second")
        assert newest.get(0.0) is None
        camera.script.put(_frame(1))
        assert _part(newest.get(_SOON_S)) == "P1"
        assert newest.error is None


def test_a_surprise_of_the_camera_does_not_end_the_thread(camera: _Camera, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever read() raises becomes a CameraError with its cause, one log line, and another try."""
    with NewestFrame(camera) as newest:
        camera.script.put(RuntimeError("driver bug"))
        camera.script.put(RuntimeError("driver bug"))
        camera.script.put(_frame(1))
        _until(lambda: newest.error is not None)
        error = newest.error
        assert "driver bug" in str(error)
        assert error is not None
        assert isinstance(error.__cause__, RuntimeError)
        assert _part(newest.get(_SOON_S)) == "P1"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_failing_camera_is_not_read_without_pause(camera: _Camera) -> None:
    """Between failed reads there are 0.2 s and more: in 0.7 s that is at most three."""
    for _ in range(50):
        camera.script.put(CameraError("dark"))
    with NewestFrame(camera):
        time.sleep(0.7)
        assert 1 <= camera.reads <= 3


def test_a_finite_source_ends_when_its_last_frame_is_taken(camera: _Camera) -> None:
    """The end shows after the last frame was handed out, and no call waits any longer."""
    with NewestFrame(camera) as newest:
        _started(newest, camera)
        camera.play(_frame(1), None)
        assert not newest.ended
        assert _part(newest.get(_SOON_S)) == "P1"
        assert newest.get(60) is None
        assert newest.get_after(99.0, 60) is None
        _until(lambda: newest.ended)


def test_a_finite_source_ends_for_triggers_too(camera: _Camera) -> None:
    """When only frames older than the trigger are left of an ended source, it counts as ended."""
    with NewestFrame(camera) as newest:
        _started(newest, camera)
        camera.play(_frame(1, 10.0), None)
        assert newest.get_after(11.0, 60) is None
        assert newest.ended


def test_the_end_wakes_who_waits(camera: _Camera) -> None:
    """A source that ends while somebody waits answers at once with None."""
    with NewestFrame(camera) as newest:
        threading.Timer(0.1, camera.script.put, (None,)).start()
        began = time.monotonic()
        assert newest.get(60) is None
        assert newest.ended
        assert time.monotonic() - began < _SOON_S


def test_leaving_wakes_who_waits(camera: _Camera) -> None:
    """A consumer in another thread does not outlive the with block."""
    answers: list[CameraFrame | None] = []
    with NewestFrame(camera) as newest:
        waiters = [
            threading.Thread(target=lambda: answers.append(newest.get(60)), daemon=True),
            threading.Thread(target=lambda: answers.append(newest.get_after(1.0, 60)), daemon=True),
        ]
        for waiter in waiters:
            waiter.start()
        _until(lambda: len(newest._requests) == 1)
    for waiter in waiters:
        waiter.join(_SOON_S)
    assert answers == [None, None]


class _HangingCamera(_Camera):
    """A driver whose first read does not return before `wake`, not even when the camera is left."""

    def __init__(self) -> None:
        super().__init__()
        self.wake = threading.Event()

    def read(self) -> CameraFrame | None:
        self.reads += 1
        if self.reads == 1:
            self.wake.wait()
            return _frame(1)
        return self.script.get()  # type: ignore[return-value]

    def __exit__(self, *exc: object) -> None:
        self.left += 1
        if self.left > 1:
            self.script.put(None)


def test_a_read_that_hangs_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    """Leaving takes two seconds at most; what the hanging read gives later reaches nobody."""
    camera = _HangingCamera()
    newest = NewestFrame(camera)
    with newest:
        _until(lambda: camera.reads == 1)
        stale = [thread for thread in threading.enumerate() if thread.name == "newest-frame"]
        began = time.monotonic()
    assert 1.5 < time.monotonic() - began < 4
    assert "abandoned" in caplog.text
    assert [(thread.daemon, thread.is_alive()) for thread in stale] == [(True, True)]
    with newest:
        _until(lambda: camera.reads == 2)
        camera.wake.set()
        stale[0].join(_SOON_S)
        assert not stale[0].is_alive()
        assert newest.get(0.05) is None
        camera.script.put(_frame(2))
        assert _part(newest.get(_SOON_S)) == "P2"
        assert newest.dropped == 0


def test_the_camera_is_entered_and_left(camera: _Camera) -> None:
    """It enters and leaves the camera it is given; a camera that is not there is the caller's error."""
    with NewestFrame(camera):
        assert (camera.entered, camera.left) == (1, 0)
    assert camera.left == 1

    class Absent(_Camera):
        def __enter__(self) -> _Camera:
            raise CameraError("no camera there", exit_code=2)

    before = threading.active_count()
    with pytest.raises(CameraError, match="no camera there"), NewestFrame(Absent()):
        pass
    assert threading.active_count() == before


def test_a_camera_that_loses_no_picture_is_refused() -> None:
    """Pictures of a folder must not be dropped for newer ones."""

    class Folder(_Camera):
        live = False

    with pytest.raises(ValueError, match="live cameras"):
        NewestFrame(Folder())
