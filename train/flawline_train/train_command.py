"""`flawline train`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import Parameter, Token
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flawline_inspect.bundle import CalibrationSection
from flawline_inspect.errors import InputError
from flawline_inspect.frame import Roi
from flawline_train.alignment import AlignChoice
from flawline_train.autoencoders.methods import ANOMALIB, METHODS
from flawline_train.kind import KindChoice
from flawline_train.known_defects import DEFAULT_DEFECT_RATE, CostModel
from flawline_train.options import DEFAULT_FALSE_REJECTS, Preset
from flawline_train.promise import ThresholdChoice
from flawline_train.rehearsal import Rehearsal
from flawline_train.training import Training, TrainProgress, train

__all__ = ["train_command"]

_STAGES = {
    "read": "reading pictures",
    "train": "training",
    "calibrate": "calibrating",
    "export": "exporting the graph",
    "write": "writing the bundle",
}
_METHOD_HELP = "What kind of autoencoder, or another model.\n\n" + "\n".join(
    [
        *(f"- {name}: {method.summary}" for name, method in METHODS.items()),
        f"- {ANOMALIB}NAME: a model of anomalib, such as {ANOMALIB}Patchcore, trained by its Engine",
    ]
)


def _share(type_: object, tokens: Sequence[Token]) -> float:
    """`0.5%` and `0.005` are the same share."""
    text = tokens[0].value.strip()
    number = text.removesuffix("%").strip()
    try:
        return float(number) / (100 if text.endswith("%") else 1)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no share, expected a number such as 0.005 or 0.5%") from exc


def _costs(false_reject: float | None, escape: float | None, defect_rate: float) -> CostModel | None:
    if false_reject is None and escape is None:
        return None
    if false_reject is None or escape is None:
        missing = "--cost-false-reject" if false_reject is None else "--cost-escape"
        raise InputError(f"{missing} is missing; costs are compared, so give both, in the same unit")
    return CostModel(false_reject, escape, defect_rate)


def train_command(
    good_dir: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    method: Annotated[str | None, Parameter(help=_METHOD_HELP)] = None,
    minutes: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    width: int | None = None,
    preset: Preset | None = None,
    seed: int = 0,
    device: str = "auto",
    roi: Roi | None = None,
    false_rejects: Annotated[float, Parameter(converter=_share)] = DEFAULT_FALSE_REJECTS,
    group: str | None = None,
    keep_suspects: bool = False,
    defects: Path | None = None,
    cost_false_reject: float | None = None,
    cost_escape: float | None = None,
    defect_rate: Annotated[float, Parameter(converter=_share)] = DEFAULT_DEFECT_RATE,
    threshold: ThresholdChoice = "promised",
    align: AlignChoice = "auto",
    kind: KindChoice = "auto",
    name: str | None = None,
    report: Annotated[bool, Parameter(negative="--no-report")] = True,
    from_bundle: Annotated[Path | None, Parameter(name="--from")] = None,
    weights: Path | None = None,
    devices: int = 1,
    checkpoint: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    tensorboard: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Learn from pictures of good parts and write a bundle. The first Ctrl-C finishes with what has been learnt.

    Parameters
    ----------
    good_dir
        Folder of pictures of good parts, 20 to 100 or more; any size and format that OpenCV reads, subfolders too.
    out
        The bundle to write, such as part.flawline. An older one survives every failure.
    minutes
        Bounds the whole command; 5 when neither this nor --steps is given. Longer trains better, up to 250 looks at each picture.
    steps
        Train this many steps instead; the same seed then gives the same model on the same machine.
    size
        Long side of the model's frame in pixels, a multiple of 16; 128 when not given, for textures up to 512. Larger sees smaller
        defects and costs more.
    width
        Channels of the network, 4 to 256; 32 when not given. Larger learns more and costs with the square; 12 is a small model.
    preset
        The width by name: nano (15), small (24) or medium (32, the default).
    seed
        Of everything random.
    device
        auto, cpu, cuda or cuda:N.
    roi
        Region of interest: x y width height, in pixels of the pictures.
    false_rejects
        Share of good parts that may be rejected, such as 0.5% or 0.005; smaller lets more defects escape.
    group
        Regular expression on a picture's path that names its part (its first group, or the whole match): pictures of one
        part are held out together and count once. Without it near-duplicates are found and counted once.
    keep_suspects
        Learn from every picture and set the threshold with every held-out part, even one that looks unlike all others.
    defects
        Folder of pictures of known defects, a sub-folder for each kind: never learnt from, but their escapes are reported.
    cost_false_reject
        What a rejected good part costs, in the unit of --cost-escape; with both, the cheapest threshold is reported.
    cost_escape
        What a defective part costs that passes.
    defect_rate
        Share of the line's parts that are defective, such as 1%, to weigh the two costs.
    threshold
        promised: by --false-rejects. cheapest: by the costs and the known defects.
    align
        How parts that move are brought to one pose: none, shift, rotate (any angle, distance too), or auto, which
        aligns only where it makes good parts look clearly more alike.
    kind
        object: parts that are looked at whole. texture: cloth, sheet, grain, where every place is judged alike; learnt from crops,
        so that frames may be large. auto: object, unless good pictures clearly share no structure.
    name
        The model's name in verdicts; the file's name when not given.
    report
        Make the training report: one inside the bundle, and an interactive one beside it, such as part.report.html.
    from_bundle
        Train an earlier bundle further, with new pictures beside the old: a fifth of the time will do. Method, width, frame, kind
        and alignment are its own, and what it held out stays held out; threshold and golden pictures are made anew.
    weights
        Pretrained weights of an anomalib model's backbone, a .safetensors file in timm's names; nothing is downloaded.
    devices
        Train on so many GPUs, or processes on the CPU. A step then sees as many times the pictures.
    checkpoint
        Folder in which to save the training every two minutes and at its end.
    resume
        Go on from what --checkpoint holds; what has been spent of the minutes or steps is spent.
    tensorboard
        Folder for TensorBoard's files: loss, learning rate, speed and pictures. Needs the package tensorboard.
    dry_run
        A few steps, calibration and export, then say what would be trained; nothing is written.
    """
    costs = _costs(cost_false_reject, cost_escape, defect_rate)
    started = time.monotonic() - time.process_time()  # importing torch belongs to the minutes
    stop = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("finishing with what has been learnt so far; Ctrl-C again stops without a bundle", style="yellow")

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        ) as progress:
            view = _StageView(progress, console)
            training = train(
                good_dir,
                out,
                method=method,
                minutes=minutes,
                steps=steps,
                size=size,
                width=width,
                preset=preset,
                seed=seed,
                device=device,
                roi=roi,
                false_rejects=false_rejects,
                group=group,
                keep_suspects=keep_suspects,
                defects=defects,
                costs=costs,
                threshold=threshold,
                align=align,
                kind=kind,
                name=name,
                report=report,
                from_bundle=from_bundle,
                weights=weights,
                devices=devices,
                checkpoint=checkpoint,
                resume=resume,
                tensorboard=tensorboard,
                dry_run=dry_run,
                on_progress=view.show,
                should_stop=stop.is_set,
                started=started,
            )
    finally:
        signal.signal(signal.SIGINT, previous)
    for note in training.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    line = _made_lines(training, out) if training.rehearsal is None else _rehearsal_line(training, training.rehearsal)
    Console(highlight=False, soft_wrap=True).print(line, markup=False)


def _rehearsal_line(training: Training, rehearsal: Rehearsal) -> str:
    method, frame = training.bundle.manifest.method, training.bundle.manifest.frame
    return (
        f"would train {method.name}{' on crops of a texture' * (frame.kind == 'texture')}: {frame.width}x{frame.height} frames, "
        f"{training.parameters / 1e6:.2f} M parameters, "
        f"{rehearsal.gflop:.2f} GFLOP a picture, {rehearsal.steps_per_second:.1f} steps/s, about {rehearsal.steps} steps; "
        "nothing was written"
    )


def _made_lines(training: Training, out: Path) -> str:
    bundle, fit = training.bundle, training.fit
    look = f"open {training.report} in a browser, " if training.report is not None else ""
    return (
        f"{out}: {bundle.model_id}, {out.stat().st_size / 1e6:.1f} MB, {training.parameters / 1e6:.2f} M parameters, "
        f"{fit.steps} steps in {fit.seconds:.0f} s\n"
        f"{_threshold_lines(bundle.manifest.calibration)}\n"
        f"next: {look}flawline check {out} PICTURES, or flawline eval {out} DATASET"
    )


def _threshold_lines(calibration: CalibrationSection) -> str:
    """What the threshold promises, what is only estimated, and what known defects say of it."""
    asked = (
        "the cheapest"
        if calibration.basis == "cheapest"
        else f"for {calibration.false_reject_target:.2%} false rejects"
    )
    lines = [
        f"threshold {calibration.threshold:.4f}, {asked}; {len(calibration.scores)} held-out good parts scored up to "
        f"{max(calibration.scores):.4f}",
        f"promised: at most {calibration.promised_false_reject_rate:.2%} false rejects, with {calibration.exceedances} of "
        f"{len(calibration.scores)} held-out parts above the threshold (confidence {calibration.confidence:.0%})",
        f"estimated: {calibration.estimated_false_reject_rate:.2%} false rejects",
    ]
    if calibration.defects is not None:
        lines += [
            f"known defects, {kind.kind}: {kind.escaped} of {kind.n} escape ({kind.escape_interval[0]:.1%} to "
            f"{kind.escape_interval[1]:.1%} of such)"
            for kind in calibration.defects.kinds
        ]
        costs = calibration.defects.costs
        if costs is not None:
            lines.append(
                f"cheapest threshold by known defects and estimate: {costs.cheapest_threshold:.4f} at "
                f"{costs.cheapest_cost_per_part:.4g} a part; {costs.cost_per_part:.4g} at {calibration.threshold:.4f}"
            )
    return "\n".join(lines)


class _StageView:
    """One progress bar a stage, made when the stage begins."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._told = 0.0
        self._stage = ""
        self._task = progress.add_task("starting", total=1.0, detail="", visible=False)

    def show(self, update: TrainProgress) -> None:
        if update.stage != self._stage:
            if self._stage:
                self._progress.update(self._task, completed=1.0)
            self._stage = update.stage
            self._told = 0.0
            self._task = self._progress.add_task(_STAGES[update.stage], total=1.0, detail="")
        detail = f"loss {update.loss:.5f}  step {update.step}" if update.loss is not None else ""
        self._progress.update(self._task, completed=update.share, detail=detail)
        if not self._console.is_terminal and update.share >= self._told:
            # A log has no bar that moves: a line for each tenth.
            self._told = update.share + 0.1
            self._console.print(f"{_STAGES[update.stage]} {update.share:.0%} {detail}", markup=False)
