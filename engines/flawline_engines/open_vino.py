"""OpenVINO on x86: the fastest of the engines that need no GPU.

OpenVINO's bf16 is a hint for a whole model. Given to the whole graph it rounds the error and the score too, which changed
27 verdicts of 300 (benchmarks/LOG.md). So the graph is cut behind the network's last convolution: what is before it is
compiled for bf16, what follows for float32.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Hint, Inference, Precision, checked_frames, timed_ms
from flawline_inspect.errors import EngineError

__all__ = ["OpenVinoEngine"]

# Left alone, OpenVINO computes in bf16 wherever the processor can: a score then depends on the machine. So the hint is set always.
_PRECISION_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}

_PERFORMANCE_HINTS: dict[Hint, str] = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
_ARITHMETIC = frozenset(
    {
        "Convolution",
        "ConvolutionBackpropData",
        "GroupConvolution",
        "GroupConvolutionBackpropData",
        "MatMul",
    }
)


class _Request(Protocol):
    """What is compiled for one batch size."""

    def infer(self, frames: NDArray[np.uint8]) -> Any:
        """The three outputs by number, in memory of their own."""
        ...

    def bare(self, frames: NDArray[np.uint8]) -> Callable[[], object]:
        """OpenVINO's own call on these frames, whose results stay where it computes them."""
        ...

    def begin(self, frames: NDArray[np.uint8]) -> None:
        """As `infer`, without waiting: `finish` comes before the next, and the frames stay as they are until then."""
        ...

    def finish(self) -> Any: ...


class OpenVinoEngine:
    """`model` is the ONNX file's bytes, `hw` the frame's height and width.

    fp16 and int8 are what `model` says they are, and the rest of it is float32. With the hint `throughput` the cores are divided
    among several asynchronous requests of one frame each, and a batch is spread over them. Compiled models are not cached on disk:
    loading one took no less time than compiling, and one with a few bytes damaged was loaded and inferred wrongly.
    """

    kind = "openvino"

    def __init__(
        self,
        model: bytes,
        hw: tuple[int, int],
        *,
        precision: Precision = "fp32",
        threads: int = 0,
        hint: Hint = "latency",
    ) -> None:
        if precision not in _PRECISION_HINTS:
            raise EngineError(f"openvino has no precision {precision!r}; expected {', '.join(_PRECISION_HINTS)}")
        if hint not in _PERFORMANCE_HINTS:
            raise EngineError(f"openvino has no hint {hint!r}; expected {', '.join(_PERFORMANCE_HINTS)}")
        self._model, self._hw, self._threads, self._hint = model, hw, threads, hint
        self.precision: Precision = precision
        self._compile: Callable[[int], _Request] | None = None
        self._requests: dict[int, _Request] = {}
        self._at_once: list[_Request] = []
        """Requests for one frame each, for frames that come together; none where batches are compiled as such."""

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

            def compiled(model: Any, precision: str) -> Any:
                config: dict[str, Any] = {
                    "PERFORMANCE_HINT": _PERFORMANCE_HINTS[self._hint],
                    "INFERENCE_PRECISION_HINT": precision,
                    # Pinned threads, OpenVINO's default, wait for whatever else runs on their core (benchmarks/LOG.md).
                    "ENABLE_CPU_PINNING": False,
                }
                if self._threads:
                    config["INFERENCE_NUM_THREADS"] = self._threads
                return core.compile_model(model, "CPU", config)

            def compile_for(batch: int) -> list[_Request]:
                # One request a batch size: with a dynamic batch OpenVINO took three times as long (benchmarks/LOG.md).
                def read() -> Any:
                    model = core.read_model(self._model, b"")
                    model.reshape([batch, *self._hw, 3])
                    return model

                precision, model = _PRECISION_HINTS[self.precision], read()
                ends = _network_ends(model) if precision == "bf16" else []
                if not ends:
                    whole = compiled(model, precision)
                    return [_Whole(openvino, whole.create_infer_request()) for _ in range(self._n_requests(whole))]
                head, rest = _cut(openvino, model, read(), ends)
                network, tail = compiled(head, precision), compiled(rest, "f32")
                return [
                    _NetworkAndTail(openvino, network.create_infer_request(), tail.create_infer_request(), len(ends))
                    for _ in range(self._n_requests(network))
                ]

            self._compile = lambda batch: compile_for(batch)[0]
            requests = compile_for(1)
            self._requests = {1: requests[0]}
            self._at_once = requests if self._hint == "throughput" else []
        except RuntimeError as exc:
            if isinstance(exc, EngineError):
                raise
            raise EngineError(f"openvino cannot load the graph: {_last_line(exc)}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._compile = None
        self._requests, self._at_once = {}, []

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        frames = checked_frames(frames, self._hw)
        try:
            if len(frames) > 1 and self._at_once:
                return self._spread(frames)
            results = self._request(len(frames)).infer(frames)
        except EngineError:
            raise
        except RuntimeError as exc:
            raise EngineError(f"openvino failed: {_last_line(exc)}") from exc
        return Inference(*(results[i] for i in range(3)))

    def bare_ms(self, frames: NDArray[np.uint8], runs: int) -> NDArray[np.float64]:
        """What OpenVINO's own call takes, `runs` times, for `flawline bench` to hold `infer` against."""
        frames = checked_frames(frames, self._hw)
        try:
            return timed_ms(self._request(len(frames)).bare(frames), runs)
        except EngineError:
            raise
        except RuntimeError as exc:
            raise EngineError(f"openvino failed: {_last_line(exc)}") from exc

    def _n_requests(self, compiled: Any) -> int:
        """How many OpenVINO wants to have at the same time."""
        return 1 if self._hint == "latency" else max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))

    def _spread(self, frames: NDArray[np.uint8]) -> Inference:
        """Each frame by a request of its own, as many at the same time as there are requests."""
        running: deque[_Request] = deque()
        parts: list[Any] = []
        try:
            for i in range(len(frames)):
                if len(running) == len(self._at_once):
                    parts.append(running.popleft().finish())
                request = self._at_once[i % len(self._at_once)]
                request.begin(frames[i : i + 1])
                running.append(request)
            while running:
                parts.append(running.popleft().finish())
        finally:
            for request in running:  # one has failed: the others still read the frames
                with contextlib.suppress(RuntimeError):
                    request.finish()
        return Inference(*(np.concatenate([part[i] for part in parts]) for i in range(3)))

    def _request(self, batch: int) -> _Request:
        if self._compile is None:
            raise EngineError("the engine is not open; use it inside `with`")
        if batch not in self._requests:
            self._requests[batch] = self._compile(batch)
        return self._requests[batch]


# --- what is compiled --------------------------------------------------------------------------------------------------


class _Whole:
    def __init__(self, openvino: Any, request: Any) -> None:
        self._openvino, self._request = openvino, request

    def infer(self, frames: NDArray[np.uint8]) -> Any:
        # Without share_outputs OpenVINO copies: the arrays stay valid after the next frame.
        return self._request.infer([frames], share_inputs=True)

    def bare(self, frames: NDArray[np.uint8]) -> Callable[[], object]:
        self._request.set_input_tensor(self._openvino.Tensor(frames, shared_memory=True))
        return lambda: self._request.infer(None, share_outputs=True)

    def begin(self, frames: NDArray[np.uint8]) -> None:
        self._request.start_async([frames], share_inputs=True)

    def finish(self) -> Any:
        self._request.wait()
        return [np.array(self._request.get_output_tensor(i).data) for i in range(3)]


class _NetworkAndTail:
    """Two requests, one behind the other; `n_ends` tensors go from the first to the second."""

    def __init__(self, openvino: Any, network: Any, tail: Any, n_ends: int) -> None:
        self._openvino, self._network, self._tail = openvino, network, tail
        for i in range(n_ends):
            tail.set_input_tensor(
                1 + i, network.get_output_tensor(i)
            )  # the same memory: nothing is copied between them

    def infer(self, frames: NDArray[np.uint8]) -> Any:
        self._network.infer([frames], share_inputs=True, share_outputs=True)
        return self._tail.infer({0: frames}, share_inputs=True)

    def bare(self, frames: NDArray[np.uint8]) -> Callable[[], object]:
        shared = self._openvino.Tensor(frames, shared_memory=True)
        self._network.set_input_tensor(shared)
        self._tail.set_input_tensor(0, shared)

        def both() -> None:
            self._network.infer(None, share_outputs=True)
            self._tail.infer(None, share_outputs=True)

        return both

    def begin(self, frames: NDArray[np.uint8]) -> None:
        self._frames = frames
        self._network.start_async([frames], share_inputs=True)

    def finish(self) -> Any:
        self._network.wait()
        return self._tail.infer({0: self._frames}, share_inputs=True)


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


def _last_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
