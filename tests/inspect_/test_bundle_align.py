"""The alignment in a bundle: its section of the manifest, its references, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.inspect_.bundles import SIDE, manifest_json, packed, png, small_bundle, small_manifest, small_members
from tests.moving_parts import Pose, key, scene

from flawline_inspect.align import Bounds
from flawline_inspect.bundle import Bundle, bundle_bytes
from flawline_inspect.bundle_command import show
from flawline_inspect.errors import BundleError

REFERENCE = "align/reference_0.png"
PICTURE = scene(key(), Pose())[60:180, 20:220, 1]


def section(**changes: Any) -> dict[str, Any]:
    placing = {
        "canvas_wh": (240, 240),
        "scale": 1.25,
        "scales": (0.75, 1.5),
        "bounds": {"correlation": 0.3, "doubt": 0.9, "contrast": 30.0, "inside": 0.5},
        "references": [{"member": REFERENCE, "centre": (-2.5, 1.0), "area": 4100.0}],
        **changes,
    }
    return {"kind": "rotate", "disagreement": {"none": 0.4, "rotate": 0.05}, "placing": placing}


def manifest(align: dict[str, Any] | None) -> dict[str, Any]:
    return small_manifest(frame={**small_manifest()["frame"], "align": align})


def aligned(align: dict[str, Any] | None = None, picture: np.ndarray = PICTURE) -> bytes:
    return bundle_bytes(manifest(align or section()), {**small_members(), REFERENCE: png(picture)})


def test_the_alignment_comes_back_as_it_was_packed() -> None:
    """References without loss, and every figure."""
    alignment = Bundle(aligned(), "part.flawline").frame.alignment
    assert alignment is not None
    assert (alignment.kind, alignment.canvas_wh, alignment.scale) == ("rotate", (240, 240), 1.25)
    assert alignment.motion.scales == (0.75, 1.5) and alignment.bounds == Bounds(0.3, 0.9, 30.0, 0.5)
    np.testing.assert_array_equal(alignment.designs[0].reference, PICTURE)
    assert (alignment.designs[0].centre, alignment.designs[0].area) == (complex(-2.5, 1.0), 4100.0)


def test_a_bundle_of_before_there_was_alignment() -> None:
    """Has none, and is read as ever."""
    frame = {name: value for name, value in small_manifest()["frame"].items() if name != "align"}
    assert Bundle(small_bundle(frame=frame), "old.flawline").frame.alignment is None


def test_none_was_chosen() -> None:
    """The figures that it was chosen by are kept."""
    bundle = Bundle(bundle_bytes(manifest({"kind": "none", "disagreement": {"none": 0.01}}), small_members()), "x")
    assert bundle.frame.alignment is None
    assert bundle.manifest.frame.align is not None and bundle.manifest.frame.align.disagreement == {"none": 0.01}


REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "no placing": lambda: {"kind": "shift"},
    "placing of none": lambda: {**section(), "kind": "none"},
    "unknown kind": lambda: {**section(), "kind": "perspective"},
    "huge canvas": lambda: section(canvas_wh=(100_000, 100_000)),
    "no scale": lambda: section(scale=0.0),
    "no references": lambda: section(references=[]),
    "too many references": lambda: section(references=section()["placing"]["references"] * 9),
    "sizes the wrong way round": lambda: section(scales=(1.5, 0.75)),
    "impossible bound": lambda: section(bounds={"correlation": 2.0, "doubt": 0.9, "contrast": 30.0, "inside": 0.5}),
    "unknown key": lambda: section(angle=3),
}


@pytest.mark.parametrize("damage", list(REFUSED))
def test_a_section_that_contradicts_itself_is_refused(damage: str) -> None:
    """With a sentence that says where."""
    members = {**small_members(), REFERENCE: png(PICTURE)}
    frame = {**small_manifest()["frame"], "align": REFUSED[damage]()}
    with pytest.raises(BundleError, match=r"manifest\.json is not valid at frame\.align"):
        Bundle(packed(members, manifest_json(members, frame=frame)), "part.flawline")


def test_a_missing_reference_is_named() -> None:
    """The manifest speaks of it, and it is not there."""
    with pytest.raises(BundleError, match=r"member align/reference_0\.png is missing"):
        Bundle(bundle_bytes(manifest(section()), small_members()), "part.flawline")


@pytest.mark.parametrize(
    "picture", [np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint16), np.zeros((4, 30), np.uint8)]
)
def test_a_reference_is_a_grey_picture(picture: np.ndarray) -> None:
    """Of 8 bits, neither tiny nor huge."""
    with pytest.raises(BundleError, match="expected an 8-bit grey picture"):
        Bundle(aligned(picture=picture), "part.flawline")


def test_references_differ_in_content_not_in_size() -> None:
    """They share one frame."""
    two = section(references=[{"member": f"align/reference_{i}.png", "centre": (0, 0), "area": 1} for i in (0, 1)])
    members = {**small_members(), REFERENCE: png(PICTURE), "align/reference_1.png": png(PICTURE[:60])}
    with pytest.raises(BundleError, match="differ in size"):
        Bundle(bundle_bytes(manifest(two), members), "part.flawline")


def test_show_tells_of_the_alignment(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its kind, the parts' sizes, the bound, and the figures."""
    path = tmp_path / "part.flawline"
    path.write_bytes(aligned())
    show(path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "rotate to 1 reference, 0.75 to 1.50 times its size; not placed below a correlation of 0.30" in shown
    assert "none 0.400, rotate 0.050" in shown and f"{SIDE} x {SIDE} px" in shown
