"""How much one station carries: `python -m benchmarks.load [--cameras 1,2,4,8] [--seconds S] [--write]`.

For each number of cameras the highest rate of triggers by MQTT at which none of them is refused, overruns or misses its
deadline, found by doubling and halving, then held for three times as long; and at half of it the time from a trigger's
departure to its verdict's arrival. Beside it what the daemon adds to the engine's time, and what one fsync of the disk takes.

The station, mosquitto and the PLC, which is `flawline soak`, share this machine. --write puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from benchmarks.accuracy.runs import git_commit
from benchmarks.accuracy.tables import write_between_markers
from tests.edge.mosquitto import Mosquitto, mosquitto

from flawline_edge.status_file import HEALTHY_STATES, StatusError, read_status
from flawline_inspect.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- load:begin -->", "<!-- load:end -->"
BUNDLE = ROOT / "edge" / "flawline_edge" / "demo.flawline"
"""0.33 M parameters, smaller than `--preset nano`."""
SOURCES = ("inspect", "engines", "edge")
CAMERAS = (1, 2, 4, 8)
DEADLINE_MS = 200
FIRST_RATE, HIGHEST_RATE = 20.0, 2000.0
PRECISION = 1.1
"""The search ends where the rate that failed is this many times the one that held."""
CONFIRMATION = 3
READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """What `flawline soak` says of one rate; latencies in milliseconds, from a trigger's departure to its verdict's arrival."""

    rate: float
    sent: int
    judged: int
    p50: float
    p99: float
    p999: float

    @property
    def is_held(self) -> bool:
        """Every trigger was judged: none refused, none overran, none late."""
        return 0 < self.sent == self.judged


def highest_held(try_rate: Callable[[float], Held], confirm: Callable[[float], Held]) -> Held | None:
    """The last rate that holds, and is confirmed; None where not even a fraction of the first one does."""
    low, high = 0.0, FIRST_RATE
    while high < HIGHEST_RATE and try_rate(high).is_held:
        low, high = high, 2 * high
    low = low or FIRST_RATE / 8
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if try_rate(middle).is_held else (low, middle)
    while low > FIRST_RATE / 10:
        confirmed = confirm(low)
        if confirmed.is_held:
            return confirmed
        low /= PRECISION
    return None


def held_of(rate: float, report: dict[str, Any]) -> Held:
    """From the JSON of `flawline soak`."""
    latency = report["latency_ms"]
    judged = sum(report["by_result"][1:3])
    return Held(rate, report["sent"], judged, latency["p50"] or 0.0, latency["p99"] or 0.0, latency["p99.9"] or 0.0)


def table(rows: Sequence[tuple[int, Held | None, Held | None]]) -> str:
    """A row a number of cameras: the highest rate, and what the same station does at half of it."""
    lines = [
        "| cameras | parts/s without a miss | at half of it: trigger to subscriber, p50 | p99 | p99.9 |",
        "|---|---|---|---|---|",
    ]
    for cameras, highest, half in rows:
        if highest is None or half is None:
            lines.append(f"| {cameras} | below {FIRST_RATE / 10:g} | | | |")
            continue
        missed = "" if half.is_held else f" ({half.sent - half.judged} of {half.sent} missed)"
        lines.append(
            f"| {cameras} | {highest.rate:.0f} | {half.p50:.1f} ms{missed} | {half.p99:.1f} ms | {half.p999:.1f} ms |"
        )
    return "\n".join(lines)


def overhead_lines(daemon: dict[str, Any]) -> str:
    """The daemon's own share, from the JSON of `flawline bench`."""
    overhead, fsync = daemon["overhead_ms"], daemon["fsync_ms"]
    return "\n".join(
        [
            f"| one part at a time, {daemon['parts']} parts, {daemon['filesystem']} | median | p99 |",
            "|---|---|---|",
            f"| trigger to publish, less inference | {overhead['median']:.2f} ms | {overhead['p99']:.2f} ms |",
            f"| one fsync of the disk meanwhile | {fsync['median']:.2f} ms | {fsync['p99']:.2f} ms |",
            f"| difference | {overhead['median'] - fsync['median']:.2f} ms | {overhead['p99'] - fsync['p99']:.2f} ms |",
            f"| inference | {daemon['infer_ms']['median']:.2f} ms | {daemon['infer_ms']['p99']:.2f} ms |",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--cameras", default=",".join(map(str, CAMERAS)), help="numbers of cameras, by commas")
    parser.add_argument("--seconds", type=float, default=8.0, help="that each rate is tried")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/RESULTS.md")
    given = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="flawline-load-", dir="/var/tmp") as folder,
        mosquitto("set_tcp_nodelay true") as broker,  # as our example has it
    ):
        for cameras in [int(each) for each in given.cameras.split(",")]:
            below = Path(folder) / f"{cameras}"
            below.mkdir()
            rows.append((cameras, *_measured(below, broker, cameras, given.threads, given.seconds)))
    daemon = json.loads(_flawline("bench", BUNDLE, "--json", "--seconds", "0.05", "--batches", "1").stdout)["daemon"]
    cores = len(os.sched_getaffinity(0))
    text = (
        f"{platform.processor() or platform.machine()}, {cores} core{'s' * (cores != 1)}, {datetime.now(timezone.utc):%Y-%m-%d},"
        f" commit {git_commit(SOURCES)}; the shipped bundle (0.33 M parameters, 128 x 96 px), OpenVINO fp32, {given.threads} thread"
        f"{'s' * (given.threads != 1)}, deadline {DEADLINE_MS} ms; station, mosquitto (set_tcp_nodelay) and PLC on the same cores.\n\n"
        f"{table(rows)}\n\n{overhead_lines(daemon)}"
    )
    print(f"\n{text}")
    if given.write:
        write_between_markers(RESULTS, text, begin=BEGIN, end=END)
    return 0 if all(highest is not None for _, highest, _ in rows) else 1


def _measured(
    folder: Path, broker: Mosquitto, cameras: int, threads: int, seconds: float
) -> tuple[Held | None, Held | None]:
    config = _config(folder, broker.port, cameras, threads)

    def soak(rate: float, for_s: float) -> Held:
        done = _flawline("soak", "--config", config, "--minutes", f"{for_s / 60:g}", "--rate", f"{rate:g}", "--json")
        found = held_of(rate, json.loads(done.stdout))
        print(
            f"{cameras} cameras, {rate:.0f}/s: {found.judged} of {found.sent} judged, p99 {found.p99:.1f} ms",
            flush=True,
        )
        return found

    with _running(config):
        highest = highest_held(lambda rate: soak(rate, seconds), lambda rate: soak(rate, CONFIRMATION * seconds))
        return highest, None if highest is None else soak(highest.rate / 2, CONFIRMATION * seconds)


def _config(folder: Path, port: int, cameras: int, threads: int) -> Path:
    pictures = folder / "parts"
    pictures.mkdir()
    for i, golden in enumerate(Bundle.open(BUNDLE).golden()):
        cv2.imwrite(str(pictures / f"{i:03d}.png"), np.asarray(golden.raw, np.uint8))
    tree = {
        "station": f"load-{cameras}",
        "state_dir": "state",
        "cameras": [
            {"name": f"c{i}", "source": {"kind": "folder", "path": "parts", "loop": True}} for i in range(cameras)
        ],
        "trigger": {"kind": "mqtt"},
        "deadline_ms": DEADLINE_MS,
        "recipes": {1: str(BUNDLE)},
        "engine": {"kind": "openvino", "threads": threads},
        "mqtt": {"host": "127.0.0.1", "port": port, "root": f"acme/load-{cameras}"},
        "metrics": {"port": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@contextlib.contextmanager
def _running(config: Path) -> Iterator[None]:
    process = subprocess.Popen(_command("run", "--config", config), env=_environment(), stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            with contextlib.suppress(StatusError):
                status = read_status(config.parent / "state")
                if status.pid == process.pid and status.state in HEALTHY_STATES:
                    break
            time.sleep(0.1)
        else:
            raise SystemExit(f"the station is not ready after {READY_S:g} s; try flawline run --config with {config}")
        yield
    finally:
        process.terminate()
        process.wait()


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "flawline_inspect.cli", *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}


def _flawline(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`soak` ends with 1 where a part was late, which is what is looked for; what it prints says it all."""
    done = subprocess.run(_command(*arguments), env=_environment(), capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise SystemExit(f"flawline {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done


if __name__ == "__main__":
    sys.exit(main())
