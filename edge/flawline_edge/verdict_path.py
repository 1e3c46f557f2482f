"""The way of one part: accepted, judged, decided, committed, published, told.

Whoever takes a trigger's slot publishes its verdict, and the journal ends up saying what was published. Nothing after
the publication can delay it. The station's lanes share one path, since seq is the station's; any thread may call it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

from flawline_edge.cameras import CameraFrame
from flawline_edge.inspector import Inspector, Judgement
from flawline_edge.journal import Accepted, Journal, JournalError
from flawline_edge.messages import Message
from flawline_edge.publisher import Publisher
from flawline_edge.trigger import DeadlineClock, Terms, Trigger
from flawline_inspect.clock import wall_clock
from flawline_inspect.decision import Decision
from flawline_inspect.errors import EngineError, HealthError, PictureError
from flawline_inspect.verdict import Reason, Verdict

__all__ = ["Alarms", "Counts", "Inspection", "Observer", "VerdictPath"]

_log = logging.getLogger(__name__)


DEADLINE_GRACE_S = 0.1
"""How long the deadline's own verdict waits for a broker that is behind."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What observers get: a verdict and what led to it. Durations in milliseconds.

    `late`: the deadline had passed and this verdict was not published. `overhead_ms` runs from the trigger, or the
    frame's arrival where that is later, to the verdict's hand-over to MQTT, less inference; `journal_ms` is the wait
    for the disk in it. `capture_ms` is from the trigger to the frame's arrival, 0 for a frame that was its own trigger.
    `camera` is the name of the part's camera.
    """

    verdict: Verdict
    frame: CameraFrame | None
    judgement: Judgement | None
    late: bool = False
    overhead_ms: float = 0.0
    journal_ms: float = 0.0
    capture_ms: float = 0.0
    camera: str = ""


Observer = Callable[[Inspection], None]
"""Called after publishing, one call at a time, by whichever thread published; must return quickly."""


@dataclass(slots=True)
class Counts:
    """Since the start. `dropped`: frames that were replaced by a newer one; they were no triggers.

    `by_reason` has the reasons of results 0 and 3 only.
    """

    by_result: list[int]
    dropped: int = 0
    late: int = 0
    unjournaled: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)

    @property
    def inspected(self) -> int:
        return sum(self.by_result)


class Alarms:
    """Raises and ends ROOT/alarm/NAME, each once. The ones named are ended at the start: a crash may have left them on.

    An alarm is the station's. It is on as long as it is for any camera, and with several its text names them.
    """

    def __init__(self, publisher: Publisher, names: Sequence[str], *, has_several_cameras: bool = False) -> None:
        self._publisher = publisher
        self._has_several_cameras = has_several_cameras
        self._lock = threading.Lock()
        self._active: dict[str, dict[str, str]] = {}
        for name in names:
            publisher.alarm(name, False)

    def set(self, name: str, text: str, *, camera: str = "") -> bool:
        """Raise an alarm, for one camera or (empty) for the station, or end it with an empty text.

        Returns whether that changed anything; another text for what is raised already does not.
        """
        active = self._active.get(name)
        if not text and not active:  # the ordinary case, asked after every part
            return False
        with self._lock:
            active = self._active.setdefault(name, {})
            if bool(text) == (camera in active):
                return False
            if text:
                active[camera] = text
            else:
                del active[camera]
            self._publisher.alarm(name, bool(active), "; ".join(self._named(*each) for each in sorted(active.items())))
        return True

    def _named(self, camera: str, text: str) -> str:
        return f"{camera}: {text}" if camera and self._has_several_cameras else text


class VerdictPath:
    """One station's parts, from acceptance to publication. A context manager: its deadline clock runs inside.

    `with_cameras`: a verdict goes out below its camera's name. `journal_required`: a verdict that cannot be written down
    becomes Undefined `journal` instead of going out.
    """

    def __init__(
        self,
        *,
        boot: str,
        journal: Journal,
        publisher: Publisher,
        alarms: Alarms,
        deadline_s: float,
        journal_required: bool,
        counts: Counts,
        observers: Sequence[Observer] = (),
        with_cameras: bool = False,
    ) -> None:
        self._boot = boot
        self._journal = journal
        self._publisher = publisher
        self._alarms = alarms
        self._deadline_s = deadline_s
        self._journal_required = journal_required
        self._counts = counts
        self._observers = tuple(observers)
        self._with_cameras = with_cameras
        self._seq = 0
        self._accepting = threading.Lock()
        self._telling = threading.Lock()
        # One a camera, held from taking a slot until its verdict has gone: or the part behind it could go first.
        # Refusals need no turn, as they wait for nothing: paho's thread, which gives them, must not either.
        self._turns: dict[str, threading.Lock] = {}
        self._clock = DeadlineClock(self.publish_deadline)

    def __enter__(self) -> VerdictPath:
        self._clock.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._clock.__exit__(*exc)

    def accept(
        self,
        part: str,
        terms: Terms,
        *,
        camera: str = "",
        trigger_id: str | None = None,
        started: float | None = None,
    ) -> tuple[Trigger, Future[None]]:
        """Give a trigger its seq, write it down (not waited for here) and start its deadline.

        Without `trigger_id` it is `F<seq>`; `started` (monotonic, s) is now unless given. The future is done when the
        journal has it.
        """
        with self._accepting:
            self._turns.setdefault(camera, threading.Lock())
            self._seq += 1
            seq = self._seq
            now = time.monotonic()
            started = now if started is None else started
            trigger = Trigger(
                seq=seq,
                id=trigger_id or f"F{seq}",
                part=part,
                accepted=wall_clock(),
                started=started,
                deadline=started + self._deadline_s,
                terms=terms,
                camera=camera,
            )
            committed = self._journal.accept(
                Accepted(
                    boot=self._boot,
                    seq=seq,
                    trigger=trigger.id,
                    part=part,
                    recipe=terms.recipe,
                    model=terms.model,
                    threshold=terms.threshold,
                    accepted=trigger.accepted,
                    camera=camera if self._with_cameras else "",
                )
            )
            self._clock.watch(trigger)
        return trigger, committed

    def inspect(self, trigger: Trigger, frame: CameraFrame, inspector: Inspector) -> None:
        """Judge the frame and settle the trigger, whatever happens on the way."""
        judgement: Judgement | None = None
        camera = trigger.camera
        try:
            judgement = inspector.judge(frame.picture)
            decision = judgement.decision
        except HealthError as exc:
            if self._alarms.set("health", str(exc), camera=camera):
                _log.warning("trigger %s: %s", trigger.id, exc)
            decision = Decision.unhealthy()
        except PictureError as exc:
            if self._alarms.set("health", str(exc), camera=camera):
                _log.warning("trigger %s: %s", trigger.id, exc)
            decision = Decision.undefined(Reason.CAMERA)
        except EngineError as exc:
            _log.error("trigger %s: %s", trigger.id, exc)
            self._alarms.set("engine", str(exc), camera=camera)
            decision = Decision.undefined(Reason.ENGINE)
        except Exception as exc:
            # One part that nobody foresaw must not stop the line; it gets its verdict, and the log the traceback.
            _log.exception("trigger %s: inspection failed", trigger.id)
            self._alarms.set("engine", f"inspection failed: {type(exc).__name__}", camera=camera)
            decision = Decision.undefined(Reason.ENGINE)
        else:
            self._alarms.set("engine", "", camera=camera)
            self._alarms.set("health", "", camera=camera)
        self.settle(trigger, decision, frame, judgement)

    def settle(
        self,
        trigger: Trigger,
        decision: Decision,
        frame: CameraFrame | None = None,
        judgement: Judgement | None = None,
    ) -> None:
        """Decided: commit, take the slot, publish, tell. `frame` and `judgement` are None where there are none."""
        verdict = self._verdict(trigger, decision, frame)
        before = time.monotonic()
        commit = self._journal.decide(verdict)
        messages = self._publisher.messages_of(verdict, self._level(trigger))  # while the disk works
        refused = False
        try:
            commit.result(timeout=max(0.0, trigger.deadline - before))
        except JournalError:
            verdict, refused = self._unjournaled(trigger, verdict, frame), True
            messages = self._publisher.messages_of(verdict, self._level(trigger))
        except FutureTimeoutError:
            pass  # the deadline clock has the trigger by now, or takes it in the next instant
        else:
            self._alarms.set("journal", "")
        journal_ms = 1e3 * (time.monotonic() - before)
        capture_ms = 1e3 * max(0.0, frame.arrived_monotonic - trigger.started) if frame is not None else 0.0
        with self._turns[trigger.camera]:
            in_time = trigger.decide(time.monotonic())
            if in_time:
                if refused:  # the journal keeps what goes out and writes it when the disk is back
                    self._journal.decide(verdict, overrules=True)
                self._publish(trigger, verdict, until=trigger.deadline, messages=messages)
        if in_time:
            # A frame that waited in the camera is not the daemon's overhead: count from the start of its journey here.
            began = max(trigger.started, frame.arrived_monotonic if frame is not None else trigger.started)
            spent_ms = 1e3 * (time.monotonic() - began) - (judgement.infer_ms if judgement is not None else 0.0)
            self._tell(Inspection(verdict, frame, judgement, False, spent_ms, journal_ms, capture_ms, trigger.camera))
        else:
            self.publish_deadline(trigger)  # the clock's thread may not have come to it yet
            self._tell(Inspection(verdict, frame, judgement, True, 0.0, journal_ms, capture_ms, trigger.camera))

    def refuse(self, trigger: Trigger, reason: Reason) -> None:
        """Undefined at once, without waiting for anything: on whatever thread this is."""
        if trigger.refuse():
            verdict = self._verdict(trigger, Decision.undefined(reason), None)
            self._publish(trigger, verdict)
            self._journal.decide(verdict, overrules=True)
            self._tell(Inspection(verdict, None, None, camera=trigger.camera))

    def publish_deadline(self, trigger: Trigger) -> None:
        """At the deadline, if nobody has taken the slot: publish first, the disk may be what is late."""
        with self._turns[trigger.camera]:
            if not trigger.expire(time.monotonic()):
                return
            verdict = self._verdict(trigger, Decision.undefined(Reason.DEADLINE), None)
            self._publish(trigger, verdict, until=time.monotonic() + DEADLINE_GRACE_S)
        self._journal.decide(verdict, overrules=True)
        self._tell(Inspection(verdict, None, None, camera=trigger.camera))

    def _publish(
        self,
        trigger: Trigger,
        verdict: Verdict,
        *,
        until: float | None = None,
        messages: Sequence[Message] | None = None,
    ) -> None:
        self._publisher.publish_verdict(verdict, until=until, camera=self._level(trigger), messages=messages)

    def _level(self, trigger: Trigger) -> str:
        """The camera's level in the verdict's topic, if there is one."""
        return trigger.camera if self._with_cameras else ""

    def _unjournaled(self, trigger: Trigger, verdict: Verdict, frame: CameraFrame | None) -> Verdict:
        """The disk refused. By policy the verdict goes out all the same, or becomes Undefined `journal`."""
        with self._accepting:  # not the lock of those who are told: they may be slow, and this verdict is not out yet
            self._counts.unjournaled += 1
        self._alarms.set("journal", "the journal cannot be written; check the disk")
        if self._journal_required:
            return self._verdict(trigger, Decision.undefined(Reason.JOURNAL), frame)
        return verdict

    def _verdict(self, trigger: Trigger, decision: Decision, frame: CameraFrame | None) -> Verdict:
        return Verdict(
            seq=trigger.seq,
            boot=self._boot,
            trigger=trigger.id,
            part=trigger.part,
            result=decision.result,
            reason=decision.reason,
            score=decision.score,
            threshold=trigger.terms.threshold,
            recipe=trigger.terms.recipe,
            model=trigger.terms.model,
            captured=frame.captured if frame is not None else trigger.accepted,
            ms=1e3 * (time.monotonic() - trigger.started),
        )

    def _tell(self, inspection: Inspection) -> None:
        with self._telling:
            if inspection.late:
                self._counts.late += 1
            else:
                self._count(inspection.verdict)
            for observer in self._observers:
                try:
                    observer(inspection)
                except Exception:
                    _log.exception("an observer failed; the verdict is not affected")

    def _count(self, verdict: Verdict) -> None:
        self._counts.by_result[verdict.result] += 1
        if reason := verdict.reason.value:
            self._counts.by_reason[reason] = self._counts.by_reason.get(reason, 0) + 1
