"""A station with two cameras, a broker behind a proxy, a PLC with its ledger, and a service manager: what faults are done to.

    top    triggered by the PLC
    side   triggered by a clock, so that parts are judged also while nobody can ask

The PLC is at the broker itself, the station behind the proxy. Whatever the PLC is not told it asks the journal for.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from tests.edge.mosquitto import Mosquitto, mosquitto
from tests.edge.proxy import TcpProxy
from tests.edge.stand_ins import level_bundle
from tests.faults import camera as line

from flawline_edge.journal import JOURNAL_FILE
from flawline_edge.soak import Account, Ledger, Plc
from flawline_edge.soak.resources import family

ROOT = "acme/hall2/press-7"
DEADLINE_S = 0.5
SLACK_S = 2.0
"""For a machine that is busy with everything else: what is older than this is old, not slow."""
SIDE_INTERVAL_S = 0.2
READY_S = 40.0
RECOVERY_S = 60.0
SETTLE_S = 30.0
ON_THE_WAY_S = 0.2
"""By then the last trigger has been accepted, and is in the journal."""
WATCHDOG_S = 2.0


class Station:
    """The process, and the service manager's view of it."""

    def __init__(self, folder: Path, state_dir: Path, port: int, **changes: Any) -> None:
        self.state_dir = state_dir
        self.control = folder / "control"
        self.log = folder / "station.log"
        self._config = folder / "config.yaml"
        self._process: subprocess.Popen[bytes] | None = None
        self._notify = folder / "notify"
        self._manager: socket.socket | None = None
        self.control.mkdir()
        interval = {"kind": "interval", "interval_ms": 1e3 * SIDE_INTERVAL_S}
        tree = {
            "station": "press-7",
            "state_dir": str(state_dir),
            "cameras": [
                {"name": "top", "source": {"kind": "simulated"}, "trigger": {"kind": "mqtt"}},
                {"name": "side", "source": {"kind": "simulated"}, "trigger": interval},
            ],
            "deadline_ms": 1e3 * DEADLINE_S,
            "recipes": {1: str(level_bundle(folder))},
            "engine": {"kind": "onnxruntime", "threads": 1},
            "mqtt": {"host": "127.0.0.1", "port": port, "root": ROOT, "commands": ["trigger"]},
            "metrics": {"port": 0},
        }
        self._config.write_text(yaml.safe_dump(tree | changes), encoding="utf-8")

    def start(self) -> None:
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.unlink(missing_ok=True)
        self._manager.bind(str(self._notify))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
            "NOTIFY_SOCKET": str(self._notify),
            "WATCHDOG_USEC": str(int(1e6 * WATCHDOG_S)),
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.station", str(self._config), str(self.control)],
                stdout=log,
                stderr=log,
                env=environment,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def capture_pids(self) -> list[int]:
        return family(self.pid)[1:]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self.wait()

    def terminate(self) -> int:
        """SIGTERM. Returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = READY_S) -> int:
        assert self._process is not None and self._manager is not None
        code = self._process.wait(timeout_s)
        self._manager.close()
        return code

    def wait_for_the_watchdog(self, timeout_s: float) -> float:
        """Until nothing has fed it for `WATCHDOG_S`, as systemd waits. Returns how long that took."""
        assert self._manager is not None
        began = fed = time.monotonic()
        while time.monotonic() < fed + WATCHDOG_S:
            self._manager.settimeout(fed + WATCHDOG_S - time.monotonic())
            with contextlib.suppress(TimeoutError):
                if b"WATCHDOG=1" in self._manager.recv(4096):
                    fed = time.monotonic()
            if time.monotonic() > began + timeout_s:
                raise AssertionError(f"the watchdog is still fed after {timeout_s:g} s")
        return time.monotonic() - began

    def break_part(self, what: str, how: str) -> None:
        """`what` is top, side, engine or clock; "" mends it."""
        path = self.control / what
        (path.with_suffix(".new")).write_text(how, encoding="ascii")
        path.with_suffix(".new").replace(path)

    def mend(self) -> None:
        for what in self.control.iterdir():
            what.unlink()

    def journal_keys(self) -> set[tuple[str, int]]:
        path = self.state_dir / JOURNAL_FILE
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return set(connection.execute("SELECT boot, seq FROM parts"))


class Rig:
    """All of it, ready for the next fault. `chance` is where random times come from."""

    def __init__(self, broker: Mosquitto, proxy: TcpProxy, station: Station, plc: Plc, rate: float, seed: int) -> None:
        self.broker, self.proxy, self.station, self.plc = broker, proxy, station, plc
        self.rate = rate
        self.chance = random.Random(seed)

    @property
    def ledger(self) -> Ledger:
        return self.plc.ledger

    def ready(self) -> None:
        """Start the station where it is not running, and wait for `ready` and a part that was judged."""
        if not self.station.is_alive:
            self.station.start()
        since = time.monotonic()
        until(lambda: self._judges(since), f"a verdict of a station that is ready\n{self._tail()}", READY_S)

    def _judges(self, since: float) -> bool:
        if not self.station.is_alive:
            raise AssertionError(f"the station has ended\n{self._tail()}")
        if self.ledger.states and self.ledger.states[-1][1] == "ready":
            self.plc.trigger()
            time.sleep(0.05)
        return self.ledger.first_judged(since) is not None

    def recovery_s(self, cured_at: float) -> float:
        """From the cure to the first judged verdict on a trigger after it; the load must be on."""
        found: list[float] = []

        def judged() -> bool:
            at = self.ledger.first_judged(cured_at)
            found.extend([] if at is None else [at])
            return at is not None

        until(judged, f"a verdict after the fault\n{self._tail()}", RECOVERY_S)
        return found[0] - cured_at

    def settle(self, since: float) -> Account:
        """Wait until everything that was accepted has been told, and give the account."""
        deadline = time.monotonic() + SETTLE_S
        time.sleep(ON_THE_WAY_S)
        self.ledger.journaled(self.station.journal_keys(), since)
        while (account := self.ledger.account(since)).missing and time.monotonic() < deadline:
            time.sleep(0.05)
        return account

    def pause(self, shortest_s: float, longest_s: float) -> None:
        """At some moment between the two."""
        time.sleep(self.chance.uniform(shortest_s, longest_s))

    def _tail(self) -> str:
        return "\n".join(self.station.log.read_text(errors="replace").splitlines()[-25:])


@contextlib.contextmanager
def rig(
    folder: Path, *, state_dir: Path | None = None, rate: float = 10.0, seed: int = 0, **changes: Any
) -> Iterator[Rig]:
    """A rig below `folder`, its station not yet started. `changes` replaces whole keys of the configuration."""
    ledger = Ledger(DEADLINE_S + SLACK_S, is_defective=line.is_defective, captured=line.captured, from_start=True)
    with (
        mosquitto() as broker,
        TcpProxy(broker.port) as proxy,
        Plc("127.0.0.1", broker.port, ROOT, ledger, cameras=("top",), name="T") as plc,
    ):
        station = Station(folder, state_dir or folder / "state", proxy.port, **changes)
        try:
            yield Rig(broker, proxy, station, plc, rate, seed)
        finally:
            station.kill()


def until(is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.02)
