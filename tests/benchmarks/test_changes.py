"""Changed pictures: each change by hand on pictures whose answer is known."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmarks.accuracy.changes import (
    CHANGES,
    blurred,
    brightened,
    changed_copy,
    contaminated,
    jpeg,
    lit_from_a_side,
    shifted,
    some_good,
)
from tests.benchmarks.stand_ins import small_set, write

from flawline_inspect.errors import InputError
from flawline_inspect.frame import find_pictures

SHAPES = [(160, 240), (160, 240, 3)]


def flat(shape: tuple[int, ...], level: int = 100) -> np.ndarray:
    return np.full(shape, level, np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "colour"])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_keep_shape_and_type(name: str, shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    before = picture.copy()
    found = CHANGES[name].picture(picture)
    assert found.shape == shape and found.dtype == np.uint8
    assert (found != picture).any()
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize(
    ("level", "gain", "expected"), [(100, 1.15, 115), (100, 0.85, 85), (250, 1.15, 255), (0, 1.15, 0)]
)
def test_brightness_is_a_gain_that_saturates(level: int, gain: float, expected: int) -> None:
    np.testing.assert_array_equal(brightened(flat((4, 4), level), gain), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "colour"])
def test_light_rises_from_left_to_right(shape: tuple[int, ...]) -> None:
    found = lit_from_a_side(flat(shape), 0.15)
    assert (found[:, 0] == 85).all() and (found[:, -1] == 115).all()
    assert (np.diff(found.astype(int), axis=1) >= 0).all()
    assert found.mean() == pytest.approx(100, abs=0.5)


def test_blur_grows_with_the_picture() -> None:
    """A sigma of 1 px at 256 px is one of 2 px at 512: the variance of a blurred point is its square."""
    picture = np.zeros((129, 512), np.uint8)
    picture[60:69, 250:259] = 255
    found = blurred(picture, 1.0).astype(float)

    def variance(values: np.ndarray) -> float:
        weights, x = values.sum(0), np.arange(512)
        mean = (weights * x).sum() / weights.sum()
        return float((weights * (x - mean) ** 2).sum() / weights.sum())

    assert variance(found) - variance(picture.astype(float)) == pytest.approx(4, rel=0.05)


def test_jpeg_loses_more_at_lower_quality() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    lost = [np.abs(jpeg(picture, quality).astype(int) - picture).mean() for quality in (95, 50, 10)]
    assert 0 < lost[0] < lost[1] < lost[2]


def test_shift_moves_right_and_down_and_repeats_the_border() -> None:
    picture = np.arange(50 * 100, dtype=np.uint32).reshape(50, 100).astype(np.uint8)
    found = shifted(picture, 0.02)
    np.testing.assert_array_equal(found[1:, 2:], picture[:-1, :-2])
    np.testing.assert_array_equal(found[0, 2:], picture[0, :-2])
    np.testing.assert_array_equal(found[:, 0], found[:, 2])


def test_masks_move_with_the_part_and_only_then(tmp_path: Path) -> None:
    """The mask lies over the white corner before and after, for each change."""
    data = small_set(tmp_path / "plates")
    for i, change in enumerate(CHANGES.values()):
        copy = changed_copy(data, change, tmp_path / str(i))
        assert [(path.stem, kind) for path, kind in copy.test()] == [(path.stem, kind) for path, kind in data.test()]
        for path, kind in copy.test():
            mask = copy.mask_of(path, kind)
            assert (mask is None) == (kind == "good")
            if mask is not None:
                bright = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 165
                np.testing.assert_array_equal(bright, cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) > 127)


def test_pictures_of_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    data = small_set(tmp_path / "plates")
    write(data.folder / "test" / "good" / "deep.png", np.zeros((8, 8), np.uint16))
    with pytest.raises(InputError, match=r"deep\.png.*uint16.*8-bit"):
        changed_copy(data, CHANGES["JPEG, quality 50"], tmp_path / "copy")


def test_some_good_are_drawn_by_the_seed(tmp_path: Path) -> None:
    data = small_set(tmp_path / "plates")

    def drawn(seed: int, name: str) -> list[str]:
        return [path.name for path in find_pictures(some_good(data, 20, seed, tmp_path / name))]

    first = drawn(0, "a")
    assert len(first) == 20 and first == drawn(0, "b") and first != drawn(1, "c")


def test_more_good_pictures_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 30 good training pictures, 31"):
        some_good(small_set(tmp_path / "plates"), 31, 0, tmp_path / "many")


def test_contamination_takes_its_pictures_out_of_the_test(tmp_path: Path) -> None:
    """2 of 32 training pictures are then defective, they are no longer tested, and the set itself is as it was."""
    data = small_set(tmp_path / "plates")
    copy = contaminated(data, 0.05, 0, tmp_path / "copy")

    def contents(paths: list[Path]) -> set[str]:
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def bad(data_set: object) -> set[str]:
        return contents([path for path, kind in data_set.test() if kind != "good"])

    learnt = contents(find_pictures(copy.good))
    assert len(learnt) == 32
    assert learnt - contents(find_pictures(data.good)) == bad(data) - bad(copy)
    assert len(bad(copy)) == 6 and len(bad(data)) == 8
    assert len(list((copy.folder / "ground_truth").rglob("*.png"))) == 6


def test_contamination_leaves_something_to_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 1 defective test pictures"):
        contaminated(small_set(tmp_path / "plates", bad=1), 0.05, 0, tmp_path / "copy")
