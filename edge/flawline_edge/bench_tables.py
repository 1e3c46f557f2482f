"""The tables of `flawline bench`: what was measured, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Report", "print_report"]

Report = dict[str, Any]
"""As `flawline bench --json` prints it."""


def print_report(out: Console, report: Report) -> None:
    machine, gflop, (width, height) = report["machine"], report["gflop_per_frame"], report["frame_wh"]
    out.print(f"{report['model']}, {width} x {height} px: {gflop['total']:.3g} GFLOP a frame", markup=False)
    moved = report["bytes"]["fp32"]
    out.print(
        f"fp32: {moved['weights'] / 1e6:.1f} MB of weights, {moved['picture'] / 1e6:.1f} MB of picture and results a frame, "
        f"{moved['layers'] / 1e6:.0f} MB from layer to layer",
        markup=False,
        soft_wrap=True,
    )
    out.print(f"{machine['processor']}, {machine['cores']} cores", markup=False)
    out.print()
    _print_engines(out, report["engines"])
    if report["daemon"] is not None:
        out.print()
        _print_daemon(out, report["daemon"])
    if report["memory"] is not None:
        out.print()
        _print_memory(out, report["memory"])


def _print_engines(out: Console, rows: list[Report]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("engine")
    table.add_column("")
    for heading in ("threads", "batch", "median ms", "p99 ms", "frame/s", "GFLOP/s", "of peak"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            *_combination(row),
            f"{row['median_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['frames_per_s']:.0f}",
            f"{row['gflop_per_s']:.0f}",
            _percent(row["share_of_peak"]),
        )
    out.print(table)
    out.print("peak: the best that large 3x3 convolutions reach with the same engine and threads", style="dim")
    known = [row for row in rows if row["bound_ms"] is not None]
    if known:
        out.print()
        _print_roofline(out, known)


def _print_roofline(out: Console, rows: list[Report]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("the limit", no_wrap=True)
    for heading in ("threads", "batch", "GFLOP/s", "GB/s", "bound", "reached", "network", "tail", "Python"):
        table.add_column(heading, justify="right")
    for row in rows:
        engine, precision, threads, batch = _combination(row)
        table.add_row(
            f"{engine} {precision}",
            threads,
            batch,
            f"{row['peak_gflop_per_s']:.0f}",
            f"{row['copy_gb_per_s']:.1f}",
            f"{row['bound_ms']:.2f}" + "*" * (row["bound_by"] == "memory"),
            _percent(row["share_of_bound"]),
            _percent(row["network_share_of_peak"]),
            _percent(row["tail_share_of_network"]),
            "" if row["python_ms"] is None else f"{row['python_ms']:.2f}",
        )
    out.print(table)
    out.print(
        "bound, in ms: no faster than the operations at that peak or (*) weights, pictures and results at that rate of copying; network: "
        "what the expected picture comes from, of the peak; tail: error maps and score, as a share of the network's time; "
        "Python: ms of a call that are not the runtime's own",
        style="dim",
        soft_wrap=True,
    )


def _combination(row: Report) -> tuple[str, str, str, str]:
    return row["engine"], row["precision"], str(row["threads"] or "auto"), str(row["batch"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _print_daemon(out: Console, daemon: Report) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"the daemon, {daemon['parts']} parts, {daemon['broker']}")
    table.add_column("median ms", justify="right")
    table.add_column("p99 ms", justify="right")
    for name, key in (
        ("overhead: trigger to publish, less inference", "overhead_ms"),
        ("  in it: waiting for the journal", "journal_ms"),
        ("  in it: fitting the picture", "fit_ms"),
        ("inference", "infer_ms"),
        (f"one fsync of this disk ({daemon['filesystem'] or 'unknown'})", "fsync_ms"),
    ):
        table.add_row(name, f"{daemon[key]['median']:.2f}", f"{daemon[key]['p99']:.2f}")
    table.add_row("overhead less one fsync", f"{daemon['overhead_less_one_fsync_ms']:.2f}", "")
    out.print(table)
    if daemon["not_in_time"]:
        out.print(f"{daemon['not_in_time']} parts had no verdict before the deadline", style="yellow")
    if not daemon["acknowledged"]:
        out.print("the broker did not acknowledge every verdict; see the warnings", style="yellow")


def _print_memory(out: Console, memory: Report) -> None:
    shown = {name: "not known" if mib is None else f"{mib:.0f} MiB" for name, mib in memory.items()}
    out.print(
        f"memory: a demo takes {shown['demo_peak_mib']} at most; this benchmark itself {shown['process_resident_mib']}, "
        f"{shown['process_peak_mib']} at most",
        markup=False,
        soft_wrap=True,
    )
