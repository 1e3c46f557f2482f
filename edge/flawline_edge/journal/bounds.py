"""How large and how old the journal may become, and keeping it there a little at a time.

Evicting runs on the writer's thread while no verdict waits. Each step has an fsync of its own: the next verdict's would
otherwise have to carry to the disk what was evicted before it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flawline_edge.journal.layout import LOG_BYTES
from flawline_edge.journal.rows import Rows
from flawline_inspect.clock import wall_clock

if TYPE_CHECKING:
    from flawline_inspect.config import JournalConfig

__all__ = ["Bounds", "Checkpoints", "Evicted", "Tidying"]

_log = logging.getLogger(__name__)

_FULL = 0.97
"""Share of the bound from which on the oldest rows go: pages that are half empty still count as used."""
_SPARE_PAGES = 1000
"""Free pages that are kept for the rows to come instead of being given back to the disk."""
_VACUUM_PAGES = 8
"""Given back at a time: each one costs moving another page into its place."""
_ROWS = 16
"""Evicted at a time, at least: a step that is in nobody's way for more than a millisecond or two, its fsync included."""
_MAX_ROWS = 1000
_STEP_PAUSE_S = 0.04
"""Between two steps: 400 rows a second, more than most lines make."""
_REST = 9.0
"""Or so many times as long as the step took: on a slow disk too a commit finds itself behind one of ten times at most."""
_OVERDUE_S = 0.25
"""A writer that has not been idle for so long takes a step all the same."""
_ROOM_CHECK_S = 1.0
_AGE_CHECK_S = 60.0
_COMMITS_A_CHECKPOINT = 100
"""Some megabytes of the write-ahead log, and seconds of a busy line."""
_LARGE_LOG_BYTES = LOG_BYTES * 3 // 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """`max_bytes`: of the file; its write-ahead log comes to a few megabytes more. `max_age_s`: of what was delivered;
    None keeps it until room is needed. `alarm_after`: undelivered verdicts that are still normal.
    """

    max_bytes: int = 2_000_000_000
    max_age_s: float | None = 90 * 86400.0
    alarm_after: int = 1000

    @classmethod
    def of(cls, config: JournalConfig) -> Bounds:
        days = config.days
        return cls(round(1e9 * config.max_gb), None if days is None else 86400 * days, config.alarm_after)


@dataclass(frozen=True, slots=True)
class Evicted:
    """Verdicts that were deleted to keep the bounds, since the journal was made."""

    delivered: int = 0
    undelivered: int = 0


class Tidying:
    """Evicts and gives back space, a step at a time. Used by the writer's thread only."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.due = time.monotonic() + _ROOM_CHECK_S
        """When `step` wants to be called next (monotonic, s)."""
        self._path = path
        self._bounds = bounds
        self._age_due = 0.0
        self._written = 0
        self._saw_loss = False

    @property
    def is_overdue(self) -> bool:
        """Whether `step` cannot wait any longer until nobody else does."""
        return time.monotonic() > self.due + _OVERDUE_S

    def after_commit(self, operations: int) -> None:
        self._written += operations
        self.due = min(self.due, time.monotonic() + _ROOM_CHECK_S)

    def put_off(self) -> None:
        """The disk refused: not again at once."""
        self.due = time.monotonic() + _ROOM_CHECK_S

    def step(self, rows: Rows) -> Evicted:
        """At most one small transaction. Returns what it evicted; raises `sqlite3.Error`."""
        now = time.monotonic()
        used, free = _pages(rows.connection)
        page_bytes: int = rows.connection.execute("PRAGMA page_size").fetchone()[0]
        # As much as was written since the last step, so that no line is faster than its eviction.
        limit = min(max(_ROWS, self._written), _MAX_ROWS)
        self._written = 0
        evicted = Evicted()
        if used * page_bytes > _FULL * self._bounds.max_bytes:
            evicted = _evict(rows, None, limit)
        elif self._bounds.max_age_s is not None and now >= self._age_due:
            evicted = _evict(rows, wall_clock() - self._bounds.max_age_s, limit)
            if evicted == Evicted():
                self._age_due = now + _AGE_CHECK_S
        more = evicted != Evicted()
        too_large = (used + free) * page_bytes > self._bounds.max_bytes
        if not more and free > 0 and (too_large or free > max(_SPARE_PAGES, used // 10)):
            rows.connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
            more = _pages(rows.connection)[1] < free
        done = time.monotonic()
        self.due = done + (max(_STEP_PAUSE_S, _REST * (done - now)) if more else _AGE_CHECK_S)
        self._note(evicted)
        return evicted

    def _note(self, evicted: Evicted) -> None:
        if evicted.undelivered and not self._saw_loss:
            self._saw_loss = True
            _log.error(
                "%s: is full of verdicts that no broker has taken, the oldest are given up; check the broker",
                self._path,
            )
        elif evicted.delivered:
            self._saw_loss = False


class Checkpoints:
    """Moves the write-ahead log into the file on a thread of its own, which commits need not wait for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._commits = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="journal-checkpoints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def after_commit(self, connection: sqlite3.Connection) -> None:
        """Called by the writer after each of its commits, outside of a transaction."""
        self._commits += 1
        if self._commits % _COMMITS_A_CHECKPOINT:
            return
        with suppress(sqlite3.Error, OSError):
            if self._log.stat().st_size > _LARGE_LOG_BYTES:
                # Only a log that is moved as a whole starts again, and with commits that follow each other without a
                # pause the other thread never gets that far. This one does, as nobody else writes meanwhile.
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                return
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closing:
                return
            try:
                self._catch_up()
            except (sqlite3.Error, OSError) as exc:
                _log.debug("%s: the log was not moved into the file (%s); tried again later", self._path, exc)

    def _catch_up(self) -> None:
        with closing(sqlite3.connect(self._path.absolute().as_uri() + "?mode=rw", uri=True)) as connection:
            for _ in range(3):  # what was committed meanwhile is little, and mostly caught by the second attempt
                _, logged, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if logged == moved:
                    return


def _evict(rows: Rows, older_than: float | None, limit: int) -> Evicted:
    connection = rows.connection
    connection.execute("BEGIN IMMEDIATE")
    try:
        evicted = Evicted(*rows.evict(older_than=older_than, limit=limit))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return evicted


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Pages of the file in use, and free ones."""
    total: int = connection.execute("PRAGMA page_count").fetchone()[0]
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return total - free, free
