"""A live picture that stands still: a driver that repeats its last frame, a stream whose server does.

The noise of a sensor makes two of its pictures differ somewhere, always. One that is the same bit by bit is no new
picture, whatever time it comes with, and must not answer for the part that stands before the camera now.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FrozenPicture"]

_SAMPLE_STEP = 37
"""Every so many rows and columns are compared first: of pictures that differ, nearly all do there. A prime, so that it
falls into no pattern of the picture."""


class FrozenPicture:
    """Looks at every picture of a camera. `after_s`: standing still for this long is frozen; 0 sees nothing."""

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.frozen = False
        self._since = 0.0  # when the picture last changed, monotonic
        self._stamp: float | None = None
        self._stamp_since = 0.0
        self._stamps_move = False

    def reopened(self) -> None:
        """The camera was opened anew: its clock may have started over."""
        self._stamp, self._stamps_move = None, False

    def is_repeat(
        self, picture: NDArray[np.generic], last: NDArray[np.generic] | None, stamp: float | None, now: float
    ) -> bool:
        """Whether `picture` is no news after `last`, the newest that was; sets `frozen`.

        `stamp` is the driver's own time of the picture, s, None where it has none; `now` is monotonic. A clock that
        went and stands still is frozen too, even if the pictures differ; one that never went says nothing.
        """
        if not self.after_s:
            return False
        if stamp != self._stamp:
            self._stamps_move = self._stamp is not None and stamp is not None
            self._stamp, self._stamp_since = stamp, now
        repeated = last is not None and _identical(picture, last)
        if not repeated:
            self._since = now
        stuck = self._stamps_move and now - self._stamp_since >= self.after_s
        self.frozen = stuck or (repeated and now - self._since >= self.after_s)
        return repeated or stuck


def _identical(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    sample = (slice(None, None, _SAMPLE_STEP),) * 2
    return np.array_equal(a[sample], b[sample]) and np.array_equal(a, b)
