"""How accurate is it? Trains and measures on real pictures, a line a run, and makes tables of the lines.

    python -m benchmarks.accuracy sets
    python -m benchmarks.accuracy table --write

Started at the repository's root. What is there already is not measured again, so an interrupted command is simply repeated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy import experiments
from benchmarks.accuracy.bench import Bench, Job
from benchmarks.accuracy.experiments import Settings
from benchmarks.accuracy.product import Budget, Flawline
from benchmarks.accuracy.runs import ROOT, Runs, this_machine
from benchmarks.accuracy.sets import SET_NAMES, DataSet, find_sets
from benchmarks.accuracy.tables import all_tables, one_table, write_between_markers
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from flawline_inspect.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USER_MISTAKE,
    FlawlineError,
    InputError,
)

RUNS = ROOT / "benchmarks" / "accuracy" / "runs.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
DATA = Path(os.environ.get("FLAWLINE_TEST_DATA") or ROOT.parent / "shared" / "data")
WORK = ROOT / "out" / "accuracy"
TWO_SETS = "toy_alien,elpv_mono_s"

app = App(
    name="python -m benchmarks.accuracy", help=__doc__, help_format="markdown", default_parameter=Parameter(negative=())
)
_lines = Console(stderr=True, highlight=False, soft_wrap=True)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What every experiment can be told."""

    sets: str | None = None
    """Names of sets, separated by commas."""
    seeds: str | None = None
    """Of the trainings, separated by commas."""
    minutes: float | None = None
    """Of each training, the whole command."""
    steps: int | None = None
    """Of each training instead: the same figures again on the same machine."""
    size: int | None = None
    """Long side of the frame in pixels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: Path = DATA
    """The folder that holds the sets."""
    runs: Path = RUNS
    """The file of lines."""
    work: Path = WORK
    """Where bundles are kept, so that none is trained twice."""
    again: bool = False
    """Measure what is there already once more."""

    def settings(self, minutes: float, seeds: str = "0", size: int | None = None) -> Settings:
        """With an experiment's own defaults for what was not given."""
        given = self.minutes is not None or self.steps is not None
        budget = Budget(self.minutes, self.steps) if given else Budget(minutes=minutes)
        return Settings(budget, _seeds(self.seeds or seeds), self.size if self.size is not None else size, self.device)

    def chosen(self, default: str = ",".join(SET_NAMES)) -> list[DataSet]:
        return find_sets(self.data, _names(self.sets or default))

    def do(self, jobs: Callable[[Bench], Sequence[Job]], table: str) -> int:
        """Run an experiment's jobs, then print its table."""
        runs = Runs(self.runs)
        bench = Bench(
            runs,
            Flawline(lambda line: _say(f"    {line}")),
            this_machine(self.device),
            self.work,
            _say,
            again=self.again,
        )
        failed = bench.run(jobs(bench))
        print(one_table(table, runs.newest()))
        for sentence in failed:
            _say(f"not measured: {sentence}")
        return EXIT_FAILURE if failed else EXIT_DONE


def _say(line: str) -> None:
    _lines.print(line, markup=False)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(names))


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(name) for name in _names(text))
    except ValueError as exc:
        raise InputError(f"--seeds is {text!r}, expected whole numbers separated by commas, such as 0,1,2") from exc
    if not seeds:
        raise InputError("--seeds is empty, expected whole numbers separated by commas, such as 0,1,2")
    return seeds


_DEFAULTS = Options()


@app.command
def floors(*, options: Options = _DEFAULTS) -> int:
    """What trivial ways reach on the sets, in closed form; a minute for all."""
    return options.do(lambda _: experiments.floors(options.chosen()), "floors")


@app.command
def sets(*, options: Options = _DEFAULTS) -> int:
    """The default settings on five sets, 10 minutes each, seeds 0, 1 and 2."""
    settings = options.settings(10, "0,1,2")
    return options.do(lambda bench: experiments.sets(bench, options.chosen(), settings), "sets")


@app.command
def promise(*, options: Options = _DEFAULTS) -> int:
    """Whether the promised false-reject rate holds on fresh good parts, for each training of `sets`."""
    settings = options.settings(10, "0,1,2")
    return options.do(lambda bench: experiments.sets(bench, options.chosen(), settings), "promise")


@app.command
def methods(*, options: Options = _DEFAULTS, only: str | None = None) -> int:
    """Every method, simple templates and two of anomalib's, 2 minutes each, on two sets.

    Parameters
    ----------
    only
        Names of methods, separated by commas.
    """
    settings = options.settings(2)
    known = experiments.all_methods()
    names = _names(only) if only else list(known)
    if unknown := [name for name in names if name not in known and not name.startswith("anomalib:")]:
        raise InputError(f"--only names {unknown[0]!r}, expected some of {', '.join(known)}, or anomalib:NAME")
    return options.do(lambda bench: experiments.methods(bench, options.chosen(TWO_SETS), settings, names), "methods")


@app.command
def robustness(*, options: Options = _DEFAULTS) -> int:
    """Before and after: few or wrong training pictures; light, blur, JPEG and position that change. 10 minutes a training."""
    settings = options.settings(10)
    return options.do(lambda bench: experiments.robustness(bench, options.chosen(), settings), "robustness")


@app.command
def presets(*, options: Options = _DEFAULTS) -> int:
    """The presets' arithmetic at 256 px, and their accuracy on two sets, 10 minutes each."""
    settings = options.settings(10, size=256)
    return options.do(lambda bench: experiments.presets(bench, options.chosen(TWO_SETS), settings), "presets")


@app.command
def retrain(*, options: Options = _DEFAULTS) -> int:
    """From a bundle of 80 % of the pictures to all, for a fifth of the time, against afresh; 5 minutes, on two sets."""
    settings = options.settings(5)
    return options.do(lambda bench: experiments.retrain(bench, options.chosen(TWO_SETS), settings), "retrain")


@app.command
def table(*, runs: Path = RUNS, write: bool = False, results: Path = RESULTS) -> int:
    """Print all tables.

    Parameters
    ----------
    runs
        The file of lines.
    write
        Put them into the document, between its two marker comments, instead.
    results
        The document.
    """
    text = all_tables(Runs(runs).newest())
    if write:
        write_between_markers(results, text)
        _say(f"{results}: its tables are up to date")
    else:
        print(text)
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything asked for has been measured."""
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        _say(f"accuracy: {exc}")
        return EXIT_USER_MISTAKE
    except FlawlineError as exc:
        _say(f"accuracy: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was measured is kept, repeat the command to go on")
        return EXIT_INTERRUPTED
    return status if isinstance(status, int) else EXIT_DONE  # help and version give nothing


if __name__ == "__main__":
    # As an exception, so that the training under way is stopped too and its copies of pictures are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
