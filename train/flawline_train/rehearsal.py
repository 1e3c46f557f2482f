"""A dry run: a few steps on the real pictures tell what the whole training would be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flawline_train.fit import Budget, FitResult

__all__ = ["REHEARSAL", "Rehearsal", "rehearsal_of"]

REHEARSAL = Budget(steps=5)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a dry run measured. `gflop` of one picture; `steps` that the time would be worth, or were asked for."""

    steps_per_second: float
    steps: int
    gflop: float


def rehearsal_of(
    network: nn.Module, frame: NDArray[np.uint8], result: FitResult, wanted: Budget, fit_began: float
) -> Rehearsal:
    """From the `result` of a few steps on `frame`s (H, W, 3), what the `wanted` budget would have been worth.

    `fit_began`: the moment of the monotonic clock at which the fit would have begun.
    """
    rate = result.steps / max(1e-6, result.seconds)
    device = next(network.parameters()).device
    x = torch.from_numpy(frame).to(device).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(x)
    steps = wanted.steps if wanted.until is None else round(rate * (wanted.until - fit_began))
    assert steps is not None
    return Rehearsal(rate, steps, counter.get_total_flops() / 1e9)
