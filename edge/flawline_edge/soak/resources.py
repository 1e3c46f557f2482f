"""What a running station takes of its machine, its capture processes included, and whether that grows. Linux only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import NamedTuple

from flawline_edge.journal import JOURNAL_FILE
from flawline_edge.journal.layout import open_for_reading
from flawline_edge.journal.query import count_undelivered

__all__ = ["ALLOWED", "Growth", "Sample", "family", "growths", "sample"]

ALLOWED = 0.02
"""How much any of them may grow: 2 %."""
_IN_FLIGHT = 20
"""Verdicts that are under way to the broker at any time are not a backlog."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sample:
    """`at` is monotonic, s; `memory_mib` is resident, shared pages counted in each process that has them."""

    at: float
    memory_mib: float
    handles: int
    threads: int
    undelivered: int


class Growth(NamedTuple):
    """One resource over time: its median early and late, and whether that is more than it may."""

    name: str
    before: float
    after: float
    is_too_much: bool

    @property
    def share(self) -> float:
        """0.02 is 2 %."""
        return (self.after - self.before) / self.before if self.before else float(self.after > 0)


def family(pid: int) -> list[int]:
    """A process and all that came from it and still live; empty when it is gone."""
    if not Path(f"/proc/{pid}").exists():
        return []
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += [int(word) for word in (task / "children").read_text().split()]
    return found


def sample(pid: int, state_dir: Path) -> Sample | None:
    """A station as it is now, by its main process; None when it is gone."""
    memory = handles = threads = 0
    found = False
    for each in family(pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            memory += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE
            handles += len(os.listdir(f"/proc/{each}/fd"))  # noqa: PTH208  # nothing of them but their number
            threads += len(os.listdir(f"/proc/{each}/task"))  # noqa: PTH208
            found = True
    return Sample(time.monotonic(), memory / 2**20, handles, threads, undelivered(state_dir)) if found else None


def undelivered(state_dir: Path) -> int:
    """How many verdicts in the journal no broker has acknowledged. Raises `JournalError`."""
    with contextlib.closing(open_for_reading(state_dir / JOURNAL_FILE)) as connection:
        try:
            return count_undelivered(connection, set())
        except sqlite3.OperationalError:  # the station is writing the file anew
            return 0


def growths(samples: Sequence[Sample], warm_up_s: float) -> list[Growth]:
    """Of each resource, from the first quarter after the warm-up to the last; medians, as single samples tremble.

    Empty where fewer than 4 samples are left.
    """
    kept = [each for each in samples if each.at >= samples[0].at + warm_up_s] if samples else []
    quarter = len(kept) // 4
    if quarter == 0:
        return []
    found = []
    early, late = (list(zip(*map(astuple, part), strict=True)) for part in (kept[:quarter], kept[-quarter:]))
    for field, before_all, after_all in zip(fields(Sample), early, late, strict=True):
        if field.name == "at":
            continue
        before, after = median(before_all), median(after_all)
        free = _IN_FLIGHT if field.name == "undelivered" else 0
        found.append(Growth(field.name, before, after, after > max(before * (1 + ALLOWED), free)))
    return found
