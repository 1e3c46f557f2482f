"""`open_camera`: the configuration's kinds become cameras."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawline_edge.cameras import Camera, open_camera
from flawline_edge.cameras.device import DeviceCamera
from flawline_edge.cameras.folder import FolderCamera
from flawline_edge.cameras.simulated import SimulatedCamera
from flawline_edge.cameras.stream import StreamCamera
from flawline_edge.cameras.video import VideoCamera
from flawline_inspect.config import (
    DeviceSource,
    FolderSource,
    SimulatedSource,
    Source,
    StreamSource,
    VideoSource,
)

pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize(
    ("source", "kind", "live", "interval_s"),
    [
        (SimulatedSource(kind="simulated"), SimulatedCamera, True, 0.0),
        (FolderSource(kind="folder", path=Path("/nowhere"), fps=4), FolderCamera, False, 0.25),
        (VideoSource(kind="video", path=Path("/nowhere.mkv"), fps=8), VideoCamera, False, 0.125),
        (DeviceSource(kind="device", device=97), DeviceCamera, True, 0.0),
        (StreamSource(kind="stream", url="rtsp://nowhere.invalid/1"), StreamCamera, True, 0.0),
    ],
    ids=["simulated", "folder", "video", "device", "stream"],
)
def test_each_kind_opens_its_camera(source: Source, kind: type[Camera], live: bool, interval_s: float) -> None:
    """Each kind of source gives its camera; constructing one touches nothing, absent or not."""
    camera = open_camera(source)
    assert type(camera) is kind
    assert camera.live is live
    assert camera.interval_s == interval_s
