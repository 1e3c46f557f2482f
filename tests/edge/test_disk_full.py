"""A disk that is full, and has room again: a real one of 4 MB. Nothing that was said is lost, and nobody has to help."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest
from tests.edge.publishers import until, verdict
from tests.edge.small_disk import SmallDisk, small_disk
from tests.edge.stand_ins import OK_LEVEL, LiveCamera, Wire, config, running, wait_until, wire

from flawline_edge.journal import Accepted, Journal, JournalError
from flawline_edge.station import Station

__all__ = ["small_disk", "wire"]  # the fixtures

pytestmark = pytest.mark.timeout(60)

BOOT = "001f9c21"
WAIT_S = 10.0


def rows(path: Path, columns: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM parts ORDER BY id").fetchall()


def accepted(seq: int) -> Accepted:
    return Accepted(BOOT, seq, f"T-{seq}", "SN1", 2, "bottle-3f9a1c2e", 1.21, 1.8e9)


def test_what_went_out_is_written_when_there_is_room_again(small_disk: SmallDisk) -> None:
    """Refused in milliseconds, kept in memory, and on the disk by itself a second after the disk is back."""
    path = small_disk.folder / "journal.sqlite"
    with Journal(path) as journal:
        journal.recover(BOOT)
        for seq in (1, 2):
            journal.accept(accepted(seq)).result(WAIT_S)
        journal.decide(verdict(1)).result(WAIT_S)
        small_disk.fill()
        began = time.monotonic()
        refused = 0
        for seq in range(2, 60):
            with contextlib.suppress(JournalError):
                journal.decide(verdict(seq)).result(WAIT_S)
                continue
            refused += 1
            with pytest.raises(JournalError, match=r"full|disk I/O error"):
                journal.decide(verdict(seq), overrules=True).result(WAIT_S)
        assert refused > 40
        assert time.monotonic() - began < 5.0
        journal.delivered([(BOOT, seq) for seq in range(1, 40)])
        assert "check the disk's space" in journal.trouble
        assert journal.undelivered() == 20  # reading goes on, and knows what is only in memory
        small_disk.free()
        until(lambda: not journal._writer.pending)
        assert journal.trouble == ""
        assert journal.undelivered() == 20
        assert [each.seq for each in journal.verdicts(100)] == list(range(59, 0, -1))
        journal.decide(verdict(60)).result(WAIT_S)
    assert rows(path, "seq, result, late_result, delivered") == [(seq, 2, None, int(seq < 40)) for seq in range(1, 61)]


def test_without_anybody_asking_the_log_says_it_twice(small_disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    """Once when it begins and once when it is over."""
    with Journal(small_disk.folder / "journal.sqlite") as journal:
        journal.decide(verdict(1)).result(WAIT_S)
        small_disk.fill()
        for seq in range(2, 60):
            with contextlib.suppress(JournalError):
                journal.decide(verdict(seq), overrules=True).result(WAIT_S)
        small_disk.free()
        until(lambda: not journal._writer.pending)
    said = [record.getMessage() for record in caplog.records if "journal.sqlite" in record.getMessage()]
    assert len(said) == 2 and "cannot be written" in said[0] and "can be written again" in said[1]


@pytest.mark.parametrize("policy", ["best_effort", "required"])
def test_a_station_whose_disk_is_full_for_a_while(
    tmp_path: Path, small_disk: SmallDisk, wire: Wire, policy: str
) -> None:
    """best_effort: verdicts go on; required: 0 `journal`. Both: alarm, counted, over by itself, and the file tells what was told."""
    settings = config(tmp_path, state_dir=str(small_disk.folder / "state"), trigger={"kind": "mqtt"}, journal=policy)
    made = Station(settings, camera=LiveCamera([OK_LEVEL] * 100_000))

    def ask(first: int, last: int) -> None:
        for n in range(first, last + 1):
            wire.trigger(f"T-{n}")
            wait_until(lambda n=n: len(wire.told) == n, "the verdict")  # type: ignore[misc]

    with running(made, wire):
        ask(1, 3)
        small_disk.fill()
        n = 3
        while not made.counts.unjournaled and n < 100:  # the log file has some room that it had before
            n += 1
            ask(n, n)
        first_refused = n
        ask(n + 1, n + 5)
        assert made.counts.unjournaled == 6
        assert [alarm[1:3] for alarm in wire.alarms] == [("journal", True)]
        expected = (1, "") if policy == "best_effort" else (0, "journal")
        assert [(int(v.result), v.reason.value) for v in wire.told[first_refused - 1 :]] == [expected] * 6
        if policy == "required":
            assert wire.ack(f"T-{n + 5}")["error"] == "journal"
        small_disk.free()
        ask(n + 6, n + 10)
        assert [(int(v.result), v.reason.value) for v in wire.told[n + 5 :]] == [(1, "")] * 5
        assert [alarm[1:3] for alarm in wire.alarms] == [("journal", True), ("journal", False)]
        assert made.counts.unjournaled == 6
    written = rows(small_disk.folder / "state" / "journal.sqlite", "seq, trigger, result, reason, delivered")
    assert written == [(v.seq, v.trigger, int(v.result), v.reason.value, 1) for v in wire.told]
