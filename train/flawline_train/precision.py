"""Smaller numbers for the same network: fp16 and int8 graphs, beside the float32 one in the bundle.

Precision lives in the ONNX file, because TensorRT 11 has no precision flags any more. Only the network is converted: what
follows it (error maps, spread, score) stays float32 in all of them, since rounding errors there, divided by a small
spread, look like defects.

    fp16   the network in half precision, a Cast before and after it
    int8   symmetric QuantizeLinear/DequantizeLinear around the network's convolutions, per channel for weights,
           calibrated on good pictures; everything else is float32. TensorRT takes no zero points and no int32 bias.

Which nodes are the network is read from the module scopes that the exporter leaves in the graph, so that nothing here
knows what the error map looks like.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from flawline_inspect.errors import BundleError, InputError

__all__ = ["QuantizableModel", "half_model", "network_nodes", "quantizable_model"]

_NETWORK = "network"
"""The attribute of `InspectionGraph` that holds the network, and so the first level of its nodes' module scopes."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_PRIVATE = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
"""What the exporter notes of the machine that it ran on; a converted graph does not pass it on."""
_FLOAT_ONLY_INPUTS = {"Resize": frozenset({1, 2})}
"""Inputs that the operator wants in float32 (or that have no half form), whatever its first input is."""
_INT8_MAX = 127
_TINY = 1e-12
_BINS = 4096


def network_nodes(graph: GraphProto) -> frozenset[int]:
    """Indices of the nodes that are the network: those with its scope, and whatever lies between two of them.

    The second rule catches what the exporter's optimiser made without a scope. Raises `BundleError` when no node has one.
    """
    scoped = {i for i, node in enumerate(graph.node) if _is_scoped(node)}
    if not scoped:
        raise BundleError("the graph does not say which of its nodes are the network; train again with this flawline")
    consumers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.node):
        for name in node.input:
            consumers.setdefault(name, []).append(i)
    # ONNX graphs are sorted: one pass forwards for what follows the network, one backwards for what leads to it.
    after, before = set(scoped), set(scoped)
    for i, node in enumerate(graph.node):
        if i in after:
            after.update(j for name in node.output for j in consumers.get(name, ()))
    for i in reversed(range(len(graph.node))):
        if any(j in before for name in graph.node[i].output for j in consumers.get(name, ())):
            before.add(i)
    return frozenset(after & before)


def _is_scoped(node: NodeProto) -> bool:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            return any(scope == _NETWORK or scope.startswith(f"{_NETWORK}.") for scope in scopes)
    return False


# --- fp16 ------------------------------------------------------------------------------------------------------------


def half_model(model: bytes) -> bytes:
    """The graph with its network in half precision. Inputs, outputs and everything behind the network stay as they are.

    Raises `BundleError` for a graph that does not tell its network, or that has control flow in it.
    """
    source = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    graph = source.graph
    network = network_nodes(graph)
    floats = _float_tensors(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output}
    # Values of the network that somebody needs in float32 all the same.
    outside = {value.name for value in graph.output}
    for i, node in enumerate(graph.node):
        keep = _FLOAT_ONLY_INPUTS.get(node.op_type, frozenset()) if i in network else None
        outside.update(name for n, name in enumerate(node.input) if keep is None or n in keep)

    nodes: list[NodeProto] = []
    halves: dict[str, TensorProto] = {}
    cast: set[str] = set()

    def half_of(name: str) -> str:
        half = f"{name}_half"
        if name in weights:
            if half not in halves:
                with np.errstate(over="ignore"):  # becomes infinite, which the parity gate refuses with its reason
                    values = numpy_helper.to_array(weights[name]).astype(np.float16)
                halves[half] = numpy_helper.from_array(values, half)
        elif made_by.get(name) not in network and half not in cast:
            cast.add(half)
            nodes.append(_cast(name, half, TensorProto.FLOAT16))
        return half

    for i, original in enumerate(graph.node):
        if i not in network:
            nodes.append(original)
            continue
        node = NodeProto()
        node.CopyFrom(original)
        keep = _FLOAT_ONLY_INPUTS.get(node.op_type, frozenset())
        for n, name in enumerate(original.input):
            if name in floats and n not in keep:
                node.input[n] = half_of(name)
        _halve_attributes(node)
        widened = []
        for n, name in enumerate(original.output):
            if name in floats:
                node.output[n] = f"{name}_half"
                if name in outside:
                    widened.append(_cast(f"{name}_half", name, TensorProto.FLOAT))
        nodes += [node, *widened]
    return _finished(_with_nodes(source, nodes, halves.values()))


def _float_tensors(graph: GraphProto) -> frozenset[str]:
    typed = [*graph.input, *graph.output, *graph.value_info]
    names = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    names |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    known = {value.name for value in typed} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for name in node.output:
            if name and name not in known:
                raise BundleError(f"the type of {name} ({node.op_type} {node.name}) cannot be told; train again")
    return frozenset(names)


def _halve_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise BundleError(f"{node.op_type} {node.name} is control flow, which has no half form here; use fp32")
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)


# --- int8 ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QuantizableModel:
    """A graph made ready for int8, and what calibration found: make variants with `with_int8`.

    `convolutions`: name of each of the network's, and the multiplications that one frame takes in it.
    """

    model: ModelProto
    convolutions: dict[str, int]
    limits: dict[str, float]
    """Tensor that a convolution takes: the absolute value that becomes 127."""

    def with_int8(self, convolutions: Collection[str]) -> bytes:
        """The graph with these convolutions in int8, each by a Q/DQ pair on its input and one on its weights.

        Nothing is quantised behind a convolution but by the next one: engines then compute the activation function in
        the same pass, and the network's last values, whose 1/127 would be a grey level, stay float32.
        """
        model = ModelProto()
        model.CopyFrom(self.model)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes: list[NodeProto] = []
        added: list[TensorProto] = []
        done: set[str] = set()

        def pair(name: str, scale: NDArray[np.float32], axis: int | None) -> str:
            if name not in done:
                done.add(name)
                zero = np.zeros(scale.shape, np.int8)
                added.append(numpy_helper.from_array(scale, f"{name}_scale"))
                added.append(numpy_helper.from_array(zero, f"{name}_zero"))
                constants = [f"{name}_scale", f"{name}_zero"]
                options: dict[str, Any] = {} if axis is None else {"axis": axis}
                for operator, source, target in (
                    ("QuantizeLinear", name, f"{name}_int8"),
                    ("DequantizeLinear", f"{name}_int8", f"{name}_rounded"),
                ):
                    nodes.append(
                        helper.make_node(operator, [source, *constants], [target], name=f"{operator}_{name}", **options)
                    )
            return f"{name}_rounded"

        for node in model.graph.node:
            if node.name in convolutions:
                values = numpy_helper.to_array(weights[node.input[1]])
                largest = np.abs(values).max(tuple(range(1, values.ndim)))
                node.input[0] = pair(
                    node.input[0], np.float32(self.limits[node.input[0]] / _INT8_MAX).reshape(()), None
                )
                node.input[1] = pair(node.input[1], (np.maximum(largest, _TINY) / _INT8_MAX).astype(np.float32), 0)
            nodes.append(node)
        return _finished(_with_nodes(model, nodes, added))


def quantizable_model(model: bytes, frames: Sequence[NDArray[np.uint8]]) -> QuantizableModel:
    """Prepare a graph for int8, calibrated on good `frames`, (H, W, 3) each.

    Raises `BundleError` for a graph that does not tell its network or has no convolution in it.
    """
    if not frames:
        raise InputError("int8 needs good pictures to calibrate on, and there are none; give --pictures")
    split = _split_concatenations(onnx.load_from_string(model))
    network = network_nodes(split.graph)
    nodes = [node for i, node in enumerate(split.graph.node) if i in network and node.op_type == "Conv"]
    if not nodes:
        raise BundleError("the network has no convolutions, and nothing else is made int8; use fp16 or fp32")
    limits, shapes = _calibrate(split, sorted({node.input[0] for node in nodes}), [n.output[0] for n in nodes], frames)
    weights = {tensor.name: tensor for tensor in split.graph.initializer}
    macs = {n.name: math.prod(shapes[n.output[0]]) * math.prod(weights[n.input[1]].dims[1:]) for n in nodes}
    return QuantizableModel(split, macs, limits)


def _split_concatenations(model: ModelProto) -> ModelProto:
    """Each of the network's convolutions over a concatenation as a sum of convolutions over its parts: the same numbers.

    The parts then have a scale each. And OpenVINO 2026.4 on x86 computes a quantised concatenation of an upsampled and
    another tensor wrongly (`expected` off by 67 grey levels where ONNX Runtime's is off by 9, benchmarks/LOG.md).
    """
    model = onnx.shape_inference.infer_shapes(model)
    network = network_nodes(model.graph)
    channels = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in model.graph.value_info
        if len(value.type.tensor_type.shape.dim) == 4
    }
    made_by = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    added: list[TensorProto] = []
    for i, node in enumerate(model.graph.node):
        source = made_by.get(node.input[0]) if i in network and node.op_type == "Conv" else None
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if source is None or source.op_type != "Concat" or groups != 1 or not all(map(channels.get, source.input)):
            nodes.append(node)
            continue
        kernel = numpy_helper.to_array(weights[node.input[1]])
        begin, parts = 0, []
        for n, name in enumerate(source.input):
            part = NodeProto()
            part.CopyFrom(node)
            part.name = f"{node.name}_part{n}"
            kernel_name = f"{node.input[1]}_part{n}"
            added.append(numpy_helper.from_array(kernel[:, begin : begin + channels[name]].copy(), kernel_name))
            begin += channels[name]
            bias = list(node.input[2:]) if n == 0 else []
            del part.input[:]
            part.input.extend([name, kernel_name, *bias])
            part.output[0] = f"{node.output[0]}_part{n}"
            nodes.append(part)
            parts.append(part.output[0])
        for n, name in enumerate(parts[1:], 1):
            before = parts[0] if n == 1 else f"{node.output[0]}_sum{n - 1}"
            total = node.output[0] if n == len(parts) - 1 else f"{node.output[0]}_sum{n}"
            add = helper.make_node("Add", [before, name], [total], name=f"{node.name}_sum{n}")
            add.metadata_props.extend(node.metadata_props)
            nodes.append(add)
    return _with_nodes(model, nodes, added)


def _calibrate(
    model: ModelProto, tensors: Sequence[str], shaped: Sequence[str], frames: Sequence[NDArray[np.uint8]]
) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """The clipping limit of each of `tensors` with the least squared rounding error, and the shapes of `shaped`.

    Two passes, frame by frame, so that no more than one frame's activations are ever held: the largest values, then a
    histogram of each tensor up to its own.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing it writes a device id and calls Microsoft
    import onnxruntime as ort

    open_model = ModelProto()
    open_model.CopyFrom(model)
    names = list(dict.fromkeys([*tensors, *shaped]))
    open_model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(open_model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(tensors, 0.0)
    shapes: dict[str, tuple[int, ...]] = {}
    for frame in frames:
        for name, values in zip(names, session.run(names, {"frames": frame[None]}), strict=True):
            shapes[name] = values.shape
            if name in largest:
                largest[name] = max(largest[name], float(np.abs(values).max()))
    counts = {name: np.zeros(_BINS) for name in tensors}
    for frame in frames:
        for name, values in zip(tensors, session.run(list(tensors), {"frames": frame[None]}), strict=True):
            if largest[name] > 0:
                counts[name] += np.histogram(np.abs(values), _BINS, (0, largest[name]))[0]
    return {name: _clipping_limit(counts[name], largest[name]) for name in tensors}, shapes


def _clipping_limit(counts: NDArray[np.float64], largest: float) -> float:
    """Where to clip, of absolute values with this histogram over 0 to `largest`."""
    if largest <= 0:
        return 1.0  # a tensor that is always zero
    centres = (np.arange(len(counts)) + 0.5) * largest / len(counts)
    candidates = largest * np.linspace(0.2, 1, 81)
    # Inside, rounding to steps of limit / 127 has an error of step^2 / 12 on average; outside, all that was clipped off.
    errors = [
        float((counts * np.where(centres <= limit, (limit / _INT8_MAX) ** 2 / 12, (centres - limit) ** 2)).sum())
        for limit in candidates
    ]
    return float(candidates[int(np.argmin(errors))])


# --- graphs ----------------------------------------------------------------------------------------------------------


def _with_nodes(model: ModelProto, nodes: Sequence[NodeProto], added: Iterable[TensorProto] = ()) -> ModelProto:
    """The model with these nodes instead, less those and the weights that nothing needs any more."""
    needed = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in [*model.graph.initializer, *added] if tensor.name in needed]
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(reversed(kept))
    result.graph.initializer.extend(weights)
    return result


def _finished(model: ModelProto) -> bytes:
    """Checked, and without the paths of the machine that exported it."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key not in _PRIVATE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
