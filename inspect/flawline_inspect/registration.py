"""Where a template lies in a picture: shift, angle and scale, to a fraction of a pixel.

First a look around: the template's brightness over angle and radius about its middle is correlated with the picture's
(Reddy and Chatterji 1996 do this in Fourier space), which gives a few angles; at each the template is shifted over the
picture (normalised correlation). Then the best are refined by the inverse compositional method of Baker and Matthews
(2004) with a similarity transform.

OpenCV's `findTransformECC` is close to the second step; it knows no similarity transform, and it has no robust weights:
a missing piece or a stain would pull the pose. Here each pixel counts less the worse it fits, and brightness, contrast
and a gradient of light are solved for beside the pose, so that they cannot be mistaken for a movement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_inspect.affine import similarity

__all__ = ["Match", "Motion", "Template"]

Picture = NDArray[np.float32]

COARSE_PIXELS = 1800
"""About how many pixels the coarse template has; the fine one is as it was given."""
_COARSE_STEPS = 6
_FINE_STEPS = 3
_ROBUST_STEPS = 4
_TOLERANCE = 0.25
"""A residual of this many of the template's standard deviations halves a pixel's influence, about."""
_RUNAWAY = 0.05
"""A correlation that falls by more in the refinement: it went astray."""
_SMALL_STEP = 0.01
"""Pixels of the template; a smaller correction ends the refinement."""
_ANGLES = 180
_RADII = 32
_SAME_ANGLE = math.cos(math.radians(10))
_RINGS = np.exp(2j * np.pi * np.arange(_ANGLES) / _ANGLES)[:, None] * (np.arange(_RADII) + 0.5) / _RADII
"""(angles, radii): where the rings are sampled, from the centre, as a share of the radius."""
_PEAK_WIDTH = 5  # of the angles, each way
_KEPT = 4
"""Candidates that are refined coarsely."""
_PLAY = 3
"""How far a texture may be off, in its pixels, each of which is two of the template's."""
_QUIET = 0.05
"""Texture weaker than this share of the template's contrast is noise and is not raised."""
_TEXTURE_SIGMA = 4.0
"""Pixels of the template: what is finer counts as texture, by which candidates are told apart."""


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
    """

    turn: complex
    middle: complex
    correlation: float = 0.0
    likeness: float = 0.0


class _Level:
    """The template on a grid of its own coarseness: `step` of its pixels apart."""

    def __init__(self, picture: Picture, step: float, motion: Motion) -> None:
        height, width = picture.shape
        self.step = step
        self.wh = max(8, round(width / step)), max(8, round(height / step))
        self.sigma = 0.5 * step
        self.picture = self.sample(_blurred(picture, self.sigma), Match(1, middle(picture)))
        y, x = np.mgrid[: self.wh[1], : self.wh[0]].astype(np.float32)
        x, y = x - (self.wh[0] - 1) / 2, y - (self.wh[1] - 1) / 2
        self.length = max(self.wh) / 2
        ramps = np.stack([np.ones_like(x), x / self.length, y / self.length]).reshape(3, -1)
        self.light = np.linalg.qr(ramps.T)[0].T.astype(np.float32)  # (3, N), orthonormal
        self.residue = self._without_light(self.picture)
        self.spread = float(self.residue.std())
        self.own_texture = _without_rings(self.texture(self.picture))
        gy, gx = np.gradient(self.picture)
        u, v = x / self.length, y / self.length
        movements = [gx, gy]
        if motion.turns:
            movements.append(gy * u - gx * v)
        if motion.is_scaled:
            movements.append(gx * u + gy * v)
        self.motion = motion
        # (movements + 4, N): each pixel's brightness is a linear function of the movement and the light
        self.design = np.concatenate([np.stack([self.residue, *(m.ravel() for m in movements)]), self.light])
        self.gram = np.linalg.inv((self.design @ self.design.T).astype(np.float64))

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

    def refine(self, picture: Picture, match: Match, steps: int, *, robust: bool) -> Match:
        """Gauss-Newton steps from `match`; ends early when they become small."""
        turn, at = match.turn, match.middle
        for _ in range(steps):
            seen = self.sample(picture, Match(turn, at)).ravel()
            solution = self._solve(seen, robust)
            gain, dx, dy = solution[:3]
            if gain <= 0:
                break
            moved = complex(dx, dy) / gain
            spin = float(solution[3] / gain) if self.motion.turns else 0.0
            grow = float(solution[3 + self.motion.turns] / gain) if self.motion.is_scaled else 0.0
            change = 1 + complex(grow, spin) / self.length
            if not self.motion.is_scaled:
                change /= abs(change)
            if not abs(moved) < self.length or abs(change - 1) > 0.5:
                break  # nothing there that looks like the template
            turn, at = turn / change, at - turn * self.step * moved / change
            if max(abs(moved), abs(spin), abs(grow)) * self.step < _SMALL_STEP:
                break
        return Match(turn, at)

    def _solve(self, seen: NDArray[np.float32], robust: bool) -> NDArray[np.float64]:
        solution = self.gram @ (self.design @ seen)
        if robust:
            residual = seen - solution.astype(np.float32) @ self.design
            tolerance = max(1e-3, _TOLERANCE * abs(float(solution[0])) * self.spread)
            weights = 1 / (1 + (residual / tolerance) ** 2)
            weighted = self.design * weights
            solution = np.linalg.solve(
                (weighted @ self.design.T).astype(np.float64) + 1e-6 * np.eye(len(weighted)), weighted @ seen
            )
        return np.asarray(solution, np.float64)

    def better(self, picture: Picture, refined: Match, start: Match) -> Match:
        """The refined match, or where it started when it ran away; robust refinement may agree a little less."""
        new, old = self.correlation(picture, refined), self.correlation(picture, start)
        return replace(refined, correlation=new) if new >= old - _RUNAWAY else replace(start, correlation=old)

    def texture(self, sampled: Picture) -> Picture:
        """What is fine, in units of how much of it there is thereabouts, at half the size: print and outlines, no shading."""
        fine = sampled - _blurred(sampled, _TEXTURE_SIGMA)
        amount = np.sqrt(_blurred(fine * fine, 2 * _TEXTURE_SIGMA))
        texture = fine / (amount + _QUIET * self.spread)
        half = max(4, self.wh[0] // 2), max(4, self.wh[1] // 2)
        return np.asarray(cv2.resize(texture, half, interpolation=cv2.INTER_AREA), np.float32)

    def likeness(self, picture: Picture, match: Match) -> float:
        """The correlation of the textures: what tells a print from itself upside down, whatever light falls on it.

        The best within a few pixels' shift: on a bent part the print is not where the outline says.
        """
        play = min(_PLAY, min(self.own_texture.shape) // 4)
        height, width = self.own_texture.shape
        inner = self.own_texture[play : height - play, play : width - play]
        scores = cv2.matchTemplate(self.texture(self.sample(picture, match)), inner, cv2.TM_CCOEFF_NORMED)
        return float(np.nan_to_num(scores, nan=-1.0, posinf=-1.0, neginf=-1.0).max())

    def correlation(self, picture: Picture, match: Match) -> float:
        seen = self._without_light(self.sample(picture, match))
        norms = float(np.linalg.norm(seen) * np.linalg.norm(self.residue))
        return float(seen @ self.residue) / norms if norms > 1e-6 else 0.0

    def _without_light(self, sampled: Picture) -> NDArray[np.float32]:
        flat = sampled.ravel()
        return np.asarray(flat - (self.light @ flat) @ self.light, np.float32)


def _blurred(picture: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)


def _without_rings(picture: Picture) -> Picture:
    """Less each ring's mean about the middle: what looks alike at any angle, such as a cap's rim, tells no angle."""
    y, x = np.indices(picture.shape, np.float32)
    centre = middle(picture)
    rings = np.hypot(x - centre.real, y - centre.imag).round().astype(np.int64)
    means = np.bincount(rings.ravel(), picture.ravel()) / np.maximum(1, np.bincount(rings.ravel()))
    return np.asarray(picture - means[rings], np.float32)


def middle(picture: NDArray[np.generic]) -> complex:
    return complex((picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2)


class Template:
    """A picture to be found in others: (h, w) float32 grey values; `scale` is pixels of those for one of its own.

    `centre`: the middle of its part, from the template's middle, about which angles are compared.
    """

    def __init__(self, picture: Picture, *, scale: float, motion: Motion, centre: complex = 0) -> None:
        self.picture, self.scale, self.motion, self.centre = picture, scale, motion, centre
        self.fine = _Level(picture, 1.0, motion)
        self.coarse = _Level(picture, max(1.0, math.sqrt(picture.size / COARSE_PIXELS)), motion)
        self.radius = abs(middle(picture))
        rings = self._rings(_blurred(picture, 1.0), middle(picture) + centre, self.radius)
        self._spectrum = np.conj(np.fft.rfft(rings, axis=0))

    def blurred(self, picture: Picture) -> tuple[Picture, Picture]:
        """The picture as the coarse and the fine level want it."""
        return _blurred(picture, self.coarse.sigma * self.scale), _blurred(picture, self.fine.sigma * self.scale)

    def angles(self, picture: Picture, centre: complex, scale: float, n: int) -> list[float]:
        """The n angles in radians that look best for a part about `centre` of `picture`, and the best one's opposite."""
        rings = np.fft.rfft(self._rings(picture, centre, self.radius * self.scale * scale), axis=0)
        agreement = np.fft.irfft((rings * self._spectrum).sum(1), _ANGLES)
        around = np.stack([np.roll(agreement, shift) for shift in range(-_PEAK_WIDTH, _PEAK_WIDTH + 1)])
        peaks = np.flatnonzero(agreement >= around.max(0))
        best = [int(i) for i in peaks[np.argsort(-agreement[peaks], kind="stable")[:n]]]
        # What is long, or printed across, looks nearly the same from behind, and its peak there may be a mere shoulder.
        opposite = (best[0] + _ANGLES // 2) % _ANGLES
        if all(min((opposite - i) % _ANGLES, (i - opposite) % _ANGLES) > _PEAK_WIDTH for i in best):
            best.append(opposite)
        return [2 * math.pi * i / _ANGLES for i in best]

    def _rings(self, picture: Picture, centre: complex, radius: float) -> Picture:
        """(angles, radii): brightness about `centre`, each ring less its mean, weighted with its length."""
        at_x, at_y = (centre.real + radius * _RINGS.real), (centre.imag + radius * _RINGS.imag)
        polar = cv2.remap(
            picture, at_x.astype(np.float32), at_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        lengths = np.sqrt(np.arange(1, _RADII + 1, dtype=np.float32))
        return np.asarray((polar - polar.mean(0)) * lengths, np.float32)

    def look_around(self, coarse: Picture, guess: Match, reach: float) -> Match:
        """The best place at the guess's own angle and scale, up to `reach` of the template's long side away."""
        level = self.coarse
        far = max(1, round(reach * max(level.wh)))
        field = level.sample(coarse, guess, (level.wh[0] + 2 * far, level.wh[1] + 2 * far))
        scores = cv2.matchTemplate(field, level.picture, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(np.nan_to_num(scores, nan=-1.0, posinf=-1.0, neginf=-1.0))
        return Match(guess.turn, guess.middle + guess.turn * level.step * complex(x - far, y - far), best)

    def refine(self, blurred: tuple[Picture, Picture], candidates: list[Match]) -> Match:
        """The best of the candidates, to a fraction of a pixel."""
        coarse, fine = blurred
        refined = [
            self.coarse.better(coarse, self.coarse.refine(coarse, match, _COARSE_STEPS, robust=False), match)
            for match in _different(candidates, _KEPT)
        ]
        start = max(refined, key=lambda match: self.fine.likeness(fine, match)) if len(refined) > 1 else refined[0]
        best = self.fine.refine(fine, start, _FINE_STEPS, robust=False)
        best = self.fine.refine(fine, best, _ROBUST_STEPS, robust=True)
        best = self.fine.better(fine, best, start)
        return replace(best, likeness=self.fine.likeness(fine, best))


def _different(candidates: list[Match], n: int) -> list[Match]:
    """The n best by correlation whose angles differ."""
    kept: list[Match] = []
    for match in sorted(candidates, key=lambda match: -match.correlation):
        if len(kept) < n and all(
            (match.turn / other.turn).real < _SAME_ANGLE * abs(match.turn / other.turn) for other in kept
        ):
            kept.append(match)
    return kept
