"""The publisher against a real mosquitto, and once against the embedded broker."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from tests.edge.mosquitto import Mosquitto, mosquitto
from tests.edge.publishers import (
    BOOT,
    READY,
    READY_JSON,
    ROOT,
    WAIT_S,
    Listener,
    broker,
    journal,
    listen,
    make,
    online,
    quick_retries,
    station,
    until,
    verdict,
)

from flawline_edge import connection as connection_module
from flawline_edge import history as history_module
from flawline_edge import publisher as publisher_module
from flawline_edge.broker import EmbeddedBroker
from flawline_edge.journal import Journal
from flawline_edge.messages import Command
from flawline_inspect.config import TlsConfig
from flawline_inspect.errors import BrokerError
from flawline_inspect.verdict import VERDICT_SCHEMA

pytestmark = pytest.mark.timeout(40)

__all__ = ["broker", "journal", "listen", "quick_retries", "station"]  # the fixtures


def test_a_verdict_is_one_message(broker: Mosquitto, journal: Journal, station: Any, listen: Any) -> None:
    """Once, valid, QoS 1, never retained, worth its deadline rounded up; the journal learns of the PUBACK."""
    plc = listen(broker.port)
    publisher = online(station(broker.port, journal))
    given = verdict(1042)
    journal.decide(given).result(WAIT_S)
    assert publisher.publish_verdict(given)
    [message] = plc.expect("verdict", 1)
    assert message.payload == given.to_json()
    jsonschema.validate(json.loads(message.payload), VERDICT_SCHEMA)
    assert (message.qos, message.retain, message.expiry_s) == (1, False, 2)
    until(lambda: publisher.counters.published == 1)
    until(lambda: journal.undelivered() == 0)
    assert (publisher.counters.undelivered, publisher.last_error) == (0, "")
    assert plc.on("verdict/code") == []
    late = listen(broker.port)
    late.expect("state", 1)
    assert {message.topic.split("/")[0] for message in late.messages} <= {"state", "heartbeat", "alarm"}


def test_the_code_topic_names_its_part(broker: Mosquitto, station: Any, listen: Any) -> None:
    plc = listen(broker.port)
    publisher = online(station(broker.port, scalar_topics=True))
    assert publisher.publish_verdict(verdict(7))
    [code] = plc.expect("verdict/code", 1)
    assert (code.payload, code.qos, code.retain, code.expiry_s) == ("7;T-7;2", 1, False, 2)
    plc.expect("verdict", 1)


def test_state_is_retained_and_heartbeats_count(broker: Mosquitto, station: Any, listen: Any) -> None:
    plc = listen(broker.port)
    publisher = online(station(broker.port))
    [state] = plc.expect("state", 1)
    assert (state.payload, state.qos, state.retain) == (READY_JSON, 1, True)
    publisher.set_state(replace(READY, state="paused", reason="Prüfung"))
    assert json.loads(plc.expect("state", 2)[1].payload)["reason"] == "Prüfung"
    assert plc.on("state")[1].payload.isascii()
    until(lambda: len(plc.on("heartbeat")) >= 3)
    beats = plc.on("heartbeat")[:3]
    assert [(beat.payload, beat.qos, beat.retain) for beat in beats] == [(str(n), 0, False) for n in (1, 2, 3)]
    assert 1.7 < beats[2].at - beats[0].at < 2.6


_STATION = """
    import sys, time
    from flawline_edge.publisher import Publisher, StationState
    from flawline_inspect.config import MqttConfig

    port = int(sys.argv[1])
    publisher = Publisher(
        mqtt=MqttConfig(host="127.0.0.1", port=port, root="acme/hall2/press-7"), host="127.0.0.1", port=port,
        client_id="press-7-dead", state=StationState("ready", "001f9c21", 2, "m", "openvino", "fp32", "x"),
        journal=None, deadline_s=0.2,
    )
    publisher.start()
    time.sleep(60)
"""


def test_a_killed_station_is_offline(broker: Mosquitto, listen: Any) -> None:
    """kill -9: the broker publishes the will, retained, with the state's keys."""
    plc = listen(broker.port)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_STATION), str(broker.port)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        until(lambda: plc.last_state() == "ready", 20.0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: plc.last_state() == "offline")
    will = json.loads(plc.on("state")[-1].payload)
    assert will == {**json.loads(READY_JSON), "state": "offline", "model": "m"}
    assert plc.on("state")[-1].retain
    assert listen(broker.port).expect("state", 1)[0].payload == plc.on("state")[-1].payload


def test_a_clean_stop_leaves_the_last_state(broker: Mosquitto, journal: Journal, station: Any, listen: Any) -> None:
    publisher = online(station(broker.port, journal))
    for seq in range(1, 11):
        journal.decide(verdict(seq))
        assert publisher.publish_verdict(verdict(seq))
    publisher.set_state(replace(READY, state="stopped"))
    assert publisher.stop()
    assert not publisher.connected
    assert publisher.counters.published == 10
    late = listen(broker.port)
    assert json.loads(late.expect("state", 1)[0].payload)["state"] == "stopped"


def test_an_outage_ends_up_in_history(
    broker: Mosquitto, journal: Journal, station: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be delivered comes on history: oldest first, once, unhurried, and never on verdict."""
    monkeypatch.setattr(publisher_module, "BACKOFF_S", (0.8, 0.9))  # the listener is back first
    plc = listen(broker.port)
    publisher = online(station(broker.port, journal))
    publisher.alarm("camera", True, "lost")
    journal.decide(verdict(1)).result(WAIT_S)
    assert publisher.publish_verdict(verdict(1))
    plc.expect("verdict", 1)
    broker.stop()
    until(lambda: not publisher.connected)
    assert "lost" in publisher.last_error
    for seq in range(2, 32):
        journal.decide(verdict(seq))
        assert not publisher.publish_verdict(verdict(seq))
    publisher.set_state(replace(READY, reason="again"))
    states = len(plc.on("state"))
    broker.start()
    plc.ready()
    online(publisher)
    until(lambda: publisher.counters.history == 30)
    until(lambda: len(plc.on("state")) > states)
    assert json.loads(plc.on("state")[-1].payload)["reason"] == "again"
    assert json.loads(plc.on("alarm/camera")[-1].payload)["active"] is True
    assert len(plc.on("verdict")) == 1
    history = plc.expect("history", 30)
    assert [json.loads(message.payload)["seq"] for message in history] == list(range(2, 32))
    span = history[-1].at - history[0].at
    assert span > 0.9 * 29 * history_module.INTERVAL_S
    assert publisher.stop()
    assert journal.undelivered() == 0
    assert (publisher.counters.published, publisher.counters.undelivered) == (1, 30)
    assert publisher.counters.reconnects == 1


def test_all_of_history_arrives_at_a_listener_that_is_there(
    broker: Mosquitto, journal: Journal, station: Any, listen: Any
) -> None:
    """Each message once and in order, beside live verdicts."""
    plc = listen(broker.port)
    keys = [(BOOT, seq) for seq in range(1, 31)]
    for seq in range(1, 31):
        journal.decide(verdict(seq))
    journal.to_history(keys)
    publisher = online(station(broker.port, journal))
    for seq in range(100, 105):
        journal.decide(verdict(seq))
        assert publisher.publish_verdict(verdict(seq))
    history = plc.expect("history", 30)
    assert [json.loads(message.payload)["seq"] for message in history] == list(range(1, 31))
    assert all(message.payload == verdict(n).to_json() for n, message in enumerate(history, 1))
    assert all((message.qos, message.retain, message.expiry_s) == (1, False, None) for message in history)
    assert [json.loads(message.payload)["seq"] for message in plc.on("verdict")] == list(range(100, 105))
    until(lambda: journal.undelivered() == 0)


def test_a_silent_broker_is_given_up(
    broker: Mosquitto, journal: Journal, station: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent, not acknowledged: the connection is torn down and the verdict goes to history, not out again."""
    monkeypatch.setattr(connection_module, "ACK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.5)
    publisher = online(station(broker.port, journal))
    broker.freeze()
    journal.decide(verdict(1)).result(WAIT_S)
    assert publisher.publish_verdict(verdict(1))
    until(lambda: not publisher.connected)
    assert "no acknowledgement" in publisher.last_error
    assert [each.seq for each in journal.next_history(10)] == [1]
    broker.kill()
    broker.start()
    plc = listen(broker.port)
    until(lambda: publisher.counters.history == 1)
    assert len(plc.on("history")) <= 1
    assert plc.on("verdict") == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_of_paho_is_noticed(broker: Mosquitto, station: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats would go on without it, written by the publisher's own thread, and no command would arrive."""
    publisher = online(station(broker.port, on_command=lambda *_: None))

    faults, loop_misc = [RuntimeError("a mistake in paho")], Client.loop_misc

    def fail_once(client: Client) -> Any:
        if faults:
            raise faults.pop()
        return loop_misc(client)

    monkeypatch.setattr(Client, "loop_misc", fail_once)
    until(lambda: publisher.counters.reconnects == 1)
    assert online(publisher).last_error == ""


def test_a_broker_that_is_behind_gets_no_more_live_verdicts(broker: Mosquitto, journal: Journal, station: Any) -> None:
    """paho would queue them and send them late; they go to history instead. Stopping does not hang either."""
    publisher = online(station(broker.port, journal))
    assert publisher.publish_verdict(verdict(1))
    until(lambda: publisher.counters.published == 1)
    broker.freeze()
    sent = [publisher.publish_verdict(verdict(seq)) for seq in range(2, 42)]
    assert 15 <= sum(sent) <= 20
    assert sent == sorted(sent, reverse=True)
    begin = time.monotonic()
    assert not publisher.stop(timeout_s=0.5)
    assert time.monotonic() - begin < 4.0


def test_who_waits_for_a_broker_that_is_behind_is_not_overtaken(
    broker: Mosquitto, journal: Journal, station: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of refusals, which do not wait, leaves the first room to the verdict that does; and those that wait keep their order."""
    monkeypatch.setattr(publisher_module, "HEARTBEAT_S", 1000.0)
    publisher = online(station(broker.port, journal))
    connection = publisher.connection
    assert connection is not None
    # What is on its way takes room and gives it back: the first heartbeat, state and alarms.
    until(lambda: publisher._beats == 1 and not connection._in_flight and not connection._between)
    broker.freeze()
    seq = 1
    while publisher.publish_verdict(verdict(seq)):
        seq += 1
    waiting: list[threading.Thread] = []
    gone: list[int] = []

    def wait(n: int) -> None:
        if publisher.publish_verdict(verdict(n), until=time.monotonic() + WAIT_S):
            gone.append(n)

    for n in (100, 101):
        waiting.append(threading.Thread(target=wait, args=(n,)))
        waiting[-1].start()
        until(lambda n=n: len(connection._queue) == n - 99)  # type: ignore[misc]
    for n in (100, 101):
        mid = min(connection._in_flight)
        connection._on_publish(connection._client, None, mid, ReasonCode(PacketTypes.PUBACK), None)
        assert not publisher.publish_verdict(verdict(n + 100))  # the room is not for it
        waiting[n - 100].join(WAIT_S)
        assert gone == list(range(100, n + 1))


def test_wrong_credentials_are_refused_until_they_are_right(
    tmp_path: Path, station: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flawline_edge.publisher")
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", passwords, "press-7", "other"], check=True, capture_output=True)
    with mosquitto(f"password_file {passwords}", "allow_anonymous false") as broker:
        publisher = station(broker.port, username="press-7", password="secret")
        until(lambda: "refuses the station" in publisher.last_error)
        time.sleep(1.0)  # several attempts
        assert not publisher.connected
        assert not publisher.publish_verdict(verdict(1))
        refusals = [record for record in caplog.records if "refuses" in record.getMessage()]
        assert len(refusals) == 1
        subprocess.run([tool, "-b", passwords, "press-7", "secret"], check=True, capture_output=True)
        broker.signal(signal.SIGHUP)
        online(publisher)
        assert publisher.last_error == ""
        assert "secret" not in caplog.text


def test_an_absent_broker_is_retried(tmp_path: Path, journal: Journal, station: Any, listen: Any) -> None:
    """Nobody listens on the port: a sentence, no exception, history later."""
    with mosquitto() as broker:
        broker.stop()
        publisher = station(broker.port, journal)
        until(lambda: "cannot be reached" in publisher.last_error)
        journal.decide(verdict(1)).result(WAIT_S)
        assert not publisher.publish_verdict(verdict(1))
        assert not publisher.stop(timeout_s=0.1)
        assert [each.seq for each in journal.next_history(10)] == [1]


def test_a_host_that_is_no_broker_is_named(station: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing; stopping in the middle of it does not hang."""
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        publisher = station(mute.getsockname()[1])
        until(lambda: "does not answer" in publisher.last_error)
        begin = time.monotonic()
        publisher.stop(timeout_s=0.1)
        assert time.monotonic() - begin < 3.0
        assert not publisher.connected


def test_a_host_that_does_not_exist_is_named(station: Any) -> None:
    publisher = station(1883, host="no-such-host.invalid")
    until(lambda: "cannot be reached" in publisher.last_error)


def test_reading_offline_the_station_contradicts(broker: Mosquitto, station: Any, listen: Any) -> None:
    """A broker that publishes an old connection's will late would leave a living station offline."""
    plc = listen(broker.port)
    online(station(broker.port))
    plc.expect("state", 1)
    plc.publish("state", READY_JSON.replace("ready", "offline"), retain=True)
    until(lambda: len(plc.on("state")) == 3)
    assert plc.on("state")[-1].payload == READY_JSON
    plc.publish("state", "not json")
    plc.publish("state", "[1]")
    plc.expect("state", 5)
    assert listen(broker.port).expect("state", 1)[0].payload == READY_JSON


def test_commands_arrive_unless_oversized_and_say_if_retained(
    broker: Mosquitto, station: Any, listen: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The station refuses a retained one, which would come again with every reconnect; an error in a handler ends nothing."""
    plc = listen(broker.port)
    got: list[tuple[str, bytes, bool]] = []

    def on_command(command: Command) -> None:
        got.append((command.name, command.payload, command.retained))
        if command.name == "fail":
            raise RuntimeError("a mistake in a handler")

    plc.publish("cmd/trigger", '{"id":"old"}', retain=True)
    plc.expect("cmd/trigger", 1)
    publisher = online(station(broker.port, on_command=on_command))
    until(lambda: len(got) == 1)
    plc.publish("cmd/pause", '{"id":"1"}', retain=True)
    until(lambda: len(got) == 2)
    assert got == [("trigger", b'{"id":"old"}', True), ("pause", b'{"id":"1"}', True)]
    got.clear()
    plc.publish("cmd/trigger", b"x" * 1025)
    plc.publish("cmd/resume", b"x" * 1025, retain=True)
    plc.publish("cmd/fail", "{}")
    plc.publish("cmd/trigger", '{"id":"2"}')
    plc.publish("cmd/trigger", b"y" * 1024)
    until(lambda: len(got) == 3)
    assert got == [("fail", b"{}", False), ("trigger", b'{"id":"2"}', False), ("trigger", b"y" * 1024, False)]
    assert "a mistake in a handler" in caplog.text
    assert "1025 bytes" in caplog.text
    publisher.acknowledge("trigger", {"id": "2", "ok": True, "error": "", "state": "ä"})
    answer = plc.expect("ack/trigger", 1)[0]
    assert answer.payload == '{"id":"2","ok":true,"error":"","state":"\\u00e4"}'
    assert (answer.qos, answer.retain) == (1, False)
    assert publisher.connected


def subscribed(plc: Listener, got: list[Any]) -> None:
    """Connected is not yet subscribed: commands are sent until one has arrived, and all that did are forgotten."""

    def heard() -> bool:
        plc.publish("right/cmd/hello", "hello")
        time.sleep(0.05)
        return bool(got)

    until(heard)
    until(lambda: len(got) == len(plc.on("right/cmd/hello")))
    got.clear()


def test_cameras_have_topics_of_their_own(broker: Mosquitto, station: Any, listen: Any) -> None:
    """Verdict, code, commands and acknowledgements below the camera's name; ROOT/cmd stays, and so do state and history."""
    plc = listen(broker.port)
    got: list[tuple[str, str, bytes]] = []
    publisher = online(
        station(
            broker.port,
            cameras=["left", "right"],
            scalar_topics=True,
            on_command=lambda command: got.append(command[:3]),
        )
    )
    subscribed(plc, got)
    for topic in ("left/cmd/trigger", "right/cmd/pause", "cmd/reload", "third/cmd/trigger", "left/cmd/a/b"):
        plc.publish(topic, topic)
    plc.publish("left/cmd/trigger", "the last one")
    until(lambda: len(got) >= 4)
    assert got == [
        ("left", "trigger", b"left/cmd/trigger"),
        ("right", "pause", b"right/cmd/pause"),
        ("", "reload", b"cmd/reload"),
        ("left", "trigger", b"the last one"),
    ]
    assert publisher.publish_verdict(verdict(1), camera="right")
    publisher.acknowledge("pause", {"id": "1"}, camera="right")
    publisher.acknowledge("reload", {"id": "2"})
    assert plc.expect("right/verdict", 1)[0].payload == verdict(1).to_json()
    assert plc.expect("right/verdict/code", 1)[0].payload == "1;T-1;2"
    assert plc.expect("right/ack/pause", 1)[0].payload == '{"id":"1"}'
    assert plc.expect("ack/reload", 1)[0].payload == '{"id":"2"}'
    assert plc.on("state") and not plc.on("verdict")


def test_an_answer_goes_where_the_command_asks_for_it(broker: Mosquitto, station: Any, listen: Any) -> None:
    """MQTT 5: below the station's own ack/ and nowhere else, with the correlation data as they came."""
    plc = listen(broker.port)
    answers: list[Properties] = []
    got: list[Command] = []

    def on_command(command: Command) -> None:
        got.append(command)
        if command.name != "hello":
            publisher.acknowledge(command.name, {"id": command.name}, camera=command.camera, reply=command.reply)

    publisher = online(station(broker.port, cameras=["left", "right"], on_command=on_command))
    subscribed(plc, got)
    plc._client.on_message = lambda _c, _d, m: (answers.append(m.properties), Listener._on_message(plc, _c, _d, m))
    wishes = {
        "one": ("cmd", f"{ROOT}/ack/plc7"),
        "two": ("left/cmd", f"{ROOT}/left/ack/plc7/a"),
        "three": ("left/cmd", f"{ROOT}/right/ack/plc7"),
        "four": ("cmd", f"{ROOT}/verdict"),
        "five": ("cmd", f"{ROOT}/ack/" + "x" * 300),
        "six": ("cmd", "elsewhere/ack/plc7"),
    }
    for name, (below, topic) in wishes.items():
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = topic, name.encode()
        plc._client.publish(f"{ROOT}/{below}/{name}", "{}", 1, properties=properties)
    until(lambda: sum("ack/" in message.topic for message in plc.messages) == len(wishes))
    arrived = {message.payload: message.topic for message in plc.messages if "ack/" in message.topic}
    assert arrived == {
        '{"id":"one"}': "ack/plc7",
        '{"id":"two"}': "left/ack/plc7/a",
        '{"id":"three"}': "left/ack/three",
        '{"id":"four"}': "ack/four",
        '{"id":"five"}': "ack/five",
        '{"id":"six"}': "ack/six",
    }
    answered = [p.CorrelationData for p in answers if hasattr(p, "CorrelationData") and not hasattr(p, "ResponseTopic")]
    assert sorted(answered) == [b"one", b"two"]


def test_commands_are_not_subscribed_to_without_a_handler(broker: Mosquitto, station: Any, listen: Any) -> None:
    plc = listen(broker.port)
    online(station(broker.port))
    plc.publish("cmd/trigger", "{}", retain=True)
    plc.expect("cmd/trigger", 1)
    assert plc.on("ack/trigger") == []


def test_alarms_are_retained_and_sent_when_they_change(broker: Mosquitto, station: Any, listen: Any) -> None:
    plc = listen(broker.port)
    publisher = make(broker.port)
    publisher.alarm("disk", False)  # before there is a connection: remembered
    publisher.start()
    try:
        plc.expect("alarm/disk", 1)
        for _ in range(3):
            publisher.alarm("disk", True, "97 % full")
        raised = plc.expect("alarm/disk", 2)[1]
        publisher.alarm("disk", True, "98 % full")
        publisher.alarm("disk", False)
        first, _, changed, cleared = [json.loads(each.payload) for each in plc.expect("alarm/disk", 4)]
        assert raised.retain and raised.qos == 1
        assert list(json.loads(raised.payload)) == ["active", "since", "text"]
        assert first["active"] is cleared["active"] is False
        assert (changed["text"], changed["since"]) == ("98 % full", json.loads(raised.payload)["since"])
        assert cleared["since"] >= changed["since"]
    finally:
        assert publisher.stop()


def test_it_knows_whether_anybody_listens(broker: Mosquitto, station: Any, listen: Any) -> None:
    publisher = online(station(broker.port))
    publisher.publish_verdict(verdict(1))
    until(lambda: publisher.no_subscriber is True)
    listen(broker.port)
    publisher.publish_verdict(verdict(2))
    until(lambda: publisher.no_subscriber is False)


def test_a_verdict_that_may_not_be_published_is_not_delivered(
    tmp_path: Path, journal: Journal, station: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An access rule of the broker: a PUBACK that says no is no delivery, and nothing to repeat at once."""
    rules = tmp_path / "rules"
    allowed = (f"readwrite {ROOT}/state", f"write {ROOT}/heartbeat", f"write {ROOT}/alarm/#")
    rules.write_text("".join(f"topic {topic}\n" for topic in allowed), encoding="ascii")
    with mosquitto(f"acl_file {rules}") as broker:
        publisher = online(station(broker.port, journal))
        journal.decide(verdict(1)).result(WAIT_S)
        publisher.publish_verdict(verdict(1))
        until(lambda: "history: the broker refuses" in caplog.text)
        time.sleep(1.2)  # two more looks at the journal
        assert publisher.counters.published == publisher.counters.history == 0
        assert publisher.counters.undelivered == 1
        assert journal.undelivered() == 1
        assert broker.log.count("Denied PUBLISH from press-7-ab12") == 2
        assert publisher.connected


def test_many_threads_and_many_acknowledgements(broker: Mosquitto, station: Any, listen: Any) -> None:
    """No deadlock between publish() and on_publish, no verdict lost, doubled or counted twice."""
    plc = listen(broker.port)
    publisher = online(station(broker.port, scalar_topics=True))
    sent: list[int] = []

    def work(first: int) -> None:
        for seq in range(first, first + 250):
            if publisher.publish_verdict(verdict(seq)):
                sent.append(seq)
            else:
                time.sleep(0.005)
            if seq % 50 == 0:
                publisher.set_state(READY)

    threads = [threading.Thread(target=work, args=(1000 * number + 1,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert publisher.stop()
    assert publisher.counters.published == len(sent) >= 100
    assert publisher.counters.published + publisher.counters.undelivered == 1000
    until(lambda: len(plc.on("verdict")) >= len(sent))
    arrived = [json.loads(message.payload)["seq"] for message in plc.on("verdict")]
    assert sorted(arrived) == sorted(sent)


def test_an_acknowledgement_may_be_faster_than_publish(
    broker: Mosquitto, journal: Journal, station: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PUBACK is there before publish() has returned its message id: it still counts."""
    publish = Client.publish

    def slow(*arguments: Any) -> Any:
        info = publish(*arguments)
        time.sleep(0.05)
        return info

    monkeypatch.setattr(Client, "publish", slow)
    publisher = online(station(broker.port, journal))
    journal.decide(verdict(1)).result(WAIT_S)
    assert publisher.publish_verdict(verdict(1))
    assert publisher.counters.published == 1
    assert publisher.stop(timeout_s=2.0)
    assert journal.undelivered() == 0


def test_the_embedded_broker_gets_311(journal: Journal, station: Any, listen: Any) -> None:
    """It refuses MQTT 5; the station comes back with 3.1.1 at once."""
    with EmbeddedBroker() as broker:
        plc = listen(broker.port, version=4)
        begin = time.monotonic()
        publisher = online(station(broker.port, journal, scalar_topics=True))
        assert time.monotonic() - begin < 3.0
        until(lambda: plc.last_state() == "ready")
        journal.decide(verdict(1)).result(WAIT_S)
        assert publisher.publish_verdict(verdict(1))
        assert plc.expect("verdict", 1)[0].payload == verdict(1).to_json()
        plc.expect("verdict/code", 1)
        until(lambda: journal.undelivered() == 0)
        assert publisher.no_subscriber is None
        assert publisher.stop()
        plc.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; a broker's certificate and a station's with an encrypted key, both by the first."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", encoding="ascii")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    for name in ("ca", "other"):
        openssl("req", "-x509", *curve, "-nodes", "-days", "2", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    for name, protection in (("broker", ("-nodes",)), ("station", ("-passout", "pass:open sesame"))):
        openssl("req", "-new", *curve, *protection, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
    return folder


def _tls_lines(certificates: Path) -> list[str]:
    names = (("cafile", "ca.pem"), ("certfile", "broker.pem"), ("keyfile", "broker.key"))
    return [f"{key} {certificates / name}" for key, name in names]


def test_tls_with_the_right_authority(certificates: Path, station: Any) -> None:
    """With a client certificate too, whose key has a password."""
    tls = TlsConfig(ca=certificates / "ca.pem", cert=certificates / "station.pem", key=certificates / "station.key")
    with mosquitto(*_tls_lines(certificates), "require_certificate true") as broker:
        publisher = online(station(broker.port, tls=tls, key_password="open sesame"))
        assert publisher.publish_verdict(verdict(1))
        until(lambda: publisher.counters.published == 1)
        assert publisher.stop()


# paho drops the socket of a handshake that failed without closing it; it is freed at once, but not silently.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_with_the_wrong_authority(certificates: Path, station: Any) -> None:
    with mosquitto(*_tls_lines(certificates)) as broker:
        publisher = station(broker.port, tls=TlsConfig(ca=certificates / "other.pem"))
        until(lambda: "certificate verify failed" in publisher.last_error)
        assert not publisher.connected


def test_tls_files_that_cannot_be_used(certificates: Path) -> None:
    """One sentence at construction; an encrypted key never asks for its password on the terminal."""
    with pytest.raises(BrokerError, match=r"mqtt\.tls\.ca: .*missing\.pem"):
        make(8883, tls=TlsConfig(ca=certificates / "missing.pem"))
    with pytest.raises(BrokerError, match=r"mqtt\.tls\.ca: .*ca\.key"):
        make(8883, tls=TlsConfig(ca=certificates / "ca.key"))
    tls = TlsConfig(cert=certificates / "station.pem", key=certificates / "station.key")
    for password in (None, "wrong"):
        with pytest.raises(BrokerError, match="FLAWLINE_MQTT_KEY_PASSWORD"):
            make(8883, tls=tls, key_password=password)


@pytest.mark.parametrize(("failures", "least", "most"), [(0, 1, 1), (1, 1, 2), (3, 4, 8), (5, 15, 30), (10**6, 15, 30)])
def test_the_backoff_grows_to_a_ceiling(
    failures: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "BACKOFF_S", (1.0, 30.0))
    pauses = [publisher_module._backoff_s(failures) for _ in range(200)]
    assert least <= min(pauses) <= max(pauses) <= most
    assert least == most or len(set(pauses)) > 100
