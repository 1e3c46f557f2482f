"""Measuring: operations counted by hand, latencies that make sense, and the command's JSON. No test looks at a time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tests.engines.gpu_stand_ins import FakeMemory, FakeTensorRt, plan_bytes
from tests.engines.test_onnx_file import initializers
from tests.inspect_.bundles import SIDE, golden_picture, small_manifest, small_members

from flawline_edge import bench_command
from flawline_engines.bench import (
    GPU_PEAK_BATCH,
    HasBareLoop,
    conv_gflop,
    convolution_model,
    engine_for,
    graph_cost,
    has_precision,
    measure,
    peak_gflops,
    python_cost,
    times_in_turn,
)
from flawline_engines.engine import EngineKind, Precision, installed_kinds
from flawline_engines.onnx_file import PEAK_DEPTH
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.roofline import gpu_copy_gb_per_s
from flawline_engines.tensorrt import BuildSettings
from flawline_engines.tensorrt_runner import TensorRtEngine
from flawline_inspect.bundle import MODEL, bundle_bytes
from flawline_inspect.errors import CameraError, EngineError, InputError

HEIGHT, WIDTH = 12, 16
PIXELS = HEIGHT * WIDTH


def model_with(*nodes: onnx.NodeProto, **weights: tuple[int, ...]) -> bytes:
    """`x` is the frame as float (1, 3, H, W); the last node's output is the graph's."""
    tensor, helper = onnx.TensorProto, onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["frames"], ["cast"], to=tensor.FLOAT),
            helper.make_node("Transpose", ["cast"], ["x"], perm=[0, 3, 1, 2]),
            *nodes,
        ],
        "counted",
        [helper.make_tensor_value_info("frames", tensor.UINT8, ("n", HEIGHT, WIDTH, 3))],
        [helper.make_tensor_value_info(nodes[-1].output[0], tensor.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


node = onnx.helper.make_node
COUNTED: dict[str, tuple[bytes, int]] = {
    "nothing to count": (model_with(node("Relu", ["x"], ["y"])), 0),
    "3x3 convolution": (
        model_with(node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), w=(8, 3, 3, 3)),
        PIXELS * 8 * 3 * 9,
    ),
    "without padding": (model_with(node("Conv", ["x", "w"], ["y"]), w=(8, 3, 3, 3)), 10 * 14 * 8 * 3 * 9),
    "with a bias": (
        model_with(node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]), w=(8, 3, 3, 3), b=(8,)),
        PIXELS * 8 * 3 * 9,
    ),
    "stride 2": (
        model_with(node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]), w=(8, 3, 3, 3)),
        PIXELS // 4 * 8 * 3 * 9,
    ),
    "depthwise": (
        model_with(node("Conv", ["x", "w"], ["y"], group=3, pads=[1, 1, 1, 1]), w=(6, 1, 3, 3)),
        PIXELS * 6 * 9,
    ),
    "two in a row": (
        model_with(node("Conv", ["x", "w"], ["z"]), node("Conv", ["z", "v"], ["y"]), w=(4, 3, 1, 1), v=(5, 4, 1, 1)),
        PIXELS * (4 * 3 + 5 * 4),
    ),
    "transposed convolution": (
        model_with(node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), w=(3, 7, 2, 2)),
        PIXELS * 3 * 7 * 4,
    ),
    "matrix product": (model_with(node("MatMul", ["x", "w"], ["y"]), w=(WIDTH, 5)), 3 * HEIGHT * WIDTH * 5),
    "gemm": (
        model_with(node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"]), w=(3 * PIXELS, 5)),
        3 * PIXELS * 5,
    ),
    "gemm, both transposed": (
        model_with(
            node("Flatten", ["x"], ["f"], axis=4),  # (3 H W, 1)
            node("Gemm", ["f", "w"], ["y"], transA=1, transB=1),
            w=(5, 3 * PIXELS),
        ),
        3 * PIXELS * 5,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_operations_are_those_counted_by_hand(name: str) -> None:
    """Two for each multiplication and its addition, in thousand millions."""
    model, macs = COUNTED[name]
    assert conv_gflop(model, (HEIGHT, WIDTH)) == pytest.approx(2 * macs / 1e9, rel=1e-12)


def test_activations_are_what_goes_into_and_out_of_the_layers() -> None:
    """Two layers in a row: the values between them are written once and read once."""
    model, _ = COUNTED["two in a row"]
    assert graph_cost(model, (HEIGHT, WIDTH)).activations == PIXELS * (3 + 4 + 4 + 5)
    assert graph_cost(COUNTED["nothing to count"][0], (HEIGHT, WIDTH)).activations == 0


def test_operations_do_not_change_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile that they are read from is not left behind."""
    monkeypatch.chdir(tmp_path)
    conv_gflop(COUNTED["3x3 convolution"][0], (HEIGHT, WIDTH))
    assert list(tmp_path.iterdir()) == []


def test_operations_of_what_is_no_graph() -> None:
    """One line, as an engine's."""
    with pytest.raises(EngineError, match="onnxruntime cannot run the graph: ") as caught:
        conv_gflop(b"no graph", (HEIGHT, WIDTH))
    assert "\n" not in str(caught.value)


def test_graph_is_network_and_tail(small_graph) -> None:
    """The tail are the convolutions that take cells, those of the gradients, the filters of the patches, the two that smooth, and
    those that draw maps out to twice their size; the network is what torch says it is."""
    import torch

    height, width = small_graph.hw
    cost = graph_cost(small_graph.onnx, small_graph.hw)
    taps = small_graph.graph.error_map.taps.numel()
    h, w = height // 2, width // 2  # the map's cells
    rows = h + taps - 1  # the first goes along the rows of the padded map
    smoothing = taps * w * (rows + h)
    # One kernel of 2 x 2 over three colours of picture, reconstruction and their difference.
    cells = 3 * 3 * 4 * h * w
    # Two kernels of 3 x 3 over the cells of both, at their size and half of it.
    gradients = sum(2 * 2 * 9 * (h >> scale) * (w >> scale) for scale in range(2))
    # 25 filters of 5 x 5 at the same two.
    patches = sum(25 * 25 * (h >> scale) * (w >> scale) for scale in range(2))
    # Four kernels of 3 x 3 make four values of one: the half-size sum, and the heatmap.
    doubling = 4 * 9 * (h * w + (h // 2) * (w // 2))
    assert cost.tail_gflop == pytest.approx(2 * (smoothing + cells + gradients + patches + doubling) / 1e9)
    macs = 2 * small_graph.graph.network.whole.basis.numel()  # onto the basis and back

    def count(layer: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    network = small_graph.graph.network
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    assert cost.network_gflop == pytest.approx(2 * macs / 1e9)
    assert cost.gflop == cost.network_gflop + cost.tail_gflop


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("channels", "side"), [(1, 16), (16, 32), (64, 16)])
def test_convolution_model_is_onnx(channels: int, side: int, precision: Precision) -> None:
    """The file that is put together by hand passes ONNX's own checker and has the operations that it is divided by."""
    data = convolution_model(channels, side, precision)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["scores", "heatmaps", "expected"]
    macs = side * side * 9 * (3 * channels + PEAK_DEPTH * channels * channels)
    assert conv_gflop(data, (side, side)) == pytest.approx(2 * macs / 1e9)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_convolution_model_computes_the_same_in_every_precision(precision: Precision) -> None:
    """Neither overflow nor subnormal numbers nor saturated ones, which would take another time."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)

    def heatmap(precision: Precision) -> NDArray[np.float32]:
        model = convolution_model(32, 32, precision)
        with OnnxRuntimeEngine(model, (32, 32), precision=precision, threads=1) as engine:
            return engine.infer(frames).heatmaps

    exact = heatmap("fp32")
    assert 1 < np.abs(exact).max() < 1e4
    assert np.abs(heatmap(precision) - exact).max() < 0.1 * np.abs(exact).max()


class CountingEngine:
    """Answers nothing, and counts."""

    kind, precision = "counting", "fp32"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def infer(self, frames: NDArray[np.uint8]) -> Any:
        self.batches.append(len(frames))


@pytest.mark.parametrize("batch", [1, 8])
def test_measure_makes_sense(batch: int) -> None:
    """In order, positive, at least as many runs as asked for, and a warm-up before them."""
    engine = CountingEngine()
    found = measure(engine, np.zeros((batch, 4, 4, 3), np.uint8), seconds=0.0, min_runs=7)  # type: ignore[arg-type]
    assert (found.batch, found.runs) == (batch, 7)
    assert set(engine.batches) == {batch} and len(engine.batches) > found.runs
    assert 0 < found.min_ms <= found.median_ms <= found.p99_ms
    assert 0 < found.frames_per_s <= batch * 1e3 / found.min_ms * (1 + 1e-9)


def test_calls_take_turns() -> None:
    """In rounds, so that a busy second falls on both; each has as many runs as asked for, whatever the other takes."""
    order: list[str] = []
    found = times_in_turn([lambda: order.append("a"), lambda: order.append("b")], seconds=0.0, rounds=3, min_runs=6)
    assert [len(ms) for ms in found] == [6, 6]
    measured = "".join(order)[-12:]
    assert measured == "aabb" * 3
    assert all((ms >= 0).all() for ms in found)


def test_measure_goes_on_for_the_time() -> None:
    """With calls that take next to nothing there are many of them."""
    found = measure(CountingEngine(), np.zeros((1, 4, 4, 3), np.uint8), seconds=0.02, min_runs=1)  # type: ignore[arg-type]
    assert found.runs * found.min_ms <= 20 + found.p99_ms * found.runs
    assert found.runs > 1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_peak_is_a_rate(kind: EngineKind, precision: Precision) -> None:
    """Positive and finite; the best of the shapes."""
    if kind not in installed_kinds():
        pytest.skip(f"{kind} does not run on this machine")
    peak = peak_gflops(kind, precision=precision, threads=1, shapes=[(16, 32), (32, 16)], seconds=0.01)
    assert math.isfinite(peak) and peak > 0


def test_peak_in_a_precision_that_is_not_there() -> None:
    """ONNX Runtime has no bf16, here as on the line; TensorRT needs a GPU."""
    assert not has_precision("onnxruntime", "bf16")
    assert not has_precision("tensorrt", "fp32")
    assert has_precision("onnxruntime", "fp32")
    with pytest.raises(EngineError, match="bf16"):
        peak_gflops("onnxruntime", precision="bf16")


# --- what Python costs ---------------------------------------------------------------------------------------------


class Layered(CountingEngine):
    """Of whose calls the runtime takes 2 ms."""

    def bare_ms(self, frames: NDArray[np.uint8], runs: int) -> NDArray[np.float64]:
        return np.full(runs, 2.0)


def test_python_is_what_is_not_the_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of the two medians, and its share of the runtime's; both are called equally often."""
    timed: list[int] = []

    def timed_ms(call: object, runs: int) -> NDArray[np.float64]:
        timed.append(runs)
        return np.array([2.5] * (runs - 1) + [100.0])

    monkeypatch.setattr("flawline_engines.bench.timed_ms", timed_ms)
    found = python_cost(Layered(), np.zeros((1, 4, 4, 3), np.uint8), seconds=0.01)  # type: ignore[arg-type]
    assert found is not None and (found.bare_ms, found.infer_ms) == (2.0, 2.5)
    assert (found.ms, found.share) == (0.5, 0.25)
    assert len(timed) == 8 and sum(timed) >= 20


def test_an_engine_without_a_loop_of_its_own() -> None:
    """A server's."""
    assert python_cost(CountingEngine(), np.zeros((1, 4, 4, 3), np.uint8)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["openvino", "openvino bf16", "onnxruntime"])
def test_the_bare_loop_is_part_of_the_engine(kind: str) -> None:
    """As many runs as asked for; what the engine says does not change, and closed it says so."""
    name, _, precision = kind.partition(" ")
    if name not in installed_kinds() or (precision and not has_precision("openvino", "bf16")):
        pytest.skip(f"{kind} is not here")
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    engine = engine_for(convolution_model(8, 32), (32, 32), name, precision or "fp32", 1)  # type: ignore[arg-type]
    assert isinstance(engine, HasBareLoop)
    with engine:
        before = engine.infer(frames)
        ms = engine.bare_ms(frames, 5)
        assert ms.shape == (5,) and (ms > 0).all()
        after = engine.infer(frames)
        for ours, theirs in zip(before, after, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        engine.infer(frames[:1])
        with pytest.raises(EngineError, match="frames are"):
            engine.bare_ms(frames[:, :8], 1)
    with pytest.raises(EngineError, match="not open"):
        engine.bare_ms(frames, 1)


# --- a GPU's limits ------------------------------------------------------------------------------------------------


def test_a_gpus_peak_is_that_of_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for them, and timed without the ways to and from Python."""
    memory = FakeMemory(has_graphs=True)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(memory))
    settings: list[BuildSettings] = []

    def compile_plan(name: str, model: bytes, *, settings: BuildSettings) -> tuple[bytes, bytes]:
        asked.append(settings)
        return plan_bytes((16, 16), max_batch=settings.max_batch), b""

    asked = settings
    monkeypatch.setattr("flawline_engines.tensorrt.compile_plan", compile_plan)
    kwdefaults = {**TensorRtEngine.__init__.__kwdefaults__, "memory": lambda: memory}
    monkeypatch.setattr(TensorRtEngine.__init__, "__kwdefaults__", kwdefaults)
    assert peak_gflops("tensorrt", shapes=[(8, 16)], seconds=0.01) > 0
    assert [each.max_batch for each in settings] == [GPU_PEAK_BATCH]
    assert "launch" in memory.calls
    memory.assert_clean()


def test_a_gpus_copies_have_a_rate() -> None:
    """And leave nothing, also when one fails."""
    memory = FakeMemory()
    rate = gpu_copy_gb_per_s(memory, mib=1, runs=3)
    assert math.isfinite(rate) and rate > 0
    memory.assert_clean()
    memory.fail = ("duplicate", 0)
    with pytest.raises(EngineError, match="duplicate fails"):
        gpu_copy_gb_per_s(memory, mib=1, runs=3)
    memory.assert_clean()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that passes its self-test: convolutions instead of a network, golden scores as ONNX Runtime gives them."""
    model = convolution_model(16, SIDE)
    manifest = small_manifest()
    with OnnxRuntimeEngine(model, (SIDE, SIDE), threads=1) as engine:
        pictures = {(label, i): golden_picture(i, label) for label in ("good", "damaged") for i in range(2)}
        scores = {key: float(engine.infer(picture[None]).scores[0]) for key, picture in pictures.items()}
    for entry, score in zip(manifest["golden"], scores.values(), strict=True):
        entry["score"] = score
    path = tmp_path_factory.mktemp("bundle") / "part.flawline"
    path.write_bytes(bundle_bytes(manifest, small_members() | {MODEL: model}))
    return path


ROW_KEYS = {
    "engine",
    "precision",
    "threads",
    "batch",
    "runs",
    "min_ms",
    "median_ms",
    "p99_ms",
    "frames_per_s",
    "gflop_per_s",
    "peak_gflop_per_s",
    "share_of_peak",
    "copy_gb_per_s",
    "bound_ms",
    "bound_by",
    "share_of_bound",
    "layers_through_memory_ms",
    "network_ms",
    "network_share_of_peak",
    "tail_share_of_network",
    "bare_ms",
    "python_ms",
    "python_share",
}
DAEMON_KEYS = {
    "parts",
    "not_in_time",
    "acknowledged",
    "broker",
    "state_dir",
    "filesystem",
    "overhead_ms",
    "journal_ms",
    "fit_ms",
    "infer_ms",
    "fsync_ms",
    "overhead_less_one_fsync_ms",
}


def test_json_of_the_engines(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output, a row for each combination; progress goes elsewhere."""
    bench_command.bench(
        bundle, engines=["onnxruntime"], threads=[1, 2, 1], batches=[1, 3], seconds=0.01, parts=0, json=True
    )
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    report = json.loads(printed.out)
    assert report.keys() == {"model", "frame_wh", "machine", "gflop_per_frame", "bytes", "engines", "daemon", "memory"}
    assert report["daemon"] is None and report["memory"] is None
    assert report["frame_wh"] == [SIDE, SIDE]
    assert report["gflop_per_frame"]["total"] == pytest.approx(conv_gflop(convolution_model(16, SIDE), (SIDE, SIDE)))
    rows = report["engines"]
    assert [(row["engine"], row["precision"], row["threads"], row["batch"]) for row in rows] == [
        ("onnxruntime", "fp32", threads, batch) for threads in (1, 2) for batch in (1, 3)
    ]
    for row in rows:
        assert row.keys() == ROW_KEYS
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["p99_ms"]
        assert row["share_of_peak"] == pytest.approx(row["gflop_per_s"] / row["peak_gflop_per_s"])
        assert row["bound_by"] in ("arithmetic", "memory")
        assert row["share_of_bound"] == pytest.approx(row["bound_ms"] / row["median_ms"])
        assert row["network_ms"] > 0 and math.isfinite(row["tail_share_of_network"])
        assert (row["bare_ms"] is None) == (row["batch"] != 1)
        if row["batch"] == 1:
            assert row["bare_ms"] > 0
            assert row["python_share"] == pytest.approx(row["python_ms"] / row["bare_ms"])
    weights = sum(array.nbytes for array in initializers(convolution_model(16, SIDE)))
    assert report["bytes"]["fp32"]["weights"] == weights
    assert report["bytes"]["fp32"]["picture"] == 10 * SIDE * SIDE + 4
    assert "onnxruntime" in printed.err


def test_json_of_the_daemon(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is measured; the overhead holds the journal's wait and the fitting; nothing is left in the folder."""
    monkeypatch.setattr(bench_command, "FSYNCS", 5)
    bench_command.bench(bundle, engines=["onnxruntime"], threads=[1], batches=[1], seconds=0.01, parts=12, json=True)
    report = json.loads(capsys.readouterr().out)
    daemon = report["daemon"]
    assert daemon.keys() == DAEMON_KEYS
    assert (daemon["parts"], daemon["not_in_time"], daemon["acknowledged"]) == (12, 0, True)
    for key in ("overhead_ms", "journal_ms", "fit_ms", "infer_ms", "fsync_ms"):
        assert daemon[key].keys() == {"median", "p99"}
        assert 0 < daemon[key]["median"] <= daemon[key]["p99"]
    assert daemon["overhead_ms"]["median"] > daemon["fit_ms"]["median"]
    assert list(Path(daemon["state_dir"]).glob("flawline-bench-*/state")) == []
    assert report["memory"].keys() == {"process_resident_mib", "process_peak_mib", "demo_peak_mib"}
    for mib in report["memory"].values():
        assert mib is None or mib > 10


def test_tables_name_what_was_measured(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people: the model, the machine, a line for each combination."""
    bench_command.bench(bundle, engines=["onnxruntime"], threads=[1], batches=[1, 2], seconds=0.01, parts=0)
    out = capsys.readouterr().out
    assert "GFLOP a frame" in out and "bottle-" in out
    assert len([line for line in out.splitlines() if line.startswith("onnxruntime")]) == 4  # and the limit of each
    assert "bound, in ms" in out and "MB of weights" in out


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "threads": ({"threads": [-1]}, "--threads is -1, expected 0 to 256"),
    "batches": ({"batches": [1, 65]}, "--batches is 65, expected 1 to 64"),
    "no batch": ({"batches": [0]}, "--batches is 0, expected 1 to 64"),
    "seconds": ({"seconds": 0.0}, "--seconds is 0.0, expected more than 0"),
    "seconds that are no number": ({"seconds": math.nan}, "--seconds is nan"),
    "parts": ({"parts": -1}, "--parts is -1"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options_are_refused(bundle: Path, name: str) -> None:
    """Before anything is measured, with what was found and what is expected."""
    options, message = WRONG_OPTIONS[name]
    with pytest.raises(InputError, match=message):
        bench_command.bench(bundle, **options)


def test_prepared_line_ends_after_its_verdicts() -> None:
    """It counts verdicts, not pictures: what a station drops while it starts is not missing at the end."""
    line = bench_command._PreparedLine([np.zeros((4, 4, 3), np.uint8)], 2)
    with line:
        handed = [line.read()]  # dropped: no verdict comes
        for _ in range(2):
            handed.append(line.read())
            line(SimpleNamespace(late=False))  # type: ignore[arg-type]
            line(SimpleNamespace(late=True))  # type: ignore[arg-type]
        assert line.read() is None
    assert [frame.part for frame in handed if frame is not None] == ["B000001", "B000002", "B000003"]
    with pytest.raises(CameraError):
        line.read()
