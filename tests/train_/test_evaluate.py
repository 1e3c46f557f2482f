"""Figures of a bundle against scikit-learn and plain implementations, on pictures whose scores are known by hand."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.inspect_.bundles import small_manifest
from tests.train_.parts import level_onnx, write

from flawline_engines import open_engine
from flawline_inspect.bundle import MODEL, Bundle, bundle_bytes
from flawline_inspect.errors import EngineError, InputError
from flawline_train.eval_command import eval_command
from flawline_train.evaluate import Evaluation, Judged, _auroc_interval, _pixel_metrics, evaluate

SIDE = 32
GAIN = 0.1
"""Heatmap and score of a pixel: a tenth of its grey level."""
U8 = NDArray[np.uint8]


def bundle(*, threshold: float = 12.05, **model: Any) -> Bundle:
    manifest = small_manifest(golden=[])
    manifest["calibration"] = {**manifest["calibration"], "threshold": threshold}
    graph = level_onnx((SIDE, SIDE), **{"gain": GAIN, **model})
    return Bundle(bundle_bytes(manifest, {MODEL: graph}), "level.flawline")


def grey(seed: int, brightest: int) -> U8:
    """Noise up to level 60 and, somewhere, one 4 x 5 patch of level `brightest`."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 61, (SIDE, SIDE)).astype(np.uint8)
    y, x = rng.integers(0, SIDE - 5, 2)
    picture[y : y + 4, x : x + 5] = brightest
    return picture


BRIGHTEST = {
    "good": (62, 80, 95, 110, 121, 130),
    "dent": (90, 140, 180),
    "scratch": (100, 119, 125, 200),
    "stain": (150, 70),
}


def write_set(folder: Path, brightest: Mapping[str, Sequence[int]] = BRIGHTEST) -> Path:
    for k, (kind, levels) in enumerate(brightest.items()):
        for i, level in enumerate(levels):
            write(folder / "test" / kind / f"{i:03d}.png", grey(100 * k + i, level))
    return folder


def write_masks(folder: Path, kind: str, name: str) -> None:
    """A mask for each picture of `kind`: where it is bright, but a row lower, so that no metric is perfect."""
    for path in sorted((folder / "test" / kind).iterdir()):
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        mask = np.roll((picture > 60).astype(np.uint8) * 255, 1, 0)
        write(folder / "ground_truth" / kind / name.format(stem=path.stem), mask)


def measured(folder: Path, **model: Any) -> Evaluation:
    return evaluate(bundle(**model), folder, engine="onnxruntime")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds with masks under the two usual names, one kind without."""
    folder = write_set(tmp_path_factory.mktemp("set"))
    write_masks(folder, "dent", "{stem}_mask.png")
    write_masks(folder, "scratch", "{stem}.png")
    return folder


@pytest.fixture(scope="module")
def found(dataset: Path) -> Evaluation:
    return measured(dataset)


def scores_and_labels(kinds: Sequence[str] = tuple(BRIGHTEST)) -> tuple[list[float], list[int]]:
    return (
        [level * GAIN for kind in kinds for level in BRIGHTEST[kind]],
        [int(kind != "good") for kind in kinds for _ in BRIGHTEST[kind]],
    )


def pixels(folder: Path) -> tuple[NDArray[np.float64], U8]:
    """Heatmaps and masks (n, H, W) of good pictures and of those with a mask, read and computed plainly."""
    maps, masks = [], []
    for kind, name in (("good", None), ("dent", "{}_mask.png"), ("scratch", "{}.png")):
        for path in sorted((folder / "test" / kind).iterdir()):
            picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            mask: Any = np.zeros((SIDE, SIDE), np.uint8)
            if name is not None:
                mask = cv2.imread(str(folder / "ground_truth" / kind / name.format(path.stem)), cv2.IMREAD_GRAYSCALE)
            assert picture is not None and mask is not None
            maps.append(picture * GAIN)
            masks.append((mask > 0).astype(np.uint8))
    return np.stack(maps), np.stack(masks)


def plain_aupro(maps: NDArray[np.floating], masks: U8, limit: float = 0.3) -> float:
    """Bergmann et al. 2019: mean overlap of the 8-connected regions against the false-positive rate, up to `limit`."""
    regions = []
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [maps[i][labels == k] for k in range(1, count + 1)]
    background = maps[masks == 0]
    rates, overlaps = [0.0], [0.0]
    for level in np.unique(maps)[::-1]:
        rates.append(float((background >= level).mean()))
        overlaps.append(float(np.mean([(region >= level).mean() for region in regions])))
    at_limit = float(np.interp(limit, rates, overlaps))
    below = [(rate, overlap) for rate, overlap in zip(rates, overlaps, strict=True) if rate < limit]
    curve = np.array([*below, (limit, at_limit)])
    return float(np.trapezoid(curve[:, 1], curve[:, 0]) / limit)


# Picture metrics


def test_image_metrics_against_scikit_learn(found: Evaluation) -> None:
    """AUROC and average precision over all pictures, within float32's rounding."""
    scores, labels = scores_and_labels()
    assert found.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert 0.5 < found.image_auroc < 1  # the set is neither trivial nor hopeless


def test_rates_are_counted_at_the_bundles_threshold(found: Evaluation) -> None:
    """Above 12.05: two of six good parts are rejected; four of nine defective ones escape."""
    assert found.threshold == 12.05
    assert found.false_reject_rate == pytest.approx(2 / 6)
    assert found.escape_rate == pytest.approx(4 / 9)
    assert (found.n_good, found.n_bad) == (6, 9)


def test_each_kind_of_defect_is_measured_against_the_good(found: Evaluation) -> None:
    """Number, AUROC against all good parts, and escape rate, kind by kind."""
    assert list(found.by_defect) == ["dent", "scratch", "stain"]
    for kind, escaped in (("dent", 1), ("scratch", 2), ("stain", 1)):
        figures, (scores, labels) = found.by_defect[kind], scores_and_labels(("good", kind))
        assert figures.n == len(BRIGHTEST[kind])
        assert figures.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        assert figures.escape_rate == pytest.approx(escaped / figures.n)


def test_intervals_of_the_rates_are_exact(found: Evaluation) -> None:
    """Clopper and Pearson's, as SciPy has them, of all and of each kind."""
    for (k, n), low_high in {
        (2, 6): found.false_reject_interval,
        (4, 9): found.escape_interval,
        (1, 3): found.by_defect["dent"].escape_interval,
        (2, 4): found.by_defect["scratch"].escape_interval,
    }.items():
        expected = stats.binomtest(k, n).proportion_ci(0.95, "exact")
        assert low_high == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("promised", "kept"), [(0.044, True), (0.043, False), (0.5, True)])
def test_the_promise_is_kept_unless_the_interval_lies_above_it(dataset: Path, promised: float, kept: bool) -> None:
    """Two of six good parts rejected: at least 4.33 % with a confidence of 97.5 %; a promise below that was broken."""
    manifest = small_manifest(golden=[])
    manifest["calibration"] = {
        **manifest["calibration"], "threshold": 12.05, "promised_false_reject_rate": promised,
    }  # fmt: skip
    graph = level_onnx((SIDE, SIDE), gain=GAIN)
    result = evaluate(Bundle(bundle_bytes(manifest, {MODEL: graph}), "x.flawline"), dataset, engine="onnxruntime")
    assert (result.promise_kept, result.promised_false_reject_rate) == (kept, promised)


def test_the_auroc_s_interval_against_a_plain_bootstrap() -> None:
    """Good and defective parts drawn anew by themselves, scikit-learn's AUROC of each draw, and its percentiles."""
    rng = np.random.default_rng(0)
    scores = np.round(np.concatenate([rng.gamma(4, 1, 40), rng.gamma(6, 1.3, 60)]), 1)
    labels = np.arange(100) >= 40
    drawn = []
    for _ in range(1500):
        chosen = np.concatenate([rng.integers(0, 40, 40), rng.integers(40, 100, 60)])
        drawn.append(roc_auc_score(labels[chosen], scores[chosen]))
    low, high = _auroc_interval(scores, labels)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.01)  # two bootstraps' noise
    assert low < roc_auc_score(labels, scores) < high
    assert _auroc_interval(scores, labels) == (low, high)


def test_the_auroc_s_interval_closes_where_nothing_overlaps() -> None:
    """Perfect separation stays perfect in every resample, and equal scores stay a coin's toss."""
    labels = np.array([False] * 5 + [True] * 5)
    assert _auroc_interval(np.arange(10.0), labels) == (1.0, 1.0)
    assert _auroc_interval(np.ones(10), labels) == (0.5, 0.5)


def test_a_score_equal_to_the_threshold_passes(tmp_path: Path) -> None:
    """Level 120 at a gain of 1 and a threshold of 120: the good part is no false reject, the defective one escapes."""
    folder = write_set(tmp_path, {"good": (120,), "dent": (120, 121)})
    result = measured(folder, gain=1.0, threshold=120.0)
    assert result.false_reject_rate == 0 and result.escape_rate == 0.5


def test_large_scores_keep_their_ranks(tmp_path: Path) -> None:
    """Scores of 62 to 200 rank as well as those of 6.2 to 20: defects far from good parts are the usual case."""
    result = measured(write_set(tmp_path), gain=1.0, threshold=120.5)
    scores, labels = scores_and_labels()
    assert result.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert result.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_what_cannot_be_scored_is_rejected_and_ranks_on_top(tmp_path: Path) -> None:
    """A score that is no number catches the defective part and falsely rejects the good one, like a very high score."""
    folder = write_set(tmp_path, {"good": (70, 80, 255), "dent": (90, 255)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = measured(folder, white_is_nan=True)
    assert result.false_reject_rate == pytest.approx(1 / 3) and result.escape_rate == pytest.approx(1 / 2)
    assert result.image_auroc == pytest.approx(roc_auc_score([0, 0, 0, 1, 1], [7, 8, 99, 9, 99]), abs=1e-6)


# Pixel metrics


def test_pixel_auroc_against_scikit_learn(dataset: Path, found: Evaluation) -> None:
    """Over all pixels of good pictures and of those with a mask; a kind without masks is left out."""
    maps, masks = pixels(dataset)
    assert found.pixel_auroc == pytest.approx(roc_auc_score(masks.reshape(-1), maps.reshape(-1)), abs=1e-5)


def test_aupro_against_a_plain_implementation(dataset: Path, found: Evaluation) -> None:
    """Regions labelled by SciPy, integrated up to a false-positive rate of 0.3, within 1e-2."""
    assert found.aupro == pytest.approx(plain_aupro(*pixels(dataset)), abs=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_pixel_metrics_of_random_regions(seed: int) -> None:
    """Ragged regions that touch at corners, heatmaps that see half of them, values far from 0-1 and below 0."""
    rng = np.random.default_rng(seed)
    masks = (ndimage.gaussian_filter(rng.standard_normal((5, 40, 48)), (0, 1.5, 1.5)) > 0.25).astype(np.uint8)
    masks[0] = 0
    maps = np.rint(rng.normal(0, 20, masks.shape) + 25 * masks * rng.random((5, 1, 1)) - 10)
    auroc, aupro = _pixel_metrics(maps.astype(np.float16), masks)
    assert auroc == pytest.approx(roc_auc_score(masks.reshape(-1), maps.reshape(-1)), abs=1e-4)
    assert aupro == pytest.approx(plain_aupro(maps, masks), abs=1e-2)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        pytest.param("mask", (1.0, 1.0), id="perfect"),
        pytest.param("inverted", (0.0, 0.0), id="exactly wrong"),
    ],
)
def test_ends_of_the_pixel_metrics(maps: str, expected: tuple[float, float]) -> None:
    """A heatmap that is the mask has 1 and 1; its negative has 0 and 0."""
    masks = np.zeros((2, 32, 32), np.uint8)
    masks[1, 4:9, 4:9] = 1
    heatmaps = masks.astype(np.float16) if maps == "mask" else 1 - masks.astype(np.float16)
    assert _pixel_metrics(heatmaps, masks) == pytest.approx(expected, abs=1e-6)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    """AUPRO, unlike pixel AUROC, punishes a missed scratch beside a found hole of a hundred times its area."""
    masks = np.zeros((1, 64, 64), np.uint8)
    masks[0, 2:32, 2:32] = 1
    masks[0, 50:53, 50:53] = 1
    maps = masks.astype(np.float16)
    maps[0, 50:53, 50:53] = 0
    auroc, aupro = _pixel_metrics(maps, masks)
    assert auroc > 0.99 and aupro == pytest.approx(plain_aupro(maps, masks), abs=1e-2) and aupro < 0.7


def test_very_large_heatmaps_are_measured(tmp_path: Path) -> None:
    """Identical training pictures leave hardly any spread: values of 100 000 are ranked like others."""
    folder = write_set(tmp_path, {"good": (70, 80), "dent": (200, 220)})
    write_masks(folder, "dent", "{stem}_mask.png")
    large, usual = measured(folder, gain=1000.0), measured(folder, gain=0.1)
    assert large.pixel_auroc == pytest.approx(usual.pixel_auroc, abs=1e-3)
    assert large.aupro == pytest.approx(usual.aupro, abs=1e-2)


# Masks


@pytest.mark.parametrize("name", ["{stem}_mask.png", "{stem}.png", "{stem}.bmp"])
def test_masks_are_found_under_the_usual_names(tmp_path: Path, name: str) -> None:
    """STEM_mask.png, STEM.png, or the picture's own name."""
    write_set(tmp_path, {"good": (70, 80)})
    for i in range(2):
        write(tmp_path / "test" / "dent" / f"{i}.bmp", grey(i, 200))
    assert measured(tmp_path).pixel_auroc is None
    write_masks(tmp_path, "dent", name)
    result = measured(tmp_path)
    assert result.pixel_auroc is not None and result.pixel_auroc > 0.6 and result.skipped == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda mask: mask // 255, id="0 and 1"),
        pytest.param(lambda mask: np.dstack([mask] * 3), id="three channels"),
        pytest.param(lambda mask: np.where(mask > 0, 255, 9).astype(np.uint8), id="noise near 0"),
    ],
)
def test_masks_of_other_kinds_mean_the_same(tmp_path: Path, change: Any) -> None:
    """0 and 1, colours, JPEG-like noise: the metrics are those of the plain mask."""
    write_set(tmp_path, {"good": (70, 80), "dent": (200, 100)})
    write_masks(tmp_path, "dent", "{stem}_mask.png")
    plain = measured(tmp_path)
    for path in (tmp_path / "ground_truth" / "dent").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        write(path, change(mask))
    assert measured(tmp_path) == plain


def test_without_masks_pixel_metrics_are_null(tmp_path: Path) -> None:
    """No ground_truth folder: None, also in the dictionary that becomes JSON."""
    result = measured(write_set(tmp_path))
    assert result.pixel_auroc is None and result.aupro is None
    assert result.to_dict()["pixel_auroc"] is None and result.to_dict()["by_defect"]["dent"]["n"] == 3


def test_empty_masks_are_no_masks(tmp_path: Path) -> None:
    """Masks without a single marked pixel give nothing to measure; nothing breaks."""
    write_set(tmp_path, {"good": (70,), "dent": (200,)})
    write(tmp_path / "ground_truth" / "dent" / "000_mask.png", np.zeros((SIDE, SIDE), np.uint8))
    assert measured(tmp_path).aupro is None


# Pictures that cannot be used, folders that are none


def test_unreadable_pictures_and_masks_are_skipped_and_named(tmp_path: Path) -> None:
    """An empty picture, one cut off, a mask of another size: not measured, named, and the figures are of the rest."""
    write_set(tmp_path, {"good": (70, 80, 90), "dent": (200, 210, 220, 100)})
    write_masks(tmp_path, "dent", "{stem}_mask.png")
    (tmp_path / "test" / "good" / "001.png").write_bytes(b"")
    cut = tmp_path / "test" / "dent" / "000.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    write(tmp_path / "ground_truth" / "dent" / "001_mask.png", np.zeros((16, 16), np.uint8))
    seen: list[tuple[int, int]] = []
    result = evaluate(bundle(), tmp_path, engine="onnxruntime", on_progress=lambda done, of: seen.append((done, of)))
    assert (result.n_good, result.n_bad) == (2, 2) and result.escape_rate == 0.5
    assert len(result.skipped) == 3
    reasons = " | ".join(result.skipped)
    assert "good/001.png" in reasons and "dent/000.png" in reasons and "mask is 16x16" in reasons
    assert seen == [(i, 7) for i in range(1, 8)]


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    """Whoever reads `skipped` must find the file."""
    write_set(tmp_path, {"good": (70, 80), "dent": (200, 210)})
    write(tmp_path / "ground_truth" / "dent" / "001_mask.png", np.zeros((16, 16), np.uint8))
    (reason,) = measured(tmp_path).skipped
    assert "001" in reason


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        pytest.param([], "has no folder test/", id="no test folder"),
        pytest.param(["test"], "has the folders none; expected good", id="empty"),
        pytest.param(["test/good"], "has the folders good; expected good and at least one", id="no defects"),
        pytest.param(["test/dent", "test/hole"], "has the folders dent, hole; expected good", id="no good"),
        pytest.param(["test/good", "test/.cache"], "has the folders good; expected", id="hidden is no kind"),
        pytest.param(["test/good", "test/dent"], "no readable", id="no pictures"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, folders: list[str], sentence: str) -> None:
    """What was found and what was expected."""
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(InputError, match=sentence):
        measured(tmp_path)


@pytest.mark.parametrize(("missing", "kept"), [("good", "dent"), ("defective", "good")])
def test_both_labels_are_needed(tmp_path: Path, missing: str, kept: str) -> None:
    """With one side unreadable there is nothing to tell apart."""
    for kind in ("good", "dent"):
        (tmp_path / "test" / kind).mkdir(parents=True)
    write(tmp_path / "test" / kept / "0.png", grey(0, 90))
    with pytest.raises(InputError, match=f"no readable {missing} test pictures"):
        measured(tmp_path)


def test_a_data_set_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A missing path and a file are told apart."""
    with pytest.raises(InputError, match="does not exist"):
        measured(tmp_path / "gone")
    with pytest.raises(InputError, match=r"is a file|is no folder"):
        measured(write(tmp_path / "a.png", grey(0, 90)))


# Pictures that cannot be judged


def test_what_cannot_be_judged_is_rejected_and_counted(tmp_path: Path) -> None:
    """Good or defective, it is never OK: a dark good picture is a false reject, a dark defect is caught; both rank on top."""
    folder = write_set(tmp_path, {"good": (62, 80, 95), "dent": (70, 180)})
    write(folder / "test" / "good" / "dark.png", np.zeros((SIDE, SIDE), np.uint8))
    write(folder / "test" / "dent" / "dark.png", np.zeros((SIDE, SIDE), np.uint8))
    write_masks(folder, "dent", "{stem}_mask.png")
    manifest = small_manifest(golden=[], health={"bounds": {"brightness": {"good": [28, 33], "allowed": [15, 60]}}})
    manifest["calibration"] = {**manifest["calibration"], "threshold": 12.05}
    bounded = Bundle(bundle_bytes(manifest, {MODEL: level_onnx((SIDE, SIDE), gain=GAIN)}), "level.flawline")
    judged: list[Judged] = []
    found = evaluate(bounded, folder, engine="onnxruntime", on_judged=judged.append)
    assert (found.n_good, found.n_bad) == (4, 3)
    assert (found.n_good_unhealthy, found.n_bad_unhealthy) == (1, 1)
    assert (found.false_reject_rate, found.escape_rate) == (1 / 4, pytest.approx(1 / 3))
    assert "dark.png" not in {each.path.name for each in judged} and not found.skipped
    ranks = {"good": [6.2, 8.0, 9.5, 99.0], "dent": [7.0, 18.0, 99.0]}
    labels, scores = zip(*((kind == "dent", score) for kind, many in ranks.items() for score in many), strict=True)
    assert found.image_auroc == pytest.approx(roc_auc_score(labels, scores))


def test_plans_lie_in_the_state_directory(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flawline eval --state-dir` tells whoever opens the engine where `flawline build` kept the plan."""
    asked = []

    def opened(*args: Any, **options: Any) -> Any:
        asked.append(options["state_dir"])
        return open_engine(*args, **options)

    monkeypatch.setattr(importlib.import_module("flawline_train.evaluate"), "open_engine", opened)
    path = tmp_path / "level.flawline"
    path.write_bytes(bundle_bytes(small_manifest(golden=[]), {MODEL: level_onnx((SIDE, SIDE), gain=GAIN)}))
    eval_command(path, dataset, engine="onnxruntime", json=True, state_dir=tmp_path / "state")
    assert asked == [tmp_path / "state"]


def test_another_precision_is_measured_with_its_own_graph(dataset: Path, tmp_path: Path) -> None:
    """At the same threshold; one that the bundle lacks is named with what adds it."""
    members = {MODEL: level_onnx((SIDE, SIDE), gain=GAIN), "model.int8.onnx": level_onnx((SIDE, SIDE), gain=2 * GAIN)}
    manifest = small_manifest(golden=[])
    manifest["calibration"] = {**manifest["calibration"], "threshold": 12.05}
    made = Bundle(bundle_bytes(manifest, members), "level.flawline")
    fp32, int8 = (evaluate(made, dataset, engine="onnxruntime", precision=name) for name in ("fp32", "int8"))  # type: ignore[arg-type]
    assert fp32.threshold == int8.threshold and fp32.image_auroc == pytest.approx(int8.image_auroc)
    assert int8.escape_rate < fp32.escape_rate and int8.false_reject_rate > fp32.false_reject_rate
    with pytest.raises(EngineError, match="flawline quantize"):
        evaluate(made, dataset, precision="fp16")
