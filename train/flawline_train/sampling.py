"""Drawing new good parts from a bundle: to see what a model takes a good part to be, before trusting its verdicts."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.frame import fit_picture
from flawline_train.autoencoders.methods import METHODS, network_from_bundle

__all__ = ["draw_parts", "save_sample"]

MOST = 10_000
SHEET = "sheet.png"
GAP = 2
"""White pixels between the pictures of a sheet."""


def draw_parts(bundle: Bundle, number: int, *, seed: int) -> NDArray[np.uint8]:
    """(number, h, w, 3) BGR: the frame's content at the frame's resolution, without the border that pads it.

    Raises `InputError` for a bundle whose method cannot draw, naming those that can, or a number out of range.
    """
    if not 1 <= number <= MOST:
        raise InputError(f"--number is {number}, expected 1 to {MOST} parts")
    name = bundle.manifest.method.name
    if name in METHODS and not METHODS[name].generative:
        able = ", ".join(method for method, described in METHODS.items() if described.generative)
        raise InputError(f"{bundle.source}: its method {name} draws no parts; train with --method and one of {able}")
    network = network_from_bundle(bundle)
    frames = network.sample(number, torch.Generator().manual_seed(seed))  # (n, 3, H, W) in 0-1
    pictures = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    x, y, w, h = _content(bundle)
    return np.ascontiguousarray(pictures[:, y : y + h, x : x + w])


def _content(bundle: Bundle) -> tuple[int, int, int, int]:
    """Where a picture of the training's size comes to lie in the frame: x, y, width, height."""
    width, height = bundle.manifest.frame.picture_wh
    _, placement = fit_picture(np.zeros((height, width, 3), np.uint8), bundle.frame)
    return placement.content


def save_sample(pictures: NDArray[np.uint8], folder: Path) -> Path:
    """Write (n, h, w, 3) BGR as 0000.png and so on, and all of them side by side; returns the sheet's path.

    Raises `InputError` when the folder cannot be made or written.
    """
    sheet = folder / SHEET
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            write_atomic(folder / f"{i:04d}.png", _png(picture))
        write_atomic(sheet, _png(_side_by_side(pictures)))
    except OSError as exc:
        raise InputError(f"{folder}: the pictures cannot be written ({exc.strerror or exc})") from exc
    return sheet


def _png(picture: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", picture)
    assert done
    return data.tobytes()


def _side_by_side(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w, 3) → one picture with about as many rows as columns, white where none is left."""
    n, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet
