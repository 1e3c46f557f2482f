"""The engines that a station's cameras share: one for each model, however many cameras have their parts judged by it.

Whoever asks first opens it, proves it and, where a GPU is worth compiling for, has a faster one made; whoever asks
meanwhile waits for that, and fails with it. Whoever asks later joins what serves. The last one to leave closes it. Lanes
and changes of recipe may do all this at the same time, from any thread.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flawline_edge.engine_upgrade import EngineUpgrade
from flawline_edge.progress import Loop, Progress
from flawline_engines import Engine, Inference, Precision
from flawline_engines.shared import TIMEOUT_S, CameraEngine, SharedEngine
from flawline_inspect.errors import EngineError, FlawlineError

__all__ = ["EngineOrder", "EnginePool", "EngineShare"]

_log = logging.getLogger(__name__)

Prepare = Callable[[threading.Event], Engine]
"""Makes a faster engine, as `EngineUpgrade` wants it."""


@dataclass(frozen=True)
class EngineOrder:
    """What a recipe wants of an engine. Orders with the same `key` are served by one.

    `name` is the model's, for people. `hw`: the frame's height and width. `open` gives the engine, not entered. `prove`
    raises an `EngineError` for one that must not serve, one by one or in batches of these sizes; `check` for one that served
    others well and does not any more, and costs them no more than a part. `upgrade` says of what `open` gave, once it was
    entered, how a faster one is made, if one can be. `max_batch` and `batch_window_ms` are `SharedEngine`'s; `answer_s` is
    how long an engine that is not in this machine may take, and 0 else.
    """

    key: Hashable
    name: str
    precision: Precision
    hw: tuple[int, int]
    open: Callable[[], Engine]
    prove: Callable[[Engine, Sequence[int]], None]
    check: Callable[[Engine], None]
    upgrade: Callable[[Engine], Prepare | None]
    max_batch: int | None = None
    batch_window_ms: float = 0.0
    answer_s: float = 0.0


class EnginePool:
    """`cameras`: how many the station has. `progress` watches the engines: one that hangs is not a station that lives on."""

    def __init__(self, cameras: int, progress: Progress) -> None:
        self._cameras, self._progress = cameras, progress
        self._lock = threading.Lock()
        # Below, and each one's `shares`: read and written with the lock held.
        self._serving: dict[Hashable, _Pooled] = {}

    def share(self, order: EngineOrder, camera: str, on_switch: Callable[[], None]) -> EngineShare:
        """An engine to be entered, of `camera`. `on_switch` is called, by another thread, when a faster one has taken over."""
        return EngineShare(self, order, camera, on_switch)

    def _join(self, share: EngineShare) -> tuple[_Pooled, CameraEngine]:
        order = share.order
        while True:
            with self._lock:
                pooled = self._serving.get(order.key)
                is_first = pooled is None
                if pooled is None:
                    pooled = self._serving[order.key] = _Pooled(order, self._cameras, self._progress, self._shares_of)
                pooled.shares.append(share)
            try:
                if is_first:
                    pooled.open()
                else:
                    pooled.wait()
                handle = pooled.camera(share.camera).__enter__()
                try:
                    if not is_first:
                        order.check(handle)
                except BaseException:
                    handle.__exit__(None, None, None)
                    raise
                return pooled, handle
            except BaseException as exc:
                # Whoever asks from now on gets a fresh one; those who have this one keep it.
                with self._lock:
                    if self._serving.get(order.key) is pooled:
                        del self._serving[order.key]
                self._leave(pooled, share)
                if pooled.error is not None or not isinstance(exc, EngineError):
                    raise
                _log.error(
                    "the engine that serves %s fails for camera %s (%s); opening another", order.name, share.camera, exc
                )

    def _leave(self, pooled: _Pooled, share: EngineShare) -> None:
        with self._lock:
            pooled.shares.remove(share)
            is_last = not pooled.shares
            if is_last and self._serving.get(pooled.order.key) is pooled:
                del self._serving[pooled.order.key]
        if is_last:
            pooled.close()

    def _shares_of(self, pooled: _Pooled) -> list[EngineShare]:
        with self._lock:
            return list(pooled.shares)


class EngineShare:
    """One inspector's share: an `Engine`, for one thread at a time. It may be entered again after it was left."""

    def __init__(self, pool: EnginePool, order: EngineOrder, camera: str, on_switch: Callable[[], None]) -> None:
        self.order, self.camera, self.on_switch = order, camera, on_switch
        self._pool = pool
        self._joined: tuple[_Pooled, CameraEngine] | None = None

    @property
    def kind(self) -> str:
        """Of the engine that computes; empty where this is not entered. Never fails, since a state is told with it."""
        joined = self._joined
        return joined[0].kind if joined is not None else ""

    @property
    def precision(self) -> Precision:
        joined = self._joined
        return joined[0].precision if joined is not None else self.order.precision

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        """As every engine's; with the others', where they wait."""
        joined = self._joined
        if joined is None:
            raise EngineError("the engine is not open; use it inside `with`")
        return joined[1].infer(frames)

    def __enter__(self) -> EngineShare:
        """Raises what opening or proving the engine raises."""
        self._joined = self._pool._join(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            pooled, handle = joined
            try:
                handle.__exit__(kind, exc, traceback)
            finally:
                self._pool._leave(pooled, self)


class _Pooled:
    """One engine, and who shares it."""

    def __init__(
        self, order: EngineOrder, cameras: int, progress: Progress, shares_of: Callable[[_Pooled], list[EngineShare]]
    ) -> None:
        self.order = order
        self.shares: list[EngineShare] = []
        """The pool's; not to be touched here."""
        self.kind, self.precision = "", order.precision
        self.error: BaseException | None = None
        """Why it could not be opened."""
        self._cameras, self._progress, self._shares_of = cameras, progress, shares_of
        self._is_done = threading.Event()
        self._stack = ExitStack()
        self._shared: SharedEngine | None = None

    def open(self) -> None:
        """Raises what is wrong; then nothing is open."""
        try:
            with ExitStack() as stack:
                self._open(stack)
                self._stack = stack.pop_all()
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self._is_done.set()

    def _open(self, stack: ExitStack) -> None:
        order = self.order
        opening, loop = order.open(), Loop(f"{order.name} (engine)")
        shared = SharedEngine(
            opening,
            order.hw,
            max_batch=order.max_batch,
            batch_window_ms=order.batch_window_ms,
            # A batch that fails is repeated frame by frame, and each may take as long.
            timeout_s=max(TIMEOUT_S, (1 + self._cameras) * order.answer_s),
            most_cameras=self._cameras,
            came_round=loop.came_round,
        )
        self._shared = stack.enter_context(shared)
        with shared.camera("self-test") as handle:
            order.prove(handle, shared.batches_of(shared.serving))
        self.kind, self.precision = shared.serving.kind, shared.serving.precision
        # A call of `infer` comes back from an engine that hangs, and its lane goes round: here is who tells the watchdog.
        stack.enter_context(self._progress.watch(loop))
        prepare = order.upgrade(opening)
        if prepare is not None:
            # Entered last and left first: nothing takes over from an engine that is being closed.
            stack.enter_context(EngineUpgrade(prepare, self._prove, self._take_over))

    def wait(self) -> None:
        """Until it is open. Raises what whoever opens it has met."""
        self._is_done.wait()
        if self.error is None:
            return
        if isinstance(self.error, FlawlineError):
            # An error of its own for each: one that is raised twice collects both tracebacks.
            raise copy.copy(self.error) from self.error
        raise RuntimeError(f"{self.order.name}: its engine could not be opened: {self.error!r}") from self.error

    def camera(self, name: str) -> CameraEngine:
        assert self._shared is not None, "nobody joins before it is open"
        return self._shared.camera(name)

    def close(self) -> None:
        self._stack.close()

    def _prove(self, engine: Engine) -> None:
        assert self._shared is not None, "an upgrade begins when it is open"
        self.order.prove(engine, self._shared.batches_of(engine))

    def _take_over(self, better: Engine) -> Engine:
        """On the upgrade's thread, while parts are being judged. Raises `EngineError` when the one before serves on."""
        assert self._shared is not None, "an upgrade begins when it is open"
        before = self._shared.switch(better)
        self.kind, self.precision = better.kind, better.precision
        shares = self._shares_of(self)
        names = ", ".join(dict.fromkeys(share.camera for share in shares))
        _log.info("%s %s takes over from %s for %s", better.kind, better.precision, before.kind, names or "nobody")
        for share in shares:
            try:
                share.on_switch()
            except Exception:  # the engine serves, whoever cannot be told
                _log.exception("camera %s: the change of engine could not be told", share.camera)
        return before
