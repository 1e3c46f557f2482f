"""OpenVINO on x86: the fastest of the engines that need no GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Inference, Precision, checked_frames
from flawline_inspect.errors import EngineError

__all__ = ["OpenVinoEngine"]

# Left alone, OpenVINO computes in bf16 wherever the processor can: a score then depends on the machine. So the hint is set always.
_PRECISION_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}


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
        self._compile: Callable[[int], Any] | None = None
        self._requests: dict[int, Any] = {}

    def __enter__(self) -> OpenVinoEngine:
        try:
            import openvino
        except ImportError as exc:
            raise EngineError(
                f"openvino cannot be imported ({exc}); pip install openvino, or use engine onnxruntime"
            ) from exc
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[self.precision],
        }
        if self._threads:
            config["INFERENCE_NUM_THREADS"] = self._threads
        try:
            core = openvino.Core()
            if self.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise EngineError("this processor has no bf16; use precision fp32")
            model = core.read_model(self._model, b"")

            def compile_for(batch: int) -> Any:
                # One request a batch size: with a dynamic batch OpenVINO took three times as long (benchmarks/LOG.md).
                model.reshape([batch, *self._hw, 3])
                return core.compile_model(model, "CPU", config).create_infer_request()

            self._compile = compile_for
            self._requests = {1: compile_for(1)}
        except RuntimeError as exc:
            if isinstance(exc, EngineError):
                raise
            raise EngineError(f"openvino cannot load the graph: {_last_line(exc)}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._compile = None
        self._requests = {}

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        if self._compile is None:
            raise EngineError("the engine is not open; use it inside `with`")
        frames = checked_frames(frames, self._hw)
        batch = len(frames)
        try:
            if batch not in self._requests:
                self._requests[batch] = self._compile(batch)
            results = self._requests[batch].infer([frames], share_inputs=True)
        except RuntimeError as exc:
            raise EngineError(f"openvino failed: {_last_line(exc)}") from exc
        # Without share_outputs OpenVINO copies: the arrays stay valid after the next frame.
        return Inference(*(results[i] for i in range(3)))


def _last_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
