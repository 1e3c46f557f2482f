"""A template to be found in pictures: shift, angle and scale.

First a look around: its brightness over angle and radius about its middle is correlated with the picture's (as Reddy and
Chatterji, 1996, do in Fourier space), which gives a few angles; at each it is shifted over the picture (normalised
correlation) and refined coarsely. Which of them is right, and where exactly, is told by the fine texture: print, threads
and edges in units of how much of them there is thereabouts. Brightness alone would take a print for itself upside down
under the same glare, and would slide a screw without its head to where the head should be.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from flawline_inspect.registration import Level, Match, Motion, Picture, middle

__all__ = ["Template"]

COARSE_PIXELS = 1800
"""About how many pixels the coarse template has; the fine one is as it was given."""
_COARSE_STEPS = 6
_FINE_STEPS = 6
_ANGLES = 180
_RADII = 32
_SAME_ANGLE = math.cos(math.radians(10))
_RINGS = np.exp(2j * np.pi * np.arange(_ANGLES) / _ANGLES)[:, None] * (np.arange(_RADII) + 0.5) / _RADII
"""(angles, radii): where the rings are sampled, from the centre, as a share of the radius."""
_PEAK_WIDTH = 5  # of the angles, each way
_KEPT = 4
"""Candidates that are refined coarsely."""
_RUNAWAY = 0.05
"""A correlation that falls by more in a refinement: it went astray."""
_PLAY = 0.12
"""How far the texture may be from where the brightness said, as a share of the long side."""
_CLOSE_BY = 3
_CLEARLY = 0.05
"""A correlation that is lower by more cannot be right after refinement."""
_MARKS_PLAY = 6
_QUIET = 0.05
"""Texture weaker than this share of the template's contrast is noise and is not raised."""
_FINE_PX, _AMOUNT_PX = 21, 41
"""Windows in pixels of the template: what is finer than the first counts as texture, its amount is taken over the second."""


class Template:
    """(h, w) float32 grey values; `scale` is the pixels of the pictures to be searched for one of its own.

    `centre`: the middle of its part, from the template's middle, about which angles are compared.
    """

    def __init__(self, picture: Picture, *, scale: float, motion: Motion, centre: complex = 0) -> None:
        self.scale, self.centre = scale, centre
        self._quiet = _QUIET * float(picture.std())
        self.fine = Level(picture, 1.0, motion, self._texture)
        self.coarse = Level(picture, max(1.0, math.sqrt(picture.size / COARSE_PIXELS)), motion)
        self._own_texture = _half(self._texture(self.fine.picture))
        self._marks = _without_rings(self._own_texture)
        self._radius = abs(middle(picture))
        rings = self._rings(picture, middle(picture) + centre, self._radius)
        self._spectrum = np.conj(np.fft.rfft(rings, axis=0))

    def blurred(self, picture: Picture) -> tuple[Picture, Picture]:
        """The picture as the coarse and the fine level want it."""
        coarse, fine = (
            np.asarray(cv2.GaussianBlur(picture, (0, 0), level.sigma * self.scale), np.float32)
            for level in (self.coarse, self.fine)
        )
        return coarse, fine

    def angles(self, picture: Picture, centre: complex, scale: float, n: int) -> list[float]:
        """The n angles in radians that look best for a part about `centre` of `picture`, and the best one's opposite."""
        rings = np.fft.rfft(self._rings(picture, centre, self._radius * self.scale * scale), axis=0)
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
        best, shift = _best_shift(field, level.picture)
        return Match(guess.turn, guess.middle + guess.turn * level.step * shift, best)

    def refine(self, blurred: tuple[Picture, Picture], candidates: list[Match]) -> Match:
        """The best of the candidates, to a fraction of a pixel, with its correlation and likeness."""
        coarse, fine = blurred
        found = _different(candidates, _KEPT)
        refined = [self.coarse.refined(coarse, match, _COARSE_STEPS, robust=False) for match in found]
        if not self.fine.motion.is_scaled:
            found = [_better(self.coarse, coarse, *pair) for pair in zip(refined, found, strict=True)]
        else:  # glare over half a part looks coarsely like a part of another size: what the foreground said may be right
            found += refined
        best = max((self._judged(fine, match) for match in found), key=lambda match: match.likeness)
        return max((self._settled(fine, match) for match in self._places(fine, best)), key=lambda match: match.likeness)

    def _settled(self, fine: Picture, match: Match) -> Match:
        refined = self.fine.refined(fine, match, _FINE_STEPS, robust=True)
        return self._judged(fine, _better(self.fine, fine, refined, match))

    def _judged(self, fine: Picture, match: Match) -> Match:
        """With its `likeness`: how well the template's marks, what tells an angle, are found there.

        A few pixels are allowed: on a bent part the print is not where the outline says.
        """
        width, height = self.fine.wh
        field = _half(self._texture(self.fine.sample(fine, match, (width + 2 * _MARKS_PLAY, height + 2 * _MARKS_PLAY))))
        return replace(match, likeness=_best_shift(field, self._marks)[0])

    def _places(self, fine: Picture, match: Match) -> list[Match]:
        """Where the whole texture fits best close by, and where further away, if that is as good: a thread's next turn."""
        far = max(_CLOSE_BY + 1, round(_PLAY * max(self.fine.wh) / 2))
        field = self.fine.sample(fine, match, (self.fine.wh[0] + 4 * far, self.fine.wh[1] + 4 * far))
        scores = _scores(_half(self._texture(field)), self._own_texture)
        centre = slice(far - _CLOSE_BY, far + _CLOSE_BY + 1)
        close = scores[centre, centre].copy()
        scores[centre, centre] = -1
        places = []
        for found, offset in ((close, _CLOSE_BY), (scores, far)):
            y, x = np.unravel_index(int(found.argmax()), found.shape)
            if offset == _CLOSE_BY or scores[y, x] > float(close.max()) - _CLEARLY:
                shift = complex(int(x) - offset, int(y) - offset)
                places.append(replace(match, middle=match.middle + match.turn * 2 * shift))
        return places

    def _texture(self, sampled: Picture) -> Picture:
        """What is fine, in units of how much of it there is thereabouts: print and outlines alike, and no shading."""
        fine = sampled - cv2.blur(sampled, (_FINE_PX, _FINE_PX))
        amount = np.sqrt(
            np.maximum(0, cv2.blur(fine * fine, (_AMOUNT_PX, _AMOUNT_PX)))
        )  # rounding may leave it below 0
        return np.asarray(fine / (amount + self._quiet), np.float32)


def _scores(field: Picture, template: Picture) -> Picture:
    """Normalised correlation of a template with each place in a larger field; -1 where there is nothing."""
    scores = cv2.matchTemplate(field, template, cv2.TM_CCOEFF_NORMED)
    return np.asarray(np.nan_to_num(scores, nan=-1.0, posinf=-1.0, neginf=-1.0), np.float32)


def _best_shift(field: Picture, template: Picture) -> tuple[float, complex]:
    """The highest of those scores, and where: from middle to middle."""
    _, best, _, (x, y) = cv2.minMaxLoc(_scores(field, template))
    return best, complex(x, y) + middle(template) - middle(field)


def _better(level: Level, picture: Picture, refined: Match, start: Match) -> Match:
    """The refined match with its correlation, or where it started when it ran away."""
    new, old = level.correlation(picture, refined), level.correlation(picture, start)
    return replace(refined, correlation=new) if new >= old - _RUNAWAY else replace(start, correlation=old)


def _half(picture: Picture) -> Picture:
    height, width = picture.shape
    even = picture[: height - height % 2, : width - width % 2]
    return np.asarray(cv2.resize(even, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)


def _without_rings(picture: Picture) -> Picture:
    """Less each ring's mean about the middle: what looks alike at any angle, such as a cap's rim, tells no angle."""
    y, x = np.indices(picture.shape, np.float32)
    centre = middle(picture)
    rings = np.hypot(x - centre.real, y - centre.imag).round().astype(np.int64)
    means = np.bincount(rings.ravel(), picture.ravel()) / np.maximum(1, np.bincount(rings.ravel()))
    return np.asarray(picture - means[rings], np.float32)


def _different(candidates: list[Match], n: int) -> list[Match]:
    """The n best by correlation whose angles differ."""
    kept: list[Match] = []
    for match in sorted(candidates, key=lambda match: -match.correlation):
        if len(kept) < n and all(
            (match.turn / other.turn).real < _SAME_ANGLE * abs(match.turn / other.turn) for other in kept
        ):
            kept.append(match)
    return kept
