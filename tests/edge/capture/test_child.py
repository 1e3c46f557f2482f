"""The capture process by itself: light, and its task is what the configuration says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flawline_edge.cameras import open_camera
from flawline_edge.cameras.simulated import SimulatedCamera
from flawline_edge.cameras.stream import StreamCamera
from flawline_edge.capture.task import CaptureTask, task_of
from flawline_inspect.config import CameraConfig, DeviceSource, FolderSource, SimulatedSource, StreamSource

_HEAVY = {
    "onnxruntime",
    "openvino",
    "torch",
    "paho",
    "tensorrt",
    "pycuda",
    "rich",
    "cyclopts",
    "amqtt",
    "multiprocessing",
}


def test_the_process_imports_nothing_heavy() -> None:
    """It starts again whenever a camera hangs: no engine, no broker, no command line."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; import flawline_edge.capture.child, flawline_edge.cameras.stream, json; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert _HEAVY & set(json.loads(done.stdout)) == set()


@pytest.mark.parametrize(
    ("source", "open_s", "read_s"),
    [
        (DeviceSource(kind="device", device="/dev/video7", open_timeout_s=4, read_timeout_s=2), 4, 2),
        (StreamSource(kind="stream", url="rtsp://joe:pw@cam/1", open_timeout_s=1.5, read_timeout_s=2.5), 1.5, 2.5),
        (SimulatedSource(kind="simulated", fps=0.1), 30, 40),
    ],
    ids=["device", "stream", "simulated"],
)
def test_the_task_of_a_camera(source: DeviceSource | StreamSource, open_s: float, read_s: float) -> None:
    """Its own time-outs, which for a simulated part include the wait for it; nothing is lost on the way as JSON."""
    task = task_of(CameraConfig(name="top", source=source, frozen_after_s=1.5))
    assert (task.name, task.open_timeout_s, task.read_timeout_s, task.frozen_after_s) == ("top", open_s, read_s, 1.5)
    arrived = CaptureTask.from_json(task.to_json())
    assert arrived == task
    camera, expected = arrived.open(), open_camera(source)
    assert type(camera) is type(expected)
    if isinstance(camera, StreamCamera):
        assert camera._url == "rtsp://joe:pw@cam/1"  # a dump of the configuration would have masked it
    if isinstance(camera, SimulatedCamera):
        assert camera._fps == 0.1


def test_a_source_that_loses_no_picture_has_no_process() -> None:
    """It is read where it is inspected."""
    camera = CameraConfig(name="top", source=FolderSource(kind="folder", path=Path("pictures")))
    with pytest.raises(ValueError, match="loses no picture"):
        task_of(camera)
