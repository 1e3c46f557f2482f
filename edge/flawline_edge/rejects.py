"""Pictures of what was rejected: a folder that people look through. Never in the way of a verdict."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_edge.station import Inspection
from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.frame import FrameSpec
from flawline_inspect.overlay import heatmap_overlay, to_display
from flawline_inspect.verdict import Result

__all__ = ["RejectWriter"]

_log = logging.getLogger(__name__)

_WAITING = 32
_GOODBYE_S = 5.0


class RejectWriter:
    """An observer: for each NotOK part `SEQ_PART_picture.png`, `_heatmap.png` and `_expected.png` in `folder`.

    A context manager around one thread with a queue of 32; when the disk cannot keep up, pictures are left out and
    counted, not verdicts.
    """

    def __init__(self, folder: Path, spec: FrameSpec, threshold: float) -> None:
        self.folder = folder
        self.written = 0
        self.left_out = 0
        self._spec, self._threshold = spec, threshold
        self._waiting: queue.Queue[Inspection | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="rejects", daemon=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"{folder}: the folder for rejected parts cannot be made ({exc.strerror})") from exc

    def __enter__(self) -> RejectWriter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._waiting.put(None, timeout=_GOODBYE_S)
        except queue.Full:
            _log.warning("%s: the disk does not answer; pictures of rejected parts are lost", self.folder)
            return
        self._thread.join(_GOODBYE_S)

    def __call__(self, inspection: Inspection) -> None:
        if inspection.verdict.result is not Result.NOT_OK or inspection.judgement is None or inspection.frame is None:
            return
        try:
            self._waiting.put_nowait(inspection)
        except queue.Full:
            self.left_out += 1

    def _write_all(self) -> None:
        while (inspection := self._waiting.get()) is not None:
            try:
                self._write(inspection)
            except OSError as exc:
                self.left_out += 1
                _log.warning("%s: the pictures of a rejected part cannot be written (%s)", self.folder, exc)

    def _write(self, inspection: Inspection) -> None:
        frame, judgement = inspection.frame, inspection.judgement
        assert frame is not None and judgement is not None
        placement = judgement.placement
        x, y, w, h = placement.roi
        seen = to_display(frame.picture, self._spec, placement)
        heat = placement.heatmap_to_camera(judgement.heatmap)[y : y + h, x : x + w]
        stem = "_".join(filter(None, (f"{inspection.verdict.seq:06d}", inspection.verdict.part.replace(":", "-"))))
        pictures: dict[str, NDArray[np.uint8]] = {
            "picture": seen,
            "heatmap": heatmap_overlay(seen, heat, self._threshold),
            "expected": placement.picture_to_camera(judgement.expected),
        }
        for name, picture in pictures.items():
            done, data = cv2.imencode(".png", picture)
            assert done
            write_atomic(self.folder / f"{stem}_{name}.png", data.tobytes())
        self.written += 1
