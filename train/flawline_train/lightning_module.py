"""An autoencoder as Lightning trains it: one step, the optimiser and its learning rate, nothing else.

Budgets, batches, averaging and checkpoints are what `flawline_train.trainer` adds. anomalib's Engine and command line train
the same module as `flawline_train.anomalib_module.FlawlineModule`; it is kept apart because importing anomalib takes longer
than importing torch and Lightning together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flawline_train.autoencoders import Autoencoder, Batch
from flawline_train.fit import FINAL_RATE, FROM_SCRATCH, GRADIENT_NORM, WEIGHT_DECAY, Schedule, has_bf16

__all__ = ["FittingModule", "learning_rate"]


def learning_rate(step: int, share: float, schedule: Schedule = FROM_SCRATCH) -> float:
    """A linear warm-up over the first steps, then half a cosine over the `share` 0-1 of the training that is done."""
    warm = min(1.0, (step + 1) / schedule.warm_up)
    return schedule.peak * warm * (0.5 * (1 + math.cos(math.pi * share)) + FINAL_RATE)


class FittingModule(pl.LightningModule):
    """Trains `network` with its own loss on batches of `flawline_train.fit.make_batch`.

    `share`, 0-1 of the training that is done, is set by whoever knows the budget; learning rate and warm-ups follow it.
    """

    schedule = FROM_SCRATCH

    def __init__(self, network: Autoencoder, schedule: Schedule = FROM_SCRATCH) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.share = 0.0
        self._context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def on_fit_start(self) -> None:
        """bf16 where the processor has it. One context for all steps: Lightning's own precision makes one a step."""
        if has_bf16(self.device):
            self._context = torch.autocast(self.device.type, torch.bfloat16)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with self._context:
            return self.network.loss(dataclasses.replace(batch, share=self.share))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = learning_rate(self.trainer.global_step, self.share, self.schedule)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.schedule.peak, weight_decay=WEIGHT_DECAY, fused=True
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Always by the norm, whatever the Trainer was told."""
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], GRADIENT_NORM)
