"""A training seen in TensorBoard: loss, learning rate and speed, and now and then what the network makes of damage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawline_inspect.errors import InputError
from flawline_train.autoencoders import Autoencoder, Batch

__all__ = ["TensorBoard", "check_tensorboard", "picture_strip"]

SCALARS_EVERY_S = 1.0
PICTURES_EVERY_S = 30.0
STRIP_PICTURES = 4
ERROR_GAIN = 4.0
"""A mean absolute error of a quarter of full scale is shown white."""


def check_tensorboard() -> None:
    """Raises `InputError` saying which package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as exc:
        raise InputError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        ) from exc


def picture_strip(inputs: Tensor, expected: Tensor) -> NDArray[np.uint8]:
    """Input | expected | error, a row a picture: two (B, 3, H, W) BGR in about 0-1 → (B H, 3 W, 3) RGB."""
    error = ((inputs - expected).abs().mean(1, keepdim=True) * ERROR_GAIN).expand_as(inputs)
    row = torch.cat([inputs, expected, error], 3).flip(1).clamp(0, 1)  # (B, 3, H, 3 W)
    strip = (row * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flatten(0, 1)
    return strip.cpu().numpy()


class TensorBoard(pl.Callback):
    """Writes to `folder` from the first rank; its pictures are looked at in evaluation mode and change nothing."""

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        self._writer: Any = None
        self._scalars_at = self._pictures_at = -float("inf")
        self._steps_told = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
            self._steps_told = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._writer is None:
            return
        now, step = time.monotonic(), trainer.global_step
        if now - self._scalars_at >= SCALARS_EVERY_S:
            self._writer.add_scalar("loss", float(outputs["loss"]), step)
            self._writer.add_scalar("learning rate", trainer.optimizers[0].param_groups[0]["lr"], step)
            if np.isfinite(self._scalars_at):
                self._writer.add_scalar("steps per second", (step - self._steps_told) / (now - self._scalars_at), step)
            self._scalars_at, self._steps_told = now, step
        if now - self._pictures_at >= PICTURES_EVERY_S:
            network = pl_module.network
            assert isinstance(network, Autoencoder) and isinstance(batch, Batch)
            self._writer.add_image("input, expected, error", _strip(network, batch), step, dataformats="HWC")
            self._pictures_at = now

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@torch.no_grad()
def _strip(network: nn.Module, batch: Batch) -> NDArray[np.uint8]:
    inputs = batch.inputs[:STRIP_PICTURES]
    network.eval()
    try:
        with torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []):
            expected = network(inputs).float()
    finally:
        network.train()
    return picture_strip(inputs, expected)
