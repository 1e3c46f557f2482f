"""Checkpoints of a training, as one safetensors file: tensors, and everything else as JSON in its header.

Lightning's own are pickles, and reading a pickle runs what it says. What a checkpoint may hold is therefore closed: tensors,
numbers, texts, None, and lists, tuples and dictionaries of these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic

__all__ = ["CHECKPOINT", "SafeCheckpoints", "checkpoint_bytes", "load_checkpoint"]

CHECKPOINT = "last.safetensors"
_TREE = "tree"


def checkpoint_bytes(checkpoint: dict[str, Any]) -> bytes:
    """Raises `TypeError` naming the place of anything that a checkpoint may not hold."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(checkpoint, "checkpoint", tensors))
    return safetensors.torch.save(tensors, {_TREE: tree})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint with its tensors on the CPU. Raises `InputError` when the file is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            loaded = _unpacked(tree, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118  # no mapping
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as exc:
        raise InputError(f"{path}: is no checkpoint of a training, or damaged ({exc}); begin without --resume") from exc
    assert isinstance(loaded, dict)
    return loaded


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        # Fused optimisers walk through weights and moments in the order of memory, so that both must come back alike.
        return {"tensor": place, "channels_last": _is_channels_last(value)}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int):
                raise TypeError(f"{place}: a key of a checkpoint is {type(key).__name__}, expected text or a number")
        return {"dict": [[key, _packed(item, f"{place}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place}: a checkpoint cannot hold {type(value).__name__}, only tensors, numbers and texts")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
    if "dict" in value:
        return {key: _unpacked(item, tensors) for key, item in value["dict"]}
    if "list" in value:
        return [_unpacked(item, tensors) for item in value["list"]]
    return tuple(_unpacked(item, tensors) for item in value["tuple"])


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


class SafeCheckpoints(CheckpointIO):
    """Lightning's way to the files. A checkpoint is whole or not there: written beside its place, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        write_atomic(Path(path), checkpoint_bytes(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
