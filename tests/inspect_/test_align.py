"""Parts that move: found against a reference, brought to the frame, and back to camera pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.moving_parts import Pose, disc, key, poses, scene

from flawline_inspect.align import Alignment, Bounds, Design, canvas_of, canvas_wh_for, letterbox
from flawline_inspect.errors import InputError, PictureError, PlacementError
from flawline_inspect.foreground import find_foreground
from flawline_inspect.frame import FrameSpec, Placement, fit_picture

U8 = NDArray[np.uint8]
WH = (240, 240)
BOX = (40, 80, 168, 80)
"""x, y, width, height of the reference in the picture of the level key."""
BOUNDS = Bounds(correlation=0.3, doubt=0.9, contrast=20, inside=0.5)


def design_of(picture: U8, box: tuple[int, int, int, int] = BOX) -> Design:
    x, y, w, h = box
    canvas, _ = canvas_of(picture, WH)
    part = find_foreground(canvas)
    assert part is not None
    middle = complex(x + (w - 1) / 2, y + (h - 1) / 2)
    return Design(np.rint(canvas[y : y + h, x : x + w]).astype(np.uint8), part.centre - middle, part.area)


def alignment(scales: tuple[float, float] = (1.0, 1.0), bounds: Bounds = BOUNDS) -> Alignment:
    return Alignment("rotate", [design_of(scene(key(), Pose()))], canvas_wh=WH, scale=1.0, scales=scales, bounds=bounds)


ALIGNMENT = alignment()
ZOOMING = alignment((0.7, 1.4))
SPEC = FrameSpec(160, 80, alignment=ALIGNMENT)


def errors(found: Placement, pose: Pose, level: Placement) -> float:
    """The largest distance, in the frame's pixels, between where points of the key are and where they should be."""
    worst = 0.0
    for x, y in ((-70, -20), (-70, 20), (70, -10), (70, 18)):
        there, expected = pose.at(x, y), Pose().at(x, y)
        worst = max(worst, abs(through(found, *there) - through(level, *expected)))
    return worst


def through(placement: Placement, x: float, y: float) -> complex:
    a, b, c, d, e, f = placement.to_frame
    return complex(a * x + b * y + c, d * x + e * y + f)


LEVEL = fit_picture(scene(key(), Pose()), SPEC)[1]


@pytest.mark.parametrize("pose", poses(12, seed=3), ids=lambda pose: f"{pose.angle:.0f}")
def test_a_part_at_any_angle_comes_to_lie_like_the_reference(pose: Pose) -> None:
    """To two thirds of a frame's pixel everywhere on the part, and what is seen is the same picture."""
    frame, placement = fit_picture(scene(key(), pose, 5), SPEC)
    assert errors(placement, pose, LEVEL) < 0.67
    level, _ = fit_picture(scene(key(), Pose()), SPEC)
    middle = (slice(15, 65), slice(15, 145))
    assert np.abs(frame[middle].astype(float) - level[middle]).mean() < 8


@pytest.mark.parametrize("scale", [0.75, 0.9, 1.2, 1.35])
def test_a_part_that_is_nearer_or_further_gets_the_same_size(scale: float) -> None:
    """Where good parts differed in size."""
    pose = Pose(140, (118, 122), scale)
    level = fit_picture(scene(key(), Pose()), replace(SPEC, alignment=ZOOMING))[1]
    _, placement = fit_picture(scene(key(), pose, 2), replace(SPEC, alignment=ZOOMING))
    assert errors(placement, pose, level) < 1.2


def darker(picture: U8) -> U8:
    return (picture * 0.85).astype(np.uint8)


def brighter(picture: U8) -> U8:
    return np.clip(picture * 1.15, 0, 255).astype(np.uint8)


def unevenly_lit(picture: U8) -> U8:
    ramp = np.linspace(0.8, 1.1, picture.shape[1])[None, :, None]
    return np.clip(picture * ramp, 0, 255).astype(np.uint8)


def blurred(picture: U8) -> U8:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.2), np.uint8)


def compressed(picture: U8) -> U8:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])
    assert done
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


@pytest.mark.parametrize("change", [darker, brighter, unevenly_lit, blurred, compressed])
@pytest.mark.parametrize("pose", poses(3, seed=8), ids=lambda pose: f"{pose.angle:.0f}")
def test_light_and_the_camera_do_not_move_the_part(change: object, pose: Pose) -> None:
    """By no more than a frame's pixel."""
    assert callable(change)
    _, placement = fit_picture(change(scene(key(), pose, 1)), SPEC)
    assert errors(placement, pose, LEVEL) < 1.0


@pytest.mark.parametrize(
    "part",
    [key(cut=0.12), key(cut=0.2), key(spots=((20, 0), (35, -4), (50, 3))), key("O")],
    ids=["cut", "short", "spots", "print"],
)
@pytest.mark.parametrize("pose", poses(4, seed=11), ids=lambda pose: f"{pose.angle:.0f}")
def test_a_defective_part_lies_as_a_good_one_would(part: U8, pose: Pose) -> None:
    """What is left of a broken part is where it belongs: neither moved to the middle, nor turned, nor refused."""
    _, placement = fit_picture(scene(part, pose, 4), SPEC)
    assert errors(placement, pose, LEVEL) < 2.0


def test_an_opposite_part_is_not_upside_down() -> None:
    """Two parts half a turn apart give the same frame, each the other way round than its picture."""
    one, other = (fit_picture(scene(key(), Pose(angle), 0), SPEC)[0].astype(float) for angle in (30, 210))
    assert 2 * np.abs(one - other).mean() < np.abs(one - other[::-1, ::-1]).mean()


def empty_table() -> U8:
    return scene(np.full((10, 10), 255, np.uint8), Pose(), 9)


def out_of_the_picture() -> U8:
    return scene(key(), Pose(0, (265, 120)), 9)


def something_else() -> U8:
    """A shiny object: brighter than the table, where the part is darker."""
    picture = empty_table() // 2
    picture[110:130, 60:180] = 240
    return picture


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (empty_table(), "no part found"),
        (np.full((240, 240, 3), 128, np.uint8), "no part found"),
        (out_of_the_picture(), "cannot be placed"),
        (something_else(), "cannot be placed"),
    ],
    ids=["empty", "flat", "outside", "other"],
)
def test_what_cannot_be_placed_is_refused(picture: U8, sentence: str) -> None:
    """With a sentence that says what was looked for and what to look at."""
    with pytest.raises(PlacementError, match=sentence) as refused:
        fit_picture(picture, SPEC)
    assert isinstance(refused.value, PictureError) and "look whether" in str(refused.value)


def test_the_same_picture_gives_the_same_frame() -> None:
    """Bit for bit, in whatever order pictures come."""
    pictures = [scene(key(), pose, i) for i, pose in enumerate(poses(3))]
    first = [fit_picture(picture, SPEC)[0] for picture in pictures]
    for picture, frame in reversed(list(zip(pictures, first, strict=True))):
        np.testing.assert_array_equal(fit_picture(picture, SPEC)[0], frame)


@pytest.mark.parametrize("made", ["grey", "16 bit", "alpha", "larger"])
def test_pictures_of_any_kind_are_aligned(made: str) -> None:
    """Grey, 16-bit, with alpha, or of another camera with twice the pixels."""
    pose = Pose(50)
    picture = scene(key(), pose)
    kinds: dict[str, NDArray[np.generic]] = {
        "grey": picture[..., 0],
        "16 bit": picture.astype(np.uint16) * 257,
        "alpha": np.dstack([picture, np.full(picture.shape[:2], 7, np.uint8)]),
        "larger": cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR),
    }
    expected, _ = fit_picture(picture, SPEC)
    frame, placement = fit_picture(kinds[made], SPEC)
    assert np.abs(frame.astype(float) - expected).mean() < 3
    assert placement.picture_wh == kinds[made].shape[1::-1]


def test_several_designs() -> None:
    """Each part goes to the reference that it looks like, the second one too."""
    box = (50, 50, 141, 141)
    designs = [design_of(scene(disc(name), Pose()), box) for name in ("text", "wedges")]
    both = Alignment("rotate", designs, canvas_wh=WH, scale=1.0, bounds=BOUNDS)
    for i, name in enumerate(("text", "wedges")):
        match = both.locate(canvas_of(scene(disc(name), Pose(75), 3), WH)[0])
        assert match.design == i and match.correlation > 0.97
        assert math.degrees(math.atan2(match.turn.imag, match.turn.real)) == pytest.approx(75, abs=1)


def test_references_are_of_one_size() -> None:
    """They share one frame."""
    one = np.zeros((20, 20), np.uint8)
    for designs in ([], [Design(one), Design(one[:10])]):
        with pytest.raises(InputError, match="of the same size"):
            Alignment("rotate", designs, canvas_wh=WH, scale=1.0)


# --- shift -----------------------------------------------------------------------------------------------------------

SHIFTED = FrameSpec(
    112,
    112,
    alignment=Alignment(
        "shift",
        [Design(cv2.cvtColor(scene(key(), Pose()), cv2.COLOR_BGR2GRAY))],
        canvas_wh=WH,
        scale=1.0,
        bounds=BOUNDS,
    ),
)
SHIFTED_MIDDLE = (complex(120, 120) + complex(0.5, 0.5)) * 112 / 240 - complex(0.5, 0.5)
"""Of the picture, in the frame."""


@pytest.mark.parametrize("centre", [(120, 120), (105, 132), (138, 111), (100.4, 120.7)])
def test_a_shift_is_undone(centre: tuple[float, float]) -> None:
    """To a third of a frame's pixel; the frame shows what an unaligned one shows of a part in the middle."""
    pose = Pose(0, centre)
    frame, placement = fit_picture(scene(key(), pose, 3), SHIFTED)
    assert through(placement, *pose.at(10, 0)) == pytest.approx(
        through(placement, *pose.at(0, 0)) + 10 * 112 / 240, abs=1e-6
    )
    assert abs(through(placement, *centre) - SHIFTED_MIDDLE) < 0.34
    plain, _ = fit_picture(scene(key(), Pose()), FrameSpec(112, 112))
    middle = (slice(30, 90), slice(20, 100))
    assert np.abs(frame[middle].astype(float) - plain[middle]).mean() < 5
    assert placement.content == (0, 0, 112, 112)


def test_a_broken_part_is_shifted_as_a_whole_one() -> None:
    """Not until what is left of it lies in the middle."""
    pose = Pose(0, (110, 128))
    _, placement = fit_picture(scene(key(cut=0.3), pose, 3), SHIFTED)
    assert abs(through(placement, *pose.centre) - SHIFTED_MIDDLE) < 0.7


# --- the way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose", poses(5, seed=21), ids=lambda pose: f"{pose.angle:.0f}")
def test_a_hot_spot_lands_on_the_camera_pixels_of_the_defect(pose: Pose) -> None:
    """A heatmap's peak in the frame is found at the part's own place in the picture, and so is a region's offset."""
    _, placement = fit_picture(scene(key(), pose), SPEC)
    for x, y in ((40, 5), (-50, -10)):
        seen = pose.at(x, y)
        spot = through(placement, *seen)
        rows, columns = np.indices((80, 160))
        heatmap = np.exp(-((columns - spot.real) ** 2 + (rows - spot.imag) ** 2) / 4).astype(np.float32)
        camera = placement.heatmap_to_camera(heatmap)
        assert camera.shape == (240, 240)
        at = np.unravel_index(camera.argmax(), camera.shape)
        assert math.dist(seen, at[::-1]) < 1.5


@settings(max_examples=30, deadline=None)
@given(st.floats(-180, 180), st.floats(-0.3, 0.3), st.floats(-0.15, 0.15))
def test_masks_go_there_and_back(angle: float, x: float, y: float) -> None:
    """A mask drawn in camera pixels, seen in the frame and brought back, covers what it covered."""
    pose = Pose(angle)
    _, placement = fit_picture(scene(key(), pose), SPEC)
    cx, cy = pose.at(150 * x, 150 * y)
    mask = np.zeros((240, 240), np.uint8)
    cv2.circle(mask, (round(cx), round(cy)), 9, 255, -1)
    framed = placement.mask_to_frame(mask, (80, 160))
    back = placement.heatmap_to_camera(framed.astype(np.float32)) > 0.5
    truth = mask > 0
    assert (back & truth).sum() / (back | truth).sum() > 0.8


def test_tiny_masks_do_not_vanish() -> None:
    """A single camera pixel is at least one of a frame a fifth its size, where it belongs."""
    pose = Pose(33)
    spec = replace(SPEC, width=32, height=16)
    _, placement = fit_picture(scene(key(), pose), spec)
    mask = np.zeros((240, 240), np.uint8)
    x, y = (round(value) for value in pose.at(30, 4))
    mask[y, x] = 1
    framed = placement.mask_to_frame(mask, (16, 32))
    assert 1 <= framed.sum() <= 4
    expected = through(placement, x, y)
    assert all(abs(complex(column, row) - expected) < 1.5 for row, column in np.argwhere(framed))


def test_a_mask_of_another_size_is_refused() -> None:
    """It would be laid over the wrong pixels."""
    with pytest.raises(PictureError, match="mask is 100x240 pixels"):
        LEVEL.mask_to_frame(np.zeros((240, 100), np.uint8), (80, 160))


def test_the_frame_goes_back_to_the_picture() -> None:
    """Within the part as it was seen; outside the frame with the background's usual colour."""
    picture = scene(key(), Pose(40))
    frame, placement = fit_picture(picture, replace(SPEC, width=336, height=160))
    back = placement.picture_to_camera(frame)
    assert back.shape == picture.shape
    part = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) < 120
    assert np.abs(back[part].astype(float) - picture[part]).mean() < 8
    assert np.ptp(back[:10, -10:].reshape(-1, 3), 0).max() == 0 and 170 < back[0, -1].mean() < 230


def test_a_region_of_interest_is_cut_before() -> None:
    """What lies outside is not looked at, and heatmaps are 0 there."""
    roi = (60, 40, 240, 240)
    picture = np.full((320, 400, 3), 20, np.uint8)
    pose = Pose(80)
    picture[40:280, 60:300] = scene(key(), pose)
    frame, placement = fit_picture(picture, SPEC, roi)
    expected, inner = fit_picture(scene(key(), pose), SPEC)
    np.testing.assert_array_equal(frame, expected)
    assert through(placement, 60, 40) == pytest.approx(through(inner, 0, 0), abs=1e-6)
    camera = placement.heatmap_to_camera(np.ones((80, 160), np.float32))
    inside = camera[40:280, 60:300]
    assert np.count_nonzero(camera) == np.count_nonzero(inside) > 0
    np.testing.assert_allclose(inside, inner.heatmap_to_camera(np.ones((80, 160), np.float32)), atol=1e-4)


def test_unaligned_pictures_know_their_map_too() -> None:
    """The same map as `cv2.resize` and the border make."""
    _, placement = fit_picture(np.zeros((40, 80, 3), np.uint8), FrameSpec(32, 32), (20, 10, 40, 20))
    assert placement.aligned is None
    assert through(placement, 19.5, 9.5) == pytest.approx(complex(-0.5, 7.5))
    assert through(placement, 59.5, 29.5) == pytest.approx(complex(31.5, 23.5))


# --- the canvas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wh", [(512, 512), (640, 480), (550, 380), (224, 224), (2448, 2048), (100, 4000), (61, 47)])
def test_the_canvas_keeps_the_aspect_ratio(wh: tuple[int, int]) -> None:
    """To half a percent, unless a side is very short; it is never larger than the picture nor than 256 pixels."""
    width, height = canvas_wh_for(wh)
    assert max(width, height) <= min(256, max(wh)) and min(width, height) >= 8
    if min(wh) * 20 > max(wh):
        assert width / height == pytest.approx(wh[0] / wh[1], rel=0.005)


def test_a_picture_of_another_aspect_lies_in_the_middle_of_the_canvas() -> None:
    """With its border replicated, and the map says where."""
    picture = np.full((50, 100, 3), 80, np.uint8)
    picture[:, 50:] = 160
    canvas, affine = canvas_of(picture, (64, 64))
    assert canvas.shape == (64, 64) and letterbox((100, 50), (64, 64)) == (0, 16, 64, 32)
    assert (canvas[:, :31] == 80).all() and (canvas[:, 33:] == 160).all()
    assert affine == pytest.approx((0.64, 0, -0.18, 0, 0.64, 15.82))
