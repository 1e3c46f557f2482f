"""The station's side of MQTT: verdicts, state, heartbeat, alarms, history, commands.

Each connection is a new paho client, because paho sends again what an old one still holds, with a fresh
expiry: a stale verdict would look new to the PLC. What was not acknowledged is left to the journal and goes
to ROOT/history.

Three threads: paho's (callbacks), one that owns the connection's life (connect, heartbeat, watch, back off)
and one that reads the journal for history, so that a slow disk delays nothing else. None of paho's own
bookkeeping is relied on: `MQTTMessageInfo` is wrong after a reconnect, `is_connected()` stays true when
paho's thread is dead, and `loop_stop()` joins without a limit.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from flawline_edge.journal import Journal, JournalError
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import BrokerError
from flawline_inspect.verdict import Verdict, wall_time

if TYPE_CHECKING:
    from flawline_inspect.config import MqttConfig, TlsConfig

__all__ = ["Counters", "Publisher", "StationState"]

_log = logging.getLogger(__name__)

KEEPALIVE_S = 5
BACKOFF_S = (1.0, 30.0)
"""Shortest and longest pause between two attempts to connect."""
STABLE_S = 10.0
"""A connection that lasted this long resets the backoff; a shorter one counts as a failed attempt."""
CONNECT_TIMEOUT_S = 5.0
ACK_TIMEOUT_S = 10.0
"""A message without PUBACK for this long means a dead connection, whatever paho says."""
HEARTBEAT_S = 1.0
HISTORY_INTERVAL_S = 0.02
"""One history message in this time: at most 50 a second, so that live verdicts find the broker idle."""
COMMAND_LIMIT_BYTES = 1024

_HISTORY_POLL_S = 0.5
_HISTORY_PAGE = 50
_HISTORY_IN_FLIGHT = 8
_MAX_IN_FLIGHT = 20
"""paho's own limit and mosquitto's: beyond it paho would queue a verdict, and send it late."""
_COMMAND_NAME_LENGTH = 32
_ALARM_TEXT_LENGTH = 160
_GOODBYE_S = 1.0
_MAX_REPORTS = 20
_NO_MATCHING_SUBSCRIBERS = 0x10
_UNSUPPORTED_VERSION = 0x84

_Key = tuple[str, int]
_Callback = TypeVar("_Callback", bound=Callable[..., None])


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


@dataclass(slots=True)
class Counters:
    """Since the start. A verdict counts once: as published when acknowledged live, else as undelivered."""

    published: int = 0
    undelivered: int = 0
    history: int = 0
    reconnects: int = 0


class _Message(NamedTuple):
    topic: str
    payload: str
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    key: _Key | None = None
    history: bool = False


class _Alarm(NamedTuple):
    active: bool
    since: str
    text: str

    def to_json(self) -> str:
        return _compact({"active": self.active, "since": self.since, "text": self.text})


class _Outcome(Enum):
    SERVED = auto()
    FAILED = auto()
    NO_ANSWER = auto()
    """The broker refused the protocol's version, or went away without a CONNACK, as old brokers do."""


def _guarded(callback: _Callback) -> _Callback:
    """No exception leaves a callback: it would end paho's thread, with paho none the wiser."""

    @functools.wraps(callback)
    def wrapper(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            _log.exception("unexpected error in %s", callback.__name__)

    return cast(_Callback, wrapper)


class Publisher:
    """The station's connection to its broker.

    No method raises because of the broker; all may be called by any thread.
    `password` and `key_password` come from the environment, not from the configuration. `deadline_s` is how
    long a live verdict is worth anything. `on_command(name, payload)` is called on paho's thread and must
    return quickly; without it commands are not subscribed to. Raises `BrokerError` when the TLS files cannot
    be used.
    """

    def __init__(
        self,
        *,
        mqtt: MqttConfig,
        host: str,
        port: int,
        client_id: str,
        state: StationState,
        journal: Journal | None,
        deadline_s: float,
        on_command: Callable[[str, bytes], None] | None = None,
        password: str | None = None,
        key_password: str | None = None,
    ) -> None:
        self.counters = Counters()
        self.last_error = ""
        """Why there is no connection, one sentence; empty while there is one."""
        self.no_subscriber: bool | None = None
        """Whether nobody has subscribed to verdicts; None when the broker does not tell (MQTT 3.1.1)."""
        self._root = mqtt.root
        self._scalar_topics = mqtt.scalar_topics
        self._username, self._password = mqtt.username, password
        self._tls = _tls_context(mqtt.tls, key_password) if mqtt.tls is not None else None
        self._host, self._port, self._client_id = host, port, client_id
        self._journal = journal
        self._expiry_s = max(1, math.ceil(deadline_s))
        self._on_command = on_command
        self._retained = threading.Lock()  # state and alarms: what is remembered and what was sent last agree
        self._state = state
        self._alarms: dict[str, _Alarm] = {}
        self._counting = threading.Lock()
        self._connection: _Connection | None = None
        self._beats = 0
        self._reported: set[str] = set()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._history_due = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def connected(self) -> bool:
        """Whether the broker has said yes and the connection is not known to be lost."""
        return self._connection is not None

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        work = [self._keep_connected] + ([self._keep_history] if self._journal is not None else [])
        self._threads = [threading.Thread(target=target, name=f"mqtt{target.__name__}", daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Wait for acknowledgements, history's included, then disconnect so that no will fires.

        Waits `timeout_s` seconds at most, and a few more for a broker that hangs. Returns False when
        something was left unacknowledged; verdicts among it are still in the journal. Publishes nothing
        itself: set the last state before.
        """
        deadline = time.monotonic() + timeout_s
        settled = self._is_settled()
        while not settled and time.monotonic() < deadline and self._threads:
            time.sleep(0.02)
            settled = self._is_settled()
        self._stopping.set()
        self._wake.set()
        self._history_due.set()
        for thread in self._threads:
            # Not longer: a name server that does not answer can hold the connecting thread for minutes.
            thread.join(2 * _GOODBYE_S)
        return settled

    def set_state(self, state: StationState) -> None:
        """Publish the station's state, retained; after a reconnect it is published again."""
        with self._retained:
            self._state = state
            self._send(self._state_message())

    def publish_verdict(self, verdict: Verdict) -> bool:
        """Send a verdict live, at most once.

        Returns False when it was not sent: no connection, or one whose broker is behind. It is then routed to
        history in the journal, as it is when the connection is lost before the acknowledgement.
        """
        key = (verdict.boot, verdict.seq)
        messages = [_Message(f"{self._root}/verdict", verdict.to_json(), expiry_s=self._expiry_s, key=key)]
        if self._scalar_topics:
            messages.append(_Message(f"{self._root}/verdict/code", verdict.to_code(), expiry_s=self._expiry_s))
        if self._send(*messages, limited=True):
            return True
        self._not_delivered([key])
        return False

    def acknowledge(self, name: str, payload: dict[str, object]) -> None:
        """Answer a command on ROOT/ack/`name`. Without a connection it is lost: nobody asked, then."""
        self._send(_Message(f"{self._root}/ack/{name}", _compact(payload)))

    def alarm(self, name: str, active: bool, text: str = "") -> None:
        """Raise or clear an alarm, retained; one that has not changed is not sent again.

        The first call for a name is always sent: it may have to clear what an earlier start of the station
        left.
        """
        text = text[:_ALARM_TEXT_LENGTH]
        with self._retained:
            known = self._alarms.get(name)
            if known is not None and (known.active, known.text) == (active, text):
                return
            since = known.since if known is not None and known.active == active else _now()
            self._alarms[name] = _Alarm(active, since, text)
            self._send(self._alarm_message(name))

    def _state_message(self) -> _Message:
        return _Message(f"{self._root}/state", self._state.to_json(), retain=True)

    def _alarm_message(self, name: str) -> _Message:
        return _Message(f"{self._root}/alarm/{name}", self._alarms[name].to_json(), retain=True)

    def _send(self, *messages: _Message, limited: bool = False) -> bool:
        connection = self._connection
        if connection is None:
            return False
        try:
            return connection.send(*messages, limited=limited)
        except Exception:
            _log.exception("unexpected error while publishing on %s", messages[0].topic)
            return False

    def _not_delivered(self, keys: list[_Key]) -> None:
        if not keys:
            return
        with self._counting:
            self.counters.undelivered += len(keys)
        if self._journal is not None:
            self._journal.to_history(keys)
            self._history_due.set()

    def _is_settled(self) -> bool:
        connection = self._connection
        if connection is not None and connection.unacknowledged():
            return False
        try:
            return self._journal is None or not self._journal.next_history(1)
        except JournalError:
            return False

    def accepted(self, connection: _Connection) -> None:
        """The broker said yes. State and alarms go first: no verdict precedes the state it belongs to."""
        with self._retained:
            connection.send(self._state_message())
            for name in self._alarms:
                connection.send(self._alarm_message(name))
            self._connection = connection
        topics = [f"{self._root}/state"]
        if self._on_command is not None:
            topics.insert(0, f"{self._root}/cmd/+")
        connection.subscribe(topics)
        if not connection.is_mqtt5:
            self.no_subscriber = None
        self.last_error = ""
        self._reported.clear()
        _log.info("connected to %s:%d (MQTT %s)", self._host, self._port, "5" if connection.is_mqtt5 else "3.1.1")
        self._history_due.set()

    def acknowledged(self, connection: _Connection, message: _Message, reason: ReasonCode) -> None:
        if reason.is_failure:
            connection.report_once(
                f"{message.topic}: the broker refuses the message ({reason}); check its access rules"
            )
            if message.key is not None and not message.history:
                self._not_delivered([message.key])
            return
        if message.key is None:
            return
        if self._journal is not None:
            self._journal.delivered([message.key])
        with self._counting:
            if message.history:
                self.counters.history += 1
                return
            self.counters.published += 1
        if connection.is_mqtt5:
            self.no_subscriber = reason.value == _NO_MATCHING_SUBSCRIBERS

    def received(self, connection: _Connection, message: MQTTMessage) -> None:
        topic, payload = message.topic, bytes(message.payload)
        if topic == f"{self._root}/state":
            self._contradict_offline(payload)
            return
        name = topic[len(self._root) + len("/cmd/") :]
        if self._on_command is None or len(name) > _COMMAND_NAME_LENGTH or not name.isascii() or not payload:
            return
        if message.retain:
            connection.report_once(f"{topic}: a retained command was refused; publish commands without the retain flag")
            self.acknowledge(name, {"id": "", "ok": False, "error": "retained"})
        elif len(payload) > COMMAND_LIMIT_BYTES:
            connection.report_once(f"{topic}: a command of {len(payload)} bytes was dropped; the limit is 1024")
        else:
            self._on_command(name, payload)

    def _contradict_offline(self, payload: bytes) -> None:
        """A broker may give up the connection before this one late, and only then publish its will."""
        try:
            is_offline = json.loads(payload)["state"] == "offline"
        except (ValueError, KeyError, TypeError):
            return
        with self._retained:
            if is_offline and self._state.state != "offline":
                self._send(self._state_message())

    def ended(self, connection: _Connection, unacknowledged: list[_Message]) -> None:
        self._not_delivered([m.key for m in unacknowledged if m.key is not None and not m.history])
        if self._connection is connection:
            self._connection = None
        self._wake.set()

    def _keep_connected(self) -> None:
        protocol, failures, connections = MQTTProtocolVersion.MQTTv5, 0, 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                outcome = self._connect_and_serve(protocol, connections)
            except Exception:
                _log.exception("unexpected error in the connection to the broker; connecting again")
                outcome = _Outcome.FAILED
            connections += outcome is _Outcome.SERVED
            if outcome is _Outcome.NO_ANSWER and protocol is MQTTProtocolVersion.MQTTv5:
                protocol = MQTTProtocolVersion.MQTTv311
                continue
            protocol = MQTTProtocolVersion.MQTTv5  # the broker may have been replaced by one that knows it
            stable = outcome is _Outcome.SERVED and time.monotonic() - began >= STABLE_S
            failures = 0 if stable else failures + 1
            self._stopping.wait(_backoff_s(failures))

    def _connect_and_serve(self, protocol: MQTTProtocolVersion, connections: int) -> _Outcome:
        self._wake.clear()
        with self._retained:
            will = replace(self._state, state="offline", reason="")
        connection = _Connection(self, self._new_client(protocol, will))
        try:
            try:
                connection.open(self._host, self._port)
            except (OSError, ValueError) as exc:
                self._report(f"cannot be reached ({exc})")
                return _Outcome.FAILED
            self._wait_for(connection.answered, CONNECT_TIMEOUT_S)
            if not connection.is_accepted:
                if connection.refusal is None:
                    self._report("does not answer as an MQTT broker; check host, port and tls")
                    return _Outcome.NO_ANSWER
                if connection.refusal.value == _UNSUPPORTED_VERSION:
                    return _Outcome.NO_ANSWER
                self._report(f"refuses the station ({connection.refusal}); check user, password and client id")
                return _Outcome.FAILED
            if connections:
                with self._counting:
                    self.counters.reconnects += 1
            self._serve(connection)
            return _Outcome.SERVED
        finally:
            connection.close(graceful=self._stopping.is_set())

    def _serve(self, connection: _Connection) -> None:
        """The heartbeat, and a look at what is unacknowledged, until one side ends it."""
        beat_at = time.monotonic()
        while not self._stopping.is_set() and not connection.has_ended.is_set():
            now = time.monotonic()
            if now >= beat_at:
                self._beats += 1
                connection.send(_Message(f"{self._root}/heartbeat", str(self._beats), qos=0))
                beat_at = max(beat_at + HEARTBEAT_S, now)
            if connection.oldest_age_s() > ACK_TIMEOUT_S:
                connection.loss = f"no acknowledgement for {ACK_TIMEOUT_S:.0f} s"
                break
            self._wake.wait(max(0.0, beat_at - now))
        if not self._stopping.is_set():
            self.last_error = f"{self._host}:{self._port} was lost: {connection.loss or 'the connection was closed'}"
            _log.warning("%s; connecting again", self.last_error)

    def _wait_for(self, event: threading.Event, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not event.wait(0.05) and not self._stopping.is_set() and time.monotonic() < deadline:
            pass

    def _report(self, what: str) -> None:
        self.last_error = f"the broker at {self._host}:{self._port} {what}"
        if what not in self._reported:
            self._reported.add(what)
            _log.warning("%s; trying again", self.last_error)

    def _new_client(self, protocol: MQTTProtocolVersion, will: StationState) -> Client:
        is_mqtt5 = protocol is MQTTProtocolVersion.MQTTv5
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if is_mqtt5 else True,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(_MAX_IN_FLIGHT)
        client.will_set(f"{self._root}/state", will.to_json(), qos=1, retain=True)
        if self._username is not None:
            client.username_pw_set(self._username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        return client

    def _keep_history(self) -> None:
        failing = False
        while not self._stopping.is_set():
            self._history_due.wait(_HISTORY_POLL_S)
            self._history_due.clear()
            try:
                while self._send_history_page():
                    pass
                failing = False
            except Exception as exc:
                if not failing:
                    _log.error("history cannot be sent: %s", exc, exc_info=not isinstance(exc, JournalError))
                failing = True
                self._stopping.wait(_HISTORY_POLL_S)

    def _send_history_page(self) -> bool:
        """Returns whether there may be more."""
        connection = self._connection
        if connection is None or self._journal is None:
            return False
        # Taken before the journal is read: what is acknowledged in between must not look new.
        sent = connection.history_keys()
        waiting = self._journal.next_history(len(sent) + _HISTORY_PAGE)
        fresh = [verdict for verdict in waiting if (verdict.boot, verdict.seq) not in sent]
        for verdict in fresh:
            key = (verdict.boot, verdict.seq)
            message = _Message(f"{self._root}/history", verdict.to_json(), key=key, history=True)
            while not connection.send(message, limited=True):
                if connection.has_ended.is_set() or self._stopping.wait(HISTORY_INTERVAL_S):
                    return False
            if self._stopping.wait(HISTORY_INTERVAL_S):
                return False
        return bool(fresh)


class _Connection:
    """One paho client from its CONNECT to its end, and what is on its way through it.

    Its lock is never held while paho is called: paho calls `on_publish` with a lock of its own that
    `publish()` takes too, so holding both in different orders would end in a deadlock.
    """

    def __init__(self, owner: Publisher, client: Client) -> None:
        self.is_mqtt5 = client.protocol is MQTTProtocolVersion.MQTTv5
        self.answered = threading.Event()
        self.has_ended = threading.Event()
        self.is_accepted = False
        self.refusal: ReasonCode | None = None
        self.loss = ""
        self._owner = owner
        self._client = client
        self._lock = threading.Lock()
        self._in_flight: dict[int, tuple[_Message, float]] = {}
        self._early: dict[int, ReasonCode] = {}
        self._reserved = 0
        self._limit = _MAX_IN_FLIGHT
        self._history: set[_Key] = set()
        self._history_in_flight = 0
        self._reported: set[str] = set()
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe

    def open(self, host: str, port: int) -> None:
        """TCP, TLS and the CONNECT packet. Raises `OSError`."""
        if self.is_mqtt5:
            self._client.connect(host, port, KEEPALIVE_S, clean_start=True)
        else:
            self._client.connect(host, port, KEEPALIVE_S)
        self._client.loop_start()

    def subscribe(self, topics: list[str]) -> None:
        # The state's own messages are wanted too: a will comes from the same client id as far as "no local"
        # goes.
        if self.is_mqtt5:
            # The retain flag as it was published, so that a retained command is refused at once, not on
            # reconnecting.
            self._client.subscribe([(topic, SubscribeOptions(qos=1, retainAsPublished=True)) for topic in topics])
        else:
            self._client.subscribe([(topic, 1) for topic in topics])

    def send(self, *messages: _Message, limited: bool = False) -> bool:
        """Hand messages to paho; False when there is no connection or, `limited`, no room to send them at
        once.
        """
        history = sum(message.history for message in messages)
        with self._lock:
            if self.has_ended.is_set():
                return False
            if limited and len(self._in_flight) + self._reserved + len(messages) > self._limit:
                return False
            if history and self._history_in_flight + history > min(_HISTORY_IN_FLIGHT, self._limit):
                return False
            self._reserved += len(messages)
            self._history_in_flight += history
            self._history.update(m.key for m in messages if m.history and m.key is not None)
        outcomes = [self._publish(message) for message in messages]
        return outcomes[0]

    def _publish(self, message: _Message) -> bool:
        properties = None
        if self.is_mqtt5 and message.expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = message.expiry_s
        sent_at = time.monotonic()
        try:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        except BaseException:
            with self._lock:
                self._release(message)
            raise
        with self._lock:
            reason = self._early.pop(info.mid, None)
            if reason is None:
                if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS or self.has_ended.is_set():
                    self._release(message)
                    return False
                self._reserved -= 1
                self._in_flight[info.mid] = (message, sent_at)
                return True
            self._reserved -= 1
        self._settle(message, reason)
        return True

    def _release(self, message: _Message) -> None:
        self._reserved -= 1
        if message.history and message.key is not None:
            self._history_in_flight -= 1
            self._history.discard(message.key)

    def unacknowledged(self) -> int:
        """How many QoS 1 messages are on their way."""
        with self._lock:
            return self._reserved + sum(message.qos > 0 for message, _ in self._in_flight.values())

    def oldest_age_s(self) -> float:
        with self._lock:
            oldest = min((sent_at for _, sent_at in self._in_flight.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def history_keys(self) -> set[_Key]:
        """What this connection has sent on history and must not send again: unacknowledged, or refused."""
        with self._lock:
            return set(self._history)

    def report_once(self, sentence: str) -> None:
        if sentence not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(sentence)
            _log.warning("%s", sentence)

    def close(self, *, graceful: bool) -> None:
        """End it, at the latest after a second; without `graceful`, or if the broker hangs, the will
        fires.
        """
        if graceful and self.is_accepted and not self.has_ended.is_set():
            self._client.disconnect()
            self.has_ended.wait(_GOODBYE_S)
        self._end()
        client = self._client
        # Without the callbacks nothing refers back to here, and the client's sockets are closed when it is
        # dropped.
        client.on_connect = client.on_disconnect = client.on_publish = client.on_message = client.on_subscribe = None
        # paho's thread ends when its socket does; joining it could take for ever.
        sock = client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already
                cast(socket.socket, sock).shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        with self._lock:
            if self.has_ended.is_set():
                return
            self.has_ended.set()
            lost = [message for message, _ in self._in_flight.values()]
        self._owner.ended(self, lost)
        with self._lock:
            self._in_flight.clear()
        self.answered.set()

    def _settle(self, message: _Message, reason: ReasonCode) -> None:
        self._owner.acknowledged(self, message, reason)
        if message.history and message.key is not None:
            with self._lock:
                self._history_in_flight -= 1
                if not reason.is_failure:
                    # Only now: before the journal knew, the next page would have shown it as new.
                    self._history.discard(message.key)

    @_guarded
    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        try:
            if reason.is_failure:
                self.refusal = reason
                return
            self._limit = min(_MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _MAX_IN_FLIGHT))
            self._owner.accepted(self)
            self.is_accepted = True
        finally:
            self.answered.set()

    @_guarded
    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        # "Unspecified error" is paho's word for a socket that was closed.
        self.loss = self.loss or ("" if reason == "Unspecified error" else str(reason))
        self._end()

    @_guarded
    def _on_publish(
        self, client: Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        with self._lock:
            if self.has_ended.is_set():
                return  # given up already, and on its way to history
            found = self._in_flight.pop(mid, None)
            if found is None:  # faster than publish() has returned
                self._early[mid] = reason
                return
        self._settle(found[0], reason)

    @_guarded
    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self._owner.received(self, message)

    @_guarded
    def _on_subscribe(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                self.report_once(f"the broker refuses a subscription ({reason}); check its access rules")


def _backoff_s(failures: int) -> float:
    shortest, longest = BACKOFF_S
    ceiling = min(longest, shortest * 2.0 ** min(failures, 16))
    # Stations that lost the same broker must not all come back in the same second.
    return random.uniform(max(shortest, ceiling / 2), ceiling)


def _now() -> str:
    return wall_time(wall_clock())


def _compact(payload: dict[str, Any]) -> str:
    return json.dumps(payload, ensure_ascii=True, separators=(",", ":"))


def _tls_context(tls: TlsConfig, key_password: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.ca is not None:
            context.load_verify_locations(cafile=tls.ca)
        else:
            context.load_default_certs()
    except OSError as exc:
        raise BrokerError(f"mqtt.tls.ca: {tls.ca} cannot be used ({exc}); expected certificates in PEM form") from exc
    if tls.cert is not None and tls.key is not None:
        try:
            # Always with a password: OpenSSL asks for a missing one on the terminal, where nobody is.
            context.load_cert_chain(tls.cert, tls.key, key_password or "")
        except OSError as exc:
            raise BrokerError(
                f"mqtt.tls: {tls.cert} with {tls.key} cannot be used ({exc}); expected a certificate and its"
                " key in PEM form, and the key's password in FLAWLINE_MQTT_KEY_PASSWORD if it has one"
            ) from exc
    return context
