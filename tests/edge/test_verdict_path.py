"""Exactly one verdict a trigger, whatever happens in whatever order; on the real path, with time and outside played."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from flawline_edge import verdict_path as path_module
from flawline_edge.journal import JournalError
from flawline_edge.trigger import Slot, Terms, Trigger
from flawline_edge.verdict_path import Alarms, Counts, Inspection, VerdictPath
from flawline_inspect.decision import Decision
from flawline_inspect.verdict import Reason, Result, Verdict

DEADLINE_S = 0.2
WAIT_S = 10.0
TERMS = Terms(1, "level-01234567", 4.0)
OK = Decision(Result.OK, Reason.NONE, 1.0)
NOT_OK = Decision(Result.NOT_OK, Reason.NONE, 6.0)
REVIEW = Decision(Result.NOT_DECIDABLE, Reason.REVIEW, 4.1)
BROKEN = Decision.undefined(Reason.ENGINE)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Commit(Future[None]):
    """Whoever waits for it lets things happen meanwhile."""

    def __init__(self, meanwhile: Callable[[float], None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def result(self, timeout: float | None = None) -> None:
        assert timeout is not None
        self._meanwhile(timeout)


@dataclass
class Outside:
    """Journal and publisher in one; the journal's rules are those of the real one."""

    time: Time
    published: dict[int, list[tuple[float, Verdict]]] = field(default_factory=dict)
    rows: dict[int, Verdict] = field(default_factory=dict)
    unwritten: set[int] = field(default_factory=set)
    alarms: list[tuple[str, bool, str]] = field(default_factory=list)
    meanwhile: Callable[[float], None] = lambda timeout_s: None
    disk_is_full: bool = False

    def accept(self, trigger: object) -> Future[None]:
        return Future()

    def decide(self, verdict: Verdict, *, overrules: bool = False) -> Future[None]:
        if self.disk_is_full:
            self.unwritten.add(verdict.seq)
            return Commit(self._fail)
        if overrules or verdict.seq not in self.rows:
            self.rows[verdict.seq] = verdict
        return Commit(self.meanwhile)

    def _fail(self, timeout_s: float) -> None:
        self.meanwhile(timeout_s)
        raise JournalError("the disk is full")

    @staticmethod
    def messages_of(verdict: Verdict, camera: str = "") -> list[Verdict]:
        return [verdict]

    def publish_verdict(
        self,
        verdict: Verdict,
        *,
        until: float | None = None,
        camera: str = "",
        messages: list[Verdict] | None = None,
    ) -> bool:
        assert messages in (None, [verdict]), "what was made beforehand is of another verdict"
        self.published.setdefault(verdict.seq, []).append((self.time.now, verdict))
        return True

    def alarm(self, name: str, active: bool, text: str = "") -> None:
        self.alarms.append((name, active, text))


def make_path(outside: Outside, *, journal_required: bool, told: list[Inspection] | None = None) -> VerdictPath:
    stand_in: Any = outside
    return VerdictPath(
        boot="001f9c21",
        journal=stand_in,
        publisher=stand_in,
        alarms=Alarms(stand_in, ()),
        deadline_s=DEADLINE_S,
        journal_required=journal_required,
        counts=Counts([0, 0, 0, 0]),
        observers=[] if told is None else [told.append],
    )


class SlotMachine(RuleBasedStateMachine):
    """Accept, decide, deadline and refuse in any order, also while a decision waits for the disk."""

    triggers = Bundle("triggers")

    @initialize(required=st.booleans())
    def start(self, required: bool) -> None:
        self.time = Time()
        self.patch = mock.patch.object(path_module, "time", self.time)
        self.patch.start()
        self.outside = Outside(self.time)
        self.told: list[Inspection] = []
        self.path = make_path(self.outside, journal_required=required, told=self.told)
        self.required = required
        self.accepted: list[Trigger] = []
        self.decided: set[int] = set()

    def teardown(self) -> None:
        if not hasattr(self, "patch"):
            return
        try:
            self.advance(10.0)
            for trigger in self.accepted:
                self.expire(trigger)
            assert [t.seq for t in self.accepted] == list(range(1, len(self.accepted) + 1))
            assert sorted(self.outside.published) == [t.seq for t in self.accepted], "a trigger without a verdict"
            self.each_trigger_has_at_most_one_verdict()
            published = [inspection.verdict for inspection in self.told if not inspection.late]
            assert sorted(v.seq for v in published) == [t.seq for t in self.accepted], "told and published differ"
        finally:
            self.patch.stop()

    @rule(target=triggers, in_the_camera_s=st.sampled_from([0.0, 0.05, 0.3]))
    def accept(self, in_the_camera_s: float) -> Trigger:
        trigger, _ = self.path.accept("SN1", TERMS, started=self.time.now - in_the_camera_s)
        self.accepted.append(trigger)
        return trigger

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.199, 0.2, 0.5]))
    def advance(self, seconds: float) -> None:
        self.time.now += seconds

    @rule(trigger=triggers)
    def expire(self, trigger: Trigger) -> None:
        """The deadline clock comes by."""
        self.path.publish_deadline(trigger)

    @rule(trigger=triggers, reason=st.sampled_from([Reason.OVERRUN, Reason.PAUSED, Reason.STOPPED]))
    def refuse(self, trigger: Trigger, reason: Reason) -> None:
        self.path.refuse(trigger, reason)

    @rule(
        trigger=triggers,
        decision=st.sampled_from([OK, NOT_OK, REVIEW, BROKEN]),
        disk=st.sampled_from(["quick", "slow", "hangs", "full"]),
        meanwhile=st.sampled_from(["nothing", "refuse", "expire"]),
    )
    def decide(self, trigger: Trigger, decision: Decision, disk: str, meanwhile: str) -> None:
        if trigger.seq in self.decided:
            return  # the thread that judges takes each trigger once
        self.decided.add(trigger.seq)

        def happens(timeout_s: float) -> None:
            self.outside.meanwhile, self.outside.disk_is_full = (lambda _: None), False
            self.time.now += {"slow": 0.1, "hangs": timeout_s}.get(disk, 0.0)
            if meanwhile == "refuse":
                self.path.refuse(trigger, Reason.STOPPED)
            elif meanwhile == "expire":
                self.expire(trigger)
            if disk == "hangs":
                raise FutureTimeoutError

        self.outside.meanwhile, self.outside.disk_is_full = happens, disk == "full"
        self.path.settle(trigger, decision)
        assert not trigger.is_open, "settled, and nobody has published"

    @invariant()
    def each_trigger_has_at_most_one_verdict(self) -> None:
        for trigger in getattr(self, "accepted", []):
            verdicts = self.outside.published.get(trigger.seq, [])
            assert len(verdicts) == (0 if trigger.is_open else 1), trigger
            if not verdicts:
                continue
            (at, verdict), slot = verdicts[0], trigger.slot
            if slot is Slot.EXPIRED:
                assert verdict.reason is Reason.DEADLINE and at >= trigger.deadline
            elif slot is Slot.DECIDED:
                assert verdict.reason is not Reason.DEADLINE and at < trigger.deadline
            else:
                assert verdict.reason in (Reason.OVERRUN, Reason.PAUSED, Reason.STOPPED)
            if trigger.seq in self.outside.unwritten:
                assert not (self.required and slot is Slot.DECIDED) or verdict.reason is Reason.JOURNAL
            else:
                assert self.outside.rows[trigger.seq] == verdict, (
                    "the journal says something else than the PLC was told"
                )
            assert verdict.result is not Result.OK or slot is Slot.DECIDED


SlotMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
test_any_order_gives_each_trigger_one_verdict = SlotMachine.TestCase


@pytest.mark.parametrize("before", ["deadline", "decision"])
def test_a_verdict_does_not_overtake_the_one_before_it(before: str) -> None:
    """The thread that took the first slot is held up before its verdict has gone: the part behind it waits its turn, those of
    another camera and refusals do not."""
    outside = Outside(Time())
    made = make_path(outside, journal_required=False)
    held, go_on, gone = threading.Event(), threading.Event(), []

    def publish_verdict(verdict: Verdict, **_: object) -> bool:
        if verdict.seq == 1:
            held.set()
            assert go_on.wait(WAIT_S)
        gone.append(verdict.seq)
        return True

    outside.publish_verdict = publish_verdict  # type: ignore[method-assign]
    triggers = [made.accept("", TERMS, camera=camera)[0] for camera in ("top", "top", "side", "top")]
    for trigger in triggers:
        trigger.deadline += WAIT_S
    if before == "deadline":
        triggers[0].deadline -= 2 * WAIT_S
    threads = [threading.Thread(target=made.settle, args=(trigger, OK)) for trigger in triggers[:2]]
    threads[0].start()
    assert held.wait(WAIT_S)
    threads[1].start()
    made.settle(triggers[2], OK)
    made.refuse(triggers[3], Reason.OVERRUN)
    threads[1].join(0.2)
    assert gone == [3, 4]
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert gone == [3, 4, 1, 2]


# --- alarms ----------------------------------------------------------------------------------------------------------


def alarms(*, several: bool) -> tuple[Alarms, list[tuple[str, bool, str]]]:
    outside: Any = Outside(Time())
    return Alarms(outside, ("camera",), has_several_cameras=several), outside.alarms


@pytest.mark.parametrize("several", [False, True])
def test_an_alarm_is_raised_and_ended_once(several: bool) -> None:
    """With several cameras its text names the one."""
    made, sent = alarms(several=several)
    assert sent == [("camera", False, "")]
    assert [made.set("camera", text, camera="top") for text in ("pulled", "pulled", "other", "", "")] == [
        True, False, False, True, False,
    ]  # fmt: skip
    assert sent[1:] == [("camera", True, "top: pulled" if several else "pulled"), ("camera", False, "")]


def test_an_alarm_lasts_while_any_camera_has_it() -> None:
    """It is the station's: on for the first, off with the last."""
    made, sent = alarms(several=True)
    for text, camera in (("a", "left"), ("b", "right"), ("", "left"), ("", "right")):
        assert made.set("camera", text, camera=camera)
    assert sent[1:] == [
        ("camera", True, "left: a"),
        ("camera", True, "left: a; right: b"),
        ("camera", True, "right: b"),
        ("camera", False, ""),
    ]


def test_counts_by_reason() -> None:
    """Results 0 and 3 by what led to them."""
    outside, told = Outside(Time()), []
    path = make_path(outside, journal_required=False, told=told)
    for decision in (OK, NOT_OK, REVIEW, BROKEN, BROKEN):
        trigger, _ = path.accept("", TERMS)
        path.settle(trigger, decision)
    trigger, _ = path.accept("", TERMS)
    path.refuse(trigger, Reason.OVERRUN)
    assert path._counts.by_result == [3, 1, 1, 1]
    assert path._counts.by_reason == {"review": 1, "engine": 2, "overrun": 1}
