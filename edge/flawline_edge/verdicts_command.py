"""`flawline verdicts`: what the journal says, also while the station runs."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flawline_edge.journal import JOURNAL_FILE, JournalError, Query, Record, read_records
from flawline_edge.journal.layout import open_for_reading
from flawline_edge.journal.query import count_undelivered
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import load_config
from flawline_inspect.errors import EXIT_DONE, InputError
from flawline_inspect.verdict import VERDICT_SCHEMA, Reason, Result, wall_time

__all__ = ["verdicts"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_RESULTS: dict[str, tuple[Result, ...]] = {}
for _result in Result:
    _RESULTS[_result.label.lower()] = _RESULTS[str(int(_result))] = (_result,)
_REJECT = "reject"
_RESULTS[_REJECT] = tuple(result for result in Result if result is not Result.OK)
_REASONS = {reason.value: reason for reason in Reason if reason.value}
_STYLES = {Result.UNDEFINED: "magenta", Result.OK: "green", Result.NOT_OK: "red", Result.NOT_DECIDABLE: "yellow"}

_BESIDE = ("camera", "accepted", "delivered", "late_result", "late_score", "late_ms")
"""What the journal knows that is not on the wire."""
_COLUMNS = {
    "time": 19, "result": 12, "reason": 10, "part": 16, "score": 8, "threshold": 9, "trigger": 16, "delivered": 9,
    "ms": 7, "seq": 7, "recipe": 6, "model": 20,
}  # fmt: skip
"""Of the table, by importance, with their widths: a narrow terminal gets the first ones, whole."""


def verdicts(
    *,
    since: str = "",
    until: str = "",
    result: str = "",
    reason: str = "",
    trigger: str = "",
    part: str = "",
    camera: str = "",
    limit: int = 100,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
    config: Path = Path("config.yaml"),
    state_dir: Path | None = None,
) -> int:
    """Show verdicts from a station's journal, oldest first, also while the station runs.

    Parameters
    ----------
    since
        Captured at or after: a time such as 2026-11-20T06:00 (local, unless it ends with Z or an offset), or an age: 90s,
        30m, 2h, 7d, 1w.
    until
        Captured before; a time or an age.
    result
        OK, NotOK, NotDecidable, Undefined or its number; "reject" is everything but OK.
    reason
        Why it is Undefined or NotDecidable, such as deadline or health.
    trigger
        The trigger's id.
    part
        The part's id.
    camera
        The camera's name, on a station with several.
    limit
        The newest so many; 0 shows all.
    as_json
        One JSON object a line on stdout: the verdict as on MQTT, and what the journal knows beside it.
    as_csv
        The same as CSV with a line of names.
    config
        The station's configuration, which names its state directory.
    state_dir
        The state directory itself; config is not read then.
    """
    if as_json and as_csv:
        raise InputError("--json and --csv are two forms of the same; give one of them")
    if limit < 0:
        raise InputError(f"--limit {limit}: expected 0, which shows all, or more")
    query = Query(
        since=_time("--since", since),
        until=_time("--until", until),
        results=_choice("--result", result, _RESULTS, [*(each.label for each in Result), _REJECT]) if result else (),
        reason=_choice("--reason", reason, _REASONS, list(_REASONS)) if reason else None,
        trigger=trigger,
        part=part,
        camera=camera,
    )
    path = (state_dir if state_dir is not None else load_config(config).state_dir) / JOURNAL_FILE
    if not path.is_file():
        raise InputError(f"{path}: there is no journal; name the station's folder with --state-dir, or its --config")
    try:
        with closing(open_for_reading(path)) as connection:
            found: Iterable[Record] = read_records(connection, query, limit or None)
            if limit:
                found = reversed(list(found))
            if as_json:
                for record in found:
                    print(_json(record))
            elif as_csv:
                _print_csv(found)
            else:
                _print_table(found, connection)
    except sqlite3.Error as exc:
        raise JournalError(f"{path}: cannot be read ({exc}); check the disk") from exc
    return EXIT_DONE


def _time(option: str, text: str) -> float | None:
    """Seconds since the epoch."""
    if not text:
        return None
    if age := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text):
        return wall_clock() - float(age[1]) * _UNITS_S[age[2]]
    try:
        # Python 3.10 does not know the Z.
        return datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text)).timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise InputError(
            f"{option} {text}: expected an age such as 30m, 2h or 7d, or a time such as 2026-11-20T06:00"
        ) from exc


def _choice(option: str, word: str, known: dict[str, Any], shown: list[str]) -> Any:
    if word.lower() not in known:
        raise InputError(f"{option} {word}: expected one of {', '.join(shown)}")
    return known[word.lower()]


def _json(record: Record) -> str:
    beside = (
        record.camera,
        None if record.accepted is None else wall_time(record.accepted),
        record.delivered,
        None if record.late_result is None else int(record.late_result),
        None if record.late_score is None else round(record.late_score, 4),
        None if record.late_ms is None else round(record.late_ms, 1),
    )
    text = json.dumps(dict(zip(_BESIDE, beside, strict=True)), separators=(",", ":"))
    return f"{record.verdict.to_json()[:-1]},{text[1:]}"


def _print_csv(records: Iterable[Record]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*VERDICT_SCHEMA["properties"], *_BESIDE])
    for record in records:
        line = json.loads(_json(record))
        writer.writerow(str(value).lower() if isinstance(value, bool) else value for value in line.values())


def _print_table(records: Iterable[Record], connection: sqlite3.Connection) -> None:
    console = Console(highlight=False)
    records = iter(records)
    # Rich lays out a whole table before it prints the first line; a long answer comes as several.
    widths = itertools.accumulate(width + 2 for width in _COLUMNS.values())
    columns = [name for name, width in zip(_COLUMNS, widths, strict=True) if width - 2 <= console.width]
    while page := list(itertools.islice(records, 1000)):
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            numeric = name in ("score", "threshold", "ms", "seq", "recipe")
            table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
        for record in page:
            verdict = record.verdict
            cells = {
                "time": f"{datetime.fromtimestamp(verdict.captured).astimezone():%Y-%m-%d %H:%M:%S}",
                "result": f"[{_STYLES[verdict.result]}]{verdict.result.label}[/]",
                "reason": verdict.reason.value,
                "part": verdict.part,
                "trigger": verdict.trigger,
                "score": f"{verdict.score:.4f}",
                "threshold": f"{verdict.threshold:.4f}",
                "delivered": "yes" if record.delivered else "no",
                "ms": f"{verdict.ms:.1f}",
                "seq": str(verdict.seq),
                "recipe": str(verdict.recipe),
                "model": verdict.model,
            }
            table.add_row(*(cells[name] for name in columns))
        console.print(table)
    undelivered = count_undelivered(connection, set())
    delivered, lost = connection.execute("SELECT delivered, undelivered FROM evicted").fetchone()
    console.print(
        f"[dim]{undelivered} wait for the broker; {delivered + lost} were removed to keep the journal's bounds,"
        f" {lost} of them undelivered[/]"
    )
