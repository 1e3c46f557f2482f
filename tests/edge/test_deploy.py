"""edge/deploy: the example broker lets each say what it may and no more; unit and images are what they claim."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.edge.certificates import Authority, Identity
from tests.edge.mosquitto import mosquitto

from flawline_edge.journal import Journal
from flawline_edge.publisher import Publisher, StationState
from flawline_inspect.cli import app
from flawline_inspect.config import MqttConfig, TlsConfig
from flawline_inspect.verdict import Reason, Result, Verdict

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "edge" / "deploy"
ROOT = "acme/berlin/hall2/line4/press-7"
STATION, PLC, ENGINEER, MES = "press-7", "plc-7", "engineer-7", "mes"
BOOT = "001f9c21"
WAIT_S = 10.0
DOCKERFILES = ("Dockerfile", "jetson.Dockerfile")


def until(is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {WAIT_S:g} s in vain for {what}", pytrace=False)
        time.sleep(0.01)


# --- the broker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plant:
    """The example broker, running, and who has a certificate for it."""

    port: int
    authority: Authority
    identities: dict[str, Identity]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Iterator[Plant]:
    """mosquitto.conf and flawline.acl as they are in the repository, but for the folders and the port."""
    folder = tmp_path_factory.mktemp("plant")
    authority = Authority(require_program("openssl"), folder)
    identities = {
        name: authority.identity(name) for name in ("broker", STATION, PLC, ENGINEER, MES, "guest", "press-8")
    }
    text = (DEPLOY / "mosquitto.conf").read_text(encoding="ascii")
    text = text.replace("/etc/mosquitto/certs", str(folder))
    text = text.replace("/etc/mosquitto/flawline.acl", str(DEPLOY / "flawline.acl"))
    text = text.replace("/var/lib/mosquitto/", f"{folder}/")
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "listener"))]
    with mosquitto(*lines) as broker:
        yield Plant(broker.port, authority, identities)


class Somebody:
    """A client that writes down what it gets and what the broker says to what it publishes."""

    def __init__(self, plant: Plant, identity: Identity | None) -> None:
        self.got: list[tuple[str, str]] = []
        self.refusals: dict[str, str] = {}
        self._acknowledged = threading.Event()
        self._last = ""
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        files = {} if identity is None else {"certfile": str(identity.cert), "keyfile": str(identity.key)}
        self._client.tls_set(str(plant.authority.pem), **files)
        connected, subscribed = threading.Event(), threading.Event()
        self.reason = ""

        def on_connect(client: Client, _data: object, _flags: object, reason: Any, _properties: object) -> None:
            self.reason = str(reason)
            connected.set()
            client.subscribe([("#", 1), ("$SYS/#", 1)])

        self._client.on_connect = on_connect
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", plant.port)
        self._client.loop_start()
        self.is_in = connected.wait(3.0) and subscribed.wait(WAIT_S)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.got.append((message.topic, message.payload.decode()))

    def _on_publish(self, _client: Client, _data: object, _mid: int, reason: Any, _properties: object) -> None:
        self._last = str(reason)
        self._acknowledged.set()

    def says(self, topic: str, payload: str, *, retain: bool = False) -> bool:
        """Whether the broker takes it from this one."""
        self._acknowledged.clear()
        self._client.publish(topic, payload, 1, retain)
        assert self._acknowledged.wait(WAIT_S), topic
        return self._last != "Not authorized"

    def heard(self, topic: str) -> list[str]:
        return [payload for arrived, payload in list(self.got) if arrived == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def comes(plant: Plant) -> Iterator[Callable[[str], Somebody]]:
    with ExitStack() as stack:

        def connect(name: str) -> Somebody:
            made = Somebody(plant, plant.identities[name])
            stack.callback(made.close)
            assert made.is_in, made.reason
            return made

        yield connect


@contextmanager
def station(
    plant: Plant, journal: Journal, commands: list[tuple[str, bytes]], cameras: Sequence[str] = ()
) -> Iterator[Publisher]:
    identity = plant.identities[STATION]
    tls = TlsConfig(ca=plant.authority.pem, cert=identity.cert, key=identity.key)
    made = Publisher(
        mqtt=MqttConfig(host="127.0.0.1", port=plant.port, root=ROOT, scalar_topics=True, tls=tls),
        host="127.0.0.1",
        port=plant.port,
        client_id=f"{STATION}-{BOOT}",
        state=StationState("ready", BOOT, 1, "bottle-3f9a1c2e", "openvino", "fp32"),
        journal=journal,
        deadline_s=2.0,
        on_command=lambda command: commands.append((f"{command.camera}/{command.name}".lstrip("/"), command.payload)),
        cameras=cameras,
    )
    made.start()
    try:
        until(lambda: made.connected, f"the station's connection ({made.last_error})")
        yield made
    finally:
        made.stop(timeout_s=5.0)


def verdict(seq: int) -> Verdict:
    return Verdict(
        seq, BOOT, f"T-{seq}", "SN1", Result.NOT_OK, Reason.NONE, 1.83, 1.21, 2, "bottle-3f9a1c2e", 1.8e9, 7.4
    )


def test_the_station_can_do_its_work(
    plant: Plant, comes: Callable[[str], Somebody], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that a station publishes arrives where it should, commands reach it, and the broker refuses it nothing."""
    commands: list[tuple[str, bytes]] = []
    plc, mes = comes(PLC), comes(MES)
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.decide(verdict(1)).result(WAIT_S)
        journal.to_history([(BOOT, 1)])  # of an outage before
        with station(plant, journal, commands) as publisher:
            publisher.alarm("camera", True, "unplugged")
            journal.decide(verdict(2)).result(WAIT_S)
            assert publisher.publish_verdict(verdict(2))
            publisher.acknowledge("trigger", {"id": "17", "ok": True})
            until(lambda: plc.heard(f"{ROOT}/verdict"), "the verdict at the PLC")
            until(lambda: mes.heard(f"{ROOT}/history"), "history at the collector")
            until(lambda: plc.heard(f"{ROOT}/heartbeat"), "a heartbeat")
            until(lambda: plc.heard(f"{ROOT}/ack/trigger"), "the acknowledgement")
            assert plc.heard(f"{ROOT}/verdict/code") == ["2;T-2;2"]
            assert '"state":"ready"' in plc.heard(f"{ROOT}/state")[-1]
            assert '"active":true' in plc.heard(f"{ROOT}/alarm/camera")[-1]
            assert plc.says(f"{ROOT}/cmd/trigger", '{"trigger":"T-3"}')
            until(lambda: commands == [("trigger", b'{"trigger":"T-3"}')], "the PLC's trigger")
            until(lambda: journal.undelivered() == 0, "every acknowledgement")
    assert "refuses" not in caplog.text, caplog.text


def test_a_station_with_several_cameras_can_do_its_work(
    plant: Plant, comes: Callable[[str], Somebody], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each camera's own topics are open to the same people."""
    commands: list[tuple[str, bytes]] = []
    plc, mes = comes(PLC), comes(MES)
    with (
        Journal(tmp_path / "journal.sqlite") as journal,
        station(plant, journal, commands, cameras=("top", "side")) as publisher,
    ):
        assert publisher.publish_verdict(verdict(1), camera="side")
        publisher.acknowledge("trigger", {"id": "17", "ok": True}, camera="side")
        until(lambda: plc.heard(f"{ROOT}/side/verdict"), "the verdict at the PLC")
        until(lambda: plc.heard(f"{ROOT}/side/verdict/code"), "its code")
        until(lambda: plc.heard(f"{ROOT}/side/ack/trigger"), "the acknowledgement")
        until(lambda: mes.heard(f"{ROOT}/side/verdict"), "the verdict at the collector")
        assert plc.says(f"{ROOT}/top/cmd/trigger", '{"trigger":"T-3"}')
        until(lambda: commands == [("top/trigger", b'{"trigger":"T-3"}')], "the PLC's trigger")
    assert "refuses" not in caplog.text, caplog.text


@pytest.mark.parametrize("name", [PLC, ENGINEER, MES, "guest", "press-8"])
@pytest.mark.parametrize(
    "below",
    [
        "verdict",
        "verdict/code",
        "state",
        "heartbeat",
        "history",
        "alarm/camera",
        "ack/trigger",
        "top/verdict",
        "top/verdict/code",
        "top/ack/trigger",
        "ack/hmi/7",
    ],
)
def test_nobody_speaks_for_the_station(plant: Plant, comes: Callable[[str], Somebody], name: str, below: str) -> None:
    """A forged pass is refused by the broker, and reaches nobody: not from the PLC, not from another station."""
    plc, forger = comes(PLC), comes(name)
    forged = f'{{"seq":1,"result":1,"forged":"{name} {below}"}}'
    assert not forger.says(f"{ROOT}/{below}", forged)
    assert forger.says("nobody/cares", "x") is False  # and nothing else is open either
    time.sleep(0.05)
    assert all("forged" not in payload for _, payload in plc.got)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        (PLC, {"trigger", "recipe"}),
        (ENGINEER, {"trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"}),
        (MES, set()),
        ("guest", set()),
        (STATION, set()),
    ],
)
def test_commands_are_for_those_who_need_them(comes: Callable[[str], Somebody], name: str, allowed: set[str]) -> None:
    """All commands of the contract, each tried, to the station and to one of its cameras."""
    somebody = comes(name)
    every = ("trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule")
    for below in (ROOT, f"{ROOT}/top"):
        assert {command for command in every if somebody.says(f"{below}/cmd/{command}", "{}")} == allowed


def test_a_guest_hears_nothing(plant: Plant, comes: Callable[[str], Somebody], tmp_path: Path) -> None:
    """A certificate of the plant alone opens no topic, and what the broker says of itself is for nobody here."""
    guest, plc = comes("guest"), comes(PLC)
    with Journal(tmp_path / "journal.sqlite") as journal, station(plant, journal, []) as publisher:
        publisher.publish_verdict(verdict(1))
        until(lambda: plc.heard(f"{ROOT}/verdict"), "the verdict at the PLC")
    assert guest.got == []
    assert not any(topic.startswith("$SYS") for topic, _ in plc.got)


def test_the_collector_hears_results_and_no_commands(comes: Callable[[str], Somebody]) -> None:
    """What it need not know it does not get."""
    mes, plc, engineer = comes(MES), comes(PLC), comes(ENGINEER)
    assert plc.says(f"{ROOT}/cmd/trigger", '{"trigger":"T-9"}')
    until(lambda: engineer.heard(f"{ROOT}/cmd/trigger"), "the trigger at the engineer's")
    assert not mes.heard(f"{ROOT}/cmd/trigger") and not plc.heard(f"{ROOT}/cmd/trigger")


# paho drops the socket of a handshake that failed without closing it; it is freed at once, but not silently.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_without_a_certificate_nobody_comes_in(plant: Plant) -> None:
    """Not anonymously, and not with a name alone."""
    stranger = Somebody(plant, None)
    assert not stranger.is_in and stranger.reason == ""
    stranger.close()


# --- the service -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine."""
    text = (DEPLOY / "flawline.service").read_text(encoding="utf-8")
    assert text.count("/opt/flawline/bin/flawline") == 1
    path = tmp_path / "flawline.service"
    path.write_text(text.replace("/opt/flawline/bin/flawline", "/bin/true"), encoding="utf-8")
    return path


def setting(unit: Path, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


def test_systemd_understands_the_unit(unit: Path, require_program: Callable[[str], Path]) -> None:
    """Not a word to say: no unknown key, no bad value."""
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_finds_the_unit_well_closed(unit: Path, require_program: Callable[[str], Path]) -> None:
    """Exposure of at most 2.0 of 10; an ordinary service has 9."""
    done = subprocess.run(
        [require_program("systemd-analyze"), "security", "--offline=true", "--no-pager", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for --offline")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_the_unit_gives_the_station_the_time_it_takes(unit: Path) -> None:
    """A watchdog longer than the status's own patience, notifications from the main process, restarts for ever."""
    from flawline_edge.operations import STALE_S

    assert setting(unit, "Type") == "notify" and setting(unit, "NotifyAccess") == "main"
    assert float(setting(unit, "WatchdogSec")) >= 2 * STALE_S
    assert float(setting(unit, "TimeoutStopSec")) >= 20  # the drain, and what hangs
    assert setting(unit, "Restart") == "on-failure" and setting(unit, "StartLimitIntervalSec") == "0"


# --- the images ------------------------------------------------------------------------------------------------------


def instructions(name: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions in order, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_and_tools_are_pinned(name: str) -> None:
    """No `latest`: the same file gives the same image; packages come by the lock file and its hashes."""
    found = instructions(name)
    bases = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert bases and all(re.search(r":[\w.-]*\d+\.\d+[\w.-]*$", base) for base in bases), bases
    runs = " ".join(rest for word, rest in found if word == "RUN")
    assert "--require-hashes" in runs and "export --frozen" in runs
    assert all("==" in package for package in re.findall(r"pip install --no-cache-dir (\S+)", runs))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_as_nobody_special(name: str) -> None:
    """The last stage leaves root before it starts anything, and holds no secret."""
    found = instructions(name)
    last = found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]
    words = [word for word, _ in last]
    assert ("USER", "10001:10001") in last
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert not re.search(r"PASSWORD|PASSPHRASE|SECRET", " ".join(rest for _, rest in found))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_images_call_and_copy_exists(name: str) -> None:
    """The health check and the start are commands of ours with options that they have; no COPY names a missing path."""
    found = instructions(name)
    (health,) = [rest for word, rest in found if word == "HEALTHCHECK"]
    check = [word.strip('",') for word in shlex.split(health.partition("CMD ")[2].strip("[]"))]
    start = [word.strip('",') for word in shlex.split(dict(found)["CMD"].strip("[]"))]
    for command in (check[1:], start):
        assert command[0] in ("status", "run")
        _, _, ignored = app.parse_args(command, exit_on_error=False, print_error=False)
        assert not ignored, command
    copied = [rest.split()[:-1] for word, rest in found if word == "COPY" and not rest.startswith("--from")]
    paths = [path for paths in copied for path in paths]
    assert all((REPOSITORY / path).exists() for path in paths)
    ignored_all = (DEPLOY / f"{name}.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored_all and {f"!{path}" for path in paths} <= set(ignored_all)


# --- the guide -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["docs/operations.md", "SECURITY.md"])
def test_every_command_of_the_guide_exists_with_its_options(name: str) -> None:
    """What is typed off the page parses; nothing is run."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / name).read_text(encoding="utf-8"), re.DOTALL)
    commands = re.findall(r"^(?:\w+=\S+ )*flawline ([^#\n]+)", "\n".join(blocks), re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        _, _, ignored = app.parse_args(command.split(), exit_on_error=False, print_error=False)
        assert not ignored, command


def test_every_metric_of_the_guide_exists(tmp_path: Path) -> None:
    """And none is missing from it: the table and the page agree."""
    from prometheus_client import generate_latest
    from tests.edge.test_metrics import figures

    from flawline_edge.metrics import Metrics

    page = generate_latest(Metrics("press-7", tmp_path, ["top"], figures).registry).decode()
    there = set(re.findall(r"^# TYPE (flawline_\w+)", page, re.MULTILINE))
    there = {name for name in there if not name.endswith("_created")}
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `flawline")]
    told: set[str] = set()
    for row in rows:
        words = re.findall(r"`([a-z_]+)`", row)
        stem = "flawline_mqtt" if words[0].startswith("flawline_mqtt") else "flawline"
        told |= {stem + word if word.startswith("_") else word for word in words}
    assert told == there
