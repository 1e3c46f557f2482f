"""The journal's file: an older one is brought up to date and loses nothing, whatever happens on the way."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from flawline_edge.journal import Accepted, Journal, JournalError, Query, read_records
from flawline_edge.journal import layout as layout_module
from flawline_edge.journal.layout import open_for_reading, row_id
from flawline_inspect.verdict import Reason, Result, Verdict

WAIT_S = 10.0
VERSION_1 = """
    CREATE TABLE parts (
        id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, accepted REAL,
        trigger TEXT, part TEXT, recipe INTEGER, model TEXT, threshold REAL,
        result INTEGER, reason TEXT, score REAL, captured REAL, ms REAL,
        late_result INTEGER, late_score REAL, late_ms REAL,
        route TEXT NOT NULL DEFAULT 'live', delivered INTEGER NOT NULL DEFAULT 0,
        UNIQUE (boot, seq));
    CREATE INDEX outbox ON parts (id) WHERE delivered = 0 AND result IS NOT NULL;
    PRAGMA user_version = 1;
    PRAGMA journal_mode = WAL;
"""
ROWS = [  # boot, seq, accepted, result, reason, score, late_result, route, delivered; in order of acceptance
    ("0007beef", 1, 100.0, 1, "", 0.5, None, "live", 1),
    ("0007beef", 2, 101.0, 0, "deadline", 0.0, 2, "history", 0),
    ("0002cafe", 1, 102.0, 2, "", 1.5, None, "live", 0),
    ("0002cafe", 2, 103.0, None, None, None, None, "live", 0),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(made)) as connection:
        connection.executescript(VERSION_1)
        connection.executemany(
            "INSERT INTO parts (boot, seq, accepted, result, reason, score, late_result, route, delivered, trigger,"
            " part, recipe, model, threshold, captured, ms)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'T-' || ?2, 'SN', 2, 'bottle', 1.21, ?3, 7.4)",
            ROWS,
        )
        connection.commit()
    return made


def test_an_older_journal_is_brought_up_to_date(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every verdict with its order, its late result, its way and what is owed to the broker; the open part is settled."""
    with Journal(path) as journal:
        assert "brought up to date" in caplog.text
        assert [(v.boot, v.seq) for v in journal.verdicts()] == [("0002cafe", 1), ("0007beef", 2), ("0007beef", 1)]
        assert journal.undelivered() == 2
        assert [(v.boot, v.seq) for v in journal.next_history(9)] == [("0007beef", 2)]
        assert journal.recover("0008beef") == 1
        history = journal.next_history(9)
        assert [(v.boot, v.seq, int(v.result), v.reason.value) for v in history] == [
            ("0007beef", 2, 0, "deadline"),
            ("0002cafe", 1, 2, ""),
            ("0002cafe", 2, 0, "restart"),
        ]
        journal.delivered([(v.boot, v.seq) for v in history])
    assert sorted(each.name for each in path.parent.iterdir()) == ["journal.sqlite"]
    with contextlib.closing(open_for_reading(path)) as connection:
        records = list(read_records(connection, Query()))
    assert [record.delivered for record in records] == [True] * 4
    assert records[1].late_result is Result.NOT_OK and records[0].accepted == 100.0
    assert records[0].verdict == Verdict(
        1, "0007beef", "T-1", "SN", Result.OK, Reason.NONE, 0.5, 1.21, 2, "bottle", 100.0, 7.4
    )


def test_an_attempt_that_was_cut_off_is_made_again(path: Path) -> None:
    """A half-written new file lies beside the old one, which is as it was."""
    path.with_name("journal.sqlite.new").write_bytes(b"half of it")
    with Journal(path) as journal:
        assert len(journal.verdicts()) == 3
    assert sorted(each.name for each in path.parent.iterdir()) == ["journal.sqlite"]


def test_an_attempt_that_fails_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(layout_module, "_FROM_VERSION_1", ("INSERT INTO nowhere VALUES (1)",))
        with pytest.raises(JournalError, match="cannot be opened as a journal"):
            Journal(path).__enter__()
    assert sorted(each.name for each in path.parent.iterdir()) == ["journal.sqlite"]
    with Journal(path) as journal:
        assert len(journal.verdicts()) == 3


def test_an_older_journal_is_not_changed_by_reading(path: Path) -> None:
    with pytest.raises(JournalError, match="start the station once"):
        open_for_reading(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


def test_reading_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened as a journal"):
        open_for_reading(tmp_path / "journal.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seq", [-1, 1 << 32])
def test_a_seq_beyond_its_bits_is_refused(seq: int) -> None:
    """It would be another start's part."""
    assert row_id(3, (1 << 32) - 1) + 1 == row_id(4, 0)
    with pytest.raises(ValueError, match="not within"):
        row_id(3, seq)


def test_the_view_shows_plain_names(tmp_path: Path) -> None:
    """For whoever looks with the sqlite3 shell."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.accept(Accepted("0001aaaa", 7, "T-7", "SN7", 2, "m", 1.21, 5.0, "top")).result(WAIT_S)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        row = connection.execute("SELECT boot, seq, camera, trigger, part, result, route, delivered FROM parts")
        assert row.fetchall() == [("0001aaaa", 7, "top", "T-7", "SN7", None, "live", 0)]


QUERIES = {
    "by_time": "result IS NOT NULL",
    "by_result": "result IS NOT NULL AND result = 2",
    "by_trigger": "result IS NOT NULL AND trigger = 'T'",
}


@pytest.mark.parametrize("index", QUERIES)
def test_answers_come_in_the_order_of_an_index(tmp_path: Path, index: str) -> None:
    """No sorting, which with a million rows would take seconds."""
    path = tmp_path / "journal.sqlite"
    with Journal(path), contextlib.closing(open_for_reading(path)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT id FROM records INDEXED BY {index} CROSS JOIN boots ON number = id >> 32"
            f" WHERE {QUERIES[index]} AND captured >= 5 ORDER BY captured DESC, id DESC LIMIT 10"
        ).fetchall()
    assert not any("B-TREE" in str(row) for row in plan), plan
