"""A small bundle in memory, whole or damaged, for the tests of everything that reads one.

`small_bundle()` is whole; `zipped` packs any members under any names, which `bundle_bytes` would refuse.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.bundle import MANIFEST, MODEL, SCHEMA_VERSION, WEIGHTS, Bundle, bundle_bytes

SIDE = 32
THRESHOLD = 4.0
MODEL_BYTES = b"no graph, but bytes that a graph could have \x00\x08\xff" * 8
WEIGHT_BYTES = bytes(range(256)) * 2


def png(picture: NDArray[np.generic]) -> bytes:
    done, data = cv2.imencode(".png", picture)
    assert done
    return bytes(data)


def golden_picture(index: int, label: str) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3) BGR: grey with one bright square that moves; a damaged one has a black corner."""
    picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
    picture[8 + index : 16 + index, 8:24] = (200, 180, 160)
    if label == "damaged":
        picture[:5, :5] = 0
    return picture


def golden_names(label: str, index: int) -> tuple[str, str]:
    return f"golden/{label}{index}.raw.png", f"golden/{label}{index}.png"


def small_manifest(**changes: Any) -> dict[str, Any]:
    """All that `bundle_bytes` takes; `changes` replaces whole sections."""
    golden = [
        {"raw": raw, "fitted": fitted, "label": label, "score": score}
        for label, score in (("good", 1.5), ("damaged", 9.0))
        for raw, fitted in (golden_names(label, index) for index in range(2))
    ]
    return {
        "name": "bottle",
        "created": "2026-11-20T10:07:33Z",
        "method": {"name": "plain", "parameters": {"depth": 4}},
        "frame": {
            "width": SIDE,
            "height": SIDE,
            "bit_depth": 16,
            "roi": None,
            "picture_wh": [SIDE, SIDE],
            "align": None,
        },
        "calibration": {
            "scores": [1.0, 2.0, 3.0],
            "threshold": THRESHOLD,
            "basis": "log_normal",
            "false_reject_target": 0.01,
            "promised_false_reject_rate": 0.25,
        },
        "data": {"pictures": [{"file": "good/1.png", "sha256": "0" * 64, "role": "train"}]},
        "card": {
            "intended_use": "tests",
            "limits": "knows no real part",
            "data": "drawn",
            "who_may_be_wronged": "nobody",
        },
        "golden": golden,
        "versions": {"flawline": "0.1.0"},
        **changes,
    }


def small_members() -> dict[str, bytes]:
    members = {MODEL: MODEL_BYTES, WEIGHTS: WEIGHT_BYTES}
    for label in ("good", "damaged"):
        for index in range(2):
            picture = png(golden_picture(index, label))
            members.update(dict.fromkeys(golden_names(label, index), picture))
    return members


def small_bundle(**changes: Any) -> bytes:
    """A whole bundle; `changes` replaces sections of its manifest."""
    return bundle_bytes(small_manifest(**changes), small_members())


def with_health(data: bytes, **bounds: tuple[float | None, float | None]) -> bytes:
    """The same bundle, which judges only pictures within `bounds` (what is allowed, by measure)."""
    whole = Bundle(data, "the bundle without bounds")
    manifest = whole.manifest.model_dump(exclude={"schema_version", "members"})
    allowed = {measure: {"good": (81, 130), "allowed": limits} for measure, limits in bounds.items()}
    members = {name: whole.member(name) for name in whole.manifest.members}
    return bundle_bytes({**manifest, "health": {"bounds": allowed}}, members)


def manifest_json(members: Mapping[str, bytes], /, **changes: Any) -> bytes:
    """The bytes of a manifest that lists `members` truthfully and that nothing has checked."""
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in members.items()}
    tree = {"schema_version": SCHEMA_VERSION, "members": listed, **small_manifest(), **changes}
    return json.dumps(tree).encode()


def zipped(members: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these members, in this order, whatever their names; a name may come twice."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        with zipfile.ZipFile(out, "w", compression) as archive:
            for name, data in members:
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.compress_type = compression
                archive.writestr(info, data)
    return out.getvalue()


def packed(members: Mapping[str, bytes], manifest: bytes | None = None) -> bytes:
    """A zip of a manifest and `members`; without `manifest` one that lists them truthfully."""
    return zipped([(MANIFEST, manifest_json(members) if manifest is None else manifest), *members.items()])
