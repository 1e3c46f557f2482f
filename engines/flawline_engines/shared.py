"""One engine for several cameras.

Each camera's thread has a handle that is an `Engine` of its own. One thread here calls the engine they share:

- Frames that wait together go in together, up to `max_batch`. Nobody is held up for that by more than `batch_window_ms`,
  by default not at all: a batch is what came while the one before it was computed. On a CPU, by default, frames go one by
  one: eight together are served hardly faster (1 to 11 %, benchmarks/RESULTS.md), and the first of them eight times later.
- Cameras take turns, a frame each, so that one that sends many does not starve the others.
- What one camera does touches no other: a frame that does not fit never gets here, a batch that fails is repeated frame
  by frame, and only whose frame failed is told so.
- A call returns within `timeout_s`. While the engine hangs, further calls fail at once; when it comes back, it serves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import MAX_BATCH, Engine, Inference, Precision, checked_frames
from flawline_inspect.errors import EngineError

__all__ = ["TIMEOUT_S", "TOGETHER", "CameraEngine", "SharedEngine", "batch_sizes"]

_log = logging.getLogger(__name__)

TOGETHER = 8
"""Frames together where nothing else is asked for, on engines that are faster so."""
_BATCHING = frozenset({"tensorrt", "tensorrt_rtx", "triton"})
TIMEOUT_S = 10.0
"""Longer than any inference that does not hang; a station's own deadline is far shorter and not kept here."""
END_S = 10.0
"""How long leaving waits for a batch under way; an engine that hangs longer is left to its thread."""
ROUND_S = 0.1
"""How often `came_round` is called while there is nothing to do."""


def batch_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, ... up to and with `max_batch`: the batches that are made, since OpenVINO compiles each size anew."""
    sizes = []
    size = 1
    while size < max_batch:
        sizes.append(size)
        size *= 2
    return [*sizes, max_batch]


class SharedEngine:
    """A context manager: on entering, the engine is opened and run once with each size of batch.

    `hw`: the frame's height and width. `max_batch`: 1 to 64 frames in one call, None for the engine's own; more serves many
    cameras faster and the first of them later, and each size takes memory (OpenVINO: 80 MiB at 256 px), so that more than
    there are cameras is of no use. `batch_window_ms`: how long a frame may wait for others while the engine is idle.
    `timeout_s`: how long a call of `infer` may take, waiting included. `most_cameras`: how many there will be at most, a frame
    each: no batch is larger. `came_round()` is called by the thread that infers, at least ten times a second unless the
    engine hangs.
    """

    def __init__(
        self,
        engine: Engine,
        hw: tuple[int, int],
        *,
        max_batch: int | None = None,
        batch_window_ms: float = 0.0,
        timeout_s: float = TIMEOUT_S,
        most_cameras: int = MAX_BATCH,
        came_round: Callable[[], None] = lambda: None,
    ) -> None:
        if max_batch is not None and not 1 <= max_batch <= MAX_BATCH:
            raise EngineError(f"max_batch is {max_batch}, expected 1 to {MAX_BATCH}")
        if not batch_window_ms >= 0 or not timeout_s > 0:
            raise EngineError(
                f"batch_window_ms is {batch_window_ms:g} and timeout_s {timeout_s:g}, expected at least 0 and more than 0"
            )
        self._opening, self._hw, self._timeout_s = engine, hw, timeout_s
        self._max_batch, self._window_s = max_batch, batch_window_ms / 1e3
        self._most_cameras, self._came_round = most_cameras, came_round
        self._engine: Engine | None = None
        self._sizes = [1]
        self._changed = threading.Condition()
        # Below: read and written with the condition's lock held.
        self._cameras: list[CameraEngine] = []
        self._turns: deque[CameraEngine] = deque()  # cameras with a waiting frame, whose turn is next first
        self._busy_since: float | None = None
        self._incoming: Engine | None = None
        self._is_open = False

    # --- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> SharedEngine:
        engine = self._opening.__enter__()
        try:
            self._warm_up(engine)
        except BaseException:
            engine.__exit__(None, None, None)
            raise
        self._engine, self._sizes, self._is_open = engine, self.batches_of(engine), True
        self._thread = threading.Thread(target=self._serve, name="flawline-shared-engine", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Who waits gets an `EngineError`; the batch under way is finished, and the engine closed behind it."""
        self._close()
        self._thread.join(END_S)
        if self._thread.is_alive():
            _log.warning("the engine does not come back from a batch; leaving it behind")

    def camera(self, name: str) -> CameraEngine:
        """A handle for the thread of camera `name`, to be entered with `with`."""
        return CameraEngine(self, name)

    def switch(self, engine: Engine) -> Engine:
        """Let an entered engine serve from the next batch on; the one before it, not in use any more, to be closed.

        Raises `EngineError` when a batch under way takes longer than `timeout_s`, or when this is closed; then nothing has
        changed hands.
        """
        self._warm_up(engine)
        with self._changed:
            before, self._incoming = self._engine, engine
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._has_switched() or not self._is_open, self._timeout_s)
            if not self._has_switched() or before is None:
                self._incoming = None
                why = "a batch under way does not end" if self._is_open else "it is not open"
                raise EngineError(f"the engine cannot be exchanged: {why}")
            return before

    def _warm_up(self, engine: Engine) -> None:
        for size in self.batches_of(engine):
            engine.infer(np.zeros((size, *self._hw, 3), np.uint8))

    def batches_of(self, engine: Engine) -> list[int]:
        """How many frames this engine is given at once here: every number that occurs, ascending."""
        largest = self._max_batch or (TOGETHER if engine.kind in _BATCHING else 1)
        return batch_sizes(min(largest, self._most_cameras))

    def _has_switched(self) -> bool:
        return self._incoming is None

    @property
    def serving(self) -> Engine:
        """The engine that computes. Raises `EngineError` outside the `with`."""
        if self._engine is None:
            raise EngineError("the engine is not open; use it inside `with`")
        return self._engine

    # --- on the cameras' threads ---------------------------------------------------------------------------------------

    def _add(self, camera: CameraEngine) -> None:
        with self._changed:
            self._cameras.append(camera)

    def _remove(self, camera: CameraEngine) -> None:
        with self._changed:
            self._cameras.remove(camera)
            self._drop(camera, f"camera {camera.name} has left")
            self._changed.notify_all()

    def _infer(self, camera: CameraEngine, frames: NDArray[np.uint8]) -> Inference:
        frames = checked_frames(frames, self._hw)
        request = _Request(frames)
        with self._changed:
            if not self._is_open or camera not in self._cameras:
                raise EngineError("the engine is not open; use it inside `with`")
            if self._busy_since is not None and time.monotonic() - self._busy_since > self._timeout_s:
                raise EngineError(
                    f"the engine has been busy with one batch for more than {self._timeout_s:g} s; if it does not come "
                    "back, restart the station"
                )
            if not camera.waiting:
                self._turns.append(camera)
            camera.waiting += ((request, i) for i in range(len(frames)))
            self._changed.notify_all()
        if not request.done.wait(self._timeout_s):
            with self._changed:
                if not request.done.is_set():  # it may have been answered just now
                    self._withdraw(camera, request)
                    request.fail(EngineError(f"the engine gave no answer in {self._timeout_s:g} s"))
        return request.result()

    def _withdraw(self, camera: CameraEngine, request: _Request) -> None:
        camera.waiting = deque(item for item in camera.waiting if item[0] is not request)
        if not camera.waiting and camera in self._turns:
            self._turns.remove(camera)

    def _drop(self, camera: CameraEngine, why: str) -> None:
        """Everything this camera waits for."""
        while camera.waiting:
            request = camera.waiting[0][0]
            self._withdraw(camera, request)
            request.fail(EngineError(why))

    # --- on the engine's thread ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while batch := self._next_batch():
                frames = np.stack([request.frames[i] for request, i in batch])
                try:
                    inference = self._run(frames)
                except EngineError as exc:
                    self._one_by_one(batch, frames, exc)
                else:
                    self._answer(batch, inference)
        finally:
            self._close()  # whatever ended this thread: nobody waits for it in vain
            engine, self._engine = self._engine, None
            if engine is not None:
                try:
                    engine.__exit__(None, None, None)
                except Exception:  # the top of this thread, and nobody waits for more of it
                    _log.exception("%s could not be closed", engine.kind)

    def _close(self) -> None:
        with self._changed:
            self._is_open = False
            while self._turns:
                self._drop(self._turns[0], "the engine was closed")
            self._changed.notify_all()

    def _next_batch(self) -> list[tuple[_Request, int]]:
        """Waits for frames, and in the window for more of them; nothing when this was closed."""
        with self._changed:
            while True:
                self._came_round()
                self._changed.wait_for(lambda: self._turns or self._incoming or not self._is_open, ROUND_S)
                if not self._is_open:
                    return []
                if self._incoming is not None:
                    self._engine, self._sizes = self._incoming, self.batches_of(self._incoming)
                    self._incoming = None
                    self._changed.notify_all()
                    continue
                if not self._turns:
                    continue
                waiting = sum(len(camera.waiting) for camera in self._turns)
                oldest = min(camera.waiting[0][0].since for camera in self._turns)
                left_s = oldest + self._window_s - time.monotonic()
                # A camera's thread waits for its own answer: once all have sent something, nobody else will.
                if left_s <= 0 or waiting >= self._sizes[-1] or len(self._turns) == len(self._cameras):
                    break
                self._changed.wait(left_s)
            size = max(size for size in self._sizes if size <= waiting)
            batch: list[tuple[_Request, int]] = []
            while len(batch) < size:
                camera = self._turns.popleft()
                batch.append(camera.waiting.popleft())
                if camera.waiting:
                    self._turns.append(camera)
            return batch

    def _run(self, frames: NDArray[np.uint8]) -> Inference:
        """One call of the engine. Raises `EngineError` for whatever it does wrong."""
        engine = self.serving
        self._came_round()
        with self._changed:
            self._busy_since = time.monotonic()
        try:
            inference = engine.infer(frames)
            if not all(len(values) == len(frames) for values in inference):
                raise EngineError(f"{engine.kind} gave {len(inference.scores)} results for {len(frames)} frames")
            return inference
        except EngineError:
            raise
        except Exception as exc:  # the top of this thread: the cameras go on, whatever it was
            _log.exception("the engine failed in a way that engines should not")
            raise EngineError(f"{engine.kind} failed: {exc!r}") from exc
        finally:
            with self._changed:
                self._busy_since = None
                self._changed.notify_all()

    def _answer(self, batch: list[tuple[_Request, int]], inference: Inference) -> None:
        with self._changed:
            for k, (request, i) in enumerate(batch):
                # The results are the caller's own: not a view of what another camera gets too.
                request.put(i, inference if len(batch) == 1 else _one_of(inference, k))

    def _one_by_one(self, batch: list[tuple[_Request, int]], frames: NDArray[np.uint8], exc: EngineError) -> None:
        for k, (request, i) in enumerate(batch):
            error = exc
            if len(batch) > 1 and not request.done.is_set():
                try:
                    self._answer([(request, i)], self._run(frames[k : k + 1]))
                    continue
                except EngineError as own:
                    error = own
            with self._changed:
                # Each thread raises an error of its own: one that is raised twice collects both tracebacks.
                failure = EngineError(str(error))
                failure.__cause__ = error
                request.fail(failure)


class CameraEngine:
    """One camera's handle of a shared engine: an `Engine`, for one thread, usable once entered."""

    def __init__(self, shared: SharedEngine, name: str) -> None:
        self._shared = shared
        self.name = name
        self.waiting: deque[tuple[_Request, int]] = deque()
        """Frames by request and number, oldest first; the shared engine's own."""

    @property
    def kind(self) -> str:
        return self._shared.serving.kind

    @property
    def precision(self) -> Precision:
        return self._shared.serving.precision

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        """As every engine's. Raises `EngineError` also when no answer comes in time, or when the engine is closed."""
        return self._shared._infer(self, frames)

    def __enter__(self) -> CameraEngine:
        self._shared._add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shared._remove(self)


class _Request:
    """Frames of one call (N, H, W, 3), and what becomes of them. `put` and `fail` are called with the lock held."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self.frames = frames
        self.since = time.monotonic()
        self.done = threading.Event()
        self._parts: list[Inference | None] = [None] * len(frames)
        self._left = len(frames)
        self._error: EngineError | None = None

    def put(self, i: int, inference: Inference) -> None:
        if self.done.is_set():  # given up meanwhile
            return
        self._parts[i] = inference
        self._left -= 1
        if not self._left:
            self.done.set()

    def fail(self, error: EngineError) -> None:
        if not self.done.is_set():
            self._error = error
            self.done.set()

    def result(self) -> Inference:
        if self._error is not None:
            raise self._error
        parts = [part for part in self._parts if part is not None]
        if len(parts) == 1:
            return parts[0]
        return Inference(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.heatmaps for part in parts]),
            np.concatenate([part.expected for part in parts]),
        )


def _one_of(inference: Inference, k: int) -> Inference:
    one = slice(k, k + 1)
    return Inference(inference.scores[one].copy(), inference.heatmaps[one].copy(), inference.expected[one].copy())
