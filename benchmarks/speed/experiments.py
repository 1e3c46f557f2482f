"""What is measured: peers side by side with flawline, flawline's engines, and how the cost grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from benchmarks.accuracy.runs import ROOT, Key, Machine, Measured, Run, Runs, code_digest, git_commit, versions
from benchmarks.speed.contenders import AE_SSIM, BATCHED, DISK, FLAWLINE, MEMORY, Contender
from benchmarks.speed.race import RaceError, race

from flawline_inspect.errors import FlawlineError

__all__ = ["Case", "Settings", "engines", "growth", "peers", "run_cases"]

SOURCES = ("inspect/flawline_inspect", "engines/flawline_engines", "train/flawline_train", "benchmarks/speed")
"""What the figures depend on."""
PRESETS = ("nano", "small", "medium")
PEERS = ("EfficientAd", "Padim", "Draem", "Ganomaly")
PEER_SIZE = 256
BATCH = 8
SIZES = (128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CAMERAS = (1, 2, 4, 8, 16)

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """`seconds` for each contender and way; `limit_s` for a whole case, making its files included."""

    work: Path
    threads: int
    seconds: float = 2.0
    limit_s: float = 600.0
    precisions: tuple[Precision, ...] = ("fp32",)


@dataclass(frozen=True, slots=True)
class Case:
    """One line to be. `name` within the experiment; `measure` gives its figures."""

    experiment: str
    precision: str
    name: str
    size: int
    measure: Callable[[Callable[[str], None]], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.experiment} · {self.precision} · {self.name}"


def peers(settings: Settings) -> list[Case]:
    """Each peer in a race of its own with flawline's three presets, from memory, from disk, and eight at once."""
    cases = []
    for precision in settings.precisions:
        rivals = [Contender(peer, "openvino", precision) for peer in PEERS]
        if precision == "fp32":
            rivals += [Contender(peer, "torch") for peer in (*PEERS, AE_SSIM)]
        for rival in rivals:
            field = [Contender(FLAWLINE + preset, "openvino", precision) for preset in PRESETS] + [rival]
            field = [replace(each, size=PEER_SIZE, batch=BATCH, threads=settings.threads) for each in field]
            name = f"{rival.system} {rival.runtime}"
            cases.append(Case("peers", precision, name, PEER_SIZE, _race(field, (MEMORY, DISK, BATCHED), settings)))
    return cases


def growth(settings: Settings) -> list[Case]:
    """flawline small over the size of the frame, of the batch, and the number of cameras."""
    cases = []
    for precision in settings.precisions:
        base = Contender(f"{FLAWLINE}small", "openvino", precision, threads=settings.threads)
        alone = [(f"size {size}", replace(base, size=size), MEMORY) for size in SIZES]
        alone += [(f"batch {batch}", replace(base, batch=batch), BATCHED) for batch in BATCHES]
        alone += [(f"cameras {cameras}", replace(base, cameras=cameras), MEMORY) for cameras in CAMERAS]
        cases += [
            Case("growth", precision, name, contender.size, _race([contender], (way,), settings))
            for name, contender, way in alone
        ]
    return cases


def engines(settings: Settings) -> list[Case]:
    """`flawline bench` of each preset: every engine, precision and batch, beside the machine's limit."""
    return [Case("engines", "all", preset, PEER_SIZE, _bench(preset, settings)) for preset in PRESETS]


def _race(
    field: Sequence[Contender], ways: Sequence[str], settings: Settings
) -> Callable[[Callable[[str], None]], dict[str, Any]]:
    def measure(say: Callable[[str], None]) -> dict[str, Any]:
        found = race(field, ways, settings.work, seconds=settings.seconds, limit_s=settings.limit_s, say=say)
        rows = [
            {"system": each.system, "runtime": each.runtime, "batch": each.batch, "cameras": each.cameras, **figures}
            for each, figures in zip(field, found, strict=True)
        ]
        return {"contenders": rows}

    return measure


def _bench(preset: str, settings: Settings) -> Callable[[Callable[[str], None]], dict[str, Any]]:
    contender = Contender(FLAWLINE + preset, "openvino", size=PEER_SIZE, threads=settings.threads)

    def measure(say: Callable[[str], None]) -> dict[str, Any]:
        begin = time.monotonic()
        race([contender], (MEMORY,), settings.work, seconds=0.01, limit_s=settings.limit_s, say=say)  # makes its file
        path = contender.file(settings.work)
        command = [sys.executable, "-m", "flawline_inspect.cli", "bench", str(path), "--json", "--parts", "0"]
        command += ["--seconds", f"{settings.seconds:g}", "--threads", str(settings.threads)]
        command += ["--batches", "1", "--batches", str(BATCH)]
        folders = os.pathsep.join(str(ROOT / name) for name in ("inspect", "engines", "train", "edge"))
        say(f"    flawline bench {path.name if path else ''}")
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": folders},
                capture_output=True,
                text=True,
                check=False,
                timeout=max(1.0, settings.limit_s - (time.monotonic() - begin)),
            )
        except subprocess.TimeoutExpired as exc:
            raise RaceError("flawline bench took longer than its time; raise --limit-minutes") from exc
        if done.returncode:
            raise RaceError(f"flawline bench ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        report: dict[str, Any] = json.loads(done.stdout)
        report["machine"] = {"processor": report["machine"]["processor"], "cores": report["machine"]["cores"]}
        return report

    return measure


def run_cases(
    cases: Sequence[Case], runs: Runs, machine: Machine, settings: Settings, say: Callable[[str], None], *, again: bool
) -> list[str]:
    """Measure those of `cases` that have no line yet; what could not be measured, a sentence each."""
    code = code_digest(SOURCES)
    keys = [
        Key(case.experiment, case.precision, case.name, f"{settings.threads} threads", 0, f"{settings.seconds:g} s",
            case.size, code, machine)
        for case in cases
    ]  # fmt: skip
    missing = [again or runs.find(key) is None for key in keys]
    say(f"{sum(missing)} of {len(cases)} cases to do, at most {settings.limit_s / 60:g} min each")
    failed = []
    for number, (case, key, needed) in enumerate(zip(cases, keys, missing, strict=True), 1):
        title = f"[{number}/{len(cases)}] {case}"
        if not needed:
            say(f"{title}: is there already")
            continue
        say(title)
        load, begin = round(os.getloadavg()[0], 1), time.monotonic()
        try:
            figures = case.measure(say)
        except FlawlineError as exc:
            failed.append(f"{case}: {exc}")
            say(f"  not measured: {exc}")
            continue
        took = round(time.monotonic() - begin, 1)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        runs.append(Run(key, Measured(figures, took), git_commit(SOURCES), date, load, versions()))
        say(f"  {took:.0f} s")
    return failed
