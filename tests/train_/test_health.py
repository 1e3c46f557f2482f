"""What is learnt of good pictures' health: good and defective parts are judged, damaged pictures are not, few pictures widen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.train_.parts import part, write

from flawline_inspect.bundle import HealthSection
from flawline_inspect.errors import HealthError
from flawline_inspect.frame import FrameSpec, Placement, Roi, fit_picture, read_picture
from flawline_inspect.health import Health
from flawline_train.health import learn_health
from flawline_train.pictures import GoodPictures, PictureFile, load_good_pictures

U8 = NDArray[np.uint8]
WH = (96, 64)


def good_part(seed: int, wh: tuple[int, int] = WH) -> U8:
    """The plate with its block, a print of its own, and light that varies by a few percent."""
    rng = np.random.default_rng(seed)
    picture = part(seed, wh).astype(np.float32)
    x, y = wh[0] // 2 + int(rng.integers(-2, 3)), wh[1] // 2
    for bar in range(-12, 13, 6):
        picture[y - 6 : y + 6, x + bar : x + bar + 3] = (20, 20, 60)
    return np.clip(np.rint(picture * rng.uniform(0.95, 1.05)), 0, 255).astype(np.uint8)


def load(
    folder: Path, n: int, change: Callable[[U8], NDArray[np.generic]] = lambda picture: picture, roi: Roi | None = None
) -> GoodPictures:
    for seed in range(n):
        write(folder / f"{seed:03d}.png", change(good_part(seed)))
    return load_good_pictures(folder, size=64, roi=roi)


def refused(health: Health, picture: NDArray[np.generic], spec: FrameSpec) -> str:
    """What is wrong with the picture; empty for one that is judged."""
    try:
        health.check(*fit_picture(picture, spec))
    except HealthError as exc:
        return str(exc)
    return ""


KINDS: dict[str, Callable[[U8], NDArray[np.generic]]] = {
    "colour": lambda picture: picture,
    "grey": lambda picture: np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)),
    "16 bit": lambda picture: picture.astype(np.uint16) * 257,
    "12 of 16 bit": lambda picture: picture.astype(np.uint16) * 16,
}
HARMLESS: dict[str, Callable[[U8], U8]] = {
    "as it is": lambda picture: picture,
    "less light": lambda picture: (picture * 0.85).astype(np.uint8),
    "more light": lambda picture: np.clip(picture * 1.15, 0, 255).astype(np.uint8),
    "a hole": lambda picture: _patched(picture, 0),
    "a stain": lambda picture: _patched(picture, 255),
    "a scratch": lambda picture: np.asarray(cv2.line(picture.copy(), (5, 5), (90, 50), (250, 250, 250), 2)),
    "no print": lambda picture: part(3, WH),
}
DAMAGES: dict[str, tuple[Callable[[U8], U8], str]] = {
    "black": (np.zeros_like, "too much black"),
    "white": (lambda picture: np.full_like(picture, 255), "overexposed"),
    "lens cap": (lambda picture: (picture // 16 + 6).astype(np.uint8), "too dark"),
    "defocus": (lambda picture: np.asarray(cv2.GaussianBlur(picture, (0, 0), 10), np.uint8), "out of focus"),
    "torn, black": (lambda picture: _torn(picture, 0), "too much black"),
    "torn, grey": (lambda picture: _torn(picture, 128), "incomplete"),
    "another shape": (lambda picture: picture[:, :64], "too narrow"),
}


def _patched(picture: U8, level: int) -> U8:
    out = picture.copy()
    out[30:45, 40:60] = level
    return out


def _torn(picture: U8, level: int) -> U8:
    out = picture.copy()
    out[len(out) // 2 :] = level
    return out


@pytest.fixture(
    scope="module", params=[(8, "colour"), (40, "colour"), (8, "grey"), (12, "16 bit"), (12, "12 of 16 bit")], ids=str
)
def learnt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Health, FrameSpec, str]:
    n, kind = request.param
    pictures = load(tmp_path_factory.mktemp("good"), n, KINDS[kind])
    found = learn_health(pictures)
    assert not found.notes
    return found.health, pictures.spec, kind


@pytest.mark.parametrize("harmless", list(HARMLESS))
def test_good_and_defective_parts_are_judged(learnt: tuple[Health, FrameSpec, str], harmless: str) -> None:
    """From eight pictures on, of every kind; and in a light that drifts by 15 %."""
    health, spec, kind = learnt
    for seed in range(100, 110):
        assert not refused(health, KINDS[kind](HARMLESS[harmless](good_part(seed))), spec)


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_pictures_are_refused(learnt: tuple[Health, FrameSpec, str], damage: str) -> None:
    """Each for its own reason."""
    health, spec, kind = learnt
    change, sentence = DAMAGES[damage]
    for seed in range(100, 105):
        assert refused(health, KINDS[kind](change(good_part(seed))), spec).startswith(sentence)


def test_the_section_is_what_the_manifest_takes(tmp_path: Path) -> None:
    """Small numbers that JSON can hold; the health comes back from it as it was learnt, to the last digit."""
    found = learn_health(load(tmp_path, 40))
    section = HealthSection.model_validate_json(HealthSection.model_validate(found.section).model_dump_json())
    assert section.model_dump(mode="python")["bounds"].keys() == found.health.bounds.keys()
    for measure, bound in found.health.bounds.items():
        assert (section.bounds[measure].good, section.bounds[measure].allowed) == (bound.good, bound.allowed)
    assert found.health.reference is not None and section.reference is not None
    np.testing.assert_array_equal(np.array(section.reference), found.health.reference.ravel())


def test_fewer_pictures_bound_less(tmp_path: Path) -> None:
    """What eight of them bound lies outside of what forty do, or is not bounded at all."""
    few = learn_health(load(tmp_path / "few", 8)).health.bounds
    many = learn_health(load(tmp_path / "many", 40)).health.bounds
    assert "likeness" in many and "likeness" not in few
    for measure in ("brightness", "contrast", "sharpness"):
        (low, high), (lower, higher) = many[measure].allowed, few[measure].allowed
        assert lower is None or (low is not None and lower < low)
        assert higher is None or (high is not None and higher > high)


def test_parts_that_lie_differently_are_not_compared(tmp_path: Path) -> None:
    """Their mean is like none of them; without a reference the bundle has none to keep."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        picture = np.full((64, 64, 3), 90, np.uint8)
        x, y = (int(v) for v in rng.integers(4, 44, 2))
        picture[y : y + 16, x : x + 16] = 200
        write(tmp_path / f"{seed}.png", np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8))
    health = learn_health(load_good_pictures(tmp_path, size=64)).health
    assert "likeness" not in health.bounds and health.reference is None


def test_a_part_that_is_not_where_it_was_is_unlike(tmp_path: Path) -> None:
    """Where good parts lie alike, a picture of something else is refused."""
    pictures = load(tmp_path, 40)
    health = learn_health(pictures).health
    assert refused(health, 255 - good_part(100), pictures.spec).startswith("unlike any good part")


def test_a_picture_unlike_the_others_is_named(tmp_path: Path) -> None:
    """It is taken for good, as it was given, and widens what is judged; whoever trains is told."""
    write(tmp_path / "night.png", good_part(0) // 4)
    pictures = load(tmp_path, 30)
    found = learn_health(pictures)
    assert any(
        note.startswith("night.png is too dark: mean ") and "look whether it is good" in note for note in found.notes
    )
    assert all("night.png" in note for note in found.notes)
    assert not refused(found.health, good_part(5) // 4, pictures.spec)


def test_a_region_of_interest_belongs_to_a_size(tmp_path: Path) -> None:
    """A camera that was reset gives other pixels in the same region; that is refused before they are looked at."""
    pictures = load(tmp_path, 8, roi=(10, 10, 64, 48))
    health = learn_health(pictures).health
    assert health.picture_whs == (WH,) and health.region == (10, 10, 64, 48)
    assert not refused(health, good_part(100), pictures.spec)
    larger = np.asarray(cv2.resize(good_part(100), (192, 128)), np.uint8)
    assert refused(health, larger, pictures.spec).startswith("of another size: the picture has 192x128 pixels")


def test_many_shapes_are_one_range(tmp_path: Path) -> None:
    """Where pictures come in many shapes, theirs and those a little beyond are judged."""
    for seed in range(20):
        write(tmp_path / f"{seed}.png", good_part(seed, (60 + 4 * seed, 64)))
    pictures = load_good_pictures(tmp_path, size=64)
    assert pictures.spec.stretch
    health = learn_health(pictures).health
    assert not refused(health, good_part(100, (150, 64)), pictures.spec)
    assert refused(health, good_part(100, (640, 64)), pictures.spec).startswith("too wide")


LOOKS = st.tuples(st.floats(0, 255), st.sampled_from((0.0, 1.0, 20.0, 90.0)))
"""Mean and deviation of a picture's grey values."""


@settings(deadline=None, max_examples=20)
@given(looks=st.lists(LOOKS, min_size=8, max_size=12))
def test_every_good_picture_is_judged_by_its_own_bounds(looks: list[tuple[float, float]]) -> None:
    """Whatever they look like, constant, black, white or noise: what is called good is never refused."""
    n, spec, frames = len(looks), FrameSpec(32, 32), []
    for seed, (mean, deviation) in enumerate(looks):
        noise = np.random.default_rng(seed).normal(mean, deviation, (32, 32, 3))
        frames.append(np.clip(np.rint(noise), 0, 255).astype(np.uint8))
    files = tuple(PictureFile(Path(f"{i}.png"), f"{i}.png", "0" * 64, (32, 32)) for i in range(n))
    placement = Placement((32, 32), (0, 0, 32, 32), (0, 0, 32, 32))
    found = learn_health(GoodPictures(np.stack(frames), files, spec, placement, (), _sizes(n)))
    HealthSection.model_validate(found.section)
    for frame in frames:
        found.health.check(frame, placement)


def _sizes(n: int) -> Counter[tuple[int, int]]:
    return Counter({(32, 32): n})


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.needs_data(name))
    for name in ("toy_alien", "elpv_mono_s", "bottle_cap", "screw_512", "magnetic_tile_s")
])  # fmt: skip
def test_real_parts_good_and_defective_are_judged(shared_data: Callable[[str], Path], name: str) -> None:
    """Of five real sets, whose light and sharpness vary as they do, not one test picture is refused."""
    folder = shared_data(name)
    pictures = load_good_pictures(folder / "train" / "good", size=128, align="auto")
    health = learn_health(pictures).health
    wrongly = {
        path.relative_to(folder).as_posix(): why
        for path in sorted((folder / "test").glob("*/*"))
        if (why := refused(health, read_picture(path), pictures.spec))
    }
    assert not wrongly
