"""Golden pictures: far from the threshold, stored without loss, with scores that can be reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.train_.parts import level_onnx, write

from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import GoldenEntry
from flawline_inspect.frame import FrameSpec, fit_picture, read_picture
from flawline_train.golden import MAX_TRIES, PER_LABEL, GoldenSet, choose_golden

HW = (32, 32)
LEVEL = 100.0
THRESHOLD = 10.0
MODEL = level_onnx(HW, level=LEVEL)
"""The score is the largest distance of a pixel's mean colour from grey level 100."""

Kind = tuple[str, int, Any]
KINDS = {
    "8-bit colour": (".png", 8, lambda tone: np.stack([tone] * 3, 2).astype(np.uint8)),
    "8-bit grey": (".png", 8, lambda tone: tone.astype(np.uint8)),
    "12-bit grey": (".png", 12, lambda tone: np.rint(tone / 255 * 4095).astype(np.uint16)),
    "16-bit colour": (".tiff", 16, lambda tone: np.rint(np.stack([tone] * 3, 2) / 255 * 65535).astype(np.uint16)),
    "floating point": (".tiff", 8, lambda tone: (tone / 255).astype(np.float32)),
}


def tone(seed: int) -> NDArray[np.float64]:
    """(40, 40), around level 100, at most 3 levels from it."""
    return np.random.default_rng(seed).integers(97, 104, (40, 40)).astype(np.float64)


def good_paths(folder: Path, kind: str, n: int = 9) -> list[Path]:
    suffix, _, convert = KINDS[kind]
    return [write(folder / f"{i}{suffix}", convert(tone(i))) for i in range(n)]


def chosen(paths: list[Path], *, bit_depth: int = 8, threshold: float = THRESHOLD, seed: int = 0) -> GoldenSet:
    return choose_golden(MODEL, FrameSpec(32, 32, bit_depth), threshold, paths, np.random.default_rng(seed))


def decoded(golden: GoldenSet, name: str) -> NDArray[np.generic]:
    """As a bundle decodes it."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    picture = cv2.imdecode(np.frombuffer(golden.members[name], np.uint8), flags)
    assert picture is not None
    return picture


def labelled(golden: GoldenSet, label: str) -> list[dict[str, Any]]:
    return [entry for entry in golden.entries if entry["label"] == label]


@pytest.mark.parametrize("kind", list(KINDS))
def test_eight_of_each_label_good_ones_first(tmp_path: Path, kind: str) -> None:
    """Eight good, then eight damaged; every entry suits the manifest and names two members, and no member is loose."""
    golden = chosen(good_paths(tmp_path, kind), bit_depth=KINDS[kind][1])
    assert [entry["label"] for entry in golden.entries] == ["good"] * PER_LABEL + ["damaged"] * PER_LABEL
    named = [entry[key] for entry in golden.entries for key in ("raw", "fitted")]
    assert sorted(named) == sorted(golden.members) and len(set(named)) == 4 * PER_LABEL
    for entry in golden.entries:
        GoldenEntry.model_validate(entry)


@pytest.mark.parametrize("kind", list(KINDS))
def test_good_pictures_survive_the_round_trip(tmp_path: Path, kind: str) -> None:
    """The first eight paths, in order, come back with the type, shape and every value that the file has."""
    paths = good_paths(tmp_path, kind)
    golden = chosen(paths, bit_depth=KINDS[kind][1])
    for path, entry in zip(paths, labelled(golden, "good"), strict=False):
        original, stored = read_picture(path), decoded(golden, entry["raw"])
        assert stored.dtype == original.dtype
        np.testing.assert_array_equal(stored, original)


@pytest.mark.parametrize("kind", list(KINDS))
def test_fitted_follows_from_raw(tmp_path: Path, kind: str) -> None:
    """Of good and damaged ones alike, the stored raw picture fits to exactly the stored frame."""
    bit_depth = KINDS[kind][1]
    golden = chosen(good_paths(tmp_path, kind), bit_depth=bit_depth)
    for entry in golden.entries:
        fitted, _ = fit_picture(decoded(golden, entry["raw"]), FrameSpec(32, 32, bit_depth))
        np.testing.assert_array_equal(decoded(golden, entry["fitted"]), fitted)


@pytest.mark.parametrize("kind", list(KINDS))
def test_damaged_pictures_are_of_the_same_kind(tmp_path: Path, kind: str) -> None:
    """Damage keeps type, shape and bit depth, changes something, and leaves something."""
    bit_depth = KINDS[kind][1]
    paths = good_paths(tmp_path, kind)
    golden = chosen(paths, bit_depth=bit_depth)
    originals = [read_picture(path) for path in paths]
    for entry in labelled(golden, "damaged"):
        stored = decoded(golden, entry["raw"])
        assert (stored.dtype, stored.shape) == (originals[0].dtype, originals[0].shape)
        assert stored.max() <= {np.dtype(np.uint8): 255, np.dtype(np.uint16): (1 << bit_depth) - 1}.get(stored.dtype, 1)
        difference = min(np.abs(stored.astype(float) - other.astype(float)).max() for other in originals)
        assert difference > 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_reproduce(tmp_path: Path, kind: str) -> None:
    """ONNX Runtime gives the stored frames the stored scores; another engine run, the same numbers."""
    golden = chosen(good_paths(tmp_path, kind), bit_depth=KINDS[kind][1])
    with OnnxRuntimeEngine(MODEL, HW) as engine:
        for entry in golden.entries:
            frame = np.asarray(decoded(golden, entry["fitted"]), np.uint8)
            assert float(engine.infer(frame[None]).scores[0]) == pytest.approx(entry["score"], rel=1e-6)
            # and plainly, without any engine
            assert entry["score"] == pytest.approx(np.abs(frame.astype(float) - LEVEL).mean(2).max(), rel=1e-5)


@pytest.mark.parametrize("threshold", [4.0, 10.0, 20.0, 40.0, 60.0, 70.0, 80.0])
def test_scores_keep_ten_percent_from_the_threshold(tmp_path: Path, threshold: float) -> None:
    """Good at most 0.9 of the threshold, damaged at least 1.1 of it."""
    golden = chosen(good_paths(tmp_path, "8-bit grey"), threshold=threshold)
    assert max(entry["score"] for entry in labelled(golden, "good")) <= 0.9 * threshold
    assert min(entry["score"] for entry in labelled(golden, "damaged")) >= 1.1 * threshold
    assert len(golden.entries) == 2 * PER_LABEL


@pytest.mark.parametrize(("brightest", "is_kept"), [(118, True), (119, False), (121, False), (150, False)])
def test_a_good_picture_too_near_the_threshold_is_passed_over(tmp_path: Path, brightest: int, is_kept: bool) -> None:
    """At 18 of 20 it is kept; at 19, and above the threshold, the next one takes its place."""
    near = np.full((32, 32), 100, np.uint8)
    near[3, 3] = brightest
    paths = [write(tmp_path / "near.png", near)]
    paths += [write(tmp_path / f"{i}.png", np.full((32, 32), 100 + i % 5, np.uint8)) for i in range(8)]
    good = labelled(chosen(paths, threshold=20.0), "good")
    assert len(good) == PER_LABEL
    assert (good[0]["score"] == pytest.approx(brightest - 100)) is is_kept


def test_what_cannot_keep_the_distance_is_fewer(tmp_path: Path) -> None:
    """A threshold that no damage reaches: eight good ones and no damaged one, after a bounded number of tries."""
    paths = good_paths(tmp_path, "8-bit grey", 3) * 3
    golden = chosen(paths, threshold=1000.0)
    assert len(labelled(golden, "good")) == PER_LABEL and labelled(golden, "damaged") == []
    assert MAX_TRIES <= 1000


def test_the_seed_decides_the_damage(tmp_path: Path) -> None:
    """The same seed gives the same members, another seed other damage on the same good ones."""
    paths = good_paths(tmp_path, "8-bit colour")
    first, again, other = chosen(paths, seed=1), chosen(paths, seed=1), chosen(paths, seed=2)
    assert first == again
    assert labelled(first, "good") == labelled(other, "good")
    assert labelled(first, "damaged") != labelled(other, "damaged")
