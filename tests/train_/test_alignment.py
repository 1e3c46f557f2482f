"""Choosing how parts are aligned, and to what, from pictures of good ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.moving_parts import Pose, disc, key, poses, scene, scenes
from tests.train_.parts import parts, write

from flawline_inspect.align import canvas_of
from flawline_inspect.bundle import AlignSection
from flawline_inspect.errors import InputError
from flawline_inspect.frame import fit_picture
from flawline_train.alignment import align_members, fit_alignment
from flawline_train.pictures import load_good_pictures

U8 = NDArray[np.uint8]


def canvases(pictures: Sequence[U8]) -> list[NDArray[np.float32]]:
    return [canvas_of(picture, (240, 240))[0] for picture in pictures]


def noise(n: int) -> list[U8]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (240, 240, 3), np.uint8) for _ in range(n)]


@pytest.mark.parametrize(
    ("pictures", "kind"),
    [
        (scenes(16, turn=0, wander=0), "none"),
        (scenes(16, turn=1, wander=1), "none"),
        (scenes(16, turn=0, wander=15), "shift"),
        (scenes(16), "rotate"),
        (scenes(20, zoom=0.2), "rotate"),
        ([scene(disc("text"), pose, i) for i, pose in enumerate(poses(16))], "rotate"),
        (noise(12), "none"),
    ],
    ids=["fixed", "trembling", "shifted", "turned", "nearer and further", "round", "noise"],
)
def test_auto_does_what_is_needed_and_no_more(pictures: list[U8], kind: str) -> None:
    """The figures show why."""
    fitted = fit_alignment(canvases(pictures), "auto")
    assert (fitted.alignment.kind if fitted.alignment else "none") == kind, fitted.note()
    assert fitted.note().startswith(f"alignment {kind}: ") and "none 0." in fitted.note()
    if kind != "none":
        assert fitted.disagreement[kind] < 0.05 < fitted.disagreement["none"]


def test_turned_parts_get_a_frame_of_their_own() -> None:
    """Their bounding box with a margin, lying level; sizes that do not vary are fixed."""
    alignment = fit_alignment(canvases(scenes(16)), "rotate").alignment
    assert alignment is not None
    width, height = alignment.reference_wh
    assert width * alignment.scale == pytest.approx(150 * 1.12, rel=0.05)
    assert 1.8 < width / height < 3
    assert alignment.motion.scales == (1, 1)


def test_sizes_that_vary_are_learnt_with_a_margin() -> None:
    """A part a little nearer than any good one is still followed."""
    alignment = fit_alignment(canvases(scenes(20, zoom=0.2)), "rotate").alignment
    assert alignment is not None
    low, high = alignment.motion.scales
    assert 1.3 < high / low < 2.2


def test_good_parts_of_two_designs_get_two_references() -> None:
    """Each lies like its own, and both agree."""
    spread = poses(18)
    pictures = [scene(disc("text" if i % 3 else "wedges"), pose, i) for i, pose in enumerate(spread)]
    fitted = fit_alignment(canvases(pictures), "auto")
    assert fitted.alignment is not None and len(fitted.alignment.designs) == 2
    for wanted in (0, 1):
        chosen = [i for i in range(18) if (i % 3 == 0) == bool(wanted)]
        matches = [fitted.alignment.locate(canvas) for canvas in canvases([pictures[i] for i in chosen])]
        assert {match.design for match in matches} == {wanted}
        angles = np.exp(1j * np.radians([spread[i].angle for i in chosen]))
        turns = np.array([match.turn / abs(match.turn) for match in matches]) / angles
        assert np.abs(turns - turns[0]).max() < np.radians(1.5)


@pytest.mark.parametrize(
    ("pictures", "sentence"),
    [(noise(12), "stands out from a plain background"), ([np.full((240, 240, 3), 90, np.uint8)] * 9, "in only 0 of 9")],
    ids=["noise", "flat"],
)
def test_rotate_needs_a_part_before_a_background(pictures: list[U8], sentence: str) -> None:
    """Asked for by name, it says what is missing and what to do instead."""
    with pytest.raises(InputError, match=sentence) as refused:
        fit_alignment(canvases(pictures), "rotate")
    assert "--align none" in str(refused.value)


def test_the_same_pictures_give_the_same_references() -> None:
    """Byte for byte."""
    one, other = (align_members(fit_alignment(canvases(scenes(10)), "rotate")) for _ in range(2))
    assert one == other


def test_what_is_written_suits_the_manifest() -> None:
    """With and without an alignment."""
    for choice in ("auto", "shift", "rotate"):
        section, members = align_members(fit_alignment(canvases(scenes(10)), choice))
        checked = AlignSection.model_validate(section)
        assert checked.placing is not None
        assert sorted(members) == [entry.member for entry in checked.placing.references]
    assert AlignSection.model_validate(align_members(None)[0]).kind == "none"


def write_scenes(folder: Path, pictures: Sequence[U8]) -> Path:
    for i, picture in enumerate(pictures):
        write(folder / f"{i:03d}.png", picture)
    return folder


def test_frames_of_turned_parts_are_all_alike(tmp_path: Path) -> None:
    """The frame's long side goes to the part, and the spread of each pixel is that of the noise and the light."""
    found = load_good_pictures(write_scenes(tmp_path, scenes(12)), size=96, align="auto")
    assert found.spec.alignment is not None and (found.spec.width, found.spec.height) == (96, 48)
    assert found.placement.content == (0, 0, 96, 48) and found.placement.picture_wh == (240, 240)
    assert found.frames.astype(float).std(0).mean() < 12
    assert any(note.startswith("alignment rotate") for note in found.notes())
    np.testing.assert_array_equal(found.frames[3], fit_picture(scenes(12)[3], found.spec)[0])


def test_a_good_picture_without_a_part_is_left_out_and_named(tmp_path: Path) -> None:
    """Among enough that have one."""
    write_scenes(tmp_path, scenes(12))
    write(tmp_path / "empty.png", scene(np.full((9, 9), 255, np.uint8), Pose(), 4))
    found = load_good_pictures(tmp_path, size=96, align="rotate")
    assert len(found.files) == len(found.frames) == 12
    assert [file for file, _ in found.skipped] == ["empty.png"] and "no part found" in found.skipped[0][1]


def test_the_region_of_interest_comes_first(tmp_path: Path) -> None:
    """What lies outside it moves nothing."""
    pictures = []
    for i, picture in enumerate(scenes(10)):
        wide = np.full((260, 400, 3), 30, np.uint8)
        wide[10:250, 100:340] = picture
        wide[50 + 10 * i : 90 + 10 * i, 10:60] = 250
        pictures.append(wide)
    found = load_good_pictures(write_scenes(tmp_path, pictures), size=96, roi=(100, 10, 240, 240), align="auto")
    alone = load_good_pictures(write_scenes(tmp_path / "alone", scenes(10)), size=96, align="auto")
    assert found.spec.roi == (100, 10, 240, 240) and found.spec.alignment is not None
    np.testing.assert_array_equal(found.frames, alone.frames)


def test_nothing_is_aligned_unless_asked_for(tmp_path: Path) -> None:
    """`none` does not even look."""
    write_scenes(tmp_path, parts(8, (64, 40)))
    found = load_good_pictures(tmp_path, size=64)
    assert found.alignment is None and found.spec.alignment is None


def test_few_and_broken_parts_do_not_spoil_the_reference() -> None:
    """One good picture in ten that is not good after all."""
    pictures = scenes(18)
    pictures[4] = scene(key(cut=0.4), Pose(33), 4)
    fitted = fit_alignment(canvases(pictures), "auto")
    assert fitted.alignment is not None and len(fitted.alignment.designs) == 1
    whole = fit_alignment(canvases(scenes(18)), "auto")
    assert whole.alignment is not None
    one, other = fitted.alignment.designs[0].reference, whole.alignment.designs[0].reference
    assert np.abs(np.subtract(one.shape, other.shape)).max() <= 3
