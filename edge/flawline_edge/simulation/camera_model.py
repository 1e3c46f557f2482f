"""How the camera sees a workpiece: pose, lens, light, motion blur and the noise of the sensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline_edge.simulation.chance import Stream, stream
from flawline_edge.simulation.drawing import NOMINAL_H, NOMINAL_W
from flawline_edge.simulation.product import WORK
from flawline_edge.simulation.raster import F32, U8, f32, u8
from flawline_edge.simulation.station import SPARE, LightDrift, station

__all__ = ["CameraModel", "Shot"]

_VISIBLE_LEVELS = 2.5  # a difference below this drowns in the noise of the sensor
_READ_NOISE, _SHOT_NOISE = 0.9, 0.0125  # levels; levels² per level
_WARMTH: Final = np.array([-1.0, 0.0, 1.0])  # a lamp that ages shifts blue against red


@dataclass(frozen=True, slots=True)
class Shot:
    """Everything by chance between the workpiece and its picture."""

    pose: NDArray[np.float64]  # (2, 3), working to camera pixels
    blur: F32  # (1, k)
    gain: F32  # (3,)
    slant: float
    belt: int
    noise: NDArray[np.int64]  # (2, 2) rows and columns of two places on the noise sheet


class CameraModel:
    """The camera of line `seed`; `width` and `height` are its picture's, in pixels."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        self._seed = seed
        self._size = (width, height)
        self._scale = min(width / NOMINAL_W, height / NOMINAL_H)  # camera pixels per nominal pixel
        self._lens = 2 * int(np.ceil(1 / self._scale)) + 1  # working pixels
        self._station = station(width, height)
        self._drift = LightDrift(seed)

    def shot(self, index: int) -> Shot:
        """What chance gives part `index`."""
        rng = stream(self._seed, index, Stream.SHOT)
        shift = np.clip(rng.normal(0, 1.3, 2), -3, 3)
        angle = float(np.clip(rng.normal(0, 0.65), -1.5, 1.5))
        centre = (NOMINAL_W * WORK / 2 - 0.5, NOMINAL_H * WORK / 2 - 0.5)
        pose = np.asarray(cv2.getRotationMatrix2D(centre, angle, self._scale / WORK), np.float64)
        width, height = self._size
        pose[:, 2] += np.array([width / 2 - 0.5, height / 2 - 0.5]) - centre + shift * self._scale
        tint = (1 + rng.normal(0, 0.004, 3)) * (1 + 0.3 * self._drift(index, 1) * _WARMTH)
        return Shot(
            pose=pose,
            blur=_motion_kernel(float(rng.uniform(0, 1.5)) * self._scale),
            gain=f32(tint * (1 + self._drift(index, 0))),
            slant=float(0.5 * self._drift(index, 2)),
            belt=int(rng.integers(SPARE)),
            noise=rng.integers(0, SPARE, (2, 2)),
        )

    def seen(self, image: U8, shot: Shot) -> F32:
        """The light on the sensor before noise, (H, W, 3), levels, of a workpiece's layer."""
        soft = cv2.GaussianBlur(image, (self._lens, self._lens), 0)
        part = u8(cv2.warpAffine(soft, shot.pose, self._size))
        around = self._station
        scene: Any = around.belt[:, shot.belt : shot.belt + self._size[0]].copy()
        rail = len(around.rail)
        scene[:rail], scene[-rail:] = around.rail, around.rail[::-1]
        through = 255 - part[..., 3]
        beneath = cv2.multiply(scene, cv2.merge([through, through, through]), scale=1 / 255)
        scene = cv2.add(beneath, cv2.cvtColor(part, cv2.COLOR_BGRA2BGR))
        light = (around.light + shot.slant * around.slant) * shot.gain
        return f32(cv2.filter2D(scene, cv2.CV_32F, shot.blur)) * light

    def exposed(self, seen: F32, shot: Shot) -> U8:
        """The picture, with noise."""
        width, height = self._size
        (y0, x0), (y1, x1) = shot.noise
        noise = self._station.noise
        grain = noise[y0 : y0 + height, x0 : x0 + width] + noise[y1 : y1 + height, x1 : x1 + width]
        deviation = np.sqrt((_READ_NOISE**2 + _SHOT_NOISE * seen) / 2)  # two sheets are added
        return u8(np.clip(np.rint(seen + grain * deviation), 0, 255))

    def visible(self, drawn: U8, clean: F32, damaged: F32, shot: Shot) -> U8:
        """255 where the drawn shape makes a difference that can be seen through the noise, else 0."""
        near = np.ones((3, 3), np.uint8)
        place = cv2.warpAffine(drawn, shot.pose, self._size)
        inside = u8(cv2.dilate(place, near)) > 0
        change = f32(cv2.absdiff(np.minimum(clean, 255), np.minimum(damaged, 255)))
        # max(-1) over three channels takes ten times as long
        change = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
        visible = u8((change >= _VISIBLE_LEVELS) & inside)
        closed = u8(cv2.morphologyEx(visible, cv2.MORPH_CLOSE, near))
        return u8(np.where((closed > 0) & inside, 255, 0))


def _motion_kernel(travel: float) -> F32:
    """The belt's travel during the exposure, in camera pixels, as a row of weights."""
    half = max(1.0, travel) / 2
    taps = np.arange(-3, 4) if travel < 6 else np.arange(-12, 13)
    weights = np.clip(np.minimum(taps + 0.5, half) - np.maximum(taps - 0.5, -half), 0, None)
    return f32(weights / weights.sum())[None, :]
