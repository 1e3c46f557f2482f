"""What it costs that a camera is captured by a process of its own: `python -m benchmarks.capture [--frames N]`.

For several picture sizes the time from a picture's arrival at the camera's read until the consumer has it, captured in
this process and in one of its own; the time until a camera is open; and that from `kill -9` to the next frame.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

import numpy as np

from flawline_edge.cameras import CameraFrame, NewestFrame
from flawline_edge.cameras.window import FrameWindow
from flawline_edge.capture import CapturedCamera
from flawline_edge.capture.task import CaptureTask
from flawline_inspect.clock import wall_clock

SIZES_WH = ((640, 480), (1280, 960), (2448, 2048), (5472, 3648))
WARM_UP = 20


class PacedCamera:
    """`fps` pictures a second of the given size, in colour; one pixel differs from one to the next."""

    live = True
    interval_s = 0.0

    def __init__(self, width: int, height: int, fps: float) -> None:
        self._shape, self._period_s = (height, width, 3), 1 / fps
        self._number = 0

    def __enter__(self) -> PacedCamera:
        self._picture = np.random.default_rng(0).integers(0, 256, self._shape, np.uint8)
        self._next = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def read(self) -> CameraFrame:
        wall, began = wall_clock(), time.monotonic()
        self._next = max(self._next + self._period_s, began)
        time.sleep(self._next - began)
        self._number += 1
        self._picture[0, 0, 0] = self._number % 256
        return CameraFrame(self._picture, wall, began, f"B{self._number}", arrived_monotonic=time.monotonic())


def hand_over_ms(frames: FrameWindow, count: int) -> np.ndarray:
    """Milliseconds from arrival to having it, of `count` frames."""
    taken = []
    while len(taken) < count + WARM_UP:
        frame = frames.get(5.0)
        if frame is not None:
            taken.append(1e3 * (time.monotonic() - frame.arrived_monotonic))
    return np.array(taken[WARM_UP:])


def restart_s(camera: CapturedCamera) -> float:
    """From `kill -9` of the capture process to the next frame."""
    assert camera.pid is not None
    os.kill(camera.pid, signal.SIGKILL)
    began = time.monotonic()
    while camera.error is None:
        time.sleep(0.001)
    while camera.error is not None:
        camera.get(0.1)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--fps", type=float, default=30.0)
    arguments = parser.parse_args()
    print(
        "picture        MB   in process p50 p99 max   own process p50 p99 max   open s   kill to frame s   child's CPU"
    )
    for width, height in SIZES_WH:
        given = {"width": width, "height": height, "fps": arguments.fps}
        with NewestFrame(PacedCamera(**given)) as newest:
            inside = hand_over_ms(newest, arguments.frames)
        began = time.monotonic()
        task = CaptureTask("bench", "benchmarks.capture:PacedCamera", given, 30.0, 30.0, frozen_after_s=2.0)
        with CapturedCamera(task) as captured:
            open_s = time.monotonic() - began
            wall, cpu = time.monotonic(), cpu_s(captured)
            outside = hand_over_ms(captured, arguments.frames)
            busy = (cpu_s(captured) - cpu) / (time.monotonic() - wall)
            recovery_s = restart_s(captured)
        shown = [
            "  ".join(f"{value:5.2f}" for value in (*np.percentile(ms, [50, 99]), ms.max())) for ms in (inside, outside)
        ]
        print(
            f"{width}×{height:<6} {3 * width * height / 1e6:6.1f}    {shown[0]}       {shown[1]}    "
            f"{open_s:5.2f}    {recovery_s:5.2f}    {busy:.0%}"
        )


def cpu_s(captured: CapturedCamera) -> float:
    """Processor time of the capture process so far."""
    fields = Path(f"/proc/{captured.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
