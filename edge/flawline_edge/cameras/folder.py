"""A folder of pictures as camera: one picture a read, in the order of their paths, none lost."""

from __future__ import annotations

import time
from pathlib import Path

from flawline_edge.cameras.camera import CameraFrame, PictureLost
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError, InputError, PictureError
from flawline_inspect.frame import PICTURE_SUFFIXES, find_pictures, read_picture
from flawline_inspect.verdict import wire_id

__all__ = ["FolderCamera"]

_EXPECTED = f"pictures ({', '.join(sorted(PICTURE_SUFFIXES))})"


class FolderCamera:
    """The pictures of a folder and its subfolders, as they lay there on entering; a part's id is its file's
    stem.

    Hidden files and folders are skipped, and so is what does not have a picture's suffix.
    """

    live = False

    def __init__(self, path: Path, *, fps: float = 10.0, loop: bool = False) -> None:
        self.interval_s = 1 / fps
        self._path = path
        self._loop = loop
        self._pictures: list[Path] = []
        self._next = 0

    def __enter__(self) -> FolderCamera:
        try:
            self._pictures = find_pictures(self._path)
        except InputError as exc:
            raise CameraError(str(exc), exit_code=2) from exc
        self._next = 0
        if not self._pictures:
            raise CameraError(f"{self._path}: no picture in this folder; expected {_EXPECTED}", exit_code=2)
        return self

    def __exit__(self, *exc: object) -> None:
        self._pictures = []

    def read(self) -> CameraFrame | None:
        """The next picture at its own depth, (h, w) or BGR (h, w, 3); None after the last one, unless
        looping.

        Raises `PictureLost` naming the file and its part when it cannot be read; the read after it goes on.
        """
        if not self._pictures:
            raise CameraError(f"{self._path}: the folder is not entered; read it inside its with block")
        if self._next == len(self._pictures):
            if not self._loop:
                return None
            self._next = 0
        path = self._pictures[self._next]
        self._next += 1
        part = wire_id(path.stem)
        captured, captured_monotonic = wall_clock(), time.monotonic()
        try:
            picture = read_picture(path)
        except PictureError as exc:
            raise PictureLost(str(exc), part=part) from exc
        return CameraFrame(picture, captured, captured_monotonic, part)
