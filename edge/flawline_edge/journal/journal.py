"""The journal behind one object.

    with Journal(state_dir / "journal.sqlite") as journal:
        journal.recover(boot)
        journal.accept(trigger).result()      # now the trigger survives a power cut
        journal.decide(verdict)

SQLite in WAL mode with synchronous=FULL. A row is routed `live` until its message is known not to have reached the
broker in time; then, and after a restart, it is for history.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from flawline_edge.journal.bounds import Bounds, Evicted
from flawline_edge.journal.layout import SEQ_BITS, open_for_reading
from flawline_edge.journal.query import count_undelivered, read_history, read_newest
from flawline_edge.journal.rows import Accepted
from flawline_edge.journal.writer import Writer, failed, unusable
from flawline_inspect.verdict import Verdict

__all__ = ["Journal"]

_Answer = TypeVar("_Answer")


class Journal:
    """A context manager; every method may be called from any thread while it is entered.

    Futures fail with `JournalError` when their transaction could not be committed (disk full, file gone); the
    next transaction is tried as if nothing had happened. Their callbacks run on the writer's thread and must
    return quickly.
    """

    def __init__(self, path: Path, bounds: Bounds | None = None) -> None:
        self.path = path
        self.bounds = bounds or Bounds()
        self._writer = Writer(path, self.bounds)
        self._boot_number = 0
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._reader_generation = 0

    def __enter__(self) -> Journal:
        """Open the file, creating it where needed, and start the writer. Raises `JournalError`."""
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._reading:
            self._close_reader()  # before the writer's: the last one to leave moves the log into the file
            self._writer.close()
        self._writer.join()

    @property
    def commits(self) -> int:
        """Transactions of operations since it was opened; fewer than operations when they come in groups."""
        return self._writer.commits

    @property
    def trouble(self) -> str:
        """Why the disk refuses, one sentence; empty while it does not. It ends by itself, also while no part comes."""
        return self._writer.trouble

    @property
    def evicted(self) -> Evicted:
        """How many verdicts were deleted to keep the bounds, since the file was made."""
        return self._writer.evicted

    @property
    def lost(self) -> int:
        """Verdicts that went out and that the disk refused for so long that they were given up, since the start."""
        return self._writer.pending.lost

    def recover(self, boot: str) -> int:
        """Settle what earlier starts left open; `boot` is this start. Call it once, before the first
        `accept`.

        Accepted triggers without a verdict become Undefined `restart`; verdicts that were never acknowledged
        go to history. Returns how many got `restart`. Raises `JournalError`.
        """
        restarted: int
        self._boot_number, restarted = self._writer.submit(lambda rows: rows.recover(boot)).result()
        return restarted

    def accept(self, trigger: Accepted) -> Future[None]:
        """Record that a trigger was accepted; it is accepted once the future is done."""
        return self._writer.submit(lambda rows: rows.accept(trigger))

    def decide(self, verdict: Verdict, *, overrules: bool = False) -> Future[None]:
        """Record a verdict. The first one for a (boot, seq) stands; a second is kept beside it as the late
        result.

        `overrules` is for what the PLC has been told without waiting for the disk, at the deadline or because the disk
        refuses: it stands even where another one was committed in the same instant, and that one becomes the late result.
        If it cannot be written now, the future fails and it is written when the disk is back (10,000 of them are kept).
        The journal says what the PLC was told.
        """
        numbers = (verdict.score, verdict.threshold, verdict.captured, verdict.ms)
        if not all(map(math.isfinite, numbers)):
            return failed(f"verdict {verdict.boot}/{verdict.seq} has a number that is not finite: {numbers}")
        if overrules:
            return self._writer.submit(lambda rows: rows.overrule(verdict), kept=verdict)
        return self._writer.submit(lambda rows: rows.decide(verdict))

    def label(self, boot: str, seq: int, label: str, at: float) -> Future[bool]:
        """Record what somebody who looked at the part says of it, beside its verdict; a later word replaces it.

        `label` is `good` or the kind of defect, `at` wall clock. The future says whether there is such a verdict.
        """
        return self._writer.submit(lambda rows: rows.label(boot, seq, label, at))

    def delivered(self, keys: Iterable[tuple[str, int]]) -> None:
        """The broker has acknowledged these (boot, seq). Retried until it is written; nothing to wait for."""
        self._writer.mark(list(keys), delivered=True)

    def to_history(self, keys: Iterable[tuple[str, int]]) -> None:
        """These (boot, seq) could not be delivered live. Retried until it is written; nothing to wait for."""
        self._writer.mark(list(keys), delivered=False)

    def next_history(self, limit: int) -> list[Verdict]:
        """The oldest verdicts, at most `limit`, that wait for delivery on history. Raises `JournalError`.

        None while the disk has refused very many acknowledgements: more of them could not be remembered.
        """
        if self._writer.pending.is_crowded:
            return []
        settled, diverted, _ = self._writer.pending.waiting()
        floor = self._boot_number << SEQ_BITS
        return self._read(lambda connection: read_history(connection, settled, diverted, floor, limit))

    def undelivered(self) -> int:
        """How many verdicts no broker has acknowledged yet, live ones included. Raises `JournalError`."""
        settled, _, owed = self._writer.pending.waiting()
        return len(owed - settled) + self._read(lambda connection: count_undelivered(connection, settled | owed))

    def verdicts(self, limit: int = 100) -> list[Verdict]:
        """The newest verdicts, newest first. Raises `JournalError`."""
        return self._read(lambda connection: read_newest(connection, limit))

    def _read(self, look: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        with self._reading:
            try:
                if not self._writer.is_open:
                    raise sqlite3.ProgrammingError("the journal is not open")
                if self._reader is None or self._reader_generation != self._writer.generation:
                    self._close_reader()
                    self._reader_generation = self._writer.generation
                    # A connection of its own: in WAL mode a reader never waits for the writer's fsync.
                    self._reader = open_for_reading(self.path)
                return look(self._reader)
            except sqlite3.Error as exc:
                raise unusable(self.path, "read", exc) from exc

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
