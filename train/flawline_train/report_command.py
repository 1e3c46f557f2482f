"""`flawline report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress

from flawline_engines import EngineKind, open_engine
from flawline_inspect.bundle import MODEL, REPORT, Bundle
from flawline_inspect.errors import BundleError, InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.frame import fit_picture
from flawline_train.evaluate import evaluate
from flawline_train.report.data import ReportData, Role, ScoredPicture, Triple, report_of_manifest
from flawline_train.report.facts import report_from_html
from flawline_train.report.judged import JudgedPictures
from flawline_train.report.page import interactive_html, report_path
from flawline_train.report.pictures import thumbnail, triple

__all__ = ["report_command"]


def report_command(
    bundle: Path,
    dataset: Path | None = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    engine: EngineKind = "auto",
    threads: int = 0,
) -> None:
    """Make the report of a bundle again, with what it does on a data set of good and defective parts.

    Parameters
    ----------
    bundle
        A .flawline file.
    dataset
        Folder with test/good, test/DEFECT and, for pixel metrics, ground_truth/DEFECT/STEM_mask.png.
    out
        The page to write; part.report.html beside part.flawline when not given.
    engine
        auto, openvino or onnxruntime.
    threads
        0 leaves their number to the engine.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    opened = Bundle.open(bundle)
    out = report_path(bundle) if out is None else out
    if out.is_dir() or not out.parent.is_dir():
        state = "is a folder" if out.is_dir() else "lies in a folder that does not exist"
        raise InputError(f"{out}: {state}; give the page's file name, such as {report_path(bundle)}")
    data = _from_bundle(opened, engine, threads, err)
    if dataset is not None:
        pictures = JudgedPictures(opened.threshold)
        with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
            task = progress.add_task("scoring", total=None)
            evaluation = evaluate(
                opened,
                dataset,
                engine=engine,
                threads=threads,
                on_progress=lambda done, of: progress.update(task, completed=done, total=of),
                on_judged=pictures.add,
            )
        for reason in evaluation.skipped:
            err.print(f"note: skipped {reason}", style="yellow", markup=False)
        data = pictures.into(data, evaluation)
    page = interactive_html(data).encode()
    try:
        write_atomic(out, page)
    except OSError as exc:
        raise InputError(f"{out}: the report cannot be written ({exc.strerror or exc})") from exc
    Console(highlight=False, soft_wrap=True).print(
        f"{out}: report of {opened.model_id}, {len(page) / 1e6:.1f} MB; open it in a browser", markup=False
    )


def _from_bundle(bundle: Bundle, engine: EngineKind, threads: int, err: Console) -> ReportData:
    manifest = bundle.manifest
    data = None
    if REPORT in manifest.members:
        try:
            data = report_from_html(bundle.member(REPORT).decode("utf-8", "replace"), bundle.source)
        except BundleError as exc:
            err.print(f"note: {exc}", style="yellow", markup=False)
    if data is None:
        data = _with_golden(report_of_manifest(manifest), bundle, engine, threads)
    return dataclasses.replace(
        data, model_id=bundle.model_id, created=manifest.created, model_sha256=manifest.members[MODEL].sha256
    )


def _with_golden(data: ReportData, bundle: Bundle, engine: EngineKind, threads: int) -> ReportData:
    """A bundle without a report still has golden pictures to look at."""
    scored: list[ScoredPicture] = []
    triples: list[Triple] = []
    with open_engine(bundle, engine, threads=threads) as runner:
        for number, golden in enumerate(bundle.golden()):
            role: Role = "golden_good" if golden.label == "good" else "golden_damaged"
            found = runner.infer(golden.fitted[None])
            if not np.isfinite(found.scores[0]):
                continue
            _, placement = fit_picture(golden.raw, bundle.frame)
            name, score = f"golden picture {number}", float(found.scores[0])
            scored.append(ScoredPicture(name, role, score, thumbnail=thumbnail(golden.fitted, placement)))
            triples.append(
                triple(
                    name,
                    role,
                    "",
                    score,
                    frame=golden.fitted,
                    expected=found.expected[0],
                    heatmap=found.heatmaps[0],
                    placement=placement,
                    threshold=bundle.threshold,
                )
            )
    return dataclasses.replace(data, scored=(*data.scored, *scored), triples=tuple(triples))
