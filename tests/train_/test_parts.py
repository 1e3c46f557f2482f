"""Which pictures show the same part: by name, by likeness, and not merely because good parts look alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.train_.parts import parts

from flawline_inspect.errors import InputError
from flawline_train.parts import MAX_GROUP, PartGroups, group_by_name, group_near_duplicates
from flawline_train.pictures import load_good_pictures

U8 = NDArray[np.uint8]
SIDE = 64
WHOLE = (0, 0, SIDE, SIDE)


def textured(seed: int) -> NDArray[np.float64]:
    """One part (SIDE, SIDE, 3): the same plate for all, and a grain that no other part has."""
    rng = np.random.default_rng(seed)
    picture = np.full((SIDE, SIDE, 3), 90.0)
    picture[16:48, 16:48] = (190, 150, 110)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)), (0, 0), 1.5)
    return np.asarray(picture + 60 * grain[..., None], np.float64)


def photograph(
    part: NDArray[np.float64], seed: int, *, shift: tuple[int, int] = (0, 0), light: float = 1.0, noise: float = 3.0
) -> U8:
    """What the camera sees of it: moved, under other light, with the sensor's noise."""
    rng = np.random.default_rng(1000 + seed)
    seen = np.roll(part, shift, (0, 1)) * light + rng.normal(0, noise, part.shape)
    return np.clip(seen, 0, 255).astype(np.uint8)


def grouped(frames: list[U8] | U8, hashes: list[str] | None = None) -> PartGroups:
    files = [f"{i:03d}.png" for i in range(len(frames))]
    return group_near_duplicates(files, files if hashes is None else hashes, np.stack(list(frames)), WHOLE)


# By likeness


def test_frames_of_a_burst_are_one_part() -> None:
    """Twelve parts, the third photographed four times while it moved and the light changed: nine parts and a sentence."""
    frames = [photograph(textured(i), i) for i in range(12)]
    for k, (shift, light) in enumerate([((1, 0), 1.0), ((2, 1), 1.05), ((3, 1), 0.92)]):
        frames.insert(3 + k, photograph(textured(2), 50 + k, shift=shift, light=light))
    found = grouped(frames)
    assert found.parts[2:6] == ("002.png",) * 4 and len(set(found.parts)) == 12
    (note,) = found.notes
    assert note.startswith("15 pictures look like 12 parts: near-duplicates count once")
    assert "002.png, 003.png, 004.png, ..." in note and "--group" in note


def test_duplicates_far_apart_in_the_order_are_found() -> None:
    """The same part photographed on another day, twenty pictures later."""
    frames = [photograph(textured(i), i) for i in range(24)]
    frames[21] = photograph(textured(1), 99)
    found = grouped(frames)
    assert found.parts[21] == "001.png" and len(set(found.parts)) == 23


def test_copies_of_a_file_are_one_part() -> None:
    """By hash, whatever they look like."""
    frames = [photograph(textured(i), i) for i in range(8)]
    hashes = ["a", "b", "a", "c", "d", "e", "f", "a"]
    assert grouped(frames, hashes).parts == tuple(f"00{i}.png" for i in (0, 1, 0, 3, 4, 5, 6, 0))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda i: parts(i + 1, (SIDE, SIDE))[i], id="one design and the sensor's noise"),
        pytest.param(lambda i: photograph(textured(0), i, shift=(i % 5, i // 5)), id="only moved"),
        pytest.param(lambda i: photograph(textured(0), i, light=0.8 + 0.01 * i), id="drifting light"),
        pytest.param(lambda i: photograph(textured(i), i), id="different parts"),
        pytest.param(lambda i: np.full((SIDE, SIDE, 3), i, np.uint8), id="nothing to see"),
        pytest.param(lambda i: np.zeros((SIDE, SIDE, 3), np.uint8), id="black"),
    ],
)
def test_parts_that_all_look_alike_are_different_parts(make: Callable[[int], U8]) -> None:
    """Where every picture is as close to every other nothing tells frames from parts, and nothing is grouped."""
    found = grouped([make(i) for i in range(20)])
    assert len(set(found.parts)) == 20 and found.notes == ()


def test_a_large_cluster_is_named_and_not_grouped() -> None:
    """A kind of parts that look alike is no part; but if it is a film of one part, the engineer should say so."""
    n_alike = MAX_GROUP + 2
    frames = [photograph(textured(i), i) for i in range(40)]
    frames += [photograph(textured(77), 100 + i) for i in range(n_alike)]
    found = grouped(frames)
    assert len(set(found.parts)) == len(frames)
    (note,) = found.notes
    assert note.startswith(f"{n_alike} pictures look alike, 040.png and 041.png") and "--group" in note


def test_the_border_outside_the_content_is_not_looked_at() -> None:
    """Parts that differ only in what pads the frame are as alike as without it; the same parts differ by nothing there."""
    frames = np.stack([photograph(textured(i), i) for i in range(8)])
    padded = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE + 32, 3)).astype(np.uint8)
    padded[:, :, 16 : 16 + SIDE] = frames
    padded[5, :, 16 : 16 + SIDE] = photograph(textured(4), 60)
    files = [f"{i}.png" for i in range(8)]
    found = group_near_duplicates(files, files, padded, (16, 0, SIDE, SIDE))
    assert found.parts == ("0.png", "1.png", "2.png", "3.png", "4.png", "4.png", "6.png", "7.png")


def test_too_few_parts_are_refused() -> None:
    """Eight copies of three pictures cannot promise anything; the sentence says how many parts there are."""
    frames = [photograph(textured(i % 3), i) for i in range(8)]
    with pytest.raises(InputError, match=r"the pictures show 3 parts in 8 pictures; at least 4.*--group"):
        grouped(frames, [str(i % 3) for i in range(8)])


@pytest.mark.parametrize(
    ("name", "at_least", "at_most"),
    [
        pytest.param("toy_alien", 40, 40, marks=pytest.mark.needs_data("toy_alien"), id="toy_alien"),
        pytest.param("screw_512", 275, 280, marks=pytest.mark.needs_data("screw_512"), id="screw_512"),
        pytest.param("elpv_mono_s", 285, 300, marks=pytest.mark.needs_data("elpv_mono_s"), id="elpv_mono_s"),
        pytest.param("bottle_cap", 40, 80, marks=pytest.mark.needs_data("bottle_cap"), id="bottle_cap"),
        pytest.param(
            "magnetic_tile_s", 130, 260, marks=pytest.mark.needs_data("magnetic_tile_s"), id="magnetic_tile_s"
        ),
    ],
)
def test_real_sets(name: str, at_least: int, at_most: int, shared_data: Callable[[str], Path]) -> None:
    """Different parts stay different; webcam bursts of caps, and tiles under several exposures, are largely found."""
    found = load_good_pictures(shared_data(name) / "train" / "good", size=128)
    assert at_least <= len(set(found.parts)) <= at_most


# By name


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param(r"SN\d+", ("SN1", "SN1", "SN20"), id="the whole match"),
        pytest.param(r"SN(\d+)_", ("1", "1", "20"), id="the first group"),
        pytest.param(r"^([^/]+)/", ("mon", "mon", "tue"), id="the folder"),
    ],
)
def test_the_pattern_names_the_part(pattern: str, expected: tuple[str, ...]) -> None:
    """Searched anywhere in the relative path."""
    files = ["mon/SN1_a.png", "mon/SN1_b.png", "tue/SN20_a.png"]
    others = [f"wed{i}/SN3{i}_a.png" for i in range(7)]
    found = group_by_name(files + others, pattern)
    assert found.parts[:3] == expected
    assert found.notes == (
        f"10 pictures of {len(set(found.parts))} parts by --group: pictures of a part are held out together",
    )


def test_every_picture_its_own_part_is_no_news() -> None:
    """A pattern that matches all of each path switches the search for near-duplicates off, silently."""
    files = [f"{i}.png" for i in range(6)]
    assert group_by_name(files, ".*") == PartGroups(tuple(files))


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        pytest.param("SN(", r"--group 'SN\(' is no regular expression", id="broken"),
        pytest.param(r"SN\d", "does not name the part of b.png", id="no match"),
        pytest.param(r"(SN\d)?.*", "does not name the part of b.png", id="the group is empty"),
        pytest.param(r"png", "finds 1 part in 5 pictures; at least 4", id="one part"),
    ],
)
def test_patterns_that_name_nothing_are_refused(pattern: str, sentence: str) -> None:
    """With the pattern, and the file that it does not fit."""
    with pytest.raises(InputError, match=sentence):
        group_by_name(["SN1.png", "b.png", "SN2.png", "SN3.png", "SN4.png"], pattern)
