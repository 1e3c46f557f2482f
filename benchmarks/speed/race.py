"""Contenders side by side: each in a process of its own, called in turn, so that a busy minute falls on all of them alike."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

import numpy as np
from benchmarks.accuracy.runs import ROOT
from benchmarks.speed.child import MARK
from benchmarks.speed.contenders import Contender

from flawline_inspect.errors import FlawlineError

__all__ = ["LateError", "RaceError", "ask", "make", "race"]

_P = TypeVar("_P", bound="_Process")
ROUNDS = 4
_KEPT_LINES = 30


class RaceError(FlawlineError):
    """A contender could not be made, or ended early."""


class LateError(RaceError):
    """It took longer than there was time."""


def race(
    contenders: Sequence[Contender],
    ways: Sequence[str],
    work: Path,
    *,
    seconds: float,
    limit_s: float,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Time each of `contenders` in each of `ways` for `seconds`, all within `limit_s`.

    For each contender its figures by way (`median_ms`, `p99_ms`, `min_ms`, `runs`), `refused` with the reason for what it
    cannot do, and `peak_mib`. Raises `RaceError`; no process is left.
    """
    until = time.monotonic() + limit_s
    make(contenders, work, until, say)
    with contextlib.ExitStack() as stack:
        children = []
        for contender in contenders:  # one after the other: opening them all at once is a race for memory, too
            say(f"    opening {contender.system}, {contender.runtime}")
            child = stack.enter_context(_Child("race", contender, work, until))
            ready = child.answer()
            if not any(way in ready["ready"] for way in ways):
                raise RaceError(f"{contender.system} ({contender.runtime}) can do nothing: {ready['refused']}")
            children.append((child, ready))
        times: dict[tuple[int, str], list[float]] = {}
        for turn in range(ROUNDS):
            say(f"    round {turn + 1} of {ROUNDS}")
            for way in ways:
                for number, (child, ready) in enumerate(children):
                    if way in ready["ready"]:
                        child.ask(f"{way} {seconds / ROUNDS:g}")
                        times.setdefault((number, way), []).extend(child.answer()["ms"])
        found = []
        for number, (child, ready) in enumerate(children):
            child.ask("end")
            figures: dict[str, Any] = {way: _figures(times[number, way]) for way in ways if (number, way) in times}
            found.append({**figures, "refused": ready["refused"], **child.answer()})
        return found


def make(
    contenders: Sequence[Contender], work: Path, until: float, say: Callable[[str], None] = lambda _: None
) -> None:
    """Write those of their files that are not there yet. Raises `RaceError`."""
    work.mkdir(parents=True, exist_ok=True)
    for contender in contenders:
        path = contender.file(work)
        if path is not None and not path.is_file():
            say(f"    making {path.name}")
            with _Child("prepare", contender, work, until) as child:
                child.answer()


def _figures(ms: list[float]) -> dict[str, float]:
    return {
        "median_ms": float(np.median(ms)),
        "p99_ms": float(np.quantile(ms, 0.99, method="inverted_cdf")),
        "min_ms": min(ms),
        "runs": len(ms),
    }


def ask(module: str, until: float, work: Path) -> dict[str, Any]:
    """The one answer that a module of ours gives when it is run. Raises `RaceError`."""
    work.mkdir(parents=True, exist_ok=True)
    with _Process(module, module, [], work, until) as process:
        return process.answer()


class _Process:
    """A context manager around the process; answers come through a thread, since a pipe cannot be read with a timeout."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], work: Path, until: float, *, threads: int = 0
    ) -> None:
        self._name, self._until = name, until
        self._command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        self._threads = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._work = work
        self._lines: Queue[str | None] = Queue()
        self._told: list[str] = []

    def __enter__(self: _P) -> _P:
        path = os.pathsep.join(str(ROOT / folder) for folder in ("", "inspect", "engines", "train", "edge"))
        environment = {**os.environ, "PYTHONPATH": path, **self._threads}
        # Where a library writes into the current folder (openvino_cache), that is ours to clean.
        self._process = subprocess.Popen(
            self._command,
            cwd=self._work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise RaceError(f"{self._name} ended: {self._last_words()}") from exc

    def answer(self) -> dict[str, Any]:
        """Raises `RaceError` when the time is up or the process has ended."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, self._until - time.monotonic()))
            except Empty as exc:
                raise LateError(f"{self._name} took longer than its time; raise --limit-minutes") from exc
            if line is None:
                raise RaceError(f"{self._name} ended: {self._last_words()}")
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
            self._told = [*self._told[1 - _KEPT_LINES :], line.strip()]

    def _last_words(self) -> str:
        return next((line for line in reversed(self._told) if line), "it says nothing")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class _Child(_Process):
    """One contender's."""

    def __init__(self, what: str, contender: Contender, work: Path, until: float) -> None:
        name = f"{contender.system} ({contender.runtime} {contender.precision})"
        arguments = [what, json.dumps(asdict(contender)), str(work)]
        super().__init__(name, "benchmarks.speed.child", arguments, work, until, threads=contender.threads)
