"""All that a report shows, as plain values: no arrays, nothing of torch, nothing that JSON cannot hold.

Whoever collects encodes the pictures, so that the report beside the bundle, the one inside it and one that is made again
from a bundle show the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from flawline_inspect.bundle import Manifest, PictureEntry, health_of
from flawline_inspect.health import health_rows

__all__ = [
    "GOOD_ROLES",
    "Curves",
    "DefectRow",
    "Map",
    "ReportData",
    "Role",
    "ScoredPicture",
    "Suspect",
    "Triple",
    "Unusual",
    "WebP",
    "report_of_manifest",
]

Role = Literal["train", "held_out", "left_out", "test_good", "golden_good", "defect", "golden_damaged"]
GOOD_ROLES: frozenset[Role] = frozenset({"train", "held_out", "test_good", "golden_good"})

WebP = Annotated[str, Field(pattern=r"^data:image/webp;base64,[A-Za-z0-9+/]+={0,2}$")]
"""A picture as the address that a page shows it by; the pattern lets nothing else into a page."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class ScoredPicture:
    """One dot: a picture, its score and, where it was embedded, its place on the map of the latent space."""

    name: str
    role: Role
    score: Finite
    kind: str = ""
    """Of the defect; empty for good parts."""
    place: tuple[Finite, Finite] | None = None
    thumbnail: WebP | None = None


@dataclass(frozen=True, slots=True)
class Triple:
    """What was seen, what was expected, where they differ."""

    name: str
    role: Role
    kind: str
    score: Finite
    seen: WebP
    expected: WebP
    heat: WebP


@dataclass(frozen=True, slots=True)
class Suspect:
    """A picture of the training folder that may not be good, and why."""

    name: str
    reason: str
    score: Finite | None = None
    seen: WebP | None = None
    heat: WebP | None = None


@dataclass(frozen=True, slots=True)
class Unusual:
    """One of the training pictures that look least like the others, and what the finished network makes of it.

    `deviations`: by how many robust deviations it lies above the median part, judged without it and before the network was
    trained; `is_suspect`: whether it was taken for no good part.
    """

    name: str
    role: Role
    deviations: Finite
    is_suspect: bool
    score: Finite
    seen: WebP
    expected: WebP
    heat: WebP


@dataclass(frozen=True, slots=True)
class DefectRow:
    kind: str
    n: int
    image_auroc: Finite
    escape_rate: Finite


@dataclass(frozen=True, slots=True)
class Curves:
    """How good parts and defects separate. Rates are shares in 0-1; `levels` are the scores at which `roc` was cut."""

    n_good: int
    n_bad: int
    false_reject_rate: Finite
    escape_rate: Finite
    image_auroc: Finite
    average_precision: Finite
    by_defect: tuple[DefectRow, ...]
    roc: tuple[tuple[Finite, Finite], ...]
    """(false-reject rate, share caught), from the strictest threshold to the most lenient."""
    levels: tuple[Finite, ...]
    pro: tuple[tuple[Finite, Finite], ...] = ()
    """(false-positive rate over good pixels, mean overlap of the defects' regions); empty without masks."""
    pixel_auroc: Finite | None = None
    aupro: Finite | None = None
    good_are: str = "good test pictures"
    """What the good ones of the curves are."""


@dataclass(frozen=True, slots=True)
class Map:
    """A picture over the frame: of the mean good part, of where good parts vary, of the alignment's reference."""

    title: str
    caption: str
    picture: WebP


@dataclass(frozen=True, slots=True)
class ReportData:
    """One report. `model_id` and `created` are unknown while the bundle that names them is still being made."""

    name: str
    method: str
    parameters: dict[str, bool | int | Finite | str | None]
    frame_wh: tuple[int, int]
    picture_wh: tuple[int, int]
    roi: tuple[int, int, int, int] | None
    threshold: Finite
    basis: str
    false_reject_target: Finite
    promised_false_reject_rate: Finite
    n_train: int
    n_held_out: int
    """Parts, where the bundle names them, else pictures."""
    data_sha256: str
    """Of the list of pictures, one line each as `sha256sum` writes it."""
    skipped: tuple[tuple[str, str], ...]
    card: dict[str, str]
    versions: dict[str, str]
    scored: tuple[ScoredPicture, ...]
    confidence: Finite | None = None
    """Of the promise; None in bundles of before there was one, which promise an average."""
    exceedances: int | None = None
    estimated_false_reject_rate: Finite | None = None
    model_sha256: str = ""
    model_id: str | None = None
    created: str | None = None
    n_weights: int | None = None
    loss: tuple[tuple[int, Finite], ...] = ()
    """(step, smoothed loss)."""
    curves: Curves | None = None
    triples: tuple[Triple, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    unusual: tuple[Unusual, ...] = ()
    """The most unusual first; empty in reports of before there was a ranking."""
    n_left_out: int = 0
    maps: tuple[Map, ...] = ()
    explained: Finite | None = None
    """Share of the embeddings' variance that the map of the latent space shows."""
    promises: tuple[str, ...] = ()
    """Further sentences on what is promised or estimated."""
    notes: tuple[str, ...] = field(default=())
    health: tuple[tuple[str, str, str], ...] = ()
    """Which pictures can be judged: each measure with the good pictures' range and what is allowed."""
    kind: str = "object"
    """Or `texture`: see `flawline_train.kind`."""


def report_of_manifest(manifest: Manifest) -> ReportData:
    """What a manifest alone tells: the held-out scores, what was promised, the data and the card."""
    frame, calibration, data = manifest.frame, manifest.calibration, manifest.data
    held_out = calibration.parts or [picture.file for picture in data.pictures if picture.role == "calibration"]
    if len(held_out) != len(calibration.scores):  # a manifest from elsewhere: the scores are there, their names are not
        held_out = ["held-out picture"] * len(calibration.scores)
    return ReportData(
        name=manifest.name,
        method=manifest.method.name,
        parameters=dict(manifest.method.parameters),
        frame_wh=(frame.width, frame.height),
        kind=frame.kind,
        picture_wh=frame.picture_wh,
        roi=frame.roi,
        threshold=calibration.threshold,
        basis=calibration.basis,
        false_reject_target=calibration.false_reject_target,
        promised_false_reject_rate=calibration.promised_false_reject_rate,
        n_train=sum(picture.role == "train" for picture in data.pictures),
        n_held_out=len(calibration.scores),
        confidence=calibration.confidence,
        exceedances=calibration.exceedances,
        estimated_false_reject_rate=calibration.estimated_false_reject_rate,
        n_left_out=sum(picture.role == "left_out" for picture in data.pictures),
        data_sha256=_sha256_of_list(data.pictures),
        skipped=tuple((entry.file, entry.reason) for entry in data.skipped),
        card=manifest.card.model_dump(),
        versions=dict(manifest.versions),
        health=tuple(health_rows(health_of(manifest))),
        scored=tuple(
            ScoredPicture(name, "held_out", score) for name, score in zip(held_out, calibration.scores, strict=True)
        ),
    )


def _sha256_of_list(pictures: Iterable[PictureEntry]) -> str:
    lines = "".join(f"{picture.sha256}  {picture.file}\n" for picture in pictures)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
