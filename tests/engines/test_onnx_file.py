"""What is read and written of ONNX files by hand, against ONNX's own package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_engines.bench import graph_cost
from flawline_engines.onnx_file import convolution_model, network_alone, weight_bytes
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.open_vino import OpenVinoEngine
from flawline_inspect.errors import EngineError


def initializers(model: bytes) -> list[NDArray[Any]]:
    return [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer]


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
def test_the_network_alone_expects_the_same(small_graph, frames: dict[str, NDArray[np.uint8]], engine: Any) -> None:
    """To the last bit; what belongs to the tail is gone."""
    alone = network_alone(small_graph.onnx)
    onnx.checker.check_model(onnx.load_from_string(alone))
    whole_cost, cost = graph_cost(small_graph.onnx, small_graph.hw), graph_cost(alone, small_graph.hw)
    # Less than the whole's network: what is only compared with, such as a coarser reconstruction, belongs to the errors.
    assert cost.tail_gflop == 0 and 0.9 * whole_cost.network_gflop < cost.network_gflop <= whole_cost.network_gflop
    assert weight_bytes(alone) < weight_bytes(small_graph.onnx)
    stacked = np.stack(list(frames.values()))
    with engine(small_graph.onnx, small_graph.hw, threads=1) as whole, engine(alone, small_graph.hw, threads=1) as part:
        found = part.infer(stacked)
        assert (found.expected == whole.infer(stacked).expected).all()
    assert found.scores.tolist() == [0] and found.heatmaps.tolist() == [0]


@pytest.mark.parametrize("name", ["vector-quantized", "attention"])
def test_the_network_alone_of_other_methods(method_graph, frames: dict[str, NDArray[np.uint8]], name: str) -> None:
    """Graphs with other operators are cut as well."""
    graph = method_graph(name)
    stacked = np.stack(list(frames.values())[:2])
    with (
        OnnxRuntimeEngine(graph.onnx, graph.hw, threads=1) as whole,
        OnnxRuntimeEngine(network_alone(graph.onnx), graph.hw, threads=1) as part,
    ):
        assert (part.infer(stacked).expected == whole.infer(stacked).expected).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_are_counted_in_their_own_types(precision: Any) -> None:
    model = convolution_model(16, 8, precision)
    assert weight_bytes(model) == sum(array.nbytes for array in initializers(model))


def test_weights_of_a_real_graph(small_graph) -> None:
    """Written by the exporter, which packs its dimensions."""
    assert weight_bytes(small_graph.onnx) == sum(array.nbytes for array in initializers(small_graph.onnx))


@given(data=st.binary(max_size=60), cut=st.integers(0, 400))
def test_what_is_no_graph_is_refused(data: bytes, cut: int) -> None:
    """With one sentence, whatever the file holds; never with another exception."""
    for model in (data, convolution_model(1, 4)[:cut] + data):
        with pytest.raises(EngineError, match="train again"):
            network_alone(model)
