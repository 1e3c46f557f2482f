"""A station as a program: it ends on SIGTERM and Ctrl-C, between two parts, and reads its file again on SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["call_on_hangup", "stop_on_signals"]


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first Ctrl-C set; a second Ctrl-C interrupts (exit code 130)."""
    stop = threading.Event()

    stopping = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if number == signal.SIGINT and stopping:
            raise KeyboardInterrupt
        stopping = True
        # Not here: the handler runs in the middle of whatever the main thread does, also of `stop.wait`, whose lock
        # `set` would wait for, for ever.
        threading.Thread(target=stop.set, name="stop", daemon=True).start()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def call_on_hangup(reload: Callable[[], None]) -> Iterator[None]:
    """SIGHUP calls `reload`, on a thread: the handler runs in the middle of whatever the main thread does."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=reload, name="reload", daemon=True).start()

    previous = signal.signal(signal.SIGHUP, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)
