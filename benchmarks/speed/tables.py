"""From the lines to markdown. For every case the newest line counts; other machines and numbers of threads are other tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.tables import markdown
from benchmarks.speed.contenders import BATCHED, DISK, FLAWLINE, GPU_BATCHES, MEMORY

__all__ = ["BEGIN", "END", "all_tables"]

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
REFERENCE = f"{FLAWLINE}small"

# What is asked for, on two cores at 256 px.
NETWORK_OF_PEAK = 0.8
TAIL_OF_NETWORK = 0.25
INT8_GAIN = 2.5
AUROC_CHANGE = 0.002
PYTHON_MS = 0.3
PYTHON_SHARE = 0.1
NANO_BF16_MS = 2.5
# And on a GPU, at that size.
GOAL_SIZE, GOAL_MS = 256, 0.5
GOAL_BATCH, GOAL_SHARE = 32, 0.6


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
    told = "One frame at a time against what is asked for; what falls short is bold:"
    return f"{markdown(headings, rows)}\n\n{told}\n\n{_against_limits(runs)}"


def _against_limits(runs: Sequence[Run]) -> str:
    """A row for each preset, engine and precision, one frame at a time."""
    rows = []
    for run in runs:
        alone = [row for row in run.measured.figures["engines"] if row["batch"] == 1]
        fp32_ms = {row["engine"]: row["median_ms"] for row in alone if row["precision"] == "fp32"}
        for row in alone:
            ms = row["median_ms"]
            gain = fp32_ms[row["engine"]] / ms if row["engine"] in fp32_ms and row["precision"] != "fp32" else None
            is_nano_bf16 = run.key.method == "nano" and row["precision"] == "bf16"
            rows.append(
                [
                    run.key.method,
                    f"{row['engine']} {row['precision']}",
                    _kept(_shown(ms), not is_nano_bf16 or ms <= NANO_BF16_MS),
                    _limited(row["network_share_of_peak"], _percent, at_least=NETWORK_OF_PEAK),
                    _limited(row["tail_share_of_network"], _percent, at_most=TAIL_OF_NETWORK),
                    _limited(gain, _factor, at_least=INT8_GAIN if row["precision"] == "int8" else 0),
                    _limited(row.get("python_ms"), "{:.2f}".format, at_most=PYTHON_MS),
                    _limited(row.get("python_share"), _percent, at_most=PYTHON_SHARE),
                ]
            )
    headings = ["flawline", "engine", f"ms (nano bf16 at most {NANO_BF16_MS:g})"]
    headings += [
        f"network of the peak (at least {NETWORK_OF_PEAK:.0%})",
        f"tail ÷ network (at most {TAIL_OF_NETWORK:.0%})",
    ]
    headings += [f"fp32 ÷ it (int8 at least {INT8_GAIN:g})", f"Python, ms (at most {PYTHON_MS:g})"]
    headings += [f"Python ÷ bare loop (at most {PYTHON_SHARE:.0%})"]
    return markdown(headings, rows)


def _limited(
    value: float | None, shown: Callable[[float], str], *, at_least: float = -np.inf, at_most: float = np.inf
) -> str:
    return "" if value is None else _kept(shown(value), at_least <= value <= at_most)


def _kept(text: str, is_kept: bool) -> str:
    return text if is_kept else f"**{text}**"


# --- precisions ------------------------------------------------------------------------------------------------------


def _precisions(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        figures = run.measured.figures
        ms = {row["precision"]: row["median_ms"] for row in figures["bench"]["engines"] if row["batch"] == 1}
        fp32 = figures["evaluations"]["fp32"]
        for precision, found in figures["evaluations"].items():
            change = found["image_auroc"] - fp32["image_auroc"]
            is_fp32 = precision == "fp32"
            gain = None if is_fp32 or precision not in ms else ms["fp32"] / ms[precision]
            limits = precision == "int8"
            rows.append(
                [
                    f"{run.key.method}, {fp32['n_good']} good and {fp32['n_bad']} defective",
                    precision,
                    f"{found['image_auroc']:.4f}",
                    "" if is_fp32 else _kept(f"{change:+.4f}", not limits or abs(change) <= AUROC_CHANGE),
                    f"{found['false_reject_rate']:.1%}",
                    f"{found['escape_rate']:.1%}",
                    _shown(ms.get(precision)),
                    _limited(gain, _factor, at_least=INT8_GAIN if limits else 0),
                ]
            )
        rows += [[run.key.method, f"{name}: refused by the parity gate", *[""] * 6] for name in figures["refused"]]
    headings = [
        "set",
        "precision",
        "image AUROC",
        f"change (int8 at most {AUROC_CHANGE:g})",
        "false rejects",
        "escapes",
    ]
    headings += ["ms a frame, OpenVINO", f"fp32 ÷ it (int8 at least {INT8_GAIN:g})"]
    return markdown(headings, rows)


# --- a GPU -----------------------------------------------------------------------------------------------------------


def _gpu(runs: Sequence[Run]) -> str:
    """A table for each size of frame, batches beside each other, then what the goals got and what was refused."""
    limits = next((run.measured.figures for run in runs if "peaks" in run.measured.figures), None)
    systems = [run for run in runs if "peaks" not in run.measured.figures]
    facts = runs[-1].measured.figures["gpu"]
    parts = [", ".join(f"{name} {value}" for name, value in facts.items()) + "."]
    if limits is not None:
        peaks = ", ".join(f"{name} {value / 1e3:.0f} TFLOP/s" for name, value in limits["peaks"].items())
        copy = limits["copy_gb_per_s"]
        parts.append(
            f"Large convolutions at best: {peaks}; copies in the GPU's memory: {_shown(copy) or 'unknown'} GB/s."
        )
        parts += [f"{name}: {said}." for name, said in limits["said"].items()]
    for size in sorted({run.key.size or 0 for run in systems}):
        rows = []
        for run in systems:
            figures = run.measured.figures
            if run.key.size != size or "all" in figures["refused"]:
                continue
            cells = [_shown((figures.get(f"batch-{batch}") or {}).get("median_ms")) for batch in GPU_BATCHES]
            share = _share_of_card(run, limits, GOAL_BATCH)
            rows.append([run.key.method, *cells, _percent(share)])
        headings = [f"{size} px, ms a batch of", *map(str, GPU_BATCHES), f"{GOAL_BATCH} together: of the card's limit"]
        parts.append(markdown(headings, rows))
    at_once = [
        (run.measured.figures["batch-1"]["median_ms"], run.key.method)
        for run in systems
        if run.key.size == GOAL_SIZE
        and run.measured.figures["precision"] == "fp16"
        and "batch-1" in run.measured.figures
    ]
    if at_once:
        ms, name = min(at_once)
        parts.append(f"One frame of {GOAL_SIZE} px in fp16: {ms:.2f} ms ({name}); the goal is {GOAL_MS:g}.")
    shares = [
        (share, run.key.method)
        for run in systems
        if run.key.size == GOAL_SIZE and (share := _share_of_card(run, limits, GOAL_BATCH)) is not None
    ]
    if shares:
        share, name = max(shares)
        parts.append(
            f"{GOAL_BATCH} frames of {GOAL_SIZE} px: {share:.0%} of the card's limit ({name}); the goal is {GOAL_SHARE:.0%}."
        )
    parts += [
        f"{run.key.method}, {run.key.size} px{'' if way == 'all' else f', {way}'}: {said}."
        for run in systems
        for way, said in run.measured.figures["refused"].items()
    ]
    return "\n\n".join(parts)


def _share_of_card(run: Run, limits: dict[str, Any] | None, batch: int) -> float | None:
    """The least time by matrix units and memory, what the layers hand on included, as a share of the time that it took."""
    figures = run.measured.figures
    found, precision = figures.get(f"batch-{batch}"), figures["precision"]
    if limits is None or found is None or limits["copy_gb_per_s"] is None or precision not in limits["peaks"]:
        return None
    graph = limits["graph"][f"{run.key.size} {precision}"]
    arithmetic_ms = 1e3 * batch * graph["gflop"] / limits["peaks"][precision]
    memory_ms = (graph["weights"] + batch * (graph["picture"] + graph["layers"])) / limits["copy_gb_per_s"] / 1e6
    return max(arithmetic_ms, memory_ms) / float(found["median_ms"])


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
    "precisions": ("Precisions of a trained bundle", _precisions),
    "gpu": ("An NVIDIA GPU: flawline small, a frame in host memory to its results there", _gpu),
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


def _factor(value: float) -> str:
    return f"{value:.1f} ×"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
