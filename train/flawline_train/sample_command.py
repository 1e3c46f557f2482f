"""`flawline sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from flawline_inspect.bundle import Bundle
from flawline_train.sampling import draw_parts, save_sample

__all__ = ["sample_command"]


def sample_command(
    bundle: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    number: Annotated[int, Parameter(name=("--number", "-n"))] = 64,
    seed: int = 0,
) -> None:
    """Draw pictures of new good parts: what the model takes a good part to be, and may vary.

    Parameters
    ----------
    bundle
        A .flawline file of a generative method: variational, beta, vector-quantized or hierarchical.
    out
        Folder for the pictures, made when it is not there: 0000.png and so on, and all of them in sheet.png.
    number
        How many.
    seed
        The same seed draws the same parts.
    """
    sheet = save_sample(draw_parts(Bundle.open(bundle), number, seed=seed), out)
    Console(highlight=False, soft_wrap=True).print(f"{out}: {number} drawn parts; look at {sheet}", markup=False)
