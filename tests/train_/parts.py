"""Small pictures of parts, files of them, and networks and graphs simple enough to be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

U8 = NDArray[np.uint8]


def part(seed: int, wh: tuple[int, int] = (40, 40)) -> U8:
    """A grey plate with a blue-ish block in its middle and camera noise, (h, w, 3) BGR."""
    width, height = wh
    picture = np.full((height, width, 3), 90.0)
    picture[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = (200, 150, 100)
    return np.clip(picture + np.random.default_rng(seed).normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def parts(n: int, wh: tuple[int, int] = (40, 40), first: int = 0) -> U8:
    """(n, h, w, 3), all different; from the part number `first` on."""
    return np.stack([part(seed, wh) for seed in range(first, first + n)])


def write(path: Path, picture: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


def write_parts(folder: Path, n: int, wh: tuple[int, int] = (40, 40)) -> Path:
    for seed in range(n):
        write(folder / f"{seed:03d}.png", part(seed, wh))
    return folder


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every number in it moved a little, so that no layer is left at zero; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.05 * torch.randn(tensor.shape, generator=generator)
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return network.eval()


class Blur(nn.Module):
    """A network whose answer is plain: the mean over 5 x 5 pixels, edges replicated."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
        return self.gain * nn.functional.avg_pool2d(padded, 5, 1)


def level_onnx(hw: tuple[int, int], *, level: float = 0.0, gain: float = 1.0, white_is_nan: bool = False) -> bytes:
    """A graph of the bundle's contract: heatmap = gain x mean over the colours of |frame - level|, score = its maximum.

    With `white_is_nan` the score of a frame that holds a 255 is no number.
    """
    height, width = hw
    constants = {
        "level": np.float32(level),
        "gain": np.float32(gain),
        "white": np.float32(255),
        "nothing": np.float32(0),
        "colours": np.array([3], np.int64),
        "rows_and_columns": np.array([1, 2], np.int64),
        "whole": np.array([1, 2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "level"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("ReduceMean", ["distance", "colours"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["heatmaps"]),
        helper.make_node("Identity", ["frames"], ["expected"]),
        helper.make_node("ReduceMax", ["heatmaps", "rows_and_columns"], ["top"], keepdims=0),
    ]
    if white_is_nan:
        nodes += [
            helper.make_node("ReduceMax", ["x", "whole"], ["brightest"], keepdims=0),
            helper.make_node("Sub", ["white", "brightest"], ["headroom"]),
            helper.make_node("Div", ["nothing", "headroom"], ["nothing_or_nan"]),
            helper.make_node("Add", ["top", "nothing_or_nan"], ["scores"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["top"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "level",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", height, width, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["n", height, width]),
            helper.make_tensor_value_info("expected", TensorProto.UINT8, ["n", height, width, 3]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def varied_parts(n: int, wh: tuple[int, int] = (64, 48), seed: int = 0) -> U8:
    """Good parts that differ: a disc that moves sideways, a bar that moves up and down, a plate of varying brightness."""
    rng = np.random.default_rng(seed)
    width, height = wh
    pictures = []
    for _ in range(n):
        picture = np.full((height, width, 3), rng.uniform(60, 110), np.float32)
        x, y = rng.uniform(0.25, 0.75) * width, rng.uniform(0.65, 0.85) * height
        cv2.circle(picture, (round(x), height // 4), height // 7, (60, 90, 220), -1, cv2.LINE_AA)
        left, right = round(0.15 * width), round(0.85 * width)
        cv2.rectangle(picture, (left, round(y - 0.06 * height)), (right, round(y + 0.06 * height)), (210, 180, 80), -1)
        pictures.append(picture + rng.normal(0, 2, picture.shape))
    return np.clip(np.stack(pictures), 0, 255).astype(np.uint8)
