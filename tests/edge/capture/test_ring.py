"""The ring that two processes share: frames come out as they went in, whole or not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge.cameras import CameraFrame, Truth
from flawline_edge.capture.ring import FrameRing, check_picture, frame_bytes
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(60)


def _frame(picture: NDArray[np.generic], part: str = "", truth: Truth | None = None) -> CameraFrame:
    return CameraFrame(picture, 1.7e9 + 0.25, 12.5, part, truth, 13.75)


_RANDOM = np.random.default_rng(0)
_PICTURES = {
    "colour": _RANDOM.integers(0, 256, (48, 64, 3), np.uint8),
    "grey": _RANDOM.integers(0, 256, (48, 64), np.uint8),
    "16 bit": _RANDOM.integers(0, 65536, (7, 5), np.uint16),
    "big-endian": _RANDOM.integers(0, 65536, (7, 5)).astype(">u2"),
    "float": _RANDOM.normal(size=(9, 11, 1)).astype(np.float32),
    "four channels": _RANDOM.integers(0, 256, (4, 4, 4), np.uint8),
    "one pixel": np.full((1, 1), 200, np.uint8),
    "a view": _RANDOM.integers(0, 256, (48, 64, 3), np.uint8)[::2, 3::4, ::-1],
}


@pytest.mark.parametrize("name", _PICTURES)
def test_a_frame_comes_out_as_it_went_in(name: str) -> None:
    """Pixels, type, shape, the three times, part and truth."""
    mask = _RANDOM.integers(0, 2, (6, 10), np.uint8)
    frame = _frame(_PICTURES[name], "Teil-ß7", Truth("scratch", mask))
    ring = FrameRing.create(frame_bytes(frame))
    got = ring.read(ring.write(frame, 7), 7)
    assert got is not None
    assert got.picture.dtype == frame.picture.dtype
    np.testing.assert_array_equal(got.picture, frame.picture, strict=True)
    assert (got.captured, got.captured_monotonic, got.arrived_monotonic) == (1.7e9 + 0.25, 12.5, 13.75)
    assert got.part == "Teil-ß7"
    assert got.truth is not None and got.truth.defect == "scratch" and got.truth.mask is not None
    np.testing.assert_array_equal(got.truth.mask, mask, strict=True)


@pytest.mark.parametrize("truth", [None, Truth(None), Truth("dent")])
def test_what_is_known_of_a_part_may_be_little(truth: Truth | None) -> None:
    """No truth, a good part, a defect without a mask: each is told from the others."""
    frame = _frame(_PICTURES["grey"], truth=truth)
    ring = FrameRing.create(frame_bytes(frame))
    got = ring.read(ring.write(frame, 1), 1)
    assert got is not None and got.part == ""
    assert (got.truth is None) == (truth is None)
    if truth is not None and got.truth is not None:
        assert (got.truth.defect, got.truth.mask) == (truth.defect, None)


def test_what_is_read_is_a_copy() -> None:
    """The consumer keeps it while the ring goes on."""
    frame = _frame(_PICTURES["colour"])
    ring = FrameRing.create(frame_bytes(frame))
    got = ring.read(ring.write(frame, 1), 1)
    for seq in range(2, ring.slots + 2):
        ring.write(_frame(np.zeros((48, 64, 3), np.uint8)), seq)
    assert got is not None
    np.testing.assert_array_equal(got.picture, frame.picture)


def test_an_overwritten_frame_is_none() -> None:
    """The last `slots` frames are there, older ones are not; a number that never was is not either."""
    frame = _frame(_PICTURES["colour"])
    ring = FrameRing.create(frame_bytes(frame))
    slots = {seq: ring.write(frame, seq) for seq in range(1, ring.slots + 3)}
    there = [seq for seq, slot in slots.items() if ring.read(slot, seq) is not None]
    assert there == list(range(3, ring.slots + 3))
    assert ring.read(0, 10**6) is None


@pytest.mark.parametrize(
    ("bytes_each", "slots"), [(1, 32), (2**20, 32), (4 * 2**20, 16), (16 * 2**20, 4), (50 * 2**20, 4)]
)
def test_the_ring_is_bounded(bytes_each: int, slots: int) -> None:
    """64 MB or four frames, whatever is more; small frames do not fill it."""
    ring = FrameRing.create(bytes_each)
    assert ring.slots == slots
    assert os.fstat(ring.fd).st_size == ring.slots * ring.slot_bytes


def test_too_large_a_picture_is_an_error_of_the_camera() -> None:
    """Before any memory is asked for: the kernel would end the process."""
    with pytest.raises(CameraError, match="a picture of 1024 MB, expected at most 256 MB"):
        FrameRing.create(2**30)


def test_short_memory_is_an_error_of_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ring is made, and not a SIGBUS at some write later; the handle is given back."""

    def refuse(fd: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CameraError, match=r"no memory for 32 frames of 1\.0 MB each"):
        FrameRing.create(2**20)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_other_process_cannot_pull_the_memory_away() -> None:
    """A file that is cut under a mapping kills whoever reads there: its size is sealed."""
    ring = FrameRing.create(1000)
    for size in (0, 2**20):
        with pytest.raises(PermissionError):
            os.truncate(ring.fd, size)


def test_memory_and_handle_go_with_the_ring() -> None:
    """Also while pictures from it are kept."""
    gc.collect()  # of earlier tests
    before = len(list(Path("/proc/self/fd").iterdir()))
    frame = _frame(_PICTURES["colour"])
    kept = []
    for _ in range(5):
        ring = FrameRing.create(frame_bytes(frame))
        kept.append(ring.read(ring.write(frame, 1), 1))
        assert "flawline-frames" in Path("/proc/self/maps").read_text()
    del ring
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert "flawline-frames" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "picture",
    [None, "a path", [[1, 2]], np.zeros((0, 4, 3), np.uint8), np.zeros(5, np.uint8), np.zeros((2, 2, 3, 1), np.uint8),
     np.array([["x"]], dtype=object), np.zeros((2, 2), np.complex64)],
    ids=["None", "text", "list", "no rows", "1-D", "4-D", "objects", "complex"],
)  # fmt: skip
def test_what_is_no_picture_is_refused(picture: object) -> None:
    """With what it was."""
    with pytest.raises(CameraError, match=r"the camera gave .*, expected a picture"):
        check_picture(picture)


# --- two processes ----------------------------------------------------------------------------------------------------


def _child(program: str, ring: FrameRing) -> subprocess.Popen[str]:
    """Runs with `ring` at hand, the same memory; the test and it talk by lines."""
    start = f"""
        import sys
        sys.path[:] = {sys.path!r}
        import numpy as np
        from flawline_edge.cameras import CameraFrame
        from flawline_edge.capture.ring import FrameRing
        ring = FrameRing({ring.fd}, {ring.slots}, {ring.slot_bytes})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(program)],
        pass_fds=[ring.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_slot_that_is_being_read_is_stepped_over() -> None:
    """The writer neither waits for a slow reader nor writes under it."""
    frame = _frame(_PICTURES["colour"])
    ring = FrameRing.create(frame_bytes(frame))
    slots = [ring.write(frame, seq) for seq in range(1, ring.slots + 1)]
    program = """
        with ring._locked(1) as free:
            print(free, flush=True)
            input()
        print("done", flush=True)
        input()
    """
    with _child(program, ring) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        assert reader.stdout.readline() == "True\n"
        assert ring.read(slots[1], 2) is None  # held elsewhere: as good as gone
        assert [ring.write(frame, seq) for seq in range(100, 104)] == [0, 2, 3, 4]
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "done\n"
        assert ring.read(slots[1], 2) is not None
        reader.communicate("\n")


def test_a_writer_that_dies_in_the_middle_leaves_no_frame_and_no_lock() -> None:
    """The slot it was in reads as empty, the others as before."""
    frame = _frame(_PICTURES["colour"])
    ring = FrameRing.create(frame_bytes(frame))
    for seq in (1, 2):
        ring.write(frame, seq)
    program = """
        import os, signal

        class Deadly(np.ndarray):
            def __array_function__(self, function, types, arguments, options):
                os.kill(os.getpid(), signal.SIGKILL)  # np.copyto: the header is written, the pixels are not

        ring.write(CameraFrame(np.ones((48, 64, 3), np.uint8).view(Deadly), 0.0, 0.0), 3)
    """
    with _child(program, ring) as writer:
        writer.wait(20)
    assert writer.returncode == -9
    assert ring.read(0, 1) is None
    assert ring.read(0, 3) is None
    assert ring.read(1, 2) is not None
    assert ring.read(ring.write(frame, 4), 4) is not None


def test_no_frame_is_torn() -> None:
    """A writer at full speed, a reader that spends its time in copies while the ring goes round: whole frames, or None."""
    shape = (2000, 2000)  # so large that both are interrupted within a copy, and that there are four slots
    ring = FrameRing.create(frame_bytes(_frame(np.zeros(shape, np.uint32))))
    program = """
        import time
        until, seq, picture = time.monotonic() + 4.0, 0, np.zeros((2000, 2000), np.uint32)
        while time.monotonic() < until:
            seq += 1
            picture[:] = seq
            ring.write(CameraFrame(picture, 0.0, float(seq), str(seq)), seq)
        print(seq)
    """
    whole = gone = 0
    with _child(program, ring) as writer:
        while writer.poll() is None:
            for slot in range(ring.slots):
                start = slot * ring.slot_bytes
                number = int.from_bytes(ring._memory[start : start + 8], "little")
                frame = ring.read(slot, number) if number else None
                if frame is None:
                    gone += 1
                    continue
                whole += 1
                rows = frame.picture[:, 0]  # enough, and leaves more time for copies
                assert rows.min() == rows.max() == number == frame.captured_monotonic
                assert frame.part == str(number)
        assert writer.stdout is not None
        written = int(writer.stdout.read())
    assert writer.returncode == 0
    assert written > 20 and whole > 20
