"""What was measured: one JSON line a run, appended when the run is done, and found again by its key.

A line says what was measured, by which code and on what kind of machine, and never which machine: no host name, no path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flawline_inspect.errors import InputError

__all__ = ["ROOT", "Key", "Machine", "Measured", "Run", "Runs", "code_digest", "git_commit", "this_machine", "versions"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """`threads` are torch's; `gpu` is the model of the one that trained, None where the processor did."""

    cpu: str
    cores: int
    threads: int
    gpu: str | None = None

    def __str__(self) -> str:
        gpu = f"{self.gpu} beside " if self.gpu else ""
        cores, threads = ("s" * (count != 1) for count in (self.cores, self.threads))
        return f"{gpu}{self.cpu}, {self.cores} core{cores}, {self.threads} torch thread{threads}"


@dataclass(frozen=True, slots=True)
class Key:
    """Two runs of equal keys measure the same thing.

    `budget`: `10 min`, `500 steps` or `closed form`. `size`: the frame's long side, None for the product's default.
    `variant`: what is special, such as `20 good pictures`. `code`: digest of the sources that the figures depend on. It
    stands here instead of the commit because a commit that changes a document would otherwise repeat hours of training.
    """

    experiment: str
    set: str
    method: str
    variant: str
    seed: int
    budget: str
    size: int | None
    code: str
    machine: Machine


@dataclass(frozen=True, slots=True)
class Measured:
    """`seconds`: wall time of the training; `figures`: what `flawline eval --json` said."""

    figures: dict[str, Any]
    seconds: float
    steps: int | None = None
    frame_wh: tuple[int, int] | None = None
    parameters: int | None = None
    gflop: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """`load`: the machine's load average when the run began, since minutes of a busy machine are short."""

    key: Key
    measured: Measured
    commit: str
    date: str
    load: float
    versions: dict[str, str] = field(default_factory=dict)

    def to_line(self) -> str:
        values = {**asdict(self.key), "commit": self.commit, "date": self.date, "load": self.load}
        return json.dumps({**values, "versions": self.versions, **asdict(self.measured)}, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Run:
        values = json.loads(line)
        key = {name: values[name] for name in Key.__dataclass_fields__}
        measured = {name: values[name] for name in Measured.__dataclass_fields__}
        if measured["frame_wh"] is not None:
            measured["frame_wh"] = tuple(measured["frame_wh"])
        return cls(
            Key(**{**key, "machine": Machine(**key["machine"])}),
            Measured(**measured),
            values["commit"],
            values["date"],
            values["load"],
            values["versions"],
        )


class Runs:
    """The lines of a file. Raises `InputError` naming a line that is no run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: list[Run] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                self._runs.append(Run.from_line(line))
            except (ValueError, KeyError, TypeError) as exc:
                raise InputError(
                    f"{path}: line {number} is no run ({exc!r}); delete it, and the run is repeated"
                ) from exc

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def find(self, key: Key) -> Run | None:
        """The newest run of this key."""
        return next((run for run in reversed(self._runs) if run.key == key), None)

    def newest(self) -> list[Run]:
        """For each thing measured the newest run, whatever the code, in the order of the first."""
        found: dict[tuple[Any, ...], Run] = {}
        for run in self._runs:
            key = run.key
            found[key.experiment, key.set, key.method, key.variant, key.seed, key.budget, key.size, key.machine] = run
        return list(found.values())

    def append(self, run: Run) -> None:
        """On the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(run.to_line() + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._runs.append(run)


def code_digest(sources: Iterable[str]) -> str:
    """10 hex digits of all Python below `sources` (files and folders relative to the root), as it lies there now."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        for path in sorted((ROOT / source).rglob("*.py")) or [ROOT / source]:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


def git_commit(sources: Iterable[str]) -> str:
    """The checked-out commit, with a + where `sources` were changed since; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", *sources)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "+" * bool(changed)


def this_machine(device: str) -> Machine:
    """The kind of machine that trains on `device`, as `flawline train --device` takes it."""
    import torch

    gpu = None
    if device != "cpu" and torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(None if device == "auto" else device)
    return Machine(_cpu_model(), os.cpu_count() or 1, torch.get_num_threads(), gpu)


def versions() -> dict[str, str]:
    """Of what the figures depend on, where it is installed."""
    found = {}
    for name in ("torch", "onnxruntime", "openvino", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return "unknown processor"
    named = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(named, "unknown processor")
