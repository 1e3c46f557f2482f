"""Memory, streams and events of a GPU behind a narrow interface, and the thread that owns them.

pycuda is the first choice; `cuda-bindings` (cuda.bindings) is the second, taken where pycuda cannot be imported, and
the only one that can replay CUDA graphs. Both work in the GPU's primary context, which TensorRT uses too.

pycuda keeps a stack of contexts for each thread, frees memory only from the thread that allocated it, and ends the whole
process when a thread exits with a context on its stack. So everything happens on one thread, and the context is on its
stack only while a piece of work runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.errors import EngineError

__all__ = ["DeviceBuffer", "DeviceMemory", "Gpu", "GpuThread", "HostBuffer", "MemoryKind", "Stream", "open_memory"]

MemoryKind = Literal["auto", "pycuda", "cuda-bindings"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gpu:
    """`compute_capability` such as 8.7; `is_integrated`: it shares the processor's memory, as on a Jetson."""

    name: str
    compute_capability: str
    is_integrated: bool


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """Memory of the GPU; `handle` is what the implementation frees it by."""

    pointer: int
    handle: Any


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """Page-locked memory of the processor, (n,) bytes. `pointer` is the GPU's name for it if it is mapped, else 0."""

    array: NDArray[np.uint8]
    pointer: int
    handle: Any


@dataclass(frozen=True, slots=True)
class Stream:
    """Work on a GPU in order; `number` is what TensorRT takes."""

    number: int
    handle: Any


class DeviceMemory(Protocol):
    """One GPU. Everything but `name` is called on the one GPU thread, and inside `current` what works on the GPU.

    Failures are `EngineError`s. What was made is given back by `free`, in any order.
    """

    @property
    def name(self) -> str: ...

    @property
    def has_graphs(self) -> bool:
        """Whether `capture` works."""
        ...

    def open(self) -> Gpu:
        """Take the primary context of the first GPU."""
        ...

    def close(self) -> None: ...

    def reset(self) -> None:
        """Give up the primary context and whatever was made in it: after a failure that it does not survive. Outside `current`."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """The context is this thread's current one inside."""
        ...

    def device(self, n_bytes: int) -> DeviceBuffer: ...

    def host(self, n_bytes: int, *, mapped: bool) -> HostBuffer: ...

    def stream(self) -> Stream:
        """One that does not wait for the default stream."""
        ...

    def event(self) -> Any: ...

    def free(self, thing: Any) -> None:
        """A buffer, stream, event or graph."""
        ...

    def upload(self, target: DeviceBuffer, source: HostBuffer, n_bytes: int, stream: Stream) -> None:
        """Copy the first `n_bytes`, later and in the stream's order."""
        ...

    def download(self, target: HostBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None: ...

    def duplicate(self, target: DeviceBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        """From the GPU's memory to the GPU's memory."""
        ...

    def record(self, event: Any, stream: Stream) -> None: ...

    def wait(self, stream: Stream, event: Any) -> None:
        """Let the stream go on only when the event has happened; returns at once."""
        ...

    def synchronize(self, what: Any) -> None:
        """Wait here until a stream is empty or an event has happened."""
        ...

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on the stream, as a graph that can be launched again and again."""
        ...

    def launch(self, graph: Any, stream: Stream) -> None: ...


def open_memory(kind: MemoryKind = "auto") -> DeviceMemory:
    """The implementation to use; imports it, touches no GPU. Raises `EngineError` with the line that installs it."""
    from flawline_engines.gpu_cuda_bindings import CudaBindingsMemory
    from flawline_engines.gpu_pycuda import PycudaMemory

    reasons = []
    for name, build in (("pycuda", PycudaMemory), ("cuda-bindings", CudaBindingsMemory)):
        if kind in ("auto", name):
            try:
                return build()
            except EngineError as exc:
                reasons.append(str(exc))
    raise EngineError("; ".join(reasons) or f"GPU memory {kind!r} is unknown; expected auto, pycuda or cuda-bindings")


class GpuThread:
    """The one thread that works with a GPU. `start` takes the GPU, `run` does a piece of work there, `stop` ends both."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._executor: ThreadPoolExecutor | None = None

    def start(self) -> Gpu:
        """Raises `EngineError`; then nothing is left running."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="flawline-gpu")
        try:
            return self._executor.submit(self._memory.open).result()
        except BaseException:
            self._executor.shutdown()
            self._executor = None
            raise

    def run(self, work: Callable[[], T]) -> T:
        """Its result, or what it raises. `work` must not keep what belongs to the GPU beyond `stop`."""
        if self._executor is None:
            raise EngineError("the GPU is not open; use the engine inside `with`")
        return self._executor.submit(self._in_context, work).result()

    def stop(self) -> None:
        """May be called twice. What was allocated has to be freed before."""
        self._end(self._memory.close)

    def give_up(self) -> None:
        """As `stop`, but with the GPU's context, of which nothing can be freed any more."""
        self._end(self._memory.reset)

    def _end(self, work: Callable[[], None]) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            try:
                executor.submit(work).result()
            finally:
                executor.shutdown()

    def _in_context(self, work: Callable[[], T]) -> T:
        with self._memory.current():
            return work()
