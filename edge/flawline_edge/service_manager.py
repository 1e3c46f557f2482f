"""What systemd is told of the station: ready, how it goes, that it is alive; see sd_notify(3).

One datagram a message on the socket that `NOTIFY_SOCKET` names, a path or, with @ in front, a name in Linux's abstract
namespace. Where nobody listens nothing happens, and nothing here ever waits or raises.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["ServiceManager"]

_log = logging.getLogger(__name__)

_STATUS_LENGTH = 200


class ServiceManager:
    """The line to the service manager that started this process, if one did."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_s = _watchdog_s(environment) if name else None
        """It restarts the station after this long without `alive`; None where it does not watch."""
        self._has_failed = False

    def ready(self, status: str) -> None:
        """The station inspects; also the end of `reloading`."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The station ends, by itself or because it was asked to."""
        self._send("STOPPING=1", _status(status))

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.setblocking(False)
                line.sendto("\n".join(lines).encode(), self._address)
        except (OSError, ValueError) as exc:
            if not self._has_failed:
                _log.warning("the service manager at NOTIFY_SOCKET cannot be told (%s)", exc)
            self._has_failed = True
        else:
            self._has_failed = False


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:_STATUS_LENGTH]  # one line, or the rest would be read as commands


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """See sd_watchdog_enabled(3): another process's watchdog is not ours to feed."""
    try:
        period_us, pid = int(environment.get("WATCHDOG_USEC", "0")), int(environment.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return period_us / 1e6 if period_us > 0 and pid == os.getpid() else None
