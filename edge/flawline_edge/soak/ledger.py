"""What a station was asked, what it promised and what it told, and whether that is one honest verdict for every part.

    every accepted trigger has one verdict, live or on history; (boot, seq) names it, whoever hears it twice counts it once
    a defective part is never OK, and nothing is OK on a picture from before its trigger or while nothing could be judged
    a live verdict is a new one: within its deadline, behind its camera's one before it, never of an earlier start

All times are `time.monotonic()` of the machine that listens.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from flawline_edge.messages import Key
from flawline_inspect.verdict import Reason, Result, Verdict

__all__ = ["Account", "Ledger", "Told"]

_NO_TURN = frozenset({Reason.OVERRUN, Reason.PAUSED, Reason.STOPPED, Reason.CAMERA, Reason.ENGINE})
"""Verdicts with these may be given at once, in front of those that wait."""


class Told(NamedTuple):
    """A verdict as it arrived; `camera` is the one that its live topic names, if it names one."""

    verdict: Verdict
    at: float
    live: bool
    camera: str = ""

    @property
    def key(self) -> Key:
        return self.verdict.boot, self.verdict.seq


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger says of a stretch of time; the lists are breaches of the contract, each a sentence.

    `accepted` are triggers that were acknowledged or have a verdict; `live` and `history` are verdicts by where they
    were heard first, `repeated` what was heard again. `by_reason` has the reasons of results 0 and 3. Latencies run from
    trigger to arrival, ms.
    """

    sent: int
    accepted: int
    refused: int
    live: int
    history: int
    repeated: int
    by_result: tuple[int, int, int, int]
    by_reason: dict[str, int]
    latencies_ms: tuple[float, ...]
    missing: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    wrong_ok: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @property
    def breaches(self) -> list[str]:
        return [*self.missing, *self.contradictions, *self.wrong_ok, *self.stale]

    def latency_ms(self, share: float) -> float:
        """The quantile of the latencies; NaN without any."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def median_ms(self) -> float:
        return median(self.latencies_ms) if self.latencies_ms else float("nan")


class Ledger:
    """Any thread may write into it.

    `within_s`: how long after its trigger, or its picture, a live verdict may arrive: deadline and a little.
    `is_defective(part)` says which parts must not pass. `captured(part)` says when a part's picture was taken, where its
    name tells, else None. `from_start`: the station was heard from its first seq on, so that the first one missing is seen.
    """

    def __init__(
        self,
        within_s: float,
        *,
        is_defective: Callable[[str], bool] = lambda part: False,
        captured: Callable[[str], float | None] = lambda part: None,
        from_start: bool = False,
    ) -> None:
        self._within_s = within_s
        self._is_defective = is_defective
        self._captured = captured
        self._from_start = from_start
        self._lock = threading.Lock()
        self._sent: dict[str, float] = {}
        self._acked: dict[str, tuple[float, bool]] = {}
        self._told: list[Told] = []
        self._broken: list[tuple[float, float]] = []
        self._known: dict[Key, float] = {}
        self.states: list[tuple[float, str, str]] = []
        """Arrival, state and reason."""
        self.alarms: list[tuple[float, str, bool]] = []
        """Arrival, name and whether it is on."""

    # --- written by who asks and listens -----------------------------------------------------------------------------

    def sent(self, trigger: str, at: float) -> None:
        with self._lock:
            self._sent[trigger] = at

    def not_sent(self, trigger: str) -> None:
        """It did not leave after all."""
        with self._lock:
            self._sent.pop(trigger, None)

    def acknowledged(self, trigger: str, ok: bool, at: float) -> None:
        with self._lock:
            self._acked.setdefault(trigger, (at, ok))

    def told(self, verdict: Verdict, at: float, *, live: bool, camera: str = "") -> None:
        with self._lock:
            self._told.append(Told(verdict, at, live, camera))

    def nothing_can_be_judged(self, since: float, until: float) -> None:
        """No trigger that was sent in this time may be OK: camera or engine were broken."""
        with self._lock:
            self._broken.append((since, until))

    def journaled(self, keys: Iterable[Key], at: float) -> None:
        """These have a row in the station's journal, so they were accepted, whether or not anybody was told."""
        with self._lock:
            for key in keys:
                self._known.setdefault(key, at)

    # --- read ----------------------------------------------------------------------------------------------------------

    def first_judged(self, sent_after: float) -> float | None:
        """When the first live OK or NotOK on a trigger that was sent after this arrived."""
        with self._lock:
            for told in self._told:
                is_judged = told.live and told.verdict.result in (Result.OK, Result.NOT_OK)
                if is_judged and self._sent.get(told.verdict.trigger, 0.0) > sent_after:
                    return told.at
        return None

    def account(self, since: float = 0.0) -> Account:
        """Of the triggers and verdicts from `since` on; what they follow is remembered from before."""
        with self._lock:
            first: dict[Key, Told] = {}
            repeated = 0
            contradictions = []
            for told in self._told:
                known = first.setdefault(told.key, told)
                if known is told:
                    continue
                repeated += told.at >= since
                if (known.verdict.result, known.verdict.trigger) != (told.verdict.result, told.verdict.trigger):
                    contradictions.append(f"{_name(told)} was told as {_what(known)} and as {_what(told)}")
            recent = [told for told in first.values() if told.at >= since]
            sent = {trigger for trigger, at in self._sent.items() if at >= since}
            acked = {trigger for trigger in sent if self._acked.get(trigger, (0.0, False))[1]}
            contradictions += self._told_twice(first.values(), sent)
            latencies = tuple(
                1e3 * (told.at - at)
                for told in recent
                if told.live and (at := self._sent.get(told.verdict.trigger)) is not None
            )
            results = Counter(told.verdict.result for told in recent)
            return Account(
                sent=len(sent),
                accepted=len(recent) + len(acked - {told.verdict.trigger for told in recent}),
                refused=sum(trigger in self._acked for trigger in sent - acked),
                live=sum(told.live for told in recent),
                history=sum(not told.live for told in recent),
                repeated=repeated,
                by_result=(results[Result.UNDEFINED], results[Result.OK], results[Result.NOT_OK], results[Result.NOT_DECIDABLE]),
                by_reason=dict(Counter(told.verdict.reason.value for told in recent if told.verdict.reason.value)),
                latencies_ms=latencies,
                missing=self._missing(first, acked, since),
                contradictions=contradictions,
                wrong_ok=[why for told in recent if (why := self._wrong_ok(told))],
                stale=self._stale(since),
            )  # fmt: skip

    def _missing(self, first: dict[Key, Told], acked: set[str], since: float) -> list[str]:
        answered = {told.verdict.trigger for told in first.values()}
        missing = [f"{trigger} was acknowledged and has no verdict" for trigger in sorted(acked - answered)]
        for boot in {boot for boot, _ in first}:
            seqs = sorted(seq for each, seq in first if each == boot)
            gaps = set(range(1 if self._from_start else seqs[0], seqs[-1])) - set(seqs)
            missing += [f"{boot}/{seq} has no verdict, though later ones have" for seq in sorted(gaps)]
        for (boot, seq), at in sorted(self._known.items()):
            if at >= since and (boot, seq) not in first:
                missing.append(f"{boot}/{seq} is in the journal and was never told")
        return missing

    def _told_twice(self, told: Iterable[Told], sent: set[str]) -> list[str]:
        """A trigger that was sent once and has two numbers."""
        numbers = Counter(each.verdict.trigger for each in told if each.verdict.trigger in sent)
        return [f"{trigger} has {n} verdicts of different (boot, seq)" for trigger, n in numbers.items() if n > 1]

    def _wrong_ok(self, told: Told) -> str:
        if told.verdict.result is not Result.OK:
            return ""
        part, asked = told.verdict.part, self._sent.get(told.verdict.trigger)
        captured = self._captured(part)
        if self._is_defective(part):
            return f"{_name(told)}: {part} is defective and was called OK"
        if captured is not None and asked is not None and captured < asked:
            return f"{_name(told)}: OK on a picture of {1e3 * (asked - captured):.0f} ms before its trigger"
        at = captured if captured is not None else asked
        if at is not None and any(since <= at <= until for since, until in self._broken):
            return f"{_name(told)}: OK while nothing could be judged"
        return ""

    def _stale(self, since: float) -> list[str]:
        stale = []
        boots: list[str] = []
        newest: dict[tuple[str, str], Told] = {}  # of each boot and camera: cameras do not wait for each other
        heard: set[Key] = set()
        for told in self._told:
            if not told.live or told.key in heard:
                continue
            heard.add(told.key)
            verdict = told.verdict
            if verdict.boot not in boots:
                boots.append(verdict.boot)
            why = ""
            asked = self._asked_at(verdict)
            if asked is not None and told.at > asked + self._within_s:
                why = f"{_name(told)} arrived live {told.at - asked:.2f} s after its trigger"
            elif verdict.boot != boots[-1]:
                why = f"{_name(told)} arrived live after one of boot {boots[-1]}"
            elif verdict.reason not in _NO_TURN:
                line = verdict.boot, told.camera
                before = newest.setdefault(line, told)
                if verdict.seq < before.verdict.seq:
                    why = f"{_name(told)}, {_what(told)}, arrived live after seq {before.verdict.seq}, {_what(before)}"
                else:
                    newest[line] = told
            if why and told.at >= since:
                stale.append(why)
        return stale

    def _asked_at(self, verdict: Verdict) -> float | None:
        asked = self._sent.get(verdict.trigger)
        return self._captured(verdict.part) if asked is None else asked


def _name(told: Told) -> str:
    return f"{told.verdict.boot}/{told.verdict.seq} ({told.verdict.trigger})"


def _what(told: Told) -> str:
    return f"{int(told.verdict.result)} {told.verdict.reason.value}".strip()
