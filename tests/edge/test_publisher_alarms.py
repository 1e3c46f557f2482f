"""What the publisher raises by itself: nobody listens, or too much waits for the broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.edge.mosquitto import Mosquitto
from tests.edge.publishers import BOOT, ROOT, WAIT_S, broker, listen, online, quick_retries, station, until, verdict

from flawline_edge import history as history_module
from flawline_edge.broker import EmbeddedBroker
from flawline_edge.journal import Bounds, Journal
from flawline_edge.journal import bounds as bounds_module

__all__ = ["broker", "listen", "quick_retries", "station"]  # the fixtures

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "OUTBOX_CHECK_S", 0.05)


def alarms(listener: Any, name: str) -> list[bool]:
    """On and off as they came, repetitions left out."""
    found: list[bool] = []
    for message in listener.on(f"alarm/{name}"):
        active = json.loads(message.payload)["active"]
        if found[-1:] != [active]:
            found.append(active)
    return found


def filled(journal: Journal, first: int, last: int) -> None:
    futures = [journal.decide(verdict(seq)) for seq in range(first, last + 1)]
    for future in futures:
        future.result(WAIT_S)
    journal.to_history([(BOOT, seq) for seq in range(first, last + 1)])


def test_nobody_listens(broker: Mosquitto, station: Any, listen: Any) -> None:
    """From the first verdict that reached no subscriber until one reaches one; it tells what to look at."""
    page = listen(broker.port, f"{ROOT}/alarm/#")
    publisher = online(station(broker.port))
    until(lambda: alarms(page, "no_subscriber") == [False])
    publisher.publish_verdict(verdict(1))
    until(lambda: alarms(page, "no_subscriber") == [False, True])
    raised = page.on("alarm/no_subscriber")[-1]
    assert raised.retain and "nobody has subscribed" in json.loads(raised.payload)["text"]
    plc = listen(broker.port, f"{ROOT}/verdict")
    publisher.publish_verdict(verdict(2))
    until(lambda: alarms(page, "no_subscriber") == [False, True, False])
    plc.expect("verdict", 1)


def test_an_older_protocol_does_not_tell(station: Any, listen: Any) -> None:
    """MQTT 3.1.1: no verdict is claimed to have been heard by nobody, and an alarm of before is ended."""
    with EmbeddedBroker() as broker:
        page = listen(broker.port, f"{ROOT}/alarm/#", version=4)
        page.publish("alarm/no_subscriber", '{"active":true,"since":"","text":""}', retain=True)
        publisher = online(station(broker.port))
        assert publisher.publish_verdict(verdict(1))
        until(lambda: publisher.counters.published == 1)
        until(lambda: alarms(page, "no_subscriber") == [True, False])
        assert publisher.no_subscriber is None
        page.close()


def test_too_much_waits(tmp_path: Path, broker: Mosquitto, station: Any, listen: Any) -> None:
    """Over the limit it is on, at half of it off again: in between it would come and go."""
    page = listen(broker.port, f"{ROOT}/alarm/#")
    with Journal(tmp_path / "journal.sqlite", Bounds(alarm_after=40)) as journal:
        filled(journal, 1, 60)
        publisher = station(broker.port, journal)
        until(lambda: alarms(page, "outbox") == [False, True])
        assert "more than 40 verdicts wait" in json.loads(page.on("alarm/outbox")[-1].payload)["text"]
        until(lambda: journal.undelivered() < 30)
        assert alarms(page, "outbox") == [False, True]
        until(lambda: alarms(page, "outbox") == [False, True, False])
        assert publisher.counters.history > 0
        until(lambda: journal.undelivered() == 0)
        publisher.stop(timeout_s=0.0)


def test_too_much_waits_while_there_is_no_broker(tmp_path: Path, broker: Mosquitto, station: Any, listen: Any) -> None:
    """Nobody can be told then; it is the first thing that is said when the broker is back."""
    broker.stop()
    with Journal(tmp_path / "journal.sqlite", Bounds(alarm_after=10)) as journal:
        publisher = station(broker.port, journal)
        filled(journal, 1, 200)
        until(lambda: "outbox" in publisher._alarms and publisher._alarms["outbox"].active)
        broker.start()
        page = listen(broker.port, f"{ROOT}/alarm/#")
        online(publisher)
        until(lambda: alarms(page, "outbox") == [True])
        publisher.stop(timeout_s=0.0)


def test_undelivered_verdicts_are_given_up(
    tmp_path: Path, broker: Mosquitto, station: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is full of what no broker took: the alarm says that verdicts are lost, until nothing waits any more."""
    monkeypatch.setattr(bounds_module, "_STEP_PAUSE_S", 0.0)
    monkeypatch.setattr(bounds_module, "_REST", 0.0)
    monkeypatch.setattr(bounds_module, "_ROOM_CHECK_S", 0.05)
    monkeypatch.setattr(history_module, "INTERVAL_S", 0.001)
    broker.stop()
    with Journal(tmp_path / "journal.sqlite", Bounds(max_bytes=300_000)) as journal:
        publisher = station(broker.port, journal)
        filled(journal, 1, 1500)
        until(lambda: journal.evicted.undelivered > 0)
        until(lambda: "outbox" in publisher._alarms and "given up" in publisher._alarms["outbox"].text)
        broker.start()
        page = listen(broker.port)
        until(lambda: journal.undelivered() == 0, 30.0)
        until(lambda: alarms(page, "outbox")[-1:] == [False])
        history = [json.loads(message.payload)["seq"] for message in page.on("history")]
        assert history == sorted(history) and len(history) <= 1500 - journal.evicted.undelivered
        publisher.stop(timeout_s=0.0)
