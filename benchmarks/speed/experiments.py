"""What is measured: peers side by side with flawline, flawline's engines, and how the cost grows."""

from __future__ import annotations

import json
import math
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
from benchmarks.accuracy.sets import DataSet
from benchmarks.speed.contenders import AE_SSIM, BATCHED, DISK, FLAWLINE, MEMORY, Contender
from benchmarks.speed.race import LateError, RaceError, make, race

from flawline_engines.engine import MODEL_MEMBERS
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EXIT_FAILURE, FlawlineError

__all__ = ["Case", "Settings", "engines", "growth", "peers", "precisions", "run_cases"]

SOURCES = ("inspect/flawline_inspect", "engines/flawline_engines", "train/flawline_train", "benchmarks/speed")
"""What the figures depend on."""
PRESETS = ("nano", "small", "medium")
PEERS = ("EfficientAd", "Padim", "Draem", "Ganomaly")
SMALLER: tuple[Literal["fp16", "int8"], ...] = ("fp16", "int8")
PEER_SIZE = 256
BATCH = 8
SIZES = (128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CAMERAS = (1, 2, 4, 8, 16)

Precision = Literal["fp32", "bf16"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """`seconds` for each contender and way; `limit_s` for a whole case, making its files included; `total_s` for all cases."""

    work: Path
    threads: int
    seconds: float = 2.0
    limit_s: float = 600.0
    total_s: float = math.inf
    precisions: tuple[Precision, ...] = ("fp32",)


@dataclass(frozen=True, slots=True)
class Case:
    """One line to be. `name` within the experiment; `measure` gives its figures, in so many seconds at most."""

    experiment: str
    precision: str
    name: str
    size: int
    measure: Callable[[Say, float], dict[str, Any]]

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


def precisions(settings: Settings, sets: Sequence[DataSet], steps: int) -> list[Case]:
    """What the smaller precisions cost in accuracy and gain in speed, of a bundle that was trained for so many steps."""
    return [
        Case("precisions", f"{steps} steps", each.name, PEER_SIZE, _precisions(each, steps, settings)) for each in sets
    ]


def _race(
    field: Sequence[Contender], ways: Sequence[str], settings: Settings
) -> Callable[[Say, float], dict[str, Any]]:
    def measure(say: Say, limit_s: float) -> dict[str, Any]:
        found = race(field, ways, settings.work, seconds=settings.seconds, limit_s=limit_s, say=say)
        rows = [
            {"system": each.system, "runtime": each.runtime, "batch": each.batch, "cameras": each.cameras, **figures}
            for each, figures in zip(field, found, strict=True)
        ]
        return {"contenders": rows}

    return measure


def _bench(preset: str, settings: Settings) -> Callable[[Say, float], dict[str, Any]]:
    contender = Contender(FLAWLINE + preset, "openvino", size=PEER_SIZE, threads=settings.threads)

    def measure(say: Say, limit_s: float) -> dict[str, Any]:
        until = time.monotonic() + limit_s
        make([contender], settings.work, until, say)
        path = contender.file(settings.work)
        assert path is not None
        return _flawline_bench(path, settings, until, say)

    return measure


def _precisions(dataset: DataSet, steps: int, settings: Settings) -> Callable[[Say, float], dict[str, Any]]:
    def measure(say: Say, limit_s: float) -> dict[str, Any]:
        until = time.monotonic() + limit_s
        path = settings.work / f"{dataset.name}-{PEER_SIZE}-{steps}.flawline"
        if not path.is_file():
            settings.work.mkdir(parents=True, exist_ok=True)
            trained, quantized = path.with_suffix(".trained.flawline"), path.with_suffix(".quantized.flawline")
            say(f"    flawline train {dataset.name}, {steps} steps at {PEER_SIZE} px")
            training = ["train", dataset.good, "--out", trained, "--no-report", "--size", PEER_SIZE, "--steps", steps]
            flawline([*training, "--seed", 0], until)
            say("    flawline quantize")
            smaller = ["--precisions", ",".join(SMALLER), "--pictures", dataset.good, "--out", quantized]
            flawline(["quantize", trained, *smaller], until, may_end_with=EXIT_FAILURE)  # it refused one, and says so
            (quantized if quantized.is_file() else trained).replace(path)
        members = Bundle.open(path).manifest.members
        there = [name for name in SMALLER if MODEL_MEMBERS[name] in members]
        found = {}
        for precision in (*settings.precisions, *there):
            say(f"    flawline eval --precision {precision}")
            told = flawline(
                ["eval", path, dataset.folder, "--json", "--engine", "openvino", "--precision", precision], until
            )
            found[precision] = json.loads(told)
        report = _flawline_bench(path, settings, until, say, "--engines", "openvino")
        return {"evaluations": found, "refused": sorted(set(SMALLER) - set(there)), "bench": report}

    return measure


def _flawline_bench(path: Path, settings: Settings, until: float, say: Say, *options: str) -> dict[str, Any]:
    say(f"    flawline bench {path.name}")
    arguments = ["bench", path, "--json", "--parts", 0, "--seconds", f"{settings.seconds:g}"]
    arguments += ["--threads", settings.threads, "--batches", 1, "--batches", BATCH]
    report: dict[str, Any] = json.loads(flawline([*arguments, *options], until))
    report["machine"] = {"processor": report["machine"]["processor"], "cores": report["machine"]["cores"]}
    return report


def flawline(arguments: Sequence[object], until: float, *, may_end_with: int = 0) -> str:
    """What a command of this checkout prints. Raises `RaceError` when it fails, or does not end in time."""
    folders = os.pathsep.join(str(ROOT / name) for name in ("inspect", "engines", "train", "edge"))
    name = f"flawline {arguments[0]}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flawline_inspect.cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": folders},
            capture_output=True,
            text=True,
            check=False,
            timeout=max(1.0, until - time.monotonic()),
        )
    except subprocess.TimeoutExpired as exc:
        raise LateError(f"{name} took longer than its time; raise --limit-minutes") from exc
    if done.returncode not in (0, may_end_with):
        raise RaceError(f"{name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def run_cases(
    cases: Sequence[Case], runs: Runs, machine: Machine, settings: Settings, say: Say, *, again: bool
) -> list[str]:
    """Measure those of `cases` that have no line yet; what could not be measured, a sentence each.

    When `settings.total_s` are over, the case under way is ended, and those after it are not begun.
    """
    code = code_digest(SOURCES)
    keys = [
        Key(case.experiment, case.precision, case.name, f"{settings.threads} threads", 0, f"{settings.seconds:g} s",
            case.size, code, machine)
        for case in cases
    ]  # fmt: skip
    missing = [again or runs.find(key) is None for key in keys]
    say(f"{sum(missing)} of {len(cases)} cases to do, at most {settings.limit_s / 60:g} min each")
    failed = []
    until = time.monotonic() + settings.total_s
    for number, (case, key, needed) in enumerate(zip(cases, keys, missing, strict=True), 1):
        title = f"[{number}/{len(cases)}] {case}"
        if not needed:
            say(f"{title}: is there already")
            continue
        load, begin = round(os.getloadavg()[0], 1), time.monotonic()
        if begin >= until:
            failed.append(f"{case}: the time was over; repeat the command")
            continue
        say(title)
        try:
            figures = case.measure(say, min(settings.limit_s, until - begin))
        except FlawlineError as exc:
            failed.append(f"{case}: {exc}")
            say(f"  not measured: {exc}")
            continue
        took = round(time.monotonic() - begin, 1)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        runs.append(Run(key, Measured(figures, took), git_commit(SOURCES), date, load, versions()))
        say(f"  {took:.0f} s")
    return failed
