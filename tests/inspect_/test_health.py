"""Picture health: what is measured, what stays the same under which change, and what a refused picture is told."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawline_inspect.errors import HealthError, InputError, PictureError
from flawline_inspect.frame import FrameSpec, Placement, Roi, fit_picture
from flawline_inspect.health import (
    MEASURES,
    THUMBNAIL_SIDE,
    Bound,
    Health,
    Measure,
    health_rows,
    likeness,
    measured,
)

U8 = NDArray[np.uint8]
SIDE = 48
WHOLE: Roi = (0, 0, SIDE, SIDE)
PLACEMENT = Placement((96, 96), (0, 0, 96, 96), WHOLE)


def texture(seed: int = 0, side: int = SIDE, mean: float = 120.0, deviation: float = 15.0) -> U8:
    """(side, side, 3): smooth noise with detail at every size, far from black and white."""
    rng = np.random.default_rng(seed)
    picture = sum(cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), s) * s for s in (0.7, 1.5, 3.0, 6.0))
    picture = mean + deviation * (picture - np.mean(picture)) / np.std(picture)
    return np.repeat(np.clip(np.rint(picture), 0, 255).astype(np.uint8)[..., None], 3, 2)


def flat(level: int, side: int = SIDE) -> U8:
    return np.full((side, side, 3), level, np.uint8)


def half(level: int) -> U8:
    """Texture above, one grey value below."""
    picture = texture()
    picture[SIDE // 2 :] = level
    return picture


def values_of(picture: U8, content: Roi | None = None) -> dict[Measure, float]:
    height, width = picture.shape[:2]
    return measured(picture, content or (0, 0, width, height), (4, 3)).values


# What is measured


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (flat(0), {"black": 1, "white": 0, "flat": 1, "brightness": 0, "contrast": 0, "sharpness": 0}),
        (flat(4), {"black": 1, "brightness": 4}),
        (flat(5), {"black": 0, "brightness": 5}),
        (flat(250), {"white": 0, "brightness": 250}),
        (flat(255), {"black": 0, "white": 1, "flat": 1, "brightness": 255, "contrast": 0, "sharpness": 0}),
        (half(0), {"black": 0.5, "white": 0, "flat": 0.5 - 1 / SIDE}),
        (half(128), {"black": 0, "white": 0, "flat": 0.5 - 1 / SIDE}),
        (texture(mean=120, deviation=15), {"black": 0, "white": 0, "brightness": 120, "contrast": 15}),
        (np.full((7, 5, 3), (0, 0, 255), np.uint8), {"white": 0, "black": 0, "brightness": 76, "aspect": 4 / 3}),
        (flat(90, 1), {"flat": 1, "brightness": 90, "sharpness": 0}),
    ],
    ids=["black", "nearly black", "dark", "bright", "white", "half black", "half grey", "texture", "red", "one pixel"],
)
def test_measures_of_plain_pictures(picture: U8, expected: dict[Measure, float]) -> None:
    """By hand: shares of pixels, mean and deviation of the grey values, no detail in what is constant."""
    found = values_of(picture)
    assert {measure: found[measure] for measure in expected} == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("wh", [(1, 1), (1, 40), (40, 1), (2, 3), (17, 31)])
def test_every_size_can_be_measured(wh: tuple[int, int]) -> None:
    """Down to one pixel: finite numbers, shares from 0 to 1, a thumbnail of 12 x 12."""
    picture = np.random.default_rng(0).integers(0, 256, (wh[1], wh[0], 3)).astype(np.uint8)
    found = measured(picture, (0, 0, *wh), wh)
    assert found.thumbnail.shape == (THUMBNAIL_SIDE, THUMBNAIL_SIDE) and np.isfinite(found.thumbnail).all()
    assert all(np.isfinite(value) for value in found.values.values())
    assert all(0 <= found.values[share] <= 1 for share in ("black", "white", "flat"))


def test_the_replicated_border_is_not_measured() -> None:
    """A picture in a frame of another shape measures as it does alone; what lies around it does not count."""
    frame = flat(0, 64)
    frame[8:56, 4:52] = texture()
    assert values_of(frame, (4, 8, SIDE, SIDE)) == values_of(texture())


def test_sharpness_of_white_noise_against_a_plain_implementation() -> None:
    """Second octave by third, each what a binomial filter takes away, with NumPy alone; borders left aside, within 10 %."""
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (256, 256)).astype(np.float64)

    def smooth(picture: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in (0, 1):
            picture = np.apply_along_axis(np.convolve, axis, picture, np.array([1, 4, 6, 4, 1]) / 16, "same")
        return picture

    first = smooth(grey)[::2, ::2]
    second = smooth(first)
    third = second[::2, ::2]
    energies = [((a - b)[4:-4, 4:-4] ** 2).mean() for a, b in ((first, second), (third, smooth(third)))]
    found = values_of(np.repeat(grey.astype(np.uint8)[..., None], 3, 2))["sharpness"]
    assert found == pytest.approx(energies[0] / energies[1], rel=0.1)


# What stays the same, and what does not


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), first=st.floats(0.3, 3.0), more=st.floats(1.15, 3.0))
def test_blur_only_lowers_the_sharpness(seed: int, first: float, more: float) -> None:
    """The more, the lower, whatever the picture: the energy moves to larger detail. 2 % for the rounding to 8 bits."""
    picture = texture(seed, 96, deviation=30)
    sharpness = [
        values_of(np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8))["sharpness"]
        for sigma in (0.05, first, first * more)
    ]
    assert sharpness[1] <= 1.02 * sharpness[0] and sharpness[2] <= 1.02 * sharpness[1]
    assert (
        sharpness[2] >= 1 / 16 * 0.5
    )  # the least that a picture without any detail of that size can have, at the border less


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), gain=st.floats(0.5, 1.5), offset=st.floats(-20, 20))
def test_light_changes_neither_sharpness_nor_likeness(seed: int, gain: float, offset: float) -> None:
    """As long as nothing is clipped: another gain and black level leave them within 5 %, the rounding to 8 bits."""
    picture = texture(seed, 96, mean=110, deviation=20)
    lit = np.clip(np.rint(110 + gain * (picture - 110.0) + offset), 0, 255).astype(np.uint8)
    before, after = (measured(each, (0, 0, 96, 96), (1, 1)) for each in (picture, lit))
    assert after.values["sharpness"] == pytest.approx(before.values["sharpness"], rel=0.05)
    assert likeness(before.thumbnail, after.thumbnail) == pytest.approx(1, abs=1e-3)
    assert after.values["contrast"] == pytest.approx(gain * before.values["contrast"], abs=0.5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), gains=st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 4.0)))
def test_more_light_is_never_darker(seed: int, gains: tuple[float, float]) -> None:
    """Brightness and the share of white pixels only rise with the gain, that of black ones only falls."""
    picture = texture(seed).astype(np.float32)
    less, more = (values_of(np.clip(np.rint(gain * picture), 0, 255).astype(np.uint8)) for gain in sorted(gains))
    assert less["brightness"] <= more["brightness"]
    assert less["white"] <= more["white"] and less["black"] >= more["black"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)],
    ids=["the same", "its negative", "constant"],
)
def test_likeness_is_a_correlation(other: float, expected: float) -> None:
    """1 for the same, -1 for the opposite, 0 where one of the two shows nothing."""
    thumbnail = np.random.default_rng(0).uniform(50, 200, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)).astype(np.float32)
    assert likeness(thumbnail, 128 + other * thumbnail) == pytest.approx(expected, abs=1e-5)


# Bounds


@pytest.mark.parametrize(
    ("allowed", "value", "is_admitted"),
    [
        ((1.0, 2.0), 1.0, True),
        ((1.0, 2.0), 2.0, True),
        ((1.0, 2.0), 0.999, False),
        ((1.0, 2.0), 2.001, False),
        ((None, 2.0), -1e9, True),
        ((1.0, None), 1e9, True),
        ((1.0, None), float("nan"), False),
        ((None, 2.0), float("nan"), False),
    ],
)
def test_limits_belong_to_what_is_admitted(
    allowed: tuple[float | None, float | None], value: float, is_admitted: bool
) -> None:
    """A value at a limit passes; what is no number never does."""
    assert Bound((1.2, 1.8), allowed).admits(value) is is_admitted


GOOD = measured(texture(), WHOLE, (96, 96))
WIDE: dict[Measure, Bound] = {
    "aspect": Bound((1.0, 1.0), (0.98, 1.02)),
    "black": Bound((0.0, 0.0), (None, 0.28)),
    "white": Bound((0.0, 0.01), (None, 0.3)),
    "flat": Bound((0.0, 0.0), (None, 0.28)),
    "brightness": Bound((100.0, 130.0), (60.0, 210.0)),
    "contrast": Bound((12.0, 18.0), (4.0, None)),
    "sharpness": Bound(
        (0.9 * GOOD.values["sharpness"], GOOD.values["sharpness"]), (0.5 * GOOD.values["sharpness"], None)
    ),
    "likeness": Bound((0.97, 1.0), (0.4, None)),
}
HEALTH = Health(WIDE, GOOD.thumbnail)


def placed(picture_wh: tuple[int, int] = (96, 96), roi: Roi | None = None) -> Placement:
    return Placement(picture_wh, roi or (0, 0, *picture_wh), WHOLE)


@pytest.mark.parametrize(
    ("picture", "placement", "sentence"),
    [
        (flat(0), PLACEMENT, "too much black: share of black pixels 100%, good pictures 0%; look at the light"),
        (texture(mean=12, deviation=2), PLACEMENT, "too dark: mean 12, good pictures 100 to 130; look at the light"),
        (texture(mean=225, deviation=8), PLACEMENT, "too bright: mean 225, good pictures 100 to 130; look at the light"),
        (flat(255), PLACEMENT, "overexposed: share of white pixels 100%, good pictures 0% to 1%; look at"),
        (half(0), PLACEMENT, "too much black: share of black pixels 50%, good pictures 0%"),
        (half(128), PLACEMENT, "incomplete: share of pixels without any detail 48%, good pictures 0%; look whether"),
        (texture(deviation=2), PLACEMENT, r"without contrast: deviation of grey values 2\.0, good pictures 12 to 18"),
        (cv2.GaussianBlur(texture(deviation=60), (0, 0), 4), PLACEMENT, r"out of focus: sharpness 0\.\d\d, good pictures 0"),
        (texture(7), PLACEMENT, r"unlike any good part: correlation with their mean -?0\.\d\d, good pictures 0\.97 to 1\.00"),
        (texture(), placed((128, 96)), r"too wide: width by height 1\.33, good pictures 1\.00; use the camera and the region"),
        (texture(), placed((96, 128)), r"too narrow: width by height 0\.75, good pictures 1\.00"),
    ],
    ids=["black", "dark", "bright", "white", "torn black", "torn grey", "foggy", "blurred", "another", "wide", "narrow"],
)  # fmt: skip
def test_a_refused_picture_is_told_what_is_wrong_and_by_how_much(
    picture: U8, placement: Placement, sentence: str
) -> None:
    """One sentence: the first thing that is wrong, how much of it, what good pictures have, what to do."""
    with pytest.raises(HealthError, match=f"^{sentence}") as refused:
        HEALTH.check(picture, placement)
    assert isinstance(refused.value, PictureError) and "\n" not in str(refused.value)


@pytest.mark.parametrize("gain", [0.85, 1.0, 1.15])
def test_a_good_picture_passes_in_a_light_that_drifts(gain: float) -> None:
    """15 % more or less light is for the model to judge."""
    HEALTH.check(np.clip(np.rint(gain * texture().astype(np.float32)), 0, 255).astype(np.uint8), PLACEMENT)


def test_a_defect_passes() -> None:
    """A black hole, a white stain and a scratch: that is what the model is there for."""
    picture = texture()
    picture[10:20, 10:20], picture[30:36, 20:40], picture[25, :] = 0, 255, 250
    HEALTH.check(picture, PLACEMENT)


def test_without_bounds_every_picture_passes() -> None:
    """As with bundles that know none."""
    for picture in (flat(0), flat(255), texture()):
        Health().check(picture, placed((17, 96)))


@pytest.mark.parametrize(
    ("picture_wh", "roi", "is_refused"),
    [
        ((640, 480), (10, 20, 96, 96), False),
        ((800, 600), (10, 20, 96, 96), False),
        ((320, 240), (10, 20, 96, 96), True),
        ((320, 240), (0, 0, 96, 96), False),
        ((320, 240), None, False),
    ],
    ids=["as learnt", "as others learnt", "another size", "another region", "whole picture"],
)
def test_a_region_of_pixels_is_that_of_a_size(picture_wh: tuple[int, int], roi: Roi | None, is_refused: bool) -> None:
    """The pixels of the region show something else in a picture of another size; a region given anew is the user's own."""
    health = Health({}, None, (10, 20, 96, 96), ((640, 480), (800, 600)))
    placement = Placement(picture_wh, roi or (0, 0, *picture_wh), WHOLE)
    if not is_refused:
        health.check(texture(), placement)
        return
    with pytest.raises(HealthError, match=r"^of another size: the picture has 320x240 .* of 640x480, 800x600; set"):
        health.check(texture(), placement)


@pytest.mark.parametrize(
    ("bounds", "reference"),
    [
        ({"likeness": Bound((0.9, 1.0), (0.4, None))}, None),
        ({}, np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.float32)),
        ({"likeness": Bound((0.9, 1.0), (0.4, None))}, np.zeros((4, 4), np.float32)),
    ],
    ids=["no reference", "no bound", "another size"],
)
def test_a_likeness_needs_its_reference(bounds: dict[Measure, Bound], reference: Any) -> None:
    """One without the other is refused when it is made, not on the line."""
    with pytest.raises(InputError, match="reference"):
        Health(bounds, reference)


def test_rows_for_people() -> None:
    """In the order of the checks, in the units of the sentences."""
    rows = {name: (good, allowed) for name, good, allowed in health_rows(HEALTH)}
    assert list(rows) == list(MEASURES)
    assert rows["brightness"] == ("100 to 130", "60 to 210")
    assert rows["white"] == ("0% to 1%", "at most 30%") and rows["contrast"] == ("12 to 18", "at least 4.0")
    assert rows["aspect"] == ("1.00", "0.98 to 1.02")
    assert health_rows(Health()) == []


@pytest.mark.parametrize(
    "picture",
    [
        texture(side=96)[..., 0],
        texture(side=96),
        np.dstack([texture(side=96), flat(255, 96)[..., 0]]),
        texture(side=96).astype(np.uint16) * 257,
        texture(side=96).astype(np.float32) / 255,
    ],
    ids=["grey", "colour", "alpha", "16 bit", "float"],
)
def test_the_kind_of_picture_makes_no_difference(picture: NDArray[np.generic]) -> None:
    """All are measured as they come to the frame."""
    spec = FrameSpec(SIDE, SIDE)
    expected = values_of(fit_picture(texture(side=96), spec)[0])
    frame, placement = fit_picture(picture, spec)
    found = Health().measure(frame, placement)
    assert found.pop("aspect") == 1 and expected.pop("aspect")
    assert found == pytest.approx(expected, rel=1e-6)


def test_each_complaint_tells_what_to_do() -> None:
    """What a measure has too little or too much of has a word, and a way out behind the semicolon."""
    beyond: dict[Measure, Bound] = {}
    for measure in MEASURES:
        beyond = {measure: Bound((0.5, 0.5), (1e6, None))}
        if measure in ("black", "white", "flat"):
            beyond = {measure: Bound((0.5, 0.5), (None, -1.0))}
        health = Health(beyond, GOOD.thumbnail if measure == "likeness" else None)
        with pytest.raises(HealthError) as refused:
            health.check(texture(), PLACEMENT)
        assert re.fullmatch(r"[a-z ]+: [a-z ]+ -?[\d.]+%?, good pictures [\d.]+%?; (look|use) .+", str(refused.value))
