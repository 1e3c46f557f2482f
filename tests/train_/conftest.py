"""What the tests of training share: one thread for torch, and what costs seconds and is made once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.train_.parts import shaken, varied_parts

from flawline_inspect.calibration import GoodSpread
from flawline_inspect.frame import Placement
from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.graph import ERROR_CHANNELS, ErrorMap, InspectionGraph, onnx_from_graph


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def good_spread(hw: tuple[int, int], seed: int = 0) -> GoodSpread:
    rng = np.random.default_rng(seed)
    mean, spread = rng.uniform(0.02, 0.2, hw), rng.uniform(0.02, 0.1, hw)
    return GoodSpread(mean.astype(np.float32), spread.astype(np.float32))


@pytest.fixture(scope="session")
def inspection_graph() -> InspectionGraph:
    """48 x 64 with a border of 4 rows above and 6 below, whose network has no zeros left in it; all errors."""
    error_map = ErrorMap((48, 64), ERROR_CHANNELS)
    error_map.weights.copy_(torch.tensor([1.7, 0.6, 0.9, 2.1, 0.4]))
    error_map.floors.copy_(torch.tensor([0.01, 0.02, 0.03, 0.04, 0.1]))
    network = FilteringAutoencoder(4, (48, 64))
    shaken(network)
    network.finish([torch.from_numpy(varied_parts(12, (64, 48))).permute(0, 3, 1, 2).float() / 255])
    placement = Placement((128, 76), (0, 0, 128, 76), (0, 4, 64, 38))
    return InspectionGraph(network, error_map, good_spread((24, 32)), placement).eval()


@pytest.fixture(scope="session")
def exported(inspection_graph: InspectionGraph) -> bytes:
    return onnx_from_graph(inspection_graph)
