"""Pictures for a page: WebP in a data address, heatmaps in colours that are tied to the threshold."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.frame import Placement, Roi
from flawline_inspect.overlay import heatmap_overlay
from flawline_train.report.data import Role, Triple, WebP

__all__ = ["map_picture", "thumbnail", "triple", "webp"]

SHOWN_SIDE = 256
THUMBNAIL_SIDE = 56
_QUALITY, _THUMBNAIL_QUALITY = 80, 60
_PERCENTILE = 99.5
"""The map's colours end here: one bright pixel must not leave the rest dark."""


def webp(picture: NDArray[np.uint8], side: int = SHOWN_SIDE, quality: int = _QUALITY) -> WebP:
    """(h, w, 3) BGR, made smaller where its long side exceeds `side` pixels."""
    h, w = picture.shape[:2]
    scale = side / max(h, w)
    if scale < 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def thumbnail(frame: NDArray[np.uint8], placement: Placement) -> WebP:
    """The picture's content in the frame (H, W, 3), small enough that a page can hold hundreds."""
    return webp(_inside(frame, placement.content), THUMBNAIL_SIDE, _THUMBNAIL_QUALITY)


def triple(
    name: str,
    role: Role,
    kind: str,
    score: float,
    *,
    frame: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    heatmap: NDArray[np.float32],
    placement: Placement,
    threshold: float,
) -> Triple:
    """`frame` and `expected` (H, W, 3) BGR, `heatmap` (H, W) as the graph gives them, without the replicated border."""
    seen = _inside(frame, placement.content)
    shown = np.nan_to_num(_inside(heatmap, placement.content), nan=np.finfo(np.float32).max)
    heat = heatmap_overlay(seen, shown, threshold)
    return Triple(name, role, kind, score, webp(seen), webp(_inside(expected, placement.content)), webp(heat))


def map_picture(values: NDArray[np.floating], placement: Placement) -> WebP:
    """(H, W) from 0 up in the colours of cividis, which read alike with and without colour vision."""
    inside = np.asarray(_inside(values, placement.content), np.float32)
    full = max(float(np.percentile(inside, _PERCENTILE)), 1e-9)
    grey = (np.clip(inside / full, 0, 1) * 255).astype(np.uint8)
    return webp(np.asarray(cv2.applyColorMap(grey, cv2.COLORMAP_CIVIDIS), np.uint8))


def _inside(picture: NDArray[np.generic], content: Roi) -> NDArray:  # type: ignore[type-arg]  # of the same type
    x, y, w, h = content
    return np.ascontiguousarray(picture[y : y + h, x : x + w])
