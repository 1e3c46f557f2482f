"""Objects and textures: what `auto` decides, what is refused, and what becomes of the size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.train_.parts import varied_parts, write
from tests.train_.test_screening import options
from tests.train_.textures import grained, noise, vignetted, woven

from flawline_inspect.errors import InputError
from flawline_inspect.frame import frame_for
from flawline_train import train
from flawline_train.kind import CROP, kind_of, texture_size, tile_hw
from flawline_train.pictures import load_good_pictures

U8 = NDArray[np.uint8]
SMALL: dict[str, Any] = {"steps": 2, "width": 4, "device": "cpu", "report": False}


def on_a_belt(n: int) -> U8:
    """A disc that lies anywhere: no common picture, and no texture."""
    rng = np.random.default_rng(0)
    out = rng.normal(40, 3, (n, 256, 256, 3))
    for picture in out:
        x, y = rng.integers(60, 196, 2)
        cv2.circle(picture, (int(x), int(y)), 45, (200, 200, 200), -1)
    return np.clip(out, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("pictures", "kind"),
    [
        pytest.param(woven(12, 256), "texture", id="woven"),
        pytest.param(grained(12, 256), "texture", id="grained"),
        pytest.param(noise(12, 256), "texture", id="noise"),
        pytest.param(vignetted(woven(12, 256)), "texture", id="woven under an uneven lamp"),
        pytest.param(vignetted(noise(8, 256)), "texture", id="as few as can be"),
        pytest.param(varied_parts(12, (128, 96)), "object", id="parts that vary"),
        pytest.param(on_a_belt(12), "object", id="a part that lies anywhere"),
        pytest.param(np.repeat(woven(1, 256), 12, 0), "object", id="one piece of cloth in one place"),
        pytest.param(np.full((8, 64, 64, 3), 90, np.uint8), "object", id="nothing to see"),
    ],
)
def test_what_auto_decides(pictures: U8, kind: str) -> None:
    """Textures share no mean picture, and look the same all over; in doubt it is an object."""
    found = kind_of(list(pictures))
    assert found.kind == kind, found
    assert f"kind {kind}" in found.note()


@pytest.mark.parametrize("name", ["toy_alien", "elpv_mono_s", "bottle_cap", "screw_512", "magnetic_tile_s"])
def test_real_parts_are_objects_by_a_wide_margin(name: str, shared_data: Callable[[str], Path]) -> None:
    """Even as they lie, before anything is aligned: at least twice as far from a texture as has to be in one of the measures."""
    paths = sorted((shared_data(name) / "train" / "good").iterdir())[::4]
    found = kind_of([picture for path in paths if (picture := cv2.imread(str(path))) is not None])
    assert found.kind == "object" and found.unevenness > 0.45


@pytest.mark.parametrize(
    ("picture_wh", "size"),
    [((4000, 3000), 512), ((500, 300), 496), ((300, 400), 400), ((129, 100), 128), ((128, 128), 128), ((40, 40), 128)],
)
def test_a_textures_frame_is_as_large_as_its_pictures_up_to_a_limit(picture_wh: tuple[int, int], size: int) -> None:
    """And one that a frame can have."""
    assert texture_size(picture_wh) == size
    spec = frame_for(picture_wh, size)
    assert max(spec.width, spec.height) == size


def test_crops_fit_into_the_frame() -> None:
    assert tile_hw((512, 96)) == (CROP, 96)


def written(folder: Path, pictures: U8) -> Path:
    for i, picture in enumerate(pictures):
        write(folder / f"{i:03d}.png", picture)
    return folder


def test_auto_raises_the_frame_of_a_texture_and_says_so(tmp_path: Path) -> None:
    """A size that was asked for stays; objects keep the usual one."""
    good = written(tmp_path / "cloth", woven(8, 272))
    found = load_good_pictures(good, size=None, align="auto", kind="auto")
    assert (found.kind, found.spec.width, found.spec.height, found.spec.alignment) == ("texture", 272, 272, None)
    assert any("kind texture" in note for note in found.notes()) and any("272x272" in note for note in found.notes())
    asked = load_good_pictures(good, size=64, align="auto", kind="auto")
    assert (asked.kind, asked.spec.width) == ("texture", 64)
    told = load_good_pictures(good, size=None, align="auto", kind="object")
    assert (told.kind, told.spec.width) == ("object", 128)


def test_a_region_of_interest_sets_the_size(tmp_path: Path) -> None:
    """Not the picture around it."""
    good = written(tmp_path / "cloth", woven(8, 272))
    found = load_good_pictures(good, size=None, roi=(8, 8, 200, 160), kind="texture")
    assert (found.spec.width, found.spec.height) == (192, 160)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "convolutional"}, "--method convolutional cannot; expected filtering, or"),
        ({"method": "anomalib:Padim"}, "--method anomalib:Padim cannot"),
        ({"align": "rotate"}, "--align rotate brings parts to one pose and --kind texture has none"),
        ({"kind": "cloth"}, "--kind is 'cloth', expected one of auto, object, texture"),
    ],
)
def test_what_cannot_be_is_refused_before_reading(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train(tmp_path / "none", tmp_path / "x.flawline", **{**SMALL, "kind": "texture", **changes})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "auto"),
        ({"kind": "texture"}, "texture"),
        ({"method": "convolutional"}, "object"),
        ({"method": "convolutional", "kind": "object"}, "object"),
        ({"align": "shift"}, "object"),
    ],
)
def test_where_only_an_object_can_be_nothing_is_measured(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    """`auto` never refuses."""
    assert options(tmp_path, **{"kind": "auto", **changes}).kind_to_find == kind
