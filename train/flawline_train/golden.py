"""Golden pictures: a few good and damaged ones with known scores, for the station's self-test and for parity checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.errors import PlacementError
from flawline_inspect.frame import FrameSpec, fit_picture, read_picture
from flawline_train.corruption import corrupt

__all__ = ["GoldenSet", "choose_golden"]

PER_LABEL = 8
MARGIN = 0.1
"""A golden picture's score keeps this distance from the threshold, so that no engine's rounding can flip it."""
MAX_TRIES = 240
_LOSSLESS_WEBP = 101


@dataclass(frozen=True, slots=True)
class GoldenSet:
    entries: list[dict[str, Any]]
    """`GoldenEntry` each."""
    members: dict[str, bytes]


def choose_golden(
    model: bytes, spec: FrameSpec, threshold: float, paths: Sequence[Path], rng: np.random.Generator
) -> GoldenSet:
    """Choose from `paths`, pictures of good parts in order of preference, and damage some of them.

    Scores are ONNX Runtime's. There may be fewer than 8 of a label when a model separates so badly that none keep
    the distance; the caller says so.
    """
    entries: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    with OnnxRuntimeEngine(model, (spec.height, spec.width)) as engine:
        for label, pictures in (("good", _good(paths)), ("damaged", _damaged(paths, spec.bit_depth, rng))):
            kept = 0
            for raw in pictures:
                try:
                    fitted, _ = fit_picture(raw, spec)
                except PlacementError:  # the damage hides the part
                    continue
                score = float(engine.infer(fitted[None]).scores[0])
                far = score <= threshold * (1 - MARGIN) if label == "good" else score >= threshold * (1 + MARGIN)
                if not far:
                    continue
                stem = f"golden/{label}_{kept:02d}"
                (raw_suffix, raw_data), (suffix, data) = _encode(raw), _encode(fitted)
                names = {"raw": f"{stem}{raw_suffix}", "fitted": f"{stem}.frame{suffix}"}
                members |= {names["raw"]: raw_data, names["fitted"]: data}
                entries.append({**names, "label": label, "score": score})
                kept += 1
                if kept == PER_LABEL:
                    break
    return GoldenSet(entries, members)


def _good(paths: Sequence[Path]) -> Iterator[NDArray[np.generic]]:
    return (read_picture(path) for path in paths)


def _damaged(paths: Sequence[Path], bit_depth: int, rng: np.random.Generator) -> Iterator[NDArray[np.generic]]:
    for i in range(MAX_TRIES):
        raw = read_picture(paths[i % len(paths)])
        full = _full_scale(raw, bit_depth)
        picture = (raw.astype(np.float32) / full).reshape(*raw.shape[:2], -1)
        colour = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture
        damaged, mask = corrupt(colour, colour, rng)
        if not mask.any():
            continue
        channels = damaged[..., : picture.shape[2]].reshape(raw.shape)
        scaled = channels * full
        yield scaled.astype(raw.dtype) if full == 1.0 else np.rint(scaled).clip(0, full).astype(raw.dtype)


def _full_scale(picture: NDArray[np.generic], bit_depth: int) -> float:
    if picture.dtype == np.uint8:
        return 255.0
    return float((1 << bit_depth) - 1) if picture.dtype == np.uint16 else 1.0


def _encode(picture: NDArray[np.generic]) -> tuple[str, bytes]:
    """Suffix and bytes, without loss: WebP for 8-bit colour (a third smaller), TIFF for floats, else PNG."""
    if picture.dtype == np.uint8 and picture.ndim == 3 and max(picture.shape) < 16384:
        suffix, options = ".webp", [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS_WEBP]
    elif np.issubdtype(picture.dtype, np.floating):
        suffix, options = ".tiff", []
    else:
        suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9]
    done, data = cv2.imencode(suffix, np.asarray(picture), options)
    assert done
    return suffix, data.tobytes()
