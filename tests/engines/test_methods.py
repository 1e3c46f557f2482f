"""Every method of the family, exported: the engines say what torch says. That TensorRT-RTX compiles it: test_tensorrt.py.

Tolerances are those of test_agreement.py.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tests.train_.parts import varied_parts

from flawline_engines.engine import installed_kinds
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.open_vino import OpenVinoEngine
from flawline_train.autoencoders.methods import METHOD_NAMES
from flawline_train.graph import run_graph

TOLERANCE = 1e-3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_engines_agree_with_torch(method_graph, name: str, kind: str) -> None:
    """Scores, heatmaps and expected pictures at batch 1 and 3, of parts and of noise."""
    if kind not in installed_kinds():
        pytest.skip(f"{kind} does not run on this machine")
    graph, model = method_graph(name).graph, method_graph(name).onnx
    frames: NDArray[np.uint8] = varied_parts(3, (64, 48), seed=5)
    frames[2] = np.random.default_rng(0).integers(0, 256, frames[2].shape)
    scores, heatmaps, expected = run_graph(graph, frames)
    assert np.isfinite(heatmaps).all() and scores.std() > 0 and expected.std() > 0
    engine = (
        OnnxRuntimeEngine(model, (48, 64), threads=1)
        if kind == "onnxruntime"
        else OpenVinoEngine(model, (48, 64), precision="fp32", threads=1)
    )
    with engine as runner:
        for batch in (slice(0, 1), slice(0, 3)):
            found = runner.infer(frames[batch])
            differences = np.abs(found.heatmaps - heatmaps[batch])
            assert differences.max() < TOLERANCE * np.abs(heatmaps).max(), f"{differences.max():.2e} of heatmaps"
            np.testing.assert_allclose(found.scores, scores[batch], rtol=TOLERANCE)
            assert int(np.abs(found.expected.astype(int) - expected[batch]).max()) <= 1


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_file_keeps_to_what_tensorrt_can(method_graph, name: str) -> None:
    """Nothing that depends on values: no NonZero, no loop, no operator of another domain; opset 18."""
    model = onnx.load_from_string(method_graph(name).onnx)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"NonZero", "Loop", "If", "Scan", "Where", "GatherND", "ScatterND"}
    assert not model.functions
