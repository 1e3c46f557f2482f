"""A lane's line: served in the order of acceptance, each trigger under the terms that it was accepted under."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flawline_edge.cameras import CameraFrame
from flawline_edge.intake import Change, Intake, Waiting
from flawline_edge.trigger import Terms, Trigger
from flawline_inspect.decision import Decision
from flawline_inspect.verdict import Reason

LIMIT = 4
FIRST = Terms(1, "level-01234567", 4.0)
FRAME = CameraFrame(np.zeros((2, 2, 3), np.uint8), 0.0, 0.0)


class Path:
    """Accepts as the real one, and keeps what is refused and settled."""

    def __init__(self) -> None:
        self.seq = 0
        self.refused: list[tuple[int, Reason]] = []
        self.settled: list[tuple[int, Reason]] = []

    def accept(self, part: str, terms: Terms, *, camera: str = "", trigger_id: str | None = None,
               started: float | None = None) -> tuple[Trigger, Future[None]]:  # fmt: skip
        self.seq += 1
        now = time.monotonic()
        done: Future[None] = Future()
        done.set_result(None)
        return Trigger(self.seq, trigger_id or f"F{self.seq}", part, 0.0, now, now + 60, terms, camera), done

    def refuse(self, trigger: Trigger, reason: Reason) -> None:
        assert trigger.refuse()
        self.refused.append((trigger.seq, reason))

    def settle(self, trigger: Trigger, decision: Decision) -> None:
        self.settled.append((trigger.seq, decision.reason))


def make() -> tuple[Intake, Path]:
    path: Any = Path()
    return Intake(path, "top", FIRST, LIMIT), path


class LineMachine(RuleBasedStateMachine):
    """Triggers, pictures and changes in any order; what judges has applied exactly the changes before its trigger."""

    def __init__(self) -> None:
        super().__init__()
        self.intake, self.path = make()
        self.applied = FIRST
        self.accepted: dict[int, Trigger] = {}
        self.waiting: list[int] = []
        self.asked: list[Waiting] = []
        self.refusing: Reason | None = None
        self.changes = 0

    @rule()
    def offer(self) -> None:
        refused = len(self.path.refused)
        trigger, _ = self.intake.offer()
        self.accepted[trigger.seq] = trigger
        expected = self.refusing or (Reason.OVERRUN if len(self.waiting) >= LIMIT else None)
        if expected is None:
            self.waiting.append(trigger.seq)
            assert len(self.path.refused) == refused
        else:
            assert self.path.refused[refused:] == [(trigger.seq, expected)]

    @rule()
    def offer_with_its_picture(self) -> None:
        if len(self.waiting) < LIMIT and self.refusing is None:
            trigger, _ = self.intake.offer(frame=FRAME)
            self.accepted[trigger.seq] = trigger
            self.waiting.append(trigger.seq)

    @rule(recipe=st.integers(1, 9))
    def change(self, recipe: int) -> None:
        self.changes += 1
        terms = Terms(recipe, f"m{self.changes}", 4.0)
        self.intake.change(terms, lambda: setattr(self, "applied", terms))
        assert self.intake.terms == terms

    @rule(reason=st.sampled_from([Reason.PAUSED, Reason.CAMERA, None]))
    def refuse(self, reason: Reason | None) -> None:
        self.refusing = reason
        self.intake.refuse(reason)

    @rule(answer=st.sampled_from([FRAME, Decision.undefined(Reason.CAMERA)]))
    def capture(self, answer: CameraFrame | Decision) -> None:
        waiting = self.intake.next_to_capture(0.0)
        if waiting is not None:
            assert waiting.answer is None and waiting.trigger.seq in self.waiting
            self.intake.fill(waiting, answer)

    @rule()
    def serve(self) -> None:
        head = self.intake.next(0.0)
        if isinstance(head, Change):
            head.apply()
        elif head is not None:
            assert head.answer is not None
            assert head.trigger.seq == self.waiting.pop(0), "not in the order of acceptance"
            assert head.trigger.terms == self.applied, "judged by another recipe than it was accepted under"

    @precondition(lambda self: not self.waiting)
    @rule()
    def serve_one_that_does_not_wait(self) -> None:
        while (head := self.intake.next_change()) is not None:
            head.apply()
        trigger, changes = self.intake.accept("")
        assert changes == []
        assert trigger.terms == self.applied

    @invariant()
    def depth_is_what_waits(self) -> None:
        assert self.intake.depth == len(self.waiting) <= LIMIT

    def teardown(self) -> None:
        self.intake.finish()
        self.intake.drain()
        assert [seq for seq, _ in self.path.settled] == self.waiting
        assert self.intake.is_over and self.intake.depth == 0
        assert self.applied == self.intake.terms


LineMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_the_line_keeps_order_and_terms = LineMachine.TestCase


def test_a_change_that_came_in_between_is_applied_first() -> None:
    """A part that does not wait gets the changes that its terms include, and no others."""
    intake, _ = make()
    after = Terms(2, "m", 4.0)
    applied: list[int] = []
    intake.change(after, lambda: applied.append(2))
    trigger, changes = intake.accept("P1")
    intake.change(Terms(3, "n", 4.0), lambda: applied.append(3))
    assert trigger.terms == after
    for change in changes:
        change.apply()
    assert applied == [2]


def test_the_end_of_the_source_answers_what_waits() -> None:
    """What has its picture is served, what has none gets `stopped`, and so does what comes now."""
    intake, path = make()
    intake.offer(frame=FRAME)
    intake.offer()
    intake.finish()
    first, second = intake.next(0.0), intake.next(0.0)
    assert isinstance(first, Waiting) and first.answer is FRAME
    assert isinstance(second, Waiting) and second.answer == Decision.undefined(Reason.STOPPED)
    assert intake.next(5.0) is None and intake.is_over
    intake.offer()
    assert path.refused == [(3, Reason.STOPPED)]
    intake.begin()
    intake.offer()
    assert not intake.is_over and intake.depth == 1


def test_giving_up_answers_what_waits_and_keeps_the_changes() -> None:
    """Whoever serves next still has to judge by the recipe that the next trigger is accepted under."""
    intake, path = make()
    applied: list[int] = []
    intake.offer(frame=FRAME)
    intake.change(Terms(2, "m", 4.0), lambda: applied.append(2))
    intake.offer()
    intake.give_up(Decision.undefined(Reason.CAMERA))
    assert path.settled == [(1, Reason.CAMERA), (2, Reason.CAMERA)] and intake.depth == 0
    trigger, changes = intake.accept("")
    assert trigger.terms.recipe == 2 and len(changes) == 1 and applied == []


def test_why_pictures_end_is_not_forgotten() -> None:
    """The one who captures ends because the clock has died: the clock's error is what counts."""
    intake, _ = make()
    error = RuntimeError("the clock")
    intake.finish(error)
    intake.finish()
    assert intake.error is error
    intake.begin()
    assert intake.error is None


@pytest.mark.parametrize("what", ["offer", "fill", "change", "finish"])
def test_whoever_waits_is_woken(what: str) -> None:
    """By whatever makes the head of the line ready, long before the time is over."""
    intake, _ = make()
    if what == "fill":
        intake.offer()
    found: list[object] = []
    waiter = threading.Thread(target=lambda: found.append(intake.next(10.0)))
    waiter.start()
    time.sleep(0.02)
    if what == "offer":
        intake.offer(frame=FRAME)
    elif what == "fill":
        waiting = intake.next_to_capture(0.0)
        assert waiting is not None
        intake.fill(waiting, FRAME)
    elif what == "change":
        intake.change(FIRST, lambda: None)
    else:
        intake.finish()
    waiter.join(5.0)
    assert not waiter.is_alive() and len(found) == 1
    assert (found[0] is None) is (what == "finish")
