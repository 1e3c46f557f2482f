"""What the process of one GPU contender does: a batch of frames in host memory to their scores in host memory, in each of its ways.

    python -m benchmarks.speed.gpu       the card's limits, as one line of JSON

Whatever the system, every output goes back to host memory: scores, heatmaps and expected pictures. fp32 is without TF32 everywhere.
torch computes fp16 by autocast, over the whole graph and not only its network, which is to its favour; it has no int8.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.speed.contenders import FLAWLINE, GPU_BATCHES, Contender, Way
from numpy.typing import NDArray

from flawline_engines.bench import peak_gflops
from flawline_engines.engine import GPU_KINDS, Engine, model_for
from flawline_engines.gpu_memory import DeviceMemory, open_memory
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.roofline import gpu_copy_gb_per_s
from flawline_engines.tensorrt import BuildSettings, compile_plan, load_module
from flawline_engines.tensorrt_runner import TensorRtEngine
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EngineError
from flawline_inspect.files import write_atomic

__all__ = ["card_limits", "opened_on_gpu", "way_of"]

COMPILED_BATCHES = (1, 8, 32, 64)
"""Each is compiled anew, for up to a minute."""
DEVICE = "cuda"
PROVIDER: Any = "cuda"


def way_of(batch: int) -> str:
    return f"batch-{batch}"


@contextlib.contextmanager
def opened_on_gpu(contender: Contender, work: Path) -> Iterator[dict[str, Way]]:
    """Its ways, `batch-1` to `batch-64`. Raises `EngineError` and whatever the library raises."""
    if contender.runtime.startswith("torch"):
        yield _torch(contender)
        return
    file = contender.file(work)
    assert file is not None
    bundle = Bundle.open(file)
    with _engine(contender, bundle, work) as engine:
        yield {way_of(batch): _infer(engine, frames_of(contender.size, batch)) for batch in GPU_BATCHES}


def frames_of(size: int, batch: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)


def _infer(engine: Engine, frames: NDArray[np.uint8]) -> Way:
    return lambda: engine.infer(frames)


# --- engines ---------------------------------------------------------------------------------------------------------


def _engine(contender: Contender, bundle: Bundle, work: Path) -> Engine:
    """Not entered. A plan is compiled for all batches at once and kept, since graphs on and off are two processes."""
    model, hw = model_for(bundle, contender.precision), (contender.size, contender.size)
    if contender.runtime == "onnxruntime cuda":
        return OnnxRuntimeEngine(model, hw, precision=contender.precision, provider=PROVIDER)
    module = contender.runtime
    assert module == "tensorrt" or module == "tensorrt_rtx", module  # noqa: PLR1714 - narrows the type
    version = str(load_module(module).__version__)
    path = work / f"{Path(bundle.source).stem}-{contender.precision}-{module}-{version}.plan"

    def plan_for(_: object) -> bytes:
        if not path.is_file():
            plan, _cache = compile_plan(module, model, settings=BuildSettings(max_batch=max(GPU_BATCHES)))
            write_atomic(path, plan)
        return path.read_bytes()

    return TensorRtEngine(
        module, hw, plan_for, precision=contender.precision, memory=lambda: _memory(graphs=contender.graphs)
    )


def _memory(*, graphs: bool) -> DeviceMemory:
    memory = open_memory("cuda-bindings")
    if not graphs:
        memory.has_graphs = False  # type: ignore[misc]
    return memory


# --- torch -----------------------------------------------------------------------------------------------------------


def _torch(contender: Contender) -> dict[str, Way]:
    import torch
    from benchmarks.speed.models import inspection_graph

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # searches for the fastest kernels, as TensorRT does
    graph = inspection_graph(contender.system.removeprefix(FLAWLINE), contender.size).to(DEVICE)
    half = contender.precision == "fp16"

    module = torch.compile(graph, dynamic=False) if contender.runtime == "torch cuda compiled" else graph

    def run(frames: Any) -> Any:
        with torch.inference_mode(), torch.autocast(DEVICE, torch.float16, enabled=half):
            return module(frames)

    def way(batch: int) -> Way:
        frames = torch.from_numpy(frames_of(contender.size, batch))
        pinned = frames.pin_memory() if DEVICE == "cuda" else frames.clone()
        made: list[Callable[[], Any]] = []

        def call() -> object:
            if not made:  # in the first call, as every contender
                made.append(_on_device(run, pinned, replay=contender.runtime == "torch cuda graph"))
            pinned.copy_(frames)
            return made[0]()

        return call

    batches = COMPILED_BATCHES if contender.runtime == "torch cuda compiled" else GPU_BATCHES
    return {way_of(batch): way(batch) for batch in batches}


def _on_device(run: Callable[[Any], Any], pinned: Any, *, replay: bool) -> Callable[[], Any]:
    """From page-locked frames to page-locked results; with `replay` everything on the GPU is one CUDA graph."""
    import torch

    given = torch.empty_like(pinned, device=DEVICE)
    given.copy_(pinned)
    results = run(given)
    hosts = [torch.empty(each.shape, dtype=each.dtype, pin_memory=DEVICE == "cuda") for each in results]
    graph: Any = None
    if replay and DEVICE == "cuda":
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what allocates and searches for kernels does it before it is captured
                run(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run(given)

    def call() -> Any:
        given.copy_(pinned, non_blocking=True)
        if graph is not None:
            graph.replay()
        for host, result in zip(hosts, results if graph is not None else run(given), strict=True):
            host.copy_(result, non_blocking=True)
        if DEVICE == "cuda":
            torch.cuda.current_stream().synchronize()
        return [host.numpy().copy() for host in hosts]

    return call


# --- the card's limits -------------------------------------------------------------------------------------------------


def card_limits() -> dict[str, Any]:
    """GFLOP/s of large convolutions by precision, the best of what is here, and GB/s within the card's memory.

    `said`: what an engine that could not be measured gave as its reason.
    """
    peaks: dict[str, float] = {}
    said: dict[str, str] = {}
    for kind in GPU_KINDS:
        for precision in ("fp32", "fp16", "int8"):
            try:
                found = peak_gflops(kind, precision=precision)
            except EngineError as exc:
                said.setdefault(kind, str(exc))
                continue
            peaks[precision] = max(found, peaks.get(precision, 0.0))
    for precision in ("fp32", "fp16"):
        found = _torch_peak(half=precision == "fp16")
        peaks[precision] = max(found, peaks.get(precision, 0.0))
    copy: float | None = None
    try:
        copy = gpu_copy_gb_per_s(open_memory("cuda-bindings"))
    except EngineError as exc:
        said["copy"] = str(exc)
    return {"peaks": peaks, "copy_gb_per_s": copy, "said": said}


def _torch_peak(*, half: bool, channels: int = 256, side: int = 64, batch: int = 32, runs: int = 20) -> float:
    """One 3x3 convolution, by torch."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    dtype = torch.float16 if half else torch.float32
    x = torch.randn(batch, channels, side, side, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(DEVICE, dtype)
    layer = layer.to(memory_format=torch.channels_last)
    gflop = 2 * 9 * channels**2 * side**2 * batch / 1e9
    best = float("inf")
    with torch.inference_mode():
        for _ in range(3):
            layer(x)
        for _ in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(10):
                layer(x)
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 10)
    return 1e3 * gflop / best


if __name__ == "__main__":
    from benchmarks.speed.child import MARK

    print(MARK + json.dumps(card_limits()), flush=True)
