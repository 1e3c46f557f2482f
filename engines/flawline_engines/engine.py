"""The engine: frames in, scores, heatmaps and expected pictures out; and the choice of one.

Building an engine is cheap. Threads and memory are acquired on entering it, and a failure to do so is an `EngineError`
that says what is missing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.errors import EngineError

__all__ = [
    "Engine",
    "EngineKind",
    "Hint",
    "Inference",
    "MissingPlanError",
    "Precision",
    "Provider",
    "installed_kinds",
    "model_for",
    "open_engine",
]

_log = logging.getLogger(__name__)

MAX_BATCH = 64
"""Frames in one call; the graph is exported, and TensorRT plans are built, for 1 to this many."""

EngineKind = Literal["auto", "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime", "triton"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
"""Of ONNX Runtime: which of its own backends computes. `auto` takes CUDA where it is built in, else the CPU."""

Hint = Literal["latency", "throughput"]
"""Of OpenVINO: one frame as fast as can be, or as many as can be, several at the same time. Only frames that come together gain."""

GPU_KINDS: tuple[EngineKind, ...] = ("tensorrt", "tensorrt_rtx")
_FASTEST_FIRST: tuple[EngineKind, ...] = (*GPU_KINDS, "openvino", "onnxruntime")
"""Those of this machine. `triton` is another machine, and never taken unless it is asked for."""

MODEL_MEMBERS: dict[Precision, str] = {
    "fp32": MODEL,
    "bf16": MODEL,  # a hint to OpenVINO, not a file
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}
"""The bundle's member that holds the graph of a precision."""


class Inference(NamedTuple):
    """What the graph says of N frames."""

    scores: NDArray[np.float32]
    """(N,), raw."""
    heatmaps: NDArray[np.float32]
    """(N, H, W), in units of the good parts' spread."""
    expected: NDArray[np.uint8]
    """(N, H, W, 3), BGR: what the parts should have looked like."""


class Engine(Protocol):
    """Runs one bundle's graph. Not re-entrant: one thread at a time. A context manager, usable once entered."""

    @property
    def kind(self) -> str: ...

    @property
    def precision(self) -> Precision: ...

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        """`frames` (N, H, W, 3) BGR uint8, N from 1 to 64. Raises `EngineError`; the results are the caller's own."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class MissingPlanError(EngineError):
    """A GPU could serve, but no plan is compiled for it yet (or the one that is there cannot be used)."""


def checked_frames(frames: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The frames, contiguous. Raises `EngineError` with found and expected: an engine never transposes quietly."""
    fits = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[1:] == (*hw, 3)
    if not fits or not 1 <= len(frames) <= MAX_BATCH:
        expected = f"uint8 (N, {hw[0]}, {hw[1]}, 3) with N from 1 to {MAX_BATCH}"
        raise EngineError(f"frames are {frames.dtype} {frames.shape}, expected {expected}")
    return np.ascontiguousarray(frames)


def timed_ms(call: Callable[[], object], runs: int) -> NDArray[np.float64]:
    """Milliseconds of each of `runs` calls, one right behind the other."""
    marks = [time.perf_counter()]
    for _ in range(runs):
        call()
        marks.append(time.perf_counter())
    return 1e3 * np.diff(marks)


def model_for(bundle: Bundle, precision: Precision) -> bytes:
    """The ONNX file of this precision. Raises `EngineError` when the bundle has none."""
    name = MODEL_MEMBERS[precision]
    if name not in bundle.manifest.members:
        raise EngineError(
            f"{bundle.source}: has no {precision} graph ({name}); `flawline quantize {bundle.source} --precisions "
            f"{precision}` adds it, or use precision fp32"
        )
    return bundle.member(name)


def open_engine(
    bundle: Bundle,
    kind: EngineKind = "auto",
    *,
    precision: Precision = "fp32",
    threads: int = 0,
    provider: Provider = "auto",
    hint: Hint = "latency",
    state_dir: Path | None = None,
    url: str | None = None,
    timeout_s: float = 1.0,
) -> Engine:
    """An engine for the bundle, to be entered with `with`.

    `auto` takes TensorRT or TensorRT-RTX where a plan is stored for this GPU, OpenVINO on x86, else ONNX Runtime; each
    step down is logged once with its reason. TensorRT asked for by name compiles a missing plan on entering, which
    takes minutes. `threads` 0 leaves their number to the engine; `provider` is ONNX Runtime's, `hint` OpenVINO's;
    `state_dir` is where plans are kept, by default the user's cache folder; `url` is Triton's, and `timeout_s` the time
    that it has for an answer.
    Raises `EngineError` for a kind or precision that this machine cannot give.
    """
    if kind not in ("auto", *_FASTEST_FIRST, "triton"):
        raise EngineError(f"engine {kind!r} is unknown; expected auto, {', '.join(_FASTEST_FIRST)} or triton")
    if kind == "triton":
        from flawline_engines.triton import open_triton

        return open_triton(bundle, url, precision=precision, timeout_s=timeout_s)
    model, hw = model_for(bundle, precision), (bundle.frame.height, bundle.frame.width)

    def tensorrt(module: Literal["tensorrt", "tensorrt_rtx"]) -> Engine:
        from flawline_engines.build import open_tensorrt

        return open_tensorrt(bundle, module, precision=precision, state_dir=state_dir, compile_missing=kind != "auto")

    def openvino() -> Engine:
        from flawline_engines.open_vino import OpenVinoEngine

        return OpenVinoEngine(model, hw, precision=precision, threads=threads, hint=hint)

    def onnxruntime() -> Engine:
        from flawline_engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model, hw, precision=precision, threads=threads, provider=provider)

    candidates: dict[EngineKind, Callable[[], Engine]] = {
        "tensorrt": lambda: tensorrt("tensorrt"),
        "tensorrt_rtx": lambda: tensorrt("tensorrt_rtx"),
        "openvino": openvino,
        "onnxruntime": onnxruntime,
    }
    return FirstThatWorks(candidates, precision) if kind == "auto" else candidates[kind]()


def installed_kinds() -> list[EngineKind]:
    """The engines that this machine can open, fastest first."""
    return [kind for kind in _FASTEST_FIRST if not _why_not(kind)]


def _why_not(kind: EngineKind) -> str:
    if kind == "openvino" and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"it is for x86, this is {platform.machine()}"
    if not importlib.util.find_spec(kind):
        return "it is not installed"
    return "there is no NVIDIA driver (libcuda.so.1)" if kind in GPU_KINDS and not _has_driver() else ""


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class FirstThatWorks:
    """`auto`: on entering, the first engine that can be opened.

    `worth_building` then names the GPU engine that was passed over only because its plan is not compiled yet.
    """

    kind = "auto"

    def __init__(self, candidates: dict[EngineKind, Callable[[], Engine]], precision: Precision) -> None:
        self._candidates = candidates
        self._entered: Engine | None = None
        self.precision = precision
        self.worth_building: EngineKind | None = None

    def __enter__(self) -> Engine:
        reasons = []
        self.worth_building = None
        for name, build in self._candidates.items():
            reason = _why_not(name)
            # A laptop without a GPU steps down from nothing; a station without OpenVINO lacks what it should have.
            level = logging.INFO if reason and name in GPU_KINDS else logging.WARNING
            if not reason:
                try:
                    self._entered = build().__enter__()
                except MissingPlanError as exc:
                    self.worth_building = self.worth_building or name
                    reason = str(exc)
                except EngineError as exc:
                    reason = str(exc)
                else:
                    return self._entered
            reasons.append(f"{name}: {reason}")
            _log.log(level, "engine %s is left out: %s", name, reason)
        raise EngineError(f"no engine works here ({'; '.join(reasons)})")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entered is not None:
            self._entered.__exit__(kind, exc, traceback)
            self._entered = None

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        if self._entered is None:
            raise EngineError("the engine is not open; use it inside `with open_engine(...) as engine:`")
        return self._entered.infer(frames)
