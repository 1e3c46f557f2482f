"""Adding smaller precisions to a bundle, each only if the engines of this machine judge as before with it.

int8 costs accuracy where activations are large and their differences small, and how much depends on the model: one with
a wide margin takes every convolution, one with a narrow margin a part of them. So convolutions go back to float32, the
one that does most harm for its arithmetic first, until the parity gate accepts the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flawline_engines.engine import MODEL_MEMBERS, Engine, EngineKind, Inference, Precision, installed_kinds
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.open_vino import OpenVinoEngine
from flawline_engines.parity import Parity, check_parity, reference_inference
from flawline_inspect.bundle import MODEL, Bundle, save_bundle
from flawline_inspect.errors import BundleError, FlawlineError, InputError, PictureError
from flawline_inspect.frame import find_pictures, fit_picture, read_picture
from flawline_train.precision import half_model, quantizable_model

__all__ = ["Quantized", "SmallerPrecision", "quantize"]

SmallerPrecision = Literal["fp16", "int8"]

MIN_INT8_SHARE = 0.25
"""Of the network's arithmetic: with less in int8 there is nothing to be gained."""
MAX_CALIBRATION_PICTURES = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """One precision: the graph, or why there is none; what the gate said, engine by engine; how much of it is int8."""

    precision: SmallerPrecision
    model: bytes | None
    parities: tuple[Parity, ...] = ()
    refusal: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Quantized:
    """`bundle` is the one that was written, None when every precision was refused."""

    bundle: Bundle | None
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class _Gate:
    """The bundle's golden pictures, the reference's answers, and the engines to be held against them."""

    bundle: Bundle
    kinds: tuple[EngineKind, ...]
    reference: Inference
    frames: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def of(cls, bundle: Bundle) -> _Gate:
        golden = [picture.fitted for picture in bundle.golden()]
        if not golden:
            raise BundleError(f"{bundle.source}: has no golden pictures to compare precisions with; train it again")
        frames = np.stack(golden)
        # The fastest first: the search below asks it most often.
        kinds = tuple(kind for kind in installed_kinds() if kind in ("openvino", "onnxruntime"))
        return cls(bundle, kinds, reference_inference(bundle, frames), frames)

    def engine(self, kind: EngineKind, model: bytes, precision: Precision) -> Engine:
        hw = (self.bundle.frame.height, self.bundle.frame.width)
        if kind == "openvino":
            return OpenVinoEngine(model, hw, precision=precision)
        return OnnxRuntimeEngine(model, hw, precision=precision)

    def check(self, model: bytes, precision: Precision) -> tuple[Parity, ...]:
        """Up to the first engine that refuses."""
        parities: list[Parity] = []
        for kind in self.kinds:
            with self.engine(kind, model, precision) as engine:
                parities.append(check_parity(self.bundle, engine, reference=self.reference))
            if not parities[-1].accepted:
                break
        return tuple(parities)


def quantize(
    bundle: Bundle,
    out: Path,
    precisions: Sequence[SmallerPrecision] = ("fp16", "int8"),
    *,
    pictures: Path | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Quantized:
    """Add graphs of these precisions to `bundle` and write it to `out`, atomically and with a new manifest.

    int8 is calibrated on the good golden pictures, or on those of the folder `pictures`. A precision that the gate
    refuses is not written. Raises `InputError` for pictures and `BundleError` for a bundle that cannot be used.
    """
    gate = _Gate.of(bundle)
    outcomes = []
    for precision in dict.fromkeys(precisions):
        if precision == "fp16":
            on_progress("fp16: converting")
            outcomes.append(_half(bundle, gate))
        else:
            outcomes.append(_int8(bundle, gate, _calibration_frames(bundle, pictures), on_progress))
    new = {MODEL_MEMBERS[outcome.precision]: outcome.model for outcome in outcomes if outcome.model is not None}
    if not new:
        return Quantized(None, tuple(outcomes))
    members = {name: bundle.member(name) for name in bundle.manifest.members} | new
    manifest = bundle.manifest.model_dump(exclude={"schema_version", "members"})
    return Quantized(save_bundle(out, manifest, members), tuple(outcomes))


def _half(bundle: Bundle, gate: _Gate) -> Outcome:
    try:
        model = half_model(bundle.member(MODEL))
        parities = gate.check(model, "fp16")
    except FlawlineError as exc:
        return Outcome("fp16", None, refusal=str(exc))
    refusal = _refusal(parities)
    return Outcome("fp16", None if refusal else model, parities, refusal)


def _int8(
    bundle: Bundle, gate: _Gate, frames: Sequence[NDArray[np.uint8]], on_progress: Callable[[str], None]
) -> Outcome:
    try:
        on_progress(f"int8: calibrating on {len(frames)} good pictures")
        prepared = quantizable_model(bundle.member(MODEL), frames)
        everything = sum(prepared.convolutions.values())
        remaining = list(prepared.convolutions)
        model = prepared.with_int8(remaining)
        parities = gate.check(model, "int8")
        if _refusal(parities):
            harm = {}
            for i, name in enumerate(remaining, 1):
                on_progress(f"int8: what each convolution costs, {i} of {len(remaining)}")
                with gate.engine(gate.kinds[0], prepared.with_int8([name]), "int8") as engine:
                    heatmaps = engine.infer(gate.frames).heatmaps
                difference = np.nan_to_num(np.abs(heatmaps - gate.reference.heatmaps), nan=np.inf).mean()
                harm[name] = float(difference) / prepared.convolutions[name]
            remaining.sort(key=harm.__getitem__)
            shares = np.cumsum([prepared.convolutions[name] for name in remaining]) / everything
            least = int(np.searchsorted(shares, MIN_INT8_SHARE)) + 1
            parities = gate.check(prepared.with_int8(remaining[:least]), "int8")
            if _refusal(parities):
                return Outcome(
                    "int8",
                    None,
                    parities,
                    f"{_refusal(parities)}; with less than {shares[least - 1]:.0%} of the network in int8 nothing is gained",
                )
            while _refusal(parities := gate.check(model := prepared.with_int8(remaining), "int8")):
                remaining.pop()
                on_progress(f"int8: {shares[len(remaining) - 1]:.0%} of the network's arithmetic")
    except FlawlineError as exc:
        return Outcome("int8", None, refusal=str(exc))
    share = sum(prepared.convolutions[name] for name in remaining) / everything
    note = f"{len(remaining)} of {len(prepared.convolutions)} convolutions, {share:.0%} of the network's arithmetic"
    return Outcome("int8", model, parities, note=note)


def _refusal(parities: Sequence[Parity]) -> str:
    last = parities[-1]
    return "" if last.accepted else f"{last.engine}: {last.refusals[0]}"


def _calibration_frames(bundle: Bundle, pictures: Path | None) -> list[NDArray[np.uint8]]:
    if pictures is None:
        return [golden.fitted for golden in bundle.golden() if golden.label == "good"]
    paths = find_pictures(pictures)
    if not paths:
        raise InputError(f"{pictures}: has no pictures; give a folder of pictures of good parts")
    # Evenly from all of them: the first hundred may be one shift's.
    step = max(1, -(-len(paths) // MAX_CALIBRATION_PICTURES))
    frames = []
    for path in paths[::step]:
        try:
            frames.append(fit_picture(read_picture(path), bundle.frame)[0])
        except PictureError as exc:
            raise InputError(f"{path}: cannot be calibrated on ({exc}); take it out of the folder") from exc
    return frames
