"""The station's side of MQTT: verdicts, state, heartbeat, alarms, history, commands.

Each connection is a new paho client, because paho sends again what an old one still holds, with a fresh expiry: a
stale verdict would look new to the PLC. What was not acknowledged is left to the journal and goes to ROOT/history.

Three threads: paho's (callbacks), one that owns the connection's life (connect, heartbeat, watch, back off) and one
for `history`.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from flawline_edge.connection import GOODBYE_S, Access, Connection, tls_context
from flawline_edge.history import History
from flawline_edge.journal import Journal, JournalError
from flawline_edge.messages import Alarm, Command, Key, Message, Messages, Reply, StationState, says_offline
from flawline_inspect.verdict import Verdict

if TYPE_CHECKING:
    from flawline_inspect.config import MqttConfig

__all__ = ["Counters", "Publisher", "StationState"]

_log = logging.getLogger(__name__)

BACKOFF_S = (1.0, 5.0)
"""Shortest and longest pause between two attempts to connect. The line rejects every part until the station is back, so the
longest is short: a hundred stations at it ask their broker twenty to forty times a second, which is nothing to it."""
STABLE_S = 10.0
"""A connection that lasted this long resets the backoff; a shorter one counts as a failed attempt."""
HEARTBEAT_S = 1.0
COMMAND_LIMIT_BYTES = 1024

_NO_MATCHING_SUBSCRIBERS = 0x10
_NOBODY = "nobody has subscribed to the verdicts; check the PLC's connection and topic"


@dataclass(slots=True)
class Counters:
    """Since the start. A verdict counts once: as published when acknowledged live, else as undelivered."""

    published: int = 0
    undelivered: int = 0
    history: int = 0
    reconnects: int = 0


class Publisher:
    """The station's connection to its broker.

    No method raises because of the broker; all may be called by any thread. `password` and `key_password` come from
    the environment, not from the configuration. `deadline_s` is how long a live verdict is worth anything.
    `on_command` is called on paho's thread and must return quickly; without it commands
    are not subscribed to. `cameras` are the names that are levels of topics, see `Messages`. Raises `BrokerError`
    when the TLS files cannot be used.
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
        on_command: Callable[[Command], None] | None = None,
        password: str | None = None,
        key_password: str | None = None,
        cameras: Sequence[str] = (),
    ) -> None:
        self.counters = Counters()
        self.last_error = ""
        """Why there is no connection, one sentence; empty while there is one."""
        self.no_subscriber: bool | None = None
        """Whether nobody has subscribed to verdicts; None when the broker does not tell (MQTT 3.1.1)."""
        tls = tls_context(mqtt.tls, key_password) if mqtt.tls is not None else None
        self._access = Access(host, port, client_id, mqtt.username, password, tls)
        self._broker = f"{host}:{port}"
        self._messages = Messages(
            mqtt.root, max(1, math.ceil(deadline_s)), scalar_topics=mqtt.scalar_topics, cameras=cameras
        )
        self._journal = journal
        self._on_command = on_command
        # Held while sending: what is remembered of state and alarms and what was sent last agree.
        self._retained = threading.Lock()
        self._state = state
        self._alarms: dict[str, Alarm] = {}
        # Never held while anything is called: callbacks take it with locks of paho's held.
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._was_connected = False
        self._beats = 0
        self._reported: set[str] = set()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._history = None if journal is None else History(journal, self._messages, self)
        self._threads: list[threading.Thread] = []

    @property
    def connection(self) -> Connection | None:
        """The one that the broker has accepted and that is not known to be lost."""
        return self._connection

    @property
    def connected(self) -> bool:
        """Whether the broker has said yes and the connection is not known to be lost."""
        return self._connection is not None

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        self.alarm("no_subscriber", False)
        self._threads = [threading.Thread(target=self._keep_connected, name="mqtt-connection", daemon=True)]
        if self._history is not None:
            self._threads.append(threading.Thread(target=self._history.run, name="mqtt-history", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Wait for acknowledgements, history's included, then disconnect so that no will fires.

        Waits `timeout_s` seconds at most, and a few more for a broker that hangs. Returns False when something was
        left unacknowledged; verdicts among it are still in the journal. Publishes nothing itself: set the last
        state before.
        """
        deadline = time.monotonic() + timeout_s
        while not (settled := self._is_settled()) and time.monotonic() < deadline and self._threads:
            time.sleep(0.02)
        self._stopping.set()
        self._wake.set()
        if self._history is not None:
            self._history.stop()
        for thread in self._threads:
            # Not longer: a name server that does not answer can hold the connecting thread for minutes.
            thread.join(2 * GOODBYE_S)
        return settled

    def set_state(self, state: StationState) -> None:
        """Publish the station's state, retained; after a reconnect it is published again."""
        with self._retained:
            self._state = state
            self._send(self._messages.state(state))

    def messages_of(self, verdict: Verdict, camera: str = "") -> list[Message]:
        """What `publish_verdict` sends, for who has the time to make it beforehand."""
        return self._messages.verdict(verdict, camera)

    def publish_verdict(
        self,
        verdict: Verdict,
        *,
        until: float | None = None,
        camera: str = "",
        messages: Sequence[Message] | None = None,
    ) -> bool:
        """Send a verdict live, at most once. `until` (monotonic, s): how long to wait for a broker that is behind. `messages`: what
        `messages_of` made of it, if it has been asked.

        Returns False when it was not sent: no connection, or one whose broker is behind. It is then routed to history
        in the journal, as it is when the connection is lost before the acknowledgement.
        """
        if self._send(*(messages or self.messages_of(verdict, camera)), limited=True, until=until):
            return True
        self._not_delivered([(verdict.boot, verdict.seq)])
        return False

    def acknowledge(
        self, name: str, payload: dict[str, object], *, camera: str = "", reply: Reply | None = None
    ) -> None:
        """Answer a command, on ROOT/ack/`name` or where it asks for it. Without a connection it is lost: nobody asked."""
        self._send(self._messages.acknowledgement(name, payload, camera, reply))

    def alarm(self, name: str, active: bool, text: str = "") -> None:
        """Raise or clear an alarm, retained; one that has not changed is not sent again.

        The first call for a name is always sent: it may have to clear what an earlier start of the station left.
        """
        with self._retained:
            known = self._alarms.get(name)
            alarm = Alarm.following(known, active, text)
            if alarm != known:
                self._alarms[name] = alarm
                self._send(self._messages.alarm(name, alarm))

    def _send(self, *messages: Message, limited: bool = False, until: float | None = None) -> bool:
        connection = self._connection
        if connection is None:
            return False
        try:
            return connection.send(*messages, limited=limited, until=until)
        except Exception:
            _log.exception("unexpected error while publishing on %s", messages[0].topic)
            return False

    def _not_delivered(self, keys: list[Key]) -> None:
        with self._lock:
            self.counters.undelivered += len(keys)
        if self._journal is not None and self._history is not None:
            self._journal.to_history(keys)
            self._history.wake()

    def _is_settled(self) -> bool:
        connection = self._connection
        if connection is not None and connection.has_unacknowledged():
            return False
        try:
            return self._journal is None or not self._journal.next_history(1)
        except JournalError:
            return False

    def accepted(self, connection: Connection) -> None:
        """State and alarms go first: no verdict precedes the state it belongs to."""
        with self._retained:
            connection.send(self._messages.state(self._state))
            for name, alarm in self._alarms.items():
                connection.send(self._messages.alarm(name, alarm))
            with self._lock:
                if connection.has_ended.is_set():  # the yes came when it had just been given up
                    return
                self._connection = connection
                self.last_error = ""
        topics = [self._messages.state_topic]
        if self._on_command is not None:
            topics = [*self._messages.command_topics, *topics]
        connection.subscribe(topics)
        if not connection.is_mqtt5:
            self.no_subscriber = None
        self._reported.clear()
        _log.info("connected to %s (MQTT %s)", self._broker, "5" if connection.is_mqtt5 else "3.1.1")
        if self._history is not None:
            self._history.wake()

    def acknowledged(self, connection: Connection, message: Message, reason: ReasonCode) -> None:
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
        with self._lock:
            if message.history:
                self.counters.history += 1
                return
            self.counters.published += 1
        if connection.is_mqtt5:
            self.no_subscriber = reason.value == _NO_MATCHING_SUBSCRIBERS

    def received(self, connection: Connection, message: MQTTMessage) -> None:
        topic, payload = message.topic, bytes(message.payload)
        if topic == self._messages.state_topic:
            # A broker may give up the connection before this one late, and only then publish its will.
            with self._retained:
                if self._state.state != "offline" and says_offline(payload):
                    self._send(self._messages.state(self._state))
            return
        command = self._messages.command(topic, payload, retained=bool(message.retain), reply=_reply(message))
        if self._on_command is None or command is None or not payload:
            return
        if len(payload) > COMMAND_LIMIT_BYTES:
            connection.report_once(
                f"{topic}: a command of {len(payload)} bytes was dropped, limit {COMMAND_LIMIT_BYTES}"
            )
            return
        if message.retain:
            connection.report_once(f"{topic}: a retained command was refused; publish commands without the retain flag")
        self._on_command(command)

    def ended(self, connection: Connection, unacknowledged: list[Message]) -> None:
        self._not_delivered([m.key for m in unacknowledged if m.key is not None and not m.history])
        with self._lock:
            was_lost = self._connection is connection and not self._stopping.is_set()
            if was_lost:
                self.last_error = f"{self._broker} was lost: {connection.loss or 'the connection was closed'}"
            if self._connection is connection:
                self._connection = None
        if was_lost:
            _log.warning("%s; connecting again", self.last_error)
        self._wake.set()

    def _keep_connected(self) -> None:
        protocol, failures = MQTTProtocolVersion.MQTTv5, 0
        while not self._stopping.is_set():
            began = time.monotonic()
            accepted = too_new = False
            try:
                accepted, too_new = self._connect_and_serve(protocol)
            except Exception:
                _log.exception("unexpected error in the connection to the broker; connecting again")
            if too_new:
                protocol = MQTTProtocolVersion.MQTTv311
                continue
            protocol = MQTTProtocolVersion.MQTTv5  # the broker may have been replaced by one that knows it
            failures = 0 if accepted and time.monotonic() - began >= STABLE_S else failures + 1
            self._stopping.wait(_backoff_s(failures))

    def _connect_and_serve(self, protocol: MQTTProtocolVersion) -> tuple[bool, bool]:
        """Returns whether the broker accepted, and whether an older protocol is worth a try at once."""
        will = self._messages.state(replace(self._state, state="offline", reason=""))
        connection = Connection(self, self._access, protocol, will)
        try:
            problem = connection.open(self._stopping)
            if problem:
                self._report(problem, quietly=connection.is_too_new)
            else:
                self._serve(connection)
            return not problem, connection.is_too_new
        finally:
            connection.close(graceful=self._stopping.is_set())

    def _serve(self, connection: Connection) -> None:
        """The heartbeat, and a look at the connection, until one side ends it."""
        with self._lock:
            self.counters.reconnects += self._was_connected
        self._was_connected = True
        beat_at = time.monotonic()
        while not self._stopping.is_set() and not connection.is_lost():
            now = time.monotonic()
            if now >= beat_at:
                self._beats += 1
                connection.send(self._messages.heartbeat(self._beats))
                # Not where the PUBACK says so: there paho holds a lock that another thread, sending, may wait for.
                self.alarm("no_subscriber", bool(self.no_subscriber), _NOBODY if self.no_subscriber else "")
                beat_at = max(beat_at + HEARTBEAT_S, now)
            self._wake.wait(max(0.0, beat_at - now))
            self._wake.clear()

    def _report(self, problem: str, *, quietly: bool) -> None:
        self.last_error = f"the broker at {self._broker} {problem}"
        if not quietly and problem not in self._reported:
            self._reported.add(problem)
            _log.warning("%s; trying again", self.last_error)


def _reply(message: MQTTMessage) -> Reply | None:
    """Where an MQTT 5 client wants its answer; anything else says nothing of it."""
    topic = getattr(message.properties, "ResponseTopic", None)
    return None if not topic else Reply(str(topic), getattr(message.properties, "CorrelationData", None))


def _backoff_s(failures: int) -> float:
    shortest, longest = BACKOFF_S
    ceiling = min(longest, shortest * 2.0 ** min(failures, 16))
    # Stations that lost the same broker must not all come back in the same second.
    return random.uniform(max(shortest, ceiling / 2), ceiling)
