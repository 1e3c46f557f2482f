"""Calibration of a network: leave-one-out scores, the weights of the error map, and what goes into the graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tests.train_.parts import Blur, parts
from torch import nn

from flawline_inspect.errors import InputError
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import Autoencoder, FilteringAutoencoder, Reconstruction
from flawline_train.autoencoders.linear import LinearAutoencoder
from flawline_train.calibrate import Calibration, calibrate
from flawline_train.graph import ERROR_CHANNELS, ErrorMap, InspectionGraph, reconstruct, run_graph
from flawline_train.threshold import threshold_from_scores
from flawline_train.weighing import HALF_AT, LINEAR, OTHERS

F64 = NDArray[np.float64]
HW = (32, 48)
LEFT, TOP, WIDTH, HEIGHT = CONTENT = (6, 2, 36, 28)
PLACEMENT = Placement((360, 280), (0, 0, 360, 280), CONTENT)
N = 18  # more than one batch


class Watched(Autoencoder):
    """The blur, beside it a linear autoencoder of the whole picture; every error can be formed."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = Blur()
        self.whole = LinearAutoencoder(HW)
        self.whole.fit([_tensor(parts(12, (HW[1], HW[0])))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.blur(x))

    def reconstruct(self, x: torch.Tensor) -> Reconstruction:
        return Reconstruction(self(x), self.whole(x))


class Case(NamedTuple):
    frames: NDArray[np.uint8]
    found: Calibration
    channels: F64
    """(n, C, h, w), smoothed, relative, unweighted, those that were chosen."""
    units: F64
    """(C,) one over each error's deviation over good parts, averaged over the part."""


def _tensor(frames: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255


def relative_channels(network: nn.Module, frames: NDArray[np.uint8], names: tuple[str, ...]) -> F64:
    """The error map's own channels over the root of their means and floors, smoothed by SciPy: (n, C, H, W)."""
    error_map = ErrorMap(HW, names)
    x = _tensor(frames)
    with torch.inference_mode():
        error_map.patches.fit([error_map.ratio(x, reconstruct(network, x))])
        channels = error_map.channels(x, reconstruct(network, x)).double().numpy()
    means = channels.mean((2, 3))
    channels = channels / np.sqrt(means + 0.1 * means.mean(0))[:, :, None, None]
    taps = error_map.taps.double().numpy()
    rows = ndimage.correlate1d(channels, taps, axis=3, mode="mirror")
    return np.asarray(ndimage.correlate1d(rows, taps, axis=2, mode="mirror"), np.float64)


@pytest.fixture(scope="module", params=["without a coarse picture", "with one"])
def case(request: pytest.FixtureRequest) -> Case:
    network = (Watched() if request.param == "with one" else Blur()).eval()
    frames = parts(N, (HW[1], HW[0]), first=100)
    frames[4, 10:14, 20:24] = 255  # one picture that is not like the others
    found = calibrate(network, frames, PLACEMENT, false_reject_target=0.1, keep_suspects=True)
    channels = relative_channels(network, frames, found.error_map.names)
    return Case(frames, found, channels, 1 / inside(channels).std(0, ddof=1).mean((1, 2)))


def inside(maps: F64) -> F64:
    return maps[..., TOP // 2 : (TOP + HEIGHT) // 2, LEFT // 2 : (LEFT + WIDTH) // 2]


def plain_maps(errors: F64) -> tuple[F64, F64]:
    """Mean and spread (H, W) of error maps (n, H, W): variance pooled over a twelfth of the side as if by 20 pictures."""
    variance = errors.var(0, ddof=1)
    side = max(3, round(max(variance.shape) / 12) | 1)
    pooled = ndimage.uniform_filter(variance, side, mode="reflect")
    shrunk = (len(errors) * variance + 20 * pooled) / (len(errors) + 20)
    return errors.mean(0), np.sqrt(np.maximum(shrunk, 0.75**2 * variance.mean()))


def test_scores_are_leave_one_out(case: Case) -> None:
    """Each picture scored by maps that are made anew from the others alone, in plain NumPy, within 0.1 %."""
    weights = case.found.error_map.weights.double().numpy()
    errors = (case.channels * weights[None, :, None, None]).sum(1)
    k = max(1, round(0.003 * WIDTH * HEIGHT / 4))
    expected = []
    for i in range(N):
        mean, spread = plain_maps(np.delete(errors, i, 0))
        heatmap = inside((errors[i] - mean) / spread)
        expected.append(np.sort(heatmap.reshape(-1))[-k:].mean())
    assert case.found.scores.shape == (N,) and case.found.scores.dtype == np.float32
    np.testing.assert_allclose(case.found.scores, expected, rtol=1e-3)
    assert int(np.argmax(case.found.scores)) == 4


def test_maps_are_those_of_all_pictures(case: Case) -> None:
    """What goes into the graph uses all held-out pictures: mean and shrunk spread, recomputed, within 0.1 %."""
    weights = case.found.error_map.weights.double().numpy()
    mean, spread = plain_maps((case.channels * weights[None, :, None, None]).sum(1))
    np.testing.assert_allclose(case.found.good.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(case.found.good.spread, spread, rtol=1e-3)


def test_a_skipped_suspect_does_not_widen_the_maps(case: Case) -> None:
    """The odd picture hides no defect where it is odd: the maps are those of the other pictures, its score is by them."""
    network = Watched() if "coarse" in case.found.error_map.names else Blur()
    found = calibrate(network, case.frames, PLACEMENT, false_reject_target=0.01)
    assert found.threshold.skipped == (4,)
    weights = found.error_map.weights.double().numpy()
    errors = (relative_channels(network, case.frames, found.error_map.names) * weights[None, :, None, None]).sum(1)
    mean, spread = plain_maps(np.delete(errors, 4, 0))
    np.testing.assert_allclose(found.good.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(found.good.spread, spread, rtol=1e-3)
    heatmap = inside((errors[4] - mean) / spread)
    k = max(1, round(0.003 * WIDTH * HEIGHT / 4))
    assert found.scores[4] == pytest.approx(np.sort(heatmap.reshape(-1))[-k:].mean(), rel=1e-3)


def test_an_outlier_scores_higher_left_out_than_in(case: Case) -> None:
    """Through the graph, whose maps know it, the odd picture looks tamer than its honest score."""
    network = Watched() if "coarse" in case.found.error_map.names else Blur()
    graph = InspectionGraph(network, case.found.error_map, case.found.good, PLACEMENT).eval()
    known, _, _ = run_graph(graph, case.frames)
    assert known[4] < 0.7 * case.found.scores[4]


def test_weights_are_a_mixture_of_errors_of_the_same_spread(case: Case) -> None:
    """Each error in units of its own deviation over good parts, times one of the few weights it may have."""
    error_map = case.found.error_map
    mixture = error_map.weights.double().numpy() / case.units
    for name, weight in zip(error_map.names, mixture, strict=True):
        trust = N / (N + HALF_AT) if name in LINEAR else 1.0
        assert any(weight == pytest.approx(w * trust, rel=1e-3) for w in OTHERS[name] if w), f"{name}: {weight}"
    assert {"ssim", "msgms"} <= set(error_map.names)
    # They were not the same before.
    assert max(case.units) > 1.1 * min(case.units)


def test_floors_are_a_tenth_of_the_usual_error(case: Case) -> None:
    """Of each channel that is formed, over the held-out pictures."""
    network = Watched() if "coarse" in case.found.error_map.names else Blur()
    x = _tensor(case.frames)
    error_map = case.found.error_map
    with torch.inference_mode():
        means = error_map.channels(x, reconstruct(network, x)).mean((0, 2, 3))
    torch.testing.assert_close(error_map.floors, 0.1 * means, rtol=1e-4, atol=0)


def test_what_weighs_nothing_is_not_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out of the graph, whose scores are those of a graph with a weight of 0 for it."""
    monkeypatch.setattr("flawline_train.calibrate.weigh", lambda names, *_, **__: (0.0, 1.0, 1.0, 4.5, 9.0))
    network = Watched().eval()
    frames = parts(10, (HW[1], HW[0]), first=100)
    found = calibrate(network, frames, PLACEMENT, false_reject_target=0.1)
    assert found.error_map.names == ("ssim", "msgms", "coarse", "patches")
    assert found.error_map.weights.shape == found.error_map.floors.shape == (4,)
    whole = ErrorMap(HW, ERROR_CHANNELS)
    whole.weights.copy_(torch.cat([torch.zeros(1), found.error_map.weights]))
    whole.floors.copy_(torch.cat([torch.ones(1), found.error_map.floors]))
    whole.patches.load_state_dict(found.error_map.patches.state_dict())
    one, other = (
        run_graph(InspectionGraph(network, error_map, found.good, PLACEMENT).eval(), frames)[0]
        for error_map in (found.error_map, whole)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_threshold_follows_from_the_scores(case: Case) -> None:
    """The threshold of the 18 parts' scores, one of which is far out and skipped unless it is kept."""
    network = Watched() if "coarse" in case.found.error_map.names else Blur()
    found = calibrate(network.eval(), case.frames, PLACEMENT, false_reject_target=0.1)
    assert found.threshold == threshold_from_scores(found.part_scores, 0.1)
    assert (found.threshold.n, found.threshold.skipped, found.threshold.exceedances) == (N, (4,), 1)
    kept = case.found
    assert kept.threshold.skipped == () and kept.threshold.value >= float(case.found.scores.max())


def test_a_part_s_score_is_its_largest_and_made_without_its_other_pictures() -> None:
    """The odd picture photographed twice: as one part it stands out as before, as two parts each hides the other."""
    frames = parts(N, (HW[1], HW[0]))
    frames[4, 10:14, 20:24] = 255
    frames = np.concatenate([frames, frames[4:5]])
    names = [str(i) for i in range(N)] + ["4"]
    one = calibrate(Blur().eval(), frames, PLACEMENT, false_reject_target=0.1, parts=names)
    two = calibrate(Blur().eval(), frames, PLACEMENT, false_reject_target=0.1)
    assert one.parts == tuple(map(str, range(N))) and one.part_scores.shape == (N,) and one.scores.shape == (N + 1,)
    assert one.part_scores[4] == max(one.scores[4], one.scores[N])
    np.testing.assert_array_equal(np.delete(one.part_scores, 4), np.delete(one.scores, [4, N]))
    assert one.part_scores[4] > 1.3 * two.scores[4]
    assert one.threshold.n == N and two.threshold.n == N + 1


def test_calibration_is_deterministic(case: Case) -> None:
    """The same pictures give the same bits."""
    network = Watched() if "coarse" in case.found.error_map.names else Blur()
    again = calibrate(network.eval(), case.frames, PLACEMENT, false_reject_target=0.1, keep_suspects=True)
    np.testing.assert_array_equal(again.scores, case.found.scores)
    np.testing.assert_array_equal(again.good.mean, case.found.good.mean)
    np.testing.assert_array_equal(again.good.spread, case.found.good.spread)
    assert torch.equal(again.error_map.weights, case.found.error_map.weights)


def test_the_border_is_no_part_of_it() -> None:
    """Noise far outside the content, the same in every picture, changes hardly a score: it is in the mean over the picture
    that errors are divided by, and nowhere else."""
    frames = parts(N, (HW[1], HW[0]))
    wild = frames.copy()
    wild[:, :, 47] = np.random.default_rng(0).integers(0, 256, (HW[0], 3))
    placement = Placement((300, 280), (0, 0, 300, 280), (2, 2, 30, 28))  # 15 columns away: blur, window and smoothing
    network = Blur().eval()
    network.error_channels = ("absolute", "ssim")
    calm, noisy = (calibrate(network, pictures, placement, false_reject_target=0.1) for pictures in (frames, wild))
    # Maps are pooled over 5 pixels, and the floor is a share of the whole frame's variance: that may move, too.
    assert np.abs(noisy.scores / calm.scores - 1).max() < 0.35


def test_progress_counts_pictures() -> None:
    """Batches of 16 are reported as pictures done, up to all."""
    seen: list[tuple[int, int]] = []
    calibrate(
        Blur().eval(),
        parts(N, (HW[1], HW[0])),
        PLACEMENT,
        false_reject_target=0.1,
        on_progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(16, N), (N, N)]


def test_three_pictures_are_the_least() -> None:
    """Three can be left out one by one, and weigh five errors; two cannot, and the sentence says so."""
    frames = parts(3, (HW[1], HW[0]), first=100)
    found = calibrate(Watched().eval(), frames, PLACEMENT, false_reject_target=0.01)
    assert np.isfinite(found.scores).all() and found.threshold.basis == "exponential_tail"
    with pytest.raises(InputError, match="n >= 3"):
        calibrate(Blur().eval(), frames[:2], PLACEMENT, false_reject_target=0.01)


def test_identical_pictures_stay_finite() -> None:
    """One file copied eight times varies nowhere; scores, maps and threshold are numbers all the same."""
    frames = np.repeat(parts(1, (HW[1], HW[0])), 8, 0)
    found = calibrate(Blur().eval(), frames, PLACEMENT, false_reject_target=0.01)
    assert np.isfinite(found.scores).all() and np.isfinite(found.threshold.value)
    assert np.isfinite(found.good.mean).all() and found.good.spread.min() > 0


@pytest.mark.parametrize("value", [0, 128, 255], ids=["black", "grey", "white"])
def test_a_perfect_network_on_constant_pictures_stays_finite(value: int) -> None:
    """No error anywhere is divided by none: an untrained network of ours gives back what it gets."""
    frames = np.full((4, *HW, 3), value, np.uint8)
    network = FilteringAutoencoder(4, HW).eval()
    found = calibrate(network, frames, PLACEMENT, false_reject_target=0.01)
    assert np.isfinite(found.scores).all() and np.isfinite(found.good.mean).all() and found.good.spread.min() > 0
    graph = InspectionGraph(network, found.error_map, found.good, PLACEMENT).eval()
    scores, heatmaps, _ = run_graph(graph, frames)
    assert np.isfinite(scores).all() and np.isfinite(heatmaps).all()


def test_a_diverged_network_is_refused() -> None:
    """A network that answers NaN cannot be calibrated."""
    network = Blur().eval()
    with torch.no_grad():
        network.gain.fill_(float("nan"))
    with pytest.raises(InputError, match="non-finite"):
        calibrate(network, parts(4, (HW[1], HW[0])), PLACEMENT, false_reject_target=0.01)


@pytest.mark.parametrize("names", [*((name,) for name in ERROR_CHANNELS), ("msgms", "absolute")], ids=str)
def test_a_method_may_choose_its_errors(names: tuple[str, ...]) -> None:
    """Only those are formed, each in units of its own spread; damage is not asked."""
    network = Watched().eval()
    network.error_channels = names  # type: ignore[misc]  # a class's in earnest
    frames = parts(6, (HW[1], HW[0]), first=100)
    error_map = calibrate(network, frames, PLACEMENT, false_reject_target=0.1).error_map
    assert error_map.names == names
    channels = inside(relative_channels(network, frames, names))
    np.testing.assert_allclose(error_map.weights.numpy(), 1 / channels.std(0, ddof=1).mean((1, 2)), rtol=1e-3)


def test_what_was_learnt_helps_to_tell_what_is_usual_and_has_no_score() -> None:
    """Mean and spread are those of both; a held-out picture is scored by maps of all but itself, and nothing else follows."""
    frames, learnt = parts(6, (HW[1], HW[0]), first=100), parts(9, (HW[1], HW[0]))
    network = Watched().eval()
    found = calibrate(network, frames, PLACEMENT, false_reject_target=0.1, learnt=learnt, keep_suspects=True)
    alone = calibrate(network, frames, PLACEMENT, false_reject_target=0.1, keep_suspects=True)
    x = _tensor(np.concatenate([frames, learnt]))
    with torch.inference_mode():
        errors = found.error_map(x, reconstruct(network, x))[:, 0].double().numpy()
    mean, spread = plain_maps(errors)
    np.testing.assert_allclose(found.good.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(found.good.spread, spread, rtol=1e-3)
    k = max(1, round(0.003 * WIDTH * HEIGHT / 4))
    expected = []
    for i in range(6):
        mean, spread = plain_maps(np.delete(errors, i, 0))
        expected.append(np.sort(inside((errors[i] - mean) / spread).reshape(-1))[-k:].mean())
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3)
    torch.testing.assert_close(found.error_map.weights, alone.error_map.weights)


def test_a_doubted_part_shapes_nothing() -> None:
    """Weights, mean and spread are those of the others alone; its score is told all the same."""
    frames = parts(12, (HW[1], HW[0]), first=100)
    frames[4, TOP + 2 : TOP + 8, LEFT + 4 : LEFT + 12] = 255
    names = [str(i) for i in range(12)]
    network = Blur().eval()
    found = calibrate(network, frames, PLACEMENT, false_reject_target=0.1, parts=names, doubted=("4",))
    others = calibrate(
        network, np.delete(frames, 4, 0), PLACEMENT, false_reject_target=0.1, parts=[*names[:4], *names[5:]]
    )
    torch.testing.assert_close(found.error_map.weights, others.error_map.weights, rtol=1e-4, atol=0)
    np.testing.assert_allclose(found.good.mean, others.good.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.good.spread, others.good.spread, rtol=1e-4)
    np.testing.assert_allclose(np.delete(found.scores, 4), others.scores, rtol=1e-3)
    assert (
        found.scores[4] > others.scores.max() and found.threshold.skipped == (4,) and found.threshold.exceedances == 1
    )
