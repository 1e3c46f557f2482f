"""The simulated camera: pacing, determinism, and being left."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from flawline_edge.cameras import CameraFrame
from flawline_edge.cameras.simulated import SimulatedCamera
from flawline_edge.simulation import SimulatedLine
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(30)


def _index(frame: CameraFrame | None) -> int:
    assert frame is not None
    assert frame.part[0] == "S"
    assert len(frame.part) == 7
    return int(frame.part[1:])


def test_a_picture_depends_on_seed_and_index_only() -> None:
    """The camera shows the simulated line's part of the same index, with its mask and defect."""
    line = SimulatedLine(seed=3, defect_rate=0.5)
    with SimulatedCamera(seed=3, defect_rate=0.5, fps=100, parts=6) as camera:
        frames = [camera.read() for _ in range(6)]
    for frame in frames:
        part = line.part(_index(frame))
        assert frame is not None
        assert frame.truth is not None
        assert frame.truth.mask is not None
        assert frame.truth.defect == part.defect
        np.testing.assert_array_equal(frame.picture, part.picture)
        np.testing.assert_array_equal(frame.truth.mask, part.mask)


def test_it_ends_after_its_parts_and_starts_anew() -> None:
    """After `parts` pictures every read is None; entered again, the line begins with part 0."""
    camera = SimulatedCamera(fps=5, parts=1)
    for _ in range(2):
        with camera:
            assert _index(camera.read()) == 0
            assert camera.read() is None
            assert camera.read() is None


def test_parts_do_not_come_early_and_delays_do_not_add_up() -> None:
    """Part n comes n / fps after the start, also when the reader takes its time: 0.2 s of it in all."""
    fps = 50.0
    with SimulatedCamera(fps=fps) as camera:
        entered = time.monotonic()
        lateness = []
        for _ in range(40):
            frame = camera.read()
            assert frame is not None
            lateness.append(frame.captured_monotonic - entered - _index(frame) / fps)
            time.sleep(0.005)
    assert min(lateness) > -0.05  # entering returned a moment after the line started
    assert min(lateness[-10:]) - min(lateness[:10]) < 0.1


def test_a_late_reader_gets_the_part_that_is_there_now() -> None:
    """Parts pass unread: after 0.5 s at 20 a second, ten of them are gone, and none is delivered later."""
    with SimulatedCamera(fps=20) as camera:
        assert _index(camera.read()) < 10
        time.sleep(0.5)
        late = _index(camera.read())
        assert late >= 10
        assert _index(camera.read()) > late


def test_capture_times_are_those_of_the_picture() -> None:
    """A part is captured when it has arrived, not when its read began: the wait costs no deadline."""
    with SimulatedCamera(fps=5) as camera:
        camera.read()
        began = time.monotonic()
        frame = camera.read()
    assert frame is not None
    assert frame.captured_monotonic - began > 0.05
    assert abs(frame.captured - wall_clock()) < 5


def test_leaving_interrupts_a_waiting_read() -> None:
    """A read that waits for the next part ends within 0.1 s of leaving (a busy machine may take a second)."""
    camera = SimulatedCamera(fps=0.01)
    errors: list[CameraError] = []

    def read_twice() -> None:
        camera.read()
        try:
            camera.read()
        except CameraError as exc:
            errors.append(exc)

    with camera:
        reader = threading.Thread(target=read_twice, daemon=True)
        reader.start()
        time.sleep(0.3)
        assert reader.is_alive()
    reader.join(1.0)
    assert not reader.is_alive()
    assert len(errors) == 1


def test_reading_outside_the_with_block_is_refused() -> None:
    """A camera that is not entered, or left again, gives no picture."""
    camera = SimulatedCamera(parts=1)
    with pytest.raises(CameraError, match="not entered"):
        camera.read()
    with camera:
        pass
    with pytest.raises(CameraError, match="not entered"):
        camera.read()
