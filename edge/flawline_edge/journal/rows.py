"""What is written for a part, statement by statement, inside transactions that the writer begins and ends."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from flawline_edge.journal.layout import SEQ_BITS, row_id
from flawline_inspect.errors import InputError
from flawline_inspect.verdict import Reason, Result, Verdict, is_wire_id

__all__ = ["VERDICT_COLUMNS", "Accepted", "Key", "Rows", "verdict_from_row"]

Key = tuple[str, int]
"""Boot and seq: what names a verdict."""

VERDICT_COLUMNS = "trigger, part, result, reason, score, threshold, recipe, model, captured, ms"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A trigger that the station has taken on; `accepted` is wall clock, seconds since the epoch.

    `camera` is empty where the station has one only. Raises `InputError` for ids that do not go on the wire.
    """

    boot: str
    seq: int
    trigger: str
    part: str
    recipe: int
    model: str
    threshold: float
    accepted: float
    camera: str = ""

    def __post_init__(self) -> None:
        if not is_wire_id(self.trigger) or (self.part and not is_wire_id(self.part)):
            raise InputError(
                f"trigger id {self.trigger!r} and part id {self.part!r} must be at most 16 of A-Za-z0-9._:-"
            )


class Rows:
    """The rows behind one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._numbers: dict[str, int] = {}

    def forget(self) -> None:
        """After a transaction was rolled back: a start's number may have gone with it."""
        self._numbers.clear()

    def boot_number(self, boot: str) -> int:
        """Starts are numbered in the order in which they first wrote something."""
        number = self._numbers.get(boot)
        if number is None:
            self.connection.execute("INSERT INTO boots (boot) VALUES (?) ON CONFLICT DO NOTHING", (boot,))
            number = self.connection.execute("SELECT number FROM boots WHERE boot = ?", (boot,)).fetchone()[0]
            self._numbers[boot] = number
        return number

    def recover(self, boot: str) -> tuple[int, int]:
        """Settle what earlier starts left without a verdict. Returns this start's number, and how many got `restart`."""
        number = self.boot_number(boot)
        restarted = self.connection.execute(
            "UPDATE records INDEXED BY undecided SET result = ?, reason = ?, score = 0.0, captured = accepted, ms = 0.0, history = 1"
            f" WHERE result IS NULL AND accepted IS NOT NULL AND id >> {SEQ_BITS} != ?",
            (int(Result.UNDEFINED), Reason.RESTART.value, number),
        ).rowcount
        # Marks whose verdict never reached the disk: nothing is left to deliver.
        self.connection.execute(
            f"DELETE FROM records INDEXED BY undecided WHERE result IS NULL AND id >> {SEQ_BITS} != ?", (number,)
        )
        return number, restarted

    def accept(self, trigger: Accepted) -> None:
        self.connection.execute(
            "INSERT INTO records (id, accepted, camera, trigger, part, recipe, model, threshold)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " accepted = excluded.accepted, camera = excluded.camera,"
            " trigger = coalesce(trigger, excluded.trigger),"
            " part = coalesce(part, excluded.part), recipe = coalesce(recipe, excluded.recipe),"
            " model = coalesce(model, excluded.model), threshold = coalesce(threshold, excluded.threshold)",
            (
                row_id(self.boot_number(trigger.boot), trigger.seq), trigger.accepted, trigger.camera, trigger.trigger,
                trigger.part, trigger.recipe, trigger.model, trigger.threshold,
            ),
        )  # fmt: skip

    def decide(self, verdict: Verdict) -> None:
        """The first verdict stands; a second is kept beside it as the late one, a third is dropped."""
        number = row_id(self.boot_number(verdict.boot), verdict.seq)
        decided = self.connection.execute(
            f"INSERT INTO records (id, {VERDICT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET trigger = excluded.trigger, part = excluded.part,"
            " result = excluded.result, reason = excluded.reason, score = excluded.score,"
            " threshold = excluded.threshold, recipe = excluded.recipe, model = excluded.model,"
            " captured = excluded.captured, ms = excluded.ms WHERE records.result IS NULL",
            (
                number, verdict.trigger, verdict.part, int(verdict.result), verdict.reason.value, verdict.score,
                verdict.threshold, verdict.recipe, verdict.model, verdict.captured, verdict.ms,
            ),
        )  # fmt: skip
        if decided.rowcount == 0:
            self.connection.execute(
                "UPDATE records SET late_result = ?, late_score = ?, late_ms = ? WHERE id = ? AND late_result IS NULL",
                (int(verdict.result), verdict.score, verdict.ms, number),
            )

    def overrule(self, verdict: Verdict) -> None:
        """This verdict stands, and another one that was there before becomes the late one."""
        number = row_id(self.boot_number(verdict.boot), verdict.seq)
        standing = self.connection.execute("SELECT result, reason, ms FROM records WHERE id = ?", (number,)).fetchone()
        if standing == (int(verdict.result), verdict.reason.value, verdict.ms):
            return  # written already
        self.connection.execute(
            "UPDATE records SET late_result = result, late_score = score, late_ms = ms, result = NULL"
            " WHERE id = ? AND result IS NOT NULL",
            (number,),
        )
        self.decide(verdict)

    def label(self, boot: str, seq: int, label: str, at: float) -> bool:
        """Keep a word beside a verdict; False where there is no such verdict."""
        # Its own table, made when it is needed first: journals of before have none.
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS labels"
            " (boot TEXT NOT NULL, seq INTEGER NOT NULL, label TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (boot, seq))"
        )
        found = self.connection.execute("SELECT number FROM boots WHERE boot = ?", (boot,)).fetchone()
        if found is None or seq >> SEQ_BITS:
            return False
        query = "SELECT 1 FROM records WHERE id = ? AND result IS NOT NULL"
        if self.connection.execute(query, (row_id(found[0], seq),)).fetchone() is None:
            return False
        self.connection.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)", (boot, seq, label, at))
        return True

    def mark(self, key: Key, *, delivered: bool) -> None:
        """Acknowledged, or else for history. The row may come later: the deadline's verdict does not wait for the disk."""
        column = "delivered" if delivered else "history"
        self.connection.execute(
            f"INSERT INTO records (id, {column}) VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET {column} = 1",
            (row_id(self.boot_number(key[0]), key[1]),),
        )

    def evict(self, *, older_than: float | None, limit: int) -> tuple[int, int]:
        """Delete the oldest rows, at most `limit`. Returns how many delivered and how many undelivered ones.

        With `older_than` (seconds since the epoch) only what was delivered and captured before it; without, to make
        room, whatever is oldest: but nothing undelivered while anything delivered is left.
        """
        delivered = True
        oldest = self._oldest(limit, delivered=True)
        if older_than is not None:
            oldest = [(row, captured) for row, captured in oldest if captured < older_than]
        elif not oldest:
            delivered, oldest = False, self._oldest(limit, delivered=False)
        if not oldest:
            return 0, 0
        self.connection.executemany("DELETE FROM records WHERE id = ?", [(row,) for row, _ in oldest])
        if self.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'labels'").fetchone():
            self.connection.executemany(
                "DELETE FROM labels WHERE boot = (SELECT boot FROM boots WHERE number = ?) AND seq = ?",
                [(row >> SEQ_BITS, row & ((1 << SEQ_BITS) - 1)) for row, _ in oldest],
            )
        evicted = (len(oldest), 0) if delivered else (0, len(oldest))
        self.connection.execute("UPDATE evicted SET delivered = delivered + ?, undelivered = undelivered + ?", evicted)
        return evicted

    def _oldest(self, limit: int, *, delivered: bool) -> list[tuple[int, float]]:
        return self.connection.execute(
            "SELECT id, captured FROM records INDEXED BY by_delivery"
            " WHERE delivered = ? AND result IS NOT NULL ORDER BY id LIMIT ?",
            (int(delivered), limit),
        ).fetchall()


def verdict_from_row(boot: str, number: int, row: tuple[Any, ...]) -> Verdict:
    """`row` holds `VERDICT_COLUMNS`."""
    trigger, part, result, reason, score, threshold, recipe, model, captured, ms = row
    return Verdict(
        seq=number & ((1 << SEQ_BITS) - 1),
        boot=boot,
        trigger=trigger,
        part=part,
        result=Result(result),
        reason=Reason(reason),
        score=score,
        threshold=threshold,
        recipe=recipe,
        model=model,
        captured=captured,
        ms=ms,
    )
