"""What could not be delivered live: sent on ROOT/history, oldest first and unhurried, and watched for growing too long.

On a thread of its own, as it reads the journal: a slow disk delays nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from flawline_edge.connection import Connection
from flawline_edge.journal import Journal, JournalError
from flawline_edge.messages import Messages

__all__ = ["History"]

_log = logging.getLogger(__name__)

INTERVAL_S = 0.02
"""One message in this time: at most 50 a second, so that live verdicts find the broker idle."""
OUTBOX_CHECK_S = 1.0

_POLL_S = 0.5
_PAGE = 50
_ALARM = "outbox"


class Station(Protocol):
    """What history needs of the publisher."""

    @property
    def connection(self) -> Connection | None: ...
    def alarm(self, name: str, active: bool, text: str = "") -> None: ...


class History:
    """`run` is for a thread, until `stop`; `journal` has been entered; `wake` says that there may be something to send.

    Alarm `outbox` is on while more than the journal's `alarm_after` verdicts wait, until half of that do, and from when
    undelivered ones were evicted for want of room until nothing waits any more.
    """

    def __init__(self, journal: Journal, messages: Messages, station: Station) -> None:
        self._journal = journal
        self._messages = messages
        self._station = station
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._watch_at = 0.0
        self._is_long = False
        self._given_up = journal.evicted.undelivered
        """How many had been evicted undelivered when last nothing waited."""

    def wake(self) -> None:
        self._due.set()

    def stop(self) -> None:
        self._stopping.set()
        self._due.set()

    def run(self) -> None:
        failing = False
        self._station.alarm(_ALARM, False)  # a crash may have left it on
        while not self._stopping.is_set():
            self._due.wait(_POLL_S)
            self._due.clear()
            try:
                self._watch()
                while self._send_page():
                    self._watch()
                failing = False
            except Exception as exc:
                if not failing:
                    _log.error("history cannot be sent: %s", exc, exc_info=not isinstance(exc, JournalError))
                failing = True
                self._stopping.wait(_POLL_S)

    def _watch(self) -> None:
        if time.monotonic() < self._watch_at:
            return
        self._watch_at = time.monotonic() + OUTBOX_CHECK_S
        waiting, given_up = self._journal.undelivered(), self._journal.evicted.undelivered
        if waiting == 0:
            self._given_up = given_up
        limit = self._journal.bounds.alarm_after
        self._is_long = waiting > (limit / 2 if self._is_long else limit)
        # No counts in the text: each new one would be another message.
        if given_up > self._given_up:
            text = "the journal is full and undelivered verdicts are being given up, the oldest first; check the broker"
        elif self._is_long:
            text = f"more than {limit} verdicts wait for the broker; check it and the network"
        else:
            text = ""
        self._station.alarm(_ALARM, bool(text), text)

    def _send_page(self) -> bool:
        """Returns whether there may be more."""
        connection = self._station.connection
        if connection is None:
            return False
        # Taken before the journal is read: what is acknowledged in between must not look new.
        sent = connection.history_keys()
        waiting = self._journal.next_history(len(sent) + _PAGE)
        fresh = [verdict for verdict in waiting if (verdict.boot, verdict.seq) not in sent]
        for verdict in fresh:
            while not connection.send(self._messages.history(verdict), limited=True):
                if connection.has_ended.is_set() or self._stopping.wait(INTERVAL_S):
                    return False
            if self._stopping.wait(INTERVAL_S):
                return False
        return bool(fresh)
