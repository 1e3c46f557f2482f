"""Networks of the family, trained for seconds on small parts; each is made once and shared by the tests."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from tests.train_.parts import varied_parts
from torch import Tensor

from flawline_train.autoencoders import Autoencoder
from flawline_train.autoencoders.methods import Setting, build
from flawline_train.fit import Budget, fit

HW = (48, 64)
WIDTH = 8
STEPS = 300


def pictures(n: int, seed: int) -> Tensor:
    """(n, 3, H, W) in 0-1."""
    frames = varied_parts(n, (HW[1], HW[0]), seed)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@cache
@torch.inference_mode(False)  # whoever asks first may be in inference mode, whose tensors nobody can differentiate
def unseen() -> Tensor:
    """32 good parts that no network was trained on."""
    return pictures(32, seed=1)


@cache
def mean_picture_error() -> float:
    """Squared error of the best answer that looks at nothing: the training parts' mean."""
    mean = torch.from_numpy(varied_parts(40, (HW[1], HW[0])).mean(0) / np.float32(255)).permute(2, 0, 1)
    return float((unseen() - mean).square().mean())


@cache
@torch.inference_mode(False)
def trained(method: str, steps: int = STEPS, **settings: Setting) -> Autoencoder:
    """In evaluation mode; the same arguments give the same network. Not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(method, WIDTH, HW, **settings)
        frames = varied_parts(40, (HW[1], HW[0]))
        fit(network, frames, Budget(steps=steps), seed=0, device=torch.device("cpu"))
    return network
