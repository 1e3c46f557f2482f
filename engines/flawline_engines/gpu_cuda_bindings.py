"""GPU memory by cuda-bindings, NVIDIA's own Python binding: wheels only, and CUDA graphs.

Its functions return their error code instead of raising, and the runtime keeps the primary context by itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawline_engines.gpu_memory import DeviceBuffer, Gpu, HostBuffer, Stream
from flawline_inspect.errors import EngineError

__all__ = ["CudaBindingsMemory"]


@dataclass(frozen=True, slots=True)
class _Event:
    handle: Any


@dataclass(frozen=True, slots=True)
class _Graph:
    handle: Any


class CudaBindingsMemory:
    """A `DeviceMemory`. Building it imports cuda.bindings, which works without a driver."""

    name = "cuda-bindings"
    has_graphs = True

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as exc:
            raise EngineError(
                f"cuda-bindings cannot be imported ({exc}); pip install cuda-bindings, of CUDA's own major version"
            ) from exc
        self._cuda: Any = runtime

    def _check(self, result: tuple[Any, ...]) -> Any:
        """What the call gives, if anything. Raises `EngineError` with CUDA's own name and sentence for what failed."""
        error, *values = result
        if error != self._cuda.cudaError_t.cudaSuccess:
            sentence = self._cuda.cudaGetErrorString(error)[1]
            said = sentence.decode() if isinstance(sentence, bytes) else str(sentence)
            raise EngineError(f"the GPU failed: {said} ({error.name})")
        return values[0] if values else None

    def open(self) -> Gpu:
        cuda = self._cuda
        try:
            count = self._check(cuda.cudaGetDeviceCount())
        except RuntimeError as exc:  # an EngineError, or cuda-bindings' own where libraries are missing
            raise EngineError(
                f"there is no NVIDIA GPU that can be used ({exc}); use engine auto, openvino or onnxruntime"
            ) from exc
        if not count:
            raise EngineError("there is no NVIDIA GPU in this machine; use engine auto, openvino or onnxruntime")
        self._check(cuda.cudaSetDevice(0))
        attribute = cuda.cudaDeviceAttr

        def asked(which: Any) -> int:
            return int(self._check(cuda.cudaDeviceGetAttribute(which, 0)))

        name = self._check(cuda.cudaGetDeviceProperties(0)).name
        major, minor = (
            asked(attribute.cudaDevAttrComputeCapabilityMajor),
            asked(attribute.cudaDevAttrComputeCapabilityMinor),
        )
        return Gpu(
            name=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
            compute_capability=f"{major}.{minor}",
            is_integrated=bool(asked(attribute.cudaDevAttrIntegrated)),
        )

    def close(self) -> None:
        """The runtime keeps the primary context until the process ends: TensorRT may still use it."""

    def reset(self) -> None:
        self._check(self._cuda.cudaDeviceReset())

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def device(self, n_bytes: int) -> DeviceBuffer:
        pointer = int(self._check(self._cuda.cudaMalloc(n_bytes)))
        return DeviceBuffer(pointer, pointer)

    def host(self, n_bytes: int, *, mapped: bool) -> HostBuffer:
        flags = self._cuda.cudaHostAllocMapped if mapped else 0
        address = int(self._check(self._cuda.cudaHostAlloc(n_bytes, flags)))
        try:
            pointer = int(self._check(self._cuda.cudaHostGetDevicePointer(address, 0))) if mapped else 0
        except BaseException:
            self._cuda.cudaFreeHost(address)
            raise
        memory = (ctypes.c_uint8 * n_bytes).from_address(address)
        return HostBuffer(np.ctypeslib.as_array(memory), pointer, address)

    def stream(self) -> Stream:
        handle = self._check(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        return Stream(int(handle), handle)

    def event(self) -> Any:
        return _Event(self._check(self._cuda.cudaEventCreateWithFlags(self._cuda.cudaEventDisableTiming)))

    def free(self, thing: Any) -> None:
        cuda = self._cuda
        destroy = {
            DeviceBuffer: cuda.cudaFree,
            HostBuffer: cuda.cudaFreeHost,
            Stream: cuda.cudaStreamDestroy,
            _Event: cuda.cudaEventDestroy,
            _Graph: cuda.cudaGraphExecDestroy,
        }[type(thing)]
        self._check(destroy(thing.handle))

    def upload(self, target: DeviceBuffer, source: HostBuffer, n_bytes: int, stream: Stream) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._cuda.cudaMemcpyAsync(target.pointer, source.handle, n_bytes, kind, stream.handle))

    def download(self, target: HostBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._cuda.cudaMemcpyAsync(target.handle, source.pointer, n_bytes, kind, stream.handle))

    def duplicate(self, target: DeviceBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._check(self._cuda.cudaMemcpyAsync(target.pointer, source.pointer, n_bytes, kind, stream.handle))

    def record(self, event: Any, stream: Stream) -> None:
        self._check(self._cuda.cudaEventRecord(event.handle, stream.handle))

    def wait(self, stream: Stream, event: Any) -> None:
        self._check(self._cuda.cudaStreamWaitEvent(stream.handle, event.handle, 0))

    def synchronize(self, what: Any) -> None:
        call = self._cuda.cudaStreamSynchronize if isinstance(what, Stream) else self._cuda.cudaEventSynchronize
        self._check(call(what.handle))

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Any:
        cuda = self._cuda
        self._check(
            cuda.cudaStreamBeginCapture(stream.handle, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            enqueue()
        except BaseException:
            error, *graph = cuda.cudaStreamEndCapture(stream.handle)  # whatever it says: the first failure is the news
            if error == cuda.cudaError_t.cudaSuccess and graph:
                cuda.cudaGraphDestroy(graph[0])
            raise
        graph = self._check(cuda.cudaStreamEndCapture(stream.handle))
        try:
            return _Graph(self._check(cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            cuda.cudaGraphDestroy(graph)

    def launch(self, graph: Any, stream: Stream) -> None:
        self._check(self._cuda.cudaGraphLaunch(graph.handle, stream.handle))
