"""The camera at this machine; a stand-in for OpenCV's capture plays the driver."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge.cameras.device import DeviceCamera
from flawline_inspect.errors import CameraError

pytestmark = [
    pytest.mark.timeout(20),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Video4Linux is Linux's"),
]

_TIMEOUT = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"


class _Driver:
    """`cv2.VideoCapture` for a test: gives `pictures` pictures per opening, then False for ever."""

    def __init__(self, pictures: int = 2, *, opens: bool = True, width: float = 640) -> None:
        self.pictures, self.opens, self.width = pictures, opens, width
        self.openings: list[tuple[int | str, int]] = []
        self.asked: list[tuple[int, float]] = []
        self.timeout_at_opening = ""
        self.left = self.released = 0

    def __call__(self, device: int | str, backend: int) -> _Driver:
        self.openings.append((device, backend))
        self.timeout_at_opening = os.environ.get(_TIMEOUT, "")
        self.left = self.pictures
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def get(self, propId: int, /) -> float:
        return self.width if propId == cv2.CAP_PROP_FRAME_WIDTH else 480

    def set(self, propId: int, value: float, /) -> bool:
        self.asked.append((propId, value))
        return True

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        self.left -= 1
        return self.left >= 0, np.zeros((4, 6, 3), np.uint8)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def node(tmp_path: Path) -> str:
    path = tmp_path / "video0"
    path.touch()
    return str(path)


@pytest.mark.parametrize(("device", "name"), [(97, "/dev/video97"), ("97", "/dev/video97"), ("/dev/cam", "/dev/cam")])
def test_an_absent_camera_is_named_with_those_found(device: int | str, name: str) -> None:
    """No camera there: exit code 2, the device's name, and which devices there are."""
    with pytest.raises(CameraError, match=rf"^{name}: no camera there; found .*/dev/video") as caught:
        DeviceCamera(device).__enter__()
    assert caught.value.exit_code == 2


def test_what_is_no_camera_is_refused(node: str) -> None:
    """A path that exists but is no camera does not open, with OpenCV itself: exit code 2."""
    with pytest.raises(CameraError, match="cannot be opened as a camera") as caught:
        DeviceCamera(node).__enter__()
    assert caught.value.exit_code == 2


def test_it_asks_the_driver(node: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One buffer, size and rate are asked for before the first read, the timeout is set before opening.

    What the driver does not give is logged.
    """
    monkeypatch.delenv(_TIMEOUT, raising=False)
    driver = _Driver(width=800)
    camera = DeviceCamera(node, width=640, height=480, open_capture=driver)
    with caplog.at_level(logging.WARNING), camera:
        frame = camera.read()
    assert frame.picture.shape == (4, 6, 3)
    assert driver.openings == [(node, cv2.CAP_V4L2)]
    assert driver.timeout_at_opening == "3"
    assert driver.asked == [
        (cv2.CAP_PROP_BUFFERSIZE, 1),
        (cv2.CAP_PROP_FRAME_WIDTH, 640),
        (cv2.CAP_PROP_FRAME_HEIGHT, 480),
    ]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "asked for width 640, the driver gives 800"
    ]
    assert driver.released == 1
    monkeypatch.delenv(_TIMEOUT, raising=False)


def test_a_timeout_of_the_machines_own_is_left_alone(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sets the variable has a reason."""
    monkeypatch.setenv(_TIMEOUT, "7")
    driver = _Driver()
    with DeviceCamera(node, open_capture=driver):
        assert driver.timeout_at_opening == "7"


def test_a_lost_camera_is_opened_again(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed read is an error and releases the device; the next one opens it anew."""
    monkeypatch.setenv(_TIMEOUT, "3")
    driver = _Driver(pictures=2)
    with DeviceCamera(node, open_capture=driver) as camera:
        camera.read()
        camera.read()
        with pytest.raises(CameraError, match="gave no picture") as caught:
            camera.read()
        assert caught.value.exit_code == 1
        assert driver.released == 1
        camera.read()
        assert len(driver.openings) == 2
        camera.read()
        with pytest.raises(CameraError, match="gave no picture"):
            camera.read()
        Path(node).unlink()
        with pytest.raises(CameraError, match="no camera there") as caught:
            camera.read()
        assert caught.value.exit_code == 1
        Path(node).touch()
        camera.read()


def test_a_picture_that_took_the_whole_timeout_is_a_stale_one(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some drivers time out and hand out their last picture as new: it is taken for silence."""
    monkeypatch.setenv(_TIMEOUT, "0")
    with (
        DeviceCamera(node, open_capture=_Driver()) as camera,
        pytest.raises(CameraError, match="no picture for 0 s"),
    ):
        camera.read()


def test_reading_outside_the_with_block_is_refused(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that was left is not opened again by a read."""
    monkeypatch.setenv(_TIMEOUT, "3")
    driver = _Driver()
    camera = DeviceCamera(node, open_capture=driver)
    with pytest.raises(CameraError, match="not entered"):
        camera.read()
    with camera:
        camera.read()
    with pytest.raises(CameraError, match="not entered"):
        camera.read()
    assert len(driver.openings) == 1
