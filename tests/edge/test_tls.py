"""TLS at the broker: who gets in, and what is said to who does not. And what is too large to be taken at all."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.edge.certificates import Authority, Identity
from tests.edge.mosquitto import Mosquitto, mosquitto

from flawline_edge import publisher as publisher_module
from flawline_edge.connection import MAX_PACKET_BYTES
from flawline_edge.publisher import Publisher, StationState
from flawline_inspect.config import MqttConfig, TlsConfig

pytestmark = [
    pytest.mark.timeout(40),
    # paho drops the socket of a handshake that failed without closing it; it is freed at once, but not silently.
    pytest.mark.filterwarnings("ignore:Exception ignored in.*SSLSocket:pytest.PytestUnraisableExceptionWarning"),
]

ROOT = "acme/press-7"
READY = StationState("ready", "001f9c21", 2, "bottle-3f9a1c2e", "openvino", "fp32")
WAIT_S = 10.0
PASSPHRASE = "open sesame"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "BACKOFF_S", (0.1, 0.3))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Authority:
    return Authority(require_program("openssl"), tmp_path_factory.mktemp("plant"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Authority:
    return Authority(require_program("openssl"), tmp_path_factory.mktemp("stranger"), "other")


@pytest.fixture(scope="module")
def broker_identity(plant: Authority) -> Identity:
    return plant.identity("broker")


def tls_lines(authority: Authority, identity: Identity, *more: str) -> list[str]:
    return [f"cafile {authority.pem}", f"certfile {identity.cert}", f"keyfile {identity.key}", *more]


@contextmanager
def station(
    port: int, tls: TlsConfig | None, key_password: str | None = None, on_command: Any = None
) -> Iterator[Publisher]:
    made = Publisher(
        mqtt=MqttConfig(host="127.0.0.1", port=port, root=ROOT, tls=tls),
        host="127.0.0.1",
        port=port,
        client_id="press-7-ab12",
        state=READY,
        journal=None,
        deadline_s=1.0,
        key_password=key_password,
        on_command=on_command,
    )
    made.start()
    try:
        yield made
    finally:
        made.stop(timeout_s=0.0)


def until(is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {WAIT_S:g} s in vain for {what}", pytrace=False)
        time.sleep(0.005)


def with_certificate(authority: Authority, identity: Identity) -> TlsConfig:
    return TlsConfig(ca=authority.pem, cert=identity.cert, key=identity.key)


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_the_plant_s_certificate_opens_the_door(plant: Authority, broker_identity: Identity, version: str) -> None:
    """With an encrypted key, over either version of TLS."""
    mine = plant.identity(f"station-{version}", passphrase=PASSPHRASE)
    lines = tls_lines(plant, broker_identity, "require_certificate true", f"tls_version {version}")
    with mosquitto(*lines) as broker, station(broker.port, with_certificate(plant, mine), PASSPHRASE) as publisher:
        until(lambda: publisher.connected, "the connection")
        assert publisher.last_error == ""


def refused(broker: Mosquitto, tls: TlsConfig) -> str:
    """The sentence that a station says, which does not get in."""
    with station(broker.port, tls) as publisher:
        until(lambda: publisher.last_error, "a sentence")
        time.sleep(0.3)  # the next attempts go no better
        assert not publisher.connected
        return publisher.last_error.removeprefix(f"the broker at 127.0.0.1:{broker.port} ")


@pytest.mark.parametrize("how", ["none", "another plant's", "expired"])
def test_a_broker_that_wants_another_certificate(
    plant: Authority, stranger: Authority, broker_identity: Identity, how: str
) -> None:
    """None, another plant's, one that has expired: the sentence names the keys to look at."""
    tls = {
        "none": lambda: TlsConfig(ca=plant.pem),
        "another plant's": lambda: with_certificate(plant, stranger.identity("station")),
        "expired": lambda: with_certificate(plant, plant.identity("station-old", days=0)),
    }[how]()
    with mosquitto(*tls_lines(plant, broker_identity, "require_certificate true")) as broker:
        assert refused(broker, tls) == (
            "hangs up after the TLS handshake; it may want another client certificate, check mqtt.tls.cert and key"
        )


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("another authority", "self-signed certificate in certificate chain"),
        ("another machine", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ("expired", "certificate has expired"),
    ],
)
def test_a_broker_that_cannot_be_trusted(plant: Authority, stranger: Authority, how: str, why: str) -> None:
    """Nothing is sent to it, not even a name; the sentence says what is wrong with its certificate."""
    authority = stranger if how == "another authority" else plant
    days, address = (0 if how == "expired" else 2), ("10.0.0.1" if how == "another machine" else "127.0.0.1")
    identity = authority.identity(f"broker-{how[:3]}", days=days, address=address)
    with mosquitto(*tls_lines(authority, identity)) as broker:
        assert refused(broker, TlsConfig(ca=plant.pem)) == (
            f"cannot be trusted (certificate verify failed: {why}); check mqtt.tls.ca, mqtt.host and this machine's clock"
        )
        assert ROOT not in broker.log and "press-7" not in broker.log


def test_a_broker_of_long_ago_is_refused(plant: Authority, broker_identity: Identity, require_program: Any) -> None:
    """TLS 1.1 is broken; a server that knows nothing newer gets a sentence."""
    server = subprocess.Popen(
        [require_program("openssl"), "s_server", "-accept", "127.0.0.1:0", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0",
         "-cert", broker_identity.cert, "-key", broker_identity.key],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        accept = next(line for line in server.stdout if line.startswith("ACCEPT"))
        with station(int(accept.rsplit(":", 1)[1]), TlsConfig(ca=plant.pem)) as publisher:
            until(lambda: publisher.last_error, "a sentence")
            assert "does not agree on TLS (" in publisher.last_error and "check port and tls" in publisher.last_error
    finally:
        server.kill()
        server.communicate()


# --- what is too large -----------------------------------------------------------------------------------------------


def test_what_is_too_large_never_reaches_the_station(caplog: pytest.LogCaptureFixture) -> None:
    """The broker keeps packets above 64 KiB to itself, what is a little too long is dropped, retained or not; it goes on."""
    commands: list[tuple[bytes, bool]] = []
    with mosquitto() as broker:
        plc = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        plc.connect("127.0.0.1", broker.port)
        plc.loop_start()
        plc.publish(f"{ROOT}/cmd/trigger", b"r" * 2000, 1, True).wait_for_publish(WAIT_S)
        with station(
            broker.port, None, on_command=lambda command: commands.append((command.payload, command.retained))
        ) as publisher:
            until(lambda: publisher.connected, "the connection")
            until(lambda: "a command of 2000 bytes was dropped" in caplog.text, "the retained one to be dropped")
            for size in (MAX_PACKET_BYTES + 1, 5 << 20, 1025):
                plc.publish(f"{ROOT}/cmd/trigger", b"x" * size, 1).wait_for_publish(WAIT_S)
            plc.publish(f"{ROOT}/cmd/trigger", b"small", 1).wait_for_publish(WAIT_S)
            until(lambda: commands, "the small one")
            assert publisher.connected and publisher.counters.reconnects == 0
        plc.disconnect()
        plc.loop_stop()
    assert commands == [(b"small", False)]
    assert "a command of 1025 bytes was dropped" in caplog.text and str(5 << 20) not in caplog.text
