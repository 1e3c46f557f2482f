"""Fitting an autoencoder to good pictures.

Structured corruption (the default): input = good picture with damage + Gaussian noise; target = the good picture + the
*same* noise (arXiv 2206.11723 and 2511.07233). The kept noise anchors the reconstruction to the identity on good pixels:
the network may not blur, only repair. With corruption `noise` the target is the clean picture (denoising, Vincent 2008).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawline_inspect.errors import InputError
from flawline_inspect.frame import FRAME_MULTIPLE
from flawline_train.autoencoders import Autoencoder, Batch, Corruption
from flawline_train.corruption import corrupt, jitter

__all__ = [
    "FROM_SCRATCH",
    "Budget",
    "FitProgress",
    "FitResult",
    "Schedule",
    "batch_rng",
    "check_devices",
    "choose_device",
    "fit",
    "make_batch",
]

BATCH_SIZE = 8
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
WARMUP_STEPS = 100
FINAL_RATE = 1e-3
"""Share of the learning rate that remains at the end of the cosine."""
GRADIENT_NORM = 1.0
EMA_DECAY = 0.999
"""Of the moving average of the weights, which is what a training ends with; see `flawline_train.averaging`."""
MAX_EPOCHS = 250
"""How often a training by time sees each picture at most. Beyond that a network of few pictures gets worse: it learns to pass what the
corruption never showed it (toy_alien, 30 pictures: 0.985 after 1000 steps, 0.966 after 2000)."""
GPU_BATCH_WORKERS = 4
CORRUPTED_SHARE = 0.9
"""The rest of the batch is good as it is, so that doing nothing is learnt too."""
NOISE = 0.05
"""Largest standard deviation of the kept noise, of full scale; each picture draws its own below it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: at a number of steps (reproducible), or at a moment of the monotonic clock, and then `at_most` steps."""

    steps: int | None = None
    until: float | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.until is None):
            raise InputError("give either steps or a time, not both")
        if self.at_most is not None and (self.until is None or self.at_most < 1):
            raise InputError("a limit of at least 1 step belongs to a time")

    def share_done(self, step: int, started: float, before: float = 0.0) -> float:
        """0 at the beginning, 1 at the end. `before`: what an earlier run, whose steps are counted in, has spent of the time."""
        if self.steps is not None:
            return step / self.steps
        assert self.until is not None
        share = before + (time.monotonic() - started) / max(1e-6, self.until - started)
        return share if self.at_most is None else max(share, step / self.at_most)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate: a linear warm-up of `warm_up` steps to `peak`, then half a cosine down to `FINAL_RATE` of it."""

    peak: float = LEARNING_RATE
    warm_up: int = WARMUP_STEPS


FROM_SCRATCH = Schedule()


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


def check_devices(device: torch.device, devices: int) -> None:
    """Raises `InputError` for a number of devices that this machine cannot train on."""
    if devices < 1:
        raise InputError(f"--devices is {devices}, expected at least 1")
    if devices == 1:
        return
    if ":" in str(device):  # torch's stub has it that every device has an index
        raise InputError(f"--device {device} is one device and --devices asks for {devices}; leave the number away")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--devices {devices}: only cpu and cuda train on more than one, found {device}")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"--devices is {devices}, this machine has {torch.cuda.device_count()}")


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
    schedule: Schedule = FROM_SCRATCH,
    ema_decay: float = EMA_DECAY,
    devices: int = 1,
    checkpoint: Path | None = None,
    resume: bool = False,
    tensorboard: Path | None = None,
    crop: int | None = None,
) -> FitResult:
    """Train `network` in place on good `frames` (n, H, W, 3) BGR uint8; leaves it in evaluation mode on `device`.

    With a budget of steps the same seed gives the same weights on the same machine and number of threads. `should_stop`
    is asked after every step.

    `ema_decay`: the network ends up with the moving average of its weights; 0 for the last weights as they are.
    `devices`: so many GPUs, or processes on the CPU, each with its own batch of `BATCH_SIZE`; `device` then has no index. They
    are started afresh, so a script that asks for more than one has to guard its start with `if __name__ == "__main__"`, and
    the network's class has to be importable.
    `checkpoint`: a folder in which the training is saved every two minutes and at its end; with `resume` it goes on from there,
    and what an earlier run has spent of the budget is spent. `tensorboard`: a folder for TensorBoard's files.

    `crop`: learn from random crops of at most so many pixels a side, a multiple of 16, so that a step costs the same however
    large the frames; for networks of `any_size`.

    At the end, averaged and in evaluation mode, the network is finished: `Autoencoder.finish` with the good pictures.

    Raises `FlawlineError` when the loss is no longer finite or a process fails, `InputError` for a checkpoint that is missing or
    another training's, for devices that are not there, and for crops that the network cannot learn from.
    """
    if crop is not None and (crop < FRAME_MULTIPLE or crop % FRAME_MULTIPLE or not network.any_size):
        raise InputError(
            f"crop is {crop} for a {type(network).__name__}, expected a multiple of {FRAME_MULTIPLE} and a network of any size"
        )
    from flawline_train.trainer import Job, identity_of, run_trainer  # seconds of Lightning: only who trains waits

    identity = identity_of(network, frames, seed, schedule, crop) if checkpoint is not None else ""
    job = Job(budget, seed, schedule, ema_decay, checkpoint, resume, tensorboard, identity, crop)
    if devices > 1:
        from flawline_train.ranks import fit_on_ranks

        result = fit_on_ranks(network, frames, job, device, devices, on_progress, should_stop)
    else:
        torch.manual_seed(seed)

        def make(step: int) -> Batch:
            # What share of the training is done, the module knows and fills in: this may be made long before its step.
            return make_batch(frames, network.corruption, 0.0, batch_rng(seed, step), device, crop)

        result = run_trainer(
            network,
            make,
            job,
            device=device,
            workers=batch_workers(device),
            on_progress=on_progress,
            should_stop=should_stop,
        )
    network.finish(_good_batches(frames, device))
    return result


def batch_rng(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """What a step's batch is drawn with: a training that is resumed need not know how the earlier ones were drawn."""
    return np.random.default_rng((seed, rank, step))


def batch_workers(device: torch.device) -> int:
    """How many threads make batches ahead. None where the processor that makes them is the one that trains."""
    return 0 if device.type == "cpu" else min(GPU_BATCH_WORKERS, os.cpu_count() or 1)


def _good_batches(frames: NDArray[np.uint8], device: torch.device) -> Iterator[Tensor]:
    """Every picture once, as it is: (B, 3, H, W) in 0-1."""
    for start in range(0, len(frames), BATCH_SIZE):
        yield _tensor(frames[start : start + BATCH_SIZE].astype(np.float32) / np.float32(255), device)


def make_batch(
    frames: NDArray[np.uint8],
    corruption: Corruption,
    share: float,
    rng: np.random.Generator,
    device: torch.device,
    crop: int | None = None,
) -> Batch:
    """The next `BATCH_SIZE` pictures or crops of at most `crop` pixels a side, jittered, and damaged as the method asks."""
    chosen = rng.integers(0, len(frames), BATCH_SIZE)
    pictures = [frames[i] if crop is None else _cropped(frames[i], crop, rng) for i in chosen]
    good = np.stack([jitter(picture.astype(np.float32) / np.float32(255), rng) for picture in pictures])  # (B, H, W, 3)
    height, width = good.shape[1:3]
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


def _cropped(frame: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """As it lies: turned or mirrored, a texture would be lit from another side."""
    height, width = min(side, frame.shape[0]), min(side, frame.shape[1])
    top = int(rng.integers(0, frame.shape[0] - height + 1))
    left = int(rng.integers(0, frame.shape[1] - width + 1))
    return frame[top : top + height, left : left + width]


def _tensor(pictures: NDArray[np.float32], device: torch.device) -> Tensor:
    """(B, H, W, C) → (B, C, H, W), channels last in memory as it came."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device, non_blocking=True)
