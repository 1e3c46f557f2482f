"""`flawline check`: judge pictures, folders or a video with a bundle, offline."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from flawline_engines.engine import EngineKind, Precision, open_engine
from flawline_inspect.bundle import Bundle
from flawline_inspect.decision import Decision, DecisionRule
from flawline_inspect.errors import EXIT_DONE, EXIT_NOT_OK, HealthError, InputError, PictureError
from flawline_inspect.files import write_atomic
from flawline_inspect.frame import PICTURE_SUFFIXES, Roi, find_pictures, read_picture
from flawline_inspect.overlay import rejection_picture
from flawline_inspect.verdict import Reason, Result

__all__ = ["check"]

_FILE_WIDTH = 4096  # of a line in a file or pipe, where wrapping would break paths
_STYLES = {
    Result.OK: "green",
    Result.NOT_OK: "red",
    Result.NOT_DECIDABLE: "yellow",
    Result.UNDEFINED: "magenta",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """A picture to judge; `error` says why there is none. `order` keeps heatmap files apart."""

    name: str
    stem: str
    picture: NDArray[np.generic] | None
    error: str = ""


def check(
    bundle: Path,
    paths: list[Path],
    /,
    *,
    json: bool = False,
    heatmaps: Path | None = None,
    threshold: float | None = None,
    roi: Roi | None = None,
    engine: EngineKind = "auto",
    precision: Precision = "fp32",
    threads: int = 0,
) -> int:
    """Judge pictures, folders or a video with a bundle, offline. Ends with 3 when any result is not OK.

    Parameters
    ----------
    bundle
        A .flawline file.
    paths
        Pictures, folders of pictures (subfolders too), or videos.
    json
        Print one JSON object a picture, on a line of its own.
    heatmaps
        Folder for a picture of each: what was seen, the heatmap over it, what was expected.
    threshold
        Instead of the bundle's own.
    roi
        Region of interest instead of the bundle's: x y width height, in pixels.
    engine
        auto, tensorrt, tensorrt_rtx, openvino or onnxruntime.
    precision
        fp32; fp16 or int8 for a bundle that `flawline quantize` has been through; bf16 where OpenVINO and the processor
        have it.
    threads
        0 leaves their number to the engine.
    """
    if not paths:
        raise InputError("nothing to check; name pictures, folders or videos behind the bundle")
    if threshold is not None and not threshold > 0:
        raise InputError(f"--threshold is {threshold}, expected more than 0; higher rejects less")
    opened = Bundle.open(bundle)
    rule = DecisionRule(opened.threshold if threshold is None else threshold)
    n_expected = _count(paths)
    if heatmaps is not None:
        try:
            heatmaps.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"{heatmaps}: the folder cannot be made ({exc.strerror})") from exc
    results: dict[Result, int] = dict.fromkeys(Result, 0)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (
        ("picture", "left"),
        ("result", "left"),
        ("score", "right"),
        ("of threshold", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    trained = opened.manifest.frame
    odd_sizes = 0
    out, err = (
        Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH),
        Console(stderr=True, highlight=False, soft_wrap=True),
    )
    with (
        open_engine(opened, engine, precision=precision, threads=threads) as runner,
        Progress(console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        task = progress.add_task("checking", total=n_expected)
        for i, found in enumerate(_pictures(paths)):
            decision, error = Decision.undefined(Reason.CAMERA), found.error
            if found.picture is not None:
                try:
                    frame, placement = opened.fit(found.picture, roi)
                    inference = runner.infer(frame[None])
                    decision = rule.decide(inference.scores[0], inference.heatmaps[0])
                    odd_sizes += trained.is_unlike(placement.roi[2:])
                    if heatmaps is not None:
                        shown = rejection_picture(
                            found.picture,
                            inference.heatmaps[0],
                            inference.expected[0],
                            spec=opened.frame,
                            placement=placement,
                            threshold=rule.threshold,
                        )
                        _save_picture(heatmaps / f"{i:05d}_{found.stem}_{decision.result.label}.png", shown)
                except HealthError as exc:
                    decision, error = Decision.unhealthy(), str(exc)
                except PictureError as exc:
                    error = str(exc)
            results[decision.result] += 1
            if json:
                print(
                    json_module.dumps(
                        {
                            "picture": found.name,
                            "result": int(decision.result),
                            "reason": decision.reason.value,
                            "score": round(decision.score, 6),
                            "threshold": round(rule.threshold, 6),
                            "model": opened.model_id,
                            "error": error,
                        }
                    ),
                    flush=True,
                )
            else:
                share = (
                    f"{decision.score / rule.threshold:.0%}"
                    if not error and decision.result is not Result.UNDEFINED
                    else ""
                )
                table.add_row(
                    Text(found.name),
                    Text(decision.result.label, style=_STYLES[decision.result]),
                    f"{decision.score:.4f}",
                    share,
                    Text(error or decision.reason.value),
                )
            progress.advance(task)
    if not json:
        out.print(table)
        total = sum(results.values())
        out.print(
            f"\n{total} pictures: "
            + ", ".join(
                f"{n} {result.label}" for result, n in results.items() if n or result in (Result.OK, Result.NOT_OK)
            )
            + f" at threshold {rule.threshold:.4f} ({opened.model_id})",
            markup=False,
        )
    if odd_sizes:
        err.print(
            f"flawline: {odd_sizes} pictures have another aspect ratio than the "
            f"{trained.trained_wh[0]}x{trained.trained_wh[1]} that the model was trained on; "
            "the same camera and region of interest as in training make trustworthy scores",
            style="yellow",
        )
    return EXIT_DONE if results[Result.OK] == sum(results.values()) else EXIT_NOT_OK


def _count(paths: list[Path]) -> int | None:
    """How many pictures there are, None with videos among them. Raises `InputError` for what is none of both."""
    total: int | None = 0
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: does not exist; name pictures, folders of pictures or videos")
        if path.is_dir():
            n = len(find_pictures(path))
            if not n:
                raise InputError(f"{path}: has no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
        else:
            n = 1
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                total = None
        total = None if total is None else total + n
    return total


def _pictures(paths: list[Path]) -> Iterator[_Found]:
    for path in paths:
        if path.is_dir():
            for file in find_pictures(path):
                yield _read(file)
        elif path.suffix.lower() in PICTURE_SUFFIXES:
            yield _read(path)
        else:
            yield from _video(path)


def _read(path: Path) -> _Found:
    stem = f"{path.parent.name}_{path.stem}" if path.parent.name else path.stem
    try:
        return _Found(str(path), stem, read_picture(path))
    except PictureError as exc:
        return _Found(str(path), stem, None, str(exc))


def _video(path: Path) -> Iterator[_Found]:
    capture = cv2.VideoCapture(str(path))
    try:
        done, frame = capture.read()
        if not done:
            raise InputError(f"{path}: neither a picture nor a video that OpenCV can read")
        n = 0
        while done:
            yield _Found(f"{path}#{n}", f"{path.stem}_{n:06d}", frame)
            done, frame = capture.read()
            n += 1
    finally:
        capture.release()


def _save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(".png", picture)
    assert done
    try:
        write_atomic(path, data.tobytes())
    except OSError as exc:
        raise InputError(f"{path}: cannot be written ({exc.strerror})") from exc
