"""`flawline quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EXIT_DONE, EXIT_FAILURE, InputError
from flawline_train.quantize import SmallerPrecision, quantize

__all__ = ["quantize_command"]

_PRECISIONS: tuple[SmallerPrecision, ...] = ("fp16", "int8")


def quantize_command(
    bundle: Path,
    /,
    *,
    precisions: str = "fp16,int8",
    pictures: Path | None = None,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
) -> int:
    """Add half precision and int8 graphs to a bundle, for engines that are faster with them.

    Each is held against the float32 graph on the bundle's golden pictures, with every engine of this machine that can
    run it, and is written only if no verdict changes. The bundle is rewritten whole, so its manifest and with it the
    model's id change: name.flawline deployed before and after are two models to a station and in its journal.
    Ends with 1 when a precision was refused.

    Parameters
    ----------
    bundle
        A .flawline file.
    precisions
        fp16, int8 or both, with a comma between them.
    pictures
        Folder of pictures of good parts to calibrate int8 on; without it the bundle's good golden pictures are taken.
        A hundred of them make the ranges more trustworthy than the eight in the bundle.
    out
        Write the new bundle here and leave the old one.
    """
    opened = Bundle.open(bundle)
    wanted = [word.strip() for word in precisions.split(",") if word.strip()]
    if unknown := [word for word in wanted if word not in _PRECISIONS]:
        raise InputError(f"--precisions has {unknown[0]!r}, expected fp16, int8 or both with a comma between them")
    chosen = [precision for precision in _PRECISIONS if precision in wanted]
    if not chosen:
        raise InputError("--precisions is empty, expected fp16, int8 or both with a comma between them")
    target = out or bundle
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with errors.status("opening", spinner="line") as status:
        found = quantize(opened, target, chosen, pictures=pictures, on_progress=status.update)
    console = Console(highlight=False, soft_wrap=True)
    for outcome in found.outcomes:
        state = "refused" if outcome.refusal else "added"
        console.print(f"{outcome.precision}: {state}{f', {outcome.note}' if outcome.note else ''}", markup=False)
        for parity in outcome.parities:
            console.print(
                f"  {parity.engine}: scores differ by {parity.score_difference:.3%} at most, heatmaps by "
                f"{parity.heatmap_difference:.2%}, {len(parity.flips)} verdicts changed",
                markup=False,
            )
        if outcome.refusal:
            console.print(f"  {outcome.refusal}", style="red", markup=False)
    if found.bundle is None:
        console.print(f"{bundle}: unchanged", markup=False)
    else:
        console.print(f"{target}: {found.bundle.model_id} (was {opened.model_id})", markup=False)
    return EXIT_FAILURE if any(outcome.refusal for outcome in found.outcomes) else EXIT_DONE
