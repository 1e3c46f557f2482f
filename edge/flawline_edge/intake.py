"""What a lane has to do, in one order: triggers that wait for their picture or their judgement, and changes.

A trigger's recipe and threshold are fixed when it is accepted. So a change takes its place in the line: the triggers
before it are still judged as they were accepted, those behind it as changed, and nobody has to wait for the line to be
empty.

    offer, change ──> [ trigger + picture | trigger ... | change | trigger ... ] ──> next
                             fill ^ next_to_capture
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from flawline_edge.cameras import CameraFrame
from flawline_edge.trigger import Terms, Trigger
from flawline_edge.verdict_path import VerdictPath
from flawline_inspect.decision import Decision
from flawline_inspect.verdict import Reason

__all__ = ["Change", "Intake", "Waiting"]

_STOPPED = Decision.undefined(Reason.STOPPED)


@dataclass(eq=False, slots=True)
class Waiting:
    """A trigger and, once it is known, its picture or why there is none."""

    trigger: Trigger
    answer: CameraFrame | Decision | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Change:
    """Something to do between two parts, on the thread that judges them."""

    apply: Callable[[], None]


class Intake:
    """One lane's line. Any thread may call any method.

    `limit` triggers may wait behind the one in work; one more is refused with `overrun` at once. `terms` are those of
    the next trigger.
    """

    def __init__(self, path: VerdictPath, camera: str, terms: Terms, limit: int) -> None:
        self._path = path
        self._camera = camera
        self._limit = limit
        self._changed = threading.Condition()
        self._line: deque[Waiting | Change] = deque()
        self._triggers = 0  # in the line
        self._terms = terms
        self._refusing: Reason | None = None
        self._is_over = False
        self._error: BaseException | None = None

    # --- those who ask ---------------------------------------------------------------------------------------------

    def offer(
        self,
        part: str = "",
        *,
        trigger_id: str | None = None,
        started: float | None = None,
        frame: CameraFrame | None = None,
    ) -> tuple[Trigger, Future[None]]:
        """Accept a trigger, with its picture where there is one already; the future is done when the journal has it.

        Where it cannot be served it has its Undefined verdict when this returns.
        """
        with self._changed:  # also around the acceptance: the line has the order of the seqs
            trigger, committed = self._accept(part, trigger_id, started)
            reason = self._refusing or (Reason.STOPPED if self._is_over else None)
            if reason is None and self._triggers >= self._limit:
                reason = Reason.OVERRUN
            if reason is None:
                self._line.append(Waiting(trigger, frame))
                self._triggers += 1
                self._changed.notify_all()
        if reason is not None:
            self._path.refuse(trigger, reason)
        return trigger, committed

    def accept(self, part: str, *, started: float | None = None) -> tuple[Trigger, list[Change]]:
        """Accept a trigger that does not wait in the line, since the caller serves it now: after these changes."""
        with self._changed:
            changes = []
            while self._line and isinstance(head := self._line[0], Change):
                changes.append(head)
                self._line.popleft()
            return self._accept(part, None, started)[0], changes

    def refuse_one(self, reason: Reason) -> None:
        """Accept a trigger and refuse it at once."""
        with self._changed:
            trigger, _ = self._accept("", None, None)
            reason = self._refusing or reason
        self._path.refuse(trigger, reason)

    def _accept(self, part: str, trigger_id: str | None, started: float | None) -> tuple[Trigger, Future[None]]:
        return self._path.accept(part, self._terms, camera=self._camera, trigger_id=trigger_id, started=started)

    def change(self, terms: Terms, apply: Callable[[], None]) -> None:
        """From the next trigger on, these terms; `apply` makes them true before it is judged."""
        with self._changed:
            self._terms = terms
            self._line.append(Change(apply))
            self._changed.notify_all()

    def refuse(self, reason: Reason | None) -> None:
        """From now on triggers are refused with this reason; None ends that. What waits already is served."""
        with self._changed:
            self._refusing = reason

    # --- those who serve -------------------------------------------------------------------------------------------

    def next_to_capture(self, timeout_s: float) -> Waiting | None:
        """The trigger that has waited longest for its picture."""
        with self._changed:
            self._changed.wait_for(lambda: self._first_without_picture() is not None, timeout_s)
            return self._first_without_picture()

    def fill(self, waiting: Waiting, answer: CameraFrame | Decision) -> None:
        """The picture of a trigger, or what it gets instead of a judgement."""
        with self._changed:
            waiting.answer = answer
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """No more pictures come, by the end of the source or for this reason: what has none gets `stopped`."""
        with self._changed:
            self._is_over = True
            self._error = self._error or error
            self._changed.notify_all()

    def begin(self) -> None:
        """Pictures come again."""
        with self._changed:
            self._is_over = False
            self._error = None

    def next(self, timeout_s: float) -> Waiting | Change | None:
        """The head of the line, as soon as it can be worked on."""
        with self._changed:
            self._changed.wait_for(lambda: self._head_is_complete() or (self._is_over and not self._line), timeout_s)
            if not self._head_is_complete():
                return None
            head = self._line.popleft()
            if isinstance(head, Waiting):
                self._triggers -= 1
                head.answer = head.answer or _STOPPED
            return head

    def next_change(self) -> Change | None:
        """A change at the head of the line, for those whose triggers do not wait in it and who have none now."""
        with self._changed:
            head = self._line[0] if self._line else None
            if not isinstance(head, Change):
                return None
            self._line.popleft()
            return head

    def give_up(self, decision: Decision) -> None:
        """Nobody serves for now: this is what the triggers get that wait. Changes stay for whoever serves next."""
        with self._changed:
            given_up = [each for each in self._line if isinstance(each, Waiting)]
            self._line = deque(each for each in self._line if isinstance(each, Change))
            self._triggers = 0
        for waiting in given_up:
            self._path.settle(waiting.trigger, decision)

    def drain(self) -> None:
        """Apply the changes and give the triggers that still wait their `stopped`. For when nobody serves any more."""
        while True:
            with self._changed:
                if not self._line:
                    return
                head = self._line.popleft()
                self._triggers -= isinstance(head, Waiting)
            if isinstance(head, Change):
                head.apply()
            else:
                self._path.settle(head.trigger, _STOPPED)

    # --- those who look --------------------------------------------------------------------------------------------

    @property
    def terms(self) -> Terms:
        return self._terms

    @property
    def depth(self) -> int:
        """How many triggers wait."""
        return self._triggers

    @property
    def is_over(self) -> bool:
        """Whether no more pictures come and nothing waits."""
        with self._changed:
            return self._is_over and not self._line

    @property
    def error(self) -> BaseException | None:
        """Why no more pictures come, where the source did not just end."""
        return self._error

    def _first_without_picture(self) -> Waiting | None:
        return next((each for each in self._line if isinstance(each, Waiting) and each.answer is None), None)

    def _head_is_complete(self) -> bool:
        if not self._line:
            return False
        head = self._line[0]
        return isinstance(head, Change) or head.answer is not None or self._is_over
