"""`flawline train`."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flawline_inspect.frame import Roi
from flawline_train.training import (
    DEFAULT_FALSE_REJECT,
    DEFAULT_METHOD,
    DEFAULT_MINUTES,
    DEFAULT_SIZE,
    DEFAULT_WIDTH,
    TrainProgress,
    train,
)

__all__ = ["train_command"]

_STAGES = {
    "read": "reading pictures",
    "train": "training",
    "calibrate": "calibrating",
    "export": "exporting the graph",
    "write": "writing the bundle",
}


def train_command(
    good_dir: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    minutes: float | None = None,
    steps: int | None = None,
    size: int = DEFAULT_SIZE,
    width: int = DEFAULT_WIDTH,
    seed: int = 0,
    device: str = "auto",
    roi: Roi | None = None,
    false_reject: float = DEFAULT_FALSE_REJECT,
    name: str | None = None,
    method: str = DEFAULT_METHOD,
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
        Bounds the whole command. Longer trains better; 5 when neither this nor --steps is given.
    steps
        Train this many steps instead; the same seed then gives the same model on the same machine.
    size
        Long side of the model's frame in pixels, a multiple of 16. Larger sees smaller defects and costs more.
    width
        Channels of the network. Larger learns more and costs with the square; 12 is a small model.
    seed
        Of everything random.
    device
        auto, cpu, cuda or cuda:N.
    roi
        Region of interest: x y width height, in pixels of the pictures.
    false_reject
        Share of good parts that may be rejected; smaller lets more defects escape.
    name
        The model's name in verdicts; the file's name when not given.
    method
        filtering, or anomalib:NAME for a model of anomalib such as anomalib:Patchcore, trained by its Engine.
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
                minutes=minutes if steps is not None or minutes is not None else DEFAULT_MINUTES,
                steps=steps,
                size=size,
                width=width,
                seed=seed,
                device=device,
                roi=roi,
                false_reject=false_reject,
                name=name,
                method=method,
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
    bundle, fit = training.bundle, training.fit
    calibration = bundle.manifest.calibration
    for note in training.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    out_console = Console(highlight=False, soft_wrap=True)
    if training.rehearsal is not None:
        frame, rehearsal = bundle.manifest.frame, training.rehearsal
        out_console.print(
            f"would train {method}: {frame.width}x{frame.height} frames, {training.parameters / 1e6:.2f} M parameters, "
            f"{rehearsal.gflop:.2f} GFLOP a picture, {rehearsal.steps_per_second:.1f} steps/s, about {rehearsal.steps} steps; "
            "nothing was written",
            markup=False,
        )
        return
    estimate = ", an estimate" if calibration.basis == "log_normal" else ""
    out_console.print(
        f"{out}: {bundle.model_id}, {out.stat().st_size / 1e6:.1f} MB, {training.parameters / 1e6:.2f} M parameters, "
        f"{fit.steps} steps in {fit.seconds:.0f} s\n"
        f"threshold {calibration.threshold:.4f} for {calibration.false_reject_target:.2%} false rejects{estimate}; "
        f"{len(calibration.scores)} held-out good pictures scored up to {max(calibration.scores):.4f}\n"
        f"next: flawline check {out} PICTURES, or flawline eval {out} DATASET",
        markup=False,
    )


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
