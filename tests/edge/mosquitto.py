"""A real mosquitto on a free port, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_S = 10.0
_STOP_S = 5.0


class Mosquitto:
    """A broker process that can be stopped, killed, frozen and started again on the same port."""

    def __init__(self, program: str, folder: Path, lines: tuple[str, ...]) -> None:
        self.port = _free_port()
        self._program = program
        self._log = folder / "mosquitto.log"
        self._configuration = folder / "mosquitto.conf"
        open_to_all = not any(line.startswith(("allow_anonymous", "password_file")) for line in lines)
        settings = [
            f"listener {self.port} 127.0.0.1",
            *(["allow_anonymous true"] if open_to_all else []),
            *(["user root"] if os.geteuid() == 0 else []),  # else it could not read the test's own files
            *lines,
        ]
        self._configuration.write_text("\n".join(settings) + "\n", encoding="ascii")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-v", "-c", str(self._configuration)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.02)
        self.stop()
        pytest.fail(f"mosquitto did not start:\n{self.log}", pytrace=False)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal_number)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Without a goodbye, and without a look at what has arrived while it was frozen."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing any more."""
        self.signal(signal.SIGSTOP)

    def signal(self, signal_number: int) -> None:
        assert self._process is not None
        self._process.send_signal(signal_number)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


@contextlib.contextmanager
def mosquitto(*lines: str) -> Iterator[Mosquitto]:
    """Start one with these configuration lines. Skips the test without mosquitto, or fails it where CI is
    set.
    """
    program = shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    if program is None:
        reason = "mosquitto is not installed (apt-get install mosquitto)"
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"{reason}, and CI is set", pytrace=False)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="mosquitto-") as folder:
        broker = Mosquitto(program, Path(folder), lines)
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
