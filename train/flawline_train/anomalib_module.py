"""Our autoencoders among anomalib's models: its Engine, its data modules and its command line train them too.

    Engine(max_steps=500).fit(FlawlineModule(image_size=(128, 128)), datamodule=Folder(...))

    anomalib train --model flawline_train.anomalib_module.FlawlineModule --data anomalib.data.Folder --data.name ...

Its maps are plain reconstruction errors per pixel, to be compared with other models of anomalib; the calibrated graph that a
station runs comes from `flawline train`. Importing this takes the seconds that importing anomalib takes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from anomalib import LearningType
from anomalib.data import Batch as AnomalibBatch
from anomalib.data import InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torchvision.transforms.v2 import Resize  # type: ignore[import-untyped]

from flawline_train.autoencoders import Autoencoder, Batch, FilteringAutoencoder
from flawline_train.fit import batch_rng, make_batch
from flawline_train.lightning_module import FittingModule

__all__ = ["ErrorModel", "FlawlineModule"]


class ErrorModel(nn.Module):
    """(B, 3, H, W) RGB in 0-1, as anomalib gives it → anomalib's scores (B,) and maps (B, 1, H, W).

    The map is the mean absolute error of each pixel over the colours, the score the map's maximum.
    """

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> InferenceBatch:
        anomaly_map = (images - self.network(images.flip(1)).flip(1)).abs().mean(1, keepdim=True)
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2, 3)), anomaly_map=anomaly_map)


class FlawlineModule(FittingModule, AnomalibModule):  # type: ignore[misc]  # anomalib's to_onnx is unlike Lightning's
    """`network` (a `FilteringAutoencoder` of `width` when not given) under anomalib.

    `image_size` (height, width), multiples of 16, is what pictures are resized to. `seed` draws what is done to them. A step
    makes its batch from the loader's, jittered and damaged as the network's method asks.
    """

    def __init__(
        self,
        network: Autoencoder | None = None,
        width: int = 32,
        image_size: tuple[int, int] = (128, 128),
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if isinstance(pre_processor, bool) and pre_processor:
            pre_processor = self.configure_pre_processor(image_size)
        AnomalibModule.__init__(self, pre_processor, post_processor, evaluator, visualizer)
        self.network = FilteringAutoencoder(width, image_size) if network is None else network
        self.model = ErrorModel(self.network)
        self.share = 0.0
        self.seed = seed
        self._context = contextlib.nullcontext()

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Pictures stay in 0-1: the network is trained on them as they are."""
        return PreProcessor(Resize(image_size or (128, 128), antialias=True))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        total = self.trainer.estimated_stepping_batches
        self.share = min(1.0, self.trainer.global_step / total) if np.isfinite(total) else 0.0
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: AnomalibBatch[Any] | Batch, batch_idx: int) -> Tensor:
        if not isinstance(batch, Batch):
            assert isinstance(batch.image, Tensor)
            frames = (batch.image.flip(1).permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().cpu().numpy()
            rng = batch_rng(self.seed, self.trainer.global_step, self.global_rank)
            batch = make_batch(frames, self.network.corruption, self.share, rng, self.device)
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: AnomalibBatch[Any], *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        return batch.update(**self.model(batch.image)._asdict())

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        return {"gradient_clip_val": 0, "num_sanity_val_steps": 0}  # the module clips by itself

    @property
    def learning_type(self) -> LearningType:
        return LearningType.ONE_CLASS
