"""The journal: what survives an outage of the broker, a crash of the station or a power cut.

SQLite in WAL mode with synchronous=FULL. One thread writes: it takes every operation that is waiting, commits
them in one transaction with one fsync, and only then completes their futures (group commit). Callers never
touch the disk.

    with Journal(state_dir / "journal.sqlite") as journal:
        journal.recover(boot)
        journal.accept(trigger).result()      # now the trigger survives a power cut
        journal.decide(verdict)

A row is routed `live` until its message is known not to have reached the broker in time; then it is
`history`.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from flawline_inspect.errors import FlawlineError, InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.verdict import Reason, Result, Verdict, is_wire_id

__all__ = ["Accepted", "Journal", "JournalError", "next_boot"]

_log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_WAITING = "delivered = 0 AND result IS NOT NULL"
_SCHEMA = (
    """CREATE TABLE parts (
        id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, accepted REAL,
        trigger TEXT, part TEXT, recipe INTEGER, model TEXT, threshold REAL,
        result INTEGER, reason TEXT, score REAL, captured REAL, ms REAL,
        late_result INTEGER, late_score REAL, late_ms REAL,
        route TEXT NOT NULL DEFAULT 'live', delivered INTEGER NOT NULL DEFAULT 0,
        UNIQUE (boot, seq))""",
    f"CREATE INDEX outbox ON parts (id) WHERE {_WAITING}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)
_VERDICT_COLUMNS = "seq, boot, trigger, part, result, reason, score, threshold, recipe, model, captured, ms"
_BUSY_S = 2.0
"""How long a write waits for another program that holds the file, such as the sqlite3 shell."""
_RETRY_S = 1.0
"""Pause before marks that could not be written are tried again, when nothing else wakes the writer."""
_MAX_WAITING = 10_000
"""Operations waiting for a disk that hangs; beyond it new ones are refused instead of filling the memory."""
_CLOSE_S = 30.0

_Key = tuple[str, int]
_Work = Callable[[sqlite3.Connection], Any]


class JournalError(FlawlineError, OSError):
    """The journal cannot be opened, read or written."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A trigger that the station has taken on; `accepted` is wall clock, seconds since the epoch.

    Raises `InputError` for ids that do not go on the wire.
    """

    boot: str
    seq: int
    trigger: str
    part: str
    recipe: int
    model: str
    threshold: float
    accepted: float

    def __post_init__(self) -> None:
        if not is_wire_id(self.trigger) or (self.part and not is_wire_id(self.part)):
            raise InputError(
                f"trigger id {self.trigger!r} and part id {self.part!r} must be at most 16 of A-Za-z0-9._:-"
            )


class _Operation(NamedTuple):
    work: _Work
    future: Future[Any]


class Journal:
    """A context manager; every method may be called from any thread while it is entered.

    Futures fail with `JournalError` when their transaction could not be committed (disk full, file gone); the
    next transaction is tried as if nothing had happened. Their callbacks run on the writer's thread and must
    return quickly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits = 0
        """Transactions since it was opened; fewer than operations when they come in groups."""
        self._wake = threading.Condition()
        self._waiting: list[_Operation] = []
        # True: delivered, False: to history. They stay here until they are on the disk.
        self._marks: dict[_Key, bool] = {}
        self._open = False
        self._writer: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def __enter__(self) -> Journal:
        """Open the file, creating it where needed, and start the writer. Raises `JournalError`."""
        self._connection = self._connect()
        self._open = True
        self._writer = threading.Thread(target=self._write_until_closed, name="journal", daemon=True)
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._wake:
            self._open = False
            self._wake.notify()
        if self._writer is not None:
            self._writer.join(_CLOSE_S)
            if self._writer.is_alive():
                _log.error(
                    "%s: the disk has not answered for %.0f s, the last records may be lost",
                    self.path,
                    _CLOSE_S,
                )
        with self._reading:
            self._close_reader()

    def recover(self, boot: str) -> int:
        """Settle what earlier starts left open; `boot` is this start. Call it once, before the first
        `accept`.

        Accepted triggers without a verdict become Undefined `restart`; verdicts that were never acknowledged
        go to history. Returns how many got `restart`. Raises `JournalError`.
        """
        restarted: int = self._submit(partial(_recover, boot)).result()
        return restarted

    def accept(self, trigger: Accepted) -> Future[None]:
        """Record that a trigger was accepted; it is accepted once the future is done."""
        return self._submit(partial(_accept, trigger))

    def decide(self, verdict: Verdict, *, overrules: bool = False) -> Future[None]:
        """Record a verdict. The first one for a (boot, seq) stands; a second is kept beside it as the late
        result.

        `overrules` is for the deadline's verdict, which went out without waiting for the disk: it stands even
        where another one was committed in the same instant, and that one becomes the late result. The journal
        says what the PLC was told.
        """
        numbers = (verdict.score, verdict.threshold, verdict.captured, verdict.ms)
        if not all(map(math.isfinite, numbers)):
            return _failed(f"verdict {verdict.boot}/{verdict.seq} has a number that is not finite: {numbers}")
        return self._submit(partial(_overrule if overrules else _decide, verdict))

    def label(self, boot: str, seq: int, label: str, at: float) -> Future[bool]:
        """Record what somebody who looked at the part says of it, beside its verdict; a later word replaces it.

        `label` is `good` or the kind of defect, `at` wall clock. The future says whether there is such a verdict.
        """
        return self._submit(partial(_label, (boot, seq, label, at)))

    def delivered(self, keys: Iterable[tuple[str, int]]) -> None:
        """The broker has acknowledged these (boot, seq). Retried until it is written; nothing to wait for."""
        self._mark(keys, delivered=True)

    def to_history(self, keys: Iterable[tuple[str, int]]) -> None:
        """These (boot, seq) could not be delivered live. Retried until it is written; nothing to wait for."""
        self._mark(keys, delivered=False)

    def next_history(self, limit: int) -> list[Verdict]:
        """The oldest verdicts, at most `limit`, that wait for delivery on history. Raises `JournalError`."""
        with self._wake:
            settled = {key for key, delivered in self._marks.items() if delivered}
            diverted = {key for key, delivered in self._marks.items() if not delivered}
        query = f"SELECT {_VERDICT_COLUMNS}, route FROM parts WHERE {_WAITING} ORDER BY id"
        found = []
        with self._reading:
            try:
                for row in self._read(query):
                    key = (row[1], row[0])
                    if key not in settled and (row[-1] == "history" or key in diverted):
                        found.append(_verdict(row))
                        if len(found) >= limit:
                            break
            except sqlite3.Error as exc:
                raise self._unusable("read", exc) from exc
        return found

    def undelivered(self) -> int:
        """How many verdicts no broker has acknowledged yet, live ones included. Raises `JournalError`."""
        with self._wake:
            settled = {key for key, delivered in self._marks.items() if delivered}
        with self._reading:
            try:
                keys = self._read(f"SELECT boot, seq FROM parts WHERE {_WAITING}")
                return sum(tuple(key) not in settled for key in keys)
            except sqlite3.Error as exc:
                raise self._unusable("read", exc) from exc

    def verdicts(self, limit: int = 100) -> list[Verdict]:
        """The newest verdicts, newest first. Raises `JournalError`."""
        query = f"SELECT {_VERDICT_COLUMNS} FROM parts WHERE result IS NOT NULL ORDER BY id DESC LIMIT ?"
        with self._reading:
            try:
                return [_verdict(row) for row in self._read(query, limit)]
            except sqlite3.Error as exc:
                raise self._unusable("read", exc) from exc

    def _submit(self, work: _Work) -> Future[Any]:
        future: Future[Any] = Future()
        with self._wake:
            if self._open and len(self._waiting) < _MAX_WAITING:
                self._waiting.append(_Operation(work, future))
                self._wake.notify()
                return future
            is_open = self._open
        return _failed(f"{self.path}: " + ("the disk does not keep up" if is_open else "the journal is not open"))

    def _mark(self, keys: Iterable[_Key], *, delivered: bool) -> None:
        with self._wake:
            if not self._open:
                return
            for key in keys:
                self._marks[key] = delivered or self._marks.get(key, False)
            self._wake.notify()

    def _write_until_closed(self) -> None:
        failing, retry_at = False, 0.0
        while True:
            with self._wake:
                while self._open and not self._waiting:
                    pause = max(0.0, retry_at - time.monotonic()) if self._marks else None
                    if pause == 0.0:
                        break
                    self._wake.wait(pause)
                taken, self._waiting = self._waiting, []
                marks = dict(self._marks)
                last = not self._open
            batch = [operation for operation in taken if operation.future.set_running_or_notify_cancel()]
            if batch or marks:
                error = self._write(batch, marks)
                if error is not None and not failing:
                    _log.error("%s", error)
                elif error is None and failing:
                    _log.warning("%s: can be written again", self.path)
                failing, retry_at = error is not None, time.monotonic() + _RETRY_S if error else 0.0
            if last:
                break
        if self._connection is not None:
            self._connection.close()

    def _write(self, batch: list[_Operation], marks: dict[_Key, bool]) -> JournalError | None:
        """One transaction. Completes the futures either way, and returns what went wrong."""
        try:
            results = self._transact(batch, marks)
        except Exception as exc:
            error = self._unusable("written", exc)
            for operation in batch:
                operation.future.set_exception(error)
            return error
        self.commits += 1
        with self._wake:
            for key, delivered in marks.items():
                if self._marks.get(key) is delivered:
                    del self._marks[key]
        for operation, result in zip(batch, results, strict=True):
            operation.future.set_result(result)
        return None

    def _transact(self, batch: list[_Operation], marks: dict[_Key, bool]) -> list[Any]:
        if self._connection is None or not self._is_in_place():
            # Without this check SQLite would go on writing into a file that has been deleted.
            self._reopen()
            _log.error("%s: was deleted or replaced and has been opened anew", self.path)
        connection = self._connection
        assert connection is not None
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [operation.work(connection) for operation in batch]
            for (boot, seq), delivered in marks.items():
                # The row may come later: at the deadline a verdict is published without waiting for the disk.
                column, value = ("delivered", 1) if delivered else ("route", "history")
                connection.execute(
                    f"INSERT INTO parts (boot, seq, {column}) VALUES (?, ?, ?)"
                    f" ON CONFLICT (boot, seq) DO UPDATE SET {column} = excluded.{column}",
                    (boot, seq, value),
                )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite has rolled back by itself when the disk is full
                connection.execute("ROLLBACK")
            raise
        return results

    def _is_in_place(self) -> bool:
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _reopen(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with self._reading:
            self._close_reader()
        self._connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        try:
            # Used by one thread at a time, but opened by the caller's, so that its errors reach the caller.
            connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise JournalError(
                    f"{self.path}: has schema {version}, this version reads up to {_SCHEMA_VERSION};"
                    " install the newer flawline again, or move the file away"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            if version == 0:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("COMMIT")
                _sync_folder(self.path.parent)
            status = self.path.stat()
        except (sqlite3.Error, OSError) as exc:
            if connection is not None:
                connection.close()
            if isinstance(exc, JournalError):
                raise
            raise JournalError(
                f"{self.path}: cannot be opened as a journal ({exc});"
                " its folder must exist and be writable, and a damaged file can be moved away"
            ) from exc
        self._identity = (status.st_dev, status.st_ino)
        return connection

    def _read(self, query: str, *values: object) -> sqlite3.Cursor:
        if self._reader is None:
            if not self._open:
                raise sqlite3.ProgrammingError("the journal is not open")
            # A connection of its own: in WAL mode a reader never waits for the writer's fsync.
            self._reader = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._reader.execute("PRAGMA query_only = ON")
        return self._reader.execute(query, values)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _unusable(self, done: str, exc: Exception) -> JournalError:
        if isinstance(exc, JournalError):
            return exc
        error = JournalError(f"{self.path}: cannot be {done} ({exc}); check the disk's space and health")
        error.__cause__ = exc
        return error


def next_boot(state_dir: Path) -> str:
    """A new name for this start of the station: 4 hex digits that count starts, 4 random ones.

    The random ones keep names apart when the counter was lost with its disk. Raises `JournalError` when the
    counter cannot be kept.
    """
    path = state_dir / "boot"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        try:
            count = int(path.read_text(encoding="ascii"), 16)
        except FileNotFoundError:
            count = 0
        except ValueError:
            _log.warning("%s: is not a counter of 4 hex digits, counting from 0 again", path)
            count = 0
        count = (count + 1) & 0xFFFF
        write_atomic(path, f"{count:04x}\n".encode("ascii"))
    except OSError as exc:
        raise JournalError(
            f"{path}: the boot counter cannot be kept ({exc}); give the station a writable state_dir"
        ) from exc
    return f"{count:04x}{secrets.token_hex(2)}"


def _recover(boot: str, connection: sqlite3.Connection) -> int:
    connection.execute(f"UPDATE parts SET route = 'history' WHERE {_WAITING} AND boot != ?", (boot,))
    restarted = connection.execute(
        "UPDATE parts SET result = ?, reason = ?, score = 0.0, captured = accepted, ms = 0.0,"
        " route = 'history' WHERE result IS NULL AND accepted IS NOT NULL AND boot != ?",
        (int(Result.UNDEFINED), Reason.RESTART.value, boot),
    ).rowcount
    # Marks whose verdict never reached the disk: nothing is left to deliver.
    connection.execute("DELETE FROM parts WHERE result IS NULL AND boot != ?", (boot,))
    return restarted


def _accept(trigger: Accepted, connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO parts (boot, seq, accepted, trigger, part, recipe, model, threshold)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (boot, seq) DO UPDATE SET"
        " accepted = excluded.accepted, trigger = coalesce(trigger, excluded.trigger),"
        " part = coalesce(part, excluded.part), recipe = coalesce(recipe, excluded.recipe),"
        " model = coalesce(model, excluded.model), threshold = coalesce(threshold, excluded.threshold)",
        (
            trigger.boot, trigger.seq, trigger.accepted, trigger.trigger,
            trigger.part, trigger.recipe, trigger.model, trigger.threshold,
        ),
    )  # fmt: skip


def _decide(verdict: Verdict, connection: sqlite3.Connection) -> None:
    values = (
        verdict.seq, verdict.boot, verdict.trigger, verdict.part, int(verdict.result), verdict.reason.value,
        verdict.score, verdict.threshold, verdict.recipe, verdict.model, verdict.captured, verdict.ms,
    )  # fmt: skip
    decided = connection.execute(
        f"INSERT INTO parts ({_VERDICT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (boot, seq) DO UPDATE SET trigger = excluded.trigger, part = excluded.part,"
        " result = excluded.result, reason = excluded.reason, score = excluded.score,"
        " threshold = excluded.threshold, recipe = excluded.recipe, model = excluded.model,"
        " captured = excluded.captured, ms = excluded.ms WHERE parts.result IS NULL",
        values,
    )
    if decided.rowcount == 0:
        connection.execute(
            "UPDATE parts SET late_result = ?, late_score = ?, late_ms = ?"
            " WHERE boot = ? AND seq = ? AND late_result IS NULL",
            (int(verdict.result), verdict.score, verdict.ms, verdict.boot, verdict.seq),
        )


def _label(row: tuple[str, int, str, float], connection: sqlite3.Connection) -> bool:
    # Its own table, made when it is needed first: journals of before have none.
    connection.execute(
        "CREATE TABLE IF NOT EXISTS labels"
        " (boot TEXT NOT NULL, seq INTEGER NOT NULL, label TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (boot, seq))"
    )
    query = "SELECT 1 FROM parts WHERE boot = ? AND seq = ? AND result IS NOT NULL"
    if connection.execute(query, row[:2]).fetchone() is None:
        return False
    connection.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)", row)
    return True


def _overrule(verdict: Verdict, connection: sqlite3.Connection) -> None:
    connection.execute(
        "UPDATE parts SET late_result = result, late_score = score, late_ms = ms, result = NULL"
        " WHERE boot = ? AND seq = ? AND result IS NOT NULL",
        (verdict.boot, verdict.seq),
    )
    _decide(verdict, connection)


def _verdict(row: tuple[Any, ...]) -> Verdict:
    seq, boot, trigger, part, result, reason, score, threshold, recipe, model, captured, ms = row[:12]
    return Verdict(
        seq,
        boot,
        trigger,
        part,
        Result(result),
        Reason(reason),
        score,
        threshold,
        recipe,
        model,
        captured,
        ms,
    )


def _failed(sentence: str) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(JournalError(sentence))
    return future


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
