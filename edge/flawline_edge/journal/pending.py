"""What must reach the disk and can wait for it: acknowledgements, diversions to history, and verdicts that were
published although the disk refused them. All of it survives a full disk in memory, within a bound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from flawline_edge.journal.rows import Key
from flawline_inspect.verdict import Verdict

__all__ = ["Pending"]

_log = logging.getLogger(__name__)

MAX_OWED = 10_000
"""Verdicts that are kept for a disk that refuses them: some megabytes, minutes of a fast line."""
MAX_MARKS = 50_000


class Pending:
    """Used from any thread."""

    def __init__(self) -> None:
        self.lost = 0
        """Verdicts that were published, refused by the disk and given up when more came."""
        self._lock = threading.Lock()
        # True: delivered, False: to history. They stay here until they are on the disk.
        self._marks: dict[Key, bool] = {}
        self._owed: dict[Key, Verdict] = {}
        self._dropping = False

    def __bool__(self) -> bool:
        return bool(self._marks or self._owed)

    @property
    def is_crowded(self) -> bool:
        """Whether so much waits that nothing more should be made to wait."""
        return len(self._marks) > MAX_MARKS // 2

    def mark(self, keys: Iterable[Key], *, delivered: bool) -> None:
        with self._lock:
            for key in keys:
                if key in self._marks or len(self._marks) < MAX_MARKS:
                    self._marks[key] = delivered or self._marks.get(key, False)
                elif not self._dropping:
                    self._dropping = True
                    _log.error(
                        "the journal has refused %d acknowledgements; further ones are forgotten and their verdicts"
                        " will be sent again on history",
                        MAX_MARKS,
                    )

    def owe(self, verdict: Verdict) -> None:
        """Keep a verdict that is out already; beyond `MAX_OWED` the oldest is lost, and counted."""
        with self._lock:
            self._owed[verdict.boot, verdict.seq] = verdict
            if len(self._owed) > MAX_OWED:
                oldest = next(iter(self._owed))
                del self._owed[oldest]
                self._marks.pop(oldest, None)
                self.lost += 1

    def marks(self, limit: int) -> dict[Key, bool]:
        with self._lock:
            return {key: self._marks[key] for key, _ in zip(self._marks, range(limit), strict=False)}

    def owed(self, limit: int) -> list[Verdict]:
        """The oldest."""
        with self._lock:
            return [verdict for verdict, _ in zip(self._owed.values(), range(limit), strict=False)]

    def written(self, marks: dict[Key, bool], owed: list[Verdict]) -> None:
        with self._lock:
            for key, delivered in marks.items():
                if self._marks.get(key) is delivered:
                    del self._marks[key]
            for verdict in owed:
                if self._owed.get((verdict.boot, verdict.seq)) is verdict:
                    del self._owed[verdict.boot, verdict.seq]
            self._dropping = self._dropping and bool(self._marks)

    def waiting(self) -> tuple[set[Key], set[Key], set[Key]]:
        """Keys that were delivered, that are for history, and whose verdicts are not on the disk at all."""
        with self._lock:
            settled = {key for key, delivered in self._marks.items() if delivered}
            return settled, self._marks.keys() - settled, set(self._owed)
