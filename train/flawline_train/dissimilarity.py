"""How unlike two pictures are, pixel by pixel: the errors that the graph weighs, and losses of some methods.

All of them are formed from differences first, so that nothing nearly equal is subtracted late: rounding errors divided by a
small spread would look like defects that differ by engine.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["coarse_error", "gradient_dissimilarities", "structural_dissimilarity"]

SSIM_WINDOW = 7  # pixels
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
GRADIENT_SCALES = 2
GRADIENT_C = 0.0026
"""Keeps flat, noisy places from looking unlike (Zavrtanik et al. 2021, RIAD)."""


def structural_dissimilarity(x: Tensor, y: Tensor, window: int = SSIM_WINDOW) -> Tensor:
    """1 - SSIM (Wang et al. 2004) over a box of `window` (odd) pixels, averaged over the channels: (B, C, H, W) twice → (B, 1, H, W)
    in 0-2.

    Written with d = x - y, whose statistics are small where x and y agree; the textbook form subtracts nearly equal
    numbers there. Variances do not depend on the level they are taken from, but their rounding does: from the picture's own,
    engines agree at least five times better on bright, smooth parts than from black.
    """
    d = x - y
    colours = x.shape[1]
    level = x.mean((2, 3), keepdim=True)
    a, b = x - level, y - level
    stack = torch.cat([a, d, d * d, a * a + b * b], 1)
    radius = window // 2
    means = F.avg_pool2d(F.pad(stack, (radius, radius, radius, radius), mode="reflect"), window, 1)
    mean_a, mean_d, mean_dd, mean_squares = torch.split(means, colours, 1)
    mean_b = mean_a - mean_d
    luminance = mean_d * mean_d / ((mean_a + level).square() + (mean_b + level).square() + SSIM_C1)
    variances = (mean_squares - mean_a * mean_a - mean_b * mean_b).clamp(min=0)
    structure = (mean_dd - mean_d * mean_d).clamp(min=0) / (variances + SSIM_C2)
    # 1 - (1 - luminance)(1 - structure), multiplied out
    return (luminance + structure - luminance * structure).mean(1, keepdim=True)


def gradient_dissimilarities(x: Tensor, y: Tensor) -> list[Tensor]:
    """1 - MSGMS of grey pictures (B, 1, H, W) twice → (B, 1, H, W) and (B, 1, H / 2, W / 2), whose sum lies in 0-1.

    Gradient magnitude similarity (Xue et al. 2014) at full and half size (Zavrtanik et al. 2021 have a third). With the gradients a and
    b, 1 - (2ab + c) / (a² + b² + c) is (a - b)² / (a² + b² + c).
    """
    maps = []
    for scale in range(GRADIENT_SCALES):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        a, b = _gradient(x), _gradient(y)
        maps.append((a - b).square() / (a.square() + b.square() + GRADIENT_C) / GRADIENT_SCALES)
    return maps


def _gradient(x: Tensor) -> Tensor:
    """Prewitt's gradient magnitude of (B, 1, H, W)."""
    step = torch.tensor([[1.0, 0.0, -1.0]] * 3, device=x.device, dtype=x.dtype) / 3
    kernels = torch.stack([step, step.T]).unsqueeze(1)  # (2, 1, 3, 3)
    slopes = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernels)
    # No tiny number under the root: the exporter's optimiser takes 1e-8 for 0, and the engines would say something else.
    return torch.linalg.vector_norm(slopes, dim=1, keepdim=True)


def coarse_error(x: Tensor, coarse: Tensor) -> Tensor:
    """Absolute difference of x (B, 3, H, W), reduced, and `coarse` (B, 3, H / f, W / f): (B, 1, H / f, W / f)."""
    factor = x.shape[2] // coarse.shape[2]
    small = F.avg_pool2d(x, factor) if factor > 1 else x
    return (small - coarse).abs().mean(1, keepdim=True)
