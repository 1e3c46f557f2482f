"""Calibration of a network: leave-one-out scores, the weights of the error map, and what goes into the graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tests.train_.parts import Blur, parts

from flawline_inspect.errors import InputError
from flawline_inspect.frame import Placement
from flawline_train.calibrate import Calibration, calibrate
from flawline_train.graph import ERROR_CHANNELS, ErrorMap, InspectionGraph, run_graph
from flawline_train.threshold import threshold_from_scores

F64 = NDArray[np.float64]
HW = (32, 48)
LEFT, TOP, WIDTH, HEIGHT = CONTENT = (6, 2, 36, 28)
PLACEMENT = Placement((360, 280), (0, 0, 360, 280), CONTENT)
N = 18  # more than one batch


class Case(NamedTuple):
    frames: NDArray[np.uint8]
    found: Calibration
    channels: F64
    """(n, 2, H, W), smoothed, unweighted."""


def smoothed_channels(frames: NDArray[np.uint8]) -> F64:
    """The error map's own channels, smoothed by SciPy: (n, 2, H, W)."""
    x = torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255
    error_map = ErrorMap(HW)
    with torch.inference_mode():
        channels = error_map.channels(x, Blur()(x).clamp(0, 1)).double().numpy()
    taps = error_map.taps.double().numpy()
    rows = ndimage.correlate1d(channels, taps, axis=3, mode="mirror")
    return np.asarray(ndimage.correlate1d(rows, taps, axis=2, mode="mirror"), np.float64)


@pytest.fixture(scope="module")
def case() -> Case:
    frames = parts(N, (HW[1], HW[0]))
    frames[4, 10:14, 20:24] = 255  # one picture that is not like the others
    found = calibrate(Blur().eval(), frames, PLACEMENT, false_reject_target=0.1)
    return Case(frames, found, smoothed_channels(frames))


def inside(maps: F64) -> F64:
    return maps[..., TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]


def plain_maps(errors: F64) -> tuple[F64, F64]:
    """Mean and spread (H, W) of error maps (n, H, W): variance pooled over a twelfth of the side as if by 20 pictures."""
    variance = errors.var(0, ddof=1)
    side = max(3, round(max(HW) / 12) | 1)
    pooled = ndimage.uniform_filter(variance, side, mode="reflect")
    shrunk = (len(errors) * variance + 20 * pooled) / (len(errors) + 20)
    return errors.mean(0), np.sqrt(np.maximum(shrunk, 0.3**2 * variance.mean()))


def test_scores_are_leave_one_out(case: Case) -> None:
    """Each picture scored by maps that are made anew from the others alone, in plain NumPy, within 0.1 %."""
    weights = case.found.error_map.weights.double().numpy()
    errors = (case.channels * weights[None, :, None, None]).sum(1)
    k = round(0.003 * WIDTH * HEIGHT)
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


def test_an_outlier_scores_higher_left_out_than_in(case: Case) -> None:
    """Through the graph, whose maps know it, the odd picture looks tamer than its honest score."""
    graph = InspectionGraph(Blur(), case.found.error_map, case.found.good, PLACEMENT).eval()
    known, _, _ = run_graph(graph, case.frames)
    assert known[4] < 0.7 * case.found.scores[4]


def test_weights_bring_both_errors_to_the_same_spread(case: Case) -> None:
    """After weighting, each error's deviation over good parts is 1 on average over the part."""
    weights = case.found.error_map.weights.double().numpy()
    deviations = inside(case.channels * weights[None, :, None, None]).std(0, ddof=1).mean((1, 2))
    np.testing.assert_allclose(deviations, 1, rtol=1e-3)
    assert weights[0] != pytest.approx(weights[1], rel=0.1)  # they were not the same before


def test_threshold_follows_from_the_scores(case: Case) -> None:
    """The threshold of the 18 parts' scores, one of which is far out and skipped unless it is kept."""
    threshold = case.found.threshold
    assert threshold == threshold_from_scores(case.found.part_scores, 0.1)
    assert (threshold.n, threshold.skipped, threshold.exceedances) == (N, (4,), 1)
    kept = calibrate(Blur().eval(), case.frames, PLACEMENT, false_reject_target=0.1, keep_suspects=True)
    assert kept.threshold.skipped == () and kept.threshold.value >= float(case.found.scores.max())


def test_a_part_s_score_is_its_largest_and_made_without_its_other_pictures(case: Case) -> None:
    """The odd picture photographed twice: as one part it stands out as before, as two parts each hides the other."""
    frames = np.concatenate([case.frames, case.frames[4:5]])
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
    again = calibrate(Blur().eval(), case.frames, PLACEMENT, false_reject_target=0.1)
    np.testing.assert_array_equal(again.scores, case.found.scores)
    np.testing.assert_array_equal(again.good.mean, case.found.good.mean)
    np.testing.assert_array_equal(again.good.spread, case.found.good.spread)
    assert torch.equal(again.error_map.weights, case.found.error_map.weights)


def test_the_border_is_no_part_of_it(case: Case) -> None:
    """Noise far outside the content changes no weight and no score."""
    wild = case.frames.copy()
    wild[:, :, 47] = np.random.default_rng(0).integers(0, 256, (N, HW[0], 3))
    placement = Placement((300, 280), (0, 0, 300, 280), (2, 2, 30, 28))  # 15 columns away: blur, window and smoothing
    calm, noisy = (
        calibrate(Blur().eval(), frames, placement, false_reject_target=0.1) for frames in (case.frames, wild)
    )
    torch.testing.assert_close(calm.error_map.weights, noisy.error_map.weights, rtol=1e-5, atol=0)
    # Maps are pooled over 5 pixels, and the floor is a share of the whole frame's variance: only that may move.
    assert np.abs(noisy.scores / calm.scores - 1).max() < 0.35


def test_progress_counts_pictures(case: Case) -> None:
    """Batches of 16 are reported as pictures done, up to all."""
    seen: list[tuple[int, int]] = []
    calibrate(
        Blur().eval(),
        case.frames,
        PLACEMENT,
        false_reject_target=0.1,
        on_progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(16, N), (N, N)]


def test_three_pictures_are_the_least() -> None:
    """Three can be left out one by one; two cannot, and the sentence says so."""
    frames = parts(3, (HW[1], HW[0]))
    found = calibrate(Blur().eval(), frames, PLACEMENT, false_reject_target=0.01)
    assert np.isfinite(found.scores).all() and found.threshold.basis == "exponential_tail"
    with pytest.raises(InputError, match="n >= 3"):
        calibrate(Blur().eval(), frames[:2], PLACEMENT, false_reject_target=0.01)


def test_identical_pictures_stay_finite() -> None:
    """One file copied eight times varies nowhere; scores, maps and threshold are numbers all the same."""
    frames = np.repeat(parts(1, (HW[1], HW[0])), 8, 0)
    found = calibrate(Blur().eval(), frames, PLACEMENT, false_reject_target=0.01)
    assert np.isfinite(found.scores).all() and np.isfinite(found.threshold.value)
    assert np.isfinite(found.good.mean).all() and found.good.spread.min() > 0


def test_a_diverged_network_is_refused() -> None:
    """A network that answers NaN cannot be calibrated."""
    network = Blur().eval()
    with torch.no_grad():
        network.gain.fill_(float("nan"))
    with pytest.raises(InputError, match="non-finite"):
        calibrate(network, parts(4, (HW[1], HW[0])), PLACEMENT, false_reject_target=0.01)


@pytest.mark.parametrize("channel", ERROR_CHANNELS)
def test_a_method_may_choose_its_error(case: Case, channel: str) -> None:
    """The other channels weigh nothing, the chosen one as much as it would in the mixture."""
    network = Blur().eval()
    network.error_channels = (channel,)
    found = calibrate(network, case.frames, PLACEMENT, false_reject_target=0.1).error_map.weights
    mixture = case.found.error_map.weights
    for i, name in enumerate(ERROR_CHANNELS):
        assert float(found[i]) == (float(mixture[i]) if name == channel else 0)
