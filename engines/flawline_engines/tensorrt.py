"""TensorRT and TensorRT-RTX: one compiler over two modules, from the bundle's ONNX file to a plan.

Only names that exist in TensorRT 10.3 (JetPack 6), 10.16 (JetPack 7), 11.4 and TensorRT-RTX 1.7.1 are used; a test
holds each of them against the four real binding modules. Precision is in the ONNX file: TensorRT 11 has no flags for it.

The bindings keep no references to the logger, the error recorder and the progress monitor that they are given, and a
collected one ends the process with a segmentation fault. So there is one of each for the life of the process.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from flawline_inspect.errors import EngineError

__all__ = ["BuildProgress", "BuildSettings", "ModuleName", "compile_plan", "load_module", "process_objects"]

_log = logging.getLogger(__name__)

ModuleName = Literal["tensorrt", "tensorrt_rtx"]

INSTALL: dict[ModuleName, str] = {
    "tensorrt": "pip install 'flawline[tensorrt]', or on a Jetson apt install python3-libnvinfer (see docs/edge-gpu.md)",
    "tensorrt_rtx": "pip install 'flawline[tensorrt-rtx]' (see docs/edge-gpu.md)",
}
INPUT = "frames"
_MAX_ERRORS = 32
_SENTENCE_LENGTH = 300
_BUILDING = threading.Lock()
"""A builder is single-threaded, and the monitor and the recorder serve one build at a time."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """`workspace_bytes`: what a plan may take besides its weights, its largest batch's values included (RTX counts them all); less
    leaves more for others and may be slower, or is too little. None is TensorRT's own choice, the GPU's memory.
    `level`: 0 compiles fastest, 5 searches longest; None is TensorRT's own choice (3).
    `max_batch`: frames in one execution; memory grows with it, and larger calls are cut into pieces.
    """

    workspace_bytes: int | None = None
    level: int | None = None
    max_batch: int = 16


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """What the builder is doing, in its own words, and how much of it is done, 0-1."""

    phase: str
    share: float


def load_module(name: ModuleName) -> ModuleType:
    """Import TensorRT or TensorRT-RTX. Raises `EngineError` with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise EngineError(f"{name} cannot be imported ({exc}); {INSTALL[name]}") from exc


def compile_plan(
    name: ModuleName,
    model: bytes,
    *,
    settings: BuildSettings | None = None,
    timing_cache: bytes = b"",
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> tuple[bytes, bytes]:
    """Compile an ONNX file for this machine's GPU, batches of 1 to `settings.max_batch`.

    Returns the plan and the timing cache after it (empty where there is none): with the latter a second build is
    faster. TensorRT-RTX compiles without a GPU. Raises `EngineError` with the operator and node that it refuses.
    """
    trt, settings = load_module(name), settings or BuildSettings()
    with _BUILDING:
        process = process_objects(trt)
        process.recorder.clear()
        process.monitor.begin(on_progress)
        process.logger.errors_are_raised = True
        try:
            return _compiled(trt, process, model, settings, timing_cache)
        finally:
            process.logger.errors_are_raised = False


def _compiled(
    trt: ModuleType, process: ProcessObjects, model: bytes, settings: BuildSettings, timing_cache: bytes
) -> tuple[bytes, bytes]:
    builder = trt.Builder(process.logger)
    # The network's weights are the parser's: without it the build reads freed memory.
    network, _parser = _parsed(trt, builder, process.logger, model)
    # Not before: networks and parsers inherit it, and RTX 1.7.1 crashes when those are collected (tests/engines).
    builder.error_recorder = process.recorder
    config = builder.create_builder_config()
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and fp32 would not be what it says
    config.progress_monitor = process.monitor
    if settings.level is not None:
        config.builder_optimization_level = settings.level
    cache = None
    if trt.__name__ == "tensorrt":  # RTX compiles for each GPU when it loads, and has no tactics to time
        # None for a cache that is damaged or another version's; then this build makes a new one.
        cache = config.create_timing_cache(timing_cache) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    frames = network.get_input(0)
    _, *hwc = frames.shape
    profile = builder.create_optimization_profile()
    # One frame is the usual case, and what the kernels are chosen for.
    profile.set_shape(INPUT, (1, *hwc), (1, *hwc), (settings.max_batch, *hwc))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    process.monitor.end()
    if plan is None:
        said = process.recorder.summary()
        cure = "; give it more with --workspace-mb, or fewer frames with --max-batch" if "OutOfMemory" in said else ""
        raise EngineError(f"{trt.__name__} cannot compile the graph: {said}{cure}")
    return bytes(plan), b"" if cache is None else bytes(cache.serialize())


def _parsed(trt: ModuleType, builder: Any, logger: Any, model: bytes) -> tuple[Any, Any]:
    # 1 << 1 in TensorRT 10, 1 << 0 in 11 and RTX: never a literal. Without it TensorRT 10 chooses precisions itself.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise EngineError(f"{trt.__name__} cannot read the graph: {_sentence(errors)}")
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    if inputs != [INPUT]:
        raise EngineError(f"the graph takes {', '.join(inputs) or 'nothing'}, expected {INPUT}; train again")
    return network, parser


def _sentence(errors: list[Any]) -> str:
    """The first of the parser's errors as a phrase that names operator and node."""
    if not errors:
        return "it gives no reason"
    first = errors[0]
    where = " ".join(part for part in (first.node_operator(), first.node_name()) if part)
    said = _plain(first.desc())
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"operator {where}: {said}{more}" if where else f"{said}{more}"


def _plain(text: str) -> str:
    """TensorRT's own words without the places in its source: `big: K exceeds the maximum value allowed (3840)`."""
    line = " ".join(text.split())
    found = re.search(r"Error Code \d+: [^(]*\((.+?)\.? In \w+ at /", line)
    return found[1] if found else line[:_SENTENCE_LENGTH]


# --- what lives as long as the process ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessObjects:
    """The logger, error recorder and progress monitor of one TensorRT module."""

    logger: Any
    recorder: Any
    monitor: Any


@functools.cache
def process_objects(trt: ModuleType) -> ProcessObjects:
    """The same three for ever; see the module's docstring for what happens otherwise."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,  # what TensorRT calls information is a page a build
        severity.VERBOSE: logging.DEBUG,
    }

    # Python exceptions must not travel through TensorRT's C++ frames: nothing below lets one out.

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors_are_raised = False

        def log(self, level: Any, message: str) -> None:
            if level != severity.VERBOSE:
                number = levels.get(level, logging.WARNING)
                # What ends a build is an exception with one sentence; the pages before it are for --debug.
                number = logging.DEBUG if number == logging.ERROR and self.errors_are_raised else number
                _log.log(number, "%s: %s", trt.__name__, message)

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._errors: list[tuple[Any, str]] = []
            self._overflowed = False
            self._lock = threading.Lock()

        def num_errors(self) -> int:
            return len(self._errors)

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return self._overflowed

        def clear(self) -> None:
            with self._lock:
                self._errors.clear()
                self._overflowed = False

        def report_error(self, code: Any, description: str) -> bool:
            with self._lock:
                self._overflowed = len(self._errors) >= _MAX_ERRORS
                if not self._overflowed:
                    self._errors.append((code, description))
            return True  # fatal: this operation ends

        def summary(self) -> str:
            """The first error, which the others follow from, in a line."""
            with self._lock:
                return _plain(self._errors[0][1]) if self._errors else "it gives no reason"

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Phases contain phases; the share is that of the outermost one that runs."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tell: Callable[[BuildProgress], None] | None = None
            self._phases: dict[str, list[int]] = {}  # name: steps, steps done; outermost first
            self._stopped_by: BaseException | None = None
            self._shown = BuildProgress("", 0.0)
            self._lock = threading.Lock()

        def begin(self, tell: Callable[[BuildProgress], None] | None) -> None:
            self._tell, self._stopped_by = tell, None
            self._phases.clear()
            self._shown = BuildProgress("", 0.0)

        def end(self) -> None:
            """Raise what stopped the build, such as Ctrl-C."""
            self._tell = None
            if self._stopped_by is not None:
                raise self._stopped_by

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases[name] = [max(1, int(steps)), 0]
            self._show()

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                if name in self._phases:
                    self._phases[name][1] = int(step) + 1
            self._show()
            return self._stopped_by is None

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.pop(name, None)

        def _show(self) -> None:
            if self._tell is None or self._stopped_by is not None:
                return
            with self._lock:
                share = 0.0
                for steps, done in reversed(list(self._phases.values())):
                    share = min(1.0, (done + share) / steps)
                phase = next(iter(self._phases), "")
                if phase == self._shown.phase:  # phases inside end and begin; a bar never goes back
                    share = max(share, self._shown.share)
                self._shown = BuildProgress(phase, share)
            try:
                self._tell(self._shown)
            except BaseException as exc:  # Ctrl-C too: it ends the build at its next step, and is raised behind it
                self._stopped_by = exc

    return ProcessObjects(Logger(), Recorder(), Monitor())
