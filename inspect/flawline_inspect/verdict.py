"""The verdict: one per accepted trigger, and its form on the wire.

Result codes are those of OPC 40001-101, ResultEvaluationEnum. The wire form is one flat, compact ASCII JSON object of at
most 255 bytes with a fixed key order, because that is what the smallest PLC readers take.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum, IntEnum
from typing import Any

from flawline_inspect.errors import InputError

__all__ = ["VERDICT_SCHEMA", "Reason", "Result", "Verdict", "is_wire_id", "wire_id"]

WIRE_LIMIT_BYTES = 255
_ID = re.compile(r"[A-Za-z0-9._:-]{1,16}\Z")
_ID_LENGTH = 16
_SCORE_LIMIT = 99_999.9999
_MS_LIMIT = 99_999.9
"""Scores are raw in the graph and the journal; on the wire numbers saturate here to stay inside 255 bytes."""


class Result(IntEnum):
    """OPC 40001-101 ResultEvaluationEnum. Everything but OK is a reject for the PLC."""

    UNDEFINED = 0
    OK = 1
    NOT_OK = 2
    NOT_DECIDABLE = 3

    @property
    def label(self) -> str:
        return ("Undefined", "OK", "NotOK", "NotDecidable")[self]


class Reason(str, Enum):
    """Why a result is 0 (up to `STOPPED`) or 3 (`HEALTH`, `REVIEW`); empty for 1 and 2."""

    NONE = ""
    DEADLINE = "deadline"
    OVERRUN = "overrun"
    CAMERA = "camera"
    ENGINE = "engine"
    NOT_FINITE = "not_finite"
    JOURNAL = "journal"
    PAUSED = "paused"
    RECIPE = "recipe"
    RESTART = "restart"
    STOPPED = "stopped"
    HEALTH = "health"
    REVIEW = "review"


_NOT_DECIDABLE_REASONS = frozenset({Reason.HEALTH, Reason.REVIEW})


def is_wire_id(text: str) -> bool:
    """Whether `text` may be a trigger or part id: 1 to 16 of `A-Za-z0-9._:-`."""
    return bool(_ID.match(text))


def wire_id(text: str) -> str:
    """A file's stem or the like as a part id: other characters become `-`, and the last 16 are kept.

    The end is kept because that is where counters stand: `capture_2026-11-20_000417` stays distinguishable.
    """
    return re.sub(r"[^A-Za-z0-9._:-]", "-", text)[-_ID_LENGTH:]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the station says of one part.

    `captured` is seconds since the epoch (wall clock, for people only); `ms` runs from trigger to decision on the
    monotonic clock. `score` and `threshold` are in the graph's units; `score` is 0 when the result is UNDEFINED.
    """

    seq: int
    boot: str
    trigger: str
    part: str
    result: Result
    reason: Reason
    score: float
    threshold: float
    recipe: int
    model: str
    captured: float
    ms: float

    def __post_init__(self) -> None:
        if not is_wire_id(self.trigger):
            raise InputError(f"trigger id {self.trigger!r} is not 1 to 16 of A-Za-z0-9._:-")
        if self.part and not is_wire_id(self.part):
            raise InputError(f"part id {self.part!r} is not at most 16 of A-Za-z0-9._:-")
        expected = {
            Result.OK: self.reason is Reason.NONE,
            Result.NOT_OK: self.reason is Reason.NONE,
            Result.NOT_DECIDABLE: self.reason in _NOT_DECIDABLE_REASONS,
            Result.UNDEFINED: self.reason is not Reason.NONE and self.reason not in _NOT_DECIDABLE_REASONS,
        }
        if not expected[self.result]:
            raise InputError(f"result {self.result.label} cannot have the reason {self.reason.value!r}")
        if self.result is Result.UNDEFINED and self.score != 0.0:
            raise InputError(f"an Undefined result has score 0, found {self.score}")

    def to_json(self) -> str:
        """The wire form: ASCII, no spaces, keys in the contract's order, 4 decimals, no exponent."""
        payload = (
            f'{{"seq":{self.seq},"boot":"{self.boot}","trigger":"{self.trigger}","part":"{self.part}",'
            f'"result":{int(self.result)},"reason":"{self.reason.value}",'
            f'"score":{_decimal(self.score)},"threshold":{_decimal(self.threshold)},'
            f'"recipe":{self.recipe},"model":"{self.model}","time":"{wall_time(self.captured)}",'
            f'"ms":{min(max(0.0, self.ms), _MS_LIMIT):.1f}}}'
        )
        assert len(payload) <= WIRE_LIMIT_BYTES and payload.isascii(), payload
        return payload

    def to_code(self) -> str:
        """`seq;trigger;result` for PLCs without a JSON reader; never a bare code, which could belong to any part."""
        return f"{self.seq};{self.trigger};{int(self.result)}"

    @classmethod
    def from_json(cls, payload: str | bytes) -> Verdict:
        """Parse the wire form; the inverse of `to_json` up to its rounding. Raises `InputError`."""
        try:
            raw: dict[str, Any] = json.loads(payload, parse_constant=_refuse_constant)
            return cls(
                seq=int(raw["seq"]),
                boot=str(raw["boot"]),
                trigger=str(raw["trigger"]),
                part=str(raw["part"]),
                result=Result(raw["result"]),
                reason=Reason(raw["reason"]),
                score=float(raw["score"]),
                threshold=float(raw["threshold"]),
                recipe=int(raw["recipe"]),
                model=str(raw["model"]),
                captured=datetime.strptime(raw["time"], "%Y-%m-%dT%H:%M:%S.%fZ")
                .replace(tzinfo=timezone.utc)
                .timestamp(),
                ms=float(raw["ms"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise InputError(f"not a verdict: {exc}") from exc


def _decimal(value: float) -> str:
    assert math.isfinite(value), "a non-finite score never leaves as a number: it is Undefined, not_finite"
    text = f"{min(max(value, -_SCORE_LIMIT), _SCORE_LIMIT):.4f}"
    return "0.0000" if text == "-0.0000" else text


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that a verdict may have")


def wall_time(epoch_s: float) -> str:
    """UTC with milliseconds, as on the wire: `2026-11-20T10:07:33.123Z`."""
    stamp = datetime.fromtimestamp(epoch_s, timezone.utc)
    return f"{stamp:%Y-%m-%dT%H:%M:%S}.{stamp.microsecond // 1000:03d}Z"


VERDICT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "flawline verdict",
    "description": "One part's verdict. Consumers de-duplicate by (boot, seq) and pass a part on result 1 only.",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "seq": {
            "type": "integer",
            "minimum": 1,
            "description": "given at acceptance, from 1, +1 each, per station and boot",
        },
        "boot": {
            "type": "string",
            "pattern": "^[0-9a-f]{8}$",
            "description": "which start of the station this is",
        },
        "trigger": {
            "type": "string",
            "pattern": "^[A-Za-z0-9._:-]{1,16}$",
            "description": "F<seq> when not triggered",
        },
        "part": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{0,16}$"},
        "result": {
            "enum": [0, 1, 2, 3],
            "description": "0 Undefined, 1 OK, 2 NotOK, 3 NotDecidable (OPC 40001-101)",
        },
        "reason": {"enum": [reason.value for reason in Reason]},
        "score": {"type": "number", "description": "anomaly score, good parts' spreads; 0 when result is 0"},
        "threshold": {"type": "number", "description": "a score above it is NotOK"},
        "recipe": {"type": "integer", "minimum": 0},
        "model": {"type": "string", "maxLength": 20},
        "time": {
            "type": "string",
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
            "description": "wall clock at capture, UTC, for people: never compare it with another clock",
        },
        "ms": {"type": "number", "minimum": 0, "description": "trigger to decision, milliseconds"},
    },
}
VERDICT_SCHEMA["required"] = list(VERDICT_SCHEMA["properties"])
