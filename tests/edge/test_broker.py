"""The embedded broker: there at once, gone without a word."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from flawline_edge.broker import EmbeddedBroker
from flawline_inspect.errors import BrokerError

pytestmark = pytest.mark.timeout(30)


def test_a_message_goes_through() -> None:
    arrived: list[bytes] = []
    done = threading.Event()
    subscribed = threading.Event()

    def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
        arrived.append(bytes(message.payload))
        done.set()

    with EmbeddedBroker() as broker:
        client = Client(CallbackAPIVersion.VERSION2, client_id="probe", protocol=MQTTProtocolVersion.MQTTv311)
        client.on_message = on_message
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        try:
            deadline = time.monotonic() + 5.0
            while not client.is_connected() and time.monotonic() < deadline:
                time.sleep(0.01)
            client.subscribe("a/b", 1)
            assert subscribed.wait(5.0)
            client.publish("a/b", b"hello", 1)
            assert done.wait(5.0)
        finally:
            client.disconnect()
            client.loop_stop()
    assert arrived == [b"hello"]


def test_it_starts_and_stops_quickly_with_clients_connected() -> None:
    begin = time.monotonic()
    broker = EmbeddedBroker()
    broker.__enter__()
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", broker.port), 2.0):
        stopping = time.monotonic()
        broker.__exit__(None, None, None)
        stopped = time.monotonic()
    assert started - begin < 3.0  # imports amqtt the first time; the start itself takes some 20 ms
    assert stopped - stopping < 3.0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", broker.port), 2.0)


def test_an_mqtt5_client_is_refused_at_once() -> None:
    """With a will, too, whose properties amqtt cannot read: the client knows what to do next."""
    reasons: list[str] = []
    answered = threading.Event()

    def on_connect(_client: Client, _data: object, _flags: object, reason: object, _properties: object) -> None:
        reasons.append(str(reason))
        answered.set()

    with EmbeddedBroker() as broker:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id="press-7-ab12",
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.will_set("acme/press-7/state", "x" * 150, 1, True)
        client.on_connect = on_connect
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert answered.wait(2.0)
        client.loop_stop()
    assert reasons == ["Unsupported protocol version"]


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"127.0.0.1:{port} .*in use"), EmbeddedBroker(port):
            pytest.fail("two brokers on one port")
    with EmbeddedBroker(port) as broker:
        assert broker.port == port


def test_without_amqtt_it_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(BrokerError, match=r"flawline\[demo\]"), EmbeddedBroker():
        pytest.fail("started without amqtt")


_SILENT = """
    import logging, socket, time
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
    from flawline_edge.broker import EmbeddedBroker

    logging.basicConfig(level=logging.WARNING)
    version2 = CallbackAPIVersion.VERSION2
    with EmbeddedBroker() as broker:
        modern = Client(version2, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False)
        modern.connect("127.0.0.1", broker.port)
        modern.loop_start()
        client = Client(version2, protocol=MQTTProtocolVersion.MQTTv311)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        while not client.is_connected():
            time.sleep(0.01)
        client.subscribe("#", 1)
        client.publish("a", b"x" * 100, 1, True)
        half = socket.create_connection(("127.0.0.1", broker.port))
        time.sleep(0.3)
    half.close()
    for each in (modern, client):
        each.disconnect()
        each.loop_stop()
"""


def test_it_says_nothing_on_the_terminal() -> None:
    """Neither about MQTT 5 clients that it turns away nor about connections that are open when it stops."""
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(_SILENT)],
        capture_output=True,
        text=True,
        timeout=20,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
