"""ONNX Runtime: runs everywhere, and is on the CPU in fp32 the reference that every other engine is measured against.

With `onnxruntime-gpu` in place of `onnxruntime` it computes on an NVIDIA GPU through its CUDA or TensorRT backend.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Inference, Precision, Provider, checked_frames, timed_ms
from flawline_inspect.errors import EngineError

__all__ = ["OnnxRuntimeEngine"]

_ERRORS_ONLY = 3
_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxRuntimeEngine:
    """`model` is the ONNX file's bytes, which decide the precision; `hw` the frame's height and width."""

    kind = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        hw: tuple[int, int],
        *,
        precision: Precision = "fp32",
        threads: int = 0,
        provider: Provider = "cpu",
    ) -> None:
        if precision == "bf16":
            raise EngineError("onnxruntime computes in fp32, asked for bf16; use engine openvino or precision fp32")
        self._model, self._hw, self._threads, self._provider = model, hw, threads, provider
        self.precision: Precision = precision
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
        if self._provider == "tensorrt":  # which has no option for it; TF32 would round fp32's inputs to 10 bits
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        wanted = self._wanted(ort.get_available_providers())
        try:
            self._session = ort.InferenceSession(self._model, options, providers=wanted)
        except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
            raise EngineError(f"onnxruntime cannot load the graph: {_first_line(exc)}") from exc
        # Where a backend's libraries or the GPU are missing ONNX Runtime goes on with the CPU and says so in a log line only.
        if self._provider not in ("auto", "cpu") and self._session.get_providers()[0] != _PROVIDERS[self._provider]:
            self._session = None
            raise EngineError(
                f"onnxruntime could not start its {self._provider} backend and would have used the CPU; check the GPU, its "
                "driver and the libraries that this onnxruntime-gpu needs, or use provider cpu"
            )
        return self

    def _wanted(self, available: list[str]) -> list[Any]:
        """Backends in order of preference; the CPU always last, for operators that the others lack."""
        named = self._provider
        if named == "auto":
            named = "cuda" if _PROVIDERS["cuda"] in available else "cpu"
        elif _PROVIDERS[named] not in available:
            raise EngineError(
                f"this onnxruntime has no {named} backend; pip uninstall onnxruntime, pip install onnxruntime-gpu, or use "
                "provider cpu"
            )
        # TF32 would round the inputs of fp32 convolutions to 10 bits.
        cuda = (_PROVIDERS["cuda"], {"use_tf32": "0"})
        chain: dict[str, list[Any]] = {"cpu": [], "cuda": [cuda], "tensorrt": [_PROVIDERS["tensorrt"], cuda]}
        return [*chain[named], _PROVIDERS["cpu"]]

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

    def bare_ms(self, frames: NDArray[np.uint8], runs: int) -> NDArray[np.float64]:
        """What ONNX Runtime's own call takes, `runs` times, for `flawline bench` to hold `infer` against."""
        if self._session is None:
            raise EngineError("the engine is not open; use it inside `with`")
        frames = checked_frames(frames, self._hw)
        try:
            binding = self._session.io_binding()
            binding.bind_cpu_input("frames", frames)
            for output in self._session.get_outputs():
                binding.bind_output(output.name)
            return timed_ms(lambda: self._session.run_with_iobinding(binding), runs)
        except Exception as exc:  # see above
            raise EngineError(f"onnxruntime failed: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
