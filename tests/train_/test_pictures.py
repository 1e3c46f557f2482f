"""A folder of good pictures: what is found, what is left out and said, which frame follows, how it is split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.train_.parts import part, write, write_parts

from flawline_inspect.errors import InputError
from flawline_inspect.frame import find_pictures
from flawline_train.parts import PartGroups
from flawline_train.pictures import GoodPictures, PictureFile, load_good_pictures


def load(folder: Path, size: int = 32) -> GoodPictures:
    return load_good_pictures(folder, size=size)


# Finding


@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        pytest.param("a.png", True, id="PNG"),
        pytest.param("a.JPG", True, id="capital suffix"),
        pytest.param("a.tiff", True, id="TIFF"),
        pytest.param("monday/late/a.bmp", True, id="subfolder"),
        pytest.param(".a.png", False, id="hidden file"),
        pytest.param(".thumbnails/a.png", False, id="hidden folder"),
        pytest.param("monday/.cache/a.png", False, id="hidden folder further down"),
        pytest.param("readme.txt", False, id="text"),
        pytest.param("a.png.txt", False, id="picture's name inside"),
        pytest.param("png", False, id="no suffix"),
    ],
)
def test_pictures_are_found_by_suffix(tmp_path: Path, name: str, is_found: bool) -> None:
    """Every visible file with a picture's suffix is found at any depth; content plays no part yet."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"anything")
    assert find_pictures(tmp_path) == ([path] if is_found else [])


def test_a_folder_named_like_a_picture_is_no_picture(tmp_path: Path) -> None:
    """`a.png/` is walked into, not read."""
    inner = write(tmp_path / "a.png" / "b.png", part(0))
    assert find_pictures(tmp_path) == [inner]


def test_a_hidden_parent_hides_nothing(tmp_path: Path) -> None:
    """Only what lies below the given folder counts as hidden: the folder itself may live in one."""
    path = write(tmp_path / ".data" / "good" / "a.png", part(0))
    assert find_pictures(tmp_path / ".data" / "good") == [path]


def test_pictures_come_sorted_by_path(tmp_path: Path) -> None:
    """The order is that of the names, whatever the file system's."""
    for name in ("c.png", "a.png", "b/z.png", "b/a.png"):
        write(tmp_path / name, part(0))
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures(tmp_path)]
    assert found == ["a.png", "b/a.png", "b/z.png", "c.png"]


# Refusals


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(InputError, match=r"gone: does not exist; give a folder"):
        load(tmp_path / "gone")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    """A picture given instead of a folder is told apart from a missing folder."""
    with pytest.raises(InputError, match=r"a\.png: is (no folder|a file)"):
        load(write(tmp_path / "a.png", part(0)))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Nothing at all inside is said in these words."""
    with pytest.raises(InputError, match="it is empty; give a folder of pictures"):
        load(tmp_path)


def test_a_folder_without_pictures_says_how_many_files_it_has(tmp_path: Path) -> None:
    """Two text files are counted, those of subfolders too."""
    for name in ("a.txt", "b/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    with pytest.raises(InputError, match=r"none of its 2 files is a picture"):
        load(tmp_path)


def test_seven_pictures_are_too_few_and_eight_are_enough(tmp_path: Path) -> None:
    """The smallest usable set has 8 pictures; the refusal says how many there are and how many are needed."""
    write_parts(tmp_path, 7)
    with pytest.raises(InputError, match="7 usable pictures; at least 8"):
        load(tmp_path)
    write(tmp_path / "007.png", part(7))
    assert len(load(tmp_path).files) == 8


def test_too_few_after_skipping_names_the_first_that_was_skipped(tmp_path: Path) -> None:
    """One picture and one broken file: singular, and the broken one's name and reason."""
    write_parts(tmp_path, 1)
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 usable picture \(1 could not be used, the first: .*broken\.png: the file"):
        load(tmp_path)


def test_a_region_of_interest_that_leaves_every_picture_is_refused(tmp_path: Path) -> None:
    """No picture remains, and the region that was asked for is in the sentence."""
    write_parts(tmp_path, 8)
    with pytest.raises(InputError, match=r"0 usable pictures.*\[30, 0, 20, 20\].*40x40"):
        load_good_pictures(tmp_path, size=32, roi=(30, 0, 20, 20))


# What is left out is said


BROKEN = {
    "cut.png": lambda whole: whole[:-40],
    "empty.png": lambda whole: b"",
    "words.png": lambda whole: b"this is no picture at all",
    "deep/half.jpg": lambda whole: bytes(cv2.imencode(".jpg", part(0))[1])[:300],
}


def test_unusable_pictures_are_skipped_and_named(tmp_path: Path) -> None:
    """Cut off, empty and wrong files do not stop the training; each is in `skipped` with a reason and in the notes."""
    write_parts(tmp_path, 9)
    whole = (tmp_path / "000.png").read_bytes()
    for name, damage in BROKEN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(damage(whole))
    found = load(tmp_path)
    assert [file.file for file in found.files] == [f"{i:03d}.png" for i in range(9)]
    assert {name for name, _ in found.skipped} == set(BROKEN)
    for name, reason in found.skipped:
        assert name in reason and any(reason in note for note in found.notes() if note.startswith("skipped "))
    reasons = dict(found.skipped)
    assert "truncated" in reasons["cut.png"] and "truncated" in reasons["deep/half.jpg"]
    assert "empty" in reasons["empty.png"] and "not a picture" in reasons["words.png"]


def test_a_floating_point_picture_beyond_one_is_skipped_by_name(tmp_path: Path) -> None:
    """A reason that does not name the file by itself gets the name put in front."""
    write_parts(tmp_path, 8)
    write(tmp_path / "hdr.tiff", np.full((40, 40), 3.5, np.float32))
    found = load(tmp_path)
    assert len(found.files) == 8
    ((name, reason),) = found.skipped
    assert name == "hdr.tiff" and reason.startswith("hdr.tiff: ") and "0–1" in reason


def test_text_and_hidden_files_beside_pictures_are_no_news(tmp_path: Path) -> None:
    """What is no picture by name is neither used nor reported as skipped."""
    write_parts(tmp_path, 8)
    (tmp_path / "notes.txt").write_text("shift B")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "._000.png").write_bytes(b"\0")
    found = load(tmp_path)
    assert len(found.files) == 8 and found.skipped == ()


# What a picture becomes


def test_files_carry_relative_name_size_and_hash(tmp_path: Path) -> None:
    """The manifest's data: the name below the folder with slashes, width and height, the file's SHA-256."""
    write_parts(tmp_path / "early", 8, (48, 40))
    for file in load(tmp_path).files:
        assert file.file == f"early/{file.path.name}" and file.path == tmp_path / file.file
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
        assert file.wh == (48, 40)


def test_a_picture_of_the_frames_size_is_taken_as_it_is(tmp_path: Path) -> None:
    """32 x 32 pictures in a 32 x 32 frame keep every value, in the order of `files`."""
    write_parts(tmp_path, 8, (32, 32))
    found = load(tmp_path)
    assert found.frames.dtype == np.uint8
    np.testing.assert_array_equal(found.frames, np.stack([part(seed, (32, 32)) for seed in range(8)]))


def test_alpha_and_grey_become_three_colours(tmp_path: Path) -> None:
    """An opaque or transparent alpha channel changes nothing; grey is repeated."""
    write_parts(tmp_path, 6, (32, 32))
    colour = part(6, (32, 32))
    write(tmp_path / "006.png", np.dstack([colour, np.full((32, 32), 7, np.uint8)]))
    grey = part(7, (32, 32))[..., 1]
    write(tmp_path / "007.png", grey)
    frames = load(tmp_path).frames
    np.testing.assert_array_equal(frames[6], colour)
    np.testing.assert_array_equal(frames[7], np.repeat(grey[..., None], 3, 2))


def test_the_region_of_interest_is_cut_out(tmp_path: Path) -> None:
    """With a region, frame and placement are the region's, and the rest of the picture is never seen."""
    write_parts(tmp_path, 8, (64, 40))
    found = load_good_pictures(tmp_path, size=32, roi=(10, 4, 32, 32))
    assert (found.spec.width, found.spec.height, found.spec.roi) == (32, 32, (10, 4, 32, 32))
    assert found.placement.picture_wh == (64, 40) and found.placement.roi == (10, 4, 32, 32)
    np.testing.assert_array_equal(found.frames[3], part(3, (64, 40))[4:36, 10:42])


def test_the_usual_size_decides_the_frame(tmp_path: Path) -> None:
    """Five wide pictures outvote three square ones that come first; the note tells sizes and what was done."""
    write_parts(tmp_path / "a", 3, (40, 40))
    write_parts(tmp_path / "b", 5, (64, 32))
    found = load(tmp_path, size=64)
    assert (found.spec.width, found.spec.height) == (64, 32)
    assert found.frames.shape == (8, 32, 64, 3)
    assert found.placement.picture_wh == (64, 32) and found.placement.content == (0, 0, 64, 32)
    assert found.sizes == {(64, 32): 5, (40, 40): 3}
    (note,) = [note for note in found.notes() if "sizes" in note]
    assert "2 sizes: 5 of 64x32, 3 of 40x40;" in note and "64x32 frame" in note and "aspect ratio kept" in note
    # 40x40 shrinks to 32x32 in the middle; to both sides its edge columns are repeated.
    square = found.frames[0]
    np.testing.assert_array_equal(square[:, :16], np.repeat(square[:, 16:17], 16, 1))
    np.testing.assert_array_equal(square[:, 48:], np.repeat(square[:, 47:48], 16, 1))


def test_many_sizes_are_counted_not_listed(tmp_path: Path) -> None:
    """Six sizes: the usual one, three others, and the number of the rest."""
    write_parts(tmp_path, 5)
    for side in (41, 42, 43, 44, 45):
        write(tmp_path / f"{side}.png", part(side, (side, side)))
    (note,) = [note for note in load(tmp_path).notes() if "sizes" in note]
    assert "6 sizes: 5 of 40x40, 1 of" in note and note.count("1 of") == 3 and "and 2 more sizes" in note


def test_a_plain_set_of_twenty_has_nothing_to_say(tmp_path: Path) -> None:
    """20 pictures of one size and 8 bits: no notes."""
    assert load(write_parts(tmp_path, 20)).notes() == []


def test_fewer_than_twenty_is_said(tmp_path: Path) -> None:
    """19 pictures are used with a remark."""
    assert load(write_parts(tmp_path, 19)).notes() == [
        "only 19 good pictures; 20 to 100 make the threshold trustworthy"
    ]


def test_parts_of_many_shapes_fill_the_frame(tmp_path: Path) -> None:
    """Where letterboxing would give each its own border; the note says so, and all of the frame is the part."""
    for i in range(8):
        write(tmp_path / f"{i}.png", part(i, (64, 40 + 4 * i)))
    found = load(tmp_path, size=64)
    assert found.spec.stretch and found.placement.content == (0, 0, found.spec.width, found.spec.height)
    (note,) = [note for note in found.notes() if "sizes" in note]
    assert note.endswith("frame, stretched to fill it")
    # The plate's grey in the corners and the block in the middle, in every frame alike.
    assert np.ptp(found.frames[:, 2:8, 2:8].mean((1, 2, 3))) < 2
    np.testing.assert_allclose(found.frames.mean((0, 3))[found.spec.height // 2, found.spec.width // 2], 150, atol=2)


@pytest.mark.parametrize(
    "wh_of",
    [
        pytest.param(lambda i: (64 + 8 * i, 40 + 5 * i), id="one shape, many sizes"),
        pytest.param(lambda i: (64, 40 if i < 5 else 44), id="a few odd ones"),
        pytest.param(lambda i: (100, 100 + i % 3), id="a pixel more or less"),
    ],
)
def test_parts_of_one_shape_keep_their_ratio(tmp_path: Path, wh_of: Callable[[int], tuple[int, int]]) -> None:
    """Many sizes, a few odd pictures or cropping to the pixel are no reason to stretch."""
    for i in range(8):
        write(tmp_path / f"{i}.png", part(i, wh_of(i)))
    assert not load_good_pictures(tmp_path, size=32, group=r"\d").spec.stretch


def test_a_region_of_interest_has_one_shape(tmp_path: Path) -> None:
    """Cut out of pictures of many shapes it is always the same, so nothing needs stretching."""
    for i in range(8):
        write(tmp_path / f"{i}.png", part(i, (64, 40 + 4 * i)))
    found = load_good_pictures(tmp_path, size=32, roi=(4, 4, 32, 20), group=r"\d")
    assert not found.spec.stretch and found.placement.content == (0, 6, 32, 20)


# 16 bit


def deep_parts(folder: Path, brightest: int, n: int = 8) -> Path:
    """Grey 16-bit pictures whose largest value over all is `brightest`, reached in one of them only."""
    for seed in range(n):
        picture = (part(seed, (32, 32))[..., 0].astype(np.float64) / 255 * brightest * 0.9).astype(np.uint16)
        if seed == 5:
            picture[0, 0] = brightest
        write(folder / f"{seed}.png", picture)
    return folder


@pytest.mark.parametrize(
    ("brightest", "bits"),
    [(256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, 16), (65535, 16)],
)
def test_bit_depth_is_the_smallest_that_holds_the_brightest_pixel(tmp_path: Path, brightest: int, bits: int) -> None:
    """One pixel of one picture decides; the frame is scaled by that depth's full scale, and the note says so."""
    found = load(deep_parts(tmp_path, brightest))
    assert found.spec.bit_depth == bits
    assert found.frames[5, 0, 0].tolist() == [round(255 * brightest / (2**bits - 1))] * 3
    assert any(f"use {bits} bits" in note for note in found.notes())


def test_8_bit_pictures_are_not_rescaled_beside_12_bit_ones(tmp_path: Path) -> None:
    """In a mixed set the depth holds for the 16-bit files alone."""
    deep_parts(tmp_path, 4000)
    shallow = part(0, (32, 32))
    write(tmp_path / "z.png", shallow)
    found = load(tmp_path)
    assert found.spec.bit_depth == 12
    np.testing.assert_array_equal(found.frames[-1], shallow)


def test_8_bit_values_stored_in_16_bits_are_not_black(tmp_path: Path) -> None:
    """16-bit files that only use 8 bits keep their brightness: a black frame would be learnt as what good looks like."""
    assert load(deep_parts(tmp_path, 255)).frames.max() >= 250


def test_black_16_bit_pictures_stay_black(tmp_path: Path) -> None:
    """Nothing but zeros says nothing of the depth; the frames are black."""
    found = load_good_pictures(deep_parts(tmp_path, 0), size=32, group=".*")  # copies, said to be different parts
    assert found.spec.bit_depth == 16 and not found.frames.any()


# Progress and split


def test_progress_rises_to_its_end(tmp_path: Path) -> None:
    """Both passes are reported, also with a skipped file; the share never falls and ends at 1."""
    write_parts(tmp_path, 8)
    (tmp_path / "000.png").write_bytes(b"")
    write(tmp_path / "008.png", part(8))
    seen: list[tuple[int, int]] = []
    load_good_pictures(tmp_path, size=32, on_progress=lambda done, of: seen.append((done, of)))
    shares = [done / of for done, of in seen]
    assert len(seen) == 9 + 8
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1


def some_pictures(n: int) -> GoodPictures:
    frames: NDArray[np.uint8] = np.zeros((n, 32, 32, 3), np.uint8)
    files = tuple(PictureFile(Path(f"{i}.png"), f"{i}.png", "0" * 64, (32, 32)) for i in range(n))
    return GoodPictures(frames, files, None, None, (), None)  # type: ignore[arg-type]  # split reads files only


@pytest.mark.parametrize(("n", "held_out"), [(8, 3), (12, 3), (14, 4), (20, 5), (100, 25), (401, 100)])
def test_split_is_disjoint_and_complete(n: int, held_out: int) -> None:
    """A quarter, but at least 3, are kept for calibration; every picture is on exactly one side, in order."""
    train, calibration = some_pictures(n).split(np.random.default_rng(0))
    assert len(calibration) == held_out
    assert sorted([*train, *calibration]) == list(range(n))
    assert list(train) == sorted(train) and list(calibration) == sorted(calibration)


def test_a_part_is_held_out_whole_and_every_stretch_of_time_is_covered() -> None:
    """Forty parts of two to four pictures: ten held out with all their pictures, one from each tenth of the order."""
    pictures = some_pictures(120)
    names = tuple(f"part {i // 3 if i % 9 else max(0, i // 3 - 1)}" for i in range(120))
    pictures = replace(pictures, groups=PartGroups(names))
    order = list(dict.fromkeys(names))
    for seed in range(20):
        train, calibration = pictures.split(np.random.default_rng(seed))
        held_out = {names[i] for i in calibration}
        assert held_out.isdisjoint(names[i] for i in train) and len(train) + len(calibration) == 120
        assert len(held_out) == round(len(order) / 4)
        blocks = np.array_split(np.arange(len(order)), len(held_out))
        assert all(sum(order[i] in held_out for i in block) == 1 for block in blocks)


def test_groups_are_named_in_the_notes(tmp_path: Path) -> None:
    """A pattern reaches the pictures' parts and their notes; copies are found without one."""
    write_parts(tmp_path / "a", 10)
    write_parts(tmp_path / "b", 10)
    by_name = load_good_pictures(tmp_path, size=32, group=r"\d+")
    copies = load(tmp_path)
    for found in (by_name, copies):
        assert len(found.parts) == 20 and len(set(found.parts)) == 10 and len(found.notes()) == 1
    assert by_name.parts[:2] == ("000", "001") and copies.parts[10:12] == ("a/000.png", "a/001.png")


def test_split_follows_the_seed() -> None:
    """The same seed holds the same pictures out, other seeds hold out others; no picture is favoured."""
    pictures = some_pictures(40)
    splits = [pictures.split(np.random.default_rng(seed))[1] for seed in range(200)]
    np.testing.assert_array_equal(splits[7], pictures.split(np.random.default_rng(7))[1])
    assert len({tuple(split) for split in splits}) > 190
    times = np.bincount(np.concatenate(splits), minlength=40)
    # 200 draws with probability 1/4: 50 +- 6; five of those deviations for 40 pictures
    assert times.min() > 20 and times.max() < 80
