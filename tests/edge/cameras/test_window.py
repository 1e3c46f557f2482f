"""What a trigger is answered with: the first frame that began after it, or none; never one that may be a later part."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline_edge.cameras import CameraFrame, FrameWindow
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(30)


class _Window(FrameWindow):
    """Filled by the test. A frame's part is its time; those in `overwritten` cannot be loaded any more."""

    def __init__(self, length: int = 8) -> None:
        super().__init__(length)
        self._open()
        self.overwritten: set[float] = set()
        self.loaded: list[float] = []

    def come(self, *times: float, passed: int = 1) -> None:
        for at in times:
            self._put(at, lambda at=at: self._load(at), passed=passed)  # type: ignore[misc]

    def fail(self) -> None:
        self._fail(CameraError("dark"))

    def end(self) -> None:
        self._end()

    def _load(self, at: float) -> CameraFrame | None:
        self.loaded.append(at)
        return None if at in self.overwritten else CameraFrame(np.zeros((1, 1), np.uint8), 0.0, at, f"{at:g}")


def _after(window: FrameWindow, at: float) -> str | None:
    frame = window.get_after(at, 0.0)
    return frame.part if frame is not None else None


@pytest.mark.parametrize(
    ("at", "answer"), [(0.5, "1"), (1.0, "1"), (1.5, "2"), (2.0, "2"), (2.5, "3"), (3.0, "3"), (3.1, None)]
)
def test_the_first_that_began_after_it_though_newer_ones_are_there(at: float, answer: str | None) -> None:
    """The capture began at the trigger or later, and no earlier frame's did."""
    window = _Window()
    window.come(1.0, 2.0, 3.0)
    assert _after(window, at) == answer


def test_a_frame_that_left_the_window_is_not_replaced_by_the_next() -> None:
    """Of a window of two, the frame of 2.0 is gone: nobody who waited for it gets that of 3.0."""
    window = _Window(length=2)
    window.come(1.0, 2.0, 3.0, 4.0)
    assert [_after(window, at) for at in (0.5, 1.5, 2.0)] == [None, None, None]
    assert _after(window, 2.5) == "3"
    assert window.missed == 3


def test_an_overwritten_frame_is_not_replaced_by_the_next() -> None:
    """The window knows of it, its pixels are gone."""
    window = _Window()
    window.come(1.0, 2.0, 3.0)
    window.overwritten = {2.0}
    assert [_after(window, at) for at in (0.5, 1.5, 2.5)] == ["1", None, "3"]
    assert window.missed == 1


def test_frames_that_nobody_told_of_may_have_been_the_first() -> None:
    """Three frames passed between 1.0 and 5.0: a trigger between these gets none, one after the last told gets it."""
    window = _Window()
    window.come(1.0)
    window.come(5.0, passed=4)
    window.come(6.0)
    assert [_after(window, at) for at in (0.5, 1.5, 4.9, 5.0, 5.5)] == ["1", None, None, None, "6"]


def test_a_miss_is_counted_and_logged_once_a_trigger(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is asked for."""
    window = _Window(length=1)
    window.come(1.0, 2.0)
    for _ in range(3):
        assert _after(window, 0.5) is None
    assert _after(window, 0.7) is None
    assert window.missed == len(caplog.records) == 2


def test_frames_lost_to_a_failure_may_have_been_the_first() -> None:
    """A trigger of before the failure is not answered after it; one of after it is."""
    window = _Window()
    window.come(time.monotonic())
    at = time.monotonic()
    window.expect(at)
    window.fail()
    later = time.monotonic()
    window.come(time.monotonic())
    assert _after(window, at) is None
    assert _after(window, later) is not None
    assert window.missed == 1 and window.failures == 1 and window.error is None


def test_what_is_expected_is_set_aside() -> None:
    """While more frames pass than the window holds; handed out once, loaded once for all that wait."""
    window = _Window(length=2)
    for at in (0.5, 0.7, 2.5):
        window.expect(at)
    window.come(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert window.loaded == [1.0, 3.0]
    assert [_after(window, at) for at in (0.7, 2.5, 0.5)] == ["1", "3", "1"]
    assert _after(window, 0.5) is None


def test_what_is_expected_may_be_here_already() -> None:
    """A trigger's message may take longer than its frame."""
    window = _Window(length=2)
    window.come(1.0)
    window.expect(0.5)
    window.come(2.0, 3.0, 4.0)
    assert _after(window, 0.5) == "1"


def test_what_is_forgotten_is_not_held() -> None:
    """By name, and when far more is expected than can be waited for."""
    window = _Window()
    for at in range(100):
        window.expect(float(at))
    assert len(window._expected) == len(window._requests) == 64
    for at in range(100):
        window.forget(float(at))
    assert window._expected == {} and window._requests == []
    window.come(200.0)
    assert window.loaded == []


def test_the_newest_that_can_be_loaded() -> None:
    """`get` counts a frame that was overwritten under its hands as dropped, and waits for the next."""
    window = _Window()
    window.come(1.0, 2.0)
    window.overwritten = {2.0}
    assert window.get(0.0) is None
    assert window.dropped == 2
    timer = threading.Timer(0.05, window.come, (3.0,))
    timer.start()
    frame = window.get(10.0)
    timer.join()
    assert frame is not None and frame.part == "3"
    assert window.dropped == 2


def test_frames_nobody_told_of_are_dropped_ones() -> None:
    """`get` counts them."""
    window = _Window()
    window.come(1.0)
    assert window.get(0.0) is not None
    window.come(5.0, passed=4)
    assert window.get(0.0) is not None
    assert window.dropped == 3


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(1, 3)),  # so many since the one before, the last is told of
        st.tuples(st.just("ask"), st.integers(0, 40)),
        st.tuples(st.just("expect"), st.integers(0, 40)),
    ),
    max_size=60,
)


@given(steps=_STEPS, length=st.integers(1, 6))
def test_no_answer_but_the_first(steps: list[tuple[str, int]], length: int) -> None:
    """Whatever comes, is asked and expected in which order: an answer is the first frame after, of all there were."""
    window = _Window(length)
    began: list[float] = []
    asked: list[tuple[float, str]] = []
    for step, value in steps:
        if step == "frame":
            began += [len(began) + n + 1.0 for n in range(value)]
            window.come(began[-1], passed=value)
        elif step == "expect":
            window.expect(value + 0.5)
        elif (answer := _after(window, value + 0.5)) is not None:
            asked.append((value + 0.5, answer))
    for at, answer in asked:
        assert answer == f"{next(each for each in began if each >= at):g}"
