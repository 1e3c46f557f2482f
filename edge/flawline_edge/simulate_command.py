"""`flawline simulate`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flawline_edge.simulation import DEFECT_KINDS, write_dataset
from flawline_inspect.errors import InputError

__all__ = ["simulate"]


def simulate(folder: Path, /, *, train: int = 200, good: int = 100, per_defect: int = 20, seed: int = 0) -> None:
    """Write pictures of the simulated line as a data set with masks.

    Parameters
    ----------
    folder
        A new or empty folder; gets train/good, test/good, test/KIND and, with the masks, ground_truth/KIND.
    train
        Pictures of good parts to learn from.
    good
        Pictures of good parts to test with.
    per_defect
        Pictures of each kind of defect to test with, each with its mask.
    seed
        Which parts, poses and light; the same seed gives the same pictures, another one other parts of the
        same product.
    """
    numbers = {"--train": train, "--good": good, "--per-defect": per_defect, "--seed": seed}
    for option, number in numbers.items():
        if number < 0:
            raise InputError(f"{option} is {number}, expected a whole number from 0")
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)
        try:
            write_dataset(
                folder,
                seed=seed,
                n_train=train,
                n_test_good=good,
                n_test_per_defect=per_defect,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except FileExistsError as exc:
            raise InputError(str(exc)) from exc
        except OSError as exc:
            raise InputError(f"{folder} cannot be written ({exc}); expected a folder with room for it") from exc
    kinds = len(DEFECT_KINDS)
    print(
        f"{folder}: wrote {train} good pictures to learn from, {good} good ones to test with, and "
        f"{per_defect * kinds} defective ones ({per_defect} of each of {kinds} kinds) with masks"
    )
