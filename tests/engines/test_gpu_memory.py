"""GPU memory by pycuda and by cuda-bindings, against stand-ins of both that keep books; and the GPU's one thread."""

from __future__ import annotations

import ast
import importlib
import sys
import threading
import types
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.gpu_stand_ins import GPU, FakeMemory

import flawline_engines
from flawline_engines.gpu_cuda_bindings import CudaBindingsMemory
from flawline_engines.gpu_memory import DeviceMemory, GpuThread, open_memory
from flawline_engines.gpu_pycuda import PycudaMemory
from flawline_inspect.errors import EngineError

PACKAGE = Path(flawline_engines.__file__).parent


class Books:
    """What is allocated, by its number; memory is real, so that copies can be checked."""

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.stack: dict[int, int] = {}
        self.last = 100

    def add(self, thing: Any, number: int = 0) -> int:
        self.last += 1
        number = number or self.last
        self.live[number] = thing
        return number

    def array(self, n_bytes: int) -> Any:
        array = np.zeros(n_bytes, np.uint8)
        return self.add(array, array.ctypes.data)

    def remove(self, number: int) -> None:
        del self.live[int(number)]


# --- pycuda ----------------------------------------------------------------------------------------------------------


def fake_pycuda(books: Books, *, gpus: int = 1, integrated: bool = False) -> types.ModuleType:
    """As much of pycuda.driver as is used; a context has to be on the calling thread's stack for what needs one."""
    cuda = types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    def in_context() -> None:
        if not books.stack.get(threading.get_ident(), 0):
            raise Error("explicit_context_dependent failed: invalid device context - no currently active context?")

    class Context:
        def push(self) -> None:
            books.stack[threading.get_ident()] = books.stack.get(threading.get_ident(), 0) + 1

        @staticmethod
        def pop() -> None:
            books.stack[threading.get_ident()] -= 1

        def detach(self) -> None:
            assert not any(books.stack.values()), "detached under a pushed context"
            books.remove(1)

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return gpus

        def name(self) -> str:
            return "Stand-in 4000"

        def compute_capability(self) -> tuple[int, int]:
            return (8, 7)

        def get_attribute(self, which: str) -> int:
            assert which == "INTEGRATED"
            return int(integrated)

        def retain_primary_context(self) -> Context:
            books.add("context", 1)
            return Context()

    class DeviceAllocation:
        def __init__(self, n_bytes: int) -> None:
            in_context()
            if n_bytes > 1 << 30:
                raise Error("cuMemAlloc failed: out of memory")
            self.number = books.array(n_bytes)

        def __int__(self) -> int:
            return self.number

        def free(self) -> None:
            in_context()
            books.remove(self.number)

    class PagelockedHostAllocation(np.ndarray):  # type: ignore[type-arg]
        mapped = False

        def free(self) -> None:
            in_context()
            books.remove(self.ctypes.data)

        def get_device_pointer(self) -> int:
            if not self.mapped:
                raise Error("cuMemHostGetDevicePointer failed: invalid argument")
            return int(self.ctypes.data)

    def pagelocked_empty(n_bytes: int, dtype: type, mem_flags: int) -> Any:
        in_context()
        allocation = np.zeros(n_bytes, np.uint8).view(PagelockedHostAllocation)
        allocation.mapped = mem_flags == 2
        books.add("host", allocation.ctypes.data)

        class Array(np.ndarray):  # type: ignore[type-arg]
            @property
            def base(self) -> Any:
                return allocation

        return allocation.view(Array)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            in_context()
            assert flags == 1
            self.handle = books.last + 1000

        def synchronize(self) -> None:
            in_context()

        def wait_for_event(self, event: Any) -> None:
            assert isinstance(event, Event)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            in_context()
            assert flags == 2

        def record(self, stream: Any) -> None:
            assert isinstance(stream, Stream)

        def synchronize(self) -> None:
            in_context()

    def memcpy_htod_async(target: int, source: Any, stream: Any) -> None:
        assert isinstance(stream, Stream)
        books.live[target][: source.nbytes] = source

    def memcpy_dtoh_async(target: Any, source: int, stream: Any) -> None:
        assert isinstance(stream, Stream)
        target[...] = books.live[source][: target.nbytes]

    def memcpy_dtod_async(target: int, source: int, n_bytes: int, stream: Any) -> None:
        assert isinstance(stream, Stream)
        books.live[target][:n_bytes] = books.live[source][:n_bytes]

    offered: dict[str, Any] = {
        "Error": Error,
        "Context": Context,
        "Device": Device,
        "Stream": Stream,
        "Event": Event,
        "init": lambda: None,
        "mem_alloc": DeviceAllocation,
        "pagelocked_empty": pagelocked_empty,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
        "memcpy_dtod_async": memcpy_dtod_async,
        "device_attribute": types.SimpleNamespace(INTEGRATED="INTEGRATED"),
        "host_alloc_flags": types.SimpleNamespace(DEVICEMAP=2),
        "event_flags": types.SimpleNamespace(DISABLE_TIMING=2),
    }
    vars(cuda).update(offered)
    return cuda


def with_pycuda(monkeypatch: pytest.MonkeyPatch, books: Books, **options: Any) -> PycudaMemory:
    package = types.ModuleType("pycuda")
    package.driver = fake_pycuda(books, **options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    return PycudaMemory()


# --- cuda-bindings ---------------------------------------------------------------------------------------------------


CudaError = IntEnum(
    "CudaError",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
    },
)


def fake_cuda(books: Books, *, gpus: int = 1, integrated: bool = False, driver: bool = True) -> types.ModuleType:
    """As much of cuda.bindings.runtime as is used: every call gives (error, values...) and raises nothing."""
    good = CudaError.cudaSuccess
    attributes = types.SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=7, cudaDevAttrIntegrated=int(integrated)
    )
    state: dict[str, Any] = {"captured": None}

    def malloc(n_bytes: int) -> tuple[Any, ...]:
        return (CudaError.cudaErrorMemoryAllocation, 0) if n_bytes > 1 << 30 else (good, books.array(n_bytes))

    def free(number: Any) -> tuple[Any, ...]:
        books.remove(number)
        return (good,)

    def copy(target: int, source: int, n_bytes: int, kind: str, stream: int) -> tuple[Any, ...]:
        assert kind in ("H2D", "D2H", "D2D") and stream in books.live

        def work() -> None:
            books.live[target][:n_bytes] = books.live[source][:n_bytes]

        if state["captured"] is None:
            work()
        else:
            state["captured"].append(work)
        return (good,)

    def begin(stream: int, mode: str) -> tuple[Any, ...]:
        assert mode == "thread local" and state["captured"] is None
        state["captured"] = []
        return (good,)

    def end(stream: int) -> tuple[Any, ...]:
        work, state["captured"] = state["captured"], None
        return (good, books.add(work))

    def instantiate(graph: int, flags: int) -> tuple[Any, ...]:
        return good, books.add(books.live[graph])

    def launch(graph: int, stream: int) -> tuple[Any, ...]:
        for work in books.live[graph]:
            work()
        return (good,)

    def reset() -> tuple[Any, ...]:
        books.live.clear()
        return (good,)

    cuda = types.ModuleType("cuda.bindings.runtime")
    offered: dict[str, Any] = {
        "cudaError_t": CudaError,
        "cudaGetErrorString": lambda error: (good, f"a sentence about {error.name}".encode()),
        "cudaGetDeviceCount": lambda: (good, gpus) if driver else (CudaError.cudaErrorInsufficientDriver, None),
        "cudaSetDevice": lambda index: (good,),
        "cudaDeviceAttr": attributes,
        "cudaDeviceGetAttribute": lambda which, index: (good, which),
        "cudaGetDeviceProperties": lambda index: (good, types.SimpleNamespace(name=b"Stand-in 4000\0\0")),
        "cudaMalloc": malloc,
        "cudaFree": free,
        "cudaHostAlloc": lambda n_bytes, flags: (good, books.array(n_bytes)),
        "cudaHostAllocMapped": 2,
        "cudaHostGetDevicePointer": lambda number, flags: (good, number),
        "cudaFreeHost": free,
        "cudaStreamCreateWithFlags": lambda flags: (good, books.add(f"stream {flags}")),
        "cudaStreamNonBlocking": 1,
        "cudaStreamDestroy": free,
        "cudaStreamSynchronize": lambda stream: (good,),
        "cudaStreamWaitEvent": lambda stream, event, flags: (good,),
        "cudaEventCreateWithFlags": lambda flags: (good, books.add("event")),
        "cudaEventDisableTiming": 2,
        "cudaEventRecord": lambda event, stream: (good,),
        "cudaEventSynchronize": lambda event: (good,),
        "cudaEventDestroy": free,
        "cudaMemcpyAsync": copy,
        "cudaMemcpyKind": types.SimpleNamespace(
            cudaMemcpyHostToDevice="H2D", cudaMemcpyDeviceToHost="D2H", cudaMemcpyDeviceToDevice="D2D"
        ),
        "cudaDeviceReset": reset,
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": end,
        "cudaStreamCaptureMode": types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local"),
        "cudaGraphInstantiate": instantiate,
        "cudaGraphLaunch": launch,
        "cudaGraphDestroy": free,
        "cudaGraphExecDestroy": free,
    }
    vars(cuda).update(offered)
    return cuda


def with_cuda(monkeypatch: pytest.MonkeyPatch, books: Books, **options: Any) -> CudaBindingsMemory:
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = fake_cuda(books, **options)  # type: ignore[attr-defined]
    for name, module in (("cuda", types.ModuleType("cuda")), ("cuda.bindings", bindings)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings.runtime)
    return CudaBindingsMemory()


MAKE: dict[str, Callable[..., DeviceMemory]] = {"pycuda": with_pycuda, "cuda-bindings": with_cuda}


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrated", [False, True], ids=["card", "Jetson"])
@pytest.mark.parametrize("kind", MAKE)
def test_what_is_copied_arrives_and_what_is_made_is_freed(
    monkeypatch: pytest.MonkeyPatch, kind: str, integrated: bool
) -> None:
    """The way of a frame, on the GPU's own thread, until the books are empty."""
    books = Books()
    memory = MAKE[kind](monkeypatch, books, integrated=integrated)
    thread = GpuThread(memory)
    gpu = thread.start()
    assert (gpu.name, gpu.compute_capability, gpu.is_integrated) == ("Stand-in 4000", "8.7", integrated)
    assert memory.name == kind

    def work() -> None:
        stream, event = memory.stream(), memory.event()
        assert stream.number > 0
        given, back = memory.host(64, mapped=integrated), memory.host(64, mapped=integrated)
        assert (given.pointer != 0) == integrated and given.array.shape == (64,)
        device, other = memory.device(64), memory.device(64)
        given.array[:] = np.arange(64)
        memory.upload(device, given, 48, stream)
        memory.record(event, stream)
        memory.wait(stream, event)
        memory.duplicate(other, device, 48, stream)
        memory.download(back, other, 32, stream)
        memory.synchronize(stream)
        memory.synchronize(event)
        assert back.array.tolist() == [*range(32), *[0] * 32]
        for thing in (device, other, given, back, event, stream):
            memory.free(thing)

    thread.run(work)
    thread.stop()
    thread.stop()
    assert not books.live and not any(books.stack.values())


@pytest.mark.parametrize("kind", MAKE)
def test_a_lost_context_is_made_anew(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What was made in it is gone with it, and the same GPU can be taken again; a driver that refuses is quoted."""
    books = Books()
    status = 0

    def reset(device: int) -> int:
        assert device == 0
        books.live.clear()
        return status

    driver = types.SimpleNamespace(cuDevicePrimaryCtxReset_v2=reset)
    memory = MAKE[kind](monkeypatch, books)
    monkeypatch.setattr("flawline_engines.gpu_pycuda.ctypes.CDLL", lambda name: driver)
    thread = GpuThread(memory)
    thread.start()
    thread.run(lambda: memory.device(8))
    thread.give_up()
    assert not books.live
    thread.start()
    thread.run(lambda: memory.free(memory.device(8)))
    status = 999
    if kind == "pycuda":
        with pytest.raises(EngineError, match=r"cannot be made anew \(CUDA error 999\)"):
            thread.give_up()
    thread.stop()


@pytest.mark.parametrize("kind", MAKE)
def test_a_gpu_that_is_full(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """CUDA's own words in an `EngineError`; the thread goes on."""
    books = Books()
    memory = MAKE[kind](monkeypatch, books)
    thread = GpuThread(memory)
    thread.start()
    with pytest.raises(EngineError, match=r"the GPU failed: .*(out of memory|cudaErrorMemoryAllocation)"):
        thread.run(lambda: memory.device(1 << 40))
    thread.run(lambda: memory.free(memory.device(8)))
    thread.stop()
    assert not books.live


@pytest.mark.parametrize("kind", MAKE)
def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The sentence says which engines there are instead, and no thread is left."""
    thread = GpuThread(MAKE[kind](monkeypatch, Books(), gpus=0))
    with pytest.raises(EngineError, match=r"there is no NVIDIA GPU .* use engine auto, openvino or onnxruntime"):
        thread.start()
    with pytest.raises(EngineError, match="the GPU is not open"):
        thread.run(lambda: None)


def test_an_old_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings reports it by an error code."""
    with pytest.raises(EngineError, match="cudaErrorInsufficientDriver"):
        GpuThread(with_cuda(monkeypatch, Books(), driver=False)).start()


# --- graphs ----------------------------------------------------------------------------------------------------------


def test_a_graph_does_again_what_was_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing while capturing, all of it with each launch; graph and template are freed."""
    books = Books()
    memory = with_cuda(monkeypatch, books)
    memory.open()
    stream = memory.stream()
    source, target = memory.host(4, mapped=False), memory.device(4)
    source.array[:] = 7
    graph = memory.capture(stream, lambda: memory.upload(target, source, 4, stream))
    assert books.live[target.handle].tolist() == [0] * 4
    memory.launch(graph, stream)
    assert books.live[target.handle].tolist() == [7] * 4
    for thing in (graph, source, target, stream):
        memory.free(thing)
    assert not books.live


def test_a_capture_that_fails_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream can be used again, and the half graph is freed."""
    books = Books()
    memory = with_cuda(monkeypatch, books)
    memory.open()
    stream = memory.stream()

    def fails() -> None:
        raise EngineError("the execution failed")

    with pytest.raises(EngineError, match="the execution failed"):
        memory.capture(stream, fails)
    memory.free(memory.capture(stream, lambda: None))
    memory.free(stream)
    assert not books.live


def test_pycuda_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says who has."""
    memory = with_pycuda(monkeypatch, Books())
    assert not memory.has_graphs
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        memory.capture(None, lambda: None)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        memory.launch(None, None)  # type: ignore[arg-type]


# --- the choice ------------------------------------------------------------------------------------------------------


def test_pycuda_is_first_and_cuda_bindings_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second only where the first cannot be imported; by name only that one."""
    with_pycuda(monkeypatch, Books())
    with_cuda(monkeypatch, Books())
    assert open_memory().name == "pycuda" and open_memory("cuda-bindings").name == "cuda-bindings"
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.delattr(sys.modules["pycuda"], "driver")
    assert open_memory().name == "cuda-bindings"
    with pytest.raises(EngineError, match="pycuda cannot be imported"):
        open_memory("pycuda")


def test_neither_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both reasons and both cures."""
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        EngineError, match=r"pycuda cannot be imported .*pip install .*; cuda-bindings cannot be imported"
    ):
        open_memory()
    with pytest.raises(EngineError, match="'abacus' is unknown; expected auto, pycuda or cuda-bindings"):
        open_memory("abacus")  # type: ignore[arg-type]


def test_the_thread_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks, the work is done where the GPU was opened, one piece at a time, and errors come back."""
    memory = FakeMemory(GPU)
    thread = GpuThread(memory)
    thread.start()
    numbers: list[int] = []
    callers = [threading.Thread(target=lambda: numbers.append(thread.run(threading.get_ident))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert set(numbers) == {memory.thread} and threading.get_ident() != memory.thread
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda: 1 // 0)
    thread.stop()
    memory.assert_clean()


def test_every_name_of_cuda_bindings_exists() -> None:
    """Read from the code, held against the installed package, of which torch brings one for CUDA 13."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse((PACKAGE / "gpu_cuda_bindings.py").read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}
    enumerations = (runtime.cudaError_t, runtime.cudaDeviceAttr, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    assert len(used) > 30
    assert [name for name in sorted(used) if not any(hasattr(at, name) for at in (runtime, *enumerations))] == []
    stand_in = {name for name in vars(fake_cuda(Books())) if name.startswith("cuda")}
    assert stand_in <= used


def test_cuda_bindings_without_a_driver_says_so() -> None:
    """The real package on a machine without a GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    importlib.invalidate_caches()
    with pytest.raises(EngineError, match=r"there is no NVIDIA GPU that can be used \(the GPU failed: "):
        GpuThread(open_memory("cuda-bindings")).start()
