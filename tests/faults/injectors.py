"""The faults. Each breaks one thing under load, at a moment of chance, and mends it; `Outcome` is what came of it.

An injector returns when the cause is gone, with the moment at which it was; coming back is the station's own affair.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.edge.proxy import Direction, TcpProxy
from tests.faults.rig import DEADLINE_S, ROOT, WATCHDOG_S, Rig, until
from tests.faults.station import FPS, FROZEN_AFTER_S, READ_TIMEOUT_S, SLOW_S

from flawline_edge.soak import Account

__all__ = ["FAULTS", "Outcome", "run_fault"]

_FRAME_S = 2 / FPS
_STORM_RATE = 10 / SLOW_S
DIRECTIONS: tuple[Direction, ...] = ("both", "to_server", "to_client")


@dataclass(frozen=True)
class Outcome:
    """`recovery_s` runs from the end of the cause to the first judged verdict on a trigger after it."""

    fault: str
    account: Account
    recovery_s: float
    note: str = ""


Injector = Callable[[Rig], tuple[float, str]]
"""Returns when the cause was gone, monotonic, and a note."""


def run_fault(rig: Rig, name: str) -> Outcome:
    """One fault on a rig that is ready, from the beginning of the load to the account."""
    rig.ready()
    since = time.monotonic()
    with rig.plc.load(rig.rate, rig.chance.randrange(1 << 30)):
        rig.pause(0.2, 0.6)
        try:
            cured_at, note = FAULTS[name](rig)
        finally:
            rig.proxy.heal()
            rig.station.mend()
        recovery_s = rig.recovery_s(cured_at)
        rig.pause(0.1, 0.3)
    return Outcome(name, rig.settle(since), recovery_s, note)


# --- the broker and the way to it ------------------------------------------------------------------------------------


def broker_restarts(rig: Rig) -> tuple[float, str]:
    rig.broker.kill()
    rig.pause(0.3, 1.0)
    # The PLC is back first: what a broker takes for nobody is delivered by MQTT's rules, and nobody could account for it.
    rig.proxy.refuse()
    rig.broker.start()
    assert rig.plc.wait_for_subscription(10.0)
    rig.proxy.heal()
    return time.monotonic(), "killed"


def connection_black_holed(rig: Rig) -> tuple[float, str]:
    direction = rig.chance.choice(DIRECTIONS)
    rig.proxy.black_hole(direction)
    rig.pause(0.5, 1.5)
    rig.proxy.heal()
    return time.monotonic(), f"{direction}; silent until the keepalive finds out"


def slow_network(rig: Rig) -> tuple[float, str]:
    rig.proxy.delay(0.2)
    rig.pause(0.8, 1.5)
    rig.proxy.delay(0.0)
    return time.monotonic(), "0.2 s each way"


def slow_consumer(rig: Rig) -> tuple[float, str]:
    """Somebody who has subscribed to everything and takes nothing any more."""
    with TcpProxy(rig.broker.port) as proxy:
        client = Client(CallbackAPIVersion.VERSION2, "slow", True, protocol=MQTTProtocolVersion.MQTTv311)
        subscribed = threading.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect("127.0.0.1", proxy.port)
        client.subscribe(f"{ROOT}/#", 1)
        client.loop_start()
        assert subscribed.wait(10.0)
        proxy.black_hole("to_client")
        rig.pause(0.8, 1.5)
        client.loop_stop()
    return time.monotonic(), ""


# --- the daemon --------------------------------------------------------------------------------------------------------


def daemon_killed(rig: Rig) -> tuple[float, str]:
    rig.station.kill()
    rig.station.start()
    return time.monotonic(), "kill -9"


def daemon_terminated(rig: Rig) -> tuple[float, str]:
    began = time.monotonic()
    code = rig.station.terminate()
    took_s = time.monotonic() - began
    assert code == 0, f"exit code {code} on SIGTERM"
    rig.station.start()
    return time.monotonic(), f"ended in {took_s:.1f} s with code {code}"


def capture_killed(rig: Rig) -> tuple[float, str]:
    os.kill(rig.chance.choice(rig.station.capture_pids), signal.SIGKILL)
    return time.monotonic(), ""


# --- camera and engine --------------------------------------------------------------------------------------------------------


@contextmanager
def _broken(rig: Rig, what: str, how: str, *, spared_s: float = 0.0) -> Iterator[None]:
    """Broken inside; nothing may be OK, but what was asked for less than `spared_s` before the end."""
    rig.station.break_part(what, how)
    began = time.monotonic()
    yield
    ended = time.monotonic()
    rig.station.break_part(what, "")
    rig.ledger.nothing_can_be_judged(began, ended - spared_s)


def _camera(how: str, shortest_s: float) -> Injector:
    """Of the camera that the PLC asks; the other one goes on, and with it the station's state."""

    def inject(rig: Rig) -> tuple[float, str]:
        rig.station.break_part("top", how)
        began = time.monotonic()
        rig.pause(shortest_s, shortest_s + 0.5)
        ended = time.monotonic()
        rig.station.break_part("top", "")
        judged = rig.ledger.first_judged(began + _FRAME_S)
        assert judged is None or judged > ended, f"a part was judged while the camera was broken ({how})"
        raised = [at for at, name, on in list(rig.ledger.alarms) if at > began and name == "camera" and on]
        return ended, f"alarm after {raised[0] - began:.1f} s" if raised else "over before it was seen"

    return inject


def _engine(how: str) -> Injector:
    def inject(rig: Rig) -> tuple[float, str]:
        with _broken(rig, "engine", how, spared_s=DEADLINE_S):
            rig.pause(DEADLINE_S + 0.4, DEADLINE_S + 0.9)
        return time.monotonic(), ""

    return inject


def engine_hangs_for_ever(rig: Rig) -> tuple[float, str]:
    with _broken(rig, "engine", "hang"):
        took_s = rig.station.wait_for_the_watchdog(6 * WATCHDOG_S)
        rig.station.kill()
    rig.station.start()
    return time.monotonic(), f"the watchdog of {WATCHDOG_S:g} s ends it after {took_s:.1f} s"


# --- the rest ----------------------------------------------------------------------------------------------------------


def clock_jumps(rig: Rig) -> tuple[float, str]:
    for hours in (3.0, -5.0, 0.0):
        rig.station.break_part("clock", str(3600 * hours))
        rig.pause(0.3, 0.5)
    return time.monotonic(), "+3 h, -5 h, back"


def trigger_storm(rig: Rig) -> tuple[float, str]:
    """Ten times what the camera can serve."""
    rig.station.break_part("engine", "slow")
    due, sent = time.monotonic(), 0
    while sent < 1.2 * _STORM_RATE:
        sent += rig.plc.trigger()
        due += 1 / _STORM_RATE
        time.sleep(max(0.0, due - time.monotonic()))
    rig.station.break_part("engine", "")
    return time.monotonic(), f"{_STORM_RATE:.0f} a second"


def disk_full(rig: Rig) -> tuple[float, str]:
    """For a rig whose state directory lies on a small disk of its own."""
    ballast = rig.station.state_dir.parent / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    until(lambda: any(name == "journal" and on for _, name, on in list(rig.ledger.alarms)), "the alarm `journal`", 20.0)
    rig.pause(0.5, 1.0)
    ballast.unlink()
    return time.monotonic(), "alarm `journal`"


FAULTS: dict[str, Injector] = {
    "broker killed and restarted": broker_restarts,
    "connection black-holed": connection_black_holed,
    "slow network": slow_network,
    "slow consumer": slow_consumer,
    "daemon kill -9": daemon_killed,
    "SIGTERM": daemon_terminated,
    "capture process killed": capture_killed,
    "camera stalls": _camera("stall", READ_TIMEOUT_S + 1.5),
    "camera freezes": _camera("freeze", FROZEN_AFTER_S + 0.3),
    "camera returns garbage": _camera("garbage", 0.6),
    "engine raises": _engine("raise"),
    "engine hangs": _engine("hang"),
    "engine hangs for ever": engine_hangs_for_ever,
    "engine returns NaN": _engine("nan"),
    "wall clock jumps": clock_jumps,
    "trigger storm": trigger_storm,
    "disk full": disk_full,
}
