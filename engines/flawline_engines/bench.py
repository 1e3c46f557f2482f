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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Engine, EngineKind, Precision
from flawline_inspect.errors import EngineError

__all__ = [
    "GraphCost",
    "Latency",
    "conv_gflop",
    "convolution_model",
    "graph_cost",
    "has_precision",
    "measure",
    "peak_gflops",
]

WARM_UP_SHARE = 0.2
"""Part of the measuring time that is spent before it, unmeasured: caches, threads and clocks settle."""
MIN_WARM_UPS = 3
MIN_RUNS = 20

PEAK_SHAPES = ((64, 64), (128, 32), (128, 64), (256, 32))
"""Channels and side in pixels of the convolutions whose best rate is the peak: which one wins depends on the caches."""
PEAK_DEPTH = 6
"""Convolutions in a row, so that what comes before and after them is lost in their time."""
PEAK_SECONDS = 0.3

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


def measure(engine: Engine, frames: NDArray[np.uint8], *, seconds: float = 1.0, min_runs: int = MIN_RUNS) -> Latency:
    """Time an entered engine with a batch of `frames` (N, H, W, 3), for `seconds` and `min_runs` calls at least."""
    warm_until, warmed = time.perf_counter() + WARM_UP_SHARE * seconds, 0
    while warmed < MIN_WARM_UPS or time.perf_counter() < warm_until:
        engine.infer(frames)
        warmed += 1
    times_s: list[float] = []
    begin = last = time.perf_counter()
    while len(times_s) < min_runs or last - begin < seconds:
        engine.infer(frames)
        now = time.perf_counter()
        times_s.append(now - last)
        last = now
    ms = 1e3 * np.array(times_s)
    return Latency(
        batch=len(frames),
        runs=len(ms),
        min_ms=float(ms.min()),
        median_ms=float(np.median(ms)),
        p99_ms=float(np.quantile(ms, 0.99, method="inverted_cdf")),  # a time that was measured, none between two
        frames_per_s=len(frames) * len(ms) / (last - begin),
    )


# --- the graph's arithmetic ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Billions of operations per frame in convolutions and matrix products.

    `tail` are those with one channel in and out, which smooth the error map; the rest is the network's.
    """

    network_gflop: float
    tail_gflop: float

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
    network = tail = 0
    for operator, inputs, output in _profile(model, np.zeros((1, *hw, 3), np.uint8)):
        macs = _macs(operator, inputs, output)
        if operator.startswith("Conv") and inputs[0][1] == 1:  # errors and grey pictures; the network sees colours
            tail += macs
        else:
            network += macs
    return GraphCost(_OPERATIONS_PER_MAC * network / 1e9, _OPERATIONS_PER_MAC * tail / 1e9)


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
    shapes: Sequence[tuple[int, int]] = PEAK_SHAPES,
    seconds: float = PEAK_SECONDS,
) -> float:
    """Billions of operations a second that large 3x3 convolutions reach at best, through this engine as it is used.

    The fastest run of the best of `shapes` (channels, side in pixels), `seconds` each. Raises `EngineError`.
    """
    best = 0.0
    for channels, side in shapes:
        model, hw = convolution_model(channels, side), (side, side)
        frames = np.random.default_rng(0).integers(0, 256, (1, *hw, 3), np.uint8)
        with _engine_for(model, hw, kind, precision, threads) as engine:
            latency = measure(engine, frames, seconds=seconds, min_runs=5)
        best = max(best, _convolution_model_gflop(channels, side) / latency.min_ms * 1e3)
    return best


def has_precision(kind: EngineKind, precision: Precision) -> bool:
    """Whether this machine computes in `precision` with this engine."""
    with contextlib.suppress(EngineError), _engine_for(convolution_model(16, 16), (16, 16), kind, precision, 1):
        return True
    return False


def _engine_for(model: bytes, hw: tuple[int, int], kind: EngineKind, precision: Precision, threads: int) -> Engine:
    """As `open_engine`, for a graph that is no bundle's."""
    if kind == "openvino":
        from flawline_engines.open_vino import OpenVinoEngine

        return OpenVinoEngine(model, hw, precision=precision, threads=threads)
    if kind == "onnxruntime" and precision == "fp32":
        from flawline_engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model, hw, threads=threads)
    raise EngineError(f"there is no engine {kind!r} in {precision} to measure; expected openvino or onnxruntime")


def _convolution_model_gflop(channels: int, side: int) -> float:
    macs_per_pixel = 3 * 3 * (3 * channels + PEAK_DEPTH * channels**2)
    return _OPERATIONS_PER_MAC * macs_per_pixel * side**2 / 1e9


def convolution_model(channels: int, side: int) -> bytes:
    """An ONNX file that keeps the graph's contract (see design.md) and is nothing but 3x3 convolutions inside."""
    random = np.random.default_rng(0)
    nodes = [
        _node("Cast", ["frames"], "cast", to=_FLOAT),
        _node("Transpose", ["cast"], "x0", perm=[0, 3, 1, 2]),
    ]
    weights = []
    for i in range(1 + PEAK_DEPTH):
        inputs = channels if i else 3
        # Of a size that neither grows nor shrinks the values on their way: subnormal numbers would be slow.
        values = random.standard_normal((channels, inputs, 3, 3)) / math.sqrt(9 * inputs)
        weights.append(_tensor(f"w{i}", values.astype("<f4")))
        nodes.append(_node("Conv", [f"x{i}", f"w{i}"], f"x{i + 1}", pads=[1, 1, 1, 1]))
    nodes += [
        _node("ReduceMean", [f"x{1 + PEAK_DEPTH}"], "heatmaps", axes=[1], keepdims=0),
        _node("ReduceMean", ["heatmaps"], "scores", axes=[1, 2], keepdims=0),
        _node("Identity", ["frames"], "expected"),
    ]
    picture = ("n", side, side, 3)
    graph = b"".join(
        [
            *(_field(1, node) for node in nodes),
            _field(2, b"convolutions"),
            *(_field(5, weight) for weight in weights),
            _field(11, _value("frames", _UINT8, picture)),
            _field(12, _value("scores", _FLOAT, ("n",))),
            _field(12, _value("heatmaps", _FLOAT, ("n", side, side))),
            _field(12, _value("expected", _UINT8, picture)),
        ]
    )
    opset = _field(1, b"") + _field(2, 13)  # from 18 on ReduceMean takes its axes as a tensor
    return _field(1, 8) + _field(7, graph) + _field(8, opset)


# A few messages of onnx.proto, by field number: the station has no onnx package, and would use it for this alone.
_FLOAT, _UINT8 = 1, 2
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _node(operator: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    """A NodeProto."""
    out = b"".join(_field(1, name.encode()) for name in inputs)
    out += _field(2, output.encode()) + _field(3, output.encode()) + _field(4, operator.encode())
    for name, value in attributes.items():
        if isinstance(value, int):
            content, kind = _field(3, value), _ATTRIBUTE_INT
        else:
            content, kind = b"".join(_field(8, v) for v in value), _ATTRIBUTE_INTS
        out += _field(5, _field(1, name.encode()) + content + _field(20, kind))
    return out


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    """A TensorProto of float32."""
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, _FLOAT) + _field(8, name.encode()) + _field(9, values.tobytes())


def _value(name: str, element: int, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto; a size that is a word is dynamic."""
    dims = b"".join(_field(1, _field(1, size) if isinstance(size, int) else _field(2, size.encode())) for size in shape)
    tensor = _field(1, element) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))
