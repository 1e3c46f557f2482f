"""A trigger has one slot, and the deadline clock takes what nobody else has taken."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline_edge.trigger import DeadlineClock, Slot, Trigger

WAIT_S = 10.0


def make(seq: int = 1, in_s: float = 60.0) -> Trigger:
    now = time.monotonic()
    return Trigger(seq, f"T-{seq}", "", 1.8e9, now, now + in_s)


class Deadlines:
    """What the clock has called, and when."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []
        self.lateness_s: list[float] = []

    def __call__(self, trigger: Trigger) -> None:
        now = time.monotonic()
        assert trigger.expire(now)
        self.lateness_s.append(now - trigger.deadline)
        self.calls.append((trigger.seq, now))

    @property
    def seqs(self) -> list[int]:
        return [seq for seq, _ in self.calls]

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.calls) >= count)


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.001)


def test_a_slot_is_taken_once() -> None:
    """The first who takes the slot has it, every later one does not, whatever he takes it for."""
    trigger = make()
    assert trigger.is_open and trigger.slot is Slot.OPEN
    assert [trigger.refuse() for _ in range(3)] == [True, False, False]
    assert not trigger.is_open and trigger.slot is Slot.REFUSED
    assert not trigger.decide(trigger.deadline - 1) and not trigger.expire(trigger.deadline + 1)
    assert trigger.slot is Slot.REFUSED


@pytest.mark.parametrize("left_s", [1e-9, 0.0, -1e-9], ids=["before", "at", "after"])
def test_the_deadline_parts_decision_and_expiry(left_s: float) -> None:
    """Before it only a decision takes the slot, from it on only the clock."""
    decided, expired = make(), make()
    assert decided.decide(decided.deadline - left_s) is (left_s > 0)
    assert expired.expire(expired.deadline - left_s) is (left_s <= 0)


def test_one_of_eight_threads_wins_the_slot() -> None:
    """Threads that race for a slot: exactly one gets it, each of 200 times."""
    rounds, racers = 200, 8
    triggers = [make(seq) for seq in range(rounds)]
    won: list[int] = []
    start = threading.Barrier(racers)

    def race() -> None:
        for trigger in triggers:
            start.wait(WAIT_S)
            if trigger.refuse():
                won.append(trigger.seq)

    threads = [threading.Thread(target=race) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert won == list(range(rounds))


def test_the_clock_calls_at_the_deadline_in_order() -> None:
    """Each open trigger is called once, expired, not before its deadline and soon after it, in order."""
    deadlines = Deadlines()
    triggers = [make(seq, 0.05 + 0.02 * seq) for seq in range(6)]
    with DeadlineClock(deadlines) as clock:
        for trigger in triggers:
            clock.watch(trigger)
        deadlines.wait_for(6)
        time.sleep(0.03)
    assert deadlines.seqs == [0, 1, 2, 3, 4, 5]
    assert all(trigger.slot is Slot.EXPIRED for trigger in triggers)
    assert min(deadlines.lateness_s) >= 0.0
    assert max(deadlines.lateness_s) < 0.5, "the clock came late, even for a busy machine"


def test_the_clock_leaves_taken_slots_alone() -> None:
    """Taken before it is watched or before its deadline: no call, and those behind it are served."""
    deadlines = Deadlines()
    triggers = [make(seq, 0.1) for seq in range(6)]
    triggers[0].refuse()
    with DeadlineClock(deadlines) as clock:
        for trigger in triggers:
            clock.watch(trigger)
        for seq in (2, 3):
            assert triggers[seq].refuse()
        deadlines.wait_for(3)
        time.sleep(0.03)
    assert deadlines.seqs == [1, 4, 5]


def test_a_trigger_watched_while_the_clock_sleeps_is_served() -> None:
    """Whether it sleeps with nothing to watch, or until the deadline of one that was refused long ago."""
    deadlines = Deadlines()
    with DeadlineClock(deadlines) as clock:
        time.sleep(0.05)
        clock.watch(make(1, 0.02))
        deadlines.wait_for(1)
        waiting = make(2, 0.1)
        clock.watch(waiting)
        time.sleep(0.02)
        waiting.refuse()
        clock.watch(make(3, 0.12))
        deadlines.wait_for(2)
    assert deadlines.seqs == [1, 3]
    assert max(deadlines.lateness_s) < 0.5


def test_a_deadline_that_has_passed_is_served_at_once() -> None:
    """A frame may have spent its time in the camera before it was accepted."""
    deadlines = Deadlines()
    with DeadlineClock(deadlines) as clock:
        clock.watch(make(1, -1.0))
        began = time.monotonic()
        deadlines.wait_for(1)
        assert time.monotonic() - began < 0.5


def test_deadlines_may_come_in_any_order() -> None:
    """A frame's time began with its capture: it may be over before that of a trigger accepted earlier."""
    deadlines = Deadlines()
    with DeadlineClock(deadlines) as clock:
        for seq, in_s in enumerate((0.3, 0.05, 0.2, 0.1)):
            clock.watch(make(seq, in_s))
        deadlines.wait_for(4)
    assert deadlines.seqs == [1, 3, 2, 0]
    assert max(deadlines.lateness_s) < 0.2, "the clock came late, even for a busy machine"


@pytest.mark.parametrize("watched", [0, 3], ids=["idle", "waiting for a deadline"])
def test_the_clock_stops_quickly(watched: int) -> None:
    """Leaving does not wait for deadlines, and what is not due is not called."""
    deadlines = Deadlines()
    with DeadlineClock(deadlines) as clock:
        for seq in range(watched):
            clock.watch(make(seq, 60.0))
        time.sleep(0.02)
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert not deadlines.calls
    assert not any(thread.name == "deadline" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_deadline_does_not_end_the_clock() -> None:
    """One trigger whose publication fails in a way nobody foresaw: the next one still has its deadline."""
    served: list[int] = []

    def on_deadline(trigger: Trigger) -> None:
        if trigger.seq == 1:
            raise RuntimeError("unforeseen")
        served.append(trigger.seq)

    with DeadlineClock(on_deadline) as clock:
        clock.watch(make(1, 0.01))
        clock.watch(make(2, 0.02))
        time.sleep(0.2)
    assert served == [2]


steps = st.tuples(
    st.integers(0, 4),  # deadline after that of the one before, ms
    st.one_of(st.none(), st.integers(0, 12)),  # when the path refuses, ms after the start; None: never
    st.booleans(),  # whether that is before it is watched
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=1, max_size=8))
def test_any_interleaving_publishes_once(plan: list[tuple[int, int | None, bool]]) -> None:
    """Whoever comes first, path or clock: one publication a trigger, never none, never two."""
    published: Counter[int] = Counter()
    by_clock: list[int] = []
    lock = threading.Lock()

    def publish(trigger: Trigger) -> None:
        with lock:
            published[trigger.seq] += 1

    def on_deadline(trigger: Trigger) -> None:
        if trigger.expire(time.monotonic()):
            by_clock.append(trigger.seq)
            publish(trigger)

    start = time.monotonic()
    triggers, deadline = [], start + 2e-3
    for seq, (gap_ms, _, _) in enumerate(plan):
        deadline += 1e-3 * gap_ms
        triggers.append(Trigger(seq, f"T-{seq}", "", 1.8e9, start, deadline))

    def follow_the_path() -> None:
        todo = sorted((ms, seq) for seq, (_, ms, early) in enumerate(plan) if ms is not None and not early)
        for ms, seq in todo:
            time.sleep(max(0.0, start + 1e-3 * ms - time.monotonic()))
            if triggers[seq].refuse():
                publish(triggers[seq])

    with DeadlineClock(on_deadline) as clock:
        path = threading.Thread(target=follow_the_path)
        path.start()
        for trigger, (_, ms, early) in zip(triggers, plan, strict=True):
            if early and ms is not None and trigger.refuse():
                publish(trigger)
            clock.watch(trigger)
        path.join(WAIT_S)
        wait_until(lambda: len(published) == len(plan))
        time.sleep(max(0.0, deadline - time.monotonic()) + 2e-3)
    assert published == Counter(range(len(plan)))
    assert by_clock == sorted(by_clock)
