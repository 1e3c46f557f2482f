"""The bound's arithmetic, by hand."""

from __future__ import annotations

import math

import pytest

from flawline_engines.bench import GraphCost, graph_cost
from flawline_engines.onnx_file import convolution_model, weight_bytes
from flawline_engines.roofline import Bound, Traffic, bound, copy_gb_per_s, traffic

COST = GraphCost(network_gflop=4.0, tail_gflop=1.0, activations=1000)
MOVED = Traffic(weights=3_000_000, picture=1_000_000, layers=4000)


@pytest.mark.parametrize(
    ("batch", "peak", "copy", "expected"),
    [
        pytest.param(1, 500.0, 10.0, Bound(arithmetic_ms=10.0, memory_ms=0.4), id="one frame"),
        pytest.param(8, 500.0, 10.0, Bound(arithmetic_ms=80.0, memory_ms=1.1), id="the weights are read once"),
        pytest.param(1, 1e6, 0.1, Bound(arithmetic_ms=5e-3, memory_ms=40.0), id="slow memory"),
    ],
)
def test_bound(batch: int, peak: float, copy: float, expected: Bound) -> None:
    """The slower of the two, which go on at the same time."""
    found = bound(COST, MOVED, batch, peak_gflops=peak, copy_gb_per_s=copy)
    assert found.arithmetic_ms == pytest.approx(expected.arithmetic_ms)
    assert found.memory_ms == pytest.approx(expected.memory_ms)
    assert found.ms == max(found.arithmetic_ms, found.memory_ms)
    assert found.limited_by == ("memory" if copy < 1 else "arithmetic")


def test_traffic_of_a_graph() -> None:
    """Values are narrower in smaller precisions; in bf16 the weights too, whose file is that of fp32."""
    model = convolution_model(16, 8)
    cost = graph_cost(model, (8, 8))
    full = traffic(model, (8, 8), cost, "fp32")
    assert full == Traffic(weight_bytes(model), 8 * 8 * 10 + 4, 4 * cost.activations)
    half = traffic(model, (8, 8), cost, "bf16")
    assert (half.weights, half.layers) == (full.weights // 2, full.layers // 2)
    small = convolution_model(16, 8, "int8")
    assert traffic(small, (8, 8), cost, "int8").layers == cost.activations


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_copying_has_a_rate(threads: int) -> None:
    rate = copy_gb_per_s(threads, mib=4, seconds=0.01)
    assert math.isfinite(rate) and rate > 0
