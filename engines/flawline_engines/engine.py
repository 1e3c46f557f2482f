"""The engine: frames in, scores, heatmaps and expected pictures out; and the choice of one.

Building an engine is cheap. Threads and memory are acquired on entering it, and a failure to do so is an `EngineError`
that says what is missing.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.errors import EngineError

__all__ = ["Engine", "EngineKind", "Inference", "Precision", "open_engine"]

_log = logging.getLogger(__name__)

MAX_BATCH = 64
"""Frames in one call; the graph is exported, and TensorRT plans are built, for 1 to this many."""

EngineKind = Literal["auto", "openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16"]


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
    def precision(self) -> str: ...

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        """`frames` (N, H, W, 3) BGR uint8, N from 1 to 64. Raises `EngineError`; the results are the caller's own."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def checked_frames(frames: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The frames, contiguous. Raises `EngineError` with found and expected: an engine never transposes quietly."""
    fits = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[1:] == (*hw, 3)
    if not fits or not 1 <= len(frames) <= MAX_BATCH:
        expected = f"uint8 (N, {hw[0]}, {hw[1]}, 3) with N from 1 to {MAX_BATCH}"
        raise EngineError(f"frames are {frames.dtype} {frames.shape}, expected {expected}")
    return np.ascontiguousarray(frames)


def open_engine(
    bundle: Bundle, kind: EngineKind = "auto", *, precision: Precision = "fp32", threads: int = 0
) -> Engine:
    """An engine for the bundle, to be entered with `with`.

    `auto` takes OpenVINO on x86 and else ONNX Runtime; each step down is logged once with its reason. `threads`
    0 leaves their number to the engine. Raises `EngineError` for a kind or precision that this machine cannot give.
    """
    model, hw = bundle.member(MODEL), (bundle.frame.height, bundle.frame.width)

    def openvino() -> Engine:
        from flawline_engines.open_vino import OpenVinoEngine

        return OpenVinoEngine(model, hw, precision=precision, threads=threads)

    def onnxruntime() -> Engine:
        from flawline_engines.onnx_runtime import OnnxRuntimeEngine

        if precision != "fp32":
            raise EngineError(
                f"onnxruntime computes in fp32, asked for {precision}; use engine openvino or precision fp32"
            )
        return OnnxRuntimeEngine(model, hw, threads=threads)

    if kind == "openvino":
        return openvino()
    if kind == "onnxruntime":
        return onnxruntime()
    if kind == "auto":
        return _FirstThatWorks({"openvino": openvino, "onnxruntime": onnxruntime})
    raise EngineError(f"engine {kind!r} is unknown; expected auto, openvino or onnxruntime")


def installed_kinds() -> list[EngineKind]:
    """The engines that this machine can open, fastest first."""
    kinds: tuple[EngineKind, ...] = ("openvino", "onnxruntime")
    return [kind for kind in kinds if not _why_not(kind)]


def _why_not(kind: str) -> str:
    if kind == "openvino" and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"it is for x86, this is {platform.machine()}"
    return "" if importlib.util.find_spec(kind) else "it is not installed"


class _FirstThatWorks:
    """`auto`: on entering, the first engine that can be opened."""

    kind = "auto"
    precision = "fp32"

    def __init__(self, candidates: dict[str, Callable[[], Engine]]) -> None:
        self._candidates = candidates
        self._entered: Engine | None = None

    def __enter__(self) -> Engine:
        reasons = []
        for name, build in self._candidates.items():
            reason = _why_not(name)
            if not reason:
                try:
                    self._entered = build().__enter__()
                except EngineError as exc:
                    reason = str(exc)
                else:
                    return self._entered
            reasons.append(f"{name}: {reason}")
            _log.warning("engine %s is left out: %s", name, reason)
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
