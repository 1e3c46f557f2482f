"""Requests on ROOT/cmd/NAME: parsed strictly, answered always. This station knows `trigger`."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flawline_inspect.errors import InputError
from flawline_inspect.verdict import is_wire_id

__all__ = ["Duplicates", "Request", "parse_request"]

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
    request_id = data.get("id", data.get("trigger", ""))
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
