"""Whether the inspection goes on: what counts as progress and what does not."""

from __future__ import annotations

import threading

from flawline_edge.progress import Loop, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nobody_to_wait_for_is_progress() -> None:
    """While the station starts, and when its loops have ended."""
    assert Progress().has_advanced() and Progress().stuck(0.0) == []


def test_every_loop_has_to_come_round() -> None:
    """Each time anew: one that stands still stops it all, however busy the others are."""
    progress, top, side = Progress(), Loop("top"), Loop("side")
    with progress.watch(top), progress.watch(side):
        assert progress.has_advanced()  # both are new
        assert not progress.has_advanced()
        top.came_round()
        top.came_round()
        assert not progress.has_advanced()
        side.came_round()
        assert progress.has_advanced()
        assert not progress.has_advanced()


def test_a_loop_that_has_ended_holds_nothing_up() -> None:
    """However it ended; the same one may be watched again."""
    progress, loop = Progress(), Loop("top")
    for _ in range(2):
        try:
            with progress.watch(loop):
                assert progress.loops == (loop,)
                progress.has_advanced()
                assert not progress.has_advanced()
                raise RuntimeError
        except RuntimeError:
            pass
        assert progress.loops == () and progress.has_advanced()


def test_stuck_loops_are_named_after_a_while() -> None:
    """Not those that came round since; one that is watched again begins anew."""
    clock = Clock()
    progress, top, side = Progress(), Loop("top", clock), Loop("side", clock)
    clock.now += 50.0  # before it is watched, nobody expects anything of it
    with progress.watch(top), progress.watch(side):
        assert progress.stuck(10.0) == []
        clock.now += 10.0
        side.came_round()
        clock.now += 0.25
        assert progress.stuck(10.0) == [top] and top.idle_s == 10.25
        top.came_round()
        assert progress.stuck(10.0) == []


def test_the_stack_shows_where_a_loop_stands() -> None:
    """The line that it hangs in, to be read in the log; nothing when its thread is gone."""
    progress, loop, hang, hangs = Progress(), Loop("top"), threading.Event(), threading.Event()

    def loop_that_hangs() -> None:
        with progress.watch(loop):
            hangs.set()
            hang.wait(10.0)

    thread = threading.Thread(target=loop_that_hangs)
    thread.start()
    assert hangs.wait(10.0)
    assert "in loop_that_hangs" in loop.stack()
    hang.set()
    thread.join()
    assert loop.stack() == ""
