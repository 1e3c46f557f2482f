"""The journal's file: its tables, opening it, and bringing an older one up to date.

A part's row is found by one number, the start's number in `boots` times 2^32 plus the part's seq: order of acceptance is
the order of the file, and (boot, seq) needs no index of its own. The view `parts` shows it all with plain names to
whoever looks with the sqlite3 shell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from flawline_inspect.errors import FlawlineError

__all__ = [
    "BUSY_S",
    "JOURNAL_FILE",
    "LOG_BYTES",
    "SEQ_BITS",
    "JournalError",
    "open_for_reading",
    "open_for_writing",
    "row_id",
]

_log = logging.getLogger(__name__)

JOURNAL_FILE = "journal.sqlite"
"""Its name in the state directory."""
SEQ_BITS = 32
_SCHEMA_VERSION = 2
_TABLES = (
    "CREATE TABLE boots (number INTEGER PRIMARY KEY, boot TEXT NOT NULL UNIQUE)",
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY, accepted REAL, camera TEXT NOT NULL DEFAULT '',
        trigger TEXT, part TEXT, recipe INTEGER, model TEXT, threshold REAL,
        result INTEGER, reason TEXT, score REAL, captured REAL, ms REAL,
        late_result INTEGER, late_score REAL, late_ms REAL,
        history INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE evicted (delivered INTEGER NOT NULL, undelivered INTEGER NOT NULL)",
    "INSERT INTO evicted VALUES (0, 0)",
    f"""CREATE VIEW parts AS SELECT id, boot, id & {(1 << SEQ_BITS) - 1} AS seq, accepted, camera, trigger, part, recipe,
        model, threshold, result, reason, score, captured, ms, late_result, late_score, late_ms,
        CASE history WHEN 1 THEN 'history' ELSE 'live' END AS route, delivered
        FROM records JOIN boots ON number = id >> {SEQ_BITS}""",
)
# Rows without a result are in none but the first: a trigger is written when it is accepted, found when it is decided.
_INDICES = (
    "CREATE INDEX undecided ON records (id) WHERE result IS NULL",
    "CREATE INDEX by_delivery ON records (delivered) WHERE result IS NOT NULL",
    "CREATE INDEX by_time ON records (captured) WHERE result IS NOT NULL",
    "CREATE INDEX by_result ON records (result, captured) WHERE result IS NOT NULL",
    "CREATE INDEX by_reason ON records (reason, captured) WHERE reason <> ''",
    "CREATE INDEX by_trigger ON records (trigger, captured) WHERE result IS NOT NULL",
    "CREATE INDEX by_camera ON records (camera, captured) WHERE result IS NOT NULL AND camera <> ''",
    "CREATE INDEX by_part ON records (part, captured) WHERE part <> ''",
)
_FROM_VERSION_1 = (
    "INSERT INTO boots (boot) SELECT boot FROM old.parts GROUP BY boot ORDER BY min(id)",
    f"""INSERT INTO records (id, accepted, trigger, part, recipe, model, threshold, result, reason, score, captured, ms,
        late_result, late_score, late_ms, history, delivered)
        SELECT number << {SEQ_BITS} | seq, accepted, trigger, part, recipe, model, threshold, result, reason, score,
        captured, ms, late_result, late_score, late_ms, route = 'history', delivered
        FROM old.parts JOIN boots USING (boot) ORDER BY 1""",
)

BUSY_S = 2.0
"""How long a write waits for another program that holds the file, such as the sqlite3 shell."""
_CACHE_KIB = 2000
"""Full after minutes of a line, so that a station soon has the memory that it will have for months."""
LOG_BYTES = 16 << 20
"""What the write-ahead log is cut back to, should it ever have been larger."""


class JournalError(FlawlineError, OSError):
    """The journal cannot be opened, read or written."""


def row_id(boot_number: int, seq: int) -> int:
    if not 0 <= seq < 1 << SEQ_BITS:
        raise ValueError(f"seq {seq} is not within 0 and 2^{SEQ_BITS}")
    return boot_number << SEQ_BITS | seq


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the journal, made or brought up to date where needed. Raises `JournalError`."""
    try:
        with contextlib.closing(_connect(path)) as found:
            version = _version(found, path)
        if version == 1:
            _migrate(path)
        connection = _connect(path)
        try:
            if version == 0:
                _create(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            # Moving the log into the file takes several fsyncs. `Checkpoints` does it beside the commits, not in one.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("SELECT count(*) FROM boots").fetchone()
            if version == 0:
                _sync_folder(path.parent)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as exc:
        raise _unusable(path, exc) from exc
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that reads and never makes a file; in WAL mode it never waits for the writer. Raises `JournalError`."""
    try:
        try:
            connection = _connect(path, "mode=ro")
            version = _version(connection, path)
        except sqlite3.OperationalError:
            if not path.is_file() or path.with_name(f"{path.name}-wal").exists():
                raise
            # Nobody has it open, and this user may not make the log's files beside it: it cannot change under us.
            connection = _connect(path, "mode=ro&immutable=1")
            version = _version(connection, path)
        if version < _SCHEMA_VERSION:
            connection.close()
            raise JournalError(
                f"{path}: has schema {version}, expected {_SCHEMA_VERSION};"
                " start the station once, which brings its journal up to date"
            )
        connection.execute("PRAGMA query_only = ON")
    except (sqlite3.Error, OSError) as exc:
        raise _unusable(path, exc) from exc
    return connection


def _unusable(path: Path, exc: Exception) -> JournalError:
    if isinstance(exc, JournalError):
        return exc
    return JournalError(
        f"{path}: cannot be opened as a journal ({exc});"
        " its folder must exist and be writable, and a damaged file can be moved away"
    )


def _connect(path: Path, options: str = "") -> sqlite3.Connection:
    # Used by one thread at a time, but opened by the caller's, so that its errors reach the caller.
    target = f"{path.absolute().as_uri()}?{options}" if options else path
    return sqlite3.connect(target, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=bool(options))


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise JournalError(
            f"{path}: has schema {version}, this version reads up to {_SCHEMA_VERSION};"
            " install the newer flawline again, or move the file away"
        )
    return version


def _create(connection: sqlite3.Connection) -> None:
    # Only before the first table: what is evicted can then be given back to the disk a few pages at a time.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in (*_TABLES, *_INDICES, f"PRAGMA user_version = {_SCHEMA_VERSION}"):
        connection.execute(statement)
    connection.execute("COMMIT")


def _migrate(path: Path) -> None:
    """Copy a journal of schema 1 into a new file, which then takes its place; until then the old one is as it was."""
    _log.warning("%s: is being brought up to date; with a million verdicts this takes some seconds, once", path)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with contextlib.closing(_connect(path)) as old:
            old.execute("PRAGMA journal_mode = DELETE")  # no log beside it that would belong to the new one by its name
        with contextlib.closing(_connect(new)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # what fails is deleted
            connection.execute("PRAGMA synchronous = OFF")  # one fsync at the end
            connection.execute("PRAGMA cache_size = -64000")  # for sorting the indices
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("ATTACH ? AS old", (str(path),))
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*_TABLES, *_FROM_VERSION_1, *_INDICES, f"PRAGMA user_version = {_SCHEMA_VERSION}"):
                connection.execute(statement)
            connection.execute("COMMIT")
        with new.open("rb") as written:
            os.fsync(written.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
