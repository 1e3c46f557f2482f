"""`flawline export`: a bundle's graph for servers that run it in place of the station."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from flawline_engines.triton_repository import ModelSettings, write_repository
from flawline_inspect.bundle import Bundle

__all__ = ["export"]


def export(
    bundle: Path,
    /,
    *,
    triton: Path,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    max_batch: int = 16,
    queue_delay_us: int = 0,
    instances: int = 1,
    state_dir: Path | None = None,
) -> None:
    """Write a bundle's graph into a Triton model repository, for `engine: triton`.

    Parameters
    ----------
    bundle
        A .flawline file.
    triton
        The repository's folder; what else is in it stays.
    precision
        fp32; fp16 or int8 for a bundle that `flawline quantize` has been through.
    max_batch
        Frames that the server takes together at most, 1 to 64.
    queue_delay_us
        How long the server may keep a frame waiting for others, in microseconds; 0 takes together what waits anyway.
    instances
        Copies of the model on each GPU that run at the same time.
    state_dir
        Where `flawline build --engine tensorrt` keeps plans, which are exported too; without it the user's cache folder.
    """
    settings = ModelSettings(max_batch, queue_delay_us, instances)
    out = Console(highlight=False, soft_wrap=True)
    for model in write_repository(
        Bundle.open(bundle), triton, precision=precision, settings=settings, state_dir=state_dir
    ):
        bound_to = f": for {model.note} only, and a server with exactly that TensorRT" if model.note else ""
        out.print(f"{model.folder}{bound_to}", markup=False)
