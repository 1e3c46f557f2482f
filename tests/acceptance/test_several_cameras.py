"""Two cameras on one station as the PLC sees them: `flawline run`, a real mosquitto, and products that change under load."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.acceptance.test_line import BUNDLE, Station, Subscriber
from tests.edge.mosquitto import mosquitto

pytestmark = pytest.mark.timeout(120)

COMMANDS = ["trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"]
CAMERAS = [
    {"name": "left", "source": {"kind": "simulated", "fps": 20}, "trigger": {"kind": "mqtt"}},
    {
        "name": "right",
        "source": {"kind": "simulated", "fps": 5},
        "trigger": {"kind": "free", "max_rate": 5},
        "recipe": 2,
    },
]
PAUSE_S = 0.2


class Line:
    """The PLC: a station that is ready, and a trigger for its left camera every `PAUSE_S`, until it is told to stop."""

    def __init__(self, plc: Subscriber, station: Station) -> None:
        self.plc, self.station = plc, station
        self.sent: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._trigger)
        self._asked = 0
        station.start()
        plc.until_state("ready", 60.0)
        self._thread.start()

    def _trigger(self) -> None:
        while not self._stop.wait(PAUSE_S):
            self.sent.append(f"T-{len(self.sent)}")
            self.plc.publish("left/cmd/trigger", json.dumps({"trigger": self.sent[-1]}))

    def ask(self, topic: str, **request: Any) -> dict[str, Any]:
        """The acknowledgement of a command on `cmd/NAME` or `CAMERA/cmd/NAME`."""
        self._asked += 1
        request_id, ack = f"plc-{self._asked}", topic.replace("cmd/", "ack/")
        self.plc.publish(topic, json.dumps({"id": request_id, **request}))

        def found() -> dict[str, Any] | None:
            return next((m.data for m in self.plc.on(ack) if m.data["id"] == request_id), None)

        self.plc.until(found, f"answer on {ack}")
        answer = found()
        assert answer is not None
        return answer

    def told(self) -> list[dict[str, Any]]:
        """The left camera's verdicts; a burst that a slow broker could not take live comes on history."""
        arrived = self.plc.on("left/verdict") + self.plc.on("history")
        return [message.data for message in arrived if message.data["trigger"].startswith("T-")]

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with mosquitto() as broker:
        plc = Subscriber(broker.port)
        station = Station(
            tmp_path / "press-7",
            broker.port,
            {},
            mqtt={"commands": COMMANDS},
            cameras=CAMERAS,
            recipes={1: str(BUNDLE), 2: {"bundle": str(BUNDLE), "threshold": 1000.0}},
            engine={"kind": "onnxruntime", "threads": 1},
        )
        made = Line(plc, station)
        try:
            yield made
        finally:
            made.end()
            station.kill()
            plc.close()


@pytest.mark.slow
def test_products_change_under_load(line: Line) -> None:
    """Every trigger has one verdict, each by the recipe that it names; SIGHUP and SIGTERM lose none either."""
    plc, station = line.plc, line.station
    plc.until(lambda: bool(line.told()), "a verdict by the first recipe")  # a change may be quicker than the first part
    for number in (2, 1, 2):
        answer = line.ask("left/cmd/recipe", recipe=number)
        assert (answer["ok"], answer["recipe"]) == (True, number), answer
    assert line.ask("left/cmd/recipe", recipe=9)["error"] == "unknown_recipe"

    assert line.ask("right/cmd/pause")["state"] == "paused"
    assert plc.states()[-1] == "ready", "the other camera is still served"
    before = len(line.sent)
    plc.until(lambda: len(plc.on("left/verdict")) > before, "verdicts of the other camera")
    assert line.ask("cmd/resume")["state"] == "ready"

    file = station.folder / "config.yaml"
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    tree["recipes"][2]["threshold"] = 999.0
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    station.signal(signal.SIGHUP)
    plc.until(
        lambda: any(m.data["threshold"] == 999.0 for m in plc.on("left/verdict")),
        "verdict by the threshold of the file",
    )
    tree["mqtt"]["root"] = "acme/elsewhere"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    refused = line.ask("cmd/reload")
    assert refused["error"] == "restart_needed" and refused["detail"].startswith("mqtt.root cannot be changed")

    boot = plc.on("left/verdict")[-1].data["boot"]
    assert line.ask("cmd/overrule", boot=boot, seq=1, label="good")["ok"]
    line.end()
    plc.until(lambda: len(line.told()) >= len(line.sent), "every verdict")
    station.signal(signal.SIGTERM)
    assert station.wait() == 0
    plc.until_state("stopped")

    told = line.told()
    assert sorted(verdict["trigger"] for verdict in told) == sorted(line.sent), "not one verdict each"
    # A machine that is busy with other things may be overrun; what is judged is told in the order of the triggers.
    assert {verdict["reason"] for verdict in told} <= {"", "overrun", "deadline"}
    judged = [m.data["trigger"] for m in plc.on("left/verdict") if not m.data["reason"]]
    assert judged == [name for name in line.sent if name in judged]
    assert {(v["recipe"], v["threshold"] > 900) for v in told} == {(1, False), (2, True)}
    assert not plc.on("verdict")
    right = [message.data for message in plc.on("right/verdict")]
    assert right and {verdict["recipe"] for verdict in right} == {2}
    assert not {verdict["seq"] for verdict in told} & {verdict["seq"] for verdict in right}
