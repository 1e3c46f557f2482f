"""Running a TensorRT plan: batch 1 with the least latency, many batches with copies behind the arithmetic.

one frame   page-locked buffer → GPU → scores, heatmap, expected picture → page-locked buffers, on one stream; with
            cuda-bindings the whole of it becomes a CUDA graph, launched by one call
many        two slots: while one batch is computed, the next is copied in and the one before is copied out
Jetson      processor and GPU share their memory: buffers are mapped, and nothing is copied
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Inference, MissingPlanError, Precision, checked_frames, timed_ms
from flawline_engines.gpu_memory import (
    DeviceBuffer,
    DeviceMemory,
    Gpu,
    GpuThread,
    HostBuffer,
    Stream,
    open_memory,
)
from flawline_engines.tensorrt import INPUT, ModuleName, load_module, process_objects
from flawline_inspect.errors import EngineError

__all__ = ["TensorRtEngine"]

_log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Between two attempts to open a GPU that has failed; parts meanwhile are errors at once, not late."""
_SAME = 1e-3
"""Largest share by which a GPU that came back may differ from what it said before."""
_BEFORE_CAPTURE = 2
"""Executions with one shape before it is captured: TensorRT sets itself up in the first."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or output: type and shape of one frame's part of it."""

    name: str
    dtype: type[np.generic]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class TensorRtEngine:
    """`plan_for` gives the plan once the GPU is known; where it has none, `compile_for` makes it, if given.

    Entering raises `EngineError` for a GPU, module or plan that is missing.
    """

    def __init__(
        self,
        module: ModuleName,
        hw: tuple[int, int],
        plan_for: Callable[[Gpu], bytes],
        *,
        compile_for: Callable[[Gpu], bytes] | None = None,
        precision: Precision = "fp32",
        memory: Callable[[], DeviceMemory] = open_memory,
    ) -> None:
        self.kind = module
        self.precision: Precision = precision
        self._module, self._hw, self._open_memory = module, hw, memory
        self._plan_for, self._compile_for = plan_for, compile_for
        height, width = hw
        self._tensors = (
            _Tensor(INPUT, np.uint8, (height, width, 3)),
            _Tensor("scores", np.float32, ()),
            _Tensor("heatmaps", np.float32, (height, width)),
            _Tensor("expected", np.uint8, (height, width, 3)),
        )
        self._thread: GpuThread | None = None
        self._runner: _Runner | None = None
        self._is_lost = False
        self._witness: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None
        self._next_try = 0.0

    def __enter__(self) -> TensorRtEngine:
        self._open(self._compile_for)
        self._is_lost, self._witness, self._next_try = False, None, 0.0
        return self

    def _open(self, compile_for: Callable[[Gpu], bytes] | None) -> None:
        trt = load_module(self._module)
        memory = self._open_memory()
        thread = GpuThread(memory)
        gpu = thread.start()
        try:
            try:
                plan = self._plan_for(gpu)
            except MissingPlanError as exc:
                if compile_for is None:
                    raise
                _log.warning("%s; compiling for %s, which may take minutes", exc, gpu.name)
                thread.stop()  # the compiler and the judge take the GPU themselves
                plan = compile_for(gpu)
                thread.start()
            self._runner = thread.run(lambda: _Runner(trt, memory, gpu, plan, self._tensors))
        except BaseException:
            thread.stop()
            raise
        self._thread = thread

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_lost, self._witness = False, None
        self._close()

    def _close(self) -> None:
        thread, runner = self._thread, self._runner
        self._thread = self._runner = None
        if thread is not None and runner is not None:
            try:
                thread.run(runner.close)
            finally:
                thread.stop()

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        thread, runner = self._entered()
        frames = checked_frames(frames, self._hw)
        if len(frames) <= runner.max_batch:
            try:
                found = thread.run(lambda: runner.infer(frames))
            except EngineError:
                _settles(thread, runner)  # also where the work was never begun, as in a context that cannot be entered
                raise
            if self._witness is None:
                self._witness = frames[:1].copy(), found.scores[:1].copy()
            return found
        pieces = [frames[i : i + runner.max_batch] for i in range(0, len(frames), runner.max_batch)]
        scores, heatmaps, expected = (np.concatenate(column) for column in zip(*self.infer_each(pieces), strict=True))
        return Inference(scores, heatmaps, expected)

    def infer_each(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Inference]:
        """As `infer` for each batch, in order and one behind, so that copying and computing overlap."""
        thread, runner = self._entered()
        waiting: deque[_Slot] = deque()
        try:
            for batch in batches:
                frames = checked_frames(batch, self._hw)
                if len(frames) > runner.max_batch:
                    raise EngineError(f"a batch has {len(frames)} frames, this plan takes {runner.max_batch} at most")
                waiting.append(thread.run(lambda frames=frames: runner.begin(frames)))  # type: ignore[misc]
                if len(waiting) == _Runner.N_SLOTS:
                    yield thread.run(lambda: runner.finish(waiting.popleft()))
            while waiting:
                yield thread.run(lambda: runner.finish(waiting.popleft()))
        finally:
            # A consumer that stops early leaves work on the GPU, whose memory must not be used again before it is done.
            while waiting and self._thread is thread:
                thread.run(lambda: runner.finish(waiting.popleft()))

    def bare_ms(self, frames: NDArray[np.uint8], runs: int) -> NDArray[np.float64]:
        """What the GPU takes for them with its copies, `runs` times, for `flawline bench` to hold `infer` against."""
        thread, runner = self._entered()
        frames = checked_frames(frames, self._hw)
        if len(frames) > runner.max_batch:
            raise EngineError(f"a batch has {len(frames)} frames, this plan takes {runner.max_batch} at most")
        return thread.run(lambda: runner.bare_ms(frames, runs))

    def _entered(self) -> tuple[GpuThread, _Runner]:
        if self._is_lost or (self._runner is not None and not self._runner.is_settled):
            self._recover()
        if self._thread is None or self._runner is None:
            raise EngineError("the engine is not open; use it inside `with`")
        return self._thread, self._runner

    # --- a GPU that has failed ---------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """A context that a driver's error has destroyed is lost with all that was made in it, and a new one may work.

        Raises `EngineError` for one that does not; the next attempt is `RETRY_S` away then, since each may take seconds.
        """
        if self._thread is not None and self._runner is not None and _settles(self._thread, self._runner):
            return
        if time.monotonic() < self._next_try:
            raise EngineError(f"the GPU has failed and is not back; it is tried again every {RETRY_S:g} s")
        self._next_try = time.monotonic() + RETRY_S
        _log.error("the GPU does not end what was begun; giving its context up and opening it anew")
        self._give_up()
        self._open(None)
        try:
            self._check_witness()
        except BaseException:
            self._close()
            raise
        self._is_lost = False
        _log.warning("the GPU is back")

    def _give_up(self) -> None:
        thread, runner = self._thread, self._runner
        self._thread = self._runner = None
        self._is_lost = True
        if thread is None or runner is None:
            return
        try:
            thread.run(runner.close)  # TensorRT's objects first: in a lost context each of them only complains
        except EngineError as exc:
            _log.debug("while giving the GPU up: %s", exc)
            runner.abandon()
        finally:
            thread.give_up()

    def _check_witness(self) -> None:
        """What was said before the failure is said again; nobody proves this engine anew with golden pictures."""
        if self._witness is None or self._thread is None or self._runner is None:
            return
        runner, (frames, scores) = self._runner, self._witness
        found = self._thread.run(lambda: runner.infer(frames)).scores
        if not np.allclose(found, scores, rtol=_SAME, atol=0, equal_nan=True):
            raise EngineError(f"the GPU is back and scores {found[0]:.4f} what it scored {scores[0]:.4f} before")


def _settles(thread: GpuThread, runner: _Runner) -> bool:
    """Whether the GPU ends what was begun; where its context cannot even be entered it does not."""
    try:
        return thread.run(runner.settle)
    except EngineError:
        runner.is_settled = False
        return False


class _Slot:
    """Memory for one batch on its way, and the events that order it. `capacity` frames."""

    def __init__(self, memory: DeviceMemory, tensors: tuple[_Tensor, ...], *, mapped: bool) -> None:
        self._memory, self._tensors, self._mapped = memory, tensors, mapped
        self.capacity = self.batch = 0
        self.host: dict[str, HostBuffer] = {}
        self.device: dict[str, DeviceBuffer] = {}
        self._events: list[Any] = []

    def open(self) -> None:
        for _ in range(3):
            self._events.append(self._memory.event())
        self.uploaded, self.computed, self.done = self._events

    def reserve(self, batch: int) -> bool:
        """Make room for `batch` frames. Returns whether the addresses are new."""
        self.batch = batch
        if batch <= self.capacity:
            return False
        self.release_buffers()
        for tensor in self._tensors:
            self.host[tensor.name] = self._memory.host(batch * tensor.n_bytes, mapped=self._mapped)
            if not self._mapped:
                self.device[tensor.name] = self._memory.device(batch * tensor.n_bytes)
        self.capacity = batch
        return True

    def address(self, name: str) -> int:
        return self.host[name].pointer if self._mapped else self.device[name].pointer

    def view(self, tensor: _Tensor) -> NDArray[Any]:
        """The batch's values in the page-locked buffer, (batch, *shape)."""
        n_bytes = self.batch * tensor.n_bytes
        return self.host[tensor.name].array[:n_bytes].view(tensor.dtype).reshape(self.batch, *tensor.shape)

    def release_buffers(self) -> None:
        self.capacity = 0
        for buffers in (self.device, self.host):
            while buffers:
                self._memory.free(buffers.popitem()[1])

    def close(self) -> None:
        self.release_buffers()
        while self._events:
            self._memory.free(self._events.pop())


class _Runner:
    """What lives on the GPU thread: engine, context, streams and buffers. Closed in the reverse order of making."""

    N_SLOTS = 2

    def __init__(
        self, trt: ModuleType, memory: DeviceMemory, gpu: Gpu, plan: bytes, tensors: tuple[_Tensor, ...]
    ) -> None:
        self._memory, self._tensors = memory, tensors
        self._mapped = gpu.is_integrated
        self.is_settled = True
        """Whether the GPU has ended all that was begun. If not after a failure, it never will."""
        self._graph: Any = None
        self._runs_of_shape = 0
        self._uses_graphs = memory.has_graphs
        self._shape = 0
        with ExitStack() as stack:
            process = process_objects(trt)
            process.recorder.clear()
            self._recorder = process.recorder
            self._runtime = trt.Runtime(process.logger)
            self._runtime.error_recorder = process.recorder
            stack.callback(self._drop, "_runtime")
            self._engine = _deserialized(trt, self._runtime, plan, process.recorder)
            stack.callback(self._drop, "_engine")
            _check_contract(trt, self._engine, tensors)
            self.max_batch = int(self._engine.get_tensor_profile_shape(INPUT, 0)[2][0])
            self._context = self._engine.create_execution_context()
            stack.callback(self._drop, "_context")
            if self._context is None:
                raise self._failed("no execution context could be made")
            self._streams = [self._stream(stack) for _ in range(3)]
            self._slots = []
            for _ in range(self.N_SLOTS):
                slot = _Slot(memory, tensors, mapped=self._mapped)
                stack.callback(slot.close)
                slot.open()
                self._slots.append(slot)
            stack.callback(self._drop_graph)
            stack.callback(self.settle)
            self._closing = stack.pop_all()
        self._next = 0

    def close(self) -> None:
        self._closing.close()

    def abandon(self) -> None:
        """Free nothing, since the context is lost, but let go of TensorRT's objects in their order."""
        self._closing.pop_all()
        self._graph = None
        for name in ("_context", "_engine", "_runtime"):
            self._drop(name)

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        """One batch from beginning to end, on one stream."""
        with self._settling():
            return self._infer(frames)

    def bare_ms(self, frames: NDArray[np.uint8], runs: int) -> NDArray[np.float64]:
        """From page-locked memory to page-locked memory."""
        with self._settling():
            slot = self._slots[0]
            for _ in range(_BEFORE_CAPTURE + 1):  # the last of them captures, where there are graphs
                self._infer(frames)
            return timed_ms(lambda: self._run(slot), runs)

    def _infer(self, frames: NDArray[np.uint8]) -> Inference:
        slot, stream = self._slots[0], self._streams[0]
        self._prepare(slot, len(frames))
        slot.view(self._tensors[0])[...] = frames
        if self._graph is None and self._uses_graphs and self._runs_of_shape >= _BEFORE_CAPTURE:
            self._capture(slot, stream)
        self._run(slot)
        return self._results(slot)

    def _run(self, slot: _Slot) -> None:
        """What was prepared in this slot, until it is done."""
        stream = self._streams[0]
        if self._graph is not None:
            self._memory.launch(self._graph, stream)
        else:
            self._enqueue(slot, stream)
            self._runs_of_shape += 1
        self._memory.synchronize(stream)

    def begin(self, frames: NDArray[np.uint8]) -> _Slot:
        """Start a batch in the next slot; `finish` it before this slot is used again."""
        with self._settling():
            return self._begin(frames)

    def _begin(self, frames: NDArray[np.uint8]) -> _Slot:
        memory, slot = self._memory, self._slots[self._next]
        upload, compute, download = self._streams
        self._next = (self._next + 1) % self.N_SLOTS
        self._drop_graph()  # its addresses are the other path's
        self._prepare(slot, len(frames))
        slot.view(self._tensors[0])[...] = frames
        if not self._mapped:
            memory.upload(slot.device[INPUT], slot.host[INPUT], slot.batch * self._tensors[0].n_bytes, upload)
        memory.record(slot.uploaded, upload)
        memory.wait(compute, slot.uploaded)
        self._execute(compute)
        memory.record(slot.computed, compute)
        memory.wait(download, slot.computed)
        self._download(slot, download)
        memory.record(slot.done, download)
        return slot

    def finish(self, slot: _Slot) -> Inference:
        self._memory.synchronize(slot.done)
        return self._results(slot)

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """What was begun before a failure ends before its memory is used or freed again."""
        try:
            yield
        except BaseException:
            self.settle()
            raise

    # --- steps ---------------------------------------------------------------------------------------------------

    def _prepare(self, slot: _Slot, batch: int) -> None:
        """Shapes and addresses for a batch in this slot; a captured graph is for one of each only."""
        if slot.reserve(batch) or batch != self._shape:
            self._drop_graph()
        if batch != self._shape:
            self._shape = 0
            if not self._context.set_input_shape(INPUT, (batch, *self._tensors[0].shape)):
                raise self._failed(f"it does not take {batch} frames")
            if missing := self._context.infer_shapes():
                raise self._failed(f"the shape of {', '.join(missing)} is not known")
            self._shape = batch
        for tensor in self._tensors:
            if not self._context.set_tensor_address(tensor.name, slot.address(tensor.name)):
                raise self._failed(f"it does not take the memory for {tensor.name}")

    def _enqueue(self, slot: _Slot, stream: Stream) -> None:
        if not self._mapped:
            n_bytes = slot.batch * self._tensors[0].n_bytes
            self._memory.upload(slot.device[INPUT], slot.host[INPUT], n_bytes, stream)
        self._execute(stream)
        self._download(slot, stream)

    def _execute(self, stream: Stream) -> None:
        if not self._context.execute_async_v3(stream_handle=stream.number):
            raise self._failed("the execution failed")

    def _download(self, slot: _Slot, stream: Stream) -> None:
        if not self._mapped:
            for tensor in self._tensors[1:]:
                n_bytes = slot.batch * tensor.n_bytes
                self._memory.download(slot.host[tensor.name], slot.device[tensor.name], n_bytes, stream)

    def _results(self, slot: _Slot) -> Inference:
        scores, heatmaps, expected = (slot.view(tensor).copy() for tensor in self._tensors[1:])
        return Inference(scores, heatmaps, expected)

    def _capture(self, slot: _Slot, stream: Stream) -> None:
        """Turn what `_enqueue` does into a graph; where that does not work, go on without and say so once."""
        try:
            # RTX alone can say beforehand that it cannot: capturing what allocates would fail.
            capturable = getattr(self._context, "is_stream_capturable", None)
            if capturable is not None and not capturable(stream.number):
                raise EngineError("this plan cannot be captured")
            self._graph = self._memory.capture(stream, lambda: self._enqueue(slot, stream))
        except EngineError as exc:
            self._uses_graphs = False
            _log.info("no CUDA graph, every inference is enqueued step by step: %s", exc)

    # --- life ----------------------------------------------------------------------------------------------------

    def _stream(self, stack: ExitStack) -> Stream:
        stream = self._memory.stream()
        stack.callback(self._memory.free, stream)
        return stream

    def settle(self) -> bool:
        """Wait for what is still on the streams, so that nothing frees memory under it. False when the GPU failed."""
        self.is_settled = False
        for stream in self._streams:
            try:
                self._memory.synchronize(stream)
            except EngineError as exc:
                _log.warning("while waiting for the GPU: %s", exc)
                return False
        self.is_settled = True
        return True

    def _drop_graph(self) -> None:
        graph, self._graph, self._runs_of_shape = self._graph, None, 0
        if graph is not None:
            self._memory.free(graph)

    def _drop(self, name: str) -> None:
        """TensorRT's objects end with their last reference, and have to end in order: context, engine, runtime."""
        setattr(self, name, None)

    def _failed(self, what: str) -> EngineError:
        return EngineError(f"TensorRT: {what}: {self._recorder.summary()}")


def _deserialized(trt: ModuleType, runtime: Any, plan: bytes, recorder: Any) -> Any:
    # RTX alone can say what is wrong with a plan.
    validity = getattr(runtime, "get_engine_validity", None)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        found = f" ({', '.join(map(str, validity(plan)))})" if validity is not None else ""
        raise EngineError(f"{trt.__name__} cannot load the plan{found}: {recorder.summary()}")
    return engine


def _check_contract(trt: ModuleType, engine: Any, tensors: tuple[_Tensor, ...]) -> None:
    """Names, directions, types and shapes are the graph's; a plan that differs would read or write beyond its memory."""
    types = {np.uint8: trt.DataType.UINT8, np.float32: trt.DataType.FLOAT}
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    if found != {tensor.name for tensor in tensors}:
        raise EngineError(
            f"the plan has the tensors {', '.join(sorted(found))}; compile it again with `flawline build`"
        )
    for tensor in tensors:
        mode = trt.TensorIOMode.INPUT if tensor.name == INPUT else trt.TensorIOMode.OUTPUT
        shape = tuple(engine.get_tensor_shape(tensor.name))[1:]
        if (
            engine.get_tensor_mode(tensor.name) != mode
            or engine.get_tensor_dtype(tensor.name) != types[tensor.dtype]
            or shape != tensor.shape
        ):
            raise EngineError(
                f"the plan's {tensor.name} is {engine.get_tensor_dtype(tensor.name)} {shape}, expected "
                f"{np.dtype(tensor.dtype)} {tensor.shape}; compile it again with `flawline build`"
            )
