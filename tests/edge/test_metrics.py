"""Figures for Prometheus: what is counted, and that reading them costs the station nothing."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.edge.mosquitto import mosquitto
from tests.edge.stand_ins import (
    BAD_LEVEL,
    OK_LEVEL,
    LiveCamera,
    Running,
    Shot,
    Wire,
    config,
    inspection,
    running,
    wait_until,
    wire,
)

from flawline_edge.broker import free_port
from flawline_edge.journal.bounds import Evicted
from flawline_edge.messages import StationState
from flawline_edge.metrics import CameraFigures, Figures, Metrics
from flawline_edge.metrics_server import MetricsServer
from flawline_edge.publisher import Counters
from flawline_edge.station import Inspection, Station
from flawline_inspect.decision import Decision
from flawline_inspect.errors import ConfigError
from flawline_inspect.verdict import Reason, Result

__all__ = ["wire"]  # the fixture

READY = StationState("ready", "001f9c21", 2, "bottle-3f9a1c2e", "openvino", "fp32")
Read = dict[tuple[str, frozenset[tuple[str, str]]], float]


def figures() -> Figures:
    return Figures(
        READY,
        (CameraFigures("top", 3, 17, 2, 0.5), CameraFigures("side")),
        lane_restarts=5,
        unjournaled=4,
        connected=True,
        broker=Counters(published=100, undelivered=9, history=8, reconnects=2),
        undelivered=1,
        no_subscriber=False,
        evicted=Evicted(delivered=7, undelivered=6),
    )


def scraped(port: int, timeout_s: float = 10.0) -> Read:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout_s) as answer:
        return samples(answer.read().decode())


def samples(text: str) -> Read:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def at(read: Read, name: str, **labels: str) -> float:
    return read[(name, frozenset(labels.items()))]


def read_from(metrics: Metrics) -> Read:
    with MetricsServer("127.0.0.1", 0, metrics.registry) as server:
        return scraped(server.port)


def test_verdicts_are_counted_by_camera_result_and_reason(tmp_path: Path) -> None:
    """Each told one once; a late one is no verdict."""
    metrics = Metrics("press-7", tmp_path, ["top", "side"], lambda: None)
    for level in (OK_LEVEL, OK_LEVEL, BAD_LEVEL):
        metrics(inspection(level=level))
    metrics(inspection(camera="side", decision=Decision.undefined(Reason.DEADLINE)))
    metrics(inspection(camera="side", late=True))
    read = read_from(metrics)
    assert at(read, "flawline_verdicts_total", camera="top", result="OK", reason="") == 2
    assert at(read, "flawline_verdicts_total", camera="top", result="NotOK", reason="") == 1
    assert at(read, "flawline_verdicts_total", camera="side", result="Undefined", reason="deadline") == 1
    assert at(read, "flawline_verdicts_total", camera="side", result="OK", reason="") == 0
    assert at(read, "flawline_late_total", camera="side") == 1
    assert sum(value for (name, _), value in read.items() if name == "flawline_verdicts_total") == 4


def test_durations_fall_into_their_buckets_by_stage(tmp_path: Path) -> None:
    """Seconds, cumulative; the stand-in says 0.1 ms to fit, 1 ms to infer and 7.4 ms in all."""
    metrics = Metrics("press-7", tmp_path, ["top", "side"], lambda: None)
    metrics(inspection(ms=7.4))
    read = read_from(metrics)
    for stage in ("capture", "fit", "infer", "decide", "journal", "total"):
        assert at(read, "flawline_stage_seconds_count", camera="top", stage=stage) == 1
    assert at(read, "flawline_stage_seconds_sum", camera="top", stage="total") == pytest.approx(0.0074)
    assert at(read, "flawline_stage_seconds_sum", camera="top", stage="infer") == pytest.approx(0.001)
    assert at(read, "flawline_stage_seconds_bucket", camera="top", stage="total", le="0.005") == 0
    assert at(read, "flawline_stage_seconds_bucket", camera="top", stage="total", le="0.0075") == 1


def test_the_rest_is_asked_for_when_it_is_read(tmp_path: Path) -> None:
    """State, engine, model, queues, delivery, disk and the process itself."""
    (tmp_path / "journal.sqlite").write_bytes(bytes(1000))
    (tmp_path / "journal.sqlite-wal").write_bytes(bytes(24))
    read = read_from(Metrics("press-7", tmp_path, ["top"], figures))
    assert at(read, "flawline_state", flawline_state="ready") == 1
    assert at(read, "flawline_state", flawline_state="fault") == 0
    assert at(read, "flawline_engine_info", engine="openvino", precision="fp32") == 1
    assert at(read, "flawline_model_info", recipe="2", model="bottle-3f9a1c2e") == 1
    assert at(read, "flawline_queue_depth", camera="top") == 3
    assert at(read, "flawline_frames_dropped_total", camera="top") == 17
    assert at(read, "flawline_camera_restarts_total", camera="top") == 2
    assert at(read, "flawline_camera_restarts_total", camera="side") == 0
    assert at(read, "flawline_lane_idle_seconds", camera="top") == 0.5
    assert at(read, "flawline_undelivered") == 1
    assert at(read, "flawline_journal_evicted_total", delivered="yes") == 7
    assert at(read, "flawline_journal_evicted_total", delivered="no") == 6
    assert at(read, "flawline_lane_restarts_total") == 5
    assert at(read, "flawline_unjournaled_total") == 4
    assert at(read, "flawline_mqtt_connected") == 1
    assert at(read, "flawline_mqtt_no_subscriber") == 0
    assert at(read, "flawline_mqtt_reconnects_total") == 2
    assert at(read, "flawline_mqtt_published_total") == 100
    assert at(read, "flawline_mqtt_diverted_total") == 9
    assert at(read, "flawline_mqtt_history_total") == 8
    assert at(read, "flawline_journal_bytes") == 1024
    assert at(read, "flawline_disk_free_bytes") > 0
    assert at(read, "process_resident_memory_bytes") > 1e6
    assert any(name == "flawline_station_info" and ("station", "press-7") in labels for name, labels in read)


def test_a_station_that_starts_has_only_its_name_and_disk(tmp_path: Path) -> None:
    """No figure is invented."""
    names = {name for name, _ in read_from(Metrics("press-7", tmp_path, ["top", "side"], lambda: None))}
    assert "flawline_station_info" in names and "flawline_disk_free_bytes" in names
    assert not names & {"flawline_state", "flawline_queue_depth", "flawline_undelivered"}


def test_two_stations_in_one_process_count_apart(tmp_path: Path) -> None:
    """Nothing is in Prometheus' global registry."""
    one, two = (Metrics(name, tmp_path, ["top"], lambda: None) for name in ("one", "two"))
    one(inspection())
    assert at(read_from(two), "flawline_verdicts_total", camera="top", result="OK", reason="") == 0


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    """With the key, the port and the cure; the user's mistake."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"metrics\.port: {port} on 127\.0\.0\.1 is in use") as caught,
            MetricsServer("127.0.0.1", port, Metrics("p", tmp_path, [], lambda: None).registry),
        ):
            pass
    assert caught.value.exit_code == 2


def test_an_address_of_another_machine_is_one_sentence(tmp_path: Path) -> None:
    """Not ours to listen on."""
    with (
        pytest.raises(ConfigError, match=r"metrics: cannot listen on 192\.0\.2\.1, port 9464"),
        MetricsServer("192.0.2.1", 9464, Metrics("p", tmp_path, [], lambda: None).registry),
    ):
        pass


def test_a_reader_that_dawdles_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits, but not for ever; and leaving does not wait for it either."""
    monkeypatch.setattr("flawline_edge.metrics_server._Handler.timeout", 0.3)
    metrics = Metrics("press-7", tmp_path, ["top", "side"], lambda: None)
    with (
        MetricsServer("127.0.0.1", 0, metrics.registry) as server,
        socket.create_connection(("127.0.0.1", server.port)) as dawdler,
    ):
        dawdler.sendall(b"GET /metrics HT")
        time.sleep(0.05)
        assert scraped(server.port)
        dawdler.settimeout(5.0)
        assert dawdler.recv(1) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\xff" * 70_000,
        b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        b"GET " + b"a" * 70_000 + b" HTTP/1.1\r\n",
    ],
    ids=["rubbish", "POST", "long"],
)
def test_what_is_no_request_does_no_harm(
    tmp_path: Path, request_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is refused or hung up on, quietly, and the next reader is served."""
    with MetricsServer("127.0.0.1", 0, Metrics("p", tmp_path, [], lambda: None).registry) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(request_bytes)
            client.settimeout(5.0)
            try:
                answer = client.recv(100)
            except ConnectionResetError:
                answer = b""
            assert b" 200 " not in answer
        assert scraped(server.port)
    assert capfd.readouterr().err == ""


# --- in a station ----------------------------------------------------------------------------------------------------


def station(
    folder: Path, port: int, shots: list[Shot], seen: list[Inspection] | None = None, **changes: object
) -> Station:
    camera, observers = LiveCamera(shots, period_s=0.02), [] if seen is None else [seen.append]
    return Station(config(folder, metrics={"port": port}, **changes), camera=camera, observers=observers)


def test_a_station_s_figures_agree_with_its_wire(tmp_path: Path) -> None:
    """Against a real broker: published is what the broker acknowledged, counted is what the other observers were told."""
    port, seen = free_port(), list[Inspection]()
    with mosquitto() as broker:
        mqtt = {"host": "127.0.0.1", "port": broker.port, "root": "a/b"}
        made = station(tmp_path, port, [OK_LEVEL, BAD_LEVEL] * 5000, seen, mqtt=mqtt)
        run = Running(made)
        try:

            def some() -> bool:
                try:
                    return at(scraped(port), "flawline_mqtt_published_total") >= 10
                except (OSError, KeyError):  # not up yet
                    return False

            wait_until(some, "ten published verdicts in the metrics")
            read = scraped(port)
        finally:
            run.stop.set()
            run.join()
    assert run.error is None
    at_the_end = samples(generate_latest(made._operations.metrics.registry).decode())
    for result in (Result.OK, Result.NOT_OK):
        counted = at(at_the_end, "flawline_verdicts_total", camera="top", result=result.label, reason="")
        assert counted == sum(each.verdict.result is result for each in seen)
    assert at(at_the_end, "flawline_mqtt_published_total") == len(seen)
    assert at(read, "flawline_state", flawline_state="ready") == 1
    assert at(read, "flawline_engine_info", engine="onnxruntime", precision="fp32") == 1
    assert at(read, "flawline_mqtt_connected") == 1
    assert at(read, "flawline_lane_idle_seconds", camera="top") < 5.0
    assert at(read, "flawline_stage_seconds_count", camera="top", stage="infer") >= 10
    with pytest.raises(OSError, match="refused"):  # nobody listens any more
        scraped(port)


def test_a_reader_that_hangs_delays_no_verdict(tmp_path: Path, wire: Wire) -> None:
    """Connected, asking, never taking the answer: parts go on."""
    port = free_port()
    made = station(tmp_path, port, [OK_LEVEL] * 5000)
    with running(made, wire), socket.create_connection(("127.0.0.1", port)) as reader:
        reader.sendall(b"GET /metrics")
        before = len(wire.told)
        wait_until(lambda: len(wire.told) >= before + 20, "twenty more verdicts")


def test_a_station_with_its_port_taken_does_not_start(tmp_path: Path, wire: Wire) -> None:
    """It says so, before anything is inspected, and leaves its state directory to the next one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match="is in use"):
            station(tmp_path, port, [OK_LEVEL]).run(threading.Event())
    assert wire.told == []


def test_metrics_are_off_unless_asked_for(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0, the default, opens nothing."""

    def refuse(*_: object, **__: object) -> Callable[..., object]:
        raise AssertionError("a server was made")

    monkeypatch.setattr("flawline_edge.operations.MetricsServer", refuse)
    made = Station(config(tmp_path), camera=LiveCamera([OK_LEVEL] * 5000))
    with running(made, wire):
        wait_until(lambda: len(wire.told) >= 1, "a verdict")
