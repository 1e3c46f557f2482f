"""Textures: learnt from crops, calibrated without places, and small defects that stay visible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.train_.parts import Blur, write
from tests.train_.textures import noise, with_hole, woven

from flawline_engines import open_engine
from flawline_inspect.bundle import Bundle
from flawline_inspect.calibration import GoodSpread, Moments, fit_pooled, leave_one_out_pooled
from flawline_inspect.errors import InputError
from flawline_inspect.frame import Placement
from flawline_train import train
from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.autoencoders.methods import METHODS, build
from flawline_train.fit import FROM_SCRATCH, Budget, batch_rng, fit, make_batch
from flawline_train.graph import CELL, InspectionGraph, reconstruct, run_graph, tile_top_cells, top_cells
from flawline_train.retraining import Previous
from flawline_train.texture import EDGE, calibrate_texture
from flawline_train.trainer import identity_of

U8 = NDArray[np.uint8]
CPU = torch.device("cpu")


def placement(hw: tuple[int, int]) -> Placement:
    """Of pictures that fill the frame."""
    return Placement((hw[1], hw[0]), (0, 0, hw[1], hw[0]), (0, 0, hw[1], hw[0]))


# Crops


def test_batches_are_crops_of_the_frames() -> None:
    """As they lie, from all over them, the same by the same seed; jitter moves them by a pixel or two."""
    y, x = np.mgrid[:256, :320]
    frames = np.repeat(np.stack([x * 0.5, y * 0.5, x * 0], -1)[None], 2, 0).astype(np.uint8)
    batches = [make_batch(frames, "none", 0.0, batch_rng(3, step), CPU, 128) for step in range(6)]
    again = make_batch(frames, "none", 0.0, batch_rng(3, 0), CPU, 128)
    torch.testing.assert_close(batches[0].inputs, again.inputs, rtol=0, atol=0)
    assert {tuple(batch.inputs.shape) for batch in batches} == {(8, 3, 128, 128)}
    pictures = torch.cat([batch.inputs for batch in batches])
    inner = pictures[:, :2, 8:-8, 8:-8]
    across, down = (inner[:, 0, :, -1] - inner[:, 0, :, 0]).mean(1), (inner[:, 1, -1] - inner[:, 1, 0]).mean(1)
    assert bool((across > 0.15).all()) and bool((down > 0.15).all())  # neither mirrored nor turned
    starts = inner.mean((2, 3))
    assert (
        float(starts[:, 0].max() - starts[:, 0].min()) > 0.2 and float(starts[:, 1].max() - starts[:, 1].min()) > 0.15
    )


def test_a_step_costs_the_same_whatever_the_frame() -> None:
    """Sides smaller than a crop stay as they are."""
    for hw, crop_hw in (
        ((512, 512), (128, 128)),
        ((1024, 256), (128, 128)),
        ((512, 96), (128, 96)),
        ((64, 48), (64, 48)),
    ):
        batch = make_batch(np.zeros((2, *hw, 3), np.uint8), "structured", 0.0, batch_rng(0, 0), CPU, 128)
        assert batch.inputs.shape[2:] == batch.target.shape[2:] == batch.mask.shape[2:] == crop_hw


def test_only_what_takes_any_size_is_trained_on_crops() -> None:
    """Each method that says so does; another is refused, and so is a crop that no network can halve four times."""
    for name, method in METHODS.items():
        network = build(name, 4, (64, 64)).eval()
        if method.network.any_size:
            assert network(torch.rand(1, 3, 32, 48)).shape == (1, 3, 32, 48)
    assert METHODS["filtering"].network.any_size
    frames = noise(3, 64)
    with pytest.raises(InputError, match="crop is 32 for a ConvolutionalAutoencoder"):
        fit(build("convolutional", 4, (64, 64)), frames, Budget(steps=1), seed=0, device=CPU, crop=32)
    with pytest.raises(InputError, match="crop is 40 "):
        fit(build("filtering", 4, (64, 64)), frames, Budget(steps=1), seed=0, device=CPU, crop=40)


def test_a_checkpoint_of_whole_frames_is_another_trainings() -> None:
    network, frames = FilteringAutoencoder(4, (64, 64)), noise(2, 64)
    whole, cropped = (identity_of(network, frames, 0, FROM_SCRATCH, crop) for crop in (None, 32))
    assert whole != cropped and whole == identity_of(network, frames, 0, FROM_SCRATCH)


# Calibration


def test_pooled_maps_are_constant_and_those_of_all_places() -> None:
    """Of maps that vary within and between pictures."""
    rng = np.random.default_rng(0)
    errors = (rng.normal(3, 2, (60, 20, 30)) + rng.normal(0, 1, (60, 1, 1))).astype(np.float32)
    good = fit_pooled(errors)
    assert good.mean.shape == good.spread.shape == (20, 30) and np.ptp(good.mean) == np.ptp(good.spread) == 0
    assert good.mean[0, 0] == pytest.approx(errors.mean(), rel=1e-5)
    assert good.spread[0, 0] == pytest.approx(errors.std(), rel=0.01)  # between pictures it is the unbiased one


def test_leaving_one_out_leaves_all_of_a_part_out() -> None:
    """Each picture is judged as by maps that never saw its part, however odd that is."""
    rng = np.random.default_rng(1)
    errors = rng.normal(1, 0.5, (6, 8, 8)).astype(np.float32)
    errors[2:4] *= 10
    parts = ["a", "b", "odd", "odd", "c", "d"]
    found = leave_one_out_pooled(errors, parts)
    for i, part in enumerate(parts):
        others = errors[[name != part for name in parts]]
        np.testing.assert_allclose(found[i], fit_pooled(others).standardise(errors[i]), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="show one part"):
        leave_one_out_pooled(errors[:3], ["a", "a", "b"])


@pytest.mark.parametrize(
    ("means", "sentence"), [([1.0, 2.0], "error maps of 2 pictures"), ([1.0, np.nan, 1.0], "non-finite")]
)
def test_what_no_calibration_can_rest_on_is_refused(means: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Moments(np.array(means), np.ones(len(means)))


def test_errors_that_never_vary_have_a_spread_all_the_same() -> None:
    assert np.isfinite(leave_one_out_pooled(np.ones((4, 8, 8), np.float32))).all()


def test_scores_are_those_of_a_graph_that_never_saw_the_part() -> None:
    """To the digit: what is kept of a map is enough. The graph's maps know two kinds of places, the edge and all others."""
    frames, where = noise(7, 160), placement((160, 160))
    frames[3] = np.clip(frames[3] * 1.2, 0, 255)
    parts = ["a", "b", "c", "d", "d", "e", "f"]
    found = calibrate_texture(Blur(), frames, where, false_reject_target=0.1, parts=parts, keep_suspects=True)
    edge = np.ones((80, 80), np.bool_)
    edge[EDGE // CELL : -EDGE // CELL, EDGE // CELL : -EDGE // CELL] = False
    for maps in (found.good.mean, found.good.spread):
        assert np.ptp(maps[edge]) == np.ptp(maps[~edge]) == 0
    x = torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        errors = found.error_map(x, reconstruct(Blur(), x))[:, 0].numpy()
    for i, part in enumerate(parts):
        others = errors[[name != part for name in parts]]
        without = GoodSpread(np.empty((80, 80), np.float32), np.empty((80, 80), np.float32))
        for region in (edge, ~edge):
            pooled = fit_pooled(others[:, region][:, None])
            without.mean[region], without.spread[region] = pooled.mean[0], pooled.spread[0]
        graph = InspectionGraph(Blur(), found.error_map, without, where, places=False)
        assert run_graph(graph, frames[i : i + 1])[0][0] == pytest.approx(found.scores[i], rel=1e-3)


def test_the_score_is_that_of_the_worst_tile() -> None:
    """As many pixels as of one crop count, however large the frame; a frame no larger than a crop is as an object's."""
    small, large = placement((128, 96)), placement((1024, 512))
    assert tile_top_cells(small) == top_cells(small)
    assert tile_top_cells(large) == tile_top_cells(placement((128, 128))) < top_cells(large)


def test_a_doubted_part_shapes_nothing() -> None:
    """Neither the error map nor mean and spread."""
    frames, where = noise(8, 64), placement((64, 64))
    odd = frames.copy()
    odd[5] = with_hole(frames[5:6], 0.05)[0]
    a, b = (calibrate_texture(Blur(), given, where, false_reject_target=0.1, doubted=["5"]) for given in (frames, odd))
    np.testing.assert_allclose(a.good.mean, b.good.mean, rtol=1e-6)
    torch.testing.assert_close(a.error_map.weights, b.error_map.weights)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_texture_becomes_a_bundle(tmp_path: Path) -> None:
    """Found by `auto`, run by an engine with the scores that it was calibrated to, and trained further as what it is."""
    for i, picture in enumerate(woven(10, 160)):
        write(tmp_path / "cloth" / f"{i}.png", picture)
    training = train(tmp_path / "cloth", tmp_path / "x.flawline", steps=2, width=4, device="cpu", report=False)
    bundle = Bundle.open(tmp_path / "x.flawline")
    frame = bundle.manifest.frame
    assert (frame.kind, frame.width, frame.height) == ("texture", 160, 160)
    assert any("kind texture" in note for note in training.notes)
    assert "texture" in bundle.manifest.card.limits
    with open_engine(bundle, "onnxruntime") as engine:
        for golden in bundle.golden():
            assert engine.infer(golden.fitted[None]).scores[0] == pytest.approx(golden.score, rel=1e-4)
    previous = Previous(tmp_path / "x.flawline")
    assert previous.kind == "texture"
    with pytest.raises(InputError, match=r"--kind is object, but the model of --from .* has texture"):
        previous.check(method=None, width=None, size=None, align="auto", kind="object")
