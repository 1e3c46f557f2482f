"""From a camera picture to the model's frame, and the way back.

Training, calibration, `flawline check` and the line all call `fit_picture`: what the network sees is made in one place.
The order is: region of interest, 8-bit BGR, resize with the aspect ratio kept, replicate the border up to the frame. Where
parts come in many shapes, the resize fills the frame. Where they move (`flawline_inspect.align`), one warp brings the part
to the reference's pose and the frame's size instead.

Resizing is OpenCV's INTER_AREA on the CPU and not part of the graph: TensorRT has no antialiased Resize, and
downsizing without antialiasing turns fine texture into noise that looks like defects.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.affine import Affine, composed, inverted, resizing, warp
from flawline_inspect.align import Alignment, letterbox
from flawline_inspect.errors import InputError, PictureError

__all__ = [
    "FRAME_MULTIPLE",
    "PICTURE_SUFFIXES",
    "FrameSpec",
    "Placement",
    "Roi",
    "bgr_8_bit",
    "find_pictures",
    "fit_picture",
    "frame_for",
    "read_picture",
]

FRAME_MULTIPLE = 16
"""Height and width of a frame are multiples of this: the autoencoder halves them four times."""

PICTURE_SUFFIXES = frozenset(
    {
        ".bmp",
        ".dib",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)

Roi = tuple[int, int, int, int]
"""Region of interest in camera pixels: x, y, width, height."""

FULL_DEPTH = 16

_Value = TypeVar("_Value", np.uint8, np.float32)


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """The model's frame: what every picture is brought to before the graph.

    `bit_depth` is how many bits 16-bit pictures really use (8 to 16): a 12-bit camera writes 16-bit files whose upper
    four bits are always 0. It says nothing about 8-bit pictures. `stretch`: pictures fill the frame whatever their
    aspect ratio, for parts that come in many; else the ratio is kept and the rest is border.
    """

    width: int
    height: int
    bit_depth: int = FULL_DEPTH
    roi: Roi | None = None
    alignment: Alignment | None = None
    stretch: bool = False

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if value < FRAME_MULTIPLE or value % FRAME_MULTIPLE:
                raise InputError(
                    f"frame {name} is {value}, expected a multiple of {FRAME_MULTIPLE} from {FRAME_MULTIPLE} up"
                )
        if not 8 <= self.bit_depth <= FULL_DEPTH:
            raise InputError(f"frame bit_depth is {self.bit_depth}, expected 8 to 16")
        if self.stretch and self.alignment is not None:
            raise InputError("a frame either stretches pictures or aligns parts, not both")

    def content_of(self, wh: tuple[int, int]) -> Roi:
        """Which part of the frame a region of interest of this width and height fills; the rest is replicated border."""
        # What is stretched fills it, and what turns has no fixed edges; what is only shifted keeps those of the usual picture.
        if self.stretch or (self.alignment is not None and self.alignment.motion.turns):
            return 0, 0, self.width, self.height
        return letterbox(wh, (self.width, self.height))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture came to lie in the frame; the way back to camera pixels."""

    picture_wh: tuple[int, int]
    roi: Roi
    content: Roi
    """The part of the frame that holds the picture, in frame pixels; the rest is replicated border."""
    aligned: Affine | None = None
    """From camera pixels to the frame's where the part was aligned; None where the picture was only resized."""

    @property
    def to_frame(self) -> Affine:
        """The map from camera pixels to the frame's."""
        if self.aligned is not None:
            return self.aligned
        (x, y, *roi_wh), (left, top, *content_wh) = self.roi, self.content
        return composed(
            resizing((roi_wh[0], roi_wh[1]), (content_wh[0], content_wh[1]), left, top), (1, 0, -x, 0, 1, -y)
        )

    def heatmap_to_camera(self, heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) in the frame → (picture height, picture width); 0 outside the region of interest and the frame."""
        x, y, w, h = self.content
        roi_x, roi_y, roi_w, roi_h = self.roi
        width, height = self.picture_wh
        out = np.zeros((height, width), np.float32)
        if self.aligned is not None:
            out[roi_y : roi_y + roi_h, roi_x : roi_x + roi_w] = warp(
                np.asarray(heatmap, np.float32), self._to_region(), (roi_w, roi_h), border=cv2.BORDER_CONSTANT
            )
            return out
        out[roi_y : roi_y + roi_h, roi_x : roi_x + roi_w] = cv2.resize(
            np.ascontiguousarray(heatmap[y : y + h, x : x + w], np.float32),
            (roi_w, roi_h),
            interpolation=cv2.INTER_LINEAR,
        )
        return out

    def picture_to_camera(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) in the frame, such as `expected` → the region of interest's size, (roi height, roi width, 3).

        What lies outside an aligned frame, which shows the part alone, gets the usual colour of the frame's border.
        """
        x, y, w, h = self.content
        _, _, roi_w, roi_h = self.roi
        if self.aligned is not None:
            rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
            background = tuple(float(channel) for channel in np.median(rim, 0))
            aligned = warp(frame, self._to_region(), (roi_w, roi_h), border=cv2.BORDER_CONSTANT, value=background)
            return np.asarray(aligned, np.uint8)
        crop = np.ascontiguousarray(frame[y : y + h, x : x + w])
        return cv2.resize(crop, (roi_w, roi_h), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)

    def mask_to_frame(self, mask: NDArray[np.uint8], frame_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """A mask in camera pixels (picture height, picture width), 0 = background → (H, W) of 0 and 1 in the frame."""
        if mask.shape[:2] != (self.picture_wh[1], self.picture_wh[0]):
            found = f"{mask.shape[1]}x{mask.shape[0]}"
            raise PictureError(f"mask is {found} pixels, its picture {self.picture_wh[0]}x{self.picture_wh[1]}")
        roi_x, roi_y, roi_w, roi_h = self.roi
        x, y, w, h = self.content
        binary = (mask[roi_y : roi_y + roi_h, roi_x : roi_x + roi_w] > 0).astype(np.float32)
        # Averaged and cut at one half, so that an object keeps its area; tiny ones would vanish, so their peak stays.
        if self.aligned is not None:
            to_frame = inverted(self._to_region())
            small = warp(binary, to_frame, (frame_hw[1], frame_hw[0]), border=cv2.BORDER_CONSTANT)[y : y + h, x : x + w]
        else:
            small = _resized(binary, (w, h), growing=cv2.INTER_AREA)
        keep = small >= min(0.5, float(small.max())) if small.max() > 0 else small > 0
        out = np.zeros(frame_hw, np.uint8)
        out[y : y + h, x : x + w] = keep
        return out

    def _to_region(self) -> Affine:
        """From the frame to the region of interest's own pixels."""
        return composed((1, 0, -self.roi[0], 0, 1, -self.roi[1]), inverted(self.to_frame))


def frame_for(
    picture_wh: tuple[int, int], size: int, *, bit_depth: int = FULL_DEPTH, roi: Roi | None = None
) -> FrameSpec:
    """The frame whose long side is `size` and whose aspect ratio is that of `picture_wh` (or of `roi`), rounded up."""
    width, height = (roi[2], roi[3]) if roi else picture_wh
    if size < 2 * FRAME_MULTIPLE or size % FRAME_MULTIPLE:
        near = max(2 * FRAME_MULTIPLE, round(size / FRAME_MULTIPLE) * FRAME_MULTIPLE)
        raise InputError(f"--size is {size}, expected a multiple of {FRAME_MULTIPLE} from 32 up, such as {near}")
    short = size * min(width, height) / max(width, height)
    short = max(FRAME_MULTIPLE, -(-round(short, 3) // FRAME_MULTIPLE) * FRAME_MULTIPLE)
    frame_w, frame_h = (size, int(short)) if width >= height else (int(short), size)
    return FrameSpec(frame_w, frame_h, bit_depth, roi)


def fit_picture(
    picture: NDArray[np.generic], spec: FrameSpec, roi: Roi | None = None
) -> tuple[NDArray[np.uint8], Placement]:
    """Bring a camera picture to the model's frame.

    `picture`: (h, w), (h, w, 1), BGR (h, w, 3) or BGRA (h, w, 4); uint8, uint16 (`spec.bit_depth` bits used) or
    float in 0–1. `roi` overrides the frame's own. Returns the frame, (H, W, 3) BGR uint8, and its `Placement`.
    Raises `PictureError` for other shapes and types and for a region of interest that leaves the picture, and where
    parts are aligned its subclass `PlacementError` for a picture in which the part is not found.
    """
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 3, 4)) or 0 in picture.shape:
        raise PictureError(f"picture has shape {picture.shape}, expected (h, w), (h, w, 3) BGR or (h, w, 4) BGRA")
    height, width = picture.shape[:2]
    roi = roi or spec.roi or (0, 0, width, height)
    x, y, w, h = roi
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise PictureError(f"region of interest {list(roi)} (x, y, width, height) leaves the {width}x{height} picture")
    bgr = bgr_8_bit(picture[y : y + h, x : x + w], spec.bit_depth)

    frame_wh, content = (spec.width, spec.height), spec.content_of((w, h))
    if spec.alignment is not None:
        to_frame = spec.alignment.place(bgr, frame_wh)
        aligned = composed(to_frame, (1, 0, -x, 0, 1, -y))
        frame = warp(bgr, to_frame, frame_wh)
        return frame, Placement((width, height), roi, content, aligned)

    left, top, content_w, content_h = content
    bgr = _resized(bgr, (content_w, content_h))
    right, bottom = spec.width - content_w - left, spec.height - content_h - top
    if left or top or right or bottom:
        bgr = np.asarray(cv2.copyMakeBorder(bgr, top, bottom, left, right, cv2.BORDER_REPLICATE), np.uint8)
    placement = Placement((width, height), (x, y, w, h), content)
    return np.ascontiguousarray(bgr, np.uint8), placement


def _resized(picture: NDArray[_Value], wh: tuple[int, int], growing: int = cv2.INTER_LINEAR) -> NDArray[_Value]:
    """(h, w) or (h, w, C) → the same of size `wh`: averaged where it shrinks, by `growing` where it grows.

    One after the other where one side shrinks and the other grows: INTER_AREA averages only if both shrink, and would
    leave out pixels.
    """
    height, width = picture.shape[:2]
    shrunk = (min(wh[0], width), min(wh[1], height))
    # By exact halves as far as they go: OpenCV averages those several times as fast as fractions of pixels.
    while width % 2 == height % 2 == 0 and width >= 2 * shrunk[0] and height >= 2 * shrunk[1]:
        width, height = width // 2, height // 2
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(picture.dtype, copy=False)
    if shrunk != (width, height):
        picture = cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA).astype(picture.dtype, copy=False)
    if shrunk != wh:
        picture = cv2.resize(picture, wh, interpolation=growing).astype(picture.dtype, copy=False)
    return picture


def bgr_8_bit(picture: NDArray[np.generic], bit_depth: int) -> NDArray[np.uint8]:
    """(h, w), (h, w, 1), (h, w, 3) or (h, w, 4), uint8, uint16 or float in 0-1 → BGR uint8 (h, w, 3), not resized."""
    return _to_bgr(_to_8_bit(picture, bit_depth))


def _to_8_bit(picture: NDArray[np.generic], bit_depth: int) -> NDArray[np.uint8]:
    if picture.dtype == np.uint8:
        return picture.astype(np.uint8, copy=False)
    if picture.dtype == np.bool_:
        return picture.astype(np.uint8) * np.uint8(255)
    if picture.dtype == np.uint16:
        # A fixed scale, not one taken from the picture: brightness is part of what good looks like.
        full = float((1 << bit_depth) - 1)
        return np.asarray(cv2.convertScaleAbs(picture.astype(np.uint16), alpha=255.0 / full), np.uint8)
    if np.issubdtype(picture.dtype, np.floating):
        values = picture.astype(np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise PictureError("picture has floating-point values outside 0–1; convert it to 8 or 16 bit first")
        return np.rint(values * 255).astype(np.uint8)
    raise PictureError(f"picture has type {picture.dtype}, expected uint8, uint16 or float in 0–1")


def _to_bgr(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if picture.ndim == 2 or picture.shape[2] == 1:
        return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
    # An alpha channel says nothing about the part: a camera has none, and a drawing program fills it with 255.
    return np.ascontiguousarray(picture[..., :3])


def find_pictures(folder: Path) -> list[Path]:
    """Every picture below `folder`, by suffix, sorted by path; hidden files and folders are left out.

    Raises `InputError` when it, or a folder in it, is missing or may not be listed.
    """
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {state}; give a folder of pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")

    def refuse(error: OSError) -> None:
        # os.walk would leave out what it may not list, and pictures would be missing without a word.
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += (path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(found)


def read_picture(path: Path) -> NDArray[np.generic]:
    """Read a picture file at its own depth: (h, w) or BGR (h, w, 3), uint8, uint16 or float32; EXIF rotation applied.

    Raises `PictureError` naming the file when it is missing, empty, cut off or not a picture. OpenCV fills what a
    truncated file lacks with grey or black and says nothing; such a picture would be judged, or worse, learnt.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise PictureError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if not data:
        raise PictureError(f"{path}: the file is empty")
    if _is_truncated(data):
        raise PictureError(f"{path}: the picture is truncated; copy it again")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error as exc:
        raise PictureError(f"{path}: OpenCV cannot decode it ({str(exc).strip().splitlines()[-1]})") from exc
    if picture is None:
        raise PictureError(f"{path}: not a picture that OpenCV can read")
    return picture


def _is_truncated(data: bytes) -> bool:
    """Whether a PNG lacks its IEND chunk or a JPEG its end marker (both may be followed by padding)."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND\xaeB`\x82" not in data[-4096:]
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in data[-4096:]
    return False
