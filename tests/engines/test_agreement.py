"""The graph says the same in torch, ONNX Runtime and OpenVINO, whatever the batch.

Tolerances: the engines sum in different orders and fuse differently, in float32. Over some 25 layers that leaves about
1e-6 of the largest value; where a picture is smooth, the structural error subtracts nearly equal numbers, and it is up to
5e-5. Allowed is 2e-4: more is another formula, such as one whose small constants the exporter left out (1e-3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from flawline_engines import Engine, Inference, open_vino
from flawline_engines.engine import installed_kinds
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.open_vino import OpenVinoEngine, _network_ends
from flawline_train.graph import run_graph

LARGEST_HEATMAP_DIFFERENCE = 2e-4
LARGEST_SCORE_DIFFERENCE = 2e-4
LARGEST_LEVEL_DIFFERENCE = 1  # of 255: a value on the edge between two levels may round either way
ALONE_DIFFERENCE = 1e-5
"""Between a frame in a batch and the same frame alone: the same engine, at most another kernel."""

KINDS = ("onnxruntime", "openvino")
BATCHES = (1, 2, 5)


@pytest.fixture(scope="module")
def engines(small_graph) -> Iterator[dict[str, Engine]]:
    with ExitStack() as stack:
        found: dict[str, Engine] = {
            "onnxruntime": stack.enter_context(OnnxRuntimeEngine(small_graph.onnx, small_graph.hw, threads=1))
        }
        if "openvino" in installed_kinds():
            found["openvino"] = stack.enter_context(
                OpenVinoEngine(small_graph.onnx, small_graph.hw, precision="fp32", threads=1)
            )
        yield found


@pytest.fixture(scope="module")
def engine_of(engines):
    def find(kind: str) -> Engine:
        if kind not in engines:
            pytest.skip(f"{kind} does not run on this machine")
        return engines[kind]

    return find


def in_batches(engine: Engine, frames: NDArray[np.uint8], size: int) -> Inference:
    parts = [engine.infer(frames[i : i + size]) for i in range(0, len(frames), size)]
    return Inference(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def relative(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_reference_says_something(small_graph, frames) -> None:
    """The comparison is worth something only if the graph's outputs vary: over the frames, and within them."""
    scores, heatmaps, expected = run_graph(small_graph.graph, np.stack(list(frames.values())))
    assert np.isfinite(scores).all() and scores.std() > 0.1 * np.abs(scores).mean()
    assert heatmaps.std((1, 2)).min() > 0.1
    assert expected[-1].std() > 10
    # The border, four pixels, is no part of the part; its last row is where the map's cells are drawn out to the frame.
    assert not heatmaps[:, :3].any() and not heatmaps[:, -3:].any()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_agrees_with_torch(engine_of, small_graph, frames, kind: str, batch: int) -> None:
    """Scores, heatmaps and expected pictures of an engine are those of the graph in torch, frame by frame."""
    pictures = np.stack(list(frames.values()))
    found = in_batches(engine_of(kind), pictures, batch)
    wanted = Inference(*run_graph(small_graph.graph, pictures))
    for i, name in enumerate(frames):
        heatmap = relative(found.heatmaps[i], wanted.heatmaps[i])
        mean = float(np.abs(found.heatmaps[i] - wanted.heatmaps[i]).mean())
        score = relative(found.scores[i], wanted.scores[i])
        levels = np.abs(found.expected[i].astype(int) - wanted.expected[i])
        what = f"{kind} and torch on {name!r}, batch {batch}"
        assert heatmap < LARGEST_HEATMAP_DIFFERENCE, f"{what}: heatmaps differ by {heatmap:.2e}, {mean:.2e} on average"
        assert score < LARGEST_SCORE_DIFFERENCE, f"{what}: {found.scores[i]} and {wanted.scores[i]}"
        assert levels.max() <= LARGEST_LEVEL_DIFFERENCE, (
            f"{what}: by {levels.max()} levels, {levels.mean():.2e} on average"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_no_flip_at_the_threshold(engine_of, small_graph, frames, kind: str) -> None:
    """Whichever way the threshold divides the frames, engine and torch put each one on the same side."""
    pictures = np.stack(list(frames.values()))
    wanted = run_graph(small_graph.graph, pictures)[0]
    found = engine_of(kind).infer(pictures).scores
    in_order = np.sort(wanted)
    for threshold in (in_order[1:] + in_order[:-1]) / 2:
        flipped = [name for name, a, b in zip(frames, found, wanted, strict=True) if (a > threshold) != (b > threshold)]
        assert flipped == [], f"threshold {threshold}: {kind} {found}, torch {wanted}"


@pytest.mark.parametrize("kind", KINDS)
def test_frame_in_a_batch_is_as_alone(engine_of, frames, kind: str) -> None:
    """What else is in the batch, and where in it a frame lies, changes nothing."""
    engine = engine_of(kind)
    pictures = np.stack(list(frames.values()))
    together = engine.infer(pictures)
    backwards = engine.infer(np.ascontiguousarray(pictures[::-1]))
    for i, name in enumerate(frames):
        alone = engine.infer(pictures[i : i + 1])
        for other, j in ((together, i), (backwards, len(pictures) - 1 - i)):
            assert relative(other.heatmaps[j], alone.heatmaps[0]) < ALONE_DIFFERENCE, name
            assert relative(other.scores[j], alone.scores[0]) < ALONE_DIFFERENCE, name
            levels = np.abs(other.expected[j].astype(int) - alone.expected[0])
            assert levels.max() <= LARGEST_LEVEL_DIFFERENCE, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_outputs_have_the_contracts_types_and_shapes(engine_of, small_graph, kind: str, batch: int) -> None:
    """scores (N,) float32, heatmaps (N, H, W) float32, expected (N, H, W, 3) uint8."""
    height, width = small_graph.hw
    found = engine_of(kind).infer(np.zeros((batch, height, width, 3), np.uint8))
    assert [(a.dtype, a.shape) for a in found] == [
        (np.float32, (batch,)),
        (np.float32, (batch, height, width)),
        (np.uint8, (batch, height, width, 3)),
    ]


def test_exported_file_keeps_the_contract(small_graph) -> None:
    """opset 18, one uint8 input, three outputs by name and type, a dynamic batch, height and width fixed."""
    model = onnx.load_from_string(small_graph.onnx)
    onnx.checker.check_model(model, full_check=True)
    height, width = small_graph.hw
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert described(model.graph.input) == [("frames", np.uint8, ("n", height, width, 3))]
    assert described(model.graph.output) == [
        ("scores", np.float32, ("n",)),
        ("heatmaps", np.float32, ("n", height, width)),
        ("expected", np.uint8, ("n", height, width, 3)),
    ]


def test_exported_file_keeps_to_what_tensorrt_can(small_graph) -> None:
    """Cast first, no antialiased Resize, no NonZero, TopK of at most 3840; nothing outside the file."""
    model = onnx.load_from_string(small_graph.onnx)
    nodes = list(model.graph.node)
    assert [node.op_type for node in nodes if "frames" in node.input] == ["Cast"]
    assert "NonZero" not in {node.op_type for node in nodes}
    for node in nodes:
        if node.op_type == "Resize":
            assert not any(attribute.name == "antialias" and attribute.i for attribute in node.attribute)
    ks = {node.input[1] for node in nodes if node.op_type == "TopK"}
    values = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in ks
    }
    assert len(ks) == 1 and values.keys() == ks  # a constant, and so known to TensorRT
    assert all(1 <= int(k.item()) <= 3840 for k in values.values())
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def described(values) -> list[tuple[str, object, tuple[str | int, ...]]]:
    return [
        (
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).type,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def test_the_network_ends_at_its_last_convolution(small_graph) -> None:
    """Where OpenVINO's bf16 begins to be float32: behind the last convolution that `expected` needs, and before the error's."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(small_graph.onnx, b"")
    (end,) = _network_ends(model)
    by_name = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    assert by_name[end].get_type_name() == "Convolution"
    assert (
        by_name[end].get_output_partial_shape(0)[1].get_length() == 3 * 2**2
    )  # colours times the space-to-depth block


def test_the_cut_graph_is_the_graph(small_graph, frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, and both halves in float32, it says what the whole says, for every size of batch and every picture anew."""
    pytest.importorskip("openvino")
    pictures = np.stack(list(frames.values()))
    with OpenVinoEngine(small_graph.onnx, small_graph.hw, threads=1) as whole:
        expected = whole.infer(pictures)
    monkeypatch.setitem(open_vino._PRECISION_HINTS, "fp32", "bf16")
    real = open_vino._NetworkAndTail
    cut = []

    def noted(*arguments):
        cut.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(open_vino, "_NetworkAndTail", noted)
    hints = all_in_float32(monkeypatch)
    with OpenVinoEngine(small_graph.onnx, small_graph.hw, threads=1) as engine:
        for batch in (1, 3):
            for i in range(0, len(pictures) - batch, batch):
                found = engine.infer(pictures[i : i + batch])
                assert relative(found.heatmaps, expected.heatmaps[i : i + batch]) < LARGEST_HEATMAP_DIFFERENCE
    assert len(cut) == 2 and hints == ["bf16", "f32"] * 2


def all_in_float32(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever hint a model is compiled with, it is float32; returns the hints, as they are asked for."""
    import openvino

    hints: list[str] = []
    real = openvino.Core.compile_model

    def compiled(self, model, device, config):
        hints.append(config["INFERENCE_PRECISION_HINT"])
        return real(self, model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    return hints
