"""The exponential moving average of the weights: what the last steps agree on, without the noise of the very last one.

Polyak and Juditsky 1992; the warm-up of the decay, min(decay, (1 + n) / (10 + n)) after n updates, is TensorFlow's
ExponentialMovingAverage: a short training is averaged over about its last tenth instead of over its untrained beginning. Batch
normalisation's statistics are averaged alike, so that they belong to the averaged weights.

Lightning's own callback averages tensor by tensor from Python, which costs a small network more than its optimiser does.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Averaging", "decay_after"]


def decay_after(updates: int, decay: float) -> float:
    """How much of the average remains at the update that follows `updates` earlier ones."""
    return min(decay, (1 + updates) / (10 + updates))


class Averaging(pl.Callback):
    """Averages after every optimiser step; at the end the module holds the average."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._updates = 0
        self._names: list[str] = []
        self._current: list[Tensor] = []
        self._average: list[Tensor] = []
        self._loaded: dict[str, Tensor] | None = None

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = {name: tensor for name, tensor in pl_module.state_dict().items() if tensor.is_floating_point()}
        self._names, self._current = list(state), list(state.values())  # views of the weights themselves
        self._average = [tensor.clone() for tensor in self._current]
        if self._loaded is not None:
            for name, average in zip(self._names, self._average, strict=True):
                average.copy_(self._loaded[name])
            self._loaded = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # torch has no types there
        update = get_ema_multi_avg_fn(decay_after(self._updates, self.decay))  # type: ignore[no-untyped-call]
        update(self._average, self._current, self._updates)
        self._updates += 1

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for current, average in zip(self._current, self._average, strict=True):
            current.copy_(average)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        weights = dict(zip(self._names, self._average, strict=True))
        checkpoint["average"] = {"updates": self._updates, "weights": weights}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A training that was not averaged so far is averaged from here on."""
        if "average" in checkpoint:
            self._updates, self._loaded = checkpoint["average"]["updates"], checkpoint["average"]["weights"]
