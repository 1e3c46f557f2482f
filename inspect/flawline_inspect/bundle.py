"""The bundle: one `.flawline` file that travels from the engineer to the line.

A zip of `manifest.json`, the graph (`model.onnx`), the weights to retrain from (`weights.safetensors`), golden pictures and
the training report (`report.html`), a page that runs nothing.
The manifest holds the SHA-256 of every other member, so whoever knows the manifest's hash knows the whole bundle; the
first 8 hex digits of it are part of the model's id. A signature of the manifest (`flawline_inspect.signature`) may lie
beside it. No member is ever unpickled, and none is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flawline_inspect.align import Alignment, Bounds, Design
from flawline_inspect.errors import BundleError
from flawline_inspect.files import write_atomic
from flawline_inspect.frame import FRAME_MULTIPLE, FrameSpec, Placement, Roi, fit_picture
from flawline_inspect.health import THUMBNAIL_SIDE, Bound, Health, Measure
from flawline_inspect.signature import SIGNATURE_BYTES, check_signature, key_from_environment

__all__ = [
    "SCHEMA_VERSION", "Bundle", "Golden", "Manifest", "bundle_bytes", "health_of", "read_bundle_file", "save_bundle",
]  # fmt: skip

SCHEMA_VERSION = 1
SUFFIX = ".flawline"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
REPORT = "report.html"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
ASPECT_TOLERANCE = 0.02
MAX_MEMBERS = 512
MAX_MEMBER_BYTES = 1 << 30
MAX_BUNDLE_BYTES = 2 << 30
MAX_MANIFEST_BYTES = 64 << 20
MAX_ALIGN_SIDE = 1024
MAX_REFERENCES = 8
MAX_PICTURE_SIZES = 8
_MEMBER_NAME = re.compile(r"((golden|align)/)?[A-Za-z0-9][A-Za-z0-9._-]*\Z")
# What zipfile lets through for one bad byte or another; their texts may quote the file's bytes.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, RuntimeError, EOFError, OSError)
_MODEL_NAME_LENGTH = 11
"""A model's id is at most 20 characters: 11 of its name, a dash and 8 hex digits."""

# A fixed time for every member: the same training gives the same bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class BoundsEntry(_Section):
    """See `flawline_inspect.align.Bounds`."""

    correlation: Annotated[float, Field(ge=-1, le=1)]
    doubt: Annotated[float, Field(ge=-1, le=1)]
    contrast: Annotated[float, Field(ge=0, le=255)]
    inside: Annotated[float, Field(ge=0, le=1)]


class ReferenceEntry(_Section):
    """See `flawline_inspect.align.Design`; `member` is a grey PNG."""

    member: str
    centre: tuple[float, float]
    area: Annotated[float, Field(ge=0)]


class PlacingSection(_Section):
    """How parts are found; see `flawline_inspect.align.Alignment`."""

    canvas_wh: tuple[Annotated[int, Field(ge=8, le=MAX_ALIGN_SIDE)], Annotated[int, Field(ge=8, le=MAX_ALIGN_SIDE)]]
    scale: Annotated[float, Field(ge=0.1, le=100)]
    scales: tuple[Annotated[float, Field(ge=0.05, le=20)], Annotated[float, Field(ge=0.05, le=20)]]
    bounds: BoundsEntry
    references: Annotated[list[ReferenceEntry], Field(min_length=1, max_length=MAX_REFERENCES)]

    @field_validator("scales")
    @classmethod
    def _in_order(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if scales[0] > scales[1]:
            raise ValueError(f"scales are {scales[0]} to {scales[1]}, expected the lower one first")
        return scales


class AlignSection(_Section):
    """Whether and how parts are aligned, and the figures that this was chosen by: see `flawline_train.alignment`."""

    kind: Literal["none", "shift", "rotate"]
    disagreement: dict[str, Annotated[float, Field(ge=0, le=2)]] = {}
    placing: PlacingSection | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> AlignSection:
        if (self.kind == "none") is not (self.placing is None):
            raise ValueError(f"kind {self.kind} {'has' if self.placing else 'lacks'} the section placing")
        return self


class FrameSection(_Section):
    """The model's frame; see `flawline_inspect.frame`."""

    width: Annotated[int, Field(ge=FRAME_MULTIPLE, le=8192, multiple_of=FRAME_MULTIPLE)]
    height: Annotated[int, Field(ge=FRAME_MULTIPLE, le=8192, multiple_of=FRAME_MULTIPLE)]
    bit_depth: Annotated[int, Field(ge=8, le=16)]
    roi: tuple[int, int, int, int] | None = None
    picture_wh: tuple[int, int]
    """The usual size of the pictures that the model was trained on, in pixels."""
    align: AlignSection | None = None
    """None in bundles of before there was alignment."""
    stretch: bool = False
    """False in bundles of before pictures could fill the frame."""
    kind: Literal["object", "texture"] = "object"
    """Whether places differ or all are judged alike; see `flawline_train.kind`. `object` in bundles of before there were textures."""

    @model_validator(mode="after")
    def _stretches_or_aligns(self) -> FrameSection:
        if self.stretch and self.align is not None and self.align.kind != "none":
            raise ValueError(f"stretch is true and align is {self.align.kind}, expected one of them at most")
        return self

    @property
    def trained_wh(self) -> tuple[int, int]:
        """What was fitted into the frame in training: the region of interest, else the whole picture."""
        return self.picture_wh if self.roi is None else (self.roi[2], self.roi[3])

    def is_unlike(self, wh: tuple[int, int]) -> bool:
        """Whether an area of this width and height has another aspect ratio: it would be scored where nothing was learnt."""
        width, height = self.trained_wh
        if self.stretch:
            return False
        return abs(wh[0] * height / (wh[1] * width) - 1) > ASPECT_TOLERANCE


class BoundEntry(_Section):
    """See `flawline_inspect.health.Bound`."""

    good: tuple[float, float]
    allowed: tuple[float | None, float | None]

    @field_validator("allowed")
    @classmethod
    def _bounds_something(cls, allowed: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
        if allowed == (None, None):
            raise ValueError("allowed has no limit, expected one or two")
        return allowed


class HealthSection(_Section):
    """Which pictures can be judged; see `flawline_inspect.health.Health`. `reference`: rows of grey values from the top."""

    bounds: dict[Measure, BoundEntry]
    reference: (
        Annotated[
            list[Annotated[int, Field(ge=0, le=255)]],
            Field(min_length=THUMBNAIL_SIDE**2, max_length=THUMBNAIL_SIDE**2),
        ]
        | None
    ) = None
    picture_whs: Annotated[list[tuple[int, int]], Field(max_length=MAX_PICTURE_SIZES)] = []

    @model_validator(mode="after")
    def _is_whole(self) -> HealthSection:
        if ("likeness" in self.bounds) is not (self.reference is not None):
            raise ValueError("likeness is bounded and reference is missing, or the other way round")
        return self


class MethodSection(_Section):
    name: str
    parameters: dict[str, bool | int | float | str | None]


class SuspectEntry(_Section):
    """A held-out part whose score stands far above the others'; `skipped`: the threshold was set without it."""

    part: str
    score: float
    skipped: bool


class DefectEntry(_Section):
    """Known defects of one kind: `escaped` of `n` pictures pass at the threshold; 95 % interval of that rate."""

    kind: str
    n: Annotated[int, Field(ge=1)]
    escaped: Annotated[int, Field(ge=0)]
    escape_interval: tuple[float, float]


class CostsSection(_Section):
    """What the two errors cost, in any one unit, and the threshold that costs least by the known defects."""

    false_reject: float
    escape: float
    defect_rate: float
    cost_per_part: float
    """At the bundle's threshold."""
    cheapest_threshold: float
    cheapest_cost_per_part: float


class DefectsSection(_Section):
    kinds: list[DefectEntry]
    costs: CostsSection | None = None


class CalibrationSection(_Section):
    """The scores of the held-out good parts and the threshold that follows from them. Rates are shares in 0–1.

    Each of `scores` (n,) belongs to the part of the same place in `parts` and was made without that part. Promised is the
    upper bound on the false-reject rate that n parts with `exceedances` above the threshold give with this `confidence`;
    estimated is what a tail fitted to the scores expects. Bundles without `confidence` are older: they promise a
    rate on average, 1 / (n + 1) at best.
    """

    scores: list[float]
    threshold: float
    basis: Literal["order_statistic", "exponential_tail", "cheapest", "log_normal"]
    false_reject_target: float
    promised_false_reject_rate: float
    parts: list[str] = []
    exceedances: Annotated[int, Field(ge=0)] | None = None
    confidence: float | None = None
    estimated_false_reject_rate: float | None = None
    suspects: list[SuspectEntry] = []
    defects: DefectsSection | None = None

    @property
    def within_promise(self) -> bool:
        """Whether the target is promised, not only estimated."""
        return self.promised_false_reject_rate <= self.false_reject_target + 1e-9


class PictureEntry(_Section):
    file: str
    sha256: Sha256
    role: Literal["train", "calibration", "left_out"]
    """`left_out`: a suspect that was neither learnt from nor calibrated with."""


class SkippedEntry(_Section):
    file: str
    reason: str


class UnusualEntry(_Section):
    """A picture of a part that looked unlike the other good ones before anything was learnt, and by how many robust deviations."""

    file: str
    score: float


class DataSection(_Section):
    pictures: list[PictureEntry]
    skipped: list[SkippedEntry] = []
    earlier: list[PictureEntry] = []
    """Of a model that was trained further: what the models before it knew beyond `pictures`."""
    suspects: list[UnusualEntry] = []
    """Of `pictures`, the most unusual first, whatever their role."""


class CardSection(_Section):
    """The model card (Mitchell et al. 2019), as short as one page of the factory's paper."""

    intended_use: str
    limits: str
    data: str
    who_may_be_wronged: str


class GoldenEntry(_Section):
    raw: str
    fitted: str
    label: Literal["good", "damaged"]
    score: float
    """By ONNX Runtime in fp32."""


class MemberEntry(_Section):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=MAX_MEMBER_BYTES)]


class Manifest(_Section):
    """`manifest.json`. Unknown keys are refused: they would mean a newer schema than this reader knows."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    created: str
    method: MethodSection
    frame: FrameSection
    calibration: CalibrationSection
    data: DataSection
    card: CardSection
    golden: list[GoldenEntry]
    versions: dict[str, str]
    members: dict[str, MemberEntry]
    health: HealthSection | None = None
    """None in bundles of before pictures were checked."""

    @property
    def placing(self) -> PlacingSection | None:
        return None if self.frame.align is None else self.frame.align.placing

    @property
    def threshold(self) -> float:
        return self.calibration.threshold


@dataclass(frozen=True, slots=True)
class Golden:
    """A picture whose score is known: `raw` as the camera gave it, `fitted` (H, W, 3) as the graph takes it."""

    label: str
    score: float
    raw: NDArray[np.generic]
    fitted: NDArray[np.uint8]


class Bundle:
    """A verified bundle, held in memory as it lies in the file.

    Everything is checked on opening: size, member names, the manifest's schema, the SHA-256 of each member and that
    the graph, the references and the golden pictures it names are there; first of all, with a `public_key`, that it was
    signed with the key that belongs to it. After that its content is trusted.
    """

    def __init__(self, data: bytes, source: str, public_key: Path | None = None) -> None:
        self.source = source
        self.public_key = public_key
        """Whose signature was asked for; None where any bundle was welcome."""
        self._data = data
        self.manifest_bytes, self.manifest, self.signature = _verify(data, source, public_key)
        frame = self.manifest.frame
        self.frame = FrameSpec(frame.width, frame.height, frame.bit_depth, frame.roi, self._alignment(), frame.stretch)
        self.health = health_of(self.manifest)

    @classmethod
    def open(cls, path: Path | str, *, public_key: Path | None = None) -> Bundle:
        """Read and verify a bundle. Raises `BundleError` with one sentence that names the file and the member.

        Without `public_key` the one in `FLAWLINE_PUBLIC_KEY` counts, if it is set.
        """
        return cls(read_bundle_file(Path(path)), str(path), public_key or key_from_environment())

    @property
    def model_id(self) -> str:
        """NAME-xxxxxxxx: at most 11 characters of the name and 8 hex digits of the manifest's SHA-256."""
        return f"{self.manifest.name[:_MODEL_NAME_LENGTH]}-{hashlib.sha256(self.manifest_bytes).hexdigest()[:8]}"

    @property
    def threshold(self) -> float:
        return self.manifest.threshold

    def member(self, name: str) -> bytes:
        """A member's bytes. Raises `BundleError` when the bundle has no such member."""
        if name not in self.manifest.members:
            raise BundleError(f"{self.source}: has no member {name}; it has {', '.join(sorted(self.manifest.members))}")
        with zipfile.ZipFile(io.BytesIO(self._data)) as archive:
            return archive.read(name)

    def signed(self, signature: bytes) -> bytes:
        """The bundle's file with this signature in place of the one it has, if any; nothing else changes."""
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self._data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                if info.filename != SIGNATURE:
                    _pack(new, info.filename, old.read(info))
            _pack(new, SIGNATURE, signature)
        return out.getvalue()

    def fit(self, picture: NDArray[np.generic], roi: Roi | None = None) -> tuple[NDArray[np.uint8], Placement]:
        """`fit_picture` into this bundle's frame, of a picture that can be judged: the same for whoever judges one.

        Raises `HealthError` for what cannot be judged, and `PictureError` as `fit_picture` does.
        """
        frame, placement = self.fit_unchecked(picture, roi)
        self.health.check(frame, placement)
        return frame, placement

    def fit_unchecked(
        self, picture: NDArray[np.generic], roi: Roi | None = None
    ) -> tuple[NDArray[np.uint8], Placement]:
        """The same for those who hold its health against `self.health` meanwhile."""
        return fit_picture(picture, self.frame, roi)

    def golden(self) -> Iterator[Golden]:
        """The golden pictures, good ones first, decoded one at a time."""
        for entry in sorted(self.manifest.golden, key=lambda entry: entry.label != "good"):
            raw, fitted = (self._decode(name) for name in (entry.raw, entry.fitted))
            yield Golden(entry.label, entry.score, raw, fitted.astype(np.uint8, copy=False))

    def _alignment(self) -> Alignment | None:
        align, placing = self.manifest.frame.align, self.manifest.placing
        if align is None or placing is None:
            return None
        designs = []
        for entry in placing.references:
            picture = self._decode(entry.member)
            if (
                picture.ndim != 2
                or picture.dtype != np.uint8
                or not 8 <= min(picture.shape) <= max(picture.shape) <= MAX_ALIGN_SIDE
            ):
                raise BundleError(
                    f"{self.source}: {entry.member} is {picture.dtype} {picture.shape}, expected an 8-bit grey picture of "
                    f"8 to {MAX_ALIGN_SIDE} pixels a side"
                )
            designs.append(Design(picture.astype(np.uint8, copy=False), complex(*entry.centre), entry.area))
        if len({design.reference.shape for design in designs}) > 1:
            raise BundleError(f"{self.source}: the references of its alignment differ in size")
        bounds = placing.bounds
        return Alignment(
            "shift" if align.kind == "shift" else "rotate",
            designs,
            canvas_wh=placing.canvas_wh,
            scale=placing.scale,
            scales=placing.scales,
            bounds=Bounds(bounds.correlation, bounds.doubt, bounds.contrast, bounds.inside),
        )

    def _decode(self, name: str) -> NDArray[np.generic]:
        data = np.frombuffer(self.member(name), np.uint8)
        try:
            picture = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
        except cv2.error:  # empty, or larger than OpenCV takes
            picture = None
        if picture is None:
            raise BundleError(f"{self.source}: {name} is not a picture")
        return picture


def health_of(manifest: Manifest) -> Health:
    """Which pictures can be judged; without any bounds in a bundle that knows none."""
    section = manifest.health
    if section is None:
        return Health()
    reference = None
    if section.reference is not None:
        reference = np.array(section.reference, np.float32).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    bounds = {measure: Bound(entry.good, entry.allowed) for measure, entry in section.bounds.items()}
    return Health(bounds, reference, manifest.frame.roi, tuple(section.picture_whs))


def read_bundle_file(path: Path) -> bytes:
    """A bundle's bytes, not verified. Raises `BundleError` for what cannot be a bundle."""
    try:
        if not path.is_file():
            state = "is a folder" if path.is_dir() else "does not exist"
            raise BundleError(f"{path}: the bundle {state}; give a {SUFFIX} file made by `flawline train`")
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise BundleError(f"{path}: larger than {MAX_BUNDLE_BYTES >> 30} GiB, which no bundle is")
        return path.read_bytes()
    except OSError as exc:
        raise BundleError(f"{path}: the bundle cannot be read ({exc.strerror or exc})") from exc


def _verify(data: bytes, source: str, public_key: Path | None) -> tuple[bytes, Manifest, bytes | None]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGED as exc:
        raise BundleError(f"{source}: not a bundle, or truncated; copy it again") from exc
    with archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if len(infos) > MAX_MEMBERS:
            raise BundleError(f"{source}: has {len(infos)} members, at most {MAX_MEMBERS} are allowed")
        for info in infos:
            if not _MEMBER_NAME.match(info.filename):
                raise BundleError(f"{source}: member {info.filename!r} has a name that no bundle member may have")
            if info.file_size > MAX_MEMBER_BYTES:
                raise BundleError(f"{source}: member {info.filename} unpacks to {info.file_size} bytes, too many")
        for name in names:
            if names.count(name) > 1:
                raise BundleError(f"{source}: member {name} is there twice")
        if MANIFEST not in names:
            raise BundleError(f"{source}: has no {MANIFEST}; it is not a flawline bundle")
        if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{source}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
        manifest_bytes = _read(archive, MANIFEST, source)
        signature = _signature(archive, source)
        if public_key is not None:  # before anything in the manifest is believed
            check_signature(manifest_bytes, signature, public_key, source)
        manifest = _parse_manifest(manifest_bytes, source)
        listed = set(manifest.members)
        for name in names:
            if name not in (MANIFEST, SIGNATURE) and name not in listed:
                raise BundleError(f"{source}: member {name} is not in the manifest")
        for name, entry in manifest.members.items():
            if name not in names:
                raise BundleError(f"{source}: member {name} is missing")
            if archive.getinfo(name).file_size != entry.bytes:
                raise BundleError(f"{source}: member {name} has another length than the manifest says")
            if hashlib.sha256(_read(archive, name, source)).hexdigest() != entry.sha256:
                raise BundleError(f"{source}: member {name} is damaged or was tampered with (SHA-256 differs)")
        needed = {MODEL}.union(*({entry.raw, entry.fitted} for entry in manifest.golden))
        if manifest.placing is not None:
            needed |= {entry.member for entry in manifest.placing.references}
        for name in sorted(needed - listed):
            raise BundleError(f"{source}: member {name} is missing")
    return manifest_bytes, manifest, signature


def _signature(archive: zipfile.ZipFile, source: str) -> bytes | None:
    if SIGNATURE not in archive.namelist():
        return None
    if archive.getinfo(SIGNATURE).file_size != SIGNATURE_BYTES:
        raise BundleError(
            f"{source}: member {SIGNATURE} is no signature, which has {SIGNATURE_BYTES} bytes; sign it again"
        )
    return _read(archive, SIGNATURE, source)


def _read(archive: zipfile.ZipFile, name: str, source: str) -> bytes:
    size = archive.getinfo(name).file_size
    try:
        with archive.open(name) as member:
            data = member.read(size + 1)  # not read(): a member that unpacks to more than it says is not unpacked
    except _DAMAGED as exc:
        raise BundleError(f"{source}: member {name} is damaged; copy the bundle again") from exc
    if len(data) != size:
        raise BundleError(f"{source}: member {name} is damaged; copy the bundle again")
    return data


def _parse_manifest(raw: bytes, source: str) -> Manifest:
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["loc"] == ("schema_version",):
            raise BundleError(
                f"{source}: {MANIFEST} has schema_version {first.get('input')!r}, this flawline reads "
                f"{SCHEMA_VERSION}; use the flawline that made it, or train again"
            ) from exc
        raise BundleError(f"{source}: {MANIFEST} is not valid at {where}: {first['msg']}") from exc


def bundle_bytes(manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """Pack `members` under a manifest; `manifest` is everything of `Manifest` but `schema_version` and `members`."""
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in members.items()}
    checked = Manifest.model_validate({"schema_version": SCHEMA_VERSION, "members": listed, **manifest})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {MANIFEST: checked.model_dump_json(indent=1).encode(), **members}.items():
            _pack(archive, name, data)
    return out.getvalue()


def _pack(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _ZIP_TIME)
    info.external_attr = 0o644 << 16
    # Pictures are compressed already; weights and JSON are worth it.
    info.compress_type = zipfile.ZIP_STORED if name.endswith((".png", ".webp")) else zipfile.ZIP_DEFLATED
    archive.writestr(info, data)


def save_bundle(path: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> Bundle:
    """Write a bundle atomically: an older one at `path` survives whatever goes wrong. Returns it, verified.

    Raises `BundleError` when it cannot be written, for example because the disk is full.
    """
    data = bundle_bytes(manifest, members)
    bundle = Bundle(data, str(path))
    try:
        write_atomic(path, data)
    except OSError as exc:
        kept = "; the bundle that was there is untouched" if path.exists() else ""
        raise BundleError(f"{path}: the bundle cannot be written ({exc.strerror or exc}){kept}") from exc
    return bundle
