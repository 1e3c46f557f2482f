"""`flawline eval`."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flawline_engines import EngineKind, Precision
from flawline_inspect.bundle import Bundle
from flawline_train.evaluate import Evaluation, evaluate

__all__ = ["eval_command"]


def eval_command(
    bundle: Path,
    dataset: Path,
    /,
    *,
    json: bool = False,
    engine: EngineKind = "auto",
    precision: Precision = "fp32",
    threads: int = 0,
    state_dir: Path | None = None,
) -> None:
    """Measure a bundle on a data set with good and defective parts.

    Parameters
    ----------
    bundle
        A .flawline file.
    dataset
        Folder with test/good, test/DEFECT and, for pixel metrics, ground_truth/DEFECT/STEM_mask.png.
    json
        Print one JSON object.
    engine
        auto, tensorrt, tensorrt_rtx, openvino or onnxruntime.
    precision
        fp32, fp16 or int8 (see `flawline quantize`), or bf16 (OpenVINO only).
    threads
        0 leaves their number to the engine.
    state_dir
        The station's state directory, where `flawline build` keeps plans; without it the user's cache folder.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    opened = Bundle.open(bundle)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("scoring", total=None)
        result = evaluate(
            opened,
            dataset,
            engine=engine,
            precision=precision,
            threads=threads,
            state_dir=state_dir,
            on_progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
    for reason in result.skipped:
        err.print(f"note: skipped {reason}", style="yellow", markup=False)
    if json:
        values = result.to_dict()
        del values["skipped"]
        print(json_module.dumps(values))
    else:
        Console(highlight=False).print(_table(opened, result))
        Console(highlight=False, soft_wrap=True).print(_trust(result))


def _table(bundle: Bundle, result: Evaluation) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{bundle.model_id}: {result.n_good} good, {result.n_bad} defective",
        title_justify="left",
    )
    for heading in ("", "parts", "image AUROC", "not OK at threshold"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("good", str(result.n_good), "", f"{result.false_reject_rate:.1%} false rejects")
    for kind, figures in result.by_defect.items():
        caught = _caught(figures.escape_rate, figures.escape_interval)
        table.add_row(kind, str(figures.n), f"{figures.image_auroc:.4f}", caught)
    table.add_row(
        "all defects",
        str(result.n_bad),
        f"{result.image_auroc:.4f}",
        _caught(result.escape_rate, result.escape_interval),
        style="bold",
    )
    if result.n_good_unhealthy or result.n_bad_unhealthy:
        table.add_row(
            "not judged (picture health)",
            f"{result.n_good_unhealthy} good, {result.n_bad_unhealthy} defective",
            "",
            "counted as not OK",
        )
    table.add_row("average precision", "", f"{result.average_precision:.4f}", "")
    if result.pixel_auroc is not None and result.aupro is not None:
        table.add_row("pixel AUROC", "", f"{result.pixel_auroc:.4f}", "")
        table.add_row("AUPRO (up to 30 %)", "", f"{result.aupro:.4f}", "")
    table.add_row("threshold", "", f"{result.threshold:.4f}", "")
    return table


def _caught(escape_rate: float, escape_interval: tuple[float, float]) -> str:
    low, high = escape_interval
    return f"{1 - escape_rate:.1%} caught ({1 - high:.0%} to {1 - low:.0%})"


def _trust(result: Evaluation) -> str:
    """How far the figures can be trusted, and whether the bundle keeps its word."""
    low, high = result.false_reject_interval
    auroc_low, auroc_high = result.image_auroc_interval
    kept = (
        "which is compatible with the" if result.promise_kept else "above the"
    ) + f" {result.promised_false_reject_rate:.1%} that the bundle promises"
    return (
        f"95 % intervals: image AUROC {auroc_low:.4f} to {auroc_high:.4f}, false rejects {low:.1%} to {high:.1%}, {kept}"
        + ("" if result.promise_kept else ": the parts, the light or the camera are not those it was calibrated with")
    )
