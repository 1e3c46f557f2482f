"""ONNX Runtime on the CPU: runs everywhere, and is the reference that every other engine is measured against."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Inference, checked_frames
from flawline_inspect.errors import EngineError

__all__ = ["OnnxRuntimeEngine"]

_ERRORS_ONLY = 3


class OnnxRuntimeEngine:
    """`model` is the ONNX file's bytes, `hw` the frame's height and width."""

    kind = "onnxruntime"
    precision = "fp32"

    def __init__(self, model: bytes, hw: tuple[int, int], *, threads: int = 0) -> None:
        self._model, self._hw, self._threads = model, hw, threads
        self._session: Any = None

    def __enter__(self) -> OnnxRuntimeEngine:
        # Importing ONNX Runtime otherwise writes a device id and a telemetry database into the home folder.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime as ort
        except ImportError as exc:
            raise EngineError(f"onnxruntime cannot be imported ({exc}); pip install onnxruntime") from exc
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        # Spinning threads burn the cores that capture and MQTT need between two parts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
            raise EngineError(f"onnxruntime cannot load the graph: {_first_line(exc)}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        if self._session is None:
            raise EngineError("the engine is not open; use it inside `with`")
        try:
            return Inference(*self._session.run(None, {"frames": checked_frames(frames, self._hw)}))
        except EngineError:
            raise
        except Exception as exc:  # see above
            raise EngineError(f"onnxruntime failed: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
