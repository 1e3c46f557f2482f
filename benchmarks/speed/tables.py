"""From the lines to markdown. For every case the newest line counts; other machines and numbers of threads are other tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.tables import markdown
from benchmarks.speed.contenders import BATCHED, DISK, FLAWLINE, MEMORY

__all__ = ["BEGIN", "END", "all_tables"]

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
REFERENCE = f"{FLAWLINE}small"


def all_tables(runs: Sequence[Run]) -> str:
    """Every table that the runs fill, a heading each; `runs` are the newest."""
    groups: dict[tuple[str, str, str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        key = run.key
        groups[key.experiment, key.set, key.variant, key.budget, str(key.machine)].append(run)
    texts = []
    for (experiment, precision, threads, seconds, machine), own in sorted(groups.items(), key=lambda each: each[0]):
        title, make = _TABLES[experiment]
        if precision != "all":
            title += f", {precision}"
        texts.append(f"#### {title}\n\n{_caption(own, threads, seconds, machine)}\n\n{make(own)}")
    return "\n\n".join(texts) if texts else "Nothing has been measured yet."


def _caption(runs: Sequence[Run], threads: str, seconds: str, machine: str) -> str:
    dates, commits = sorted({run.date for run in runs}), sorted({run.commit for run in runs})
    load = np.median([run.load for run in runs])
    used = ", ".join(f"{name} {value}" for name, value in runs[-1].versions.items())
    return (
        f"{threads}, {seconds} for each and way; {machine}, median load {load:.1f} before; {used}; "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    )


# --- peers -----------------------------------------------------------------------------------------------------------


def _peers(runs: Sequence[Run]) -> str:
    """A row for each system; flawline's are the medians over their races, a peer's ratios are those inside its own."""
    ours: dict[str, list[dict[str, Any]]] = defaultdict(list)
    theirs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for run in runs:
        rows = run.measured.figures["contenders"]
        reference = next(row for row in rows if row["system"] == REFERENCE)
        for row in rows:
            if row["system"].startswith(FLAWLINE):
                ours[row["system"]].append(row)
            else:
                theirs.append((row, reference))
    lines = []
    for system, rows in ours.items():
        values = [_median(_value(row, what) for row in rows) for what in _COLUMNS]
        lines.append([f"**{system}**", rows[0]["runtime"], *map(_shown, values), "", "", ""])
    for row, reference in sorted(theirs, key=lambda pair: _value(pair[0], MEMORY) or np.inf):
        values = [_value(row, what) for what in _COLUMNS]
        latency, throughput, memory = (_times(row, reference, what) for what in (MEMORY, BATCHED, "peak_mib"))
        lines.append([row["system"], row["runtime"], *map(_shown, values), latency, throughput, memory])
    headings = ["system", "runtime", "frame in memory → decision, ms", "picture on disk → decision, ms"]
    headings += ["frames/s, 8 at once", "peak memory, MiB"]
    headings += [f"latency ÷ {REFERENCE}", f"{REFERENCE} ÷ frames/s", f"memory ÷ {REFERENCE}"]
    refused = [
        f"{row['system']} ({row['runtime']}), {way}: {why}." for row, _ in theirs for way, why in row["refused"].items()
    ]
    return "\n\n".join([markdown(headings, lines), *refused])


_COLUMNS = (MEMORY, DISK, BATCHED, "peak_mib")


def _value(row: dict[str, Any], what: str) -> float | None:
    """Milliseconds, frames a second for `BATCHED`, MiB; None where it could not be done."""
    found = row.get(what)
    if found is None or what == "peak_mib":
        return found
    median: float = found["median_ms"]
    return 1e3 * row["batch"] / median if what == BATCHED else median


def _times(row: dict[str, Any], reference: dict[str, Any], what: str) -> str:
    own, small = _value(row, what), _value(reference, what)
    if own is None or small is None:
        return ""
    factor = small / own if what == BATCHED else own / small
    return f"{factor:.1f} ×"


# --- engines ---------------------------------------------------------------------------------------------------------


def _engines(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        report = run.measured.figures
        for row in report["engines"]:
            rows.append(
                [
                    f"{run.key.method}, {report['gflop_per_frame']['total']:.2f} GFLOP",
                    f"{row['engine']} {row['precision']}",
                    str(row["batch"]),
                    _shown(row["median_ms"]),
                    _shown(row["frames_per_s"]),
                    _shown(row["peak_gflop_per_s"]),
                    "" if row["bound_ms"] is None else f"{_shown(row['bound_ms'])} ({row['bound_by']})",
                    _percent(row["share_of_bound"]),
                    _percent(row["network_share_of_peak"]),
                    _percent(row["tail_share_of_network"]),
                ]
            )
    headings = ["flawline", "engine", "batch", "ms", "frames/s", "convolutions' peak, GFLOP/s", "bound, ms"]
    headings += ["of the bound", "network of the peak", "tail ÷ network"]
    return markdown(headings, rows)


# --- growth ----------------------------------------------------------------------------------------------------------


def _growth(runs: Sequence[Run]) -> str:
    """One table, in the order size, batch, cameras, each by number."""
    order = {"size": 0, "batch": 1, "cameras": 2}
    named = [(run.key.method.split(), run.measured.figures["contenders"][0]) for run in runs]
    rows = []
    for (what, number), row in sorted(named, key=lambda pair: (order[pair[0][0]], int(pair[0][1]))):
        found = row.get(MEMORY) or row.get(BATCHED)
        if found is None:
            rows.append([what, number, *[""] * 4, "; ".join(row["refused"].values())])
            continue
        frames = {"size": 1, "batch": row["batch"], "cameras": row["cameras"]}[what]
        values = (found["median_ms"], found["p99_ms"], found["median_ms"] / frames, 1e3 * frames / found["median_ms"])
        rows.append([what, number, *map(_shown, values), _shown(row.get("peak_mib"))])
    return markdown(["", "", "ms, median", "ms, p99", "ms a frame", "frames/s", "peak memory, MiB"], rows)


_TABLES = {
    "peers": ("Peers, side by side at 256 px", _peers),
    "engines": ("Engines, and what the machine could do", _engines),
    "growth": ("How the cost of flawline small grows with frame (px), batch and cameras", _growth),
}


# --- cells -----------------------------------------------------------------------------------------------------------


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else None


def _shown(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
