"""Our graphs compile with the real builder of TensorRT-RTX, which needs no GPU for it.

Only names that TensorRT 10.3, 10.16, 11.4 and TensorRT-RTX share, so that a graph which passes here has been through the
same calls as on a station. Running a plan needs a GPU and is not tested here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import onnx
import pytest

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_inspect.bundle import MODEL, Bundle
from flawline_train.autoencoders.methods import METHOD_NAMES

SMALLEST, USUAL, LARGEST = 1, 4, 16
"""Frames in a batch, as the optimisation profile names them."""
WORKSPACE_BYTES = 1 << 30


class BuildError(Exception):
    """What the parser or the builder said."""


@pytest.fixture(scope="session")
def trt(unavailable: Callable[[str], NoReturn]) -> ModuleType:
    try:
        import tensorrt_rtx
    except ImportError as exc:
        unavailable(f"tensorrt_rtx cannot be imported ({exc}); the test group has it on x86-64 Linux")
    return tensorrt_rtx  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def log(trt: ModuleType) -> Any:
    """One for the process: the builder keeps no reference to it."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(message)

    return Log()


def plan_from_onnx(trt: ModuleType, log: Any, model: bytes) -> bytes:
    """Compile for batches of 1 to 16. Raises `BuildError` with every error that was reported."""
    log.lines.clear()
    builder = trt.Builder(log)
    # 1 << 1 in TensorRT 10, 1 << 0 in 11 and RTX: never a literal.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise BuildError(
            "\n".join(
                f"{parser.get_error(i).node_operator()} {parser.get_error(i).node_name()}: {parser.get_error(i).desc()}"
                for i in range(parser.num_errors)
            )
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    assert network.num_inputs == 1
    frames = network.get_input(0)
    _, *hwc = frames.shape
    profile = builder.create_optimization_profile()
    profile.set_shape(frames.name, *((n, *hwc) for n in (SMALLEST, USUAL, LARGEST)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("\n".join(log.lines) or "the builder gives no plan and no reason")
    return bytes(plan)


def assert_contract(trt: ModuleType, log: Any, model: bytes, hw: tuple[int, int]) -> None:
    """What the parser understood is what the design promises."""
    network = trt.Builder(log).create_network(0)
    parser = trt.OnnxParser(network, log)
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


@pytest.mark.timeout(300)
def test_exported_graph_compiles(trt: ModuleType, log: Any, small_graph) -> None:
    """What `onnx_from_graph` writes, batch 1 to 16."""
    plan = plan_from_onnx(trt, log, small_graph.onnx)
    assert len(plan) > 1000
    assert_contract(trt, log, small_graph.onnx, small_graph.hw)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_method_compiles(trt: ModuleType, log: Any, method_graph, name: str) -> None:
    """Each of the family's own operators: codebooks, attention, masked copies."""
    small = method_graph(name)
    assert len(plan_from_onnx(trt, log, small.onnx)) > 1000
    assert_contract(trt, log, small.onnx, small.hw)


@pytest.mark.timeout(300)
def test_shipped_bundle_compiles(trt: ModuleType, log: Any, unavailable: Callable[[str], NoReturn]) -> None:
    """The demo's model, as a user gets it."""
    if not DEMO_BUNDLE.exists():
        unavailable(f"{DEMO_BUNDLE} is not there")
    bundle = Bundle.open(DEMO_BUNDLE)
    plan = plan_from_onnx(trt, log, bundle.member(MODEL))
    assert len(plan) > 1000
    assert_contract(trt, log, bundle.member(MODEL), (bundle.frame.height, bundle.frame.width))


def test_refused_graph_lists_the_errors(trt: ModuleType, log: Any) -> None:
    """uint8 that meets anything but a Cast first is refused, by operator and name: this is what the tests above watch."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Transpose", ["frames"], ["turned"], name="too_early", perm=[0, 3, 1, 2]),
            onnx.helper.make_node("Cast", ["turned"], ["scores"], to=onnx.TensorProto.FLOAT),
        ],
        "refused",
        [onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ("n", 8, 8, 3))],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ("n", 3, 8, 8))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BuildError, match=r"Transpose too_early: [\s\S]*UInt8"):
        plan_from_onnx(trt, log, model.SerializeToString())
