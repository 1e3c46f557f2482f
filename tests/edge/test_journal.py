"""The journal: group commit, recovery, the first verdict stands, and nothing that was promised is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.edge.publishers import until

from flawline_edge.journal import Accepted, Journal, JournalError, next_boot
from flawline_edge.journal import pending as pending_module
from flawline_inspect.errors import InputError
from flawline_inspect.verdict import Reason, Result, Verdict

pytestmark = pytest.mark.timeout(30)

BOOT = "0001aaaa"
NEXT = "0002bbbb"
WAIT_S = 10.0


def trigger(seq: int, boot: str = BOOT) -> Accepted:
    return Accepted(boot, seq, f"T-{seq}", f"SN{seq}", 2, "bottle-3f9a1c2e", 1.2101, 1_800_000_000.0 + seq)


def verdict(seq: int, boot: str = BOOT, score: float = 0.5) -> Verdict:
    result = Result.NOT_OK if score > 1.2101 else Result.OK
    return Verdict(
        seq,
        boot,
        f"T-{seq}",
        f"SN{seq}",
        result,
        Reason.NONE,
        score,
        1.2101,
        2,
        "bottle-3f9a1c2e",
        1.8e9 + seq,
        7.4,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_what_somebody_says_of_a_part_stands_beside_its_verdict(path: Path) -> None:
    """Only of parts that have one; a later word replaces the earlier, and the verdict is left alone."""
    with Journal(path) as journal:
        journal.accept(trigger(1)).result()
        assert journal.label(BOOT, 1, "good", 1.9e9).result() is False
        journal.decide(verdict(1)).result()
        assert journal.label(BOOT, 1, "good", 1.9e9).result() is True
        assert journal.label(BOOT, 1, "scratch", 2.0e9).result() is True
        assert journal.label(NEXT, 1, "good", 1.9e9).result() is False
        assert journal.verdicts() == [verdict(1)]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM labels").fetchall() == [(BOOT, 1, "scratch", 2.0e9)]


def seqs(verdicts: list[Verdict]) -> list[int]:
    return [verdict.seq for verdict in verdicts]


def until_empty_of(journal: Journal, count: int) -> int:
    """Marks are written behind the caller's back; wait until `undelivered` says `count`."""
    deadline = time.monotonic() + WAIT_S
    while journal.undelivered() != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return journal.undelivered()


def writing(journal: Journal) -> sqlite3.Connection:
    """The writer's own connection: to make it run out of room."""
    rows = journal._writer._rows
    assert rows is not None
    return rows.connection


@contextlib.contextmanager
def busy(journal: Journal) -> Iterator[None]:
    """Another program holds the file; the writer has taken one operation already, so what follows gathers."""
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    taken = journal.accept(trigger(999_999, "0000beef"))
    deadline = time.monotonic() + WAIT_S
    while not taken.running() and time.monotonic() < deadline:
        time.sleep(0.005)
    yield
    other.execute("COMMIT")
    other.close()
    taken.result(WAIT_S)


def test_a_verdict_comes_back_as_it_was(path: Path) -> None:
    """The raw score is kept to the last bit, beyond the 4 decimals of the wire."""
    given = verdict(1, score=1.0 / 3.0 + 1.0)
    with Journal(path) as journal:
        journal.accept(trigger(1)).result(WAIT_S)
        assert journal.verdicts() == []
        journal.decide(given).result(WAIT_S)
        assert journal.verdicts() == [given]
    with Journal(path) as journal:
        assert journal.verdicts() == [given]


def test_verdicts_are_newest_first(path: Path) -> None:
    """By order of acceptance, whatever the order of decision; `limit` cuts the old ones off."""
    with Journal(path) as journal:
        for seq in (1, 2, 3):
            journal.accept(trigger(seq))
        for seq in (2, 3, 1):
            journal.decide(verdict(seq)).result(WAIT_S)
        assert seqs(journal.verdicts()) == [3, 2, 1]
        assert seqs(journal.verdicts(limit=2)) == [3, 2]


def test_a_verdict_without_an_accepted_row_is_kept_whole(path: Path) -> None:
    with Journal(path) as journal:
        journal.decide(verdict(7)).result(WAIT_S)
        journal.accept(trigger(7)).result(WAIT_S)
        assert journal.verdicts() == [verdict(7)]


def test_the_first_verdict_stands(path: Path) -> None:
    """A late inference is stored beside the deadline's verdict and never replaces it; a third is dropped."""
    first = replace(verdict(1), result=Result.UNDEFINED, reason=Reason.DEADLINE, score=0.0, ms=200.0)
    with Journal(path) as journal:
        journal.accept(trigger(1))
        journal.decide(first)
        journal.decide(replace(verdict(1, score=1.83125), ms=412.5))
        journal.decide(replace(verdict(1, score=0.1), ms=500.0)).result(WAIT_S)
        assert journal.verdicts() == [first]
    with sqlite3.connect(path) as connection:
        late = connection.execute("SELECT late_result, late_score, late_ms FROM parts").fetchall()
    connection.close()
    assert late == [(2, 1.83125, 412.5)]


def test_operations_that_wait_share_one_commit(path: Path) -> None:
    """While the file is busy operations gather; when it is free they are committed together."""
    with Journal(path) as journal:
        with busy(journal):
            before = journal.commits
            futures = [journal.accept(trigger(seq)) for seq in range(1, 201)]
            assert not any(future.done() for future in futures)
        for future in futures:
            future.result(WAIT_S)
        assert journal.commits - before == 2  # one for what the writer had taken already, one for all of these


def test_a_restart_settles_what_was_open(path: Path) -> None:
    """Accepted without a verdict: Undefined `restart` under the old boot and seq; undelivered ones go to
    history.
    """
    with Journal(path) as journal:
        for seq in (1, 2, 3):
            journal.accept(trigger(seq))
        journal.decide(verdict(1))
        journal.decide(verdict(2)).result(WAIT_S)
        journal.delivered([(BOOT, 1)])
    with Journal(path) as journal:
        journal.accept(trigger(1, NEXT)).result(WAIT_S)
        assert journal.recover(NEXT) == 1
        history = journal.next_history(10)
        assert [(v.boot, v.seq) for v in history] == [(BOOT, 2), (BOOT, 3)]
        restarted = history[1]
        assert (restarted.result, restarted.reason) == (Result.UNDEFINED, Reason.RESTART)
        assert (restarted.captured, restarted.ms, restarted.score) == (trigger(3).accepted, 0.0, 0.0)
        assert (restarted.trigger, restarted.part, restarted.recipe) == ("T-3", "SN3", 2)
        assert journal.recover(NEXT) == 0
        journal.decide(verdict(1, NEXT)).result(WAIT_S)  # this boot's own row was left alone
        assert journal.verdicts(1) == [verdict(1, NEXT)]
        assert seqs(journal.next_history(10)) == [2, 3]


def test_history_is_oldest_first_and_ends_with_delivery(path: Path) -> None:
    with Journal(path) as journal:
        for seq in range(1, 6):
            journal.decide(verdict(seq))
        journal.decide(verdict(6)).result(WAIT_S)
        assert journal.next_history(10) == []
        assert journal.undelivered() == 6
        journal.to_history([(BOOT, 5), (BOOT, 2), (BOOT, 4)])
        assert seqs(journal.next_history(10)) == [2, 4, 5]
        assert seqs(journal.next_history(2)) == [2, 4]
        journal.delivered([(BOOT, 2), (BOOT, 6)])
        assert seqs(journal.next_history(10)) == [4, 5]
        assert until_empty_of(journal, 4) == 4
    with Journal(path) as journal:
        assert seqs(journal.next_history(10)) == [4, 5]
        assert journal.undelivered() == 4


def test_a_mark_counts_before_it_is_written(path: Path) -> None:
    """What has just been acknowledged must not be sent again because the disk is slow."""
    with Journal(path) as journal:
        for seq in (1, 2, 3):
            journal.decide(verdict(seq)).result(WAIT_S)
        journal.to_history([(BOOT, 1)])
        journal.accept(trigger(4)).result(WAIT_S)  # so the mark is on the disk
        with busy(journal):
            journal.to_history([(BOOT, 2)])
            assert seqs(journal.next_history(10)) == [1, 2]
            journal.delivered([(BOOT, 1), (BOOT, 3)])
            assert seqs(journal.next_history(10)) == [2]
            assert journal.undelivered() == 1
        assert seqs(journal.next_history(10)) == [2]


@pytest.mark.parametrize(("delivered", "waiting"), [(True, []), (False, [1])], ids=["delivered", "lost"])
def test_a_mark_may_come_before_its_verdict(path: Path, delivered: bool, waiting: list[int]) -> None:
    """At the deadline a verdict is published without waiting for the disk, and its PUBACK may be faster."""
    with Journal(path) as journal:
        (journal.delivered if delivered else journal.to_history)([(BOOT, 1)])
        journal.accept(trigger(2)).result(WAIT_S)  # so the mark is on the disk
        journal.accept(trigger(1))
        journal.decide(verdict(1)).result(WAIT_S)
        assert seqs(journal.next_history(10)) == waiting
        assert journal.undelivered() == len(waiting)


def test_a_full_disk_fails_the_batch_and_not_the_journal(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Futures say JournalError with a sentence, readers go on, and with space the next batch is written."""
    with Journal(path) as journal:
        journal.decide(verdict(1)).result(WAIT_S)
        connection = writing(journal)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with busy(journal):
            futures = [journal.decide(verdict(seq)) for seq in range(2, 2000)]
        for future in futures:
            with pytest.raises(JournalError, match=r"cannot be written .*full"):
                future.result(WAIT_S)
        journal.to_history([(BOOT, 1)])
        assert seqs(journal.next_history(10)) == [1]
        connection.execute("PRAGMA max_page_count = 100000")
        journal.decide(verdict(5000)).result(WAIT_S)
        assert journal.verdicts(1) == [verdict(5000)]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, [record.getMessage() for record in errors]
    with Journal(path) as journal:
        assert seqs(journal.next_history(10)) == [1]


def refuse(journal: Journal) -> sqlite3.Connection:
    """Let the disk be full for the writer; `PRAGMA max_page_count = 100000` ends it."""
    connection = writing(journal)
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
    return connection


def test_what_was_told_is_kept_for_a_disk_that_refuses_it(path: Path) -> None:
    """`overrules` says that it went out: its future fails, and it is written with its mark when there is room."""
    with Journal(path) as journal:
        journal.decide(verdict(1)).result(WAIT_S)
        connection = refuse(journal)
        with busy(journal):  # one large transaction, which does not fit
            futures = [journal.decide(verdict(seq), overrules=True) for seq in range(2, 1000)]
        for future in futures:
            with pytest.raises(JournalError, match="full"):
                future.result(WAIT_S)
        journal.delivered([(BOOT, seq) for seq in range(1, 900)])
        journal.to_history([(BOOT, seq) for seq in range(900, 1000)])
        assert journal.undelivered() == 100
        connection.execute("PRAGMA max_page_count = 100000")
        until(lambda: not journal._writer.pending)
        assert journal.undelivered() == 100
        assert seqs(journal.verdicts(2000)) == list(range(999, 0, -1))
        assert seqs(journal.next_history(1000)) == list(range(900, 1000))
        assert journal.lost == 0


def test_what_is_written_twice_is_no_late_result(path: Path) -> None:
    """Committed after all, and told again: the same verdict is not its own late one."""
    with Journal(path) as journal:
        journal.decide(verdict(1))
        journal.decide(verdict(1), overrules=True).result(WAIT_S)
        assert journal.verdicts() == [verdict(1)]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT late_result FROM parts").fetchall() == [(None,)]


def test_memory_for_a_disk_that_refuses_has_a_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The oldest verdicts are given up, with their marks, and counted; history pauses rather than being forgotten."""
    monkeypatch.setattr(pending_module, "MAX_OWED", 50)
    monkeypatch.setattr(pending_module, "MAX_MARKS", 100)
    with Journal(path) as journal:
        for seq in range(5001, 5011):
            journal.decide(verdict(seq))
        journal.to_history([(BOOT, seq) for seq in range(5001, 5011)])
        journal.decide(verdict(5011)).result(WAIT_S)
        connection = refuse(journal)
        with busy(journal):
            futures = [journal.decide(verdict(seq), overrules=True) for seq in range(1, 2001)]
        assert all(isinstance(future.exception(WAIT_S), JournalError) for future in futures)
        assert journal.lost == 1950
        assert seqs(journal.next_history(10)) == list(range(5001, 5011))
        journal.delivered([(BOOT, seq) for seq in range(1901, 2001)])
        assert len(journal._writer.pending.marks(1000)) == 100
        assert journal.next_history(10) == []
        journal.delivered([(BOOT, 5001), (BOOT, 5002)])
        assert caplog.text.count("further ones are forgotten") == 1
        connection.execute("PRAGMA max_page_count = 100000")
        until(lambda: not journal._writer.pending)
        assert journal.undelivered() == 11
        assert [v.seq for v in journal.verdicts(1000) if v.seq < 5000] == list(range(2000, 1950, -1))


def test_one_bad_operation_does_not_end_the_writer(path: Path) -> None:
    """A number too large for SQLite fails its own batch only."""
    with Journal(path) as journal:
        with pytest.raises(JournalError, match="cannot be written"):
            journal.decide(replace(verdict(1), recipe=1 << 70)).result(WAIT_S)
        journal.decide(verdict(1)).result(WAIT_S)
        assert seqs(journal.verdicts()) == [1]


def test_a_journal_that_is_gone_is_noticed(tmp_path: Path) -> None:
    """Writing on into a deleted file would look like success; while there is no folder, batches fail."""
    folder = tmp_path / "state"
    folder.mkdir()
    with Journal(folder / "journal.sqlite") as journal:
        journal.decide(verdict(1)).result(WAIT_S)
        moved = folder.rename(tmp_path / "elsewhere")
        with pytest.raises(JournalError):
            journal.decide(verdict(2)).result(WAIT_S)
        folder.mkdir()
        journal.decide(verdict(3)).result(WAIT_S)
        assert seqs(journal.verdicts()) == [3]
    with Journal(moved / "journal.sqlite") as journal:
        assert seqs(journal.verdicts()) == [1]


def test_leaving_writes_what_is_pending(path: Path) -> None:
    with Journal(path) as journal:
        futures = [journal.decide(verdict(seq)) for seq in range(1, 301)]
        journal.to_history([(BOOT, 300)])
    assert all(future.done() and future.exception() is None for future in futures)
    with Journal(path) as journal:
        assert seqs(journal.verdicts(1000)) == list(range(300, 0, -1))
        assert seqs(journal.next_history(10)) == [300]


def test_a_closed_journal_refuses(path: Path) -> None:
    journal = Journal(path)
    for _ in range(2):  # before it is opened, and after it is closed
        with pytest.raises(JournalError, match="not open"):
            journal.accept(trigger(1)).result(WAIT_S)
        with pytest.raises(JournalError, match="not open"):
            journal.verdicts()
        journal.delivered([(BOOT, 1)])
        with journal:
            assert journal.undelivered() == 0


def test_a_cancelled_operation_is_not_written(path: Path) -> None:
    with Journal(path) as journal:
        with busy(journal):
            assert journal.decide(verdict(2)).cancel()
        journal.decide(verdict(3)).result(WAIT_S)
        assert seqs(journal.verdicts()) == [3]


def test_numbers_that_are_not_finite_are_refused(path: Path) -> None:
    with Journal(path) as journal:
        with pytest.raises(JournalError, match="not finite"):
            journal.decide(verdict(1, score=float("nan"))).result(WAIT_S)
        assert journal.verdicts() == []


def test_a_trigger_id_that_cannot_go_on_the_wire_is_refused() -> None:
    with pytest.raises(InputError, match="A-Za-z0-9"):
        replace(trigger(1), trigger='no"quotes')


def test_a_newer_schema_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(JournalError, match="schema 9"):
        Journal(path).__enter__()


@pytest.mark.parametrize("content", [b"not a database at all, " * 100, None], ids=["garbage", "folder missing"])
def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal.sqlite" if content else tmp_path / "missing" / "journal.sqlite"
    if content:
        path.write_bytes(content)
    with pytest.raises(JournalError, match="cannot be opened as a journal"):
        Journal(path).__enter__()


def test_many_threads_write_at_once(path: Path) -> None:
    with Journal(path) as journal:

        def work(first: int) -> None:
            for seq in range(first, first + 50):
                journal.accept(trigger(seq)).result(WAIT_S)
                journal.decide(verdict(seq)).result(WAIT_S)
                journal.delivered([(BOOT, seq)])

        threads = [threading.Thread(target=work, args=(1000 * number + 1,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert len(journal.verdicts(1000)) == 200
        assert until_empty_of(journal, 0) == 0


_WRITER = """
    import sys
    from pathlib import Path
    from flawline_edge.journal import Accepted, Journal
    from flawline_inspect.verdict import Reason, Result, Verdict

    boot, ok, none = "0001aaaa", Result.OK, Reason.NONE
    with Journal(Path(sys.argv[1])) as journal:
        for seq in range(1, 1_000_000):
            journal.accept(Accepted(boot, seq, "T", "", 1, "m", 1.0, 1.8e9)).result()
            print("accepted", seq, flush=True)
            if seq % 3:
                journal.decide(Verdict(seq, boot, "T", "", ok, none, 0.5, 1.0, 1, "m", 1.8e9, 1.0)).result()
                print("decided", seq, flush=True)
"""


def test_every_completed_future_survives_a_kill(path: Path) -> None:
    """kill -9 in the middle: what was reported as written is in the file, and recovery settles the rest."""
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_WRITER), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(60)]
    writer.send_signal(signal.SIGKILL)
    said += writer.stdout.readlines()
    writer.wait(WAIT_S)
    writer.stdout.close()
    complete = [line.split() for line in said if line.endswith("\n")]
    accepted = {int(seq) for word, seq in complete if word == "accepted"}
    decided = {int(seq) for word, seq in complete if word == "decided"}
    assert len(decided) >= 20
    with Journal(path) as journal:
        assert decided <= set(seqs(journal.verdicts(100_000)))
        restarted = journal.recover(NEXT)
        everything = journal.verdicts(100_000)
        assert accepted <= set(seqs(everything))
        assert restarted == sum(v.reason is Reason.RESTART for v in everything) >= len(accepted - decided) - 1
        assert seqs(journal.next_history(100_000)) == sorted(seqs(everything))


def test_the_deadline_overrules_what_was_committed_in_the_same_instant(path: Path) -> None:
    """The journal says what the PLC was told: the deadline's verdict, with the overtaken one as the late result."""
    told = replace(verdict(1), result=Result.UNDEFINED, reason=Reason.DEADLINE, score=0.0, ms=200.0)
    with Journal(path) as journal:
        journal.accept(trigger(1))
        journal.decide(verdict(1, score=1.83125))
        journal.decide(told, overrules=True).result(WAIT_S)
        assert journal.verdicts() == [told]
    with sqlite3.connect(path) as connection:
        late = connection.execute("SELECT late_result, late_score FROM parts").fetchall()
    connection.close()
    assert late == [(2, 1.83125)]


def test_each_start_has_a_new_name(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    names = [next_boot(state_dir) for _ in range(3)]
    assert [name[:4] for name in names] == ["0001", "0002", "0003"]
    assert all(len(name) == 8 and set(name) <= set("0123456789abcdef") for name in names)
    assert len({name[4:] for name in names}) > 1


@pytest.mark.parametrize(
    ("stored", "count"),
    [("ffff\n", "0000"), ("garbage", "0001"), ("", "0001")],
    ids=["wraps", "garbage", "empty"],
)
def test_a_counter_that_ends_or_is_damaged_starts_again(tmp_path: Path, stored: str, count: str) -> None:
    (tmp_path / "boot").write_text(stored, encoding="ascii")
    assert next_boot(tmp_path)[:4] == count


def test_a_counter_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    with pytest.raises(JournalError, match="writable state_dir"):
        next_boot(tmp_path)
