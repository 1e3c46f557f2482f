"""A ring of frames in memory that two processes share: one writes, the other reads, and neither waits for the other.

The memory is a memfd: it has no name that could be left behind in /dev/shm, is not bounded by the size of /dev/shm (64
MB in a container), and goes with the last process that holds it, however that one ends.

A slot is guarded by a POSIX record lock on its byte of the file, which the kernel takes back when its holder dies. The
writer steps over a slot that is being read; the reader gives up a slot that is being written. Counters around the data
(a seqlock) would do on x86 only: Python cannot order memory accesses on ARM, and a system call does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from flawline_edge.cameras.camera import CameraFrame, Truth
from flawline_inspect.errors import CameraError

__all__ = ["FrameRing", "check_picture", "frame_bytes"]

_BUDGET_BYTES = 64 * 2**20
"""A camera's ring takes about this, unless `_MIN_SLOTS` frames are larger: 17 frames of 1280 × 960 in colour."""
_MIN_SLOTS, _MAX_SLOTS = 4, 32
_MAX_FRAME_BYTES = 2**28
"""85 megapixels in colour. The kernel would rather kill a process than refuse it memory."""
_ALIGN = 64

_HEADER = struct.Struct("<Qddd8sB3I2I2H?")
"""seq, captured, captured_monotonic, arrived_monotonic, dtype, dimensions, shape, mask's shape (0 × 0: none), bytes of
part and defect, whether there is a truth. Part, defect, picture and mask follow, the arrays on multiples of 64 bytes."""
_KINDS = "buif"


def check_picture(picture: object) -> None:
    """Raises `CameraError` for what is not a picture: only arrays with pixels can be inspected."""
    if not isinstance(picture, np.ndarray):
        raise CameraError(f"the camera gave {type(picture).__name__}, expected a picture; check its driver")
    if picture.ndim not in (2, 3) or not picture.size or picture.dtype.kind not in _KINDS:
        raise CameraError(
            f"the camera gave an array of shape {picture.shape} and type {picture.dtype}, expected a picture of "
            "shape (h, w) or (h, w, channels); check its driver"
        )


def frame_bytes(frame: CameraFrame) -> int:
    """What a slot needs to hold this frame."""
    part, defect, mask = _texts_and_mask(frame)
    start = _aligned(_HEADER.size + len(part) + len(defect))
    return start + _aligned(frame.picture.nbytes) + mask.nbytes


class FrameRing:
    """`slots` frames of at most `slot_bytes` bytes each in the memory of `fd`, which the ring closes when it is let go.

    `create` for the writer's process, the constructor for the reader's.
    """

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self._memory = mmap.mmap(fd, slots * slot_bytes)
        self.fd, self.slots, self.slot_bytes = fd, slots, slot_bytes
        weakref.finalize(self, os.close, fd)
        self._reading = threading.Lock()  # record locks do not keep threads of one process apart
        self._next = 0
        self._last: NDArray[np.generic] | None = None

    @classmethod
    def create(cls, largest: int) -> FrameRing:
        """A ring for frames of up to `largest` bytes (`frame_bytes`). Raises `CameraError` when that is absurd, or memory short."""
        if largest > _MAX_FRAME_BYTES:
            raise CameraError(
                f"the camera gave a picture of {largest / 2**20:.0f} MB, expected at most {_MAX_FRAME_BYTES / 2**20:.0f} MB; "
                "check its driver"
            )
        slot_bytes = -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE
        slots = max(_MIN_SLOTS, min(_MAX_SLOTS, _BUDGET_BYTES // slot_bytes))
        fd = os.memfd_create("flawline-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, slots * slot_bytes)  # an error now, and no SIGBUS at some write later
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls(fd, slots, slot_bytes)
        except OSError as exc:
            os.close(fd)
            raise CameraError(
                f"no memory for {slots} frames of {slot_bytes / 2**20:.1f} MB each ({exc.strerror}); "
                "give the station more, or the camera a smaller picture"
            ) from exc

    @property
    def last(self) -> NDArray[np.generic] | None:
        """The picture that was written last, in place: valid until `slots` - 1 more were written."""
        return self._last

    def write(self, frame: CameraFrame, seq: int) -> int:
        """Put the frame, which must fit, into the oldest slot that is not being read. Returns the slot."""
        part, defect, mask = _texts_and_mask(frame)
        picture = frame.picture
        for _ in range(self.slots):
            slot, self._next = self._next, (self._next + 1) % self.slots
            with self._locked(slot) as free:
                if not free:
                    continue
                start = slot * self.slot_bytes
                # 0 is no frame's number: who finds a writer's half-done work after its death finds no frame.
                self._memory[start : start + 8] = bytes(8)
                header = _HEADER.pack(
                    0, frame.captured, frame.captured_monotonic, frame.arrived_monotonic,
                    picture.dtype.str.encode(), picture.ndim, *(*picture.shape, 0)[:3], *mask.shape,
                    len(part), len(defect), frame.truth is not None,
                )  # fmt: skip
                at = start + len(header) + len(part) + len(defect)
                self._memory[start:at] = header + part + defect
                at = start + _aligned(at - start)
                self._last = self._array(at, picture.dtype, picture.shape)
                np.copyto(self._last, picture)
                if mask.size:
                    np.copyto(self._array(at + _aligned(picture.nbytes), mask.dtype, mask.shape), mask)
                self._memory[start : start + 8] = seq.to_bytes(8, "little")
                return slot
        raise AssertionError("one reader holds one slot at most")

    def read(self, slot: int, seq: int) -> CameraFrame | None:
        """A copy of frame `seq`, which was written into this slot; None when it was overwritten since, or is now."""
        with self._reading, self._locked(slot) as free:
            if not free:
                return None
            start = slot * self.slot_bytes
            (
                number, captured, captured_monotonic, arrived, dtype, dimensions,
                *shape, mask_h, mask_w, part_bytes, defect_bytes, has_truth,
            ) = _HEADER.unpack_from(self._memory, start)  # fmt: skip
            if number != seq:
                return None
            at = start + _HEADER.size
            part = self._memory[at : at + part_bytes].decode()
            defect = self._memory[at + part_bytes : at + part_bytes + defect_bytes].decode()
            at = start + _aligned(_HEADER.size + part_bytes + defect_bytes)
            picture = self._array(at, np.dtype(dtype.rstrip(b"\0").decode()), tuple(shape[:dimensions])).copy()
            truth = None
            if has_truth:
                at += _aligned(picture.nbytes)
                mask = self._array(at, np.dtype(np.uint8), (mask_h, mask_w)).copy() if mask_h else None
                truth = Truth(defect or None, mask)
            return CameraFrame(picture, captured, captured_monotonic, part, truth, arrived)

    def _array(self, at: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
        return np.ndarray(shape, dtype, self._memory, at)

    @contextmanager
    def _locked(self, slot: int) -> Iterator[bool]:
        """Holds the slot; False when the other process does."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, slot)


_NO_MASK = np.zeros((0, 0), np.uint8)


def _texts_and_mask(frame: CameraFrame) -> tuple[bytes, bytes, NDArray[np.uint8]]:
    truth = frame.truth
    mask = truth.mask if truth is not None and truth.mask is not None else _NO_MASK
    return frame.part.encode(), (truth.defect or "").encode() if truth is not None else b"", mask


def _aligned(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN
