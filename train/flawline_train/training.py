"""From a folder of good pictures to a bundle, in the order in which things happen."""

from __future__ import annotations

import logging
import platform
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flawline_inspect import __version__
from flawline_inspect.bundle import MODEL, NAME_PATTERN, REPORT, WEIGHTS, Bundle, bundle_bytes, save_bundle
from flawline_inspect.errors import EXIT_INTERRUPTED, FlawlineError, InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.frame import Roi, frame_for
from flawline_train.alignment import AlignChoice, align_members
from flawline_train.autoencoders.methods import ANOMALIB, DEFAULT_METHOD, build, settings_of
from flawline_train.calibrate import MapCalibration, calibrate
from flawline_train.fit import WARMUP_STEPS, Budget, FitProgress, FitResult, check_devices, choose_device, fit
from flawline_train.golden import PER_LABEL, GoldenSet, choose_golden
from flawline_train.graph import InspectionGraph, onnx_from_graph
from flawline_train.known_defects import CostModel, find_defects, score_defects
from flawline_train.pictures import GoodPictures, load_good_pictures
from flawline_train.promise import (
    ThresholdChoice,
    apply_choice,
    calibration_notes,
    calibration_section,
    promise_sentence,
    suspect_reasons,
)
from flawline_train.report import ReportData, interactive_html, report_path, static_html
from flawline_train.report.collect import collect_training

if TYPE_CHECKING:
    from flawline_train.anomalib_method import AnomalibTraining

__all__ = ["DEFAULT_MINUTES", "Rehearsal", "TrainProgress", "Training", "train"]

_log = logging.getLogger(__name__)

DEFAULT_MINUTES = 5.0
DEFAULT_SIZE = 128
DEFAULT_WIDTH = 32
DEFAULT_FALSE_REJECTS = 0.01
REHEARSAL_STEPS = 5
_RESERVE_S = 14.0
"""Kept for export and writing, of `minutes`."""
_RESERVE_PER_PICTURE_S = 0.04
_RESERVE_PER_READING = 40.0
"""Golden pictures are read, damaged and written at camera size; all of it takes about this many times the reading of one."""
_RESERVE_REPORT_S = 6.0
"""Collecting and rendering take 5 to 6 s of one core for 300 pictures at 128 or 256 px and 2.3 M parameters."""
_RESERVE_LIMIT = 0.5
"""At least half of the time that is left goes into training."""


class TrainingInterruptedError(FlawlineError):
    """Training was stopped before its result was worth a bundle."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """`stage` is read, train, calibrate, export or write; `share` 0-1 within it; `loss` while training."""

    stage: str
    share: float
    loss: float | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a dry run measured. `gflop` of one picture; `steps` that the time would be worth, or were asked for."""

    steps_per_second: float
    steps: int
    gflop: float


@dataclass(frozen=True, slots=True)
class Training:
    """What `train` made: the verified bundle, how the fit went, and what the engineer should know.

    `report`: the interactive report beside the bundle; None where none was asked for or could be made.
    After a dry run there is a `rehearsal`, and the bundle exists in memory only, with a model that has learnt nothing.
    """

    bundle: Bundle
    fit: FitResult
    notes: list[str]
    parameters: int
    report: Path | None = None
    rehearsal: Rehearsal | None = None


def train(
    good: Path | str,
    output: Path | str,
    *,
    method: str = DEFAULT_METHOD,
    minutes: float | None = None,
    steps: int | None = None,
    size: int = DEFAULT_SIZE,
    width: int = DEFAULT_WIDTH,
    seed: int = 0,
    device: str = "auto",
    roi: Roi | None = None,
    false_rejects: float = DEFAULT_FALSE_REJECTS,
    group: str | None = None,
    keep_suspects: bool = False,
    defects: Path | str | None = None,
    costs: CostModel | None = None,
    threshold: ThresholdChoice = "promised",
    align: AlignChoice = "auto",
    name: str | None = None,
    report: bool = True,
    weights: Path | None = None,
    devices: int = 1,
    checkpoint: Path | None = None,
    resume: bool = False,
    tensorboard: Path | None = None,
    dry_run: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    started: float | None = None,
) -> Training:
    """Learn what good parts look like and write the bundle.

    `good`: a folder of pictures of good parts. `method`: one of `METHOD_NAMES`, or `anomalib:NAME`. `minutes` bounds the whole call
    (default 5), `steps` the optimiser's steps instead, which makes it reproducible. `size`: the frame's long side in
    pixels. `width`: channels of the network. `align`: how parts that move are brought to one pose; see
    `flawline_train.alignment`. `false_rejects`: share of good parts that may be rejected. `group`: a regular expression
    that names the part of a picture by its path; near-duplicates are looked for without. `keep_suspects`: no held-out
    part is left out of the threshold. `defects`: a folder of pictures of known defects, to report escapes; with `costs`
    the cheapest threshold is reported too, and applied where `threshold` is "cheapest". `report`: make the report too.
    `started`: moment of the monotonic clock from which `minutes` counts, if earlier than the call. An older bundle at
    `output` survives every failure.

    `weights` of the backbone for a model of anomalib; see `flawline_train.anomalib_method`. `devices`, `checkpoint`, `resume`,
    `tensorboard`: see `flawline_train.fit.fit`; not for anomalib's models. `dry_run`: a few steps, calibration and export, and
    nothing is written.
    Raises `InputError` and what derives from it for anything that the caller can mend.
    """
    started = time.monotonic() if started is None else started
    good, output = Path(good), Path(output)
    if steps is not None and minutes is not None:
        raise InputError("give either --minutes or --steps, not both")
    if steps is not None and steps < 1:
        raise InputError(f"--steps is {steps}, expected at least 1")
    minutes = DEFAULT_MINUTES if minutes is None else minutes
    if steps is None and not minutes >= 0.5:
        raise InputError(f"--minutes is {minutes}, expected at least 0.5; use --steps for a quick look")
    if not 4 <= width <= 256:
        raise InputError(f"--width is {width}, expected 4 to 256 channels")
    if not 0 < false_rejects < 1:
        raise InputError(f"--false-rejects is {false_rejects}, expected a share between 0 and 1, such as 0.01 or 1%")
    if costs is not None and defects is None:
        raise InputError(
            "costs are given without --defects; give a folder of pictures of known defects to price escapes with"
        )
    if threshold == "cheapest" and costs is None:
        raise InputError("--threshold cheapest needs --defects, --cost-false-reject and --cost-escape")
    anomalib = method.startswith(ANOMALIB)
    settings = {} if anomalib else settings_of(method)  # raises for a method that does not exist
    _check_output(output)
    defect_pictures = None if defects is None else find_defects(Path(defects), good)
    frame_for((size, size), size)  # before the pictures are read: raises for a size that no frame can have
    name = _default_name(output) if name is None else name
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(f"--name is {name!r}, expected 1 to 64 of A-Za-z0-9._- that begin with a letter or digit")
    torch_device = choose_device(device)
    _check_fit_options(method, weights, torch_device, devices, checkpoint, resume, tensorboard)

    def tell(stage: str, done: int, of: int) -> None:
        if on_progress is not None:
            on_progress(TrainProgress(stage, done / max(1, of)))

    before = time.monotonic()
    pictures = load_good_pictures(
        good, size=size, roi=roi, align=align, group=group, on_progress=lambda done, of: tell("read", done, of)
    )
    reading_s = (time.monotonic() - before) / len(pictures.files)
    train_indices, held_out = pictures.split(np.random.default_rng(seed))
    held_out_parts = [pictures.parts[i] for i in held_out]

    torch.manual_seed(seed)
    budget = (
        Budget(steps=steps)
        if steps is not None
        else Budget(
            until=_end_of_fit(started, minutes, len(pictures.files) + len(defect_pictures or ()), reading_s, report)
        )
    )
    wanted, before_fit = budget, time.monotonic()
    if dry_run:
        budget, checkpoint, tensorboard = Budget(steps=REHEARSAL_STEPS), None, None

    losses: list[tuple[int, float]] = []

    def report_fit(progress: FitProgress) -> None:
        losses.append((progress.step, progress.loss))
        if on_progress is not None:
            on_progress(TrainProgress("train", progress.share, progress.loss, progress.step))

    network: nn.Module
    graph: InspectionGraph
    calibration: MapCalibration
    method_notes: list[str] = []
    learnt: AnomalibTraining | None = None
    if anomalib:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anomalib and timm about themselves
            from flawline_train.anomalib_method import learn_anomalib

        learnt = learn_anomalib(
            method,
            pictures.frames[train_indices],
            pictures.frames[held_out],
            pictures.placement,
            budget,
            seed=seed,
            device=torch_device,
            false_reject=false_rejects,
            parts=held_out_parts,
            keep_suspects=keep_suspects,
            weights=weights,
            on_fit=report_fit,
            on_calibrate=lambda done, of: tell("calibrate", done, of),
            should_stop=should_stop,
        )
        network, calibration, graph = learnt.graph.network, learnt.calibration, learnt.graph
        result, method_notes = learnt.result, learnt.notes
    else:
        autoencoder = build(method, width, (pictures.spec.height, pictures.spec.width))
        result = fit(
            autoencoder,
            pictures.frames[train_indices],
            budget,
            seed=seed,
            device=torch_device,
            on_progress=report_fit,
            should_stop=should_stop,
            devices=devices,
            checkpoint=checkpoint,
            resume=resume and not dry_run,
            tensorboard=tensorboard,
        )
        if result.interrupted and result.steps < WARMUP_STEPS:
            raise TrainingInterruptedError(
                f"training was interrupted after {result.steps} steps, too early to have learnt anything; {output} was not written"
            )
        own = calibrate(
            autoencoder,
            pictures.frames[held_out],
            pictures.placement,
            false_reject_target=false_rejects,
            parts=held_out_parts,
            keep_suspects=keep_suspects,
            on_progress=lambda done, of: tell("calibrate", done, of),
        )
        network, calibration = autoencoder.cpu(), own
        graph = InspectionGraph(network, own.error_map.cpu(), own.good, pictures.placement)

    tell("export", 0, 1)
    model = onnx_from_graph(graph) if learnt is None else learnt.onnx()
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    tell("write", 0, 1)
    known = None if defect_pictures is None or dry_run else score_defects(model, pictures.spec, defect_pictures)
    calibration = apply_choice(calibration, known, costs, threshold)
    by_score = [int(held_out[i]) for i in np.argsort(calibration.scores)]
    golden = (
        GoldenSet([], {})
        if dry_run
        else choose_golden(
            model,
            pictures.spec,
            calibration.threshold.value,
            [pictures.files[i].path for i in (*by_score, *map(int, train_indices))],
            np.random.default_rng((seed, 1)),
        )
    )
    align_section, references = align_members(pictures.alignment)
    members = {MODEL: model, **references, **golden.members}
    if learnt is None:  # anomalib's are trained anew; what they have learnt is in the graph
        members[WEIGHTS] = _half_weights(network)
    manifest = {
        "name": name,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "method": {
            "name": method,
            "parameters": {
                **({} if anomalib else {**settings, "width": width}),
                "steps": result.steps,
                "seed": seed,
                "size": size,
                "bf16": result.autocast,
            },
        },
        "frame": {
            "width": pictures.spec.width,
            "height": pictures.spec.height,
            "bit_depth": pictures.spec.bit_depth,
            "roi": roi,
            "picture_wh": pictures.placement.picture_wh,
            "align": align_section,
            "stretch": pictures.spec.stretch,
        },
        "calibration": calibration_section(calibration, known, costs),
        "data": _data_section(pictures, set(map(int, held_out))),
        "card": _model_card(good.name, pictures, calibration),
        "golden": golden.entries,
        "versions": {
            "flawline": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "lightning": version("lightning"),
            **({"anomalib": version("anomalib")} if anomalib else {}),
            "onnx": version("onnx"),
            "onnxruntime": version("onnxruntime"),
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
    }
    suspects = suspect_reasons(calibration)
    notes = pictures.notes() + method_notes
    if dry_run:
        rehearsal = _rehearsal(network, pictures.frames[0], result, wanted, before_fit)
        nowhere = Bundle(bundle_bytes(manifest, members), "the dry run's bundle")
        return Training(nowhere, result, notes, n_parameters, rehearsal=rehearsal)
    notes += calibration_notes(calibration)
    notes += [f"skipped {reason}" for reason in (known.skipped if known is not None else ())]
    for label in ("good", "damaged"):
        count = sum(entry["label"] == label for entry in golden.entries)
        if count < PER_LABEL:
            notes.append(
                f"only {count} of {PER_LABEL} {label} golden pictures keep 10 % distance from the threshold: the model separates badly"
            )
    if report and steps is None and started + 60 * minutes - time.monotonic() < _RESERVE_REPORT_S / 2:
        report = False
        notes.append(f"no time was left for the report; `flawline report {output}` makes one")
    data: ReportData | None = None
    if report:
        try:
            data = collect_training(
                manifest,
                model,
                graph,
                pictures,
                held_out,
                calibration.scores,
                calibration.good,
                loss=losses,
                suspects=suspects,
                notes=notes,
            )
            members[REPORT] = static_html(data).encode()
        except Exception as exc:  # whatever it is, it must not cost minutes of training
            notes.append(_without_report(exc))
    bundle = save_bundle(output, manifest, members)
    page = None
    if data is not None and REPORT in members:
        try:
            page = report_path(output)
            named = replace(data, model_id=bundle.model_id, created=bundle.manifest.created)
            write_atomic(page, interactive_html(named).encode())
        except Exception as exc:
            page = None
            notes.append(_without_report(exc))
    tell("write", 1, 1)
    return Training(bundle, result, notes, n_parameters, page)


def _without_report(exc: Exception) -> str:
    _log.debug("the report could not be made", exc_info=exc)
    return f"the bundle is complete, but its report could not be made ({type(exc).__name__}: {exc})"


def _rehearsal(
    network: nn.Module, frame: NDArray[np.uint8], result: FitResult, wanted: Budget, before_fit: float
) -> Rehearsal:
    rate = result.steps / max(1e-6, result.seconds)
    device = next(network.parameters()).device
    x = torch.from_numpy(frame).to(device).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(x)
    steps = wanted.steps if wanted.until is None else round(rate * (wanted.until - before_fit))
    assert steps is not None
    return Rehearsal(rate, steps, counter.get_total_flops() / 1e9)


def _check_fit_options(
    method: str,
    weights: Path | None,
    device: torch.device,
    devices: int,
    checkpoint: Path | None,
    resume: bool,
    tensorboard: Path | None,
) -> None:
    """Before minutes of work: do these options go together, and is what they need there?"""
    check_devices(device, devices)
    if method.startswith(ANOMALIB):
        for option, given in {
            "--devices": devices > 1,
            "--checkpoint": checkpoint is not None,
            "--resume": resume,
            "--tensorboard": tensorboard is not None,
        }.items():
            if given:
                raise InputError(f"{option} is for our own networks; {method} is trained as anomalib trains it")
    elif weights is not None:
        raise InputError(f"--weights is for {ANOMALIB}NAME; {method} learns from the pictures alone")
    if tensorboard is not None:
        from flawline_train.tensorboard import check_tensorboard

        check_tensorboard()
    if resume and checkpoint is None:
        raise InputError("--resume needs --checkpoint DIR, the folder in which the interrupted training saved")
    if checkpoint is not None:
        if checkpoint.exists() and not checkpoint.is_dir():
            raise InputError(f"{checkpoint}: is a file; give --checkpoint a folder")
        checkpoint.mkdir(parents=True, exist_ok=True)


def _check_output(output: Path) -> None:
    """Before minutes of work: can the bundle be written where it is wanted?"""
    if output.is_dir():
        raise InputError(f"{output}: is a folder; give the bundle's file name, such as {output / 'part.flawline'}")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: does not exist; make the folder first, or write the bundle elsewhere")


def _end_of_fit(started: float, minutes: float, n_pictures: int, reading_s: float, report: bool = False) -> float:
    """The moment of the monotonic clock at which training has to end so that the whole takes `minutes`."""
    end, now = started + 60 * minutes, time.monotonic()
    wanted = _RESERVE_S + _RESERVE_PER_PICTURE_S * n_pictures + _RESERVE_PER_READING * reading_s
    wanted += _RESERVE_REPORT_S * report
    reserve = min(wanted, _RESERVE_LIMIT * (end - now))
    return max(now + 1.0, end - reserve)


def _default_name(output: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", output.stem).lstrip("._-")[:64]
    return name or "model"


def _half_weights(network: nn.Module) -> bytes:
    """fp16 halves the file; retraining starts from these, inference never sees them."""
    state = {
        key: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for key, tensor in network.state_dict().items()
    }
    return safetensors.torch.save(state)


def _data_section(pictures: GoodPictures, held_out: set[int]) -> dict[str, Any]:
    return {
        "pictures": [
            {"file": file.file, "sha256": file.sha256, "role": "calibration" if i in held_out else "train"}
            for i, file in enumerate(pictures.files)
        ],
        "skipped": [{"file": file, "reason": reason} for file, reason in pictures.skipped],
    }


def _model_card(folder: str, pictures: GoodPictures, calibration: MapCalibration) -> dict[str, str]:
    n, held_out = len(pictures.files), len(calibration.scores)
    width, height = pictures.placement.picture_wh
    turns = pictures.spec.alignment is not None and pictures.spec.alignment.motion.turns
    pose = (
        "may lie and be turned as in the training pictures"
        if turns
        else "are expected in the pose of the training pictures"
    )
    return {
        "intended_use": "Telling parts that look like the training pictures from parts that do not, under the same camera, light and pose.",
        "limits": (
            f"Sees what {pictures.spec.width}x{pictures.spec.height} pixels show; parts {pose}; "
            "no defect was ever shown to it, so its escape rate is unknown until it is measured with `flawline eval`. "
            "It is no safety function (ISO 13849)."
        ),
        "data": f"{n} pictures of good parts from {folder!r}, mostly {width}x{height} pixels, {held_out} of them held out to calibrate.",
        "who_may_be_wronged": (
            f"Good parts unlike the training pictures are scrapped. {promise_sentence(calibration)}"
        ),
    }
