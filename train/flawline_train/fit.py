"""Fitting an autoencoder to good pictures.

Structured corruption (the default): input = good picture with damage + Gaussian noise; target = the good picture + the
*same* noise (arXiv 2206.11723 and 2511.07233). The kept noise anchors the reconstruction to the identity on good pixels:
the network may not blur, only repair. With corruption `noise` the target is the clean picture (denoising, Vincent 2008).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawline_inspect.errors import FlawlineError, InputError
from flawline_train.autoencoders import Autoencoder, Batch, Corruption
from flawline_train.corruption import corrupt, jitter

__all__ = ["Budget", "FitProgress", "FitResult", "choose_device", "fit", "make_batch"]

_log = logging.getLogger(__name__)

BATCH_SIZE = 8
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
WARMUP_STEPS = 100
FINAL_RATE = 1e-3
"""Share of the learning rate that remains at the end of the cosine."""
GRADIENT_NORM = 1.0
CORRUPTED_SHARE = 0.9
"""The rest of the batch is good as it is, so that doing nothing is learnt too."""
NOISE = 0.05
"""Largest standard deviation of the kept noise, of full scale; each picture draws its own below it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: at a number of steps (reproducible), or at a moment of the monotonic clock."""

    steps: int | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.until is None):
            raise InputError("give either steps or a time, not both")

    def share_done(self, step: int, started: float) -> float:
        """0 at the beginning, 1 at the end."""
        if self.steps is not None:
            return step / self.steps
        assert self.until is not None
        return (time.monotonic() - started) / max(1e-6, self.until - started)


@dataclass(frozen=True, slots=True)
class FitProgress:
    """`share` 0-1 of the budget; `loss` is smoothed over about fifty steps."""

    share: float
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class FitResult:
    steps: int
    loss: float
    seconds: float
    autocast: bool
    interrupted: bool


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA where it works, else CPU), or what torch understands. Raises `InputError` naming what is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        found = "cpu and cuda" if torch.cuda.is_available() else "cpu only"
        raise InputError(f"--device {name} cannot be used; this machine has {found}") from exc
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 natively; elsewhere autocast would only be slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def fit(
    network: Autoencoder,
    frames: NDArray[np.uint8],
    budget: Budget,
    *,
    seed: int,
    device: torch.device,
    on_progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train `network` in place on good `frames` (n, H, W, 3) BGR uint8; leaves it in evaluation mode on `device`.

    With a budget of steps the same seed gives the same weights on the same machine and number of threads. `should_stop`
    is asked after every step. Raises `FlawlineError` when the loss is no longer finite.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    autocast = has_bf16(device)
    context = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()

    started = time.monotonic()
    step, smooth_loss = 0, math.nan
    interrupted = False
    while (share := budget.share_done(step, started)) < 1:
        rate = (
            LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 * (1 + math.cos(math.pi * share)) + FINAL_RATE)
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = make_batch(frames, network.corruption, share, rng, device)
        with context:
            loss = network.loss(batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FlawlineError(f"training diverged at step {step} (loss {value}); try another --seed")
        smooth_loss = value if math.isnan(smooth_loss) else 0.98 * smooth_loss + 0.02 * value
        step += 1
        if on_progress is not None:
            on_progress(FitProgress(min(1.0, budget.share_done(step, started)), step, smooth_loss))
        if should_stop():
            interrupted = True
            break
    network.eval()
    network.finish(_good_batches(frames, device))
    return FitResult(step, smooth_loss, time.monotonic() - started, autocast, interrupted)


def _good_batches(frames: NDArray[np.uint8], device: torch.device) -> Iterator[Tensor]:
    """Every picture once, as it is: (B, 3, H, W) in 0-1."""
    for start in range(0, len(frames), BATCH_SIZE):
        yield _tensor(frames[start : start + BATCH_SIZE].astype(np.float32) / np.float32(255), device)


def make_batch(
    frames: NDArray[np.uint8], corruption: Corruption, share: float, rng: np.random.Generator, device: torch.device
) -> Batch:
    """The next `BATCH_SIZE` pictures, jittered, and damaged as the method asks."""
    height, width = frames.shape[1:3]
    chosen = rng.integers(0, len(frames), BATCH_SIZE)
    good = np.stack([jitter(frames[i].astype(np.float32) / 255, rng) for i in chosen])  # (B, H, W, 3)
    inputs = target = good
    masks = np.zeros((BATCH_SIZE, height, width, 1), np.float32)
    if corruption == "structured":
        inputs = good.copy()
        for k in range(BATCH_SIZE):
            if rng.random() < CORRUPTED_SHARE:
                inputs[k], mask = corrupt(good[k], good[(k + 1) % BATCH_SIZE], rng)
                masks[k, ..., 0] = mask
    if corruption != "none":
        sigma = NOISE * rng.random((BATCH_SIZE, 1, 1, 1), np.float32)
        noise = rng.standard_normal(good.shape, np.float32) * sigma
        inputs = inputs + noise
        if corruption == "structured":
            target = good + noise
    return Batch(_tensor(inputs, device), _tensor(target, device), _tensor(masks, device), share)


def _tensor(pictures: NDArray[np.float32], device: torch.device) -> Tensor:
    """(B, H, W, C) → (B, C, H, W), channels last in memory as it came."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device, non_blocking=True)
