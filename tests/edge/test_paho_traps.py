"""What paho does not notice, or does behind one's back, through a network that breaks on purpose.

Two more of its traps are tested beside the publisher's other behaviour: its thread that has died while the client claims
to be connected, and its queue that is full.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.edge.mosquitto import Mosquitto
from tests.edge.proxy import TcpProxy
from tests.edge.publishers import (
    READY,
    READY_JSON,
    ROOT,
    WAIT_S,
    broker,
    journal,
    listen,
    online,
    quick_retries,
    station,
    until,
    verdict,
)

from flawline_edge import connection as connection_module
from flawline_edge.journal import Journal
from flawline_edge.publisher import Publisher

__all__ = ["broker", "journal", "listen", "quick_retries", "station"]  # the fixtures

pytestmark = pytest.mark.timeout(60)

ACK_TIMEOUT_S = 1.0
KEEPALIVE_S = 2
DISCOVERY_S = 2 * KEEPALIVE_S + 2
"""In which an idle connection that is a black hole has to be noticed: a PING, and the wait for its answer."""


@pytest.fixture
def proxy(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    """Between station and broker; listeners go to the broker itself."""
    monkeypatch.setattr(connection_module, "ACK_TIMEOUT_S", ACK_TIMEOUT_S)
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection_module, "KEEPALIVE_S", KEEPALIVE_S)
    with TcpProxy(broker.port) as made:
        yield made


def at_rest(publisher: Publisher) -> Publisher:
    """Connected, and what is said on connecting has been acknowledged."""
    until(lambda: publisher.connection is not None and not publisher.connection.has_unacknowledged())
    return publisher


def sent(publisher: Publisher, journal: Journal, seq: int) -> bool:
    """As the station does: on the disk first, then out."""
    journal.decide(verdict(seq)).result(WAIT_S)
    return publisher.publish_verdict(verdict(seq))


def seqs(messages: list[Any]) -> list[int]:
    return [json.loads(message.payload)["seq"] for message in messages]


def test_paho_itself_delivers_an_old_verdict_as_new(broker: Mosquitto, listen: Any) -> None:
    """The trap, shown on paho: what waited three seconds in its queue, and was worth two, comes with two again."""
    plc = listen(broker.port)
    with TcpProxy(broker.port) as proxy:
        client = Client(CallbackAPIVersion.VERSION2, client_id="naive", protocol=MQTTProtocolVersion.MQTTv5)
        client.reconnect_delay_set(0.1, 0.1)  # type: ignore[arg-type]
        connected = threading.Event()
        client.on_connect = lambda *_: connected.set()
        client.connect("127.0.0.1", proxy.port)
        client.loop_start()
        assert connected.wait(WAIT_S)
        proxy.refuse()
        proxy.cut()
        until(lambda: not client.is_connected())
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = 2
        client.publish(f"{ROOT}/verdict", "stale", 1, properties=properties)
        time.sleep(3.0)
        proxy.heal()
        [stale] = plc.expect("verdict", 1)
        assert stale.expiry_s == 2
        client.disconnect()
        client.loop_stop()


def test_a_small_message_waits_for_no_other(broker: Mosquitto, station: Any) -> None:
    """paho leaves Nagle's algorithm on, which holds each message back until the one before is acknowledged: up to 40 ms."""
    plain = Client(CallbackAPIVersion.VERSION2)
    plain.connect("127.0.0.1", broker.port)
    connection = at_rest(station(broker.port)).connection
    assert connection is not None
    ours, trap = (each.socket() for each in (connection._client, plain))
    assert ours is not None and trap is not None
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert trap.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    plain.disconnect()


def test_a_stale_verdict_never_looks_new(
    broker: Mosquitto, proxy: TcpProxy, journal: Journal, station: Any, listen: Any
) -> None:
    """Swallowed on its way, it comes on history when the network is back; the live topic never repeats it."""
    plc = listen(broker.port)
    publisher = online(station(proxy.port, journal))
    assert sent(publisher, journal, 1)
    plc.expect("verdict", 1)
    proxy.black_hole()
    handed_over = [sent(publisher, journal, seq) for seq in (2, 3, 4)]
    assert handed_over == [True] * 3  # nobody can know better yet
    until(lambda: not publisher.connected)
    assert "no acknowledgement" in publisher.last_error
    assert not sent(publisher, journal, 5)
    proxy.heal()
    online(publisher)
    history = plc.expect("history", 4)
    assert seqs(history) == [2, 3, 4, 5]
    assert all(message.expiry_s is None for message in history)
    assert sent(publisher, journal, 6)
    assert seqs(plc.expect("verdict", 2)) == [1, 6]
    until(lambda: journal.undelivered() == 0)


def test_a_broker_that_goes_silent_is_given_up(
    proxy: TcpProxy, journal: Journal, station: Any, broker: Mosquitto, listen: Any
) -> None:
    """A connection that swallows everything is noticed by its first verdict, within the time for its acknowledgement."""
    publisher = at_rest(station(proxy.port, journal))
    proxy.black_hole()
    began = time.monotonic()
    assert sent(publisher, journal, 1)
    until(lambda: not publisher.connected)
    assert ACK_TIMEOUT_S <= time.monotonic() - began < ACK_TIMEOUT_S + 3.0
    until(lambda: proxy.accepted >= 3)  # it goes on trying
    assert not publisher.connected
    plc = listen(broker.port)
    proxy.heal()
    assert seqs(plc.expect("history", 1)) == [1]
    assert publisher.counters.reconnects == 1


def test_an_idle_connection_that_is_dead_is_noticed(proxy: TcpProxy, station: Any) -> None:
    """No verdict on its way, heartbeats into the void: paho's own PING has to find out, and does."""
    publisher = at_rest(station(proxy.port))
    proxy.black_hole()
    began = time.monotonic()
    until(lambda: not publisher.connected, DISCOVERY_S + 5)
    assert KEEPALIVE_S < time.monotonic() - began < DISCOVERY_S
    proxy.heal()
    online(publisher)


def test_half_a_connection_to_the_broker(
    broker: Mosquitto, proxy: TcpProxy, journal: Journal, station: Any, listen: Any
) -> None:
    """Verdicts arrive, their acknowledgements do not: again on history, since nobody knows; a PLC takes each (boot, seq) once."""
    plc = listen(broker.port)
    publisher = at_rest(station(proxy.port, journal))
    proxy.black_hole("to_client")
    assert sent(publisher, journal, 1)
    assert seqs(plc.expect("verdict", 1)) == [1]
    until(lambda: not publisher.connected)
    proxy.heal()
    assert seqs(plc.expect("history", 1)) == [1]
    assert seqs(plc.on("verdict")) == [1]


def test_half_a_connection_from_the_broker(
    broker: Mosquitto, proxy: TcpProxy, journal: Journal, station: Any, listen: Any
) -> None:
    """The broker hears nothing and after its patience publishes the will; back again, the station says that it lives."""
    plc = listen(broker.port)
    publisher = online(station(proxy.port, journal))
    plc.expect("state", 1)
    proxy.black_hole("to_server")
    assert sent(publisher, journal, 1)
    until(lambda: not publisher.connected)
    until(lambda: plc.last_state() == "offline")
    proxy.heal()
    online(publisher)
    until(lambda: plc.last_state() == "ready")
    assert seqs(plc.expect("history", 1)) == [1]
    assert plc.on("verdict") == []
    assert listen(broker.port).expect("state", 1)[0].payload == READY_JSON


def test_the_will_of_the_connection_before_does_not_last(
    broker: Mosquitto, proxy: TcpProxy, station: Any, listen: Any
) -> None:
    """A takeover by the same client id makes the broker publish the old will, at a moment of its own choosing."""
    plc = listen(broker.port)
    publisher = online(station(proxy.port))
    until(lambda: plc.last_state() == "ready")
    for n in range(3):
        proxy.cut()
        until(lambda n=n: publisher.counters.reconnects == n + 1)  # type: ignore[misc]
        online(publisher)
    until(lambda: plc.last_state() == "ready")
    time.sleep(0.5)
    late = listen(broker.port)
    assert late.expect("state", 1)[0].payload == READY_JSON


def test_a_broker_that_answers_slowly_is_kept(
    broker: Mosquitto, proxy: TcpProxy, journal: Journal, station: Any, listen: Any
) -> None:
    """Late is not lost: with half of the patience used up, everything arrives live and once."""
    plc = listen(broker.port)
    proxy.delay(ACK_TIMEOUT_S / 8)
    publisher = online(station(proxy.port, journal))
    proxy.delay(ACK_TIMEOUT_S / 4)
    for seq in range(1, 6):
        assert sent(publisher, journal, seq)
        time.sleep(0.1)
    assert seqs(plc.expect("verdict", 5)) == [1, 2, 3, 4, 5]
    until(lambda: journal.undelivered() == 0)
    assert plc.on("history") == []
    assert publisher.counters.reconnects == 0


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
def test_an_outage_under_load(
    broker: Mosquitto, proxy: TcpProxy, journal: Journal, station: Any, listen: Any, reset: bool
) -> None:
    """Cuts in the middle of a stream of verdicts: each arrives live or on history, none twice live.

    On history one may come twice: what was cut off before its acknowledgement came back is sent again.
    """
    plc = listen(broker.port)
    publisher = online(station(proxy.port, journal))
    count = 150
    for seq in range(1, count + 1):
        sent(publisher, journal, seq)
        if seq % 40 == 0:
            proxy.cut(reset=reset)
        time.sleep(0.005)
    until(lambda: journal.undelivered() == 0, 30.0)
    live, history = seqs(plc.on("verdict")), seqs(plc.on("history"))
    assert len(live) == len(set(live)) and live == sorted(live)
    assert set(live) | set(history) == set(range(1, count + 1))
    assert len(history) - len(set(history)) <= publisher.counters.reconnects * connection_module._HISTORY_IN_FLIGHT
    assert publisher.counters.reconnects >= 1


def test_no_alarm_is_lost_with_a_connection(broker: Mosquitto, proxy: TcpProxy, station: Any, listen: Any) -> None:
    """Raised or cleared during an outage, alarms and state are as they are now when it is over."""
    plc = listen(broker.port)
    publisher = online(station(proxy.port))
    publisher.alarm("camera", True, "lost")
    plc.expect("alarm/camera", 1)
    proxy.refuse()
    proxy.cut()
    until(lambda: not publisher.connected)
    publisher.alarm("camera", False)
    publisher.alarm("disk", True, "full")
    publisher.set_state(replace(READY, state="paused"))
    proxy.heal()
    until(lambda: plc.last_state() == "paused")
    until(lambda: len(plc.on("alarm/disk")) == 1)
    assert json.loads(plc.on("alarm/camera")[-1].payload)["active"] is False
