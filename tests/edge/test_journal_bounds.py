"""The journal stays within its bounds: the oldest go first, undelivered ones last, and no commit waits for it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.edge.publishers import until

from flawline_edge.journal import Accepted, Bounds, Evicted, Journal, Query, read_records
from flawline_edge.journal import bounds as bounds_module
from flawline_edge.journal import layout as layout_module
from flawline_edge.journal.layout import open_for_reading
from flawline_inspect.clock import wall_clock
from flawline_inspect.config import parse_config
from flawline_inspect.verdict import Reason, Result, Verdict

pytestmark = pytest.mark.timeout(60)

BOOT = "0001aaaa"
WAIT_S = 10.0
SMALL = 400_000
FOR_EVER = Bounds(max_bytes=1 << 40, max_age_s=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds_module, "_STEP_PAUSE_S", 0.0)
    monkeypatch.setattr(bounds_module, "_REST", 0.0)
    monkeypatch.setattr(bounds_module, "_ROOM_CHECK_S", 0.05)
    monkeypatch.setattr(bounds_module, "_SPARE_PAGES", 8)
    monkeypatch.setattr(bounds_module, "_ROWS", 100)


def verdict(seq: int, captured: float | None = None, boot: str = BOOT) -> Verdict:
    return Verdict(
        seq, boot, f"T-{seq}", f"SN{seq}", Result.OK, Reason.NONE, 0.5, 1.2101, 2, "bottle-3f9a1c2e",
        1.8e9 + seq if captured is None else captured, 7.4,
    )  # fmt: skip


def fill(journal: Journal, first: int, last: int, *, delivered: bool, captured: float | None = None) -> None:
    """Parts as a station makes them, in groups that share a commit."""
    for start in range(first, last + 1, 500):
        these = range(start, min(start + 500, last + 1))
        for seq in these:
            journal.accept(Accepted(BOOT, seq, f"T-{seq}", f"SN{seq}", 2, "bottle-3f9a1c2e", 1.2101, 1.8e9 + seq))
        futures = [journal.decide(verdict(seq, captured)) for seq in these]
        for future in futures:
            future.result(WAIT_S)
        if delivered:
            journal.delivered([(BOOT, seq) for seq in these])
    until(lambda: not journal._writer.pending)


def kept(path: Path) -> list[int]:
    """The seqs in the file, in order."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [seq for (seq,) in connection.execute("SELECT seq FROM parts ORDER BY id")]


def settled(journal: Journal) -> Evicted:
    """What was evicted, once nothing more is: the next look at the bounds is far away then."""
    until(lambda: journal._writer._tidying.due > time.monotonic() + 10, 20.0)
    return journal.evicted


def test_the_oldest_go_first_and_the_file_stays_bounded(path: Path) -> None:
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        for first in range(1, 8001, 1000):
            fill(journal, first, first + 999, delivered=True)
            settled(journal)
        evicted = settled(journal)
        assert evicted.delivered > 4000 and evicted.undelivered == 0
        assert journal.verdicts(1) == [verdict(8000)]
    assert path.stat().st_size <= SMALL
    assert kept(path) == list(range(evicted.delivered + 1, 8001))


def test_undelivered_verdicts_go_last(path: Path) -> None:
    """Old ones that no broker has taken outlive young ones that one has; only when nothing else is left do they go."""
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        fill(journal, 1, 400, delivered=False)
        fill(journal, 401, 3000, delivered=True)
        evicted = settled(journal)
        assert evicted.delivered > 500 and evicted.undelivered == 0
        assert journal.undelivered() == 400
        fill(journal, 3001, 6000, delivered=False)
        evicted = settled(journal)
        assert evicted.delivered == 2600
        assert evicted.undelivered > 500
        lost = evicted.undelivered
        assert journal.undelivered() == 3400 - lost
        assert [each.seq for each in journal.next_history(1)] == []  # all of this start: none is for history yet
    assert kept(path) == [*range(1, 401), *range(3001, 6001)][lost:]
    assert path.stat().st_size <= SMALL


def test_what_was_evicted_is_counted_for_good(path: Path) -> None:
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        fill(journal, 1, 3000, delivered=True)
        first = settled(journal)
    with Journal(path, FOR_EVER) as journal:
        assert journal.evicted == first != Evicted()


def test_a_label_goes_with_its_verdict(path: Path) -> None:
    """Or labels of verdicts that are gone would fill the journal; those of the verdicts that stay, stay."""
    now, day = wall_clock(), 86400.0
    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 50, delivered=True, captured=now - 31 * day)
        fill(journal, 51, 60, delivered=True, captured=now)
        assert all(journal.label(BOOT, seq, "scratch", now).result(WAIT_S) for seq in range(1, 61))
    with Journal(path, Bounds(max_bytes=1 << 40, max_age_s=30 * day)) as journal:
        assert settled(journal) == Evicted(50, 0)
    assert kept(path) == list(range(51, 61))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [seq for (seq,) in connection.execute("SELECT seq FROM labels ORDER BY seq")] == list(range(51, 61))


def test_age_takes_what_was_delivered(path: Path) -> None:
    """Young ones stay, and undelivered ones whatever their age: somebody still waits for them."""
    now, day = wall_clock(), 86400.0
    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 40, delivered=True, captured=now - 31 * day)
        fill(journal, 41, 50, delivered=False, captured=now - 40 * day)
        fill(journal, 51, 60, delivered=True, captured=now - 29 * day)
    with Journal(path, Bounds(max_bytes=1 << 40, max_age_s=30 * day)) as journal:
        assert settled(journal) == Evicted(40, 0)
    assert kept(path) == list(range(41, 61))


def test_without_bounds_nothing_goes(path: Path) -> None:
    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 2000, delivered=True, captured=0.0)
        assert settled(journal) == Evicted()
    assert kept(path) == list(range(1, 2001))


def test_a_lower_bound_gives_the_disk_its_room_back(path: Path) -> None:
    """The file itself becomes smaller, a few pages at a time."""
    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 6000, delivered=True)
    before = path.stat().st_size
    assert before > 2 * SMALL
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        fill(journal, 6001, 6010, delivered=True)
        settled(journal)
        until(lambda: _file_bytes(journal) <= SMALL, 20.0)
    assert path.stat().st_size <= SMALL
    assert kept(path)[-10:] == list(range(6001, 6011))


def _file_bytes(journal: Journal) -> int:
    return journal._read(lambda connection: 4096 * int(connection.execute("PRAGMA page_count").fetchone()[0]))


def _used_bytes(journal: Journal) -> int:
    free = journal._read(lambda connection: int(connection.execute("PRAGMA freelist_count").fetchone()[0]))
    return _file_bytes(journal) - 4096 * free


def test_a_line_that_never_rests_is_bounded_too(path: Path) -> None:
    """Commits follow each other without a pause: near the bound eviction no longer waits for one."""
    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 2500, delivered=True)
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        seq, waiting = 2500, []
        enough = time.monotonic() + 20.0
        while _used_bytes(journal) > SMALL:
            assert time.monotonic() < enough
            while len(waiting) < 4:  # so many wait at any time that the writer is never idle
                seq += 1
                waiting.append(journal.decide(verdict(seq)))
            waiting.pop(0).result(WAIT_S)
        assert journal.evicted.delivered > 300


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound of the write-ahead log that a short test can reach, bytes."""
    monkeypatch.setattr(layout_module, "LOG_BYTES", 500_000)
    monkeypatch.setattr(bounds_module, "_LARGE_LOG_BYTES", 1_000_000)
    monkeypatch.setattr(bounds_module, "_COMMITS_A_CHECKPOINT", 10)
    return 2_000_000


def test_the_log_starts_again(path: Path, small_log: int) -> None:
    """Hundreds of commits without a pause, and eviction: the write-ahead log stays bounded."""
    log = path.with_name(f"{path.name}-wal")
    largest = 0
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        for seq in range(1, 301):
            journal.decide(verdict(seq)).result(WAIT_S)
            journal.delivered([(BOOT, seq)])
            largest = max(largest, log.stat().st_size)
    assert 0 < largest < small_log
    assert not log.exists()


def test_a_reader_that_stops_in_the_middle_does_not_hold_the_log(path: Path, small_log: int) -> None:
    """Pages are read one by one: between two of them the log can start again."""
    log = path.with_name(f"{path.name}-wal")
    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 1100, delivered=True)
        with contextlib.closing(open_for_reading(path)) as connection:
            records = read_records(connection, Query())
            assert [next(records).verdict.seq for _ in range(10)] == list(range(1, 11))
            largest = 0
            for seq in range(1101, 1401):
                journal.decide(verdict(seq)).result(WAIT_S)
                largest = max(largest, log.stat().st_size)
            assert largest < small_log
            assert [record.verdict.seq for record in records] == list(range(11, 1401))


def test_eviction_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        fill(journal, 1, 4000, delivered=False)
        settled(journal)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 1 and "the oldest are given up" in lines[0]


@pytest.mark.parametrize(
    ("written", "bounds"),
    [
        ("best_effort", Bounds(2_000_000_000, 90 * 86400, 1000)),
        ("required", Bounds(2_000_000_000, 90 * 86400, 1000)),
        ({"max_gb": 0.5, "days": None, "alarm_after": 7}, Bounds(500_000_000, None, 7)),
    ],
)
def test_bounds_come_from_the_configuration(tmp_path: Path, written: object, bounds: Bounds) -> None:
    tree = {
        "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
        "recipes": {1: "part.flawline"},
        "journal": written,
    }
    config = parse_config(tree, base=tmp_path)
    assert Bounds.of(config.journal) == bounds
    assert config.journal.policy == (written if isinstance(written, str) else "best_effort")


def test_commits_go_on_while_it_evicts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room to be made for thousands, a verdict's commit waits for one small step at the most."""
    steps: list[float] = []
    step: Callable[..., Evicted] = bounds_module.Tidying.step

    def timed(*arguments: object) -> Evicted:
        began = time.monotonic()
        try:
            return step(*arguments)
        finally:
            steps.append(time.monotonic() - began)

    with Journal(path, FOR_EVER) as journal:
        fill(journal, 1, 4000, delivered=True)
    monkeypatch.setattr(bounds_module.Tidying, "step", timed)
    monkeypatch.setattr(bounds_module, "_STEP_PAUSE_S", 0.01)
    monkeypatch.setattr(bounds_module, "_ROWS", 16)
    with Journal(path, Bounds(max_bytes=SMALL)) as journal:
        until(lambda: journal.evicted.delivered > 0)
        waits = []
        for seq in range(4001, 4061):
            began = time.monotonic()
            journal.decide(verdict(seq)).result(WAIT_S)
            waits.append(time.monotonic() - began)
            time.sleep(0.01)
        assert journal.evicted.delivered > 100
    assert sorted(waits)[30] < 0.05, (waits, steps)
