"""Publishers, and who listens to them, for tests with a real broker. Import the fixtures that a test names."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions
from tests.edge.mosquitto import Mosquitto, mosquitto

from flawline_edge import publisher as publisher_module
from flawline_edge.journal import Journal
from flawline_edge.publisher import Publisher, StationState
from flawline_inspect.config import MqttConfig
from flawline_inspect.verdict import Reason, Result, Verdict

ROOT = "acme/hall2/press-7"
BOOT = "001f9c21"
READY = StationState("ready", BOOT, 2, "bottle-3f9a1c2e", "openvino", "fp32")
READY_JSON = (
    '{"state":"ready","boot":"001f9c21","recipe":2,"model":"bottle-3f9a1c2e",'
    '"engine":"openvino","precision":"fp32","reason":""}'
)
DEADLINE_S = 1.2
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "BACKOFF_S", (0.1, 0.3))


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


@pytest.fixture
def station() -> Iterator[Callable[..., Publisher]]:
    """Starts publishers and stops what the test has left running."""
    started: list[Publisher] = []

    def start(port: int, journal: Journal | None = None, **options: Any) -> Publisher:
        made = make(port, journal, **options)
        made.start()
        started.append(made)
        return made

    yield start
    for each in started:
        each.stop(timeout_s=0.0)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    clients: list[Listener] = []

    def start(port: int, topic: str = f"{ROOT}/#", version: int = 5) -> Listener:
        clients.append(Listener(port, topic, MQTTProtocolVersion(version)))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def make(port: int, journal: Journal | None = None, **options: Any) -> Publisher:
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": port, "root": ROOT}
    settings |= {key: options.pop(key) for key in ("scalar_topics", "tls", "username") if key in options}
    given = {"host": "127.0.0.1", "client_id": "press-7-ab12", "state": READY, "deadline_s": DEADLINE_S}
    return Publisher(mqtt=MqttConfig(**settings), port=port, journal=journal, **{**given, **options})


def verdict(seq: int) -> Verdict:
    return Verdict(
        seq, BOOT, f"T-{seq}", "SN1", Result.NOT_OK, Reason.NONE, 1.83, 1.21, 2, "bottle-3f9a1c2e", 1.8e9, 7.4
    )


@dataclass(frozen=True)
class Arrived:
    topic: str
    payload: str
    qos: int
    retain: bool
    expiry_s: int | None
    at: float


class Listener:
    """A subscriber with the retain flag as published; it survives restarts of its broker."""

    def __init__(self, port: int, topic: str, protocol: MQTTProtocolVersion) -> None:
        self.messages: list[Arrived] = []
        self._topic = topic
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"listener-{id(self)}", protocol=protocol)
        self._client.reconnect_delay_set(0.02, 0.02)  # type: ignore[arg-type]
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._subscribed.clear()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self.ready()

    def _on_connect(self, *_: object) -> None:
        if self._client.protocol is MQTTProtocolVersion.MQTTv5:
            self._client.subscribe(self._topic, options=SubscribeOptions(qos=1, retainAsPublished=True))
        else:
            self._client.subscribe(self._topic, 1)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        expiry = getattr(message.properties, "MessageExpiryInterval", None)
        self.messages.append(
            Arrived(
                message.topic.removeprefix(f"{ROOT}/"),
                message.payload.decode(),
                message.qos,
                message.retain,
                expiry,
                time.monotonic(),
            )
        )

    def ready(self) -> None:
        assert self._subscribed.wait(WAIT_S)

    def publish(self, topic: str, payload: str | bytes, *, retain: bool = False) -> None:
        self._client.publish(f"{ROOT}/{topic}", payload, 1, retain)

    def on(self, topic: str) -> list[Arrived]:
        return [message for message in list(self.messages) if message.topic == topic]

    def expect(self, topic: str, count: int) -> list[Arrived]:
        """Wait for `count` messages on a topic; more than that is seen too, if it comes soon."""
        until(lambda: len(self.on(topic)) >= count)
        time.sleep(0.1)
        found = self.on(topic)
        assert len(found) == count, found
        return found

    def last_state(self) -> str:
        states = self.on("state")
        return str(json.loads(states[-1].payload)["state"]) if states else ""

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def online(publisher: Publisher) -> Publisher:
    until(lambda: publisher.connected)
    return publisher
