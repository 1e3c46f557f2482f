"""Whether the inspection goes on: what counts as progress and what does not."""

from __future__ import annotations

import threading

from flawline_edge.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nobody_to_wait_for_is_progress() -> None:
    """While the station starts, and when its lanes have ended."""
    assert Progress().has_advanced()


def test_every_lane_has_to_come_round() -> None:
    """Each time anew: one that stands still stops it all, however busy the others are."""
    progress = Progress()
    top, side = progress.lane("top"), progress.lane("side")
    assert progress.has_advanced()  # both are new
    assert not progress.has_advanced()
    top.came_round()
    top.came_round()
    assert not progress.has_advanced()
    side.came_round()
    assert progress.has_advanced()
    assert not progress.has_advanced()


def test_a_wait_that_is_right_is_progress() -> None:
    """For as long as it lasts, and the round that it ends too."""
    progress = Progress()
    lane = progress.lane("top")
    progress.has_advanced()
    with lane.waiting():
        assert progress.has_advanced() and progress.has_advanced()
    assert progress.has_advanced()
    assert not progress.has_advanced()


def test_a_lane_that_is_over_holds_nothing_up() -> None:
    """And is forgotten when the next one comes."""
    progress = Progress()
    old = progress.lane("top")
    progress.has_advanced()
    assert not progress.has_advanced()
    old.over()
    assert progress.has_advanced()
    new = progress.lane("top")
    assert progress.lanes == (new,)


def test_stuck_lanes_are_named_after_a_while() -> None:
    """Not those that wait, nor those that came round since."""
    clock = Clock()
    progress = Progress(clock)
    top, side, rear = progress.lane("top"), progress.lane("side"), progress.lane("rear")
    clock.now += 10.0
    side.came_round()
    with rear.waiting():
        clock.now += 0.25
        assert progress.stuck(10.0) == [top]
        assert top.idle_s == 10.25
        clock.now += 10.0
        assert progress.stuck(10.0) == [top, side]
    assert progress.stuck(10.0) == [top, side]  # rear came round with the end of its wait


def test_the_stack_shows_where_a_lane_stands() -> None:
    """The line that it hangs in, to be read in the log; nothing when its thread is gone."""
    progress, hang, hangs = Progress(), threading.Event(), threading.Event()

    def loop_that_hangs() -> None:
        lanes.append(progress.lane("top"))
        hangs.set()
        hang.wait(10.0)

    lanes: list[object] = []
    thread = threading.Thread(target=loop_that_hangs)
    thread.start()
    assert hangs.wait(10.0)
    (lane,) = progress.lanes
    assert "in loop_that_hangs" in lane.stack()
    hang.set()
    thread.join()
    assert lane.stack() == ""
