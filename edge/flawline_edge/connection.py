"""One connection to the broker: a paho client from its CONNECT to its end, and what is on its way through it.

None of paho's own bookkeeping is relied on: `MQTTMessageInfo` is wrong after a reconnect, `is_connected()` stays
true when paho's thread is dead, and `loop_stop()` joins without a limit.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from flawline_edge.messages import Key, Message
from flawline_inspect.errors import BrokerError

if TYPE_CHECKING:
    from flawline_inspect.config import TlsConfig

__all__ = ["Access", "Connection", "Owner", "at_once", "tls_context"]

_log = logging.getLogger(__name__)

KEEPALIVE_S = 5
CONNECT_TIMEOUT_S = 5.0
ACK_TIMEOUT_S = 10.0
"""A message without PUBACK for this long means a dead connection, whatever paho says."""
GOODBYE_S = 1.0
"""How long a broker has to take the DISCONNECT."""

MAX_PACKET_BYTES = 1 << 16
"""Far more than any command has, so that those that are a little too long are still told of."""

_MAX_IN_FLIGHT = 20
"""paho's own limit and mosquitto's: beyond it paho would queue a verdict, and send it late."""
_HISTORY_IN_FLIGHT = 8
_MAX_REPORTS = 20
_UNSUPPORTED_VERSION = 0x84

_Callback = TypeVar("_Callback", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class Access:
    """Where the broker is, and who the station is there."""

    host: str
    port: int
    client_id: str
    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None


def at_once(opened: Any) -> None:
    """Send small messages when they are written. TCP would hold each back until the one before is acknowledged, which the other
    side does after 40 ms (Nagle's algorithm, RFC 896, and delayed acknowledgements, RFC 1122 4.2.3.2)."""
    with contextlib.suppress(OSError, AttributeError):  # not TCP, such as a socket in the file system
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Owner(Protocol):
    """Whom a connection tells what happens; `ended` once, and also where it was never accepted.

    Mostly on paho's thread. `acknowledged` and `ended` may have locks of paho's held: they must not wait for a
    thread that is in `send`.
    """

    def accepted(self, connection: Connection) -> None: ...
    def acknowledged(self, connection: Connection, message: Message, reason: ReasonCode) -> None: ...
    def received(self, connection: Connection, message: MQTTMessage) -> None: ...
    def ended(self, connection: Connection, unacknowledged: list[Message]) -> None: ...


def _guarded(callback: _Callback) -> _Callback:
    """No exception leaves a callback: it would end paho's thread, with paho none the wiser."""

    @functools.wraps(callback)
    def wrapper(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            _log.exception("unexpected error in %s", callback.__name__)

    return cast(_Callback, wrapper)


class Connection:
    """Used once: `open`, which must return "" before anything else makes sense, and in any case `close`.

    Its lock is never held while paho is called: paho calls `on_publish` with a lock of its own that
    `publish()` takes too, so holding both in different orders would end in a deadlock.
    """

    def __init__(self, owner: Owner, access: Access, protocol: MQTTProtocolVersion, will: Message) -> None:
        self.is_mqtt5 = protocol is MQTTProtocolVersion.MQTTv5
        self.has_ended = threading.Event()
        self.is_accepted = False
        self.is_too_new = False
        """Whether 3.1.1 is worth a try."""
        self.loss = ""
        """Why it was lost, as far as anybody said."""
        self._owner = owner
        self._access = access
        self._answered = threading.Event()
        self._refusal: ReasonCode | None = None
        self._paho_thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._in_flight: dict[int, tuple[Message, float]] = {}
        self._early: dict[int, ReasonCode] = {}  # acknowledged before publish() returned the mid
        self._queue: deque[object] = deque()  # those who wait for room
        self._between = 0  # messages on their way into `_in_flight`, or out of it and not yet settled
        self._limit = _MAX_IN_FLIGHT
        self._history: set[Key] = set()
        self._history_in_flight = 0
        self._reported: set[str] = set()
        self._client = self._new_client(protocol, will)

    def _new_client(self, protocol: MQTTProtocolVersion, will: Message) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._access.client_id,
            clean_session=None if self.is_mqtt5 else True,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(_MAX_IN_FLIGHT)
        client.will_set(will.topic, will.payload, will.qos, will.retain)
        if self._access.username is not None:
            client.username_pw_set(self._access.username, self._access.password)
        if self._access.tls is not None:
            client.tls_set_context(self._access.tls)
        client.on_socket_open = lambda _client, _data, opened: at_once(opened)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    def open(self, stopping: threading.Event) -> str:
        """Connect and wait for the broker's yes. Returns "", or what the broker does instead."""
        try:
            self._client.connect(self._access.host, self._access.port, KEEPALIVE_S, properties=self._limits())
        except ssl.SSLCertVerificationError as exc:
            return (
                f"cannot be trusted (certificate verify failed: {exc.verify_message.rstrip('.')}); check mqtt.tls.ca, mqtt.host "
                "and this machine's clock"
            )
        except ssl.SSLError as exc:
            return f"does not agree on TLS ({exc.reason or exc}); check port and tls"
        except (OSError, ValueError) as exc:  # ValueError: a host that cannot be one
            return f"cannot be reached ({exc})"
        self._client.loop_start()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._answered.wait(0.05) and not stopping.is_set() and time.monotonic() < deadline:
            pass
        if self.is_accepted:
            return ""
        # Old brokers that do not know the version may say so, or just go away.
        self.is_too_new = self.is_mqtt5 and (self._refusal is None or self._refusal.value == _UNSUPPORTED_VERSION)
        if self._refusal is None and self._access.tls is not None and self.has_ended.is_set():
            # In TLS 1.3 a broker looks at the client's certificate when the client is through already.
            return (
                "hangs up after the TLS handshake; it may want another client certificate, check mqtt.tls.cert and key"
            )
        if self._refusal is None:
            return "does not answer as an MQTT broker; check host, port and tls"
        return f"refuses the station ({self._refusal}); check user, password and client id"

    def _limits(self) -> Properties | None:
        """What the broker is asked not to send: paho would take up to 256 MB into memory before anybody looks at it."""
        if not self.is_mqtt5:
            return None
        limits = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        limits.MaximumPacketSize = MAX_PACKET_BYTES
        return limits

    def subscribe(self, topics: list[str]) -> None:
        # The retain flag as published, so that a retained command is refused at once, not on reconnecting. Not
        # "no local": the will counts as this client's own.
        if self.is_mqtt5:
            self._client.subscribe([(topic, SubscribeOptions(qos=1, retainAsPublished=True)) for topic in topics])
        else:
            self._client.subscribe([(topic, 1) for topic in topics])

    def send(self, *messages: Message, limited: bool = False, until: float | None = None) -> bool:
        """Hand messages to paho; False when the first could not be sent, or, `limited`, not all of them at once.

        `until` (monotonic, s) is how long to wait for room among what is unacknowledged; never on paho's own thread.
        """
        history = sum(message.history for message in messages)
        with self._lock:
            if limited and not self._gets_room(len(messages), until):
                return False
            if self.has_ended.is_set():
                return False
            if history and self._history_in_flight + history > min(_HISTORY_IN_FLIGHT, self._limit):
                return False
            self._between += len(messages)
            self._history_in_flight += history
            self._history.update(m.key for m in messages if m.history and m.key is not None)
        outcomes = [self._publish(message) for message in messages]
        return outcomes[0]

    def _gets_room(self, n: int, until: float | None) -> bool:
        """Whether there is room for so many, at the latest then; with the lock held.

        Who waits gets it first, in order of coming: refusals, which do not wait, come in floods, and would take all of it
        from the verdicts on parts that were judged.
        """
        if not self._queue and self._has_room(n):
            return True
        if until is None or threading.current_thread() is self._paho_thread:
            return False
        turn = object()
        self._queue.append(turn)
        try:
            while not (self._queue[0] is turn and self._has_room(n)) and not self.has_ended.is_set():
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return False
                self._room.wait(left_s)
            return True
        finally:
            self._queue.remove(turn)
            self._room.notify_all()

    def _has_room(self, n: int) -> bool:
        return len(self._in_flight) + self._between + n <= self._limit

    def _publish(self, message: Message) -> bool:
        properties = _properties(message.expiry_s, message.correlation) if self.is_mqtt5 else None
        sent_at = time.monotonic()
        try:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        except BaseException:
            with self._lock:
                self._release(message, forget=True)
            raise
        with self._lock:
            reason = self._early.pop(info.mid, None)
            if reason is None:
                if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS or self.has_ended.is_set():
                    self._release(message, forget=True)
                    return False
                self._between -= 1
                self._in_flight[info.mid] = (message, sent_at)
                return True
        self._settle(message, reason)
        return True

    def _settle(self, message: Message, reason: ReasonCode) -> None:
        try:
            self._owner.acknowledged(self, message, reason)
        finally:
            with self._lock:
                # Only now: before the journal knew, the next page of history would have shown it as new.
                self._release(message, forget=not reason.is_failure)

    def _release(self, message: Message, *, forget: bool) -> None:
        self._between -= 1
        self._room.notify_all()
        if message.history:
            self._history_in_flight -= 1
            if forget and message.key is not None:
                self._history.discard(message.key)

    def has_unacknowledged(self) -> bool:
        """Whether QoS 1 messages are on their way."""
        with self._lock:
            return self._between > 0 or any(message.qos > 0 for message, _ in self._in_flight.values())

    def history_keys(self) -> set[Key]:
        """What this connection has sent on history and must not send again: unacknowledged, or refused."""
        with self._lock:
            return set(self._history)

    def is_lost(self) -> bool:
        """Whether it has ended or has to be given up: not every end is seen by paho."""
        if self.has_ended.is_set():
            return True
        with self._lock:
            oldest = min((sent_at for _, sent_at in self._in_flight.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > ACK_TIMEOUT_S:
            self.loss = self.loss or f"no acknowledgement for {ACK_TIMEOUT_S:.0f} s"
        elif self._paho_thread is not None and not self._paho_thread.is_alive():
            # Heartbeats would go on, written by whoever publishes, and no command would ever arrive.
            self.loss = self.loss or "the thread that reads from it has ended"
        return bool(self.loss)

    def report_once(self, sentence: str) -> None:
        if sentence not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(sentence)
            _log.warning("%s", sentence)

    def close(self, *, graceful: bool) -> None:
        """End it, at the latest after a second; without `graceful`, or if the broker hangs, the will fires."""
        client = self._client
        if graceful and self.is_accepted and not self.has_ended.is_set():
            client.disconnect()
            self.has_ended.wait(GOODBYE_S)
        self._end()
        # Without the callbacks nothing refers back to here, and the client's sockets are closed when it is dropped.
        client.on_connect = client.on_disconnect = client.on_publish = client.on_message = client.on_subscribe = None
        # paho's thread ends when its socket does; joining it could take for ever.
        sock = client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # closed already
                # Not SSLSocket's own: it takes the encryption off first, and paho's thread may be writing.
                socket.socket.shutdown(cast(socket.socket, sock), socket.SHUT_RDWR)

    def _end(self) -> None:
        with self._lock:
            if self.has_ended.is_set():
                return
            self.has_ended.set()
            self._room.notify_all()
            lost = [message for message, _ in self._in_flight.values()]
        self._owner.ended(self, lost)
        with self._lock:
            self._in_flight.clear()
        self._answered.set()

    @_guarded
    def _on_connect(
        self, client: Client, data: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        try:
            if reason.is_failure:
                self._refusal = reason
                return
            self._paho_thread = threading.current_thread()
            self._limit = min(_MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _MAX_IN_FLIGHT))
            self._owner.accepted(self)
            self.is_accepted = True
        finally:
            self._answered.set()

    @_guarded
    def _on_disconnect(
        self, client: Client, data: object, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        # "Unspecified error" is paho's word for a socket that was closed.
        self.loss = self.loss or ("" if reason == "Unspecified error" else str(reason))
        self._end()

    @_guarded
    def _on_publish(
        self, client: Client, data: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        with self._lock:
            if self.has_ended.is_set():
                return  # given up already, and on its way to history
            found = self._in_flight.pop(mid, None)
            if found is None:
                self._early[mid] = reason
                return
            self._between += 1
        self._settle(found[0], reason)

    @_guarded
    def _on_message(self, client: Client, data: object, message: MQTTMessage) -> None:
        self._owner.received(self, message)

    @_guarded
    def _on_subscribe(
        self, client: Client, data: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                self.report_once(f"the broker refuses a subscription ({reason}); check its access rules")


@functools.lru_cache(maxsize=8)  # paho takes a tenth of a millisecond to make them, and verdicts all have the same
def _properties(expiry_s: int | None, correlation: bytes | None) -> Properties | None:
    if expiry_s is None and correlation is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


def tls_context(tls: TlsConfig, key_password: str | None) -> ssl.SSLContext:
    """Raises `BrokerError` when the files cannot be used."""
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
