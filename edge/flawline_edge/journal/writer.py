"""The one thread that writes: group commit, then what can wait, then tidying.

It takes every operation that is waiting, commits them in one transaction with one fsync, and only then completes their
futures. Callers never touch the disk. Tidying happens in steps of a millisecond or two, and only while nobody waits.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from flawline_edge.journal.bounds import Bounds, Checkpoints, Evicted, Tidying
from flawline_edge.journal.layout import BUSY_S, JournalError, open_for_writing
from flawline_edge.journal.pending import Pending
from flawline_edge.journal.rows import Key, Rows
from flawline_inspect.verdict import Verdict

__all__ = ["Work", "Writer", "failed", "unusable"]

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Pause before what could not be written is tried again, when nothing else wakes the writer."""
_MAX_WAITING = 10_000
"""Operations waiting for a disk that hangs; beyond it new ones are refused instead of filling the memory."""
_MARKS_AT_ONCE = 200
_OWED_AT_ONCE = 100
_CLOSE_S = 30.0

Work = Callable[[Rows], Any]


class _Operation(NamedTuple):
    work: Work
    future: Future[Any]
    kept: Verdict | None


class Writer:
    """Owns the connection that writes. `start` it, and in the end `close` and `join` it."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.commits = 0
        """Transactions of operations since the start; fewer than operations when they come in groups."""
        self.evicted = Evicted()
        self.pending = Pending()
        self.is_open = False
        self.generation = 0
        """Counts up whenever the file was opened: readers of an earlier one have to open it again."""
        self._path = path
        self._bounds = bounds
        self._wake = threading.Condition()
        self._waiting: list[_Operation] = []
        self._rows: Rows | None = None
        self._identity = (0, 0)
        self.trouble = ""
        """Why the last transaction was refused; empty after one that was not."""
        self._retry_at = 0.0

    def start(self) -> None:
        """Open the file, creating it where needed. Raises `JournalError`."""
        self._open_file()
        self._tidying = Tidying(self._path, self._bounds)
        self._checkpoints = Checkpoints(self._path)
        self._checkpoints.start()
        self.is_open = True
        self._thread = threading.Thread(target=self._write_until_closed, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuse what still comes."""
        with self._wake:
            self.is_open = False
            self._wake.notify()

    def join(self) -> None:
        """After `close`: write what waits, as far as the disk lets it."""
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            _log.error("%s: the disk has not answered for %.0f s, the last records may be lost", self._path, _CLOSE_S)
        self._checkpoints.close(_CLOSE_S)

    def submit(self, work: Work, kept: Verdict | None = None) -> Future[Any]:
        """`kept`: a verdict that is out already; if the disk refuses the operation it is written later all the same."""
        future: Future[Any] = Future()
        with self._wake:
            is_open = self.is_open
            if is_open and len(self._waiting) < _MAX_WAITING:
                self._waiting.append(_Operation(work, future, kept))
                self._wake.notify()
                return future
        if is_open and kept is not None:
            self.pending.owe(kept)
        return failed(f"{self._path}: " + ("the disk does not keep up" if is_open else "the journal is not open"))

    def mark(self, keys: list[Key], *, delivered: bool) -> None:
        with self._wake:
            if self.is_open:
                self.pending.mark(keys, delivered=delivered)
                self._wake.notify()

    # --- on the writer's thread ------------------------------------------------------------------------------------

    def _write_until_closed(self) -> None:
        while True:
            with self._wake:
                while self.is_open and not self._waiting and (pause_s := self._idle_for_s()) > 0:
                    self._wake.wait(pause_s)
                taken, self._waiting = self._waiting, []
                closing = not self.is_open
            batch = [operation for operation in taken if operation.future.set_running_or_notify_cancel()]
            if batch:
                self._commit(batch)
            elif self.pending and (closing or time.monotonic() >= self._retry_at):
                self._write_pending()
            elif not closing:
                self._tidy()
            if batch and self._tidying.is_overdue and not closing:
                self._tidy()
            if closing and not self._waiting and (not self.pending or self.trouble):
                break
        if self._rows is not None:
            self._rows.connection.close()
            self._rows = None

    def _idle_for_s(self) -> float:
        now = time.monotonic()
        due = self._tidying.due
        if self.pending:
            due = min(due, self._retry_at)
        return max(0.0, due - now)

    def _commit(self, batch: list[_Operation]) -> None:
        """One transaction. Completes the futures either way."""
        marks = self.pending.marks(max(_MARKS_AT_ONCE, len(batch)))
        try:
            results = self._transact([operation.work for operation in batch], marks, lasting=True)
        except Exception as exc:
            error = unusable(self._path, "written", exc)
            self._note(error)
            for operation in batch:
                if operation.kept is not None and isinstance(exc, sqlite3.Error | OSError):
                    self.pending.owe(operation.kept)
                operation.future.set_exception(error)
            return
        self._note(None)
        self.commits += 1
        self.pending.written(marks, [])
        for operation, result in zip(batch, results, strict=True):
            operation.future.set_result(result)
        self._after_commit(len(batch))

    def _write_pending(self) -> None:
        """Marks and owed verdicts, when no operation takes the marks along."""
        owed = self.pending.owed(_OWED_AT_ONCE)
        marks = self.pending.marks(_MARKS_AT_ONCE)
        work: list[Work] = [_overruling(verdict) for verdict in owed]
        try:
            # Marks alone are not worth an fsync: what a power cut takes of them is sent once more, on history.
            self._transact(work, marks, lasting=bool(owed))
        except Exception as exc:
            self._note(unusable(self._path, "written", exc))
            return
        self._note(None)
        self.pending.written(marks, owed)
        self._after_commit(len(owed))

    def _after_commit(self, operations: int) -> None:
        self._tidying.after_commit(operations)
        if self._rows is not None:
            self._checkpoints.after_commit(self._rows.connection)

    def _tidy(self) -> None:
        if self._rows is None or time.monotonic() < self._tidying.due:
            return
        connection = self._rows.connection
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA busy_timeout = 0")  # another program has the file: not now, then
            step = self._tidying.step(self._rows)
            if step != Evicted():
                self.evicted = Evicted(
                    self.evicted.delivered + step.delivered, self.evicted.undelivered + step.undelivered
                )
                self._checkpoints.after_commit(connection)
        except Exception as exc:
            _log.debug("%s: could not be tidied (%s)", self._path, exc)
            self._tidying.put_off()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {round(1e3 * BUSY_S)}")

    def _note(self, error: JournalError | None) -> None:
        """One line in the log for each change, and when to try again."""
        if error is not None and not self.trouble:
            _log.error("%s", error)
        elif error is None and self.trouble:
            _log.warning("%s: can be written again", self._path)
        self.trouble = str(error) if error is not None else ""
        self._retry_at = time.monotonic() + _RETRY_S if error is not None else 0.0

    def _transact(self, work: list[Work], marks: dict[Key, bool], *, lasting: bool) -> list[Any]:
        """`lasting`: with an fsync, without which a power cut may undo it (but never half of it)."""
        if self._rows is None or not self._is_in_place():
            # Without this check SQLite would go on writing into a file that has been deleted.
            self._reopen()
            _log.error("%s: was deleted or replaced and has been opened anew", self._path)
        rows = self._rows
        assert rows is not None
        connection = rows.connection
        connection.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [each(rows) for each in work]
            for key, delivered in marks.items():
                rows.mark(key, delivered=delivered)
            connection.execute("COMMIT")
        except BaseException:
            rows.forget()
            if connection.in_transaction:  # SQLite has rolled back by itself when the disk is full
                connection.execute("ROLLBACK")
            raise
        return results

    def _is_in_place(self) -> bool:
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _reopen(self) -> None:
        if self._rows is not None:
            self._rows.connection.close()
            self._rows = None
        self._open_file()

    def _open_file(self) -> None:
        connection = open_for_writing(self._path)
        try:
            status = self._path.stat()
            self.evicted = Evicted(*connection.execute("SELECT delivered, undelivered FROM evicted").fetchone())
        except (sqlite3.Error, OSError) as exc:
            connection.close()
            raise unusable(self._path, "opened", exc) from exc
        self._identity = (status.st_dev, status.st_ino)
        self._rows = Rows(connection)
        self.generation += 1


def _overruling(verdict: Verdict) -> Work:
    return lambda rows: rows.overrule(verdict)


def unusable(path: Path, done: str, exc: Exception) -> JournalError:
    if isinstance(exc, JournalError):
        return exc
    error = JournalError(f"{path}: cannot be {done} ({exc}); check the disk's space and health")
    error.__cause__ = exc
    return error


def failed(sentence: str) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(JournalError(sentence))
    return future
