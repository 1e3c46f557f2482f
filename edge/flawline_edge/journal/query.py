"""Reading the journal, also while the station writes it.

Every answer is read in pages, each its own short look: a reader that stays in one place, such as a pipe nobody empties,
would otherwise keep the write-ahead log from ever starting anew.
"""

from __future__ import annotations

import heapq
import itertools
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flawline_edge.journal.layout import SEQ_BITS
from flawline_edge.journal.rows import VERDICT_COLUMNS, Key, verdict_from_row
from flawline_inspect.verdict import Reason, Result, Verdict

__all__ = ["Query", "Record", "count_undelivered", "read_history", "read_newest", "read_records"]

_PAGE = 500
_COLUMNS = f"id, boot, {VERDICT_COLUMNS}, accepted, camera, delivered, late_result, late_score, late_ms"
_CAPTURED = [name.strip() for name in _COLUMNS.split(",")].index("captured")
_N_VERDICT = 2 + len(VERDICT_COLUMNS.split(","))
_FROM = "FROM records INDEXED BY {index} CROSS JOIN boots ON number = id >> " + str(SEQ_BITS)


@dataclass(frozen=True, slots=True)
class Record:
    """A verdict and what the journal knows beside it.

    `accepted` is wall clock, seconds since the epoch, None where the trigger itself could not be written. `delivered`: a
    broker has acknowledged it. `late_result`, with score and milliseconds: what came after the verdict had gone out.
    """

    verdict: Verdict
    accepted: float | None
    camera: str
    delivered: bool
    late_result: Result | None
    late_score: float | None
    late_ms: float | None


@dataclass(frozen=True, slots=True)
class Query:
    """Which verdicts; what is empty or None does not choose. `since` and `until`: captured, seconds since the epoch."""

    since: float | None = None
    until: float | None = None
    results: tuple[Result, ...] = ()
    reason: Reason | None = None
    trigger: str = ""
    part: str = ""
    camera: str = ""


def read_records(connection: sqlite3.Connection, query: Query, limit: int | None = None) -> Iterator[Record]:
    """By time of capture: the newest `limit` of them, newest first; without a limit all, oldest first.

    Raises `sqlite3.Error`.
    """
    newest_first = limit is not None
    index, apart = _index(query)
    choices = [(result,) for result in query.results] if apart and query.results else [query.results]
    # Each of them has its share of the answer; whoever has more is asked again.
    page = _PAGE if limit is None else max(1, min(limit, _PAGE) // len(choices))
    found = [_rows(connection, query, index, choice, newest_first, page) for choice in choices]
    merged = heapq.merge(*found, key=_place, reverse=newest_first)
    return (_record(row) for row in itertools.islice(merged, limit))


def read_newest(connection: sqlite3.Connection, limit: int) -> list[Verdict]:
    """By order of acceptance, newest first."""
    rows = connection.execute(
        f"SELECT id, boot, {VERDICT_COLUMNS} FROM records CROSS JOIN boots ON number = id >> {SEQ_BITS}"
        " WHERE result IS NOT NULL ORDER BY id DESC LIMIT ?",
        (limit,),
    )
    return [verdict_from_row(row[1], row[0], row[2:]) for row in rows]


def read_history(
    connection: sqlite3.Connection, settled: set[Key], diverted: set[Key], floor: int, limit: int
) -> list[Verdict]:
    """The oldest verdicts that no broker has acknowledged and that are for history: marked so, or of earlier starts.

    `settled` and `diverted` are marks that are not on the disk yet; rows below `floor` belong to earlier starts.
    """
    cursor = connection.execute(
        f"SELECT id, boot, {VERDICT_COLUMNS}, history {_FROM.format(index='by_delivery')}"
        " WHERE delivered = 0 AND result IS NOT NULL ORDER BY id"
    )
    found = []
    for row in cursor:
        verdict = verdict_from_row(row[1], row[0], row[2:_N_VERDICT])
        key = (verdict.boot, verdict.seq)
        if key not in settled and (row[-1] or row[0] < floor or key in diverted):
            found.append(verdict)
            if len(found) >= limit:
                break
    cursor.close()
    return found


def count_undelivered(connection: sqlite3.Connection, settled: set[Key]) -> int:
    """Verdicts on the disk that no broker has acknowledged, less those that are `settled` in memory."""
    connection.execute(
        "BEGIN"
    )  # one look: what is settled may be written in the midst of it, and would not be taken off
    try:
        [count] = connection.execute(
            "SELECT count(*) FROM records INDEXED BY by_delivery WHERE delivered = 0 AND result IS NOT NULL"
        ).fetchone()
        for boot, seq in settled:
            count -= connection.execute(
                "SELECT count(*) FROM boots JOIN records ON id = (number << ?) | ?"
                " WHERE boot = ? AND delivered = 0 AND result IS NOT NULL",
                (SEQ_BITS, seq, boot),
            ).fetchone()[0]
    finally:
        connection.rollback()
    return int(count)


def _index(query: Query) -> tuple[str, bool]:
    """The index that leaves the fewest rows to look at, and whether it wants its results one by one."""
    if query.part:
        return "by_part", False
    if query.trigger:
        return "by_trigger", False
    if query.reason:
        return "by_reason", False
    if query.results:
        return "by_result", True
    return ("by_camera" if query.camera else "by_time"), False


def _rows(
    connection: sqlite3.Connection,
    query: Query,
    index: str,
    results: tuple[Result, ...],
    newest_first: bool,
    page: int,
) -> Iterator[tuple[Any, ...]]:
    conditions = ["result IS NOT NULL"]
    values: list[object] = []
    reason = query.reason.value if query.reason else ""
    for column, value in (
        ("part", query.part), ("trigger", query.trigger), ("reason", reason), ("camera", query.camera)
    ):  # fmt: skip
        if value:
            # The second condition is the index's own; SQLite does not see that the first one implies it.
            conditions.append(f"{column} = ? AND {column} <> ''")
            values.append(value)
    if results:
        conditions.append(f"result IN ({', '.join('?' * len(results))})" if len(results) > 1 else "result = ?")
        values += [int(result) for result in results]
    if query.since is not None:
        conditions.append("captured >= ?")
        values.append(query.since)
    if query.until is not None:
        conditions.append("captured < ?")
        values.append(query.until)
    behind, order = ("<", "DESC") if newest_first else (">", "ASC")
    after: list[object] = []
    while True:
        # Two rows may have the same time of capture; the id then says which of them has been read.
        where = [*conditions, f"captured {behind}= ? AND (captured <> ? OR id {behind} ?)"] if after else conditions
        rows = connection.execute(
            f"SELECT {_COLUMNS} {_FROM.format(index=index)} WHERE {' AND '.join(where)}"
            f" ORDER BY captured {order}, id {order} LIMIT {page}",
            [*values, *after],
        ).fetchall()
        yield from rows
        if len(rows) < page:
            return
        captured, number = _place(rows[-1])
        after = [captured, captured, number]


def _place(row: tuple[Any, ...]) -> tuple[float, int]:
    """What rows are sorted by: time of capture, then order of acceptance."""
    return row[_CAPTURED], row[0]


def _record(row: tuple[Any, ...]) -> Record:
    accepted, camera, delivered, late_result, late_score, late_ms = row[_N_VERDICT:]
    return Record(
        verdict=verdict_from_row(row[1], row[0], row[2:_N_VERDICT]),
        accepted=accepted,
        camera=camera,
        delivered=bool(delivered),
        late_result=None if late_result is None else Result(late_result),
        late_score=late_score,
        late_ms=late_ms,
    )
