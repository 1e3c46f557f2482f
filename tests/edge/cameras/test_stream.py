"""The stream as camera, against an MJPEG server that stalls and hangs up on command."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from tests.edge.mjpeg import MjpegServer, serving

from flawline_edge.cameras.newest import NewestFrame
from flawline_edge.cameras.stream import StreamCamera, masked_url
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(40)

_READ_TIMEOUT_S = 1.0


def _camera(server: MjpegServer, **timeouts: float) -> StreamCamera:
    wanted = {"open_timeout_s": 3.0, "read_timeout_s": _READ_TIMEOUT_S} | timeouts
    return StreamCamera(f"http://127.0.0.1:{server.server_port}/video", **wanted)


def _read_on(camera: StreamCamera) -> None:
    """Read what was sent before the trouble, and into it."""
    for _ in range(30):
        camera.read()


def test_frames_come_and_are_fresh() -> None:
    """Frames arrive in order, and the one that is read is the one just sent: no decoder holds any back."""
    with serving() as server, _camera(server) as camera:
        behind = []
        for _ in range(15):
            frame = camera.read()
            assert frame.picture.shape == (32, 48, 3)
            assert abs(frame.captured - wall_clock()) < 5
            behind.append((server.grey - round(float(frame.picture.mean()))) % 256 / 4)
        assert min(behind) < 1  # in frames; some reads of a busy machine may come late


def test_a_stall_is_an_error_within_the_timeout_and_then_recovers() -> None:
    """A silent stream raises after the read timeout; when it speaks again, a later read gives frames."""
    with serving() as server, _camera(server) as camera:
        camera.read()
        server.stalled.set()
        began = time.monotonic()
        with pytest.raises(CameraError, match="no frame for 1 s") as caught:
            _read_on(camera)
        assert caught.value.exit_code == 1
        assert 0.9 * _READ_TIMEOUT_S < time.monotonic() - began < _READ_TIMEOUT_S + 1.5
        server.stalled.clear()
        frame = camera.read()
        assert frame.picture.shape == (32, 48, 3)
        assert server.connections == 2


def test_it_recovers_after_the_other_side_restarted() -> None:
    """A camera that hangs up and is away for a while is found again at the same address."""
    with serving() as server:
        port = server.server_port
        with _camera(server) as camera:
            camera.read()
            server.close()
            with pytest.raises(CameraError, match="the stream ended"):
                _read_on(camera)
            began = time.monotonic()
            with pytest.raises(CameraError, match="no stream there") as caught:
                camera.read()
            assert caught.value.exit_code == 1
            assert 0.4 < time.monotonic() - began < 2
            with serving(port):
                assert camera.read().picture.shape == (32, 48, 3)


def test_a_long_pause_does_not_block_a_read_longer_than_the_timeout() -> None:
    """While the pause before the next attempt is longer than the read timeout, reads say so and return."""
    with serving() as server, _camera(server, read_timeout_s=0.2) as camera:
        camera.read()
        server.close()
        with pytest.raises(CameraError, match="the stream ended"):
            _read_on(camera)
        began = time.monotonic()
        with pytest.raises(CameraError, match="the next attempt is in 0"):
            camera.read()
        assert 0.15 < time.monotonic() - began < 0.45


def test_no_stream_at_first_is_the_users_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody listens: exit code 2, and neither our message nor OpenCV's output holds the password."""
    with serving() as server:
        port = server.server_port
    camera = StreamCamera(f"http://joe:s3cret@127.0.0.1:{port}/video?pwd=hunter2", open_timeout_s=2)
    with pytest.raises(CameraError, match="no stream there") as caught, camera:
        pass
    assert caught.value.exit_code == 2
    written = f"{caught.value}{''.join(capfd.readouterr())}"
    assert f"***@127.0.0.1:{port}/video" in written
    for secret in ("joe", "s3cret", "hunter2"):
        assert secret not in written


def test_a_server_that_accepts_and_says_nothing_times_out() -> None:
    """A connection without an answer is given up after the open timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/video"
        began = time.monotonic()
        with pytest.raises(CameraError) as caught, StreamCamera(url, open_timeout_s=1):
            pass
        assert caught.value.exit_code == 2
        assert time.monotonic() - began < 3


def test_leaving_while_a_read_waits_is_quick_and_safe() -> None:
    """With the newest-frame thread inside a read of a stalled stream, leaving returns and the thread ends."""
    with serving() as server:
        with NewestFrame(_camera(server)) as newest:
            assert newest.get(5) is not None
            server.stalled.set()
            time.sleep(0.3)
            began = time.monotonic()
        assert time.monotonic() - began < 2.5
    assert "newest-frame" not in " ".join(thread.name for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("rtsp://10.0.0.5:554/stream1", "rtsp://10.0.0.5:554/stream1"),
        ("rtsp://joe:pw@cam/1", "rtsp://***@cam/1"),
        ("rtsp://joe:p@ss/w@cam/1", "rtsp://***@cam/1"),
        ("http://cam/v.cgi?user=joe&pwd=pw&ch=1", "http://cam/v.cgi?user=***&pwd=***&ch=1"),
        ("rtsp://cam/user=joe_password=pw_channel=1.sdp", "rtsp://cam/user=***_password=***_channel=1.sdp"),
        ("https://cam/live?access_token=abc.def", "https://cam/live?access_token=***"),
    ],
)
def test_credentials_are_masked(url: str, masked: str) -> None:
    """User, password and tokens become stars; address and channel stay readable."""
    assert masked_url(url) == masked
