"""How fast is it, beside others and beside what the machine could do? A line a case, and tables of the lines.

    python -m benchmarks.speed all --write             engines, peers and growth; --minutes 25 bounds it
    python -m benchmarks.speed engines --write         or one at a time
    python -m benchmarks.speed precisions --write      what int8 costs in accuracy; trains a bundle first
    python -m benchmarks.speed gpu --write             on a machine with an NVIDIA GPU

Started at the repository's root. What is there already is not measured again, so an interrupted command is simply repeated.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.accuracy.runs import ROOT, Machine, Runs, this_machine
from benchmarks.accuracy.sets import find_sets
from benchmarks.accuracy.tables import write_between_markers
from benchmarks.speed import experiments, gpu_cases
from benchmarks.speed.experiments import Case, Precision, Settings, run_cases
from benchmarks.speed.tables import BEGIN, END, all_tables
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from flawline_engines.bench import has_precision
from flawline_inspect.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USER_MISTAKE,
    FlawlineError,
    InputError,
)

RUNS = ROOT / "benchmarks" / "speed" / "runs.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
WORK = ROOT / "out" / "speed"
DATA = Path(os.environ.get("FLAWLINE_TEST_DATA") or ROOT.parent / "shared" / "data")

app = App(
    name="python -m benchmarks.speed", help=__doc__, help_format="markdown", default_parameter=Parameter(negative=())
)
_lines = Console(stderr=True, highlight=False, soft_wrap=True)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What every experiment can be told."""

    threads: int = 0
    """Of each engine; 0 is as many as this process may use cores."""
    seconds: float = 2.0
    """For each contender in each of its ways."""
    limit_minutes: float = 10.0
    """For each case, making what it measures included; what takes longer is ended and named."""
    minutes: float | None = None
    """For all cases together; the one under way is ended then. Without it as long as they take."""
    precisions: str | None = None
    """fp32, bf16, or both with a comma between them; without it both where the processor has bf16."""
    only: str = ""
    """Only cases whose name contains this, such as `Padim`."""
    again: bool = False
    """Measure what is there already once more."""
    write: bool = False
    """Put the tables into the document, between its two marker comments."""
    results: Path = RESULTS
    """The document."""
    runs: Path = RUNS
    """The file of lines."""
    work: Path = WORK
    """Where bundles and exported models are kept."""

    def do(self, cases_of: Callable[[Settings], Sequence[Case]], *, device: str = "cpu") -> int:
        """Measure an experiment's cases, then print or write all tables."""
        total = math.inf if self.minutes is None else self.minutes
        if not self.seconds > 0 or not self.limit_minutes > 0 or not total > 0:
            raise InputError(
                f"--seconds is {self.seconds:g}, --limit-minutes {self.limit_minutes:g}, --minutes {total:g}, expected "
                "more than 0"
            )
        threads = self.threads or len(os.sched_getaffinity(0))
        settings = Settings(self.work, threads, self.seconds, 60 * self.limit_minutes, 60 * total, self._precisions())
        cases = [case for case in cases_of(settings) if self.only in str(case)]
        if not cases:
            raise InputError(f"--only is {self.only!r}, and no case has that in its name")
        runs = Runs(self.runs)
        failed = run_cases(cases, runs, _machine(threads, device), settings, _say, again=self.again)
        self.tell(runs)
        for sentence in failed:
            _say(f"not measured: {sentence}")
        return EXIT_FAILURE if failed else EXIT_DONE

    def tell(self, runs: Runs) -> None:
        text = all_tables(runs.newest())
        if self.write:
            write_between_markers(self.results, text, begin=BEGIN, end=END)
            _say(f"{self.results}: its tables are up to date")
        else:
            print(text)

    def _precisions(self) -> tuple[Precision, ...]:
        known: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16"}
        if self.precisions is None:
            return ("fp32", "bf16") if has_precision("openvino", "bf16") else ("fp32",)
        names = [name.strip() for name in self.precisions.split(",")]
        if set(names) - set(known):
            raise InputError(f"--precisions is {self.precisions!r}, expected fp32, bf16 or fp32,bf16")
        return tuple(known[name] for name in names)


def _machine(threads: int, device: str) -> Machine:
    return replace(this_machine(device), cores=len(os.sched_getaffinity(0)), threads=threads)


def _say(line: str) -> None:
    _lines.print(line, markup=False)


_DEFAULTS = Options()


@app.command
def peers(*, options: Options = _DEFAULTS) -> int:
    """anomalib's inferencers and an SSIM autoencoder in torch, each in a race with flawline nano, small and medium."""
    return options.do(experiments.peers)


@app.command
def engines(*, options: Options = _DEFAULTS) -> int:
    """flawline's engines, precisions and batches, beside the machine's limit."""
    return options.do(experiments.engines)


@app.command
def growth(*, options: Options = _DEFAULTS) -> int:
    """flawline small over frames of 128 to 2048 px, batches of 1 to 64, and 1 to 16 cameras."""
    return options.do(experiments.growth)


@app.command(name="all")
def everything(*, options: Options = _DEFAULTS) -> int:
    """engines, peers and growth, in this order."""
    return options.do(
        lambda settings: [*experiments.engines(settings), *experiments.peers(settings), *experiments.growth(settings)]
    )


@app.command
def precisions(*, data: Path = DATA, sets: str = "toy_alien", steps: int = 500, options: Options = _DEFAULTS) -> int:
    """AUROC and speed in each precision, of a bundle of the default width at 256 px.

    Parameters
    ----------
    data
        The folder that holds the sets, as for benchmarks.accuracy.
    sets
        Which of them, with commas between them.
    steps
        Of the training; a network that was hardly trained tells nothing of rounding.
    """
    if steps < 1:
        raise InputError(f"--steps is {steps}, expected at least 1")
    found = find_sets(data, [name.strip() for name in sets.split(",")])
    return options.do(lambda settings: experiments.precisions(settings, found, steps))


@app.command
def gpu(*, options: Options = _DEFAULTS) -> int:
    """flawline small on this machine's NVIDIA GPU: TensorRT, TensorRT-RTX, torch and ONNX Runtime, 256 to 1024 px, batches of 1 to 64."""
    if why := gpu_cases.why_not():
        raise InputError(f"there is no GPU to measure: {why}")
    return options.do(gpu_cases.cases, device="cuda")


@app.command
def table(*, options: Options = _DEFAULTS) -> int:
    """Print all tables, or --write them, without measuring anything."""
    options.tell(Runs(options.runs))
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything asked for has been measured."""
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        _say(f"speed: {exc}")
        return EXIT_USER_MISTAKE
    except FlawlineError as exc:
        _say(f"speed: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was measured is kept, repeat the command to go on")
        return EXIT_INTERRUPTED
    return status if isinstance(status, int) else EXIT_DONE  # help and version give nothing


if __name__ == "__main__":
    # As an exception, so that the processes under way are ended, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
