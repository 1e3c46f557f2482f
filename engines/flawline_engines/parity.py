"""The parity gate: may this engine, in this precision, judge parts in place of ONNX Runtime in fp32?

Golden pictures go through both, one at a time, as on the line, and once more all together, since engines choose other
kernels for a batch. Refused are

- any value that is not finite,
- any reject that becomes a pass,
- any pass that becomes a reject, unless its reference score lies within 1 % of the threshold,
- differences above the precision's limits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import Engine, Inference, Precision
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.errors import BundleError, EngineError

__all__ = ["LIMITS", "Flip", "Limits", "Parity", "check_parity", "reference_inference"]

NEAR_THRESHOLD = 0.01
"""A reference score this close to the threshold, as a share of it, may become a reject: rounding decides there anyway."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest differences allowed, as shares of the threshold or, where that is larger, of the value itself."""

    score: float
    heatmap: float
    reason: str


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(
        0.001,
        0.01,
        "the same arithmetic in another order: 1e-4 was measured for scores; a TensorRT that uses TF32 is ten times off",
    ),
    "fp16": Limits(
        0.02,
        0.1,
        "the network alone has 11 bits, which move a pixel by less than half a grey level: 0.003 was measured for scores",
    ),
    "bf16": Limits(
        0.05,
        0.5,
        "the network alone has 8 bits, the error float32: 0.016 was measured for scores; with the error in bf16 it was 0.69",
    ),
    "int8": Limits(
        0.05,
        0.5,
        "rounding adds about one grey level; half of the 10 % that golden scores keep from the threshold is left to it",
    ),
}


@dataclass(frozen=True, slots=True)
class Flip:
    """A golden picture that is judged otherwise than by the reference."""

    picture: int
    label: str
    reference_score: float
    score: float
    to_pass: bool


@dataclass(frozen=True, slots=True)
class Parity:
    """What the gate found. Differences are shares, see `Limits`; `refusals` is empty when the engine may serve."""

    model: str
    engine: str
    precision: Precision
    pictures: int
    threshold: float
    score_difference: float
    heatmap_difference: float
    expected_difference: int
    """Of the expected picture, in grey levels; told, not judged."""
    non_finite: int
    flips: tuple[Flip, ...]
    refusals: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return not self.refusals

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Parity:
        """Raises `KeyError`, `TypeError` or `ValueError` for anything that `to_dict` does not give."""
        flips = tuple(Flip(**flip) for flip in data["flips"])
        return cls(**{**data, "flips": flips, "refusals": tuple(str(text) for text in data["refusals"])})


def reference_inference(bundle: Bundle, frames: NDArray[np.uint8]) -> Inference:
    """What ONNX Runtime says in fp32 on the CPU, frame by frame."""
    with OnnxRuntimeEngine(bundle.member(MODEL), (bundle.frame.height, bundle.frame.width)) as engine:
        return _one_by_one(engine, frames)


def check_parity(bundle: Bundle, candidate: Engine, *, reference: Inference | None = None) -> Parity:
    """Hold an entered engine against the reference, which is computed unless it is given.

    Raises `EngineError` when the candidate cannot infer and `BundleError` for a bundle without golden pictures.
    """
    golden = list(bundle.golden())
    if not golden:
        raise BundleError(f"{bundle.source}: has no golden pictures to compare engines with; train it again")
    frames = np.stack([picture.fitted for picture in golden])
    if reference is None:
        reference = reference_inference(bundle, frames)
    precision = candidate.precision
    limits, threshold = LIMITS[precision], np.float32(bundle.threshold)
    score_difference = heatmap_difference = 0.0
    expected_difference = non_finite = 0
    flips: dict[int, Flip] = {}
    for found in (_one_by_one(candidate, frames), candidate.infer(frames)):
        _check_shapes(candidate, found, reference)
        finite = np.isfinite(found.scores) & np.isfinite(found.heatmaps).all((1, 2))
        non_finite = max(non_finite, int((~finite).sum()))
        score_difference = max(score_difference, _share(found.scores, reference.scores, threshold))
        heatmap_difference = max(heatmap_difference, _share(found.heatmaps, reference.heatmaps, threshold))
        levels = np.abs(found.expected.astype(np.int16) - reference.expected)
        expected_difference = max(expected_difference, int(levels.max()))
        for i in np.flatnonzero(finite & ((found.scores > threshold) != (reference.scores > threshold))):
            score = float(found.scores[i])
            to_pass = not score > threshold
            flips[int(i)] = Flip(int(i), golden[i].label, float(reference.scores[i]), score, to_pass)
    refusals = []
    if non_finite:
        refusals.append(f"{non_finite} of {len(golden)} golden pictures give values that are not finite")
    for flip in flips.values():
        near = abs(flip.reference_score - threshold) <= NEAR_THRESHOLD * abs(threshold)
        if flip.to_pass or not near:
            refusals.append(
                f"golden picture {flip.picture} ({flip.label}) becomes {'OK' if flip.to_pass else 'NotOK'}: it scores "
                f"{flip.score:.4f}, {flip.reference_score:.4f} by ONNX Runtime in fp32, at threshold {threshold:.4f}"
            )
    for name, difference, limit in (
        ("scores", score_difference, limits.score),
        ("heatmaps", heatmap_difference, limits.heatmap),
    ):
        if difference > limit:
            refusals.append(f"{name} differ by {difference:.2%} at most, {limit:.2%} is the limit for {precision}")
    return Parity(
        model=bundle.model_id,
        engine=candidate.kind,
        precision=precision,
        pictures=len(golden),
        threshold=float(threshold),
        score_difference=score_difference,
        heatmap_difference=heatmap_difference,
        expected_difference=expected_difference,
        non_finite=non_finite,
        flips=tuple(flips.values()),
        refusals=tuple(refusals),
    )


def _one_by_one(engine: Engine, frames: NDArray[np.uint8]) -> Inference:
    results = [engine.infer(frames[i : i + 1]) for i in range(len(frames))]
    scores, heatmaps, expected = (np.concatenate(column) for column in zip(*results, strict=True))
    return Inference(scores, heatmaps, expected)


def _check_shapes(candidate: Engine, found: Inference, reference: Inference) -> None:
    arrays: zip[tuple[str, NDArray[np.generic], NDArray[np.generic]]]
    arrays = zip(Inference._fields, found, reference, strict=True)
    for name, ours, theirs in arrays:
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise EngineError(
                f"{candidate.kind} gives {name} as {ours.dtype} {ours.shape}, expected {theirs.dtype} {theirs.shape}"
            )


def _share(found: NDArray[np.float32], reference: NDArray[np.float32], threshold: np.float32) -> float:
    """Largest finite difference, as a share of the threshold or of the reference, whichever is larger."""
    scale = np.maximum(np.abs(reference), np.abs(threshold))
    with np.errstate(invalid="ignore"):
        shares = np.abs(found - reference) / scale
    finite = shares[np.isfinite(shares)]
    return float(finite.max()) if finite.size else 0.0
