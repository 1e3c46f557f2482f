"""A small graph of the project's own kind, untrained, and frames that look like nothing in particular."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.train_.parts import varied_parts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flawline_train.graph import ErrorMap, InspectionGraph
    from flawline_train.light import Light

HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True)
class SmallGraph:
    """The graph in torch, and the same exported."""

    graph: InspectionGraph
    onnx: bytes
    hw: tuple[int, int] = (HEIGHT, WIDTH)


def _fitted_to(x: Tensor, network: nn.Module, channels: tuple[str, ...]) -> tuple[ErrorMap, Light]:
    """What is fitted beside a network: on the pictures x (B, 3, H, W)."""
    import torch

    from flawline_train.graph import ErrorMap, reconstruct
    from flawline_train.light import Light

    light = Light((HEIGHT, WIDTH))
    light.fit((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    error_map = ErrorMap((HEIGHT, WIDTH), channels)
    with torch.inference_mode():
        seen, _ = light(x)
        error_map.patches.fit([error_map.ratio(seen, reconstruct(network, seen))])
    return error_map, light


@pytest.fixture(scope="session")
def small_graph(frames: dict[str, NDArray[np.uint8]]) -> SmallGraph:
    """Width 8, 64 x 48 px, a border that is no part of the picture; weights and the good parts' statistics are random."""
    import torch

    from flawline_inspect.calibration import GoodSpread
    from flawline_inspect.frame import Placement
    from flawline_train.autoencoders import FilteringAutoencoder
    from flawline_train.graph import ERROR_CHANNELS, InspectionGraph, onnx_from_graph

    random = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FilteringAutoencoder(8, (HEIGHT, WIDTH))
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:  # as if trained: statistics of real activations, which the exporter folds into the weights
            norm.momentum = 1.0
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.2)
        exit_layer = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        x = torch.from_numpy(np.stack(list(frames.values()))).float().permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            exit_layer.weight.normal_()
            exit_layer.bias.zero_()
            network.train()(x)
            # Differences of 0.15 of the range: visible in the heatmap, and not all clamped away.
            exit_layer.weight *= 0.15 / (network.eval()(x) - x).std()
        network.finish([x])
    error_map, light = _fitted_to(x, network, ERROR_CHANNELS)
    error_map.weights.copy_(torch.tensor([4.0, 2.5, 1.5, 3.0, 0.5]))
    error_map.floors.copy_(torch.tensor([0.01, 0.02, 0.03, 0.01, 0.1]))
    good = GoodSpread(
        mean=random.uniform(0.05, 0.3, (HEIGHT // 2, WIDTH // 2)).astype(np.float32),
        spread=random.uniform(0.05, 0.2, (HEIGHT // 2, WIDTH // 2)).astype(np.float32),
    )
    placement = Placement((640, 400), (0, 0, 640, 400), (0, 4, 64, 40))
    graph = InspectionGraph(network, error_map, good, placement, light).eval()
    return SmallGraph(graph, onnx_from_graph(graph))


@pytest.fixture(scope="session")
def method_graph() -> Callable[[str], SmallGraph]:
    """`method_graph(name)`: a small graph of this method, made once.

    One step of training sets what batch normalisation, codebook and mean picture follow; layers that begin at zero are
    made to say something; what is fitted after training is. Its errors are those that calibration chooses from.
    """
    import torch

    from flawline_inspect.calibration import GoodSpread
    from flawline_inspect.frame import Placement
    from flawline_train.autoencoders import Batch
    from flawline_train.autoencoders.methods import build
    from flawline_train.graph import ERROR_CHANNELS, InspectionGraph, onnx_from_graph, reconstruct

    @cache
    def make(name: str) -> SmallGraph:
        random = np.random.default_rng(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build(name, 4, (HEIGHT, WIDTH))
            x = torch.from_numpy(varied_parts(8, (WIDTH, HEIGHT))).permute(0, 3, 1, 2).float() / 255
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.data.normal_(0, 0.05)
            network.train().loss(Batch(x, x, torch.zeros_like(x[:, :1]), share=0.5))
            network.eval().finish([x])
            with torch.inference_mode():
                has_coarse = reconstruct(network, x).coarse is not None
            every = tuple(name for name in ERROR_CHANNELS if name != "coarse" or has_coarse)
            channels = network.error_channels or every
            error_map, light = _fitted_to(x, network, channels)
        good = GoodSpread(
            mean=random.uniform(0.05, 0.3, (HEIGHT // 2, WIDTH // 2)).astype(np.float32),
            spread=random.uniform(0.05, 0.2, (HEIGHT // 2, WIDTH // 2)).astype(np.float32),
        )
        placement = Placement((640, 400), (0, 0, 640, 400), (0, 4, 64, 40))
        graph = InspectionGraph(network, error_map, good, placement, light).eval()
        return SmallGraph(graph, onnx_from_graph(graph))

    return make


@pytest.fixture(scope="session")
def frames() -> dict[str, NDArray[np.uint8]]:
    """Name: a frame (48, 64, 3): flat ones, noise, and pictures with shapes, slopes and texture."""
    random = np.random.default_rng(1)
    found = {f"flat {level}": np.full((HEIGHT, WIDTH, 3), level, np.uint8) for level in (0, 128, 255)}
    found["noise"] = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    slope = np.linspace(0, 255, WIDTH)[None, :, None] * np.ones((HEIGHT, 1, 3))
    found["slope"] = slope.astype(np.uint8)
    for i in range(7):
        base = cv2.GaussianBlur(random.uniform(0, 255, (HEIGHT, WIDTH, 3)), (0, 0), 1.0 + i)
        picture = cv2.normalize(base, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)
        x, y = int(random.integers(0, 40)), int(random.integers(0, 30))
        colour = [int(value) for value in random.integers(0, 256, 3)]
        cv2.rectangle(picture, (x, y), (x + 16, y + 10), colour, -1)
        found[f"shapes {i}"] = picture
    return found
