"""Picture health in a bundle: its section of the manifest, what is refused of it, and who judges by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.inspect_.bundles import (
    SIDE,
    golden_picture,
    manifest_json,
    packed,
    small_bundle,
    small_manifest,
    small_members,
)

from flawline_inspect.bundle import Bundle
from flawline_inspect.bundle_command import show
from flawline_inspect.errors import BundleError, HealthError
from flawline_inspect.health import THUMBNAIL_SIDE, Bound

N = THUMBNAIL_SIDE**2


def section(**changes: Any) -> dict[str, Any]:
    bounds = {
        "brightness": {"good": [81.5, 130.0], "allowed": [51.0, None]},
        "flat": {"good": [0.0, 0.01], "allowed": [None, 0.3]},
        "likeness": {"good": [0.95, 1.0], "allowed": [0.4, None]},
    }
    return {"bounds": bounds, "reference": [i % 256 for i in range(N)], "picture_whs": [[640, 480]], **changes}


def test_health_comes_back_as_it_was_packed() -> None:
    """Every figure, the reference row by row, and the region of interest that sizes belong to."""
    frame = {**small_manifest()["frame"], "roi": [0, 0, SIDE, SIDE]}
    health = Bundle(small_bundle(health=section(), frame=frame), "part.flawline").health
    assert health.bounds == {
        "brightness": Bound((81.5, 130.0), (51.0, None)),
        "flat": Bound((0.0, 0.01), (None, 0.3)),
        "likeness": Bound((0.95, 1.0), (0.4, None)),
    }
    assert health.reference is not None
    np.testing.assert_array_equal(health.reference.ravel(), np.arange(N) % 256)
    assert health.region == (0, 0, SIDE, SIDE) and health.picture_whs == ((640, 480),)


def test_a_bundle_of_before_pictures_were_checked_judges_all() -> None:
    """It has no section, is read as ever, and refuses nothing."""
    old = Bundle(small_bundle(), "old.flawline")
    assert old.manifest.health is None and not old.health.bounds
    frame, placement = old.fit(np.zeros((7, 90, 3), np.uint8))
    assert frame.shape == (SIDE, SIDE, 3) and placement.picture_wh == (90, 7)


def test_fit_is_fit_picture_and_the_check() -> None:
    """The frame where the picture can be judged, a sentence where it cannot."""
    bounds = {"brightness": {"good": [81.0, 130.0], "allowed": [51.0, None]}}
    bundle = Bundle(small_bundle(health={"bounds": bounds}), "part.flawline")
    picture = golden_picture(0, "good")
    np.testing.assert_array_equal(bundle.fit(picture)[0], picture)
    with pytest.raises(HealthError, match="too dark: mean 10, good pictures 81 to 130"):
        bundle.fit(np.full_like(picture, 10))
    bundle.fit(np.vstack([np.full_like(picture, 10), picture]), (0, SIDE, SIDE, SIDE))


REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "unknown measure": lambda: section(bounds={"colour": {"good": [0, 1], "allowed": [0, 1]}}),
    "no limit": lambda: section(bounds={"flat": {"good": [0, 1], "allowed": [None, None]}}, reference=None),
    "likeness without reference": lambda: section(reference=None),
    "reference without likeness": lambda: section(bounds={}),
    "a reference of another size": lambda: section(reference=[0] * (N - 1)),
    "a reference beyond 8 bits": lambda: section(reference=[256] * N),
    "too many sizes": lambda: section(picture_whs=[[1, 1]] * 9),
    "unknown key": lambda: section(angle=3),
}


@pytest.mark.parametrize("damage", list(REFUSED))
def test_a_section_that_contradicts_itself_is_refused(damage: str) -> None:
    """With a sentence that says where."""
    members = small_members()
    with pytest.raises(BundleError, match=r"manifest\.json is not valid at health"):
        Bundle(packed(members, manifest_json(members, health=REFUSED[damage]())), "part.flawline")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_limit_is_a_number(number: str) -> None:
    """None says that there is none; what is not finite would let everything or nothing pass."""
    members = small_members()
    manifest = manifest_json(members, health=section()).replace(b"51.0", number.encode())
    with pytest.raises(BundleError, match=r"manifest\.json is not valid at"):
        Bundle(packed(members, manifest), "part.flawline")


@pytest.mark.parametrize("health", [None, section()], ids=["old", "bounded"])
def test_show_tells_which_pictures_are_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], health: dict[str, Any] | None
) -> None:
    """A measure after the other, with what good pictures have; `not checked` where nothing is known."""
    path = tmp_path / "part.flawline"
    path.write_bytes(small_bundle(health=health))
    show(path)
    shown = " ".join(capsys.readouterr().out.split())
    if health is None:
        assert "health not checked" in shown
    else:
        assert (
            "health brightness at least 51 (good pictures: 82 to 130); flat at most 30% (good pictures: 0% to 1%)"
            in shown
        )
