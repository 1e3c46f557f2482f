"""`python -m tests.faults.station CONFIG CONTROL`: `flawline run` on cameras, an engine and a wall clock that can be broken.

In the folder CONTROL the files `top` and `side` say how the camera of that name is broken, `engine` and `clock` how those
are. The rest is the product as it is.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from tests.faults.camera import read_mode

from flawline_edge import inspector as inspector_module
from flawline_edge.capture import CapturedCamera
from flawline_edge.capture.task import CaptureTask
from flawline_edge.run_command import run
from flawline_engines import open_engine
from flawline_engines.engine import Inference
from flawline_inspect import clock
from flawline_inspect.config import CameraConfig

FPS = 40.0
READ_TIMEOUT_S = 0.5
FROZEN_AFTER_S = 0.3
POLL_S = 0.01


class BreakableEngine:
    """The engine that it stands before, unless its file says raise, hang, nan or slow."""

    def __init__(self, engine: Any, mode: Path) -> None:
        self._engine, self._mode = engine, mode

    def __enter__(self) -> BreakableEngine:
        self._engine = self._engine.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._engine.__exit__(*exc)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        mode = read_mode(self._mode)
        if mode == "raise":
            raise RuntimeError("illegal memory access")
        if mode == "slow":
            time.sleep(SLOW_S)
        while mode == "hang" and read_mode(self._mode) == "hang":
            time.sleep(POLL_S)
        found: Inference = self._engine.infer(frames)
        if mode == "nan":
            return Inference(np.full_like(found.scores, np.nan), found.heatmaps, found.expected)
        return found


SLOW_S = 0.05
"""What makes the capacity of a camera 20 parts a second at most."""


def main(config: Path, control: Path) -> int:
    def capture_of(camera: CameraConfig) -> CapturedCamera:
        arguments = {"mode": str(control / camera.name), "fps": FPS}
        return CapturedCamera(
            CaptureTask(camera.name, "tests.faults.camera:LineCamera", arguments, 10.0, READ_TIMEOUT_S, FROZEN_AFTER_S)
        )

    def breakable(*arguments: Any, **options: Any) -> BreakableEngine:
        return BreakableEngine(open_engine(*arguments, **options), control / "engine")

    source = SimpleNamespace(
        time=lambda: datetime.now(timezone.utc).timestamp() + float(read_mode(control / "clock") or 0)
    )
    with (
        patch.object(clock, "time", source),  # where it is read: everybody has imported the function already
        patch.object(CapturedCamera, "of", capture_of),
        patch.object(inspector_module, "open_engine", breakable),
    ):
        return run(config=config)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
