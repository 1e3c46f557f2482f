"""`flawline train` and `flawline eval` as a user runs them: processes of their own, so that no run leaves anything to the next."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flawline_inspect.errors import FlawlineError, InputError

__all__ = ["Budget", "Flawline", "Product", "Recipe", "UnavailableError"]

MIN_MINUTES = 0.5
_KEPT_LINES = 40
_REFUSED = 2
"""The command line's exit code for a mistake of its user, such as an option or a method that it does not have."""


class UnavailableError(FlawlineError):
    """This flawline cannot do what was to be measured."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Either `minutes` for the whole of `flawline train`, or `steps` of the optimiser. Raises `InputError`."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("give either --minutes or --steps, not both")
        if self.minutes is not None and not self.minutes >= MIN_MINUTES:
            raise InputError(f"a training of {self.minutes:g} minutes was asked for, expected at least {MIN_MINUTES:g}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a training of {self.steps} steps was asked for, expected at least 1")

    def __str__(self) -> str:
        return f"{self.minutes:g} min" if self.steps is None else f"{self.steps} step" + "s" * (self.steps != 1)

    def part(self, divisor: int) -> Budget:
        """A `divisor`-th of it."""
        if self.minutes is not None:
            return Budget(minutes=self.minutes / divisor)
        assert self.steps is not None
        return Budget(steps=self.steps // divisor)

    def arguments(self) -> list[str]:
        return ["--minutes", f"{self.minutes:g}"] if self.steps is None else ["--steps", str(self.steps)]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training is told besides its pictures. `base`: the bundle it continues from."""

    method: str
    seed: int
    budget: Budget
    size: int | None = None
    device: str = "auto"
    preset: str | None = None
    base: Path | None = None

    def arguments(self) -> list[str]:
        out = ["--method", self.method, "--seed", str(self.seed), "--device", self.device, *self.budget.arguments()]
        for option, value in (("--size", self.size), ("--preset", self.preset), ("--from", self.base)):
            out += [] if value is None else [option, str(value)]
        return out


class Product(Protocol):
    """What is measured; tests bring their own."""

    def train(self, good: Path, bundle: Path, recipe: Recipe) -> float:
        """Write `bundle`, learnt from the pictures in `good`; the wall time in seconds."""
        ...

    def evaluate(self, bundle: Path, dataset: Path) -> dict[str, Any]:
        """The object that `flawline eval --json` prints."""
        ...

    def describe(self, bundle: Path) -> dict[str, Any]:
        """`steps`, `frame_wh`, `parameters` and `gflop` of `Measured`."""
        ...


class Flawline:
    """The command line of this checkout. `say` gets what the commands tell on the way, a line at a time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def train(self, good: Path, bundle: Path, recipe: Recipe) -> float:
        """Raises `UnavailableError` where the command line refuses, else `FlawlineError`, with its last words."""
        started = time.monotonic()
        command = _command("train", good, "--out", bundle, *recipe.arguments(), "--no-report")
        # A session of its own: a Ctrl-C is ours alone, since the command would end its training early and call that a result.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        told: list[str] = []
        try:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    self._say(line.rstrip())
                    told = [*told[1 - _KEPT_LINES :], line.rstrip()]
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        _check(status, "train", told)
        return time.monotonic() - started

    def evaluate(self, bundle: Path, dataset: Path) -> dict[str, Any]:
        done = subprocess.run(_command("eval", bundle, dataset, "--json"), capture_output=True, text=True, check=False)
        for line in done.stderr.splitlines():
            self._say(line)
        _check(done.returncode, "eval", done.stderr.splitlines())
        return dict(json.loads(done.stdout))

    def describe(self, bundle: Path) -> dict[str, Any]:
        from flawline_engines.bench import graph_cost
        from flawline_inspect.bundle import MODEL, Bundle

        opened = Bundle.open(bundle)
        frame = opened.manifest.frame
        steps = opened.manifest.method.parameters.get("steps")
        return {
            "steps": steps if isinstance(steps, int) else None,
            "frame_wh": (frame.width, frame.height),
            "parameters": _parameters(bundle),
            "gflop": graph_cost(opened.member(MODEL), (frame.height, frame.width)).gflop,
        }


def _parameters(bundle: Path) -> int | None:
    """None for a network that is not of the autoencoders' family, whose weights lie in the graph alone."""
    from flawline_inspect.bundle import Bundle
    from flawline_inspect.errors import BundleError
    from flawline_train.autoencoders.methods import network_from_bundle

    try:
        network = network_from_bundle(Bundle.open(bundle))
    except BundleError:
        return None
    return sum(parameter.numel() for parameter in network.parameters())


def _command(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "flawline_inspect.cli", name, *map(str, arguments)]


def _check(status: int, name: str, told: list[str]) -> None:
    if status:
        words = [line.removeprefix("flawline: ") for line in told if line.startswith("flawline: ")] or told[-1:]
        message = f"flawline {name} ended with {status}: {' '.join(words) or 'without a word'}"
        raise UnavailableError(message) if status == _REFUSED else FlawlineError(message)
