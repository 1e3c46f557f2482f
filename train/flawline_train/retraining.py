"""`--from OLD.flawline`: going on from what an earlier model has learnt.

Network, method, width and frame are the earlier model's, so that its weights mean the same. Threshold, golden pictures and report
are made anew. What the earlier model did with a picture is known by the picture's SHA-256: one that it was calibrated with
has never been learnt from and stays held out, one that it learnt from is never calibrated with.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import InputError
from flawline_inspect.frame import Roi
from flawline_train.autoencoders import Autoencoder
from flawline_train.autoencoders.methods import ANOMALIB, Setting, network_from_bundle, settings_of
from flawline_train.fit import Schedule
from flawline_train.kind import Kind
from flawline_train.pictures import GoodPictures

__all__ = ["RETRAINING", "Previous"]

RETRAINING = Schedule(peak=3e-4, warm_up=20)
"""The weights are good already: reaching the first training's rate as early undoes some of it (benchmarks/LOG.md)."""


class Previous:
    """The earlier model. Raises `BundleError` when its bundle cannot be read or its network not be rebuilt, `InputError` when
    it is a model of anomalib."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bundle = Bundle.open(path)
        if self.bundle.manifest.method.name.startswith(ANOMALIB):
            raise InputError(
                f"--from {path}: is a model of anomalib ({self.bundle.manifest.method.name}), and only our own are trained further; "
                "train without --from"
            )
        self.network: Autoencoder = network_from_bundle(self.bundle)
        self.method = self.bundle.manifest.method.name
        parameters = self.bundle.manifest.method.parameters
        self.width = int(parameters["width"] or 0)
        self.settings: dict[str, Setting] = {
            key: value for key in settings_of(self.method) if (value := parameters.get(key)) is not None
        }

    @property
    def size(self) -> int:
        """The frame's long side."""
        return max(self.bundle.frame.width, self.bundle.frame.height)

    @property
    def kind(self) -> Kind:
        return self.bundle.manifest.frame.kind

    @property
    def roi(self) -> Roi | None:
        return self.bundle.frame.roi

    def check(self, *, method: str | None, width: int | None, size: int | None, align: str, kind: str) -> None:
        """Raises `InputError` for what was asked for otherwise than the earlier model has it."""
        alignment = self.bundle.frame.alignment
        pose = "none" if alignment is None else alignment.kind
        for option, asked, has in (
            ("--method", method, self.method),
            ("--width", width, self.width),
            ("--size", size, self.size),
            ("--align", None if align == "auto" else align, pose),
            ("--kind", None if kind == "auto" else kind, self.kind),
        ):
            if asked not in (None, has):
                raise InputError(
                    f"{option} is {asked}, but the model of --from {self.path} has {has}; leave {option} away, or train without --from"
                )

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """By SHA-256, `train` or `calibration`: what it or one that it was retrained from did with a picture.

        A picture that was both, as copies of it may have been, has been learnt from. One that was left out is as good as new.
        """
        entries = [entry for entry in self._entries() if entry["role"] != "left_out"]
        return {entry["sha256"]: entry["role"] for entry in sorted(entries, key=lambda entry: entry["role"] == "train")}

    def others(self, pictures: GoodPictures) -> list[dict[str, Any]]:
        """`PictureEntry` each: what it knows and is not among `pictures`, so that the next retraining knows it too."""
        here = {file.sha256 for file in pictures.files}
        return [entry for entry in self._entries() if entry["sha256"] not in here]

    def notes(self, pictures: GoodPictures, held_out: set[int]) -> list[str]:
        """What became of the pictures that it knows, a sentence each. `held_out`: indices of `pictures`."""
        roles = [self.roles.get(file.sha256) for file in pictures.files]
        fresh = [i for i, role in enumerate(roles) if role is None]
        kept = sum(role == "calibration" and i in held_out for i, role in enumerate(roles))
        notes = [
            f"trained further from {self.bundle.model_id}: of {len(roles)} pictures it has learnt from {roles.count('train')} and held out "
            f"{kept}, which stay so; of {len(fresh)} new ones {sum(i in held_out for i in fresh)} are held out"
        ]
        if moved := roles.count("calibration") - kept:
            notes.append(
                f"pictures that {self.bundle.model_id} held out but whose parts it has learnt from in others: {moved}; they are learnt "
                "from now and count no longer for the threshold"
            )
        return notes

    def check_pictures(self, wh: tuple[int, int], roi: Roi | None) -> None:
        """Raises `InputError` when pictures of this size would fill the frame otherwise than those it was trained on."""
        frame = self.bundle.manifest.frame
        found = wh if roi is None else (roi[2], roi[3])
        if frame.is_unlike(found):
            trained = frame.trained_wh
            raise InputError(
                f"the pictures show {found[0]}x{found[1]} pixels, and the model of --from {self.path} was trained on "
                f"{trained[0]}x{trained[1]}, another aspect ratio; give --roi the same part of the picture, or train without --from"
            )

    def _entries(self) -> list[dict[str, Any]]:
        data = self.bundle.manifest.data
        return [entry.model_dump() for entry in (*data.earlier, *data.pictures)]
