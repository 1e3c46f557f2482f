"""One run of the capture process, seen from the station."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from flawline_edge.capture.channel import receive
from flawline_edge.capture.task import CaptureTask
from flawline_inspect.config import KEY_PASSWORD_VARIABLE, PASSWORD_VARIABLE

__all__ = ["CaptureProcess"]

_log = logging.getLogger(__name__)

_MODULE = "flawline_edge.capture.child"
_REAP_S = 1.0
_NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", PASSWORD_VARIABLE, KEY_PASSWORD_VARIABLE)


class CaptureProcess:
    """Starts `python -m flawline_edge.capture.child` with a task. Raises `OSError` when the system has no process left.

    Not multiprocessing's spawn: that runs the program's main module again, sends pickles, and brings a resource tracker
    that unlinks shared memory others still use. The task goes through the connection, since an address with a password
    in it would show in the list of processes.
    """

    def __init__(self, task: CaptureTask) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # standard output belongs to the command; drivers write what they like
                    env=_environment(),
                    cwd="/",  # `-m` looks for modules there first
                    start_new_session=True,  # Ctrl-C in a terminal is for the station
                )
            self._connection.send(task.to_json())
        except BaseException:
            self._connection.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self, timeout_s: float) -> tuple[dict[str, Any], int | None] | None:
        """The next message (`channel`) and the file descriptor with it; None when none comes in time.

        Raises `EOFError` when the process has ended and all its messages were received.
        """
        return receive(self._connection, timeout_s)

    def leave(self) -> None:
        """Ask it to release the camera and to end. From any thread; does not wait."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it now, whatever it is in. From any thread; does not wait."""
        self._process.kill()

    def reap(self) -> str:
        """Make sure that it is gone, and say how it ended: `exit code 1`, `killed by SIGKILL`."""
        self._connection.close()
        for last_resort in (False, True):
            try:
                code = self._process.wait(_REAP_S)
            except subprocess.TimeoutExpired:
                if not last_resort:
                    self.kill()
            else:
                return f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        _log.error(
            "the capture process %d cannot be killed: it hangs in the camera's driver inside the kernel; "
            "unplug the camera, and start the machine anew if that does not help",
            self.pid,
        )
        return "cannot be killed"


def _environment() -> dict[str, str]:
    """This process's, with the modules where it finds them and without what is for it alone."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
