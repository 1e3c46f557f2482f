"""A GPU and a TensorRT that are none: they compute with NumPy, as late as the real ones may, and remember everything.

Work put on a stream is done only when something waits for it, and then no more than that needs: a result that is read
without waiting, or memory that is freed or written under work, is found out. What TensorRT's stand-in offers is
exactly what the real one offers and the code uses.
"""

from __future__ import annotations

import ctypes
import json
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.gpu_memory import DeviceBuffer, Gpu, HostBuffer, Stream
from flawline_inspect.errors import EngineError

LEVEL = 100
GPU = Gpu("Stand-in 4000", "8.7", is_integrated=False)
JETSON = Gpu("Stand-in Orin", "8.7", is_integrated=True)


def answers(frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What the stand-in's graph says of frames (N, H, W, 3)."""
    heatmaps = np.abs(frames.astype(np.float32) - LEVEL).mean(3, dtype=np.float32)
    return {"scores": heatmaps.max((1, 2)), "heatmaps": heatmaps, "expected": 255 - frames}


class FakeStream:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.done = 0

    def run_to(self, position: int) -> None:
        while self.done < position:
            self.done += 1  # first: an event may lead back here
            self.work[self.done - 1]()


class FakeEvent:
    def __init__(self) -> None:
        self.at: tuple[FakeStream, int] | None = None

    def reach(self) -> None:
        if self.at is not None:
            self.at[0].run_to(self.at[1])


class FakeGraph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work


class FakeMemory:
    """A `DeviceMemory`. `fail` is the name of a call and how many of it succeed before one fails."""

    name = "stand-in"

    def __init__(self, gpu: Gpu = GPU, *, has_graphs: bool = False) -> None:
        self.gpu, self.has_graphs = gpu, has_graphs
        self.fail: tuple[str, int] | None = None
        self.is_lost = False
        """Whether the context was destroyed: then nothing works in it until `reset`."""
        self.can_enter_lost = True
        """A context that was destroyed can still be made current, as with cuda-bindings; with pycuda it cannot."""
        self.calls: list[str] = []
        self.is_open = False
        self.thread = 0
        self._inside = False
        self._capturing: list[Callable[[], None]] | None = None
        self.live: dict[int, Any] = {}
        self.streams: dict[int, FakeStream] = {}
        self.opened = 0

    # --- what is checked -------------------------------------------------------------------------------------------

    def step(self, name: str, *, in_context: bool = True) -> None:
        assert threading.get_ident() == self.thread, f"{name} on another thread than open"
        assert self._inside or not in_context, f"{name} without a current context"
        if self.fail is not None and self.fail[0] == name and self.calls.count(name) >= self.fail[1]:
            raise EngineError(f"{name} fails as it was told")
        if self.is_lost and name not in ("open", "close", "reset") and not (name == "push" and self.can_enter_lost):
            raise EngineError(f"{name}: the context is destroyed")
        self.calls.append(name)

    def assert_clean(self) -> None:
        assert not self.live, f"left behind: {list(self.live.values())}"
        assert not self.is_open and not self._inside

    def _keep(self, thing: Any) -> Any:
        self.live[id(thing.handle)] = thing
        return thing

    def put(self, number: int, work: Callable[[], None]) -> None:
        if self._capturing is not None:
            self._capturing.append(work)
        else:
            self.streams[number].work.append(work)

    @property
    def pending(self) -> int:
        return sum(len(stream.work) - stream.done for stream in self.streams.values())

    # --- DeviceMemory ------------------------------------------------------------------------------------------------

    def open(self) -> Gpu:
        self.thread = threading.get_ident()
        self.step("open", in_context=False)
        assert not self.is_open
        self.is_open = True
        self.opened += 1
        return self.gpu

    def close(self) -> None:
        self.step("close", in_context=False)
        assert self.is_open and not self._inside
        self.is_open = False

    def reset(self) -> None:
        """What was made in the context is gone with it."""
        self.step("reset", in_context=False)
        assert self.is_open and not self._inside
        self.is_open = self.is_lost = False
        self.live.clear()
        self.streams.clear()

    @contextmanager
    def current(self) -> Iterator[None]:
        assert self.is_open and not self._inside
        self.step("push", in_context=False)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            self.calls.append("pop")

    def device(self, n_bytes: int) -> DeviceBuffer:
        self.step("device")
        array = np.full(n_bytes, 0xEE, np.uint8)
        return self._keep(DeviceBuffer(array.ctypes.data, array))

    def host(self, n_bytes: int, *, mapped: bool) -> HostBuffer:
        self.step("host")
        assert mapped == self.gpu.is_integrated
        array = np.full(n_bytes, 0xEE, np.uint8)
        return self._keep(HostBuffer(array, array.ctypes.data if mapped else 0, array))

    def stream(self) -> Stream:
        self.step("stream")
        fake = FakeStream()
        number = 1000 + len(self.streams)
        self.streams[number] = fake
        return self._keep(Stream(number, fake))

    def event(self) -> Any:
        self.step("event")
        fake = FakeEvent()
        self.live[id(fake)] = fake
        return fake

    def free(self, thing: Any) -> None:
        self.step("free")
        assert isinstance(thing, FakeGraph | FakeEvent) or not self.pending, "freed under work"
        del self.live[id(thing if isinstance(thing, FakeEvent | FakeGraph) else thing.handle)]

    def upload(self, target: DeviceBuffer, source: HostBuffer, n_bytes: int, stream: Stream) -> None:
        self.step("upload")
        self.put(stream.number, lambda: target.handle.__setitem__(slice(n_bytes), source.array[:n_bytes]))

    def download(self, target: HostBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        self.step("download")
        self.put(stream.number, lambda: target.array.__setitem__(slice(n_bytes), source.handle[:n_bytes]))

    def duplicate(self, target: DeviceBuffer, source: DeviceBuffer, n_bytes: int, stream: Stream) -> None:
        self.step("duplicate")
        self.put(stream.number, lambda: target.handle.__setitem__(slice(n_bytes), source.handle[:n_bytes]))

    def record(self, event: FakeEvent, stream: Stream) -> None:
        self.step("record")
        event.at = (self.streams[stream.number], len(self.streams[stream.number].work))

    def wait(self, stream: Stream, event: FakeEvent) -> None:
        self.step("wait")
        source, position = event.at or (FakeStream(), 0)
        self.put(stream.number, lambda: source.run_to(position))

    def synchronize(self, what: Any) -> None:
        self.step("synchronize")
        if isinstance(what, Stream):
            self.streams[what.number].run_to(len(self.streams[what.number].work))
        else:
            what.reach()

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Any:
        self.step("capture")
        self._capturing = []
        try:
            enqueue()
            graph = FakeGraph(self._capturing)
        finally:
            self._capturing = None
        self.live[id(graph)] = graph
        return graph

    def launch(self, graph: FakeGraph, stream: Stream) -> None:
        self.step("launch")
        for work in graph.work:
            self.put(stream.number, work)


def plan_bytes(hw: tuple[int, int], *, max_batch: int = 4, **changes: Any) -> bytes:
    """A plan for `FakeTensorRt`: name → [mode, type, shape of one frame]."""
    height, width = hw
    tensors = {
        "frames": ["INPUT", "UINT8", [height, width, 3]],
        "scores": ["OUTPUT", "FLOAT", []],
        "heatmaps": ["OUTPUT", "FLOAT", [height, width]],
        "expected": ["OUTPUT", "UINT8", [height, width, 3]],
    }
    return json.dumps({"tensors": tensors | changes, "max_batch": max_batch}).encode()


class FakeTensorRt(types.ModuleType):
    """A module like `tensorrt`, whose engines compute `answers` in the memory that their addresses name."""

    def __init__(self, memory: FakeMemory, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = "10.3.0"
        self.ended: list[str] = []
        """Runtime, engine and context, as they were collected."""
        fake = self

        class Severity:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        class ILogger:
            pass

        ILogger.Severity = Severity  # type: ignore[attr-defined]

        class IErrorRecorder:
            pass

        class IProgressMonitor:
            pass

        class DataType:
            UINT8, FLOAT = "UINT8", "FLOAT"

        class TensorIOMode:
            INPUT, OUTPUT = "INPUT", "OUTPUT"

        class IExecutionContext:
            def __init__(self, contents: dict[str, Any]) -> None:
                self._contents = contents
                self._addresses: dict[str, int] = {}
                self._batch = 0
                weakref.finalize(self, fake.ended.append, "context").atexit = False

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                memory.step("set_input_shape")
                frame = tuple(self._contents["tensors"][name][2])
                if shape[1:] != frame or not 1 <= shape[0] <= self._contents["max_batch"]:
                    return False
                self._batch = shape[0]
                return True

            def infer_shapes(self) -> list[str]:
                memory.step("infer_shapes")
                return [] if self._batch else ["frames"]

            def set_tensor_address(self, name: str, address: int) -> bool:
                memory.step("set_tensor_address")
                if name not in self._contents["tensors"] or not address:
                    return False
                self._addresses[name] = address
                return True

            def execute_async_v3(self, stream_handle: int) -> bool:
                memory.step("execute_async_v3")
                assert set(self._addresses) == set(self._contents["tensors"]) and self._batch
                memory.put(stream_handle, self._work(dict(self._addresses), self._batch))
                return True

            def _work(self, addresses: dict[str, int], batch: int) -> Callable[[], None]:
                shape = (batch, *self._contents["tensors"]["frames"][2])

                def work() -> None:
                    n_bytes = int(np.prod(shape))
                    raw = (ctypes.c_uint8 * n_bytes).from_address(addresses["frames"])
                    frames = np.ctypeslib.as_array(raw).reshape(shape)
                    for output, values in answers(frames).items():
                        ctypes.memmove(addresses[output], np.ascontiguousarray(values).ctypes.data, values.nbytes)

                return work

        class ICudaEngine:
            def __init__(self, contents: dict[str, Any]) -> None:
                self._contents = contents
                self._names = list(contents["tensors"])
                weakref.finalize(self, fake.ended.append, "engine").atexit = False

            @property
            def num_io_tensors(self) -> int:
                return len(self._names)

            def get_tensor_name(self, index: int) -> str:
                return self._names[index]

            def get_tensor_mode(self, name: str) -> str:
                return str(self._contents["tensors"][name][0])

            def get_tensor_dtype(self, name: str) -> str:
                return str(self._contents["tensors"][name][1])

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (-1, *self._contents["tensors"][name][2])

            def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
                frame = self._contents["tensors"][name][2]
                return [(batch, *frame) for batch in (1, 1, self._contents["max_batch"])]

            @property
            def create_execution_context(self) -> Callable[[], Any]:
                contents = self._contents  # a failing call's frame must not keep the engine, as C++ would not

                def create() -> Any:
                    memory.step("create_execution_context")
                    return IExecutionContext(contents)

                return create

        class Runtime:
            def __init__(self, logger: Any) -> None:
                memory.step("Runtime")
                self.error_recorder: Any = None
                weakref.finalize(self, fake.ended.append, "runtime").atexit = False

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                memory.step("deserialize_cuda_engine")
                try:
                    return ICudaEngine(json.loads(plan))
                except ValueError:
                    self.error_recorder.report_error("INVALID", "the plan is none")
                    return None

        for made in (
            ILogger,
            IErrorRecorder,
            IProgressMonitor,
            DataType,
            TensorIOMode,
            IExecutionContext,
            ICudaEngine,
            Runtime,
        ):
            setattr(self, made.__name__, made)
