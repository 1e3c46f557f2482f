"""The outcomes as a table, and where it is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tests.faults.injectors import Outcome
from tests.faults.peers import Delivery

RESULTS = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"


def fault_table(outcomes: Iterable[Outcome]) -> str:
    """One row a fault, over all the times it was done."""
    lines = [
        "| fault | times | accepted | live | on history | heard again | lost | wrong OK | old on live | results 0, 1, 2, 3"
        " | recovery, median (longest) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(outcomes, key=lambda each: each.fault)
    for fault, group in groupby(ordered, key=lambda each: each.fault):
        done = list(group)
        accounts = [each.account for each in done]
        recovery = sorted(each.recovery_s for each in done)
        lost = sum(len(a.missing) + len(a.contradictions) for a in accounts)
        results = ", ".join(str(sum(a.by_result[n] for a in accounts)) for n in range(4))
        lines.append(
            f"| {fault} | {len(done)} | {sum(a.accepted for a in accounts)} | {sum(a.live for a in accounts)}"
            f" | {sum(a.history for a in accounts)} | {sum(a.repeated for a in accounts)} | {lost}"
            f" | {sum(len(a.wrong_ok) for a in accounts)} | {sum(len(a.stale) for a in accounts)} | {results}"
            f" | {recovery[len(recovery) // 2]:.1f} s ({recovery[-1]:.1f} s) |"
        )
    return "\n".join(lines)


def peer_table(deliveries: Sequence[Delivery]) -> str:
    """One row a publisher: what became of its verdicts in the same outage."""
    lines = [
        "| publisher | verdicts made | live in time | live too late | on history | lost |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {d.publisher} | {d.made} | {d.live} | {d.stale} | {d.history} | {d.lost} |" for d in deliveries]
    return "\n".join(lines)


def write(text: str, path: Path = RESULTS) -> None:
    """Between the markers, which have to be there."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{path}: expected a line {BEGIN} and, behind it, a line {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
