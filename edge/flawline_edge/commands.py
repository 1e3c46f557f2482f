"""Requests on ROOT/cmd/NAME: parsed strictly, answered always. This station knows `trigger`."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from flawline_edge.trigger import Trigger
from flawline_edge.verdict_path import VerdictPath
from flawline_inspect.decision import Decision
from flawline_inspect.errors import InputError
from flawline_inspect.verdict import Reason, is_wire_id

__all__ = ["Duplicates", "Request", "TriggerCommands", "parse_request"]

WAITING_TRIGGERS = 16
"""Triggers that may wait behind the one in work; the next one gets `overrun` at once."""

_MAX_REQUEST_ID = 64
_REMEMBER_S = 60.0
_REMEMBER_MANY = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """`id` names the request in its acknowledgement; for `trigger` it is the trigger's own id when none is given."""

    id: str
    trigger: str
    part: str


class RequestError(InputError):
    """`code` is what the acknowledgement carries as `error`; `id` the request's, as far as it could be read."""

    def __init__(self, code: str, request_id: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.id = request_id


def parse_request(payload: bytes) -> Request:
    """A `trigger` request: `{"id":"17","trigger":"T-00918","part":"SN12345"}`; `part` may be missing.

    Raises `RequestError` with the code `bad_json` or `bad_id`.
    """
    try:
        data = json.loads(payload.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as exc:
        raise RequestError("bad_json") from exc
    if not isinstance(data, dict):
        raise RequestError("bad_json")
    request_id = data.get("id", "")
    if request_id == "":
        request_id = data.get("trigger", "")
    if not isinstance(request_id, str) or len(request_id) > _MAX_REQUEST_ID or not request_id.isascii():
        raise RequestError("bad_id")
    trigger, part = data.get("trigger"), data.get("part", "")
    ids_are_good = (
        isinstance(trigger, str) and is_wire_id(trigger) and isinstance(part, str) and (not part or is_wire_id(part))
    )
    if not ids_are_good:
        raise RequestError("bad_id", request_id)
    assert isinstance(trigger, str)
    return Request(request_id, trigger, part)


class Duplicates:
    """Remembers request ids for 60 s, 4096 of them at most: MQTT delivers at least once, a part is inspected once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, request_id: str) -> bool:
        now = self._clock()
        with self._lock:
            while self._seen and (
                len(self._seen) > _REMEMBER_MANY or now - next(iter(self._seen.values())) > _REMEMBER_S
            ):
                self._seen.popitem(last=False)
            if request_id in self._seen:
                return False
            self._seen[request_id] = now
            return True


class TriggerCommands:
    """ROOT/cmd/trigger: from a message to an accepted trigger that waits for its frame.

    `acknowledge(name, payload)` sends an answer; `status()` gives what every answer carries beside its own keys.
    Requests are answered `not_ready` until `open` and after `close`.
    """

    def __init__(
        self,
        path: VerdictPath,
        *,
        acknowledge: Callable[[str, dict[str, object]], None],
        status: Callable[[], dict[str, object]],
        journal_required: bool,
    ) -> None:
        self._path = path
        self._acknowledge = acknowledge
        self._status = status
        self._journal_required = journal_required
        self._duplicates = Duplicates()
        self._waiting: queue.Queue[Trigger] = queue.Queue(WAITING_TRIGGERS)
        self._open = False

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        """Accept no more, and give what still waits its Undefined `stopped`."""
        self._open = False
        while (trigger := self.next(timeout_s=0.0)) is not None:
            self._path.settle(trigger, Decision.undefined(Reason.STOPPED))

    @property
    def waiting(self) -> int:
        """Triggers that wait for the one in work."""
        return self._waiting.qsize()

    def next(self, *, timeout_s: float) -> Trigger | None:
        """The trigger that has waited longest."""
        try:
            return self._waiting.get(timeout=timeout_s) if timeout_s else self._waiting.get_nowait()
        except queue.Empty:
            return None

    def on_command(self, name: str, payload: bytes, retained: bool = False) -> None:
        """On paho's thread: must not wait for anything. A retained request would come again with every connection."""
        if name != "trigger":
            self._answer(name, "", error="not_enabled")
            return
        try:
            request = parse_request(payload)
        except RequestError as exc:
            self._answer(name, exc.id, error=exc.code)
            return
        if retained:
            self._answer(name, request.id, error="retained")
            return
        if not self._open:
            self._answer(name, request.id, error="not_ready")
            return
        if not self._duplicates.is_new(request.id):
            self._answer(name, request.id, duplicate=True)
            return
        trigger, committed = self._path.accept(request.part, trigger_id=request.trigger)
        committed.add_done_callback(partial(self._answer_acceptance, request.id))
        try:
            self._waiting.put_nowait(trigger)
        except queue.Full:
            self._path.refuse(trigger, Reason.OVERRUN)

    def _answer_acceptance(self, request_id: str, committed: Future[None]) -> None:
        refused = committed.exception() is not None and self._journal_required
        self._answer("trigger", request_id, error="journal" if refused else "")

    def _answer(self, name: str, request_id: str, *, error: str = "", duplicate: bool = False) -> None:
        payload: dict[str, object] = {"id": request_id, "ok": not error, "error": error, **self._status()}
        if duplicate:
            payload["duplicate"] = True
        self._acknowledge(name, payload)
