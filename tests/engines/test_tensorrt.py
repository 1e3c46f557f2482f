"""The compiler, with the real builder of TensorRT-RTX, which needs no GPU for it.

The code uses only names that TensorRT 10.3, 10.16, 11.4 and TensorRT-RTX share (test_tensorrt_names), so what passes here
has been through the same calls as on a station. Running a plan needs a GPU.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_engines.bench import GPU_PEAK_BATCH, GPU_PEAK_SHAPES
from flawline_engines.onnx_file import convolution_model
from flawline_engines.tensorrt import (
    BuildProgress,
    BuildSettings,
    compile_plan,
    load_module,
    process_objects,
)
from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.errors import EngineError
from flawline_train.autoencoders.methods import METHOD_NAMES

QUICK = BuildSettings(workspace_bytes=1 << 28, level=0, max_batch=4)


@pytest.fixture(scope="session")
def trt(unavailable: Callable[[str], NoReturn]) -> ModuleType:
    try:
        return load_module("tensorrt_rtx")
    except EngineError as exc:
        unavailable(f"{exc}; the test group has it on x86-64 Linux")


def graph_of(nodes: list[onnx.NodeProto], out: str = "scores", constants: dict[str, Any] | None = None) -> bytes:
    """A graph from `frames` (n, 64, 64, 3) to one float output of an unknown shape."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ("n", 64, 64, 3))],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def assert_contract(trt: ModuleType, model: bytes, hw: tuple[int, int]) -> None:
    """What the parser understood is what the design promises."""
    logger = process_objects(trt).logger
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    uint8, float32 = trt.DataType.UINT8, trt.DataType.FLOAT
    assert [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in tensors] == [
        ("frames", uint8, (-1, *hw, 3)),
        ("scores", float32, (-1,)),
        ("heatmaps", float32, (-1, *hw)),
        ("expected", uint8, (-1, *hw, 3)),
    ]


# --- what compiles ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_exported_graph_compiles(
    trt: ModuleType, small_graph: Any, frames: dict[str, NDArray[np.uint8]], precision: str
) -> None:
    """What `onnx_from_graph` writes and what `quantize` makes of it; inputs and outputs stay as they are."""
    from flawline_train.precision import half_model, quantizable_model

    model = small_graph.onnx
    if precision == "fp16":
        model = half_model(model)
    elif precision == "int8":
        prepared = quantizable_model(model, list(frames.values()))
        model = prepared.with_int8(prepared.convolutions)
    plan, timing_cache = compile_plan("tensorrt_rtx", model)
    assert len(plan) > 1000 and timing_cache == b""
    assert_contract(trt, model, small_graph.hw)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision)
        for name in METHOD_NAMES
        for precision in ("fp32", "fp16", "int8")
        if (name, precision) != ("vanilla", "int8")  # int8 is for convolutions, and a dense network has none
    ],
)
def test_every_method_compiles(
    trt: ModuleType, method_graph: Any, frames: dict[str, NDArray[np.uint8]], name: str, precision: str
) -> None:
    """Each of the family's own operators: codebooks, attention, masked copies."""
    from flawline_train.precision import half_model, quantizable_model

    small = method_graph(name)
    model = small.onnx
    if precision == "fp16":
        model = half_model(model)
    elif precision == "int8":
        prepared = quantizable_model(model, [frame[: small.hw[0], : small.hw[1]] for frame in frames.values()])
        model = prepared.with_int8(prepared.convolutions)
    plan, _ = compile_plan("tensorrt_rtx", model, settings=QUICK)
    assert len(plan) > 1000
    assert_contract(trt, model, small.hw)


@pytest.mark.timeout(300)
def test_shipped_bundle_compiles(trt: ModuleType, unavailable: Callable[[str], NoReturn]) -> None:
    """The demo's model, as a user gets it."""
    if not DEMO_BUNDLE.exists():
        unavailable(f"{DEMO_BUNDLE} is not there")
    bundle = Bundle.open(DEMO_BUNDLE)
    plan, _ = compile_plan("tensorrt_rtx", bundle.member(MODEL), settings=QUICK)
    assert len(plan) > 1000
    assert_contract(trt, bundle.member(MODEL), (bundle.frame.height, bundle.frame.width))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_measures_a_gpus_peak_compiles(trt: ModuleType, precision: Any) -> None:
    """Convolutions alone, for as many frames as fill a GPU."""
    channels, side = GPU_PEAK_SHAPES[0]
    model = convolution_model(channels, side, precision)
    settings = BuildSettings(level=0, max_batch=GPU_PEAK_BATCH)
    assert len(compile_plan("tensorrt_rtx", model, settings=settings)[0]) > 1000
    assert_contract(trt, model, (side, side))


def test_a_limit_of_memory_that_is_too_low(trt: ModuleType) -> None:
    """RTX counts all that a batch's layers hand on. Without a limit it compiles; with one the sentence says what to give."""
    channels, side = GPU_PEAK_SHAPES[0]
    model = convolution_model(channels, 2 * side)
    settings = BuildSettings(level=0, max_batch=64)
    assert settings.workspace_bytes is None and compile_plan("tensorrt_rtx", model, settings=settings)[0]
    tight = BuildSettings(workspace_bytes=16 << 20, level=0, max_batch=64)
    with pytest.raises(EngineError, match=r"OutOfMemory.*; give it more with --workspace-mb, or fewer frames"):
        compile_plan("tensorrt_rtx", model, settings=tight)


def test_progress_moves_forward(trt: ModuleType, small_graph: Any) -> None:
    """The builder's own phases, each from 0 to 1 and never back."""
    told: list[BuildProgress] = []
    compile_plan("tensorrt_rtx", small_graph.onnx, settings=QUICK, on_progress=told.append)
    assert told and all(update.phase and 0 <= update.share <= 1 for update in told)
    for phase in {update.phase for update in told}:
        shares = [update.share for update in told if update.phase == phase]
        assert shares == sorted(shares)


class StopError(BaseException):
    """As Ctrl-C."""


def test_a_build_can_be_stopped(trt: ModuleType, small_graph: Any) -> None:
    """What the progress callback raises, Ctrl-C above all, ends the build and comes out; the next build works."""

    def stop(_: BuildProgress) -> None:
        raise StopError

    with pytest.raises(StopError):
        compile_plan("tensorrt_rtx", small_graph.onnx, settings=QUICK, on_progress=stop)
    assert compile_plan("tensorrt_rtx", small_graph.onnx, settings=QUICK)[0]


# --- what does not ---------------------------------------------------------------------------------------------------

TOO_EARLY = graph_of(
    [
        helper.make_node("Transpose", ["frames"], ["turned"], name="too_early", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["scores"], to=TensorProto.FLOAT),
    ]
)
TOO_MANY = graph_of(
    [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x", "flat"], ["y"]),
        helper.make_node("TopK", ["y", "k"], ["scores", "indices"], name="too_many"),
    ],
    constants={"flat": np.array([0, -1]), "k": np.array([4000])},
)
NO_PLUGIN = graph_of(
    [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("NonZero", ["x"], ["where"], name="nowhere"),
        helper.make_node("Cast", ["where"], ["scores"], to=TensorProto.FLOAT),
    ]
)
REFUSED = {
    "uint8 that meets no Cast": (TOO_EARLY, r"cannot read the graph: operator Transpose too_early: .*type UInt8"),
    "TopK beyond its limit": (TOO_MANY, r"cannot compile the graph: .*too_many: K exceeds the maximum .*3840"),
    "no such operator": (NO_PLUGIN, r"cannot (read|compile) the graph: .*[Nn]on_?[Zz]ero"),
    "no graph": (b"no graph", "tensorrt_rtx|the graph takes nothing, expected frames"),
    "nothing": (b"", "the graph takes nothing, expected frames"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(trt: ModuleType, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """With operator and node; TensorRT's own pages are for --debug."""
    model, said = REFUSED[name]
    with caplog.at_level(logging.INFO), pytest.raises(EngineError, match=said) as caught:
        compile_plan("tensorrt_rtx", model, settings=QUICK)
    assert "\n" not in str(caught.value) and "/_src/" not in str(caught.value) and len(str(caught.value)) < 500
    assert caplog.text == ""


def test_a_failure_leaves_the_compiler_whole(trt: ModuleType, small_graph: Any) -> None:
    """Again and again, good and bad, with everything collected in between: RTX 1.7.1 crashed here (see `_compiled`)."""
    for _ in range(3):
        for model in (TOO_EARLY, TOO_MANY):
            with pytest.raises(EngineError):
                compile_plan("tensorrt_rtx", model, settings=QUICK)
        assert compile_plan("tensorrt_rtx", small_graph.onnx, settings=QUICK)[0]
        gc.collect()


def test_objects_live_as_long_as_the_process(trt: ModuleType) -> None:
    """One logger, recorder and monitor; the recorder keeps a bounded number of errors."""
    process = process_objects(trt)
    assert process_objects(trt) is process
    recorder = process.recorder
    recorder.clear()
    assert recorder.summary() == "it gives no reason" and not recorder.has_overflowed()
    for n in range(100):
        assert recorder.report_error(n, f"Error Code 4: API Usage Error (error {n}. In checkType at /_src/a.cpp:4)")
    assert recorder.num_errors() == 32 and recorder.has_overflowed()
    assert (recorder.get_error_code(3), recorder.summary()) == (3, "error 0")
    recorder.clear()
    assert recorder.num_errors() == 0


def test_the_log_is_pythons(trt: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Severities become levels; what TensorRT calls information is for --debug."""
    logger, severity = process_objects(trt).logger, trt.ILogger.Severity
    with caplog.at_level(logging.DEBUG, "flawline_engines.tensorrt"):
        for level in (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING, severity.INFO, severity.VERBOSE):
            logger.log(level, "said")
    found = [record.levelname for record in caplog.records]
    assert found == ["ERROR", "ERROR", "WARNING", "DEBUG"]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_module_that_is_missing(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that installs it."""
    monkeypatch.setitem(sys.modules, name, None)
    extra = name.replace("_", "-")
    with pytest.raises(EngineError, match=rf"{name} cannot be imported .*pip install 'flawline\[{extra}\]'"):
        load_module(name)


def test_a_plan_without_a_gpu_is_not_loaded(trt: ModuleType, small_graph: Any) -> None:
    """Without a driver the runtime says so, and is collected without harm: in a process of its own, where harm shows."""
    probe = """
import gc
from flawline_engines.tensorrt import load_module, process_objects
from flawline_engines.tensorrt_runner import _deserialized
trt = load_module("tensorrt_rtx")
process = process_objects(trt)
for plan in (b"rubbish", b""):
    runtime = trt.Runtime(process.logger)
    runtime.error_recorder = process.recorder
    try:
        _deserialized(trt, runtime, plan, process.recorder)
    except RuntimeError as exc:
        print(exc)
    del runtime
    gc.collect()
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tensorrt_rtx cannot load the plan (") == 2
