"""A model of anomalib inside our graph's contract.

    frames uint8 (N, H, W, 3) BGR -> scores float32 (N,), heatmaps float32 (N, H, W), expected uint8 (N, H, W, 3) BGR

The model's own normalisation becomes part of the graph. Its anomaly map is brought to the frame's size and standardised as our
error maps are; its own score is left out, the score is the mean of the heatmap's largest values as everywhere. `expected` is the
model's reconstruction where it has one (Draem, Ganomaly), else the mean good frame: what such a model compares has no picture.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from anomalib.data.utils.image import pad_nextpow2
from anomalib.models.image.draem.torch_model import DraemModel
from anomalib.models.image.ganomaly.torch_model import GanomalyModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flawline_inspect.calibration import GoodSpread
from flawline_inspect.errors import InputError
from flawline_inspect.frame import Placement
from flawline_train.graph import InspectionGraph

__all__ = ["AnomalibGraph", "MapNetwork"]


class MapNetwork(nn.Module):
    """(B, 3, H, W) BGR in 0-1 → raw anomaly map (B, 1, H, W) and what was expected (B, 3, H, W), BGR in 0-1.

    `channel_mean` and `channel_std` (3,) RGB are the model's normalisation; `good` (n, H, W, 3) BGR uint8 the pictures it has
    learnt from.
    """

    channel_mean: Tensor
    channel_std: Tensor
    mean_good: Tensor

    def __init__(
        self, model: nn.Module, channel_mean: list[float], channel_std: list[float], good: NDArray[np.uint8]
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("channel_mean", torch.tensor(channel_mean).view(1, 3, 1, 1))
        self.register_buffer("channel_std", torch.tensor(channel_std).view(1, 3, 1, 1))
        mean_good = torch.from_numpy(good.mean(0, dtype=np.float64).astype(np.float32) / 255)
        self.register_buffer("mean_good", mean_good.permute(2, 0, 1)[None].contiguous())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (_reversed_colours(x) - self.channel_mean) / self.channel_std
        if isinstance(self.model, DraemModel):
            errors, expected = self._draem(self.model, z)
        elif isinstance(self.model, GanomalyModel):
            errors, expected = self._ganomaly(self.model, z)
        else:
            errors = self.model(z).anomaly_map
            if errors is None:
                raise InputError(f"{type(self.model).__name__} gives no anomaly map, only a score: nothing to look at")
            return self._to_frame(errors, x), self.mean_good.expand_as(x)
        return self._to_frame(errors, x), _reversed_colours(expected * self.channel_std + self.channel_mean)

    @staticmethod
    def _draem(model: DraemModel, z: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction = model.reconstructive_subnetwork(z)
        prediction = model.discriminative_subnetwork(torch.cat([z, reconstruction], 1))
        return torch.softmax(prediction, 1)[:, 1:2], reconstruction

    @staticmethod
    def _ganomaly(model: GanomalyModel, z: Tensor) -> tuple[Tensor, Tensor]:
        """GANomaly scores a picture by its latent vectors and has no map: the reconstruction's error stands for it."""
        height, width = z.shape[-2:]
        fake, _, _ = model.generator(pad_nextpow2(z))
        top, left = -(-(fake.shape[-2] - height) // 2), -(-(fake.shape[-1] - width) // 2)
        reconstruction = fake[..., top : top + height, left : left + width]
        return (reconstruction - z).abs().mean(1, keepdim=True), reconstruction

    @staticmethod
    def _to_frame(errors: Tensor, x: Tensor) -> Tensor:
        if errors.dim() == 3:
            errors = errors.unsqueeze(1)
        if errors.shape[-2:] != x.shape[-2:]:
            errors = F.interpolate(errors, x.shape[-2:], mode="bilinear", align_corners=False)
        return errors


def _reversed_colours(x: Tensor) -> Tensor:
    """BGR ↔ RGB. Not `flip`, which becomes a Slice that steps backwards: not every engine reads those."""
    return torch.cat([x[:, 2:3], x[:, 1:2], x[:, 0:1]], 1)


class AnomalibGraph(InspectionGraph):
    """The graph around a `MapNetwork`, which gives its error map itself, at the frame's size."""

    cell: ClassVar[int] = 1

    def __init__(self, network: MapNetwork, good: GoodSpread, placement: Placement) -> None:
        super().__init__(network, nn.Identity(), good, placement)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = frames.float().permute(0, 3, 1, 2) / 255  # Cast first: TensorRT takes no other operation on uint8
        errors, expected = self.network(x)
        scores, heatmaps = self._judged(errors)
        pictures = (expected.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
        return scores, heatmaps, pictures
