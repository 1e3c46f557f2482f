"""What the journal costs with a million verdicts in it: size, start, queries, commits, and commits while it evicts.

    python -m benchmarks.journal
    python -m benchmarks.journal --verdicts 100000 --seconds 5 --folder /var/tmp

Started at the repository's root. It fills a journal the way a station does (accept, decide, delivered), faster than any
line. Figures are for this machine and this disk; name a folder on the disk that the station will use.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from cyclopts import App
from rich.console import Console
from rich.table import Table

from flawline_edge.journal import Accepted, Bounds, Journal, Query, read_records
from flawline_edge.journal.layout import open_for_reading
from flawline_inspect.verdict import Reason, Result, Verdict

FIRST = 1_790_000_000.0
"""When the first part came, seconds since the epoch."""
RATE = 20.0
"""Parts a second, as far as their times of capture go."""
STARTS = 10
AT_ONCE = 1000
MODEL = "bottle-cap-3f9a1c2e"
UNDELIVERED_SHARE = 0.1
"""Of the newest verdicts, as after an outage."""
REPEATS = 7
COMMIT_RATE = 20.0

_T = TypeVar("_T")

app = App(name="python -m benchmarks.journal", help=__doc__, help_format="markdown")


class Parts:
    """Reproducible parts with ids as long as the wire allows; the part ids are in no order, the worst for an index."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._random = random.Random(0)
        self.ids: list[str] = []

    def __iter__(self) -> Iterator[tuple[Accepted, Verdict]]:
        each_start = -(-self.count // STARTS)
        for n in range(self.count):
            boot, seq = f"{n // each_start + 1:04x}beef", n % each_start + 1
            captured = FIRST + n / RATE
            part = f"SN{self._random.getrandbits(56):014X}"
            if n % (self.count // 100) == 0:
                self.ids.append(part)
            trigger = f"T-{n:014d}"
            result, reason, score = self._outcome(n)
            yield (
                Accepted(boot, seq, trigger, part, 2, MODEL, 1.2101, captured - 0.03),
                Verdict(
                    seq, boot, trigger, part, result, reason, score, 1.2101, 2, MODEL, captured,
                    self._random.uniform(5, 20),
                ),
            )  # fmt: skip

    def _outcome(self, n: int) -> tuple[Result, Reason, float]:
        if n % (self.count // 10) == 5:
            return Result.UNDEFINED, Reason.OVERRUN, 0.0  # ten of them
        dice = self._random.random()
        if dice < 0.005:
            return Result.UNDEFINED, Reason.DEADLINE, 0.0
        if dice < 0.01:
            return Result.NOT_DECIDABLE, Reason.HEALTH, self._random.uniform(0.5, 1.5)
        if dice < 0.03:
            return Result.NOT_OK, Reason.NONE, self._random.uniform(1.3, 9.0)
        return Result.OK, Reason.NONE, self._random.uniform(0.3, 1.2)


@app.default
def measure(*, verdicts: int = 1_000_000, seconds: float = 30.0, folder: Path = Path("/var/tmp")) -> None:
    """Fill a journal and measure it.

    Parameters
    ----------
    verdicts
        How many to fill it with.
    seconds
        How long commits are measured, each time.
    folder
        Where the journal is made, and removed in the end.
    """
    table = Table(title=f"a journal of {verdicts:,} verdicts · {platform.machine()}, {os.cpu_count()} cores")
    table.add_column("what")
    table.add_column("figure", justify="right")
    with tempfile.TemporaryDirectory(prefix="flawline-journal-", dir=folder) as made:
        path = Path(made) / "journal.sqlite"
        parts = Parts(verdicts)
        began = time.monotonic()
        _fill(path, parts)
        took = time.monotonic() - began
        table.add_row("filled, with group commits", f"{verdicts / took:,.0f} verdicts/s")
        table.add_row(
            "file", f"{path.stat().st_size / 1e6:.0f} MB, {path.stat().st_size / verdicts:.0f} bytes a verdict"
        )
        table.add_section()
        for name, uncached in (("start: open and recover, nothing cached", True), ("the same again", False)):
            table.add_row(name, f"{_start_ms(path, uncached):.1f} ms")
        table.add_section()
        for name, (median, worst, rows, cold) in _queries(path, parts):
            table.add_row(f"query: {name}", f"{median:.1f} ms, worst {worst:.1f}, uncached {cold:.1f} ({rows} rows)")
        table.add_section()
        size = path.stat().st_size
        for name, max_bytes in (
            ("commit, 20 parts a second", 10 * size),
            ("the same, at the bound: as many go as come", round(size / 0.97)),
            ("the same, with the bound lowered to half", size // 2),
        ):
            latencies, fsyncs, evicted = _commits(path, Bounds(max_bytes=max_bytes), seconds)
            table.add_row(name, _spread(latencies))
            table.add_row("  one fsync of this disk meanwhile", _spread(fsyncs))
            table.add_row("  evicted meanwhile", f"{evicted / seconds:,.0f} verdicts/s")
    Console(width=120).print(table)


def _fill(path: Path, parts: Parts) -> None:
    keys: list[tuple[str, int]] = []
    waiting: list[Future[None]] = []
    delivered_until = round(parts.count * (1 - UNDELIVERED_SHARE))
    with Journal(path) as journal:
        for n, (accepted, verdict) in enumerate(parts):
            journal.accept(accepted)
            waiting.append(journal.decide(verdict))
            if n < delivered_until:
                keys.append((verdict.boot, verdict.seq))
            if len(waiting) == AT_ONCE:
                for future in waiting:
                    future.result()
                journal.delivered(keys)
                waiting, keys = [], []
        for future in waiting:
            future.result()
        journal.delivered(keys)


def _start_ms(path: Path, cold: bool) -> float:
    if cold:
        _forget(path)
    began = time.monotonic()
    with Journal(path) as journal:
        journal.recover("0fffbeef")
        journal.undelivered()
        return 1e3 * (time.monotonic() - began)


def _queries(path: Path, parts: Parts) -> Iterator[tuple[str, tuple[float, float, int, float]]]:
    last = FIRST + parts.count / RATE
    rejects = (Result.UNDEFINED, Result.NOT_OK, Result.NOT_DECIDABLE)
    asked = {
        "the newest 100": Query(),
        "--since 2h": Query(since=last - 7200),
        "--since 2h, in the middle": Query(since=FIRST, until=FIRST + (last - FIRST) / 2),
        "--result NotOK": Query(results=(Result.NOT_OK,)),
        "--result NotOK --since 2h": Query(results=(Result.NOT_OK,), since=last - 7200),
        "--result reject (0, 2 and 3)": Query(results=rejects),
        "--reason overrun (10 in all)": Query(reason=Reason.OVERRUN),
        "--reason recipe (none)": Query(reason=Reason.RECIPE),
        "--trigger": Query(trigger=f"T-{parts.count // 3:014d}"),
        "--part": Query(part=parts.ids[50]),
        "--part --result NotOK (none)": Query(part=parts.ids[51], results=(Result.NOT_DECIDABLE,)),
        "--camera (none)": Query(camera="side"),
    }
    for name, query in asked.items():
        _forget(path)
        cold, rows = _timed(partial(_ask, path, query))
        warm = [_timed(partial(_ask, path, query))[0] for _ in range(REPEATS)]
        yield name, (statistics.median(warm), max(warm), rows, cold)


def _ask(path: Path, query: Query) -> int:
    """As `flawline verdicts` does: a connection of its own, the newest 100."""
    with closing(open_for_reading(path)) as connection:
        return sum(1 for _ in read_records(connection, query, 100))


def _commits(path: Path, bounds: Bounds, seconds: float) -> tuple[list[float], list[float], int]:
    """Milliseconds that a decided verdict waits for the disk, with the trigger accepted just before.

    And what a page that is appended to a file and synced takes on this disk, in turn with the verdicts: a disk that is busy
    with something else shows in both. Last, how many verdicts were evicted.
    """
    latencies, fsyncs = [], []
    boot = os.urandom(4).hex()
    with Journal(path, bounds) as journal, path.with_name("page").open("ab", buffering=0) as file:
        journal.recover(boot)
        before = journal.evicted
        due = time.monotonic() + 1.5  # the first look at the bounds has been by then
        for seq in range(1, round(seconds * COMMIT_RATE) + 1):
            time.sleep(max(0.0, due - time.monotonic()))
            accepted = Accepted(boot, seq, f"T{seq}", f"SN{seq}", 2, MODEL, 1.2101, FIRST)
            verdict = Verdict(
                seq, boot, f"T{seq}", f"SN{seq}", Result.OK, Reason.NONE, 0.5, 1.2101, 2, MODEL, FIRST, 7.4
            )
            journal.accept(accepted).result()
            began = time.monotonic()
            journal.decide(verdict).result()
            latencies.append(1e3 * (time.monotonic() - began))
            journal.delivered([(boot, seq)])
            time.sleep(max(0.0, due + 0.5 / COMMIT_RATE - time.monotonic()))
            began = time.monotonic()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            fsyncs.append(1e3 * (time.monotonic() - began))
            due += 1 / COMMIT_RATE
        after = journal.evicted
    return latencies, fsyncs, after.delivered + after.undelivered - before.delivered - before.undelivered


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    began = time.monotonic()
    result = work()
    return 1e3 * (time.monotonic() - began), result


def _spread(milliseconds: list[float]) -> str:
    ordered = sorted(milliseconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"median {statistics.median(ordered):.2f} ms, p99 {p99:.2f}, worst {ordered[-1]:.2f} (n = {len(ordered)})"


def _forget(path: Path) -> None:
    """Out of the page cache, as after a boot of the machine."""
    for file in path.parent.iterdir():
        with _descriptor(file) as descriptor:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _descriptor(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    app()
