"""The same outage, done to the publishers that one writes in an afternoon: what becomes of the verdicts they make.

QoS 0, reconnect in publish    what inspection demos do: a message without a connection goes nowhere
QoS 1, paho's own queue        what paho does by itself: it keeps them, and sends them as if they were new

A station is asked over the same connection, so that it makes fewer verdicts in the outage: those that its clock asks for.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.edge.mosquitto import Mosquitto, mosquitto
from tests.edge.proxy import TcpProxy
from tests.faults.rig import rig

PERIOD_S = 0.05
BEFORE_S, AFTER_S = 1.0, 6.0
IN_TIME_S = 2.5
"""As long as a station's verdict may take in the fault matrix."""
KEEPALIVE_S = 5

Outage = Callable[[Mosquitto, TcpProxy], None]


@dataclass(frozen=True)
class Delivery:
    """What became of `made` verdicts at a subscriber that was there all the time, or as much of it as its broker."""

    publisher: str
    made: int
    live: int
    stale: int
    history: int

    @property
    def lost(self) -> int:
        return self.made - self.live - self.stale - self.history


def reconnecting_in_publish(port: int) -> Callable[[str], None]:
    client = _client("peer")
    client.connect("127.0.0.1", port, KEEPALIVE_S)
    client.loop_start()

    def publish(payload: str) -> None:
        if not client.is_connected():
            with contextlib.suppress(OSError):
                client.reconnect()
        client.publish("peer/verdict", payload, 0)

    return publish


def queueing(port: int) -> Callable[[str], None]:
    client = _client("peer")
    client.connect("127.0.0.1", port, KEEPALIVE_S)
    client.loop_start()
    return lambda payload: client.publish("peer/verdict", payload, 1) and None


PEERS = {"QoS 0, reconnect in publish": reconnecting_in_publish, "QoS 1, paho's own queue": queueing}


def broker_outage(broker: Mosquitto, proxy: TcpProxy) -> None:
    broker.kill()
    time.sleep(3.0)
    proxy.refuse()
    broker.start()
    time.sleep(0.5)  # for the subscribers to come back first: what is told to nobody is delivered by MQTT's rules
    proxy.heal()


def black_hole(broker: Mosquitto, proxy: TcpProxy) -> None:
    proxy.black_hole()
    time.sleep(12.0)
    proxy.heal()


OUTAGES: dict[str, Outage] = {"broker gone for 3 s": broker_outage, "network silent for 12 s": black_hole}


def deliver(name: str, outage: Outage) -> Delivery:
    """20 verdicts a second from a second before the outage until 6 s after it."""
    with mosquitto() as broker, TcpProxy(broker.port) as proxy:
        arrived: dict[str, float] = {}

        def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
            arrived.setdefault(message.payload.decode("ascii"), time.monotonic())

        listener = _client("listener")
        listener.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]
        listener.on_connect = lambda client, *_: client.subscribe("peer/#", 1)
        subscribed = threading.Event()
        listener.on_subscribe = lambda *_: subscribed.set()
        listener.on_message = on_message
        listener.connect("127.0.0.1", broker.port)
        listener.loop_start()
        assert subscribed.wait(10.0)
        publish, made, stop = PEERS[name](proxy.port), {}, threading.Event()

        def work() -> None:
            while not stop.wait(PERIOD_S):
                payload = str(len(made))
                made[payload] = time.monotonic()
                with contextlib.suppress(OSError, socket.timeout):
                    publish(payload)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        time.sleep(BEFORE_S)
        outage(broker, proxy)
        time.sleep(AFTER_S)
        stop.set()
        thread.join(15.0)
        time.sleep(IN_TIME_S)
        listener.loop_stop()
        in_time = [payload for payload, at in arrived.items() if at - made[payload] <= IN_TIME_S]
        return Delivery(name, len(made), len(in_time), len(arrived) - len(in_time), 0)


def deliver_ours(outage: Outage) -> Delivery:
    """The same with a station: 20 triggers a second, and the camera that has a clock of its own."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, rig(Path(folder), rate=1 / PERIOD_S) as made:
        made.ready()
        since = time.monotonic()
        with made.plc.load(made.rate):
            time.sleep(BEFORE_S)
            outage(made.broker, made.proxy)
            time.sleep(AFTER_S)
        account = made.settle(since)
        stale = len(account.stale)
        return Delivery(
            "flawline", account.accepted + len(account.missing), account.live - stale, stale, account.history
        )


def _client(name: str) -> Client:
    return Client(CallbackAPIVersion.VERSION2, name, True, protocol=MQTTProtocolVersion.MQTTv311)
