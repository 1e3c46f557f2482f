"""Measuring an engine: latency, the graph's arithmetic, and what the machine could do at best.

A latency alone says little of an engine. So the graph's convolutions are counted, and the rate at which they were
computed is held against the rate that large convolutions reach through the same engine on the same cores.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import GPU_KINDS, Engine, EngineKind, Precision, timed_ms
from flawline_engines.onnx_file import PEAK_DEPTH, convolution_model
from flawline_inspect.errors import EngineError

__all__ = [
    "GraphCost",
    "HasBareLoop",
    "Latency",
    "PythonCost",
    "conv_gflop",
    "convolution_model",
    "engine_for",
    "graph_cost",
    "has_precision",
    "measure",
    "peak_gflops",
    "python_cost",
    "times_in_turn",
]

WARM_UP_SHARE = 0.2
"""Part of the measuring time that is spent before it, unmeasured: caches, threads and clocks settle."""
MIN_WARM_UPS = 3
MIN_RUNS = 20

PEAK_SHAPES = ((64, 64), (128, 32), (128, 64), (256, 32))
"""Channels and side in pixels of the convolutions whose best rate is the peak: which one wins depends on the caches."""
GPU_PEAK_SHAPES = ((256, 64), (512, 32))
GPU_PEAK_BATCH = 32
PEAK_SECONDS = 0.3

_MEASURED: tuple[EngineKind, ...] = (*GPU_KINDS, "openvino", "onnxruntime")
_OPERATIONS_PER_MAC = 2  # a multiplication and an addition


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call of `infer` with `batch` frames took, over `runs` calls."""

    batch: int
    runs: int
    min_ms: float
    median_ms: float
    p99_ms: float
    frames_per_s: float
    """All frames by all of the time, slow calls included."""

    @classmethod
    def of(cls, ms: NDArray[np.float64], batch: int) -> Latency:
        """From the times of calls with `batch` frames each."""
        return cls(
            batch=batch,
            runs=len(ms),
            min_ms=float(ms.min()),
            median_ms=float(np.median(ms)),
            p99_ms=float(np.quantile(ms, 0.99, method="inverted_cdf")),  # a time that was measured, none between two
            frames_per_s=1e3 * batch * len(ms) / float(ms.sum()),
        )


def measure(engine: Engine, frames: NDArray[np.uint8], *, seconds: float = 1.0, min_runs: int = MIN_RUNS) -> Latency:
    """Time an entered engine with a batch of `frames` (N, H, W, 3), for `seconds` and `min_runs` calls at least."""
    [ms] = times_in_turn([lambda: engine.infer(frames)], seconds=seconds, rounds=1, min_runs=min_runs)
    return Latency.of(ms, len(frames))


def times_in_turn(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    rounds: int = 4,
    min_runs: int = MIN_RUNS,
    min_warm_ups: int = MIN_WARM_UPS,
) -> list[NDArray[np.float64]]:
    """What each of `calls` takes, in milliseconds, time after time: `seconds` and `min_runs` calls of each at least.

    Before that each is called `min_warm_ups` times and for a fifth of its time, unmeasured. They take turns in `rounds`, so
    that what else the machine does in the meantime falls on all of them alike.
    """
    for call in calls:
        warm_until, warmed = time.perf_counter() + WARM_UP_SHARE * seconds, 0
        while warmed < min_warm_ups or time.perf_counter() < warm_until:
            call()
            warmed += 1
    times_s: list[list[float]] = [[] for _ in calls]
    for turn in range(1, rounds + 1):
        for call, own in zip(calls, times_s, strict=True):
            begin = last = time.perf_counter()
            while len(own) < math.ceil(min_runs * turn / rounds) or last - begin < seconds / rounds:
                call()
                now = time.perf_counter()
                own.append(now - last)
                last = now
    return [1e3 * np.array(own) for own in times_s]


@runtime_checkable
class HasBareLoop(Protocol):
    """An engine that can be told apart from the runtime that it stands on; all but Triton's."""

    def bare_ms(self, frames: NDArray[np.uint8], runs: int) -> NDArray[np.float64]:
        """Milliseconds of each of `runs` calls of the runtime alone: no checks, no threads, no results of the caller's own."""
        ...


@dataclass(frozen=True, slots=True)
class PythonCost:
    """Medians of the runtime's own call and of `infer`, in turn: the difference is what we put around it."""

    bare_ms: float
    infer_ms: float

    @property
    def ms(self) -> float:
        return self.infer_ms - self.bare_ms

    @property
    def share(self) -> float:
        return self.ms / self.bare_ms


def python_cost(
    engine: Engine, frames: NDArray[np.uint8], *, seconds: float = 1.0, rounds: int = 8
) -> PythonCost | None:
    """Of an entered engine, `seconds` for both together; None where there is no loop of its own to compare with."""
    if not isinstance(engine, HasBareLoop):
        return None
    each_ms = measure(engine, frames, seconds=WARM_UP_SHARE * seconds, min_runs=MIN_WARM_UPS).median_ms
    runs = max(MIN_RUNS // rounds + 1, int(1e3 * seconds / 2 / rounds / each_ms))
    bare: list[NDArray[np.float64]] = []
    whole: list[NDArray[np.float64]] = []
    for _ in range(rounds):  # in turn, as in `times_in_turn`
        bare.append(engine.bare_ms(frames, runs))
        whole.append(timed_ms(lambda: engine.infer(frames), runs))
    return PythonCost(float(np.median(np.concatenate(bare))), float(np.median(np.concatenate(whole))))


# --- the graph's arithmetic ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Billions of operations per frame in convolutions and matrix products.

    `tail` are those with one channel in and out, which smooth the error map; the rest is the network's. `activations`:
    values per frame that go into and out of all of them, each counted as if no cache held it from one to the next.
    """

    network_gflop: float
    tail_gflop: float
    activations: int

    @property
    def gflop(self) -> float:
        return self.network_gflop + self.tail_gflop


def conv_gflop(model: bytes, hw: tuple[int, int]) -> float:
    """Billions of operations that the graph's convolutions and matrix products take for one frame."""
    return graph_cost(model, hw).gflop


def graph_cost(model: bytes, hw: tuple[int, int]) -> GraphCost:
    """Count the multiplications and additions of one frame. `model` is the ONNX file's bytes, `hw` its frame.

    The shapes are those of a real run: ONNX Runtime infers one frame, with its optimiser off so that every operator
    is still what the file says, and its profile names them. So no ONNX library is needed. Raises `EngineError`.
    """
    network = tail = activations = 0
    for operator, inputs, output in _profile(model, np.zeros((1, *hw, 3), np.uint8)):
        macs = _macs(operator, inputs, output)
        activations += math.prod(inputs[0]) + math.prod(output) if macs else 0
        # Errors and grey pictures, and what makes them; the network sees and shows colours.
        if operator.startswith("Conv") and 1 in (inputs[0][1], output[1]):
            tail += macs
        else:
            network += macs
    return GraphCost(_OPERATIONS_PER_MAC * network / 1e9, _OPERATIONS_PER_MAC * tail / 1e9, activations)


def _macs(operator: str, inputs: list[list[int]], output: list[int]) -> int:
    """Multiplications of one operator, from the shapes of its inputs and its output."""
    if operator == "Conv":  # weights (out, in / groups, *kernel): each output value is a sum over all but the first
        return math.prod(output) * math.prod(inputs[1][1:])
    if operator == "ConvTranspose":  # weights (in, out / groups, *kernel): each input value goes into that many sums
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if operator == "MatMul":
        return math.prod(output) * inputs[0][-1]
    if operator == "Gemm":  # A may be transposed, but has M K values either way, and the output is (M, N)
        return math.prod(inputs[0]) * output[-1]
    return 0


def _profile(model: bytes, frames: NDArray[np.uint8]) -> list[tuple[str, list[list[int]], list[int]]]:
    """Operator, input shapes and first output's shape of every node, in the order in which they ran."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing it writes a device id and calls Microsoft
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise EngineError(f"onnxruntime cannot be imported ({exc}); pip install onnxruntime") from exc
    with tempfile.TemporaryDirectory(prefix="flawline-bench-") as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Weights that were rearranged for the processor are no inputs any more, and missing in the profile.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 3  # errors only
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            session.run(None, {"frames": frames})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
            first_line = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
            raise EngineError(f"onnxruntime cannot run the graph: {first_line}") from exc
    return [
        (arguments["op_name"], _shapes(arguments["input_type_shape"]), _shapes(arguments["output_type_shape"])[0])
        for event in events
        if (arguments := event.get("args", {})).get("output_type_shape")
    ]


def _shapes(tensors: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for tensor in tensors for shape in tensor.values()]


# --- what the machine could do ---------------------------------------------------------------------------------------


def peak_gflops(
    kind: EngineKind,
    *,
    precision: Precision = "fp32",
    threads: int = 1,
    shapes: Sequence[tuple[int, int]] | None = None,
    seconds: float = PEAK_SECONDS,
) -> float:
    """Billions of operations a second that large 3x3 convolutions reach at best, through this engine as it is used.

    The fastest run of the best of `shapes` (channels, side in pixels), `seconds` each; on a GPU, which one frame does not
    fill, of `GPU_PEAK_BATCH` frames, and of the runtime's own calls. Raises `EngineError`.
    """
    is_gpu = kind in GPU_KINDS
    batch, best = GPU_PEAK_BATCH if is_gpu else 1, 0.0
    for channels, side in shapes or (GPU_PEAK_SHAPES if is_gpu else PEAK_SHAPES):
        model, hw = convolution_model(channels, side, precision), (side, side)
        frames = np.random.default_rng(0).integers(0, 256, (batch, *hw, 3), np.uint8)
        with engine_for(model, hw, kind, precision, threads, max_batch=batch) as engine:
            fastest_ms = measure(engine, frames, seconds=seconds, min_runs=5).min_ms
            if is_gpu and isinstance(engine, HasBareLoop):
                fastest_ms = float(engine.bare_ms(frames, max(5, int(1e3 * seconds / fastest_ms))).min())
        best = max(best, batch * _convolution_model_gflop(channels, side) / fastest_ms * 1e3)
    return best


def has_precision(kind: EngineKind, precision: Precision) -> bool:
    """Whether this machine computes in `precision` with this engine."""
    model = convolution_model(16, 16, precision)
    with contextlib.suppress(EngineError), engine_for(model, (16, 16), kind, precision, 1):
        return True
    return False


def engine_for(
    model: bytes, hw: tuple[int, int], kind: EngineKind, precision: Precision, threads: int, *, max_batch: int = 1
) -> Engine:
    """As `open_engine`, for a graph that is no bundle's. TensorRT compiles it on entering, for up to `max_batch` frames."""
    if kind in ("tensorrt", "tensorrt_rtx"):
        from flawline_engines.tensorrt import BuildSettings, compile_plan
        from flawline_engines.tensorrt_runner import TensorRtEngine

        module, settings = kind, BuildSettings(max_batch=max_batch)
        return TensorRtEngine(
            module, hw, lambda _: compile_plan(module, model, settings=settings)[0], precision=precision
        )
    if kind == "openvino":
        from flawline_engines.open_vino import OpenVinoEngine

        return OpenVinoEngine(model, hw, precision=precision, threads=threads)
    if kind == "onnxruntime":
        from flawline_engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model, hw, precision=precision, threads=threads)
    raise EngineError(f"there is no engine {kind!r} in {precision} to measure; expected {', '.join(_MEASURED)}")


def _convolution_model_gflop(channels: int, side: int) -> float:
    macs_per_pixel = 3 * 3 * (3 * channels + PEAK_DEPTH * channels**2)
    return _OPERATIONS_PER_MAC * macs_per_pixel * side**2 / 1e9
