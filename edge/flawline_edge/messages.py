"""What the station says over MQTT: topics and payloads.

Payloads are ASCII without spaces, their keys in the contract's order: some PLCs read them with string functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from flawline_inspect.clock import wall_clock
from flawline_inspect.verdict import Verdict, wall_time

__all__ = ["Alarm", "Command", "Key", "Message", "Messages", "Reply", "StationState", "says_offline"]

_ALARM_TEXT_LENGTH = 160
_COMMAND_NAME_LENGTH = 32
_REPLY_TOPIC_LENGTH = 256

Key = tuple[str, int]
"""Boot and seq: what names a verdict."""


@dataclass(frozen=True, slots=True)
class StationState:
    """What ROOT/state says; the fields' order is the wire's.

    `state` is starting, ready, paused, fault, stopped, or offline (the will).
    """

    state: str
    boot: str
    recipe: int
    model: str
    engine: str
    precision: str
    reason: str = ""

    def to_json(self) -> str:
        """The wire form: ASCII, no spaces, keys in the contract's order."""
        return _compact(asdict(self))


class Alarm(NamedTuple):
    """What ROOT/alarm/NAME says; `since` is when it was raised or cleared, which a new text does not change."""

    active: bool
    since: str
    text: str

    @classmethod
    def following(cls, previous: Alarm | None, active: bool, text: str) -> Alarm:
        """The alarm as it is now; equal to `previous` if nothing has changed."""
        since = previous.since if previous is not None and previous.active == active else wall_time(wall_clock())
        return cls(active, since, text[:_ALARM_TEXT_LENGTH])

    def to_json(self) -> str:
        return _compact(self._asdict())


class Reply(NamedTuple):
    """Where a command wants its answer, and what shall stand in it (MQTT 5)."""

    topic: str
    correlation: bytes | None


class Command(NamedTuple):
    """What came on ROOT/cmd/`name`, or below a camera's name. `reply` None: on the acknowledgement's own topic."""

    camera: str
    name: str
    payload: bytes
    retained: bool = False
    reply: Reply | None = None


class Message(NamedTuple):
    """One message on its way; `key` is set if it is a verdict, live or, with `history`, late."""

    topic: str
    payload: str
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    key: Key | None = None
    history: bool = False
    correlation: bytes | None = None


class Messages:
    """The station's messages below `root`. A live verdict is worth something for `expiry_s`.

    `cameras` are the names that are levels of topics: those of a station with several, where verdicts, commands and
    their acknowledgements have each camera's own topics. A `camera` that is empty means the station's.
    """

    def __init__(self, root: str, expiry_s: int, *, scalar_topics: bool, cameras: Sequence[str] = ()) -> None:
        self.state_topic = f"{root}/state"
        self.command_topics = [f"{root}/cmd/+", *(f"{root}/{camera}/cmd/+" for camera in cameras)]
        self._cameras = dict(zip(self.command_topics, ("", *cameras), strict=True))
        self._root = root
        self._expiry_s = expiry_s
        self._scalar_topics = scalar_topics

    def state(self, state: StationState) -> Message:
        return Message(self.state_topic, state.to_json(), retain=True)

    def alarm(self, name: str, alarm: Alarm) -> Message:
        return Message(f"{self._root}/alarm/{name}", alarm.to_json(), retain=True)

    def heartbeat(self, count: int) -> Message:
        return Message(f"{self._root}/heartbeat", str(count), qos=0)

    def verdict(self, verdict: Verdict, camera: str = "") -> list[Message]:
        """The verdict itself first, then its code if the PLC wants one."""
        key, topic = (verdict.boot, verdict.seq), f"{self._below(camera)}/verdict"
        messages = [Message(topic, verdict.to_json(), expiry_s=self._expiry_s, key=key)]
        if self._scalar_topics:
            messages.append(Message(f"{topic}/code", verdict.to_code(), expiry_s=self._expiry_s))
        return messages

    def history(self, verdict: Verdict) -> Message:
        key = (verdict.boot, verdict.seq)
        return Message(f"{self._root}/history", verdict.to_json(), key=key, history=True)

    def acknowledgement(
        self, name: str, payload: dict[str, object], camera: str = "", reply: Reply | None = None
    ) -> Message:
        if reply is not None:
            return Message(reply.topic, _compact(payload), correlation=reply.correlation)
        return Message(f"{self._below(camera)}/ack/{name}", _compact(payload))

    def command(self, topic: str, payload: bytes, *, retained: bool, reply: Reply | None = None) -> Command | None:
        """What came on one of `command_topics`; None if the + of it stands for nothing that a command could be called.

        A reply is sent below the station's or camera's own ack/ only: it must not speak on any other topic because
        somebody asks it to.
        """
        below, _, name = topic.rpartition("/")
        camera = self._cameras.get(f"{below}/+")
        if camera is None or not name or not name.isascii() or len(name) > _COMMAND_NAME_LENGTH:
            return None
        if reply is not None and not self._may_reply_on(reply.topic, f"{self._below(camera)}/ack/"):
            reply = None
        return Command(camera, name, payload, retained, reply)

    def _may_reply_on(self, topic: str, below: str) -> bool:
        return topic.startswith(below) and len(topic) <= _REPLY_TOPIC_LENGTH and not set(topic) & set("+#\0")

    def _below(self, camera: str) -> str:
        return f"{self._root}/{camera}" if camera else self._root


def says_offline(payload: bytes) -> bool:
    """Whether this is a state, anybody's, that says offline."""
    try:
        return bool(json.loads(payload)["state"] == "offline")
    except (ValueError, KeyError, TypeError):
        return False


def _compact(payload: dict[str, Any]) -> str:
    return json.dumps(payload, ensure_ascii=True, separators=(",", ":"))
