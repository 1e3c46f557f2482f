"""Requests on ROOT/cmd/NAME: checked one by one, done, answered on ROOT/ack/NAME.

    enabled? → readable? → not too many? → not retained? → serving? → not seen before? → done → acknowledged

`trigger`, `pause`, `resume` and `overrule` are done on paho's thread, since none of them waits for anything. The others load
models or write files: they are done one after the other on a thread of their own, and acknowledged when they are
in force.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from flawline_edge.changes import Changes, Refused
from flawline_edge.journal import Journal
from flawline_edge.lane import Lane
from flawline_edge.messages import Command, Reply
from flawline_edge.requests import (
    REMEMBER_S,
    Duplicates,
    LabelRequest,
    RateLimit,
    RecipeRequest,
    Request,
    RequestError,
    ThresholdRequest,
    TriggerRequest,
    parse_request,
)
from flawline_inspect.clock import wall_clock

__all__ = ["Acknowledge", "Commands"]

_log = logging.getLogger(__name__)

TRIGGERS = (500.0, 500.0)
"""Triggers a second, and at once, for each camera; more than the fastest line has."""
OTHERS = (10.0, 30.0)
"""The same for all other commands together."""
REFUSALS = (50.0, 100.0)
"""How many refusals are answered: whoever floods the station gets no flood back."""
_WAITING = 8
_DETAIL_LENGTH = 200
_JOIN_S = 2.0
_OF_THE_STATION = frozenset({"pause", "resume", "reload", "rollback", "overrule"})
"""What is understood on ROOT/cmd of a station with several cameras, where no camera is named."""


class Acknowledge(Protocol):
    """Sends an answer, below the camera's topic if one is named, or where the command asks for it."""

    def __call__(
        self, name: str, payload: dict[str, object], *, camera: str = "", reply: Reply | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Task:
    """A request on its way; `lane` is None where the station is asked. Without a request nobody waits for an answer."""

    command: Command
    lane: Lane | None
    request: Request | None

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def key(self) -> str:
        return f"{self.command.camera}/{self.name}/{self.request_id}"

    @property
    def request_id(self) -> str:
        return self.request.id if self.request is not None else ""


class Commands:
    """A context manager around the thread for what takes long.

    `lanes` are by camera as in the topics, with "" for the only one. `enabled` names the commands that are obeyed;
    `status(lane)` gives what every answer carries beside its own keys. Requests are answered `not_ready` until `open` and
    after `close`.
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        changes: Changes,
        journal: Journal,
        *,
        enabled: frozenset[str],
        acknowledge: Acknowledge,
        status: Callable[[Lane | None], dict[str, object]],
        journal_required: bool,
    ) -> None:
        self._lanes = lanes
        self._changes = changes
        self._journal = journal
        self._enabled = enabled
        self._acknowledge = acknowledge
        self._status = status
        self._journal_required = journal_required
        self._triggers = {camera: RateLimit(*TRIGGERS) for camera in lanes}
        self._others, self._refusals = RateLimit(*OTHERS), RateLimit(*REFUSALS)
        limits = [*self._triggers.values(), self._others]
        self._duplicates = Duplicates(sum(limit.most_within(REMEMBER_S) for limit in limits))
        self._waiting: queue.Queue[_Task | None] = queue.Queue(_WAITING)
        self._is_open = False
        self._thread = threading.Thread(target=self._work, name="commands", daemon=True)

    def __enter__(self) -> Commands:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return  # it is behind by eight changes; the process ends without it
        self._thread.join(_JOIN_S)

    def open(self) -> None:
        self._is_open = True

    def close(self) -> None:
        self._is_open = False

    def reload(self) -> None:
        """As asked for by SIGHUP: not acknowledged, but logged."""
        try:
            self._later(_Task(Command("", "reload", b""), None, None))
        except RequestError as exc:
            _log.warning("reload is refused: %s", exc)

    def on_command(self, command: Command) -> None:
        """On paho's thread: must not wait for anything. A retained request would come again with every connection."""
        try:
            task = self._checked(command)
            if task is not None:
                self._do(task)
        except RequestError as exc:
            if self._refusals.allows():
                self._send(command, exc.id, exc.code, self._lanes.get(command.camera))

    def _checked(self, command: Command) -> _Task | None:
        camera, name = command.camera, command.name
        lane = self._lanes.get(camera)
        is_known = lane is not None or (not camera and name in _OF_THE_STATION)
        if name not in self._enabled or (name == "trigger" and lane is not None and lane.trigger.kind != "mqtt"):
            raise RequestError("not_enabled")
        request = parse_request(command.payload, name)
        if not is_known:
            raise RequestError("no_camera", request.id)
        if not (self._triggers[camera] if name == "trigger" else self._others).allows():
            raise RequestError("too_many", request.id)
        if command.retained:
            raise RequestError("retained", request.id)
        if not self._is_open:
            raise RequestError("not_ready", request.id)
        task = _Task(command, lane, request)
        if not self._duplicates.is_new(task.key):
            self._answer(task, duplicate=True)
            return None
        return task

    def _do(self, task: _Task) -> None:
        match task.request:
            case TriggerRequest() as request if task.lane is not None:
                _, committed = task.lane.intake.offer(request.part, trigger_id=request.trigger)
                committed.add_done_callback(lambda done: self._answer_acceptance(task, done))
            case LabelRequest() as request:
                kept = self._journal.label(request.boot, request.seq, request.label, wall_clock())
                kept.add_done_callback(lambda done: self._answer_label(task, done))
            case _ if task.name in ("pause", "resume"):
                for lane in [task.lane] if task.lane is not None else self._lanes.values():
                    lane.pause(task.name == "pause")
                self._answer(task)
            case _:
                self._later(task)

    def _later(self, task: _Task) -> None:
        try:
            self._waiting.put_nowait(task)
        except queue.Full:
            self._duplicates.forget(task.key)
            raise RequestError("busy", task.request_id) from None

    # --- on the thread for what takes long --------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            try:
                detail = self._change(task)
            except Refused as exc:
                self._failed(task, exc.code, str(exc))
            except Exception as exc:
                # The top of the thread: the next command must still be served.
                _log.exception("%s failed", task.name)
                self._failed(task, "failed", f"{type(exc).__name__}, see the log")
            else:
                _log.info("%s: done%s", task.name, f" ({detail})" if detail else "")
                self._answer(task, detail=detail)

    def _change(self, task: _Task) -> str:
        request = task.request
        if not self._is_open:
            raise Refused("not_ready")
        if isinstance(request, RecipeRequest):
            if task.name == "rollback":
                return self._changes.rollback(request.recipe)
            assert task.lane is not None
            return self._changes.recipe(task.lane, request.recipe)
        if isinstance(request, ThresholdRequest):
            assert task.lane is not None
            return self._changes.threshold(task.lane, request.value)
        return self._changes.reload()

    def _failed(self, task: _Task, code: str, sentence: str) -> None:
        _log.warning("%s is refused: %s", task.name, sentence or code)
        self._duplicates.forget(task.key)
        self._answer(task, error=code, detail=sentence)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answer_acceptance(self, task: _Task, committed: Future[None]) -> None:
        refused = committed.exception() is not None and self._journal_required
        self._answer(task, error="journal" if refused else "")

    def _answer_label(self, task: _Task, kept: Future[bool]) -> None:
        error = "journal" if kept.exception() is not None else "" if kept.result() else "unknown_part"
        if error:
            self._duplicates.forget(task.key)
        self._answer(task, error=error)

    def _answer(self, task: _Task, *, error: str = "", detail: str = "", duplicate: bool = False) -> None:
        if task.request is None:
            return
        more: dict[str, object] = {}
        if detail:
            more["detail"] = detail[:_DETAIL_LENGTH]
        if duplicate:
            more["duplicate"] = True
        self._send(task.command, task.request_id, error, task.lane, **more)

    def _send(self, command: Command, request_id: str, error: str, lane: Lane | None, **more: object) -> None:
        payload: dict[str, object] = {"id": request_id, "ok": not error, "error": error, **self._status(lane), **more}
        self._acknowledge(command.name, payload, camera=command.camera, reply=command.reply)
