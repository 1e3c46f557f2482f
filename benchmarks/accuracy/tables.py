"""From the lines to markdown, and into a document between two marker comments.

For everything that was measured the newest run counts. Runs of different machines, budgets or frame sizes never share a table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.accuracy.changes import CHANGES
from benchmarks.accuracy.experiments import (
    AS_IT_IS,
    CONTAMINATED,
    CONTAMINATED_CLEAN,
    DEFAULT_METHOD,
    FEW,
    PRESETS,
    RETRAIN,
)
from benchmarks.accuracy.floors import FLOORS, GOLDEN_TEMPLATE, LINEAR, TRIVIAL
from benchmarks.accuracy.runs import CLOSED_FORM, Run
from benchmarks.accuracy.sets import BARS, Bar

from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic

__all__ = ["BEGIN", "END", "TABLES", "all_tables", "markdown", "write_between_markers"]

BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
NOTHING = ""


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def all_tables(runs: Sequence[Run]) -> str:
    """Every table that the runs fill, a heading each; `runs` are the newest."""
    parts = [text for name in TABLES if (text := one_table(name, runs))]
    return "\n\n".join(parts) if parts else "Nothing has been measured yet."


def one_table(name: str, runs: Sequence[Run]) -> str:
    """The tables of one experiment, one for each machine, budget and frame size; empty where nothing was measured."""
    title, experiment, make = TABLES[name]
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.key.experiment == experiment:
            size = f"--size {run.key.size}" if run.key.size else "default frame"
            groups[run.key.budget, size, str(run.key.machine)].append(run)
    floors = [run for run in runs if run.key.experiment == "floors"]
    texts = [f"#### {title}\n\n{_caption(group, *what)}\n\n{make(group, floors)}" for what, group in groups.items()]
    return "\n\n".join(texts)


def write_between_markers(path: Path, text: str, *, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between `begin` and `end`. Raises `InputError` where they are not, once each and in this order."""
    document = path.read_text(encoding="utf-8") if path.is_file() else ""
    first, last = document.find(begin), document.find(end)
    if document.count(begin) != 1 or document.count(end) != 1 or last < first:
        raise InputError(f"{path}: expected the lines {begin} and {end} once each; put them where the tables belong")
    write_atomic(path, f"{document[: first + len(begin)]}\n\n{text}\n\n{document[last:]}".encode())


# --- a table each: the runs of one machine, budget and size, and the floors --------------------------------------------


def _floors(runs: list[Run], floors: list[Run]) -> str:
    rows = []
    for name in _sets(runs):
        trivial = _figures(floors, set=name, method=TRIVIAL)
        best = f" ({trivial['best']})" if trivial else NOTHING
        cells = [_with_interval(_where(floors, set=name, method=method)) for method in FLOORS]
        rows.append([name, *cells[:-1], cells[-1] + best])
    return markdown(["set", *FLOORS[:-1], f"best of {TRIVIAL}"], rows)


def _accuracy(runs: list[Run], floors: list[Run]) -> str:
    rows = []
    for name in _sets(runs):
        own = _where(runs, set=name)
        bars = BARS.get(name)
        auroc, pixel = _mean(own, "image_auroc"), _mean(own, "pixel_auroc")
        rows.append(
            [
                name,
                _with_interval(own),
                _spread(own, "image_auroc"),
                _bar(bars.image if bars else None, auroc),
                _number(_mean(_where(floors, set=name, method=LINEAR), "image_auroc")),
                _number(_mean(_where(floors, set=name, method=TRIVIAL), "image_auroc")),
                _number(pixel),
                _bar(bars.pixel if bars else None, pixel),
                _number(_mean(own, "aupro")),
                _percent(_mean(own, "false_reject_rate")),
                _percent(_mean(own, "escape_rate")),
                _steps(own),
            ]
        )
    headings = ["set", "image AUROC (95 %)", "seeds", "must / goal: reached", LINEAR, f"best of {TRIVIAL}"]
    headings += ["pixel AUROC", "must / goal: reached", "AUPRO", "false rejects", "escapes", "steps"]
    return markdown(headings, rows)


def _promise(runs: list[Run], floors: list[Run]) -> str:
    rows, kept = [], 0
    for run in runs:
        figures = run.measured.figures
        kept += figures["promise_kept"]
        low, high = figures["false_reject_interval"]
        rows.append(
            [
                run.key.set,
                str(run.key.seed),
                _percent(figures["promised_false_reject_rate"]),
                f"{_percent(figures['false_reject_rate'])} ({_percent(low)} to {_percent(high)})",
                str(figures["n_good"]),
                "yes" if figures["promise_kept"] else "**no**",
            ]
        )
    headings = ["set", "seed", "promised at most", "false rejects (95 %)", "of good parts", "compatible"]
    return f"{markdown(headings, rows)}\n\n{kept} of {len(runs)} trainings keep their promise on fresh good parts."


def _methods(runs: list[Run], floors: list[Run]) -> str:
    names = _sets(runs)
    closed = [run for run in floors if run.key.method in (LINEAR, GOLDEN_TEMPLATE)]
    everything = runs + closed

    def means(method: str, variant: str) -> list[float | None]:
        return [_mean(_where(everything, set=name, method=method, variant=variant), "image_auroc") for name in names]

    def overall(method: str, variant: str) -> float | None:
        each = [value for value in means(method, variant) if value is not None]
        return float(np.mean(each)) if len(each) == len(names) else None

    reference = overall(DEFAULT_METHOD, AS_IT_IS)
    order = sorted({(run.key.method, run.key.variant) for run in everything}, key=lambda row: -(overall(*row) or 0.0))
    rows = []
    for method, variant in order:
        mean = overall(method, variant)
        difference = NOTHING if mean is None or reference is None else f"{mean - reference:+.3f}"
        own = _where(runs, method=method, variant=variant)
        label = " ".join(filter(None, (method, variant)))
        rows.append([label, *map(_number, means(method, variant)), _number(mean), difference, _steps(own)])
    return markdown(["method", *names, "mean", f"against {DEFAULT_METHOD}", "steps"], rows)


def _robustness(runs: list[Run], floors: list[Run]) -> str:
    names = _sets(runs)
    pairs = [(variant, AS_IT_IS) for variant in (*CHANGES, FEW)] + [(CONTAMINATED, CONTAMINATED_CLEAN)]
    rows = []
    for after, before in pairs:
        cells = [_before_after(_where(runs, set=n, variant=before), _where(runs, set=n, variant=after)) for n in names]
        if any(cells):
            rows.append([after, *cells])
    return markdown(["image AUROC before → after; false rejects", *names], rows)


def _presets(runs: list[Run], floors: list[Run]) -> str:
    names = _sets(runs)
    rows = []
    for preset in PRESETS:
        own = _where(runs, variant=preset)
        if own:
            cells = [_with_interval(_where(own, set=name)) for name in names]
            rows.append([preset, _parameters(own), _gflop(own), *cells, _steps(own)])
    return markdown(["preset", "parameters", "GFLOP a frame", *names, "steps"], rows)


def _retrain(runs: list[Run], floors: list[Run]) -> str:
    names = _sets(runs)
    rows = []
    for variant in RETRAIN.values():
        own = _where(runs, variant=variant)
        seconds = _mean_of([run.measured.seconds for run in own])
        took = NOTHING if seconds is None else f"{seconds:.0f}"
        rows.append([variant, *(_with_interval(_where(own, set=name)) for name in names), _steps(own), took])
    return markdown(["", *names, "steps", "seconds"], rows)


Maker = Callable[[list[Run], list[Run]], str]
TABLES: dict[str, tuple[str, str, Maker]] = {
    "floors": ("What trivial ways reach", "floors", _floors),
    "sets": ("The default settings on five sets", "sets", _accuracy),
    "promise": ("Does the promised false-reject rate hold?", "sets", _promise),
    "methods": ("Methods side by side", "methods", _methods),
    "robustness": ("Robustness", "robustness", _robustness),
    "presets": ("Presets", "presets", _presets),
    "retrain": ("Training on from an older bundle", "retrain", _retrain),
}
"""Title, the experiment whose runs it shows, and what makes it."""


# --- cells -----------------------------------------------------------------------------------------------------------


def _caption(runs: list[Run], budget: str, size: str, machine: str) -> str:
    commits = sorted({run.commit for run in runs})
    dates = sorted({run.date for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    plural = "s" * (len(commits) > 1)
    load = np.median([run.load for run in runs])
    effort = "In closed form" if budget == CLOSED_FORM else f"{budget} a training"
    return f"{effort}, {size}; {machine}, median load {load:.1f}; {when}, commit{plural} {', '.join(commits)}."


def _sets(runs: Iterable[Run]) -> list[str]:
    """Those that occur, in the usual order, then the others."""
    found = dict.fromkeys(run.key.set for run in runs)
    return [name for name in BARS if name in found] + [name for name in found if name not in BARS]


def _where(runs: Iterable[Run], **equal: Any) -> list[Run]:
    return [run for run in runs if all(getattr(run.key, name) == value for name, value in equal.items())]


def _figures(runs: Iterable[Run], **equal: Any) -> dict[str, Any] | None:
    found = _where(runs, **equal)
    return found[-1].measured.figures if found else None


def _mean_of(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _mean(runs: Sequence[Run], figure: str) -> float | None:
    return _mean_of([run.measured.figures.get(figure) for run in runs])


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"


def _with_interval(runs: Sequence[Run]) -> str:
    """The mean over the seeds; both ends of the interval too, which is about the test pictures and not about the seeds."""
    if not runs:
        return NOTHING
    low, high = np.mean([run.measured.figures["image_auroc_interval"] for run in runs], 0)
    return f"{_number(_mean(runs, 'image_auroc'))} ({low:.3f} to {high:.3f})"


def _spread(runs: Sequence[Run], figure: str) -> str:
    values = [run.measured.figures[figure] for run in runs]
    return f"{len(values)}: {min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "1"


def _bar(bar: Bar | None, value: float | None) -> str:
    return NOTHING if bar is None or value is None else f"{bar.must:g} / {bar.goal:g}: {bar.judge(value)}"


def _before_after(before: Sequence[Run], after: Sequence[Run]) -> str:
    seeds = {run.key.seed for run in before} & {run.key.seed for run in after}
    before, after = ([run for run in side if run.key.seed in seeds] for side in (before, after))
    if not seeds:
        return NOTHING
    aurocs = [_number(_mean(side, "image_auroc")) for side in (before, after)]
    rejects = [_percent(_mean(side, "false_reject_rate")) for side in (before, after)]
    return f"{' → '.join(aurocs)}; {' → '.join(rejects)}"


def _steps(runs: Sequence[Run]) -> str:
    steps = [run.measured.steps for run in runs if run.measured.steps is not None]
    if not steps:
        return NOTHING
    return str(steps[0]) if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"


def _parameters(runs: Sequence[Run]) -> str:
    value = _mean_of([run.measured.parameters for run in runs])
    return NOTHING if value is None else f"{value / 1e6:.2f} M"


def _gflop(runs: Sequence[Run]) -> str:
    """For each size of frame that occurs."""
    each = {run.measured.frame_wh: run.measured.gflop for run in runs if run.measured.frame_wh and run.measured.gflop}
    return ", ".join(f"{gflop:.2f} ({wh[0]} x {wh[1]} px)" for wh, gflop in sorted(each.items()) if wh)
