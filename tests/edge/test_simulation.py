"""The simulated line: what every user of its parts relies on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge import simulation
from flawline_edge.simulation import DEFECT_KINDS, SimulatedLine, SimulatedPart, write_dataset

_NOISE_LEVELS = 2  # a good and a defective picture of one index share their noise, but round differently


@pytest.fixture(scope="module")
def line() -> SimulatedLine:
    return SimulatedLine(seed=5)


def _difference(one: SimulatedPart, other: SimulatedPart) -> NDArray[np.int16]:
    """Largest difference of the channels, (H, W), levels."""
    return np.asarray(np.abs(one.picture.astype(np.int16) - other.picture.astype(np.int16)).max(-1), np.int16)


def _centre_xy(part: SimulatedPart) -> NDArray[np.float64]:
    """Centre of the bright metal, which moves with the part, in pixels."""
    bright = cv2.inRange(part.picture, (110, 110, 110), (255, 255, 255))
    bright[:24], bright[-24:] = 0, 0  # the rails stand still
    return np.asarray(np.argwhere(bright)[:, ::-1].mean(0), np.float64)


def _contrast(line: SimulatedLine, kind: str, count: int = 8) -> float:
    """Mean difference inside the mask, levels."""
    changes = [_difference(line.part(i, kind), line.part(i, None))[line.part(i, kind).mask > 0] for i in range(count)]
    return float(np.concatenate(changes).mean())


def test_public_names_are_the_promised_ones() -> None:
    """The module offers four names, and at least seven kinds of defect."""
    assert simulation.__all__ == ["DEFECT_KINDS", "SimulatedLine", "SimulatedPart", "write_dataset"]
    assert len(DEFECT_KINDS) == len(set(DEFECT_KINDS)) >= 7


@pytest.mark.parametrize(("width", "height"), [(320, 240), (640, 480), (400, 240), (64, 64)])
def test_picture_and_mask_have_the_cameras_size(width: int, height: int) -> None:
    """A picture is (H, W, 3) uint8 and its mask (H, W) uint8 with nothing but 0 and 255."""
    part = SimulatedLine(width=width, height=height).part(3, "missing_seal")
    assert part.picture.shape == (height, width, 3) and part.picture.dtype == np.uint8
    assert part.mask.shape == (height, width) and part.mask.dtype == np.uint8
    assert set(np.unique(part.mask)) == {0, 255}


def test_a_part_does_not_depend_on_what_was_drawn_before(line: SimulatedLine) -> None:
    """Part 17 is the same from a fresh line, from a used one and from iteration."""
    iterated = next(itertools.islice(SimulatedLine(seed=5), 17, None))
    line.part(400)
    for other in (line.part(17), SimulatedLine(seed=5).part(17)):
        assert iterated.index == other.index == 17 and iterated.defect == other.defect
        np.testing.assert_array_equal(iterated.picture, other.picture)
        np.testing.assert_array_equal(iterated.mask, other.mask)


def test_a_caller_may_write_into_a_picture(line: SimulatedLine) -> None:
    """Scribbling on one picture leaves the next ones as they were."""
    before = line.part(2, None)
    expected = before.picture.copy()
    before.picture[:] = 0
    np.testing.assert_array_equal(line.part(2, None).picture, expected)


def test_random_part_is_the_same_as_that_kind_asked_for() -> None:
    """A random defect is the one that asking for its kind by name gives."""
    line = SimulatedLine(seed=1, defect_rate=1.0)
    random = line.part(6)
    np.testing.assert_array_equal(random.picture, line.part(6, random.defect).picture)


def test_other_seed_shows_other_parts_of_the_same_product() -> None:
    """Two seeds differ in every picture, but their averages show one drawing."""
    lines = [SimulatedLine(seed=seed) for seed in (0, 1)]
    assert _difference(lines[0].part(0, None), lines[1].part(0, None)).any()
    averages = [np.mean([line.part(i, None).picture for i in range(40)], 0) for line in lines]
    assert np.corrcoef(averages[0].ravel(), averages[1].ravel())[0, 1] > 0.98


def test_parts_move_a_little(line: SimulatedLine) -> None:
    """Poses vary by pixels, not by tens of them."""
    centres = np.array([_centre_xy(line.part(i, None)) for i in range(30)])
    spread = np.ptp(centres, 0)
    assert (spread > 1.5).all() and (spread < 8).all(), spread


def test_light_drifts_slowly_and_stays_in_bounds(line: SimulatedLine) -> None:
    """Brightness wanders by a few per cent over the index, and hardly from one part to the next."""
    means = np.array([line.part(i, None).picture.mean() for i in range(0, 340, 4)])
    relative = means / means.mean() - 1
    assert 0.03 < np.ptp(relative) < 0.16
    neighbours = np.array([line.part(i, None).picture.mean() for i in range(12)])
    assert np.abs(np.diff(neighbours)).max() / means.mean() < 0.02


def test_good_parts_have_an_empty_mask(line: SimulatedLine) -> None:
    """None asks for a good part: no defect, no mask."""
    part = line.part(9, None)
    assert part.defect is None and not part.is_defective and not part.mask.any()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_defect_changes_the_picture_where_its_mask_says(line: SimulatedLine, kind: str) -> None:
    """Against the same index drawn good, every mask is there, and nothing changes away from it."""
    for index in range(12):
        bad, good = line.part(index, kind), line.part(index, None)
        assert bad.defect == kind and bad.is_defective and bad.mask.any()
        change = _difference(bad, good)
        assert change[bad.mask > 0].max() > 2
        near = cv2.dilate(bad.mask, np.ones((5, 5), np.uint8)) > 0
        assert change[~near].max() <= 3 + _NOISE_LEVELS  # what is drawn there is too faint to be called visible


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_mask_covers_a_small_part_of_the_picture(line: SimulatedLine, kind: str) -> None:
    """No defect claims more than a tenth of the picture."""
    assert max(np.count_nonzero(line.part(i, kind).mask) for i in range(12)) < 0.1 * 320 * 240


def test_gross_defects_stand_out_more_than_faint_ones(line: SimulatedLine) -> None:
    """The first kinds have several times the contrast of the last, which still shows."""
    gross = min(_contrast(line, kind) for kind in DEFECT_KINDS[:3])
    faintest = _contrast(line, DEFECT_KINDS[-1])
    assert gross > 3 * faintest > 3 * 3


def test_defect_rate_is_respected() -> None:
    """About the asked share of random parts is defective, and every kind occurs."""
    line = SimulatedLine(seed=2, defect_rate=0.4, width=64, height=64)
    kinds = [line.part(i).defect for i in range(400)]
    assert abs(sum(kind is not None for kind in kinds) / 400 - 0.4) < 0.1  # four standard deviations
    assert set(kinds) == {None, *DEFECT_KINDS}


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 20)])
def test_extreme_rates_are_exact(rate: float, expected: int) -> None:
    """Rate 0 gives no defect at all, rate 1 nothing else."""
    parts = itertools.islice(SimulatedLine(defect_rate=rate, width=64, height=64), 20)
    assert sum(part.is_defective for part in parts) == expected


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"seed": -1}, "-1"),
        ({"seed": 1.5}, "1.5"),
        ({"defect_rate": 1.1}, "1.1"),
        ({"defect_rate": float("nan")}, "nan"),
        ({"width": 10}, "10"),
        ({"height": 100_000}, "100000"),
        ({"height": True}, "True"),
    ],
)
def test_bad_line_is_refused(arguments: dict[str, Any], found: str) -> None:
    """The message names the argument, what was found and what was expected."""
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is {found}, expected"):
        SimulatedLine(**arguments)


@pytest.mark.parametrize(("index", "defect"), [(-1, None), (1.0, None), (0, "rust"), (0, "")])
def test_bad_part_is_refused(line: SimulatedLine, index: Any, defect: str | None) -> None:
    """A negative or fractional index and an unknown kind are refused."""
    with pytest.raises(ValueError, match="expected"):
        line.part(index, defect)


def test_dataset_has_the_usual_layout(tmp_path: Path) -> None:
    """Every folder has its count, every defective picture its mask, and progress ends at the total."""
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "Prüfteile"
    write_dataset(folder, n_train=3, n_test_good=2, n_test_per_defect=1, progress=lambda *step: seen.append(step))
    total = 5 + len(DEFECT_KINDS)
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert sorted(path.name for path in (folder / "train" / "good").iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
    ]
    assert sorted(path.name for path in (folder / "test").iterdir()) == sorted(["good", *DEFECT_KINDS])
    assert sorted(path.name for path in (folder / "ground_truth").iterdir()) == sorted(DEFECT_KINDS)
    for kind in DEFECT_KINDS:
        assert [path.name for path in (folder / "test" / kind).iterdir()] == ["000.png"]
        mask_file = folder / "ground_truth" / kind / "000_mask.png"
        mask = cv2.imdecode(np.frombuffer(mask_file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        assert mask is not None and mask.shape == (240, 320) and set(np.unique(mask)) == {0, 255}


def test_no_dataset_picture_appears_twice(tmp_path: Path) -> None:
    """Test pictures are of parts that training has not seen."""
    write_dataset(tmp_path, n_train=3, n_test_good=3, n_test_per_defect=1)
    pictures = [path.read_bytes() for path in tmp_path.rglob("[0-9][0-9][0-9].png")]
    assert len(pictures) == len(set(pictures)) == 6 + len(DEFECT_KINDS)


def test_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """What is already there is never mixed with a new dataset; the message names the folder."""
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=tmp_path.name):
        write_dataset(tmp_path, n_train=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_negative_counts_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A count below 0 leaves no folder behind."""
    with pytest.raises(ValueError, match="n_test_good is -1, expected"):
        write_dataset(tmp_path / "new", n_test_good=-1)
    assert not (tmp_path / "new").exists()
