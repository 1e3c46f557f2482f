"""GPU memory by pycuda; see `flawline_engines.gpu_memory` for what its contexts ask of a caller."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flawline_engines.gpu_memory import DeviceBuffer, Gpu, HostBuffer, Stream
from flawline_inspect.errors import EngineError

__all__ = ["PycudaMemory"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda has no name for


class PycudaMemory:
    """A `DeviceMemory`. Building it imports pycuda, which fails where there is no NVIDIA driver."""

    name = "pycuda"
    has_graphs = False

    def __init__(self) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as exc:
            raise EngineError(
                f"pycuda cannot be imported ({exc}); pip install pycuda, or pip install cuda-bindings"
            ) from exc
        self._cuda: Any = cuda
        self._context: Any = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as exc:
            raise EngineError(f"the GPU failed: {exc}") from exc

    def open(self) -> Gpu:
        with self._translated():
            self._cuda.init()
            if not self._cuda.Device.count():
                raise EngineError("there is no NVIDIA GPU in this machine; use engine auto, openvino or onnxruntime")
            device = self._cuda.Device(0)
            gpu = Gpu(
                name=str(device.name()),
                compute_capability=".".join(map(str, device.compute_capability())),
                is_integrated=bool(device.get_attribute(self._cuda.device_attribute.INTEGRATED)),
            )
            self._context = device.retain_primary_context()  # retained, not pushed
        return gpu

    def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            with self._translated():
                context.detach()

    def reset(self) -> None:
        """Detaching leaves the context to TensorRT, which holds it, too; pycuda has no name for ending it for all."""
        with contextlib.suppress(EngineError):  # of a lost context
            self.close()
        status = ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxReset_v2(0)
        if status:
            raise EngineError(f"the GPU failed: its context cannot be made anew (CUDA error {status})")

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._translated():
            self._context.push()
            try:
                yield
            finally:
                self._cuda.Context.pop()

    def device(self, n_bytes: int) -> DeviceBuffer:
        with self._translated():
            allocation = self._cuda.mem_alloc(n_bytes)
        return DeviceBuffer(int(allocation), allocation)

    def host(self, n_bytes: int, *, mapped: bool) -> HostBuffer:
        flags = self._cuda.host_alloc_flags.DEVICEMAP if mapped else 0
        with self._translated():
            array = self._cuda.pagelocked_empty(n_bytes, np.uint8, mem_flags=flags)
            pointer = int(array.base.get_device_pointer()) if mapped else 0
        return HostBuffer(array, pointer, array.base)

    def stream(self) -> Stream:
        with self._translated():
            stream = self._cuda.Stream(_NON_BLOCKING)
        return Stream(int(stream.handle), stream)

    def event(self) -> Any:
        with self._translated():
            return self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING)

    def free(self, thing: Any) -> None:
        """Streams and events free themselves with their last reference, which the caller drops."""
        if isinstance(thing, DeviceBuffer | HostBuffer):
            with self._translated():
                thing.handle.free()

    def upload(self, target: DeviceBuffer, source: HostBuffer, n_bytes: int, stream: Stream) -> None:
        with self._translated():
            self._cuda.memcpy_htod_async(target.pointer, source.array[:n_bytes], stream.handle)

    def download(self, target: HostBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        with self._translated():
            self._cuda.memcpy_dtoh_async(target.array[:n_bytes], source.pointer, stream.handle)

    def duplicate(self, target: DeviceBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        with self._translated():
            self._cuda.memcpy_dtod_async(target.pointer, source.pointer, n_bytes, stream.handle)

    def record(self, event: Any, stream: Stream) -> None:
        with self._translated():
            event.record(stream.handle)

    def wait(self, stream: Stream, event: Any) -> None:
        with self._translated():
            stream.handle.wait_for_event(event)

    def synchronize(self, what: Any) -> None:
        with self._translated():
            (what.handle if isinstance(what, Stream) else what).synchronize()

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Any:
        raise EngineError("pycuda has no CUDA graphs; pip install cuda-bindings for them")

    def launch(self, graph: Any, stream: Stream) -> None:
        raise EngineError("pycuda has no CUDA graphs; pip install cuda-bindings for them")
