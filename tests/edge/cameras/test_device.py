"""The camera at this machine; a stand-in for OpenCV's capture plays the driver."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge.cameras.device import DeviceCamera
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError

pytestmark = [
    pytest.mark.timeout(20),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Video4Linux is Linux's"),
]

_TIMEOUT = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"


class _Driver:
    """`cv2.VideoCapture` for a test: gives `pictures` pictures per opening, then False for ever."""

    def __init__(
        self,
        pictures: int = 2,
        *,
        opens: bool = True,
        width: float = 640,
        has: dict[int, float] | None = None,
        refuses: tuple[int, ...] = (),
    ) -> None:
        self.pictures, self.opens = pictures, opens
        self.has = {cv2.CAP_PROP_FRAME_WIDTH: width, cv2.CAP_PROP_POS_MSEC: 0.0, **(has or {})}
        self.refuses = refuses
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
        return self.has.get(propId, 480)

    def set(self, propId: int, value: float, /) -> bool:
        self.asked.append((propId, value))
        return propId not in self.refuses

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


def test_the_configured_timeout_counts(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that the machine's environment happens to have: who watches the camera goes by the configured one."""
    monkeypatch.setenv(_TIMEOUT, "7")
    driver = _Driver()
    with DeviceCamera(node, read_timeout_s=5, open_capture=driver):
        assert driver.timeout_at_opening == "5"


_EXPOSURE = (cv2.CAP_PROP_AUTO_EXPOSURE, cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_GAIN)


def test_exposure_and_gain(node: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Automatic exposure is switched off first, milliseconds become V4L2's 100 µs; nothing is said when all is well."""
    monkeypatch.setenv(_TIMEOUT, "3")
    driver = _Driver(has={cv2.CAP_PROP_EXPOSURE: 25, cv2.CAP_PROP_GAIN: 8})
    with DeviceCamera(node, exposure_ms=2.5, gain=8, open_capture=driver):
        pass
    asked = [each for each in driver.asked if each[0] in _EXPOSURE]
    assert asked[0] == (cv2.CAP_PROP_AUTO_EXPOSURE, 1)
    assert sorted(asked[1:]) == sorted([(cv2.CAP_PROP_EXPOSURE, 25), (cv2.CAP_PROP_GAIN, 8)])
    assert caplog.messages == []


def test_a_driver_that_refuses_the_exposure(
    node: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each thing it does not do is said, with what it is instead; the camera works all the same."""
    monkeypatch.setenv(_TIMEOUT, "3")
    has = {cv2.CAP_PROP_EXPOSURE: 156, cv2.CAP_PROP_GAIN: -1, cv2.CAP_PROP_FPS: 25}
    driver = _Driver(has=has, refuses=(cv2.CAP_PROP_AUTO_EXPOSURE, cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_GAIN))
    with DeviceCamera(node, exposure_ms=2.5, gain=8, fps=50, open_capture=driver) as camera:
        assert camera.read().picture.shape == (4, 6, 3)
    assert sorted(message.split(": ")[1] for message in caplog.messages) == [
        "asked for exposure_ms 2.5, the driver refuses and says 15.6",
        "asked for fps 50, the driver gives 25",
        "asked for gain 8, the driver has no such setting",
        "the driver does not switch its automatic exposure off",
    ]


@pytest.mark.parametrize("waited_s", [0.5, -0.001])
def test_a_picture_is_as_old_as_its_stamp(node: str, monkeypatch: pytest.MonkeyPatch, waited_s: float) -> None:
    """One that lay in the driver's buffer since before a trigger does not pass for one taken after it."""
    monkeypatch.setenv(_TIMEOUT, "3")
    stamp = time.monotonic() - waited_s
    with DeviceCamera(node, open_capture=_Driver(has={cv2.CAP_PROP_POS_MSEC: 1e3 * stamp})) as camera:
        before, wall = time.monotonic(), wall_clock()
        frame = camera.read()
    if waited_s > 0:
        assert frame.captured_monotonic == pytest.approx(stamp, abs=1e-6)
        assert frame.captured == pytest.approx(wall - waited_s, abs=0.1)
    else:
        assert before <= frame.captured_monotonic <= time.monotonic()
    assert frame.stamp == pytest.approx(stamp)
    assert before <= frame.arrived_monotonic


@pytest.mark.parametrize(("stamp_ms", "stamp"), [(0.0, None), (40.0, 0.04), (1.7e12, 1.7e9)])
def test_a_stamp_of_another_clock_says_nothing_of_the_age(
    node: str, monkeypatch: pytest.MonkeyPatch, stamp_ms: float, stamp: float | None
) -> None:
    """None at all, time since the stream began, or wall clock: the capture began with the read."""
    monkeypatch.setenv(_TIMEOUT, "3")
    with DeviceCamera(node, open_capture=_Driver(has={cv2.CAP_PROP_POS_MSEC: stamp_ms})) as camera:
        before = time.monotonic()
        frame = camera.read()
    assert frame.captured_monotonic >= before
    assert frame.stamp == stamp


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
        DeviceCamera(node, read_timeout_s=0, open_capture=_Driver()) as camera,
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
