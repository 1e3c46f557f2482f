"""Area rules: which regions make a part NotOK, in camera pixels, and that nothing but a NotOK is ever lowered."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_inspect.config import parse_config
from flawline_inspect.decision import DecisionRule
from flawline_inspect.errors import ConfigError, InputError, PictureError
from flawline_inspect.frame import Placement
from flawline_inspect.regions import RegionRule
from flawline_inspect.verdict import Result

F32 = NDArray[np.float32]
SAME = Placement((64, 48), (0, 0, 64, 48), (0, 0, 64, 48))
"""One camera pixel a pixel of the frame."""
FOUR_FOLD = Placement((256, 200), (0, 8, 256, 192), (0, 0, 64, 48))
"""Sixteen camera pixels each, in a region of interest that begins eight rows down."""
THRESHOLD = 4.0


def heat(*boxes: tuple[int, int, int, int], value: float = 9.0) -> F32:
    """Boxes (x, y, w, h) of one value on nothing, (48, 64)."""
    out = np.zeros((48, 64), np.float32)
    for x, y, w, h in boxes:
        out[y : y + h, x : x + w] = value
    return out


def decide(regions: RegionRule | None, heatmap: F32, placement: Placement | None = SAME, score: float = 5.0) -> Result:
    return DecisionRule(THRESHOLD, None, regions).decide(score, heatmap, placement).result


@pytest.mark.parametrize(
    ("rule", "heatmap", "result"),
    [
        pytest.param(RegionRule(min_area_px=12), heat((10, 10, 4, 3)), Result.NOT_OK, id="as large as asked for"),
        pytest.param(RegionRule(min_area_px=13), heat((10, 10, 4, 3)), Result.OK, id="one pixel too small"),
        pytest.param(
            RegionRule(min_area_px=13), heat((10, 10, 4, 3), (30, 30, 4, 3)), Result.OK, id="areas are not added up"
        ),
        pytest.param(
            RegionRule(min_area_px=13), heat((10, 10, 4, 3), (30, 30, 5, 3)), Result.NOT_OK, id="the largest counts"
        ),
        pytest.param(
            RegionRule(min_area_px=4),
            heat((10, 10, 2, 1), (12, 11, 2, 1)),
            Result.NOT_OK,
            id="touching at a corner is one",
        ),
        pytest.param(RegionRule(level=10.0), heat((10, 10, 8, 8)), Result.OK, id="below the level"),
        pytest.param(RegionRule(level=8.0), heat((10, 10, 8, 8)), Result.NOT_OK, id="above it"),
        pytest.param(
            RegionRule(min_area_px=2), heat(), Result.NOT_OK, id="a diffuse score is not lowered without a level"
        ),
        pytest.param(None, heat((10, 10, 1, 1)), Result.NOT_OK, id="without a rule every region counts"),
    ],
)
def test_which_regions_count(rule: RegionRule | None, heatmap: F32, result: Result) -> None:
    assert decide(rule, heatmap) is result


def ignoring(*boxes: tuple[int, int, int, int], hw: tuple[int, int] = (48, 64)) -> RegionRule:
    ignored = np.zeros(hw, np.bool_)
    for x, y, w, h in boxes:
        ignored[y : y + h, x : x + w] = True
    return RegionRule(ignored=ignored, mask_sha256="x")


def test_what_is_ignored_never_counts_and_hides_nothing_else() -> None:
    """A logo that differs is good; a defect beside it, or one that reaches out of it, is not."""
    logo = ignoring((8, 8, 20, 12))
    assert decide(logo, heat((10, 10, 8, 6))) is Result.OK
    assert decide(logo, heat((10, 10, 8, 6), (50, 40, 3, 3))) is Result.NOT_OK
    assert decide(logo, heat((24, 10, 10, 4))) is Result.NOT_OK


def test_areas_and_masks_are_those_of_the_camera() -> None:
    """A region of 3 x 2 pixels of the frame has about 96 of the camera's; the mask lies on the whole picture."""
    found = heat((20, 10, 3, 2))
    assert decide(RegionRule(min_area_px=60), found, FOUR_FOLD) is Result.NOT_OK
    assert decide(RegionRule(min_area_px=150), found, FOUR_FOLD) is Result.OK
    there = (76, 8 + 36, 20, 18)  # 4 x (20, 10, 3, 2), eight rows down, and what the interpolation adds
    assert decide(ignoring(there, hw=(200, 256)), found, FOUR_FOLD) is Result.OK
    assert decide(ignoring((76, 0, 20, 36), hw=(200, 256)), found, FOUR_FOLD) is Result.NOT_OK


def test_a_mask_of_another_size_is_not_applied() -> None:
    """Nobody knows what it was drawn on: NotOK stays."""
    assert decide(ignoring((0, 0, 32, 24), hw=(24, 32)), heat((1, 1, 4, 4))) is Result.NOT_OK
    assert not ignoring((0, 0, 32, 24), hw=(24, 32)).fits(SAME) and ignoring((0, 0, 32, 24)).fits(SAME)


def test_without_a_placement_nothing_is_lowered() -> None:
    assert decide(RegionRule(min_area_px=1000), heat((1, 1, 4, 4)), None) is Result.NOT_OK


@given(
    st.floats(0, 20, width=32),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 44), st.integers(1, 4), st.integers(1, 4)), max_size=3),
    st.none() | st.floats(0.5, 20),
    st.integers(1, 40),
    st.sampled_from([None, (0.5, 1.5)]),
)
@settings(max_examples=200, deadline=None)
def test_nothing_but_a_not_ok_is_ever_changed(
    score: float,
    boxes: list[tuple[int, int, int, int]],
    level: float | None,
    min_area_px: int,
    band: tuple[float, float] | None,
) -> None:
    """And that only to OK, with the same score; what cannot be decided stays so."""
    heatmap = heat(*boxes)
    plain = DecisionRule(THRESHOLD, band).decide(score, heatmap, SAME)
    ruled = DecisionRule(THRESHOLD, band, RegionRule(level, min_area_px)).decide(score, heatmap, SAME)
    assert ruled == plain or (plain.result, ruled.result) == (Result.NOT_OK, Result.OK)
    assert ruled.score == plain.score
    heatmap[0, 0] = np.nan
    assert (
        DecisionRule(THRESHOLD, band, RegionRule(level, min_area_px)).decide(score, heatmap, SAME).result
        is Result.UNDEFINED
    )


# --- in the configuration ----------------------------------------------------------------------------------------------


def recipe(folder: Path, **regions: object) -> dict[str, object]:
    return {
        "station": "press-7",
        "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
        "recipes": {1: {"bundle": "x.flawline", "regions": regions}},
        "mqtt": {"root": "acme/press-7"},
    }


def test_the_mask_of_a_configuration(tmp_path: Path) -> None:
    """Relative to the file, in any format, what is not black is ignored; another mask is another rule."""
    mask = np.zeros((48, 64, 3), np.uint8)
    mask[10:20, 30:40, 2] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    config = parse_config(recipe(tmp_path, ignore="mask.png", min_area_px=7), base=tmp_path)
    rule = config.recipes[1].decision_rule(THRESHOLD)
    assert rule.regions is not None and rule.regions.min_area_px == 7
    assert rule.regions.ignored is not None and int(rule.regions.ignored.sum()) == 100
    assert rule == config.recipes[1].decision_rule(THRESHOLD)
    mask[0, 0] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert rule != config.recipes[1].decision_rule(THRESHOLD)


@pytest.mark.parametrize(
    ("regions", "sentence"),
    [
        ({}, "says nothing"),
        ({"min_area_px": 0}, "min_area_px"),
        ({"level": 0}, "level"),
        ({"levle": 3}, "levle"),
    ],
)
def test_what_a_rule_cannot_be(tmp_path: Path, regions: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config(recipe(tmp_path, **regions), base=tmp_path)


def test_a_mask_that_cannot_be_read(tmp_path: Path) -> None:
    config = parse_config(recipe(tmp_path, ignore="gone.png"), base=tmp_path)
    with pytest.raises(PictureError, match=r"gone\.png"):
        config.recipes[1].decision_rule(THRESHOLD)
    with pytest.raises(InputError, match="level is -1"):
        RegionRule(level=-1.0)
