"""A station as it is run in production: TLS, passwords, JSON logs, a service manager, a health check, Prometheus.

One `flawline run` in a process of its own against a real mosquitto, and everything that it says and shows to others.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.edge.certificates import Authority
from tests.edge.mosquitto import mosquitto

from flawline_edge.broker import free_port
from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_edge.journal import Journal
from flawline_inspect.bundle import Bundle, read_bundle_file
from flawline_inspect.signature import new_key_pair, sign

pytestmark = pytest.mark.timeout(90)

ROOT = "acme/press-7"
PASSWORD, KEY_PASSWORD = "sesame-of-the-broker", "sesame-of-the-key"
WAIT_S = 30.0


@dataclass(frozen=True)
class Line:
    """A folder with a configuration, and where its figures are read."""

    folder: Path
    metrics_port: int


def environment(**more: str) -> dict[str, str]:
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("FLAWLINE_", "NOTIFY_", "WATCHDOG_"))}
    return {**kept, **more}


def flawline(line: Line, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flawline_inspect.cli", *arguments],
        cwd=line.folder, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def until(is_so: Callable[[], Any], what: str, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        ended = process is not None and process.poll() is not None
        if time.monotonic() > deadline or ended:
            pytest.fail(f"no {what} within {WAIT_S:g} s" + (", the station has ended" if ended else ""), pytrace=False)
        time.sleep(0.05)


def program_output(program: Path, *arguments: object) -> None:
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def line(tmp_path: Path, require_program: Callable[[str], Path]) -> Iterator[Line]:
    """A broker with TLS, client certificates and a password, and a signed bundle with the public key to it."""
    authority = Authority(require_program("openssl"), tmp_path)
    broker_identity = authority.identity("broker")
    mine = authority.identity("press-7", passphrase=KEY_PASSWORD)
    program_output(require_program("mosquitto_passwd"), "-b", "-c", tmp_path / "passwords", "press-7", PASSWORD)
    private, public = new_key_pair(None)
    (tmp_path / "plant.key").write_bytes(private)
    (tmp_path / "plant.pub").write_bytes(public)
    bundle = Bundle(read_bundle_file(DEMO_BUNDLE), "demo")
    signature = sign(bundle.manifest_bytes, tmp_path / "plant.key", None)
    (tmp_path / "part.flawline").write_bytes(bundle.signed(signature))
    lines = [
        f"cafile {authority.pem}", f"certfile {broker_identity.cert}", f"keyfile {broker_identity.key}",
        "require_certificate true", f"password_file {tmp_path / 'passwords'}",
    ]  # fmt: skip
    with mosquitto(*lines) as broker:
        made = Line(tmp_path, free_port())
        tree = {
            "station": "press-7",
            "state_dir": "state",
            "cameras": [{"name": "top", "source": {"kind": "simulated", "fps": 20}}],
            "deadline_ms": 5000,
            "recipes": {1: "part.flawline"},
            "mqtt": {
                "host": "127.0.0.1",
                "port": broker.port,
                "root": ROOT,
                "username": "press-7",
                "tls": {"ca": authority.pem.name, "cert": mine.cert.name, "key": mine.key.name},
            },
            "metrics": {"port": made.metrics_port},
            "security": {"public_key": "plant.pub"},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        yield made


def messages(text: str) -> list[str]:
    """The messages of a JSON log; fails where a line is anything else."""
    lines = [json.loads(each) for each in text.splitlines()]
    assert all(set(each) - {"exception"} == {"time", "level", "logger", "message", "station"} for each in lines)
    return [each["message"] for each in lines]


@pytest.mark.slow
def test_a_station_in_production(line: Line) -> None:
    """From start to SIGTERM: ready when systemd hears it, alive, healthy, counted, and no secret anywhere."""
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(line.folder / "notify"))
    systemd.setblocking(False)
    told: list[str] = []

    def hears(word: str) -> bool:
        while True:
            try:
                told.append(systemd.recv(4096).decode())
            except BlockingIOError:
                return any(message.startswith(word) for message in told)

    assert flawline(line, "status").returncode == 1  # nothing has run here yet
    given = environment(
        FLAWLINE_MQTT_PASSWORD=PASSWORD, FLAWLINE_MQTT_KEY_PASSWORD=KEY_PASSWORD,
        NOTIFY_SOCKET=str(line.folder / "notify"), WATCHDOG_USEC="30000000",
    )  # fmt: skip
    log = line.folder / "log"
    with log.open("w") as stderr:
        command = [sys.executable, "-m", "flawline_inspect.cli", "--debug", "run", "--log", "json", "--verbose"]
        station = subprocess.Popen(command, cwd=line.folder, env=given, stdout=stderr, stderr=stderr, text=True)
    try:
        until(lambda: hears("READY=1"), "READY=1", station)
        until(lambda: hears("WATCHDOG=1"), "WATCHDOG=1", station)

        def published() -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{line.metrics_port}/metrics", timeout=5) as answer:
                samples = dict(each.rsplit(" ", 1) for each in answer.read().decode().splitlines() if each[0] != "#")
            return float(samples["flawline_mqtt_published_total"])

        until(lambda: published() >= 5, "five verdicts that the broker has", station)
        healthy = flawline(line, "status")
        assert healthy.returncode == 0 and healthy.stdout.startswith("press-7: ready since "), healthy.stdout
        tree = [psutil.Process(station.pid), *psutil.Process(station.pid).children(recursive=True)]
        shown = " ".join(" ".join(process.cmdline()) for process in tree)
        assert "flawline_inspect.cli" in shown and "sesame" not in shown
        station.send_signal(signal.SIGTERM)
        assert station.wait(30) == 0
    finally:
        station.kill()
        station.wait()
        hears("")
        systemd.close()
    words = [message.split("\n")[0] for message in told]
    assert words.count("READY=1") == words.count("STOPPING=1") == 1 and words.index("READY=1") < words.index(
        "STOPPING=1"
    )
    assert flawline(line, "status").returncode == 1
    said = messages(log.read_text())
    assert any("connected to 127.0.0.1" in message for message in said)
    assert any('"result":' in message for message in said)
    written = [path for path in (line.folder / "state").rglob("*") if path.is_file()]
    assert (line.folder / "state" / "status.json") in written
    for path in [log, *written]:
        assert b"sesame" not in path.read_bytes(), path
    with Journal(line.folder / "state" / "journal.sqlite") as journal:
        assert journal.undelivered() == 0 and len(journal.verdicts()) >= 5


def test_an_unsigned_bundle_stops_a_station_with_a_sentence(line: Line) -> None:
    """In the log's own form, before anything is started: no broker, no state, no verdict."""
    (line.folder / "part.flawline").write_bytes(read_bundle_file(DEMO_BUNDLE))
    for arguments in (["run", "--log", "json"], ["config", "check"], ["run"]):
        done = flawline(line, *arguments)
        assert done.returncode == 2
        assert "part.flawline: is not signed, and only bundles signed for " in done.stderr
        if "json" in arguments:
            assert messages(done.stderr)
        assert "Traceback" not in done.stderr
    assert not (line.folder / "state").exists()


def test_a_wrong_configuration_is_told_in_json(line: Line) -> None:
    """What stops a start is what a log reader has to see."""
    (line.folder / "config.yaml").write_text("cameras: [", encoding="utf-8")
    done = flawline(line, "run", "--log", "json")
    assert done.returncode == 2
    (message,) = messages(done.stderr)
    assert "config.yaml: is not YAML" in message
