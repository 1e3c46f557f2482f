"""OpenVINO on x86: the fastest of the engines that need no GPU.

OpenVINO's bf16 is a hint for a whole model. Given to the whole graph it rounds the error and the score too, which changed
27 verdicts of 300 (benchmarks/LOG.md). So the graph is cut behind the network's last convolution: what is before it is
compiled for bf16, what follows for float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Inference, Precision, checked_frames
from flawline_inspect.errors import EngineError

__all__ = ["OpenVinoEngine"]

# Left alone, OpenVINO computes in bf16 wherever the processor can: a score then depends on the machine. So the hint is set always.
_PRECISION_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}

_ARITHMETIC = frozenset(
    {
        "Convolution",
        "ConvolutionBackpropData",
        "GroupConvolution",
        "GroupConvolutionBackpropData",
        "MatMul",
    }
)
_Run = Callable[[NDArray[np.uint8]], Any]
"""Frames of one batch size → the three outputs by number."""


class OpenVinoEngine:
    """`model` is the ONNX file's bytes, `hw` the frame's height and width.

    fp16 and int8 are what `model` says they are, and the rest of it is float32. Compiled models are not cached on disk:
    loading one took no less time than compiling, and one with a few bytes damaged was loaded and inferred wrongly.
    """

    kind = "openvino"

    def __init__(self, model: bytes, hw: tuple[int, int], *, precision: Precision = "fp32", threads: int = 0) -> None:
        if precision not in _PRECISION_HINTS:
            raise EngineError(f"openvino has no precision {precision!r}; expected {', '.join(_PRECISION_HINTS)}")
        self._model, self._hw, self._threads = model, hw, threads
        self.precision: Precision = precision
        self._compile: Callable[[int], _Run] | None = None
        self._runs: dict[int, _Run] = {}

    def __enter__(self) -> OpenVinoEngine:
        try:
            import openvino
        except ImportError as exc:
            raise EngineError(
                f"openvino cannot be imported ({exc}); pip install openvino, or use engine onnxruntime"
            ) from exc
        try:
            core = openvino.Core()
            if self.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise EngineError("this processor has no bf16; use precision fp32")

            def request(model: Any, hint: str) -> Any:
                config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
                if self._threads:
                    config["INFERENCE_NUM_THREADS"] = self._threads
                return core.compile_model(model, "CPU", config).create_infer_request()

            def compile_for(batch: int) -> _Run:
                # One request a batch size: with a dynamic batch OpenVINO took three times as long (benchmarks/LOG.md).
                def read() -> Any:
                    model = core.read_model(self._model, b"")
                    model.reshape([batch, *self._hw, 3])
                    return model

                hint, model = _PRECISION_HINTS[self.precision], read()
                ends = _network_ends(model) if hint == "bf16" else []
                if not ends:
                    whole = request(model, hint)
                    return lambda frames: whole.infer([frames], share_inputs=True)
                network, tail = _cut(openvino, model, read(), ends)
                return _run_both(request(network, hint), request(tail, "f32"), len(ends))

            self._compile = compile_for
            self._runs = {1: compile_for(1)}
        except RuntimeError as exc:
            if isinstance(exc, EngineError):
                raise
            raise EngineError(f"openvino cannot load the graph: {_last_line(exc)}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._compile = None
        self._runs = {}

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        if self._compile is None:
            raise EngineError("the engine is not open; use it inside `with`")
        frames = checked_frames(frames, self._hw)
        batch = len(frames)
        try:
            if batch not in self._runs:
                self._runs[batch] = self._compile(batch)
            results = self._runs[batch](frames)
        except RuntimeError as exc:
            raise EngineError(f"openvino failed: {_last_line(exc)}") from exc
        # Without share_outputs OpenVINO copies: the arrays stay valid after the next frame.
        return Inference(*(results[i] for i in range(3)))


# --- cutting the graph -------------------------------------------------------------------------------------------------


def _sources(node: Any) -> list[Any]:
    return [each.get_source_output().get_node() for each in node.inputs()]


def _network_ends(model: Any) -> list[str]:
    """Names of the network's last convolutions or matrix products: the nearest ones to any output.

    The network is what `expected` is computed from; the error map's own convolutions are not part of that.
    """
    results = model.get_results()
    network: set[str] = set()
    waiting = [result for result in results if "expected" in result.input_value(0).get_names()]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in network:
            network.add(node.get_friendly_name())
            waiting += _sources(node)
    ends: list[str] = []
    seen: set[str] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if name in network and node.get_type_name() in _ARITHMETIC:
            ends.append(name)
        else:
            waiting += _sources(node)
    return ends


def _cut(openvino: Any, model: Any, copy: Any, ends: Sequence[str]) -> tuple[Any, Any]:
    """The graph up to `ends`, and the graph from there on, which takes the frames and then each end's values."""
    ops = openvino.opset13
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    head = openvino.Model([ops.result(nodes[name].output(0)) for name in ends], model.get_parameters(), "network")
    nodes = {node.get_friendly_name(): node for node in copy.get_ordered_ops()}
    parameters = []
    for name in ends:
        output = nodes[name].output(0)
        parameter = ops.parameter(output.get_shape(), output.get_element_type())
        for target in list(output.get_target_inputs()):
            target.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    tail = openvino.Model(copy.get_results(), copy.get_parameters() + parameters, "tail")
    return head, tail


def _run_both(network: Any, tail: Any, n_ends: int) -> _Run:
    for i in range(n_ends):
        tail.set_input_tensor(1 + i, network.get_output_tensor(i))  # the same memory: nothing is copied between them

    def run(frames: NDArray[np.uint8]) -> Any:
        network.infer([frames], share_inputs=True)
        return tail.infer({0: frames}, share_inputs=True)

    return run


def _last_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
