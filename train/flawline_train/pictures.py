"""From a folder of good pictures to frames: find, read, fit, split; nothing unreadable is passed over in silence."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline_inspect.align import Alignment, canvas_of, canvas_wh_for
from flawline_inspect.errors import InputError, PictureError, PlacementError
from flawline_inspect.frame import (
    FULL_DEPTH,
    FrameSpec,
    Placement,
    Roi,
    bgr_8_bit,
    find_pictures,
    fit_picture,
    frame_for,
    read_picture,
)
from flawline_train.alignment import MAX_CANVASES, AlignChoice, FittedAlignment, fit_alignment
from flawline_train.kind import DEFAULT_SIZE, Kind, KindChoice, kind_of, texture_size
from flawline_train.parts import PartGroups, group_by_name, group_near_duplicates

__all__ = ["GoodPictures", "PictureFile", "load_good_pictures"]

MIN_PICTURES = 8
"""Fewer cannot be split into some to learn from and at least 3 to calibrate with."""

_LOOK = 128
"""Side of the small copies in which near-duplicates are looked for."""

SHAPE_SPREAD = 0.02
"""Median deviation of the logarithm of the aspect ratio from which pictures are stretched into the frame."""

CALIBRATION_SHARE = 0.25
MIN_CALIBRATION = 3


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that was read: its name relative to the folder, its size, and the SHA-256 of the file."""

    path: Path
    file: str
    sha256: str
    wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class GoodPictures:
    """Good pictures brought to the frame: `frames` is (n, H, W, 3) BGR uint8, `files` their n origins."""

    frames: NDArray[np.uint8]
    files: tuple[PictureFile, ...]
    spec: FrameSpec
    placement: Placement
    """Of a picture of the usual size."""
    skipped: tuple[tuple[str, str], ...]
    """(file, reason) of what was there and could not be used."""
    sizes: Counter[tuple[int, int]]
    n_16_bit: int = 0
    groups: PartGroups | None = None
    """Which pictures show the same part; each its own where None."""
    alignment: FittedAlignment | None = None
    """What was chosen and why; None where nothing was asked for."""
    kind: Kind = "object"
    kind_notes: tuple[str, ...] = ()
    """Why, and what followed, a sentence each."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The part's name for each of the n pictures."""
        return tuple(file.file for file in self.files) if self.groups is None else self.groups.parts

    def notes(self) -> list[str]:
        """What the engineer should know of these pictures, a sentence each."""
        out = [f"skipped {reason}" for _, reason in self.skipped]
        out += self.kind_notes
        if self.alignment is not None:
            out.append(self.alignment.note())
        usual, count = self.sizes.most_common(1)[0]
        if len(self.sizes) > 1:
            others = ", ".join(f"{n} of {w}x{h}" for (w, h), n in self.sizes.most_common()[1:4])
            how = (
                "stretched to fill it" if self.spec.stretch else "with its aspect ratio kept and its border replicated"
            )
            more = f" and {len(self.sizes) - 4} more sizes" if len(self.sizes) > 4 else ""
            out.append(
                f"pictures of {len(self.sizes)} sizes: {count} of {usual[0]}x{usual[1]}, {others}{more}; each was resized "
                f"into the {self.spec.width}x{self.spec.height} frame, {how}"
            )
        if self.n_16_bit:
            out.append(
                f"{self.n_16_bit} 16-bit pictures that use {self.spec.bit_depth} bits; scaled to 8 by that depth"
            )
        out += self.groups.notes if self.groups is not None else ()
        if len(self.files) < 20:
            out.append(f"only {len(self.files)} good pictures; 20 to 100 make the threshold trustworthy")
        return out

    def split(
        self, rng: np.random.Generator, known: Mapping[str, str] | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Indices to train on and to calibrate with; the latter, and what shows the same parts, are never shown to the
        optimiser.

        A quarter of the parts is held out, at least 3: one at random from each of as many blocks of equal length in the order
        of the files, so that a drift over the time of taking them is covered. `known`: by SHA-256 `train` or `calibration`,
        what an earlier training did with a picture; parts that it has learnt from are trained on, others that it knows are
        held out, and a quarter is taken of the rest. Raises `InputError` when that leaves too few of either.
        """
        known = known or {}
        order = list(dict.fromkeys(self.parts))  # by first picture
        learnt = {p for file, p in zip(self.files, self.parts, strict=True) if known.get(file.sha256) == "train"}
        kept = {p for file, p in zip(self.files, self.parts, strict=True) if file.sha256 in known} - learnt
        fresh = [part for part in order if part not in learnt | kept]
        held_out = max(MIN_CALIBRATION - len(kept), round(CALIBRATION_SHARE * len(fresh)))
        if held_out > len(fresh) or len(kept) + held_out == len(order):
            raise InputError(
                f"of {len(order)} parts the model of --from has learnt from {len(learnt)} and held out {len(kept)}, {len(fresh)} are new; "
                f"at least {MIN_CALIBRATION} that it has not learnt from are needed to calibrate, and others to learn from: give more "
                "new pictures, or train without --from"
            )
        blocks = np.array_split(np.arange(len(fresh)), held_out) if held_out > 0 else []
        chosen = {fresh[int(rng.choice(block))] for block in blocks} | kept
        calibration = np.array([part in chosen for part in self.parts])
        return np.flatnonzero(~calibration), np.flatnonzero(calibration)


def load_good_pictures(
    folder: Path,
    *,
    size: int | None,
    roi: Roi | None = None,
    group: str | None = None,
    align: AlignChoice = "none",
    frame: FrameSpec | None = None,
    kind: KindChoice = "object",
    on_progress: Callable[[int, int], None] | None = None,
) -> GoodPictures:
    """Read and fit all good pictures below `folder`; the frame's long side is `size`, where None as suits the `kind`.

    `group`: a regular expression that names the part of each picture by its path; near-duplicates are looked for without.
    `frame`: an earlier model's, whose shape and alignment are taken over instead of being chosen by `size` and `align`; the
    `kind` is then to be said. Textures are not aligned, and what is aligned is none.
    A file that cannot be read, and a picture whose part cannot be placed, is skipped and named. Raises `InputError` when
    fewer than 8 pictures, or 4 parts, remain, or when the parts cannot be aligned as asked for.
    """
    paths = find_pictures(folder)
    if not paths:
        n_files = sum(path.is_file() for path in folder.rglob("*"))
        found = f"none of its {n_files} files is a picture" if n_files else "it is empty"
        raise InputError(f"{folder}: {found}; give a folder of pictures of good parts")

    # Two passes: the frame and the bit depth follow from all pictures, and keeping hundreds of camera pictures in memory
    # to save the second reading is what makes training programs die on large sets.
    files: list[PictureFile] = []
    skipped: list[tuple[str, str]] = []
    looks: dict[str, tuple[NDArray[np.uint8], Placement]] = {}
    brightest_16_bit = n_16_bit = 0
    for done, path in enumerate(paths, 1):
        name = path.relative_to(folder).as_posix()
        try:
            picture = read_picture(path)
            if picture.dtype == np.uint16:
                brightest_16_bit = max(brightest_16_bit, int(picture.max()))
                n_16_bit += 1
            wh = (picture.shape[1], picture.shape[0])
            look, looked = fit_picture(picture, FrameSpec(_LOOK, _LOOK), roi)
        except PictureError as exc:
            reason = str(exc)
            skipped.append((name, reason if name in reason else f"{name}: {reason}"))
        else:
            files.append(PictureFile(path, name, hashlib.sha256(path.read_bytes()).hexdigest(), wh))
            looks[name] = (look, looked)
        if on_progress is not None:
            on_progress(done, 2 * len(paths))
    _expect_enough(folder, files, skipped)

    sizes = Counter(file.wh for file in files)
    usual_wh = sizes.most_common(1)[0][0]
    bits = _used_bits(brightest_16_bit)
    kind_notes: list[str] = []
    if frame is None:
        spec, fitted = _chosen_frame(
            files,
            frame_for(usual_wh, size or DEFAULT_SIZE, bit_depth=bits, roi=roi),
            usual_wh,
            "none" if kind == "texture" else align,
        )
        if kind == "auto":
            kind, kind_notes = _found_kind(list(looks.values()), fitted)
        if kind == "texture":
            texture_spec, note = _texture_frame(spec, usual_wh, size)
            spec, fitted = _chosen_frame(files, texture_spec, usual_wh, "none")
            kind_notes += note
    else:
        kind = "object" if kind == "auto" else kind
        spec, fitted = _same_frame(files, replace(frame, roi=roi), usual_wh, bits if n_16_bit else None)
    frames = np.empty((len(files), spec.height, spec.width, 3), np.uint8)
    placements: dict[tuple[int, int], Placement] = {}
    kept: list[PictureFile] = []
    for i, file in enumerate(files):
        try:
            frames[len(kept)], placements[file.wh] = fit_picture(read_picture(file.path), spec, roi)
        except PlacementError as exc:
            skipped.append((file.file, f"{file.file}: {exc}"))
        else:
            kept.append(file)
        if on_progress is not None:
            on_progress(len(paths) + i + 1, len(paths) + len(files))
    _expect_enough(folder, kept, skipped)
    placement = placements.get(usual_wh) or next(iter(placements.values()))
    names = [file.file for file in kept]
    # As they came and not aligned: that a part lies at the same angle twice is what tells frames of one part.
    groups = (
        group_near_duplicates(
            names,
            [file.sha256 for file in kept],
            np.stack([looks[name][0] for name in names]),
            next(looks[file.file][1] for file in kept if file.wh == usual_wh or file is kept[-1]).content,
        )
        if group is None
        else group_by_name(names, group)
    )
    return GoodPictures(
        frames[: len(kept)],
        tuple(kept),
        spec,
        placement,
        tuple(skipped),
        sizes,
        n_16_bit,
        groups,
        fitted,
        kind,
        tuple(kind_notes),
    )


def _expect_enough(folder: Path, files: list[PictureFile], skipped: list[tuple[str, str]]) -> None:
    if len(files) < MIN_PICTURES:
        also = f" ({len(skipped)} could not be used, the first: {skipped[0][1]})" if skipped else ""
        raise InputError(
            f"{folder}: {len(files)} usable picture{'s' * (len(files) != 1)}{also}; at least {MIN_PICTURES} of good parts are "
            "needed, 20 to 100 are better"
        )


def _chosen_frame(
    files: list[PictureFile], spec: FrameSpec, usual_wh: tuple[int, int], align: AlignChoice
) -> tuple[FrameSpec, FittedAlignment | None]:
    """`spec` for parts that are not aligned, or what suits their alignment; and that."""
    fitted = None if align == "none" else _fit_alignment(files, spec, usual_wh, align)
    if fitted is None or fitted.alignment is None:
        # Borders of another width each would be the largest "defects"; filling the frame, the parts' edges coincide.
        return replace(spec, stretch=spec.roi is None and _come_in_many_shapes(files)), fitted
    if fitted.alignment.motion.turns:
        size = max(spec.width, spec.height)
        spec = replace(frame_for(fitted.alignment.reference_wh, size, bit_depth=spec.bit_depth), roi=spec.roi)
    return replace(spec, alignment=fitted.alignment), fitted


def _found_kind(
    looks: list[tuple[NDArray[np.uint8], Placement]], fitted: FittedAlignment | None
) -> tuple[Kind, list[str]]:
    """By the small copies of all pictures, and a note on it. What could be aligned has one look."""
    if fitted is not None and fitted.alignment is not None:
        return "object", []
    pictures = []
    for look, placement in looks:
        x, y, w, h = placement.content
        pictures.append(look[y : y + h, x : x + w])
    found = kind_of(pictures)
    return found.kind, [found.note()]


def _texture_frame(spec: FrameSpec, usual_wh: tuple[int, int], size: int | None) -> tuple[FrameSpec, list[str]]:
    """`spec` at the size that shows a texture's detail, with a note on it, unless a `size` was asked for."""
    if size is not None:
        return spec, []
    region_wh = usual_wh if spec.roi is None else (spec.roi[2], spec.roi[3])
    larger = frame_for(usual_wh, texture_size(region_wh), bit_depth=spec.bit_depth, roi=spec.roi)
    if max(larger.width, larger.height) == DEFAULT_SIZE:
        return larger, []
    note = (
        f"the frame of this texture is {larger.width}x{larger.height}, so that small defects stay visible in pictures of "
        f"{region_wh[0]}x{region_wh[1]}; a smaller --size is faster on the line"
    )
    return larger, [note]


def _same_frame(
    files: list[PictureFile], frame: FrameSpec, usual_wh: tuple[int, int], bits: int | None
) -> tuple[FrameSpec, FittedAlignment | None]:
    """An earlier model's frame for its next training. Its bit depth stays unless 16-bit pictures use more `bits`, or are
    the first that there are."""
    if bits is not None:
        frame = replace(frame, bit_depth=bits if frame.bit_depth == FULL_DEPTH else max(frame.bit_depth, bits))
    fitted = None if frame.alignment is None else _fit_alignment(files, frame, usual_wh, frame.alignment)
    return frame, fitted


def _come_in_many_shapes(files: list[PictureFile]) -> bool:
    """Whether the pictures' aspect ratios differ so much that letterboxing would give each its own border."""
    ratios = np.log([file.wh[0] / file.wh[1] for file in files])
    return bool(np.median(np.abs(ratios - np.median(ratios))) > SHAPE_SPREAD)


def _fit_alignment(
    files: list[PictureFile], spec: FrameSpec, usual_wh: tuple[int, int], choice: AlignChoice | Alignment
) -> FittedAlignment:
    """From pictures that are spread over the whole set, read once more, as small grey copies."""
    chosen = np.linspace(0, len(files) - 1, min(MAX_CANVASES, len(files))).round().astype(int)
    canvas_wh = (
        choice.canvas_wh if isinstance(choice, Alignment) else canvas_wh_for(spec.roi[2:] if spec.roi else usual_wh)
    )
    canvases = []
    for i in chosen:
        picture = read_picture(files[i].path)
        x, y, w, h = spec.roi or (0, 0, picture.shape[1], picture.shape[0])
        canvases.append(canvas_of(bgr_8_bit(picture[y : y + h, x : x + w], spec.bit_depth), canvas_wh)[0])
    return fit_alignment(canvases, choice)


def _used_bits(brightest: int) -> int:
    """The smallest usual camera depth that holds `brightest` of the 16-bit pictures; 16 when there are none."""
    return next(bits for bits in (8, 10, 12, 14, 16) if brightest < 1 << bits) if brightest else 16
