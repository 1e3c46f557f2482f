"""A stand-in for the PLC: it triggers at a rate, and writes into a ledger whatever the station says."""

from __future__ import annotations

import contextlib
import json
import random
import ssl
import threading
import time
from collections.abc import Iterator, Sequence

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from flawline_edge.connection import at_once
from flawline_edge.soak.ledger import Ledger
from flawline_inspect.errors import BrokerError, InputError
from flawline_inspect.verdict import Verdict

__all__ = ["Plc"]

_RECONNECT_S = 0.05
"""A PLC that is slower than the station would miss what is told meanwhile, and nobody could say who lost it."""
_CONNECT_S = 10.0


class Plc:
    """A context manager, connected and subscribed inside. `cameras` are whose triggers it sends, in
    turn: names on a station with several, "" for the only one.

    Triggers go out with QoS 0 and only while connected: one that waits in a client for its broker is an old one.
    Raises `BrokerError` on entering where the broker cannot be reached.
    """

    def __init__(
        self,
        host: str,
        port: int,
        root: str,
        ledger: Ledger,
        *,
        cameras: Sequence[str] = ("",),
        name: str = "",
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.ledger = ledger
        self.unreadable = 0
        """Verdicts that are none."""
        self._host, self._port, self._root = host, port, root
        self._cameras = tuple(cameras)
        self._name = name or f"{random.randrange(16**4):04x}"
        self._number = 0
        self._subscribed = threading.Event()
        # 3.1.1, which every broker speaks, the embedded one included.
        self._client = Client(
            CallbackAPIVersion.VERSION2, f"plc-{self._name}", True, protocol=MQTTProtocolVersion.MQTTv311
        )
        self._client.reconnect_delay_set(_RECONNECT_S, _RECONNECT_S)  # type: ignore[arg-type]  # fractions work
        if username is not None:
            self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.on_socket_open = lambda _client, _data, opened: at_once(opened)
        topics = ("state", "alarm/+", "history", "verdict", "+/verdict", "ack/trigger", "+/ack/trigger")
        wanted = [(f"{root}/{topic}", 1) for topic in topics]
        self._client.on_connect = lambda client, *_: client.subscribe(wanted)
        self._client.on_disconnect = lambda *_: self._subscribed.clear()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message

    def __enter__(self) -> Plc:
        try:
            self._client.connect(self._host, self._port)
        except OSError as exc:
            raise BrokerError(
                f"the broker at {self._host}:{self._port} cannot be reached ({exc}); start it, or the station it is in"
            ) from exc
        self._client.loop_start()
        if not self.wait_for_subscription(_CONNECT_S):
            self.__exit__()
            raise BrokerError(
                f"the broker at {self._host}:{self._port} accepts no subscription; check user and access rules"
            )
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for_subscription(self, timeout_s: float) -> bool:
        """Whether it is connected and subscribed, at the latest then."""
        return self._subscribed.wait(timeout_s)

    def trigger(self) -> bool:
        """Ask for one part. Returns whether the request has left."""
        if not self._subscribed.is_set():
            return False
        self._number += 1
        trigger = f"{self._name}-{self._number}"
        camera = self._cameras[self._number % len(self._cameras)]
        below = f"{self._root}/{camera}" if camera else self._root
        self.ledger.sent(trigger, time.monotonic())
        sent = self._client.publish(f"{below}/cmd/trigger", json.dumps({"trigger": trigger}), 0)
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.ledger.not_sent(trigger)
            return False
        return True

    @contextlib.contextmanager
    def load(self, rate: float, seed: int = 0) -> Iterator[None]:
        """Trigger `rate` times a second on a thread, at times that tremble by half an interval."""
        stop = threading.Event()
        chance = random.Random(seed)

        def work() -> None:
            due = time.monotonic()
            while not stop.wait(max(0.0, due + chance.uniform(0, 0.5) / rate - time.monotonic())):
                self.trigger()
                due = max(due + 1 / rate, time.monotonic() - 1 / rate)

        thread = threading.Thread(target=work, name="plc-load", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        at = time.monotonic()
        topic = message.topic.removeprefix(f"{self._root}/")
        try:
            if topic == "history":
                self.ledger.told(Verdict.from_json(bytes(message.payload)), at, live=False)
            elif topic.endswith("verdict"):
                camera = topic.rpartition("/")[0]
                self.ledger.told(Verdict.from_json(bytes(message.payload)), at, live=True, camera=camera)
            elif topic.endswith("ack/trigger"):
                answer = json.loads(message.payload)
                self.ledger.acknowledged(answer["id"], answer["ok"], at)
            elif topic == "state":
                state = json.loads(message.payload)
                self.ledger.states.append((at, state["state"], state["reason"]))
            elif topic.startswith("alarm/"):
                self.ledger.alarms.append(
                    (at, topic.removeprefix("alarm/"), bool(json.loads(message.payload)["active"]))
                )
        except (InputError, ValueError, KeyError, TypeError):
            self.unreadable += 1
