"""ONNX files, as far as measuring needs them: convolutions alone, a graph's network alone, the size of its weights.

A station has no onnx package, and would use it for this alone. So a few messages of onnx.proto are read and written here
by field number; the format of the wire is protobuf's, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Precision
from flawline_inspect.errors import EngineError

__all__ = ["PEAK_DEPTH", "convolution_model", "network_alone", "weight_bytes"]

PEAK_DEPTH = 6
"""Convolutions in a row, so that what comes before and after them is lost in their time."""

# ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto
_IR_VERSION, _GRAPH, _OPSET = 1, 7, 8
_NODE, _NAME, _INITIALIZER, _INPUT, _OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT = 1, 2
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_VALUE_NAME = 1

_FLOAT, _UINT8, _INT8, _FLOAT16 = 1, 2, 3, 10
_ELEMENTS: dict[type, int] = {np.float32: _FLOAT, np.uint8: _UINT8, np.int8: _INT8, np.float16: _FLOAT16}
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""TensorProto.DataType: bytes of a value."""
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7

_ACTIVATION_SCALE = 5.0
"""int8: 127 of these hold the values of `convolution_model`, whose spread is that of a picture, about 150."""


# --- what is measured besides the bundle -----------------------------------------------------------------------------


def convolution_model(channels: int, side: int, precision: Precision = "fp32") -> bytes:
    """An ONNX file that keeps the graph's contract (see design.md) and is nothing but 3x3 convolutions inside.

    In fp16 values and weights are half precision; in int8 both are quantised as `flawline quantize` does.
    """
    random = np.random.default_rng(0)
    half = precision == "fp16"
    nodes = [
        _node("Cast", ["frames"], "cast", to=_FLOAT16 if half else _FLOAT),
        _node("Transpose", ["cast"], "x0", perm=[0, 3, 1, 2]),
    ]
    weights = []
    if precision == "int8":
        weights += [_tensor("scale", np.array(_ACTIVATION_SCALE, np.float32)), _tensor("zero", np.array(0, np.int8))]
    for i in range(1 + PEAK_DEPTH):
        inputs = channels if i else 3
        # Of a size that neither grows nor shrinks the values on their way: subnormal numbers would be slow.
        values = random.standard_normal((channels, inputs, 3, 3)) / math.sqrt(9 * inputs)
        x, w = f"x{i}", f"w{i}"
        if precision == "int8":
            scales = np.abs(values).max((1, 2, 3)) / 127
            weights += [
                _tensor(f"{w}_int8", np.round(values / scales[:, None, None, None]).astype(np.int8)),
                _tensor(f"{w}_scale", scales.astype(np.float32)),
                _tensor(f"{w}_zero", np.zeros(channels, np.int8)),
            ]
            nodes += [
                _node("QuantizeLinear", [x, "scale", "zero"], f"{x}_int8"),
                _node("DequantizeLinear", [f"{x}_int8", "scale", "zero"], f"{x}_quantised"),
                _node("DequantizeLinear", [f"{w}_int8", f"{w}_scale", f"{w}_zero"], w, axis=0),
            ]
            x = f"{x}_quantised"
        else:
            weights.append(_tensor(w, values.astype(np.float16 if half else np.float32)))
        nodes.append(_node("Conv", [x, w], f"x{i + 1}", pads=[1, 1, 1, 1]))
    last = f"x{1 + PEAK_DEPTH}"
    nodes += [
        _node("Cast", [last], "float", to=_FLOAT),
        _node("ReduceMean", ["float"], "heatmaps", axes=[1], keepdims=0),
        _node("ReduceMean", ["heatmaps"], "scores", axes=[1, 2], keepdims=0),
        _node("Identity", ["frames"], "expected"),
    ]
    picture = ("n", side, side, 3)
    graph = b"".join(
        [
            *(_field(_NODE, node) for node in nodes),
            _field(_NAME, b"convolutions"),
            *(_field(_INITIALIZER, weight) for weight in weights),
            _field(_INPUT, _value("frames", _UINT8, picture)),
            _field(_OUTPUT, _value("scores", _FLOAT, ("n",))),
            _field(_OUTPUT, _value("heatmaps", _FLOAT, ("n", side, side))),
            _field(_OUTPUT, _value("expected", _UINT8, picture)),
        ]
    )
    opset = _field(1, b"") + _field(2, 13)  # from 18 on ReduceMean takes its axes as a tensor
    return _field(_IR_VERSION, 8) + _field(_GRAPH, graph) + _field(_OPSET, opset)


def network_alone(model: bytes) -> bytes:
    """The graph without its tail: what `expected` is computed from; `scores` and `heatmaps` are one zero each.

    The difference of its time to the whole graph's is the tail's. Raises `EngineError` for what is no graph of ours.
    """
    try:
        fields = list(_fields(model))
        graph = next(field.content for field in fields if field.number == _GRAPH)
        parts = list(_fields(graph))
        made_by = {name: part for part in parts if part.number == _NODE for name in _texts(part.content, _NODE_OUTPUT)}
        needed, waiting = set(), ["expected"]
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                waiting += _texts(made_by[name].content, _NODE_INPUT) if name in made_by else []
        outputs = {name for part in parts if part.number == _OUTPUT for name in _texts(part.content, _VALUE_NAME)}
        if not {"expected", "scores", "heatmaps"} <= outputs or "expected" not in made_by:
            raise EngineError("the graph does not give scores, heatmaps and expected; train again")
        kept = [part.whole for part in parts if _stays(part, needed)]
    except (StopIteration, IndexError, UnicodeDecodeError) as exc:
        raise EngineError(f"the graph cannot be read as an ONNX file ({exc!r}); train again") from exc
    kept.append(_field(_INITIALIZER, _tensor("nothing", np.zeros(1, np.float32))))
    for name in ("scores", "heatmaps"):
        kept.append(_field(_NODE, _node("Identity", ["nothing"], name)))
    for name in ("scores", "heatmaps"):  # in the order in which results are unpacked: before `expected`
        kept.append(_field(_OUTPUT, _value(name, _FLOAT, (1,))))
    kept += [part.whole for part in parts if part.number == _OUTPUT and "expected" in _texts(part.content, _VALUE_NAME)]
    return b"".join(_field(_GRAPH, b"".join(kept)) if field.number == _GRAPH else field.whole for field in fields)


def _stays(part: _Field, needed: set[str]) -> bool:
    if part.number == _NODE:
        return not needed.isdisjoint(_texts(part.content, _NODE_OUTPUT))
    if part.number == _INITIALIZER:
        return not needed.isdisjoint(_texts(part.content, _TENSOR_NAME))
    return part.number in (_NAME, _INPUT)


def weight_bytes(model: bytes) -> int:
    """What the graph's constants take: weights and the statistics of good parts. They are read in every call."""
    total = 0
    try:
        for graph in (field.content for field in _fields(model) if field.number == _GRAPH):
            for tensor in (part.content for part in _fields(graph) if part.number == _INITIALIZER):
                dims: list[int] = []
                item = 0
                for field in _fields(tensor):
                    if field.number == _DIMS:
                        dims += _numbers(field)
                    elif field.number == _DATA_TYPE:
                        item = _ITEM_BYTES.get(field.value, 0)
                total += item * math.prod(dims)
    except IndexError as exc:
        raise EngineError("the graph cannot be read as an ONNX file; train again") from exc
    return total


# --- the wire: reading -------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """`value` of a number, `content` of anything longer; `whole` with its tag, as it stands in the message."""

    number: int
    value: int
    content: bytes
    whole: bytes


def _fields(message: bytes) -> Iterator[_Field]:
    """Raises `IndexError` for what ends too early or is no message."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        value, content = 0, b""
        if tag & 7 == 0:
            value, at = _read_varint(message, at)
        else:
            if tag & 7 == 2:
                length, at = _read_varint(message, at)
            elif tag & 7 in (1, 5):
                length = 8 if tag & 7 == 1 else 4
            else:
                raise IndexError(f"wire type {tag & 7}")
            if at + length > len(message):
                raise IndexError("a field ends behind its message")
            content, at = message[at : at + length], at + length
        yield _Field(tag >> 3, value, content, message[begin:at])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def _numbers(field: _Field) -> list[int]:
    """Of a repeated integer, which some writers pack."""
    if not field.content:
        return [field.value]
    found, at = [], 0
    while at < len(field.content):
        value, at = _read_varint(field.content, at)
        found.append(value)
    return found


def _texts(message: bytes, number: int) -> list[str]:
    return [field.content.decode() for field in _fields(message) if field.number == number]


# --- the wire: writing -------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _node(operator: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    """A NodeProto."""
    out = b"".join(_field(_NODE_INPUT, name.encode()) for name in inputs)
    out += _field(_NODE_OUTPUT, output.encode()) + _field(3, output.encode()) + _field(4, operator.encode())
    for name, value in attributes.items():
        if isinstance(value, int):
            content, kind = _field(3, value), _ATTRIBUTE_INT
        else:
            content, kind = b"".join(_field(8, v) for v in value), _ATTRIBUTE_INTS
        out += _field(5, _field(1, name.encode()) + content + _field(20, kind))
    return out


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    """A TensorProto."""
    dims = b"".join(_field(_DIMS, size) for size in values.shape)
    little = values.astype(values.dtype.newbyteorder("<")).tobytes()
    element = _ELEMENTS[values.dtype.type]
    return dims + _field(_DATA_TYPE, element) + _field(_TENSOR_NAME, name.encode()) + _field(_RAW_DATA, little)


def _value(name: str, element: int, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto; a size that is a word is dynamic."""
    dims = b"".join(_field(1, _field(1, size) if isinstance(size, int) else _field(2, size.encode())) for size in shape)
    tensor = _field(1, element) + _field(2, dims)
    return _field(_VALUE_NAME, name.encode()) + _field(2, _field(1, tensor))
