"""What systemd is told, over a real datagram socket as it has one."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flawline_edge.service_manager import ServiceManager


def listening(address: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind("\0" + address[1:] if address.startswith("@") else address)
    bound.settimeout(5.0)
    return bound


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET's value and the socket behind it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@flawline-test-{secrets.token_hex(8)}"
    with closing(listening(address)) as bound:
        yield address, bound


def test_each_word_is_one_datagram(systemd: tuple[str, socket.socket]) -> None:
    """As sd_notify(3) has them, by path and in the abstract namespace."""
    address, bound = systemd
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    before = time.monotonic_ns() // 1000
    manager.ready("press-7: ready")
    manager.status("press-7: fault (camera)")
    manager.alive()
    manager.reloading()
    manager.stopping("press-7: stopped")
    told = [bound.recv(4096).decode().split("\n") for _ in range(5)]
    assert told[:3] == [["READY=1", "STATUS=press-7: ready"], ["STATUS=press-7: fault (camera)"], ["WATCHDOG=1"]]
    assert told[3][0] == "RELOADING=1" and told[4] == ["STOPPING=1", "STATUS=press-7: stopped"]
    word, _, at = told[3][1].partition("=")
    assert word == "MONOTONIC_USEC" and before <= int(at) <= time.monotonic_ns() // 1000


def test_a_status_is_one_short_line(systemd: tuple[str, socket.socket]) -> None:
    """What a text holds must not become another assignment."""
    address, bound = systemd
    ServiceManager({"NOTIFY_SOCKET": address}).status("lost\nMAINPID=1\n" + "x" * 1000)
    told = bound.recv(4096).decode()
    assert "\n" not in told and told.startswith("STATUS=lost MAINPID=1 xxx") and len(told) < 220


@pytest.mark.parametrize(
    ("more", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_only_if_it_says_so(more: dict[str, str], watchdog_s: float | None) -> None:
    """A child that inherited the variables must not feed its parent's."""
    assert ServiceManager({"NOTIFY_SOCKET": "/run/nobody", **more}).watchdog_s == watchdog_s
    assert ServiceManager(more).watchdog_s is None


def test_without_a_service_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    """On a laptop, in a container."""
    manager = ServiceManager({})
    manager.ready("ready")
    manager.alive()
    assert caplog.messages == []


def test_a_service_manager_that_is_gone_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised, and a warning a second would drown the log."""
    caplog.set_level(logging.WARNING)
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    for _ in range(3):
        manager.alive()
    assert len(caplog.messages) == 1 and "NOTIFY_SOCKET cannot be told" in caplog.messages[0]


def test_a_service_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """Its queue is full: the message is dropped, the station goes on."""
    address = str(tmp_path / "notify")
    with closing(listening(address)):
        manager = ServiceManager({"NOTIFY_SOCKET": address})
        began = time.monotonic()
        for _ in range(5000):
            manager.status("x" * 190)
        assert time.monotonic() - began < 5.0
