"""The line as the PLC sees it: `flawline run` as a process of its own, a real mosquitto, and a subscriber that
writes down everything below ROOT.

Pictures come from the simulated line, the model is the shipped one.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import pytest
import yaml
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions
from tests.edge.mosquitto import Mosquitto, mosquitto

from flawline_edge.demo_command import DEMO_BUNDLE as BUNDLE
from flawline_edge.journal import Journal
from flawline_edge.simulation import write_dataset
from flawline_inspect.bundle import Bundle
from flawline_inspect.verdict import VERDICT_SCHEMA

pytestmark = pytest.mark.timeout(60)

ROOT = "acme/berlin/hall2/press-7"
KEYS = [
    "seq", "boot", "trigger", "part", "result", "reason", "score", "threshold", "recipe", "model", "time", "ms",
]  # fmt: skip
STATE_KEYS = ["state", "boot", "recipe", "model", "engine", "precision", "reason"]
ACK_KEYS = ["id", "ok", "error", "state", "recipe", "model", "threshold"]
DEADLINE_MS = 2500
"""Long enough for a busy machine: what a deadline does is tested elsewhere."""
EXPIRY_S = 3
WAIT_S = 20.0
USER, PASSWORD = "press-7", "open sesame"
BURST = 16
"""Triggers that the station lets wait behind the one in work."""
N_GOOD, N_GROSS = 12, 4
GROSS = "missing_seal"

Source = dict[str, Any]


@dataclass(frozen=True)
class Arrived:
    """A message as the subscriber got it; `topic` below ROOT, `at` monotonic seconds."""

    topic: str
    payload: str
    qos: int
    retain: bool
    expiry_s: int | None
    at: float

    @property
    def data(self) -> dict[str, Any]:
        data = json.loads(self.payload)
        assert isinstance(data, dict)
        return data


class Subscriber:
    """Writes down what arrives below ROOT, with the retain flag as it was published, and sends commands."""

    def __init__(self, port: int, password: str | None = None) -> None:
        self.messages: list[Arrived] = []
        self._news = threading.Condition()
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        if password is not None:
            self._client.username_pw_set(USER, password)
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{ROOT}/#", options=options)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_S)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        arrived = Arrived(
            message.topic.removeprefix(f"{ROOT}/"),
            message.payload.decode("utf-8", "backslashreplace"),  # it hears its own bad requests too
            message.qos,
            message.retain,
            getattr(message.properties, "MessageExpiryInterval", None),
            time.monotonic(),
        )
        with self._news:
            self.messages.append(arrived)
            self._news.notify_all()

    def publish(self, topic: str, payload: str | bytes, *, retain: bool = False) -> None:
        self._client.publish(f"{ROOT}/{topic}", payload, 1, retain).wait_for_publish(WAIT_S)

    def trigger(self, **request: str) -> None:
        self.publish("cmd/trigger", json.dumps(request))

    def on(self, topic: str) -> list[Arrived]:
        return [message for message in list(self.messages) if message.topic == topic]

    def verdicts(self, topic: str = "verdict", boot: str | None = None) -> list[dict[str, Any]]:
        return [message.data for message in self.on(topic) if boot in (None, message.data["boot"])]

    def states(self) -> list[str]:
        return [message.data["state"] for message in self.on("state")]

    def until(self, is_so: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
        with self._news:
            happened = self._news.wait_for(is_so, timeout_s)
        if not happened:
            seen = collections.Counter(message.topic for message in self.messages)
            pytest.fail(f"no {what} within {timeout_s:g} s; states {self.states()}, messages {dict(seen)}")

    def until_state(self, state: str, timeout_s: float = WAIT_S) -> None:
        self.until(lambda: self.states()[-1:] == [state], f"state {state}", timeout_s)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Station:
    """A station's folder, and the process that runs in it; it can be started again after it has ended."""

    def __init__(self, folder: Path, port: int, source: Source, **more: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(port, source, **more)

    def configure(self, port: int, source: Source, *, mqtt: dict[str, Any] | None = None, **more: Any) -> None:
        settings = {
            "station": "press-7",
            "state_dir": "state",
            "cameras": [{"name": "top", "source": source}],
            "trigger": {"kind": "free", "max_rate": 1000},
            "deadline_ms": DEADLINE_MS,
            "recipes": {1: str(BUNDLE)},
            "mqtt": {"host": "127.0.0.1", "port": port, "root": ROOT, "scalar_topics": True, **(mqtt or {})},
            **more,
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start(self, password: str | None = None) -> None:
        environment = {name: v for name, v in os.environ.items() if not name.startswith("FLAWLINE_")}
        if password is not None:
            environment["FLAWLINE_MQTT_PASSWORD"] = password
        with (self.folder / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flawline_inspect.cli", "run", "--config", "config.yaml"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the station still runs after {timeout_s:g} s:\n{self.stderr}")
        assert "Traceback" not in self.stderr, self.stderr
        return code

    def wait_quietly(self) -> int:
        """For another thread than the test's, which may not fail."""
        assert self._process is not None
        return self._process.wait()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def decided(self) -> int:
        """How many verdicts stand in the journal of a station that runs."""
        path = self.folder / "state" / "journal.sqlite"
        if not path.exists():
            return 0
        # Closed at once: a reader left open would keep the station from folding its write-ahead log.
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)) as connection:
            try:
                count: int = connection.execute("SELECT count(*) FROM parts WHERE result IS NOT NULL").fetchone()[0]
            except sqlite3.OperationalError:  # not created yet
                return 0
        return count

    def journal(self) -> dict[tuple[str, int], str]:
        """The wire form of every verdict in the journal, oldest first. For a station that has ended."""
        with Journal(self.folder / "state" / "journal.sqlite") as journal:
            return {(v.boot, v.seq): v.to_json() for v in reversed(journal.verdicts(100_000))}


def until(is_so: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.02)


def wire(messages: Sequence[Arrived]) -> dict[tuple[str, int], str]:
    """Verdict payloads by (boot, seq); the same one twice is a failure."""
    found = {(message.data["boot"], message.data["seq"]): message.payload for message in messages}
    assert len(found) == len(messages), "a verdict came twice"
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts and grossly defective ones, mixed, as `00-good.png`, `01-missing_seal.png` and on."""
    data, folder = tmp_path_factory.mktemp("simulated") / "set", tmp_path_factory.mktemp("pictures")
    write_dataset(data, seed=42, n_train=0, n_test_good=N_GOOD, n_test_per_defect=N_GROSS)
    good = [(path, "good") for path in sorted((data / "test" / "good").iterdir())]
    gross = [(path, GROSS) for path in sorted((data / "test" / GROSS).iterdir())]
    step = len(good) // len(gross) + 1
    mixed = [gross[i // step] if i % step == 1 else good.pop(0) for i in range(len(good) + len(gross))]
    # Written in another order than that of their names, so that the folder's own order helps nobody.
    for i, (path, kind) in sorted(enumerate(mixed), key=lambda item: item[0] * 7 % 5):
        shutil.copy(path, folder / f"{i:02d}-{kind}.png")
    return folder


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as running:
        yield running


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    made: list[Subscriber] = []

    def start(port: int, password: str | None = None) -> Subscriber:
        made.append(Subscriber(port, password))
        return made[-1]

    yield start
    for subscriber in made:
        subscriber.close()


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Callable[..., Station]]:
    """Makes stations, and kills what the test has left running."""
    made: list[Station] = []

    def make(port: int, source: Source, *, folder: Path | None = None, **more: Any) -> Station:
        made.append(Station(folder or tmp_path / "press-7", port, source, **more))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def folder_source(pictures: Path, *, fps: float = 20, loop: bool = False) -> Source:
    return {"kind": "folder", "path": str(pictures), "fps": fps, "loop": loop}


# --- a folder, picture by picture --------------------------------------------------------------------------------


def test_a_folder_gives_one_verdict_a_picture(
    broker: Mosquitto, pictures: Path, subscribe: Callable[..., Subscriber], station: Callable[..., Station]
) -> None:
    """All of them, in the order of their names, in the form that the contract promises to a PLC; then the station
    ends by itself, and the journal holds what was sent.
    """
    subscriber = subscribe(broker.port)
    made = station(broker.port, folder_source(pictures))
    made.start()
    assert made.wait() == 0, made.stderr
    subscriber.until_state("stopped")

    stems = sorted(path.stem for path in pictures.iterdir())
    live, codes = subscriber.on("verdict"), subscriber.on("verdict/code")
    verdicts = [message.data for message in live]
    validator = jsonschema.Draft202012Validator(VERDICT_SCHEMA)
    for verdict in verdicts:
        validator.validate(verdict)
    assert [verdict["seq"] for verdict in verdicts] == list(range(1, len(stems) + 1))
    assert [verdict["part"] for verdict in verdicts] == stems
    assert [verdict["trigger"] for verdict in verdicts] == [f"F{verdict['seq']}" for verdict in verdicts]
    assert len({verdict["boot"] for verdict in verdicts}) == 1
    assert not subscriber.on("history")

    for message in live:
        assert len(message.payload) <= 255 and message.payload.isascii() and " " not in message.payload
        assert list(message.data) == KEYS
        assert re.search(r'"score":-?\d+\.\d{4},"threshold":\d+\.\d{4},"', message.payload)
    for message in live + codes:
        assert message.qos == 1 and not message.retain
        assert message.expiry_s is not None and message.expiry_s <= EXPIRY_S
    # The broker counts it down in whole seconds, so that one that was on its way at a second's end arrives with less.
    assert max(message.expiry_s or 0 for message in live) == EXPIRY_S == math.ceil(DEADLINE_MS / 1e3)
    assert [message.payload for message in codes] == [
        f"{verdict['seq']};{verdict['trigger']};{verdict['result']}" for verdict in verdicts
    ]
    bundle = Bundle.open(BUNDLE)
    assert {(verdict["recipe"], verdict["model"]) for verdict in verdicts} == {(1, bundle.model_id)}
    assert all(abs(verdict["threshold"] - bundle.threshold) < 1e-4 for verdict in verdicts)

    states = [message.data for message in subscriber.on("state")]
    assert [state["state"] for state in states] == ["starting", "ready", "stopped"]
    assert all(message.retain and message.qos == 1 for message in subscriber.on("state"))
    assert all(list(state) == STATE_KEYS for state in states)
    assert {state["boot"] for state in states} == {verdicts[0]["boot"]}
    assert states[1]["model"] == bundle.model_id and states[1]["precision"] == "fp32" and states[1]["engine"]

    assert list(made.journal().values()) == [message.payload for message in live]

    results = {kind: [v["result"] for v in verdicts if v["part"].endswith(kind)] for kind in ("good", GROSS)}
    assert results[GROSS] == [2] * N_GROSS, verdicts
    assert set(results["good"]) <= {1, 2}
    assert results["good"].count(1) >= 2 / 3 * N_GOOD, verdicts


def test_a_video_gives_one_verdict_a_frame(
    broker: Mosquitto,
    pictures: Path,
    tmp_path: Path,
    subscribe: Callable[..., Subscriber],
    station: Callable[..., Station],
) -> None:
    """The frames of a file are inspected one by one, none dropped, though they come faster than inspection."""
    video = tmp_path / "line.mkv"
    frames = [cv2.imread(str(path)) for path in sorted(pictures.iterdir())]
    size = (frames[0].shape[1], frames[0].shape[0])
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"FFV1"), 100, size)
    for frame in frames:
        writer.write(frame)
    writer.release()
    subscriber = subscribe(broker.port)
    made = station(broker.port, {"kind": "video", "path": str(video), "loop": False})
    made.start()
    assert made.wait() == 0, made.stderr
    subscriber.until_state("stopped")
    live = wire(subscriber.on("verdict"))
    # What the broker's window had no room for is on history, and nothing is on both.
    everything = wire(subscriber.on("verdict") + subscriber.on("history"))
    assert live
    assert sorted(seq for _, seq in everything) == list(range(1, len(frames) + 1))
    by_seq = sorted((json.loads(payload) for payload in everything.values()), key=lambda verdict: verdict["seq"])
    assert [verdict["part"] for verdict in by_seq] == [f"V{i:06d}" for i in range(len(frames))]
    assert made.journal() == dict(sorted(everything.items()))
    kinds = [path.stem.split("-")[1] for path in sorted(pictures.iterdir())]
    # Lossless, so the verdicts are those of the pictures.
    assert all(verdict["result"] == 2 for verdict, kind in zip(by_seq, kinds, strict=True) if kind == GROSS)


# --- ends, wanted and unwanted -----------------------------------------------------------------------------------


def test_sigterm_stops_a_station_properly(
    broker: Mosquitto, pictures: Path, subscribe: Callable[..., Subscriber], station: Callable[..., Station]
) -> None:
    """The state says `stopped`, the will stays unsent, every verdict is out, and the exit code is 0."""
    subscriber = subscribe(broker.port)
    made = station(broker.port, folder_source(pictures, loop=True))
    made.start()
    subscriber.until(lambda: len(subscriber.on("verdict")) >= 3, "three verdicts")
    made.signal(signal.SIGTERM)
    assert made.wait(10.0) == 0, made.stderr
    subscriber.until_state("stopped")
    time.sleep(0.2)  # for a will that should not come
    assert "offline" not in subscriber.states() and subscriber.states()[-1] == "stopped"
    later = subscribe(broker.port)
    later.until(lambda: later.on("state"), "retained state")
    assert later.states() == ["stopped"] and not later.on("verdict")
    assert made.journal() == wire(subscriber.on("verdict"))


def test_kill_shows_as_offline(
    broker: Mosquitto, pictures: Path, subscribe: Callable[..., Subscriber], station: Callable[..., Station]
) -> None:
    """Nobody is left to say goodbye, so the broker says it: `offline`, retained for whoever comes later."""
    subscriber = subscribe(broker.port)
    made = station(broker.port, folder_source(pictures, loop=True))
    made.start()
    subscriber.until(lambda: len(subscriber.on("verdict")) >= 3, "three verdicts")
    made.signal(signal.SIGKILL)
    subscriber.until_state("offline", timeout_s=15.0)
    later = subscribe(broker.port)
    later.until(lambda: later.on("state"), "retained state")
    (state,) = later.on("state")
    assert state.retain and state.data["state"] == "offline"
    assert state.data["boot"] == subscriber.verdicts()[0]["boot"]
    assert not later.on("verdict")


def test_nothing_accepted_is_lost_in_a_crash(
    broker: Mosquitto, pictures: Path, subscribe: Callable[..., Subscriber], station: Callable[..., Station]
) -> None:
    """After kill -9 an accepted trigger comes as `restart`, an undelivered verdict as it was: on history, with their
    own boot and seq, never on ROOT/verdict again. Each start has its own boot.
    """
    subscriber = subscribe(broker.port)
    # A frame every ten seconds: the trigger is accepted long before there is a picture for it.
    slow = {"kind": "simulated", "fps": 0.1}
    made = station(broker.port, slow, trigger={"kind": "mqtt"}, deadline_ms=60000)
    made.start()
    subscriber.until_state("ready")
    subscriber.trigger(id="1", trigger="T-1", part="SN1")
    subscriber.until(lambda: subscriber.on("ack/trigger"), "acknowledgement")
    made.signal(signal.SIGKILL)
    made.kill()
    assert subscriber.on("ack/trigger")[0].data["ok"] is True
    subscriber.until_state("offline", timeout_s=15.0)
    first = subscriber.on("state")[-1].data["boot"]
    assert not subscriber.on("verdict") and not subscriber.on("history")

    made.configure(broker.port, folder_source(pictures, loop=True))
    made.start()
    subscriber.until(lambda: subscriber.on("history"), "history")
    (restart,) = subscriber.verdicts("history")
    assert (restart["boot"], restart["seq"], restart["trigger"], restart["part"]) == (first, 1, "T-1", "SN1")
    assert (restart["result"], restart["reason"], restart["score"]) == (0, "restart", 0)
    jsonschema.validate(restart, VERDICT_SCHEMA)
    subscriber.until(lambda: len(subscriber.on("verdict")) >= 3, "three verdicts")
    second = subscriber.verdicts()[0]["boot"]
    assert second != first

    broker.freeze()
    before = made.decided()
    until(lambda: made.decided() >= before + 5, "five more verdicts in the journal")
    made.signal(signal.SIGKILL)
    made.kill()
    on_the_wire = wire(subscriber.on("verdict"))
    owed = [payload for key, payload in made.journal().items() if key[0] == second and key not in on_the_wire]
    assert len(owed) >= 5
    broker.kill()
    broker.start()
    after = subscribe(broker.port)
    made.configure(broker.port, folder_source(pictures))
    made.start()
    assert made.wait() == 0, made.stderr
    after.until_state("stopped")
    live, history = wire(after.on("verdict")), wire(after.on("history"))
    assert {boot for boot, _ in live}.isdisjoint({first, second}) and len({boot for boot, _ in live}) == 1
    assert {boot for boot, _ in history} == {second}
    assert list(history) == sorted(history), "not oldest first"
    assert set(owed) <= set(history.values())
    # What was on the wire may come again, since the acknowledgement may have been lost; it is the same then.
    assert all(on_the_wire.get(key, payload) == payload for key, payload in history.items())
    seqs = sorted({seq for boot, seq in on_the_wire | history if boot == second})
    assert seqs == list(range(1, len(seqs) + 1))
    journal = made.journal()
    assert all(journal[key] == payload for key, payload in (live | history).items())


def test_a_state_directory_serves_one_daemon(
    broker: Mosquitto,
    pictures: Path,
    tmp_path: Path,
    subscribe: Callable[..., Subscriber],
    station: Callable[..., Station],
) -> None:
    """The second one ends with 2 and one sentence; the first does not notice."""
    subscriber = subscribe(broker.port)
    made = station(broker.port, folder_source(pictures, fps=10, loop=True))
    made.start()
    subscriber.until(lambda: subscriber.on("verdict"), "verdict")
    state_dir = made.folder / "state"
    second = station(
        broker.port, folder_source(pictures, loop=True), folder=tmp_path / "second", state_dir=str(state_dir)
    )
    second.start()
    assert second.wait() == 2
    (sentence,) = second.stderr.splitlines()
    assert sentence.startswith("flawline: ") and str(state_dir) in sentence
    count = len(subscriber.on("verdict"))
    subscriber.until(lambda: len(subscriber.on("verdict")) >= count + 2, "more verdicts")
    assert len({verdict["boot"] for verdict in subscriber.verdicts()}) == 1
    assert subscriber.states() == ["starting", "ready"]


# --- triggers over MQTT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "simulated"])
def test_each_trigger_gets_its_own_verdict(
    kind: str,
    broker: Mosquitto,
    pictures: Path,
    subscribe: Callable[..., Subscriber],
    station: Callable[..., Station],
) -> None:
    """One acknowledgement and one verdict a request, one after the other or all at once; a repeated request does
    nothing again, and what cannot be a trigger is answered and inspects nothing.
    """
    subscriber = subscribe(broker.port)
    left_behind = json.dumps({"id": "old", "trigger": "T-old"})
    subscriber.publish("cmd/trigger", left_behind, retain=True)
    source = folder_source(pictures) if kind == "folder" else {"kind": "simulated", "fps": 20}
    made = station(broker.port, source, trigger={"kind": "mqtt"})
    made.start()
    subscriber.until_state("ready")

    def acks(request_id: str) -> list[dict[str, Any]]:
        return [ack for ack in (message.data for message in subscriber.on("ack/trigger")) if ack["id"] == request_id]

    def answered(request_id: str) -> Callable[[], bool]:
        def both_are_there() -> bool:
            triggers = [verdict["trigger"] for verdict in subscriber.verdicts()]
            return bool(acks(request_id)) and f"T-{request_id}" in triggers

        return both_are_there

    parts = {f"{i}": f"SN:{i}" for i in range(1, 9)}
    for request in ("1", "2", "3"):
        subscriber.trigger(id=request, trigger=f"T-{request}", part=parts[request])
        subscriber.until(answered(request), f"answer to {request}")
    burst = ("4", "5", "6", "7", "8")
    for request in burst:
        subscriber.trigger(id=request, trigger=f"T-{request}", part=parts[request])
    for request in burst:
        subscriber.until(answered(request), f"answer to {request}")

    subscriber.trigger(id="3", trigger="T-3", part="SN:3")
    subscriber.until(lambda: len(acks("3")) == 2, "second acknowledgement")
    refusals = {
        "bad_json": [b"", b"T-9", b'{"trigger":"T-9"', b"\xff\xfe", b"[]"],
        "bad_id": [
            b'{"id":"b1"}', b'{"id":"b2","trigger":""}', b'{"id":"b3","trigger":"0123456789abcdefg"}',
            b'{"id":"b4","trigger":"T 9"}', b'{"id":"b5","trigger":9}', b'{"id":"b6","trigger":"T-9","part":"\xc3\xa4"}',
        ],
    }  # fmt: skip
    for payload in [payload for payloads in refusals.values() for payload in payloads]:
        subscriber.publish("cmd/trigger", payload)
    subscriber.publish("cmd/trigger", json.dumps({"id": "kept", "trigger": "T-kept"}), retain=True)
    # An empty message clears what is retained and is no request.
    subscriber.publish("cmd/trigger", b"", retain=True)
    # Behind all of them in the queue: once it is answered, so are they.
    subscriber.trigger(id="9", trigger="T-9")
    subscriber.until(answered("9"), "answer to the last")

    verdicts = subscriber.verdicts()
    assert [verdict["trigger"] for verdict in verdicts] == [f"T-{i}" for i in range(1, 10)]
    assert [verdict["seq"] for verdict in verdicts] == list(range(1, 10))
    assert [verdict["part"] for verdict in verdicts[:8]] == list(parts.values())
    assert all(verdict["result"] in (1, 2) for verdict in verdicts), verdicts
    if kind == "folder":
        stems = sorted(path.stem for path in pictures.iterdir())
        assert verdicts[8]["part"] == stems[8]  # the source knows the part where the request does not
        gross = [stem.endswith(GROSS) for stem in stems[:9]]
        assert all(v["result"] == 2 for v, is_gross in zip(verdicts, gross, strict=True) if is_gross)

    bundle = Bundle.open(BUNDLE)
    for request in map(str, range(1, 10)):
        ack = acks(request)[0]
        assert list(ack) == ACK_KEYS
        assert ack["ok"] is True and ack["error"] == "" and ack["state"] == "ready"
        assert ack["recipe"] == 1 and ack["model"] == bundle.model_id
        assert ack["threshold"] == round(bundle.threshold, 4)
        assert len(acks(request)) == 1 + (request == "3")
    assert acks("3")[1]["duplicate"] is True and acks("3")[1]["ok"] is True
    refused = [message.data for message in subscriber.on("ack/trigger") if not message.data["ok"]]
    errors = collections.Counter(ack["error"] for ack in refused)
    # An empty request may be answered or not: it is how a retained one is cleared.
    assert errors["bad_json"] in (len(refusals["bad_json"]) - 1, len(refusals["bad_json"]))
    assert errors["bad_id"] == len(refusals["bad_id"])
    assert [ack["id"] for ack in refused if ack["error"] == "bad_id"] == ["b1", "b2", "b3", "b4", "b5", "b6"]
    assert errors["retained"] == 2  # the one from before the start, and the one sent to the running station
    assert set(errors) == {"bad_json", "bad_id", "retained"}
    assert not any(message.retain for message in subscriber.on("ack/trigger") + subscriber.on("verdict"))
    assert not subscriber.on("history")

    if kind == "folder":
        total = len(list(pictures.iterdir()))
        for i in range(10, total + 1):
            subscriber.trigger(id=f"{i}", trigger=f"T-{i}")
            subscriber.until(answered(f"{i}"), f"answer to {i}")
        assert made.wait() == 0, made.stderr  # by itself, with the last picture
        subscriber.until_state("stopped")
        assert [verdict["seq"] for verdict in subscriber.verdicts()] == list(range(1, total + 1))
    else:
        made.signal(signal.SIGTERM)
        assert made.wait(10.0) == 0, made.stderr
        subscriber.until_state("stopped")
    assert list(made.journal().values()) == [message.payload for message in subscriber.on("verdict")]
    # A refusal too tells the PLC in what state the station is.
    assert [ack for ack in refused if list(ack) != ACK_KEYS] == []


def test_a_burst_is_answered_live(
    broker: Mosquitto, pictures: Path, subscribe: Callable[..., Subscriber], station: Callable[..., Station]
) -> None:
    """As many triggers at once as the station lets wait are all answered on ROOT/verdict: with a broker that is
    well and a deadline far away, nothing is left to history.
    """
    subscriber = subscribe(broker.port)
    made = station(broker.port, folder_source(pictures, loop=True), trigger={"kind": "mqtt"})
    made.start()
    subscriber.until_state("ready")
    for i in range(1, BURST + 1):
        subscriber.trigger(id=f"{i}", trigger=f"T-{i}")
    topics = ("verdict", "history")
    subscriber.until(lambda: sum(len(subscriber.on(topic)) for topic in topics) >= BURST, "verdict for each")
    late = [(verdict["trigger"], verdict["ms"]) for verdict in subscriber.verdicts("history")]
    assert not late, f"decided in time (ms), but only on history: {late}"
    assert [verdict["trigger"] for verdict in subscriber.verdicts()] == [f"T-{i}" for i in range(1, BURST + 1)]


# --- a broker that is not there ----------------------------------------------------------------------------------


@dataclass
class Lonely:
    """Two stations that mostly wait for a broker; they do it while the other tests run."""

    absent: Station
    absent_ended: threading.Event
    refused: Station
    refusing: Mosquitto
    code: int | None = None
    seconds: float = math.inf


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Path:
    path = tmp_path_factory.mktemp("mosquitto") / "passwords"
    tool = require_program("mosquitto_passwd")
    subprocess.run([tool, "-b", "-c", path, USER, PASSWORD], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module", autouse=True)
def lonely(pictures: Path, passwords: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lonely]:
    with (
        socket.socket() as nobody,
        mosquitto(f"password_file {passwords}", "allow_anonymous false") as refusing,
    ):
        nobody.bind(("127.0.0.1", 0))  # reserved, but nobody listens: connections are refused
        absent = Station(tmp_path_factory.mktemp("absent"), nobody.getsockname()[1], folder_source(pictures))
        refused = Station(tmp_path_factory.mktemp("refused"), refusing.port, folder_source(pictures, fps=2, loop=True))
        made = Lonely(absent, threading.Event(), refused, refusing)

        def watch() -> None:
            began = time.monotonic()
            absent.start()
            made.code = absent.wait_quietly()
            made.seconds = time.monotonic() - began
            made.absent_ended.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        refused.start()
        try:
            yield made
        finally:
            absent.kill()
            refused.kill()
            watcher.join()


def test_without_a_broker_the_parts_are_inspected_all_the_same(lonely: Lonely, pictures: Path) -> None:
    """The verdicts are in the journal, and the exit code says that nobody has got them: 1, after at most 10 s of
    waiting for a broker at the end.
    """
    assert lonely.absent_ended.wait(40.0), "still running"
    stderr = lonely.absent.stderr
    assert lonely.code == 1, stderr
    assert lonely.seconds < 25, stderr
    assert "Traceback" not in stderr
    assert "cannot be reached" in stderr
    verdicts = [json.loads(payload) for payload in lonely.absent.journal().values()]
    assert [verdict["part"] for verdict in verdicts] == sorted(path.stem for path in pictures.iterdir())
    assert all(verdict["result"] in (1, 2) for verdict in verdicts)


def test_a_broker_that_refuses_does_not_stop_the_line(lonely: Lonely) -> None:
    """The station says why, once and not with every attempt, and goes on inspecting."""
    until(lambda: lonely.refused.decided() >= 2, "verdicts in the journal")
    until(lambda: lonely.refusing.log.count("not authorised") >= 3, "three attempts")
    before = lonely.refused.decided()
    until(lambda: lonely.refused.decided() > before, "another verdict")
    assert lonely.refused.is_running
    stderr = lonely.refused.stderr
    said = [line for line in stderr.splitlines() if "refuses the station" in line]
    assert len([line for line in said if "trying again" in line]) == 1, stderr
    assert len(said) <= 2, stderr  # once more where the station says that it starts without a broker
    assert "password" in said[0]
    assert "Traceback" not in stderr


def test_a_broker_that_comes_late_gets_the_history(
    pictures: Path,
    passwords: Path,
    tmp_path: Path,
    require_program: Callable[[str], Path],
    subscribe: Callable[..., Subscriber],
    station: Callable[..., Station],
) -> None:
    """What was decided before it came arrives on history, oldest first; what comes after is live. It asks for user
    and password, and the password comes from the environment.
    """
    lines = (f"password_file {passwords}", "allow_anonymous false")
    broker = Mosquitto(str(require_program("mosquitto")), tmp_path, lines)
    made = station(broker.port, folder_source(pictures, fps=10, loop=True), mqtt={"username": USER})
    made.start(PASSWORD)
    until(lambda: made.decided() >= 5, "verdicts in the journal")
    before = made.decided()
    broker.start()
    try:
        subscriber = subscribe(broker.port, PASSWORD)
        subscriber.until(lambda: len(subscriber.on("verdict")) >= 3, "live verdicts", 30.0)
        made.signal(signal.SIGTERM)
        assert made.wait(15.0) == 0, made.stderr
        subscriber.until_state("stopped")
    finally:
        broker.stop()
    history, live = wire(subscriber.on("history")), wire(subscriber.on("verdict"))
    assert list(history) == sorted(history), "not oldest first"
    assert {seq for _, seq in history} >= set(range(1, before + 1))
    assert min(seq for _, seq in live) > before
    assert live.keys().isdisjoint(history)
    assert made.journal() == dict(sorted((live | history).items()))
    assert [seq for _, seq in made.journal()] == list(range(1, len(live) + len(history) + 1))
    assert subscriber.states()[-2:] == ["ready", "stopped"]
    assert PASSWORD not in made.stderr
