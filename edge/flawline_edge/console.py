"""The live console view of `flawline demo`: one line a part, and running counts below."""

from __future__ import annotations

import statistics
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flawline_edge.station import Inspection
from flawline_inspect.verdict import Result

__all__ = ["ConsoleView"]

_ROWS = 12
_BAR_CELLS = 16
_BAR_FULL_SCALE = 2.0  # times the threshold
_STYLES = {
    Result.OK: "green",
    Result.NOT_OK: "bold red",
    Result.NOT_DECIDABLE: "yellow",
    Result.UNDEFINED: "magenta",
}


class ConsoleView:
    """An observer and a context manager. On a terminal the table redraws itself; elsewhere each part is a line."""

    def __init__(self, console: Console, heading: str) -> None:
        self._console = console
        self._heading = heading
        self._rows: deque[Inspection] = deque(maxlen=_ROWS)
        self._ms: list[float] = []
        self._results: dict[Result, int] = dict.fromkeys(Result, 0)
        self._truth: dict[str, int] = {
            "caught": 0,
            "escaped": 0,
            "passed": 0,
            "false reject": 0,
            "undecided": 0,
        }
        self._live = Live(console=console, refresh_per_second=10) if console.is_terminal else None

    def __enter__(self) -> ConsoleView:
        if self._live is not None:
            self._live.__enter__()
            self._live.update(self._render())
        else:
            self._console.print(self._heading, markup=False)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.__exit__(None, None, None)

    def __call__(self, inspection: Inspection) -> None:
        if inspection.late:
            return
        verdict = inspection.verdict
        self._rows.append(inspection)
        self._results[verdict.result] += 1
        self._ms.append(verdict.ms)
        outcome = _outcome(inspection)
        if outcome:
            self._truth[outcome] += 1
        if self._live is not None:
            self._live.update(self._render())
        else:
            truth = _truth_text(inspection)
            self._console.print(
                f"{verdict.seq:>5}  {verdict.part:<16}  {verdict.result.label:<12}  {verdict.score:>9.3f} / {verdict.threshold:.3f}"
                f"  {verdict.ms:>6.1f} ms  {verdict.reason.value}{truth.plain}",
                style=_STYLES[verdict.result] if verdict.result is not Result.OK else None,
                markup=False,
            )

    def summary(self) -> str:
        """What was inspected, in one or two sentences."""
        total = sum(self._results.values())
        if not total:
            return "No part was inspected."
        text = f"{total} parts: {self._counts()}; median {statistics.median(self._ms):.1f} ms from trigger to decision."
        judged = sum(self._truth.values())
        if judged:
            truth = self._truth
            defective, good = truth["caught"] + truth["escaped"], truth["passed"] + truth["false reject"]
            text += (
                f" The simulator knows: {truth['caught']} of {defective} defective parts caught, "
                f"{truth['false reject']} of {good} good parts rejected."
            )
        return text

    def _counts(self) -> str:
        return ", ".join(
            f"{n} {result.label}" for result, n in self._results.items() if n or result in (Result.OK, Result.NOT_OK)
        )

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        # Where a terminal is narrow the truth is cut, never a number.
        table.add_column("part", no_wrap=True, min_width=8)
        table.add_column("result", no_wrap=True, min_width=14)
        table.add_column("score", justify="right", no_wrap=True, min_width=9)
        table.add_column("0  threshold  2x", no_wrap=True, min_width=_BAR_CELLS)
        table.add_column("ms", justify="right", no_wrap=True, min_width=7)
        table.add_column("truly", no_wrap=True, overflow="ellipsis", ratio=1)
        for inspection in self._rows:
            verdict = inspection.verdict
            style = _STYLES[verdict.result]
            table.add_row(
                Text(verdict.part or verdict.trigger),
                Text(
                    verdict.result.label + (f" {verdict.reason.value}" if verdict.reason.value else ""),
                    style=style,
                ),
                f"{verdict.score:.3f}",
                _bar(verdict.score, verdict.threshold, style),
                f"{verdict.ms:.1f}",
                _truth_text(inspection),
            )
        median = f" · median {statistics.median(self._ms[-500:]):.1f} ms" if self._ms else ""
        return Group(Text(self._heading, style="bold"), "", table, "", Text(self._counts() + median))


def _bar(score: float, threshold: float, style: str) -> Text:
    """The score against the threshold, which stands in the middle."""
    share = min(max(score / threshold / _BAR_FULL_SCALE, 0.0), 1.0)
    filled = round(share * _BAR_CELLS)
    text = Text()
    for cell in range(_BAR_CELLS):
        mark = "│" if cell == _BAR_CELLS // 2 else ("█" if cell < filled else "·")
        text.append(mark, style=style if cell < filled else "dim")
    return text


def _outcome(inspection: Inspection) -> str:
    truth = inspection.frame.truth if inspection.frame is not None else None
    if truth is None:
        return ""
    result = inspection.verdict.result
    if result not in (Result.OK, Result.NOT_OK):
        return "undecided"
    if truth.defect is not None:
        return "caught" if result is Result.NOT_OK else "escaped"
    return "passed" if result is Result.OK else "false reject"


def _truth_text(inspection: Inspection) -> Text:
    truth = inspection.frame.truth if inspection.frame is not None else None
    if truth is None:
        return Text("")
    outcome = _outcome(inspection)
    wrong = outcome in ("escaped", "false reject")
    return Text(f"  {truth.defect or 'good'}" + (f"  <- {outcome}" if wrong else ""), style="yellow" if wrong else "")
