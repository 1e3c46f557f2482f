"""Half precision and int8 graphs: the network only, whatever the error map behind it looks like."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.train_.conftest import good_spread
from tests.train_.parts import parts, shaken
from torch import Tensor, nn

from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.open_vino import OpenVinoEngine
from flawline_inspect.errors import BundleError, InputError
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.graph import ErrorMap, InspectionGraph, onnx_from_graph
from flawline_train.precision import half_model, network_nodes, quantizable_model

HW = (48, 64)
SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    """(6, 48, 64, 3)"""
    return parts(6, (64, 48))


@pytest.fixture(scope="module")
def half(exported: bytes) -> bytes:
    return half_model(exported)


def infer(model: bytes, frames: NDArray[np.uint8], kind: str = "onnxruntime", hw: tuple[int, int] = HW):
    engine = OpenVinoEngine if kind == "openvino" else OnnxRuntimeEngine
    with engine(model, hw, threads=1) as opened:
        return opened.infer(frames)


def loaded(model: bytes) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(onnx.load_from_string(model))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    found = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def described(model: bytes) -> list[tuple[str, int, list[object]]]:
    graph = onnx.load_from_string(model).graph
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in [*graph.input, *graph.output]
    ]


# --- where the network ends ------------------------------------------------------------------------------------------


def test_the_network_is_found_by_its_scope(exported: bytes) -> None:
    """All of its convolutions, none of the error map's, and neither the way in nor the score."""
    graph = onnx.load_from_string(exported).graph
    network = network_nodes(graph)
    weights = [node.input[1] for i, node in enumerate(graph.node) if i in network and node.op_type == "Conv"]
    convolutions = [m for m in FilteringAutoencoder(4).modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) == len(convolutions) and all(name.startswith("network.") for name in weights)
    kinds = {node.op_type for i, node in enumerate(graph.node) if i not in network}
    assert {"Cast", "AveragePool", "TopK", "Clip"} <= kinds
    assert not {"TopK", "AveragePool", "Abs"} & {graph.node[i].op_type for i in network}


def test_what_lies_between_two_of_its_nodes_is_the_network(exported: bytes) -> None:
    """The exporter's optimiser leaves nodes without a scope."""
    model = onnx.load_from_string(exported)
    whole = network_nodes(model.graph)
    middle = sorted(whole)[len(whole) // 2]
    del model.graph.node[middle].metadata_props[:]
    assert network_nodes(model.graph) == whole


def test_a_graph_without_scopes_is_refused(exported: bytes) -> None:
    """Nothing is guessed."""
    model = onnx.load_from_string(exported)
    for node in model.graph.node:
        del node.metadata_props[:]
    for convert in (half_model, lambda data: quantizable_model(data, list(parts(2, (64, 48))))):
        with pytest.raises(BundleError, match="does not say which of its nodes are the network; train again"):
            convert(model.SerializeToString())


# --- half precision --------------------------------------------------------------------------------------------------


def test_half_keeps_the_contract(exported: bytes, half: bytes) -> None:
    """Inputs and outputs by name, type and shape; about half the bytes; opset and IR as before."""
    assert described(half) == described(exported)
    assert len(half) < 0.75 * len(exported)
    before, after = onnx.load_from_string(exported), onnx.load_from_string(half)
    assert (before.ir_version, before.opset_import[0].version) == (after.ir_version, after.opset_import[0].version)


def test_half_is_the_network_and_nothing_else(half: bytes) -> None:
    """Every float of the network is half, and none behind it."""
    model = loaded(half)
    types = types_of(model)
    network = network_nodes(model.graph)
    for i, node in enumerate(model.graph.node):
        floats = {types[name] for name in node.output if types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16)}
        if i in network and node.op_type != "Cast":
            assert floats == {TensorProto.FLOAT16}, node.name
        elif node.op_type != "Cast":
            assert TensorProto.FLOAT16 not in floats, node.name
    tail = [node for i, node in enumerate(model.graph.node) if i not in network and node.op_type == "Conv"]
    assert tail and all(types[node.input[1]] == TensorProto.FLOAT for node in tail)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_half_judges_as_before(exported: bytes, half: bytes, frames: NDArray[np.uint8], kind: str) -> None:
    """Within what 11 bits of a network's values make of a score, and not bit for bit: or nothing was converted."""
    if kind == "openvino":
        pytest.importorskip("openvino")
    expected, found = infer(exported, frames), infer(half, frames, kind)
    assert np.abs(found.scores - expected.scores).max() < 0.02 * np.abs(expected.scores).max()
    assert np.abs(found.expected.astype(int) - expected.expected).max() <= 1
    assert 0 < np.abs(found.heatmaps - expected.heatmaps).max() < 0.02 * np.abs(expected.heatmaps).max()


def test_no_paths_of_the_machine_travel(exported: bytes, half: bytes, frames: NDArray[np.uint8]) -> None:
    """The exporter notes source files; the bundle goes to customers."""
    prepared = quantizable_model(exported, list(frames))
    for model in (half, prepared.with_int8(prepared.convolutions)):
        assert b"graph.py" not in model and b"stack_trace" not in model and SCOPES.encode() in model


class Ahead(nn.Module):
    """Another network: its own floats, a cast, a constant, an upsampling, a second result in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.register_buffer("offset", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.avg_pool2d(torch.nn.functional.gelu(self.first(x)), 2)
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
        brightest = (y.amax(1, keepdim=True) > 0).float()
        return self.last(y * brightest) + self.offset + x


def test_another_network_is_converted_too(frames: NDArray[np.uint8]) -> None:
    """With whatever operators it has: nothing here knows the filtering autoencoder."""
    torch.manual_seed(0)
    graph = InspectionGraph(
        Ahead(),
        ErrorMap(HW),
        good_spread((HW[0] // 2, HW[1] // 2)),
        Placement((64, 48), (0, 0, 64, 48), (0, 0, 64, 48)),
    ).eval()
    model = onnx_from_graph(graph)
    expected = infer(model, frames)
    prepared = quantizable_model(model, list(frames))
    assert len(prepared.convolutions) == 2
    for smaller in (half_model(model), prepared.with_int8(prepared.convolutions)):
        assert described(smaller) == described(model)
        found = infer(smaller, frames)
        assert np.abs(found.expected.astype(int) - expected.expected).mean() < 2


def test_control_flow_is_refused() -> None:
    """It has no half form here, and the sentence names the node."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "b", [], [helper.make_tensor_value_info("y", 1, None)]
    )
    node = helper.make_node("If", ["yes"], ["scores"], name="choice", then_branch=branch, else_branch=branch)
    node.metadata_props.add(key=SCOPES, value="['', 'network', 'if']")
    graph = helper.make_graph(
        [helper.make_node("Cast", ["frames"], ["x"], to=1), node],
        "g",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BundleError, match="If choice is control flow"):
        half_model(model.SerializeToString())


# --- int8 ------------------------------------------------------------------------------------------------------------


def test_int8_is_symmetric_and_only_around_convolutions(exported: bytes, frames: NDArray[np.uint8]) -> None:
    """What TensorRT takes: int8, zero points of zero, weights per output channel, no int32; and none behind the network."""
    prepared = quantizable_model(exported, list(frames))
    model = onnx.load_from_string(prepared.with_int8(prepared.convolutions))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    network = network_nodes(onnx.load_from_string(exported).graph)
    assert len(network) > 0
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantised and not any(value.dtype == np.int32 for value in values.values())
    for node in quantised:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any() and (values[node.input[1]] > 0).all()
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    inside = [node for node in convolutions if made_by[node.input[0]].op_type == "DequantizeLinear"]
    assert sorted(node.name for node in inside) == sorted(prepared.convolutions)
    for node in inside:
        weights = made_by[node.input[1]]
        assert weights.op_type == "DequantizeLinear" and weights.attribute[0].name == "axis"
        assert values[weights.input[1]].shape == (values[made_by[weights.input[0]].input[0]].shape[0],)
    assert [node.name for node in convolutions if node not in inside]  # the smoothing
    assert described(model.SerializeToString()) == described(exported)


def test_a_convolution_over_a_concatenation_is_a_sum(exported: bytes, frames: NDArray[np.uint8]) -> None:
    """The same numbers; without it OpenVINO computes int8 wrongly behind an upsampling."""
    prepared = quantizable_model(exported, list(frames))
    nothing = prepared.with_int8([])
    assert not any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(nothing).graph.node)
    joined = {
        name for node in onnx.load_from_string(nothing).graph.node if node.op_type == "Concat" for name in node.output
    }
    assert not any(
        node.op_type == "Conv" and node.input[0] in joined for node in onnx.load_from_string(nothing).graph.node
    )
    expected, found = infer(exported, frames), infer(nothing, frames)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=1e-3 * np.abs(expected.heatmaps).max())


def test_int8_comes_near_on_every_engine(exported: bytes, frames: NDArray[np.uint8]) -> None:
    """ONNX Runtime and OpenVINO agree with each other and, within int8's steps, with float32."""
    pytest.importorskip("openvino")
    prepared = quantizable_model(exported, list(frames))
    model = prepared.with_int8(prepared.convolutions)
    expected = infer(exported, frames).expected.astype(int)
    for kind in ("onnxruntime", "openvino"):
        found = infer(model, frames, kind).expected.astype(int)
        assert 0 < np.abs(found - expected).mean() < 3, kind


def test_some_convolutions_may_stay(exported: bytes, frames: NDArray[np.uint8]) -> None:
    """The more of them the nearer to float32; each counts its multiplications."""
    prepared = quantizable_model(exported, list(frames))
    names = list(prepared.convolutions)
    expected = infer(exported, frames).heatmaps
    errors = [
        np.abs(infer(prepared.with_int8(names[:n]), frames).heatmaps - expected).mean()
        for n in (0, len(names) // 2, len(names))
    ]
    assert errors[0] < errors[1] < errors[2]
    first = prepared.convolutions[names[0]]
    assert first == 24 * 32 * 4 * 12 * 9  # half resolution, 12 channels of space-to-depth to 4, 3 x 3


def test_calibration_decides_the_steps(exported: bytes, frames: NDArray[np.uint8]) -> None:
    """Brighter pictures, wider ranges; none, no int8."""
    dark, bright = (quantizable_model(exported, [np.full((*HW, 3), level, np.uint8)]) for level in (10, 250))
    first = next(iter(dark.limits))
    entrance = [name for name in dark.limits if "unshuffle" in name or name == first]
    assert all(dark.limits[name] < bright.limits[name] for name in entrance[:1])
    with pytest.raises(InputError, match="needs good pictures to calibrate on"):
        quantizable_model(exported, [])


def test_a_network_without_convolutions() -> None:
    """Nothing would become int8."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    graph = InspectionGraph(
        shaken(Plain()),
        ErrorMap(HW),
        good_spread((HW[0] // 2, HW[1] // 2)),
        Placement((64, 48), (0, 0, 64, 48), (0, 0, 64, 48)),
    ).eval()
    with pytest.raises(BundleError, match=r"no convolutions|which of its nodes are the network"):
        quantizable_model(onnx_from_graph(graph), list(parts(2, (64, 48))))
