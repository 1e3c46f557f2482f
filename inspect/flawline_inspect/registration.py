"""Refining a pose: where a template lies in a picture, to a fraction of a pixel.

The inverse compositional method of Baker and Matthews (2004) with a shift or a similarity transform. OpenCV's
`findTransformECC` is close to it; it knows no similarity transform, and it has no robust weights: a missing piece or a
stain would pull the pose. Here each pixel can count less the worse it fits, and brightness, contrast and a gradient of
light are solved for beside the pose, so that they cannot be mistaken for a movement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.affine import similarity

__all__ = ["Level", "Match", "Motion", "Picture", "middle"]

Picture = NDArray[np.float32]

_TOLERANCE = 0.25
"""A residual of this many of the template's standard deviations halves a pixel's influence."""
_SMALL_STEP = 0.01
"""Pixels of the template; a smaller correction ends the refinement."""
_LARGEST_CHANGE = 0.5


@dataclass(frozen=True, slots=True)
class Motion:
    """Which movements are allowed. `scales`: lowest and highest size relative to the template's, equal when fixed."""

    turns: bool
    scales: tuple[float, float] = (1.0, 1.0)

    @property
    def is_scaled(self) -> bool:
        return self.scales[0] < self.scales[1]


@dataclass(frozen=True, slots=True)
class Match:
    """The template's pixel z (complex, from its middle) lies at `turn` z + `middle` in the picture.

    `correlation`: normalised, -1 to 1, with the light's gradient taken out of both. `likeness`: that of the fine texture.
    `design`: which of several references this is about.
    """

    turn: complex
    middle: complex
    correlation: float = 0.0
    likeness: float = 0.0
    design: int = 0


class Level:
    """A template on a grid of its own coarseness: `step` of its pixels apart, blurred by `sigma` of them.

    `view` is applied to what is sampled before it is compared; nothing by default.
    """

    def __init__(
        self, picture: Picture, step: float, motion: Motion, view: Callable[[Picture], Picture] | None = None
    ) -> None:
        height, width = picture.shape
        self.step, self.sigma, self.motion = step, 0.5 * step, motion
        self.wh = max(8, round(width / step)), max(8, round(height / step))
        self._view = view
        self.picture = self.sample(
            np.asarray(cv2.GaussianBlur(picture, (0, 0), self.sigma), np.float32), Match(1, middle(picture))
        )
        seen = self.picture if view is None else view(self.picture)
        y, x = np.mgrid[: self.wh[1], : self.wh[0]].astype(np.float32)
        self._length = max(self.wh) / 2
        x, y = (x - (self.wh[0] - 1) / 2) / self._length, (y - (self.wh[1] - 1) / 2) / self._length
        ramps = np.stack([np.ones_like(x), x, y]).reshape(3, -1)
        self._light = np.linalg.qr(ramps.T)[0].T.astype(np.float32)  # (3, N), orthonormal
        self._residue = self._without_light(self.picture)
        own = self._without_light(seen)
        self._spread = float(own.std())
        gy, gx = np.gradient(seen)
        movements = [gx, gy]
        if motion.turns:
            movements.append(gy * x - gx * y)
        if motion.is_scaled:
            movements.append(gx * x + gy * y)
        # (movements + 4, N): each pixel's brightness is a linear function of contrast, movement and light
        self._design = np.concatenate([np.stack([own, *(m.ravel() for m in movements)]), self._light])
        self._ridge = 1e-6 * float((self._design**2).sum()) / len(self._design) * np.eye(len(self._design))
        self._inverse = np.linalg.inv((self._design @ self._design.T).astype(np.float64) + self._ridge)

    def sample(self, picture: Picture, match: Match, wh: tuple[int, int] | None = None) -> Picture:
        """The picture where the template would be, on this level's grid (or a larger one about the same middle)."""
        width, height = wh or self.wh
        turn = match.turn * self.step
        to_picture = similarity(turn, match.middle - turn * complex((width - 1) / 2, (height - 1) / 2))
        return np.asarray(
            cv2.warpAffine(
                picture,
                np.array(to_picture).reshape(2, 3),
                (width, height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            ),
            np.float32,
        )

    def refined(self, picture: Picture, match: Match, steps: int, *, robust: bool) -> Match:
        """At most so many Gauss-Newton steps from `match`; ends early when they become small."""
        turn, at = match.turn, match.middle
        for _ in range(steps):
            seen = self.sample(picture, Match(turn, at))
            if self._view is not None:
                seen = self._view(seen)
            solution = self._solved(seen.ravel(), robust)
            gain, dx, dy = (float(value) for value in solution[:3])
            if gain <= 0:
                break
            moved = complex(dx, dy) / gain
            spin = float(solution[3]) / gain if self.motion.turns else 0.0
            grow = float(solution[3 + self.motion.turns]) / gain if self.motion.is_scaled else 0.0
            change = 1 + complex(grow, spin) / self._length
            if not self.motion.is_scaled:
                change /= abs(change)
            if not abs(moved) < self._length or not abs(change - 1) < _LARGEST_CHANGE:
                break  # nothing there that looks like the template
            turn, at = turn / change, at - turn * self.step * moved / change
            if max(abs(moved), abs(spin), abs(grow)) * self.step < _SMALL_STEP:
                break
        return Match(turn, at)

    def _solved(self, seen: NDArray[np.float32], robust: bool) -> NDArray[np.float64]:
        solution = self._inverse @ (self._design @ seen)
        if robust:
            residual = seen - solution.astype(np.float32) @ self._design
            tolerance = max(1e-3, _TOLERANCE * abs(float(solution[0])) * self._spread)
            weighted = self._design / (1 + (residual / tolerance) ** 2)
            solution = np.linalg.solve((weighted @ self._design.T).astype(np.float64) + self._ridge, weighted @ seen)
        return np.asarray(solution, np.float64)

    def correlation(self, picture: Picture, match: Match) -> float:
        """Of the brightness (not the view), -1 to 1, with the light's gradient taken out of both."""
        seen = self._without_light(self.sample(picture, match))
        norms = float(np.linalg.norm(seen) * np.linalg.norm(self._residue))
        return float(seen @ self._residue) / norms if norms > 1e-6 else 0.0

    def _without_light(self, sampled: Picture) -> NDArray[np.float32]:
        flat = sampled.ravel()
        return np.asarray(flat - (self._light @ flat) @ self._light, np.float32)


def middle(picture: NDArray[np.generic]) -> complex:
    return complex((picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2)
