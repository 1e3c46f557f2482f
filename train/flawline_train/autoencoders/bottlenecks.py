"""Bottlenecks: what stands between encoder and decoder, and decides what can come through.

A bottleneck is two halves around its code: `code` goes from the encoder's features to few numbers, `expand` back to what
the decoder takes. Whatever is done with a code (embedding, penalties, a prior to draw from) happens between the two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AttentionBottleneck", "Bottleneck", "GridBottleneck", "SparseBottleneck", "VectorBottleneck"]

VECTOR_CHANNELS = 16
"""Channels before a grid is flattened: the dense layers grow with the frame, and this keeps them small."""
HEADS = 4
THRESHOLD_SCALE = 10.0
"""An optimiser that moves every parameter by a thousandth at each step would take thousands to silence a unit."""


class Bottleneck(nn.Module, ABC):
    """Features (B, C, h, w) or (B, C) → code (B, `code_shape`) → features of the shape that came."""

    code_shape: tuple[int, ...]

    @abstractmethod
    def code(self, features: Tensor) -> Tensor:
        """(B, *code_shape); deterministic."""

    @abstractmethod
    def expand(self, code: Tensor) -> Tensor:
        """What the decoder takes, from (B, *code_shape)."""

    def forward(self, features: Tensor) -> Tensor:
        return self.expand(self.code(features))


class GridBottleneck(Bottleneck):
    """Few channels at every place: (B, C, h, w) → (B, code_channels, h, w). The place itself costs nothing."""

    def __init__(self, channels: int, code_channels: int, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        self.code_shape = (code_channels, *grid_hw)
        self.squeeze = nn.Conv2d(channels, code_channels, 1)
        self.widen = nn.Conv2d(code_channels, channels, 1)

    def code(self, features: Tensor) -> Tensor:
        out: Tensor = self.squeeze(features)
        return out

    def expand(self, code: Tensor) -> Tensor:
        out: Tensor = self.widen(code)
        return out


class VectorBottleneck(Bottleneck):
    """One vector for the whole picture: (B, C, h, w) → (B, size). Only what parts have in common can be put together again."""

    def __init__(self, channels: int, grid_hw: tuple[int, int], size: int) -> None:
        super().__init__()
        self.code_shape = (size,)
        grid = (VECTOR_CHANNELS, *grid_hw)
        self.squeeze = nn.Sequential(nn.Conv2d(channels, VECTOR_CHANNELS, 1), nn.Flatten())
        self.to_code = nn.Linear(math.prod(grid), size)
        self.from_code = nn.Sequential(nn.Linear(size, math.prod(grid)), nn.SiLU(), nn.Unflatten(1, grid))
        self.widen = nn.Conv2d(VECTOR_CHANNELS, channels, 1)

    def code(self, features: Tensor) -> Tensor:
        out: Tensor = self.to_code(self.squeeze(features))
        return out

    def expand(self, code: Tensor) -> Tensor:
        out: Tensor = self.widen(self.from_code(code))
        return out


class SparseBottleneck(GridBottleneck):
    """A grid of more units than the features need, of which few are active: 0 below a learnt threshold.

    The units are normalised over the training pictures. Without that an L1 penalty would be satisfied by small codes and
    large decoder weights, and nothing would become sparse.
    """

    def __init__(self, channels: int, code_channels: int, grid_hw: tuple[int, int]) -> None:
        super().__init__(channels, code_channels, grid_hw)
        self.normalise = nn.BatchNorm2d(code_channels, affine=False)
        self.threshold = nn.Parameter(torch.zeros(code_channels, 1, 1))

    def code(self, features: Tensor) -> Tensor:
        return F.relu(self.normalise(self.squeeze(features)) - THRESHOLD_SCALE * self.threshold)


class AttentionBottleneck(GridBottleneck):
    """A grid code in which every place has looked at every other, before it is squeezed and after it is widened."""

    def __init__(self, channels: int, code_channels: int, grid_hw: tuple[int, int]) -> None:
        super().__init__(channels, code_channels, grid_hw)
        self.before = GridAttention(channels, grid_hw)
        self.after = GridAttention(channels, grid_hw)

    def code(self, features: Tensor) -> Tensor:
        return super().code(self.before(features))

    def expand(self, code: Tensor) -> Tensor:
        out: Tensor = self.after(super().expand(code))
        return out


class GridAttention(nn.Module):
    """A transformer block over the places of a grid with learnt positions; (B, C, h, w), shape kept, C a multiple of 4.

    Pre-normalisation (Xiong et al. 2020, arXiv 2002.04745). Attention is written as two products and a softmax: every
    engine takes those, and at most a few thousand places make a faster kernel pointless.
    """

    def __init__(self, channels: int, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        self.grid_hw = grid_hw
        self.position = nn.Parameter(0.02 * torch.randn(math.prod(grid_hw), channels))
        self.first_norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.from_heads = nn.Linear(channels, channels)
        self.second_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) + self.position  # (B, hw, C)
        tokens = tokens + self._attend(self.first_norm(tokens))
        tokens = tokens + self.mlp(self.second_norm(tokens))
        return tokens.transpose(1, 2).unflatten(2, self.grid_hw)

    def _attend(self, tokens: Tensor) -> Tensor:
        qkv = self.to_qkv(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, hw, C / heads)
        queries, keys, values = qkv[0], qkv[1], qkv[2]
        weights = torch.softmax(queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1]), -1)
        out: Tensor = self.from_heads((weights @ values).transpose(1, 2).flatten(2))
        return out
