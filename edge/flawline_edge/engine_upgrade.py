"""A faster engine, made ready beside the one that serves.

Compiling for a GPU takes minutes, and a station that waited for it would be a line that stands. So it serves on what
works at once; a thread here has the plan built in a child process, opens the engine and proves it, and the inspection
takes it over between two parts, or is given it where several cameras share one. Nothing here can delay or lose a part.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from flawline_engines import Engine
from flawline_inspect.errors import FlawlineError

__all__ = ["EngineUpgrade"]

_log = logging.getLogger(__name__)

END_S = 10.0
"""How long leaving waits for a GPU that is just being opened or closed."""


class EngineUpgrade:
    """A context manager: `prepare` starts on entering, and what became of it is closed on leaving, unless it was taken.

    `prepare` gives the engine, not entered; it may take minutes and ends early, with any error, once its event is set.
    `prove` raises an `EngineError` for an engine that must not serve. Who does not `take` it passes `hand_over`, which lets
    the engine serve and returns the one before it, not in use any more; it raises only while that one still serves.
    """

    def __init__(
        self,
        prepare: Callable[[threading.Event], Engine],
        prove: Callable[[Engine], None],
        hand_over: Callable[[Engine], Engine] | None = None,
    ) -> None:
        self._prepare, self._prove, self._hand_over = prepare, prove, hand_over
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ready: Engine | None = None
        self._retiring: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="flawline-engine-upgrade", daemon=True)

    def __enter__(self) -> EngineUpgrade:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in (self._thread, *self._retiring):
            thread.join(END_S)
            if thread.is_alive():
                _log.warning("%s does not end; leaving it behind", thread.name)
        engine = self.take()
        if engine is not None:
            engine.__exit__(None, None, None)

    def retire(self, engine: Engine) -> None:
        """Close the engine that served until now, on a thread: freeing a large model takes longer than a part may wait."""
        thread = threading.Thread(
            target=engine.__exit__, args=(None, None, None), name="flawline-engine-retired", daemon=True
        )
        self._retiring.append(thread)
        thread.start()

    def take(self) -> Engine | None:
        """The engine, entered and proven, once; None as long as there is none. Never waits."""
        if self._ready is None:  # what is asked before every part takes no lock
            return None
        with self._lock:
            engine, self._ready = self._ready, None
        return engine

    def _run(self) -> None:
        try:
            engine = self._prepare(self._stop).__enter__()
            try:
                self._prove(engine)
                before = self._hand_over(engine) if self._hand_over is not None else None
            except BaseException:
                engine.__exit__(None, None, None)
                raise
        except FlawlineError as exc:
            if not self._stop.is_set():
                _log.warning("the engine that serves stays: %s", exc)
        except Exception:
            _log.exception("the engine that serves stays: another could not be made ready")
        else:
            if before is not None:
                _close(before)
                return
            with self._lock:
                self._ready = engine


def _close(engine: Engine) -> None:
    try:
        engine.__exit__(None, None, None)
    except Exception:  # the top of the thread, and the other one serves
        _log.exception("%s, which served before, could not be closed", engine.kind)
