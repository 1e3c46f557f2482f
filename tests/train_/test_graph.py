"""The graph: its contract, its mathematics against plain NumPy, and the exported file against the module."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto
from scipy import ndimage
from tests.train_.parts import Blur, parts
from torch import nn

from flawline_inspect.calibration import GoodSpread
from flawline_inspect.frame import Placement
from flawline_train.graph import ErrorMap, InspectionGraph, gaussian_taps, run_graph, top_pixels

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


def pair(hw: tuple[int, int], kind: str) -> tuple[F64, F64]:
    """Picture and reconstruction (3, H, W) in 0-1, values that float32 holds exactly."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, *hw)).astype(np.float64) / 256
    y = {
        "unrelated": rng.integers(0, 256, (3, *hw)) / 256,
        "nearly equal": x + rng.integers(-1, 2, (3, *hw)) / 256,
        "equal": x,
        "inverted": 255 / 256 - x,
        "brighter": x * 0.5 + 0.25,
        "flat and flat": np.full_like(x, 0.25),
        "black and white": np.ones_like(x),
    }[kind]
    if kind == "flat and flat":
        x = np.full_like(x, 0.75)
    if kind == "black and white":
        x = np.zeros_like(x)
    return x, np.asarray(y, np.float64)


def plain_dissimilarity(x: F64, y: F64) -> F64:
    """1 - SSIM as in Wang et al. 2004, uniform 7 x 7 window, mean over the colours: (3, H, W) twice → (H, W)."""

    def windows(channel: F64) -> F64:
        padded = np.pad(channel, 3, mode="reflect")
        return sliding_window_view(padded, (7, 7)).reshape(*channel.shape, 49)

    c1, c2 = 0.01**2, 0.03**2
    maps = []
    for a, b in zip(x, y, strict=True):
        wa, wb = windows(a), windows(b)
        mu_a, mu_b = wa.mean(-1), wb.mean(-1)
        covariance = ((wa - mu_a[..., None]) * (wb - mu_b[..., None])).mean(-1)
        ssim = ((2 * mu_a * mu_b + c1) * (2 * covariance + c2)) / (
            (mu_a**2 + mu_b**2 + c1) * (wa.var(-1) + wb.var(-1) + c2)
        )
        maps.append(1 - ssim)
    return np.mean(maps, 0)


def plain_smoothing(errors: F64, long_side: int) -> F64:
    """A Gaussian of 2/128 of the long side, cut off after three of its deviations, edges reflected: (H, W) → (H, W)."""
    sigma = 2 / 128 * long_side
    radius = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    rows = ndimage.correlate1d(errors, taps, axis=1, mode="mirror")
    return np.asarray(ndimage.correlate1d(rows, taps, axis=0, mode="mirror"), np.float64)


def tensors(*pictures: F64) -> list[torch.Tensor]:
    return [torch.from_numpy(picture[None]).float() for picture in pictures]


def spread_of(hw: tuple[int, int], mean: float = 0.1, spread: float = 0.05) -> GoodSpread:
    return GoodSpread(np.full(hw, mean, np.float32), np.full(hw, spread, np.float32))


def whole(hw: tuple[int, int]) -> Placement:
    frame = (0, 0, hw[1], hw[0])
    return Placement((hw[1], hw[0]), frame, frame)


# The error map


@pytest.mark.parametrize(
    "kind", ["unrelated", "nearly equal", "equal", "inverted", "brighter", "flat and flat", "black and white"]
)
@pytest.mark.parametrize("hw", [(16, 16), (32, 48), (64, 16)], ids=str)
@torch.inference_mode()
def test_error_channels_against_plain_numpy(hw: tuple[int, int], kind: str) -> None:
    """Mean absolute error and textbook 1 - SSIM in float64, within 1e-5: float32 has 1e-7, divided by C2 = 9e-4."""
    x, y = pair(hw, kind)
    found = ErrorMap(hw).channels(*tensors(x, y))[0].numpy()
    assert found.shape == (2, *hw) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.abs(x - y).mean(0), atol=1e-6)
    np.testing.assert_allclose(found[1], plain_dissimilarity(x, y), atol=1e-5)


@torch.inference_mode()
def test_equal_pictures_have_no_error_at_all() -> None:
    """Exactly 0, not a rounding error that a small spread would blow up."""
    (x,) = tensors(pair((32, 32), "equal")[0])
    assert not ErrorMap((32, 32))(x, x.clone()).any()


@pytest.mark.parametrize(("long_side", "hw"), [(32, (32, 32)), (64, (48, 64)), (128, (64, 128)), (256, (256, 32))])
@torch.inference_mode()
def test_smoothing_against_scipy(long_side: int, hw: tuple[int, int]) -> None:
    """The two convolutions are scipy.ndimage's correlations with mirrored edges, within float32's rounding."""
    errors = np.random.default_rng(0).random(hw)
    found = ErrorMap((long_side, long_side)).smooth(torch.from_numpy(errors)[None, None].float())[0, 0].numpy()
    np.testing.assert_allclose(found, plain_smoothing(errors, long_side), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0, 2.0, 5.5])
def test_taps_are_a_centred_gaussian(sigma: float) -> None:
    """Odd in number, symmetric, summing to 1, and of the deviation asked for (cut off after three: a little less)."""
    taps = gaussian_taps(sigma).double().numpy()
    offsets = np.arange(len(taps)) - len(taps) // 2
    assert len(taps) % 2 == 1 and len(taps) >= 3
    np.testing.assert_array_equal(taps, taps[::-1])
    assert taps.sum() == pytest.approx(1, abs=1e-6)
    if sigma >= 1:
        assert float(np.sqrt((taps * offsets**2).sum())) == pytest.approx(sigma, rel=0.05)


@torch.inference_mode()
def test_weights_mix_the_channels() -> None:
    """The map is smooth(w0 x absolute + w1 x dissimilarity), in this order of the weights."""
    x, y = pair((32, 48), "unrelated")
    error_map = ErrorMap((48, 48))
    error_map.weights[0], error_map.weights[1] = 3.0, 0.25
    mixed = 3.0 * np.abs(x - y).mean(0) + 0.25 * plain_dissimilarity(x, y)
    found = error_map(*tensors(x, y))[0, 0].numpy()
    np.testing.assert_allclose(found, plain_smoothing(mixed, 48), atol=1e-5)


@pytest.mark.parametrize("hw", [(16, 352), (1024, 32)], ids=str)
def test_long_and_thin_frames_have_an_error_map(hw: tuple[int, int]) -> None:
    """A cable: any frame that `frame_for` allows can be smoothed."""
    x = torch.rand(1, 3, *hw)
    assert ErrorMap(hw)(x, x * 0.5).shape == (1, 1, *hw)


# Heatmap and score


@pytest.mark.parametrize(
    ("content", "k"),
    [
        pytest.param((0, 0, 16, 16), 1, id="at least one"),
        pytest.param((0, 0, 128, 128), 49, id="0.3 % of 16384"),
        pytest.param((16, 0, 96, 128), 37, id="the border does not count"),
        pytest.param((0, 0, 1120, 1120), 3763, id="just below TensorRT's limit"),
        pytest.param((0, 0, 2048, 2048), 3840, id="at TensorRT's limit"),
    ],
)
def test_top_pixels(content: tuple[int, int, int, int], k: int) -> None:
    """The score is the mean of 0.3 % of the part's pixels: at least one, at most 3840."""
    assert top_pixels(Placement((1, 1), (0, 0, 1, 1), content)) == k


@torch.inference_mode()
def test_heatmap_score_and_expected_recomputed(inspection_graph: InspectionGraph) -> None:
    """Heatmap = (error - mean) / spread on the part and 0 on the border; score = mean of its top 0.3 %; expected = rounded."""
    frames = parts(5, (64, 48))
    scores, heatmaps, expected = run_graph(inspection_graph, frames)
    x = torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255
    repaired = inspection_graph.network(x).clamp(0, 1)
    errors = inspection_graph.error_map(x, repaired)[:, 0].double().numpy()
    mean = inspection_graph.mean.double().numpy()
    spread = np.divide(1.0, inspection_graph.inverse_spread.numpy()[4:42].astype(np.float64))

    assert heatmaps.shape == (5, 48, 64) and heatmaps.dtype == np.float32
    np.testing.assert_allclose(heatmaps[:, 4:42], (errors[:, 4:42] - mean[4:42]) / spread, rtol=1e-4, atol=1e-4)
    assert not heatmaps[:, :4].any() and not heatmaps[:, 42:].any()
    k = round(0.003 * 64 * 38)
    top = np.sort(heatmaps.reshape(5, -1).astype(np.float64), 1)[:, -k:].mean(1)
    np.testing.assert_allclose(scores, top, rtol=1e-5)
    assert expected.dtype == np.uint8 and expected.shape == frames.shape
    np.testing.assert_array_equal(expected, np.rint(repaired.permute(0, 2, 3, 1).numpy() * np.float32(255)))


def test_heatmap_is_in_units_of_the_spread() -> None:
    """A pixel whose error lies three spreads above the good parts' mean reads 3; halving the spread doubles it."""

    class Darker(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 0.25

    hw = (32, 32)
    frames: U8 = np.full((1, *hw, 3), 128, np.uint8)
    error_map = ErrorMap((32, 32))
    error_map.weights[0], error_map.weights[1] = 1.0, 0.0
    for spread, reading in ((0.05, 3.0), (0.025, 6.0)):
        graph = InspectionGraph(Darker(), error_map, spread_of(hw, 0.1, spread), whole(hw)).eval()
        scores, heatmaps, expected = run_graph(graph, frames)
        np.testing.assert_allclose(heatmaps, reading, rtol=1e-5)
        np.testing.assert_allclose(scores, reading, rtol=1e-5)
        assert set(np.unique(expected)) == {64}  # 128 - 63.75 = 64.25


def test_expected_is_clamped_to_what_a_picture_can_show() -> None:
    """A reconstruction beyond black and white is cut off and does not wrap around."""

    class Contrast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - 0.5) * 4 + 0.5

    frames: U8 = np.zeros((1, 32, 32, 3), np.uint8)
    frames[:, 16:] = 255
    _, _, expected = run_graph(
        InspectionGraph(Contrast(), ErrorMap((32, 32)), spread_of((32, 32)), whole((32, 32))).eval(), frames
    )
    np.testing.assert_array_equal(expected, frames)


def test_good_parts_border_never_counts() -> None:
    """However wild the border of the maps, it changes neither heatmap nor score."""
    hw, placement = (32, 32), Placement((32, 20), (0, 0, 32, 20), (0, 6, 32, 20))
    calm = spread_of(hw)
    mean, spread = calm.mean.copy(), calm.spread.copy()
    mean[:6], spread[26:] = -1e6, 1e-9
    found = [
        run_graph(InspectionGraph(Blur(), ErrorMap((32, 32)), good, placement).eval(), parts(2, (32, 32)))
        for good in (calm, GoodSpread(mean, spread))
    ]
    for calm_output, wild_output in zip(*found, strict=True):
        np.testing.assert_array_equal(calm_output, wild_output)


def test_a_picture_scores_alone_as_in_a_batch(inspection_graph: InspectionGraph) -> None:
    """No picture influences another: one by one equals all 20 at once, up to the order of float32 sums."""
    frames = parts(20, (64, 48))
    together = run_graph(inspection_graph, frames)
    alone = [run_graph(inspection_graph, frames[i : i + 1]) for i in range(20)]
    np.testing.assert_allclose(together[0], np.concatenate([one[0] for one in alone]), rtol=1e-4)
    np.testing.assert_allclose(together[1], np.concatenate([one[1] for one in alone]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0, 128, 255], ids=["black", "grey", "white"])
def test_constant_pictures_give_numbers(inspection_graph: InspectionGraph, exported: bytes, value: int) -> None:
    """No variance anywhere: torch and the exported graph stay finite."""
    frames: U8 = np.full((2, 48, 64, 3), value, np.uint8)
    for scores, heatmaps, _ in (run_graph(inspection_graph, frames), run_onnx(exported, frames)):
        assert np.isfinite(scores).all() and np.isfinite(heatmaps).all()


# The exported file


def run_onnx(model: bytes, frames: U8) -> list[NDArray[np.generic]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"frames": frames})


@pytest.fixture(scope="module")
def proto(exported: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(exported)


def signature(values: object) -> list[tuple[str, int, tuple[int | str, ...]]]:
    """Name, type and shape; a dynamic dimension is a `?`."""
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            tuple("?" if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values  # type: ignore[attr-defined]  # protobuf's repeated field
    ]


def test_contract_of_the_exported_graph(proto: onnx.ModelProto) -> None:
    """Names, types and shapes of the design's table, a dynamic batch, opset 18, everything in the one file."""
    onnx.checker.check_model(proto, full_check=True)
    assert signature(proto.graph.input) == [("frames", TensorProto.UINT8, ("?", 48, 64, 3))]
    assert signature(proto.graph.output) == [
        ("scores", TensorProto.FLOAT, ("?",)),
        ("heatmaps", TensorProto.FLOAT, ("?", 48, 64)),
        ("expected", TensorProto.UINT8, ("?", 48, 64, 3)),
    ]
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 18
    assert not any(tensor.external_data for tensor in proto.graph.initializer)


def test_tensorrt_can_take_every_operation(proto: onnx.ModelProto) -> None:
    """A Cast reads the frames and nothing else does; no NonZero, no antialiased Resize, TopK at most 3840."""
    readers = [node.op_type for node in proto.graph.node if "frames" in node.input]
    assert readers == ["Cast"]
    kinds = {node.op_type for node in proto.graph.node}
    assert "NonZero" not in kinds and "TopK" in kinds
    assert {node.domain for node in proto.graph.node} == {""}
    for node in proto.graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert not (node.op_type == "Resize" and attributes.get("antialias"))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    (top_k,) = [node for node in proto.graph.node if node.op_type == "TopK"]
    assert constants[top_k.input[1]].item() == round(0.003 * 64 * 38)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_onnx_runtime_agrees_with_torch(inspection_graph: InspectionGraph, exported: bytes, n: int) -> None:
    """The file gives what the module gives, at any batch: below 0.1 % of the largest value, one grey level at most."""
    frames = parts(n, (64, 48))
    frames[0, 20:30, 20:40] = 255
    wanted, found = run_graph(inspection_graph, frames), run_onnx(exported, frames)
    for name, torch_output, onnx_output in zip(("scores", "heatmaps"), wanted, found, strict=False):
        assert onnx_output.dtype == np.float32 and onnx_output.shape == torch_output.shape
        difference = np.abs(torch_output - onnx_output)
        largest, mean = float(difference.max()), float(difference.mean())
        assert largest < 1e-3 * np.abs(torch_output).max(), f"{name} differ by {largest:.2e}, {mean:.2e} on average"
    assert found[2].dtype == np.uint8
    assert int(np.abs(wanted[2].astype(int) - found[2].astype(int)).max()) <= 1
