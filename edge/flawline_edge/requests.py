"""What may stand in a message on ROOT/cmd/NAME: read strictly, and bounded in everything."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flawline_inspect.errors import InputError
from flawline_inspect.verdict import is_wire_id

__all__ = [
    "REMEMBER_S",
    "Duplicates",
    "LabelRequest",
    "PlainRequest",
    "RateLimit",
    "RecipeRequest",
    "Request",
    "RequestError",
    "ThresholdRequest",
    "TriggerRequest",
    "parse_request",
]

_MAX_REQUEST_ID = 64
_MAX_RECIPE = 65535
_MAX_SEQ = 2**63 - 1  # what SQLite can look for
_BOOT = re.compile(r"[0-9a-f]{8}\Z")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,15}\Z")
REMEMBER_S = 60.0
"""For how long the same id is a repetition."""


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """`id` names the request in its acknowledgement, and a repetition of it."""

    id: str


@dataclass(frozen=True, slots=True)
class TriggerRequest(PlainRequest):
    """`id` is the trigger's own where none is given."""

    trigger: str
    part: str


@dataclass(frozen=True, slots=True)
class RecipeRequest(PlainRequest):
    """`recipe` and `rollback`."""

    recipe: int


@dataclass(frozen=True, slots=True)
class ThresholdRequest(PlainRequest):
    value: float


@dataclass(frozen=True, slots=True)
class LabelRequest(PlainRequest):
    """`overrule`: somebody has looked at the part. `label` is `good` or the kind of defect, fit for a folder's name."""

    boot: str
    seq: int
    label: str


Request = PlainRequest | TriggerRequest | RecipeRequest | ThresholdRequest | LabelRequest


class RequestError(InputError):
    """`code` is what the acknowledgement carries as `error`; `id` the request's, as far as it could be read."""

    def __init__(self, code: str, request_id: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.id = request_id


def parse_request(payload: bytes, name: str = "trigger") -> Request:
    """The request of the command `name`, such as `{"id":"17","trigger":"T-00918","part":"SN12345"}`.

    `part` may be missing; a trigger's `id` may be, and is then the trigger's. Keys that are not known are left alone.
    Raises `RequestError` with the code `bad_json`, `bad_id` or `bad_value`.
    """
    try:
        data = json.loads(payload.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as exc:
        raise RequestError("bad_json") from exc
    if not isinstance(data, dict):
        raise RequestError("bad_json")
    request_id = data.get("id", "")
    if request_id == "" and name == "trigger":
        request_id = data.get("trigger", "")
    if not isinstance(request_id, str) or len(request_id) > _MAX_REQUEST_ID or not request_id.isascii():
        raise RequestError("bad_id")
    if name == "trigger":
        return _trigger(request_id, data)
    if not request_id:
        # Without one a repetition by the broker could not be told from a second request.
        raise RequestError("bad_id")
    try:
        return _REQUESTS[name](request_id, data)
    except (KeyError, TypeError, ValueError) as exc:
        raise RequestError("bad_value", request_id) from exc


def _trigger(request_id: str, data: dict[str, Any]) -> TriggerRequest:
    trigger, part = data.get("trigger"), data.get("part", "")
    ids_are_good = (
        isinstance(trigger, str) and is_wire_id(trigger) and isinstance(part, str) and (not part or is_wire_id(part))
    )
    if not ids_are_good:
        raise RequestError("bad_id", request_id)
    assert isinstance(trigger, str)
    return TriggerRequest(request_id, trigger, part)


def _recipe(request_id: str, data: dict[str, Any]) -> RecipeRequest:
    return RecipeRequest(request_id, _whole(data["recipe"], 0, _MAX_RECIPE))


def _threshold(request_id: str, data: dict[str, Any]) -> ThresholdRequest:
    value = data["value"]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= 1e30
        or not math.isfinite(value)
    ):
        raise ValueError("not a finite number")
    return ThresholdRequest(request_id, float(value))


def _label(request_id: str, data: dict[str, Any]) -> LabelRequest:
    boot, label = data["boot"], data["label"]
    if not _BOOT.match(boot) or not _LABEL.match(label):
        raise ValueError("not a boot, or not a label")
    return LabelRequest(request_id, boot, _whole(data["seq"], 1, _MAX_SEQ), label)


def _whole(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"not a whole number from {low} to {high}")
    return value


def _plain(request_id: str, data: dict[str, Any]) -> PlainRequest:
    return PlainRequest(request_id)


_REQUESTS: dict[str, Callable[[str, dict[str, Any]], Request]] = {
    "recipe": _recipe,
    "rollback": _recipe,
    "threshold": _threshold,
    "overrule": _label,
    "pause": _plain,
    "resume": _plain,
    "reload": _plain,
}


class Duplicates:
    """Remembers request ids for 60 s, `many` of them at most: MQTT delivers at least once, a part is inspected once.

    `many` has to be what the rate limit before it lets through in 60 s, or the oldest are forgotten too early.
    """

    def __init__(self, many: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._many = many
        self._clock = clock
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, request_id: str) -> bool:
        now = self._clock()
        with self._lock:
            while self._seen and (len(self._seen) > self._many or now - next(iter(self._seen.values())) > REMEMBER_S):
                self._seen.popitem(last=False)
            if request_id in self._seen:
                return False
            self._seen[request_id] = now
            return True

    def forget(self, request_id: str) -> None:
        """It was refused after all: the same id may be tried again."""
        with self._lock:
            self._seen.pop(request_id, None)


class RateLimit:
    """Lets through `burst` at once and `per_s` each second on average."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left, self._at = burst, clock()
        self._lock = threading.Lock()

    def most_within(self, seconds: float) -> int:
        """How many it lets through in any such time."""
        return math.ceil(self._burst + self._per_s * seconds)

    def allows(self) -> bool:
        """Whether this one is within the limit; only then it counts."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
            self._at = now
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True
