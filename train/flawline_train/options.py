"""What a training is asked for, checked before it costs minutes."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from flawline_inspect.bundle import NAME_PATTERN
from flawline_inspect.errors import InputError
from flawline_inspect.frame import Roi, frame_for
from flawline_train.alignment import AlignChoice
from flawline_train.autoencoders.methods import ANOMALIB, DEFAULT_METHOD, METHODS, Setting, settings_of
from flawline_train.fit import FROM_SCRATCH, Schedule, check_devices, choose_device
from flawline_train.kind import DEFAULT_SIZE, KindChoice
from flawline_train.known_defects import CostModel
from flawline_train.promise import ThresholdChoice
from flawline_train.retraining import RETRAINING, Previous

__all__ = [
    "DEFAULT_FALSE_REJECTS",
    "DEFAULT_METHOD",
    "DEFAULT_MINUTES",
    "DEFAULT_SIZE",
    "DEFAULT_WIDTH",
    "PRESETS",
    "Preset",
    "TrainOptions",
    "name_for",
    "width_for",
]

DEFAULT_MINUTES = 5.0
DEFAULT_WIDTH = 32
DEFAULT_FALSE_REJECTS = 0.01

Preset = Literal["nano", "small", "medium"]
PRESETS: dict[Preset, int] = {"nano": 15, "small": 24, "medium": DEFAULT_WIDTH}
"""Widths by name; of `filtering` at 256 x 256 px 1.4, 3.6 and 6.3 GFLOP and 0.5, 1.3 and 2.3 M parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The arguments of `flawline_train.train`, which explains them, with every default in its place.

    Raises `InputError` for what cannot be, alone or together. Looks at the machine and at the disk, and writes nothing.
    """

    good: Path
    output: Path
    method: str
    minutes: float | None
    """None where `steps` are given."""
    steps: int | None
    size: int | None
    """None for the kind's own."""
    width: int
    seed: int
    device: str
    roi: Roi | None
    false_rejects: float
    group: str | None
    keep_suspects: bool
    defects: Path | None
    costs: CostModel | None
    threshold: ThresholdChoice
    align: AlignChoice
    name: str
    report: bool
    weights: Path | None
    devices: int
    checkpoint: Path | None
    resume: bool
    tensorboard: Path | None
    previous: Previous | None
    dry_run: bool
    kind: KindChoice = "auto"

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_threshold()
        if not self.is_anomalib:
            settings_of(self.method)  # raises for a method that does not exist
        _check_output(self.output)
        if self.size is not None:
            frame_for((self.size, self.size), self.size)  # raises for a size that no frame can have
        self._check_kind()
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise InputError(
                f"--name is {self.name!r}, expected 1 to 64 of A-Za-z0-9._- that begin with a letter or digit"
            )
        check_devices(self.torch_device, self.devices)
        self._check_fit()
        if self.is_anomalib:
            self._check_anomalib()

    @property
    def is_anomalib(self) -> bool:
        return self.method.startswith(ANOMALIB)

    @property
    def takes_textures(self) -> bool:
        """Whether the method can be trained on crops."""
        return not self.is_anomalib and METHODS[self.method].network.any_size

    @property
    def kind_to_find(self) -> KindChoice:
        """`auto` only where either could be: what is to be aligned is an object, and so is all for a method of whole frames."""
        if self.kind == "auto" and (self.align in ("shift", "rotate") or not self.takes_textures):
            return "object"
        return self.kind

    @property
    def torch_device(self) -> torch.device:
        return choose_device(self.device)

    @property
    def settings(self) -> dict[str, Setting]:
        """What the method is set to besides width and frame."""
        if self.previous is not None:
            return self.previous.settings
        return {} if self.is_anomalib else settings_of(self.method)

    @property
    def schedule(self) -> Schedule:
        return FROM_SCRATCH if self.previous is None else RETRAINING

    def _check_numbers(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise InputError("give either --minutes or --steps, not both")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"--steps is {self.steps}, expected at least 1")
        if self.minutes is not None and not self.minutes >= 0.5:
            raise InputError(f"--minutes is {self.minutes}, expected at least 0.5; use --steps for a quick look")
        if not 4 <= self.width <= 256:
            raise InputError(f"--width is {self.width}, expected 4 to 256 channels")

    def _check_kind(self) -> None:
        if self.kind not in get_args(KindChoice):
            raise InputError(f"--kind is {self.kind!r}, expected one of {', '.join(get_args(KindChoice))}")
        if self.kind != "texture":
            return
        if not self.takes_textures:
            able = ", ".join(name for name, method in METHODS.items() if method.network.any_size)
            raise InputError(
                f"--kind texture is learnt from crops, which --method {self.method} cannot; expected {able}, or train with --kind object"
            )
        if self.align in ("shift", "rotate"):
            raise InputError(
                f"--align {self.align} brings parts to one pose and --kind texture has none; give one of them"
            )

    def _check_threshold(self) -> None:
        if not 0 < self.false_rejects < 1:
            raise InputError(
                f"--false-rejects is {self.false_rejects}, expected a share between 0 and 1, such as 0.01 or 1%"
            )
        if self.costs is not None and self.defects is None:
            raise InputError(
                "costs are given without --defects; give a folder of pictures of known defects to price escapes with"
            )
        if self.threshold == "cheapest" and self.costs is None:
            raise InputError("--threshold cheapest needs --defects, --cost-false-reject and --cost-escape")

    def _check_fit(self) -> None:
        if self.weights is not None and not self.is_anomalib:
            raise InputError(f"--weights is for {ANOMALIB}NAME; {self.method} learns from the pictures alone")
        if self.resume and self.checkpoint is None:
            raise InputError("--resume needs --checkpoint DIR, the folder in which the interrupted training saved")
        if self.checkpoint is not None and self.checkpoint.exists() and not self.checkpoint.is_dir():
            raise InputError(f"{self.checkpoint}: is a file; give --checkpoint a folder")
        if self.tensorboard is not None:
            from flawline_train.tensorboard import check_tensorboard

            check_tensorboard()

    def _check_anomalib(self) -> None:
        for option, given in {
            "--devices": self.devices > 1,
            "--checkpoint": self.checkpoint is not None,
            "--resume": self.resume,
            "--tensorboard": self.tensorboard is not None,
        }.items():
            if given:
                raise InputError(f"{option} is for our own networks; {self.method} is trained as anomalib trains it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anomalib and timm about themselves
            from flawline_train.anomalib_method import model_class
        model_class(self.method)


def name_for(output: Path) -> str:
    """A model's name after the file that it goes to: whatever that is called, one that a manifest accepts."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", output.stem).lstrip("._-")[:64]
    return name or "model"


def _check_output(output: Path) -> None:
    """Before minutes of work: can the bundle be written where it is wanted?"""
    if output.is_dir():
        raise InputError(f"{output}: is a folder; give the bundle's file name, such as {output / 'part.flawline'}")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: does not exist; make the folder first, or write the bundle elsewhere")


def width_for(width: int | None, preset: Preset | None) -> int | None:
    """The width asked for by number or by name; None where neither is given. Raises `InputError` for both."""
    if preset is None:
        return width
    if width is not None:
        raise InputError(f"--preset {preset} and --width {width} both say how wide the network is; give one of them")
    if preset not in PRESETS:
        raise InputError(f"--preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]
