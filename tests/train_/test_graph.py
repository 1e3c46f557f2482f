"""The graph: its contract, its mathematics against plain NumPy, and the exported file against the module."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from scipy import ndimage
from tests.train_.parts import Blur, parts
from tests.train_.test_dissimilarity import block_means, pair, plain_gradient, plain_structural
from torch import nn

from flawline_inspect.calibration import GoodSpread
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import Autoencoder, Reconstruction
from flawline_train.autoencoders.linear import LinearAutoencoder
from flawline_train.graph import (
    ERROR_CHANNELS,
    ErrorMap,
    InspectionGraph,
    brought_to,
    cells_of,
    doubled,
    gaussian_taps,
    reconstruct,
    run_graph,
    top_cells,
)

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


def plain_smoothing(errors: F64, long_side: int) -> F64:
    """A Gaussian of 2/128 of the frame's long side, two pixels a cell, cut off after three of its deviations, edges reflected:
    (h, w) → (h, w)."""
    sigma = 1 / 128 * long_side
    radius = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    rows = ndimage.correlate1d(errors, taps, axis=1, mode="mirror")
    return np.asarray(ndimage.correlate1d(rows, taps, axis=0, mode="mirror"), np.float64)


def bilinear(picture: F64, hw: tuple[int, int]) -> F64:
    return np.asarray(cv2.resize(picture, hw[::-1], interpolation=cv2.INTER_LINEAR), np.float64)


def plain_patches(ratio: F64) -> F64:
    """Before it is fitted: the deviation within 5x5 patches, at full and half size, by SciPy."""
    maps = []
    for scale in (1, 2):
        small = block_means(ratio[None], scale)[0]
        mean, squares = (ndimage.uniform_filter(each, 5, mode="mirror") for each in (small, small**2))
        maps.append(bilinear(np.sqrt(np.maximum(squares - mean**2, 0)), ratio.shape))  # type: ignore[arg-type]
    return np.mean(maps, 0)


def tensor(picture: F64) -> torch.Tensor:
    """(3, H, W) → (1, 3, H, W) float32."""
    return torch.from_numpy(picture[None]).float()


def given(hw: tuple[int, int], kind: str = "unrelated") -> tuple[torch.Tensor, Reconstruction]:
    """A picture, its reconstruction and a coarse one of half the size."""
    x, y = pair(hw, kind)
    return tensor(x), Reconstruction(tensor(y), tensor(block_means(y, 2)))


def spread_of(hw: tuple[int, int], mean: float = 0.1, spread: float = 0.05) -> GoodSpread:
    return GoodSpread(np.full(hw, mean, np.float32), np.full(hw, spread, np.float32))


def whole(hw: tuple[int, int]) -> Placement:
    frame = (0, 0, hw[1], hw[0])
    return Placement((hw[1], hw[0]), frame, frame)


# The error map


@torch.inference_mode()
def test_channels_come_by_their_names() -> None:
    """Each is the one of its name, in the order asked for; SSIM and MSGMS are those of the grey pictures."""
    hw = (32, 48)
    x, y = pair(hw, "unrelated")
    cells, expected = block_means(x, 2), block_means(y, 2)
    wanted = {
        "absolute": block_means(np.abs(x - y), 2).mean(0),
        "ssim": plain_structural(cells.mean(0), expected.mean(0), 3),
        "msgms": plain_gradient(cells.mean(0), expected.mean(0)),
        "coarse": np.abs(cells - expected).mean(0),
        "patches": plain_patches(np.log(cells.mean(0) + 0.02) - np.log(expected.mean(0) + 0.02)),
    }
    assert set(wanted) == set(ERROR_CHANNELS)
    for names in (ERROR_CHANNELS, ERROR_CHANNELS[::-1], ("msgms", "absolute"), ("coarse",)):
        found = ErrorMap(hw, names).channels(*given(hw))
        assert found.shape == (1, len(names), 16, 24) and found.dtype == torch.float32
        for channel, name in zip(found[0].numpy(), names, strict=True):
            np.testing.assert_allclose(channel, wanted[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("factor", [1, 4, 8])
@torch.inference_mode()
def test_a_coarse_picture_of_any_size(factor: int) -> None:
    """The map has cells of two pixels, whether the coarse picture has more or fewer of them."""
    hw = (32, 48)
    x, y = pair(hw, "unrelated")
    coarse = block_means(y, factor)
    error = np.abs(block_means(x, factor) - coarse).mean(0)
    found = ErrorMap(hw, ("coarse",)).channels(tensor(x), Reconstruction(tensor(y), tensor(coarse)))[0, 0].numpy()
    if factor == 1:
        wanted = block_means(error, 2)
    else:
        wanted = error
        while wanted.shape[0] < 16:
            wanted = bilinear(wanted, (2 * wanted.shape[0], 2 * wanted.shape[1]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("hw", [(1, 1), (1, 7), (6, 9)], ids=str)
@torch.inference_mode()
def test_doubling_is_opencv_s_bilinear_resizing(hw: tuple[int, int]) -> None:
    """And keeps the mean, which is why errors may be weighed before they are brought to size."""
    x = np.random.default_rng(0).random(hw)
    found = doubled(torch.from_numpy(x)[None, None].float())[0, 0].numpy()
    np.testing.assert_allclose(found, bilinear(x, (2 * hw[0], 2 * hw[1])), atol=1e-6)
    assert found.mean() == pytest.approx(x.mean(), rel=1e-5)


@torch.inference_mode()
def test_maps_of_several_sizes_are_summed_at_the_one_asked_for() -> None:
    """In whatever order they come."""
    large, small, tiny = (torch.rand(2, 1, 16 // f, 24 // f) for f in (1, 2, 4))
    wanted = large + doubled(small) + doubled(doubled(tiny))
    torch.testing.assert_close(brought_to((16, 24), [tiny, large, small]), wanted)
    torch.testing.assert_close(brought_to((16, 24), [tiny]), doubled(doubled(tiny)))


@pytest.mark.parametrize("names", [(), ("absolute", "psnr"), ("SSIM",)], ids=str)
def test_an_error_that_does_not_exist_is_refused(names: tuple[str, ...]) -> None:
    """With what was found and what there is."""
    with pytest.raises(ValueError, match=r"expected some of \('absolute', 'ssim', 'msgms', 'coarse', 'patches'\)"):
        ErrorMap((32, 32), names)


@torch.inference_mode()
def test_equal_pictures_have_no_error_at_all() -> None:
    """Exactly 0, not a rounding error that a small spread would blow up; against a coarse picture, whose grey is formed in another
    order, patches differ by that of a logarithm."""
    x = tensor(pair((32, 32), "equal")[0])
    assert not ErrorMap((32, 32), tuple(set(ERROR_CHANNELS) - {"coarse"}))(x, Reconstruction(x.clone())).any()
    found = ErrorMap((32, 32), ERROR_CHANNELS).channels(x, Reconstruction(x.clone(), x.clone()))[0]
    assert not found[:-1].any() and float(found[-1].max()) < 1e-5


@pytest.mark.parametrize(("long_side", "hw"), [(32, (16, 16)), (64, (24, 32)), (128, (32, 64)), (256, (128, 16))])
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
def test_the_map_is_the_weighted_sum_of_relative_errors() -> None:
    """smooth(sum of weight x error / root of (its mean over the picture + floor)), each picture by its own mean."""
    hw = (32, 48)
    weights, floors = np.array([3.0, 0.25, 1.5, 2.0, 0.7]), np.array([0.1, 0.02, 0.3, 0.004, 0.2])
    error_map = ErrorMap(hw, ERROR_CHANNELS)
    error_map.weights.copy_(torch.from_numpy(weights))
    error_map.floors.copy_(torch.from_numpy(floors))
    x, y = given(hw)
    other = Reconstruction(y.expected * 0.5, y.coarse)
    both = Reconstruction(*(torch.cat(column) for column in zip(y, other, strict=True)))
    found = error_map(torch.cat([x, x]), both)[:, 0].numpy()
    for picture, reconstruction in zip(found, (y, other), strict=True):
        errors = error_map.channels(x, reconstruction)[0].double().numpy()
        relative = errors / np.sqrt(errors.mean((1, 2)) + floors)[:, None, None]
        mixed = (weights[:, None, None] * relative).sum(0)
        np.testing.assert_allclose(picture, plain_smoothing(mixed, 48), atol=1e-5)


@torch.inference_mode()
def test_a_picture_that_is_rebuilt_badly_everywhere_counts_as_little_as_its_root() -> None:
    """Four times the error all over doubles the map, less where the floor is large; a place that is bad beside good ones
    keeps nearly all of it."""
    x = torch.zeros(1, 3, 32, 32)
    error_map = ErrorMap((32, 32), ("absolute",))
    error_map.floors.zero_()
    one, four = (error_map(x, Reconstruction(torch.full_like(x, level))) for level in (0.1, 0.4))
    torch.testing.assert_close(four, 2 * one)
    torch.testing.assert_close(one, torch.full_like(one, 0.1**0.5))
    error_map.floors.fill_(100.0)
    one, four = (error_map(x, Reconstruction(torch.full_like(x, level))) for level in (0.1, 0.4))
    torch.testing.assert_close(four, 4 * one, rtol=1e-2, atol=0)


@pytest.mark.parametrize("hw", [(16, 16), (16, 352), (1024, 32)], ids=str)
def test_long_and_thin_frames_have_an_error_map(hw: tuple[int, int]) -> None:
    """A cable: any frame that `frame_for` allows can be reduced, smoothed and enlarged."""
    x = torch.rand(1, 3, *hw)
    found = ErrorMap(hw, ERROR_CHANNELS)(x, Reconstruction(x * 0.5, LinearAutoencoder(hw)(x * 0.9)))
    assert found.shape == (1, 1, hw[0] // 2, hw[1] // 2) and bool(torch.isfinite(found).all())


@torch.inference_mode()
def test_reconstruct_clamps_the_picture_and_keeps_the_coarse_one() -> None:
    """A plain module has a picture only; an autoencoder of ours may have both."""

    class Contrast(Autoencoder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - 0.5) * 4 + 0.5

        def reconstruct(self, x: torch.Tensor) -> Reconstruction:
            return Reconstruction(self(x), x[..., ::2, ::2])

    x = torch.rand(2, 3, 32, 32)
    found = reconstruct(Contrast(), x)
    assert (float(found.expected.min()), float(found.expected.max())) == (0, 1)
    assert found.coarse is not None and torch.equal(found.coarse, x[..., ::2, ::2])
    plain = reconstruct(nn.Identity(), x)
    assert plain.coarse is None and torch.equal(plain.expected, x)


# Heatmap and score


@pytest.mark.parametrize(
    ("content", "k"),
    [
        pytest.param((0, 0, 16, 16), 1, id="at least one"),
        pytest.param((0, 0, 128, 128), 12, id="0.3 % of 4096"),
        pytest.param((16, 0, 96, 128), 9, id="the border does not count"),
        pytest.param((0, 0, 2240, 2240), 3763, id="just below TensorRT's limit"),
        pytest.param((0, 0, 4096, 4096), 3840, id="at TensorRT's limit"),
    ],
)
def test_top_cells(content: tuple[int, int, int, int], k: int) -> None:
    """The score is the mean of 0.3 % of the part's cells: at least one, at most 3840; four times as many where they are pixels."""
    placement = Placement((1, 1), (0, 0, 1, 1), content)
    assert top_cells(placement) == k
    assert top_cells(placement, 1) == min(3840, max(1, round(0.003 * content[2] * content[3])))


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((0, 0, 32, 16), (0, 0, 16, 8)),
        ((6, 2, 36, 28), (3, 1, 18, 14)),
        ((5, 3, 36, 28), (3, 2, 17, 13)),
        ((3, 3, 1, 1), (2, 2, 1, 1)),
    ],
    ids=str,
)
def test_cells_of_a_box_lie_within_it(box: tuple[int, int, int, int], cells: tuple[int, int, int, int]) -> None:
    """A cell that shows some of the border is border. There is one at least."""
    assert cells_of(box) == cells
    assert cells_of(box, 1) == box


@torch.inference_mode()
def test_heatmap_score_and_expected_recomputed(inspection_graph: InspectionGraph) -> None:
    """Map = (error - mean) / spread on the part and 0 on the border; score = mean of its top 0.3 %; the heatmap is the map at the
    frame's size; expected = rounded."""
    frames = parts(5, (64, 48))
    scores, heatmaps, expected = run_graph(inspection_graph, frames)
    x = torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255
    found = reconstruct(inspection_graph.network, x)
    errors = inspection_graph.error_map(x, found)[:, 0].double().numpy()
    mean = inspection_graph.mean.double().numpy()
    inverse = inspection_graph.inverse_spread.double().numpy()
    assert inverse.shape == mean.shape == (24, 32)
    assert (inverse[2:21] > 0).all() and not inverse[:2].any() and not inverse[21:].any()
    maps = (errors - mean) * inverse

    assert heatmaps.shape == (5, 48, 64) and heatmaps.dtype == np.float32
    for heatmap, each in zip(heatmaps, maps, strict=True):
        np.testing.assert_allclose(heatmap, bilinear(each, (48, 64)), rtol=1e-4, atol=1e-4)
    assert not heatmaps[:, :3].any() and not heatmaps[:, 43:].any()
    k = round(0.003 * 32 * 19)
    top = np.sort(maps.reshape(5, -1), 1)[:, -k:].mean(1)
    np.testing.assert_allclose(scores, top, rtol=1e-5)
    assert expected.dtype == np.uint8 and expected.shape == frames.shape
    np.testing.assert_array_equal(expected, np.rint(found.expected.permute(0, 2, 3, 1).numpy() * np.float32(255)))


def test_heatmap_is_in_units_of_the_spread() -> None:
    """A pixel whose error lies three spreads above the good parts' mean reads 3; halving the spread doubles it."""

    class Darker(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 0.25

    hw = (32, 32)
    frames: U8 = np.full((1, *hw, 3), 128, np.uint8)
    error_map = ErrorMap((32, 32), ("absolute",))
    error_map.floors.fill_(0.75)  # 0.25 + 0.75 = 1: divided by nothing
    for spread, reading in ((0.05, 3.0), (0.025, 6.0)):
        graph = InspectionGraph(Darker(), error_map, spread_of((16, 16), 0.1, spread), whole(hw)).eval()
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
        InspectionGraph(Contrast(), ErrorMap((32, 32)), spread_of((16, 16)), whole((32, 32))).eval(), frames
    )
    np.testing.assert_array_equal(expected, frames)


def test_good_parts_border_never_counts() -> None:
    """However wild the border of the maps, it changes neither heatmap nor score."""
    placement = Placement((32, 20), (0, 0, 32, 20), (0, 6, 32, 20))
    calm = spread_of((16, 16))
    mean, spread = calm.mean.copy(), calm.spread.copy()
    mean[:3], spread[13:] = -1e6, 1e-9
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
    assert constants[top_k.input[1]].item() == round(0.003 * 32 * 19)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_onnx_runtime_agrees_with_torch(inspection_graph: InspectionGraph, exported: bytes, n: int) -> None:
    """The file gives what the module gives, at any batch: below 1e-4 of the largest value, one grey level at most.

    Rounding alone is a few 1e-6; more would be another formula, such as one whose small constants the exporter left out.
    """
    frames = parts(n, (64, 48))
    frames[0, 20:30, 20:40] = 255
    frames[-1, :, :16] = 0
    wanted, found = run_graph(inspection_graph, frames), run_onnx(exported, frames)
    for name, torch_output, onnx_output in zip(("scores", "heatmaps"), wanted, found, strict=False):
        assert onnx_output.dtype == np.float32 and onnx_output.shape == torch_output.shape
        difference = np.abs(torch_output - onnx_output)
        largest, mean = float(difference.max()), float(difference.mean())
        assert largest < 1e-4 * np.abs(torch_output).max(), f"{name} differ by {largest:.2e}, {mean:.2e} on average"
    assert found[2].dtype == np.uint8
    assert int(np.abs(wanted[2].astype(int) - found[2].astype(int)).max()) <= 1
