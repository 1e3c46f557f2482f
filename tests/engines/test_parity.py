"""The parity gate: real engines pass, and every way in which an engine can go wrong is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.edge.stand_ins import SIDE, THRESHOLD, level_bundle

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_engines.engine import Inference, Precision, open_engine
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.parity import LIMITS, NEAR_THRESHOLD, Parity, check_parity
from flawline_engines.parity_command import parity
from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.errors import BundleError, EngineError


class Spoilt:
    """ONNX Runtime whose answers are changed: (answers, how many frames were seen before) → answers."""

    kind = "stand-in"

    def __init__(self, bundle: Bundle, change: Callable[[Inference], Inference], precision: Precision = "fp32") -> None:
        self.precision: Precision = precision
        self._engine = OnnxRuntimeEngine(bundle.member(MODEL), (SIDE, SIDE), threads=1)
        self._change = change

    def __enter__(self) -> Spoilt:
        self._engine.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._engine.__exit__(None, None, None)

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        found = self._engine.infer(frames)
        return self._change(Inference(*(values.copy() for values in found)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(level_bundle(tmp_path_factory.mktemp("bundle")))


def gate(bundle: Bundle, change: Callable[[Inference], Inference], precision: Precision = "fp32") -> Parity:
    with Spoilt(bundle, change, precision) as engine:
        return check_parity(bundle, engine)


# --- real engines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_fp32_is_accepted(kind: Any) -> None:
    """The shipped bundle, on each engine of this machine, within a tenth of the limits."""
    if kind == "openvino":
        pytest.importorskip("openvino")
    opened = Bundle.open(DEMO_BUNDLE)
    with open_engine(opened, kind, precision="fp32", threads=1) as engine:
        found = check_parity(opened, engine)
    assert found.accepted and found.flips == () and found.non_finite == 0
    assert (found.engine, found.precision, found.pictures) == (kind, "fp32", 16)
    assert found.score_difference < 0.5 * LIMITS["fp32"].score
    assert found.expected_difference <= 1


def test_bf16_is_accepted() -> None:
    """Where the processor has it: the network in bf16, error and score in float32, so that verdicts stay."""
    pytest.importorskip("openvino")
    opened = Bundle.open(DEMO_BUNDLE)
    try:
        with open_engine(opened, "openvino", precision="bf16", threads=1) as engine:
            found = check_parity(opened, engine)
    except EngineError as exc:
        pytest.skip(str(exc))
    assert found.accepted, found.refusals
    assert found.score_difference > LIMITS["fp32"].score  # or it was not bf16


def test_the_reference_itself_is_accepted(bundle: Bundle) -> None:
    """No difference at all."""
    found = gate(bundle, lambda told: told)
    assert found.accepted and (found.score_difference, found.heatmap_difference) == (0, 0)
    assert found.model == bundle.model_id and found.threshold == THRESHOLD


# --- refusals --------------------------------------------------------------------------------------------------------


def where(told: Inference, index: NDArray[np.bool_], **changes: float) -> Inference:
    for name, value in changes.items():
        getattr(told, name)[index] = value
    return told


REJECTS: dict[str, tuple[Callable[[Inference], Inference], str]] = {
    "a reject passes": (lambda t: where(t, t.scores > THRESHOLD, scores=THRESHOLD), r"\(damaged\) becomes OK"),
    "a pass is rejected": (lambda t: where(t, t.scores <= THRESHOLD, scores=99.0), r"\(good\) becomes NotOK"),
    "a score is NaN": (lambda t: where(t, t.scores > THRESHOLD, scores=np.nan), "not finite"),
    "a score is infinite": (lambda t: where(t, t.scores > -1, scores=np.inf), "not finite"),
    "a pixel is NaN": (lambda t: (t.heatmaps.__setitem__((0, 3, 4), np.nan), t)[1], "not finite"),
    "scores are off": (lambda t: t._replace(scores=t.scores * np.float32(1.01)), "scores differ by 1.00%"),
    "heatmaps are off": (lambda t: t._replace(heatmaps=t.heatmaps + np.float32(1)), "heatmaps differ by"),
}


@pytest.mark.parametrize("name", REJECTS)
def test_what_may_not_serve(bundle: Bundle, name: str) -> None:
    """Refused, with the reason first."""
    change, said = REJECTS[name]
    found = gate(bundle, change)
    assert not found.accepted
    assert any(re.search(said, refusal) for refusal in found.refusals), found.refusals


def test_only_some_batches_go_wrong(bundle: Bundle) -> None:
    """An engine that is right for one frame and wrong for many, as a kernel for larger batches may be, is refused."""

    def change(told: Inference) -> Inference:
        return told if len(told.scores) == 1 else told._replace(scores=-told.scores)

    found = gate(bundle, change)
    assert not found.accepted and any(flip.to_pass for flip in found.flips)


@pytest.mark.parametrize(
    ("share", "to_pass", "accepted"),
    [(0.995, False, True), (0.995, True, True), (1.005, True, False), (0.985, False, False)],
    ids=["a near pass becomes a reject", "a near pass stays", "a near reject passes", "a pass that is not near"],
)
def test_near_the_threshold(bundle: Bundle, share: float, to_pass: bool, accepted: bool) -> None:
    """Within 1 % a pass may become a reject, and a reject never a pass."""
    assert NEAR_THRESHOLD == 0.01
    reference_score, score = THRESHOLD * share, THRESHOLD * (0.999 if to_pass else 1.001)

    def change(told: Inference) -> Inference:
        return told._replace(scores=np.full_like(told.scores, score))

    with Spoilt(bundle, lambda told: told) as plain:
        frames = np.stack([golden.fitted for golden in bundle.golden()])
        reference = plain.infer(frames)._replace(scores=np.full(len(frames), reference_score, np.float32))
    with Spoilt(bundle, change, "int8") as engine:
        found = check_parity(bundle, engine, reference=reference)
    assert found.accepted is accepted


@pytest.mark.parametrize("precision", LIMITS)
def test_each_precision_has_its_limit_and_its_reason(bundle: Bundle, precision: Precision) -> None:
    """Just below is accepted, just above refused; coarser arithmetic has wider limits, and a reason is given."""
    limits = LIMITS[precision]
    assert limits.reason and 0 < limits.score <= 0.1  # golden scores keep 10 % from the threshold
    for factor, accepted in ((0.9, True), (1.1, False)):
        found = gate(
            bundle, lambda t, f=factor: t._replace(scores=t.scores * np.float32(1 + f * limits.score)), precision
        )
        assert found.accepted is accepted, found.refusals


def test_wrong_shapes_are_an_error(bundle: Bundle) -> None:
    """No comparison by broadcasting."""
    with pytest.raises(EngineError, match=r"stand-in gives scores as float32 \(16, 1\), expected float32 \(16,\)"):
        gate(bundle, lambda told: told._replace(scores=told.scores[:, None]))


def test_a_bundle_without_golden_pictures(tmp_path: Path) -> None:
    """There is nothing to compare with."""
    empty = Bundle.open(level_bundle(tmp_path, golden=0))
    with pytest.raises(BundleError, match="no golden pictures to compare engines with"):
        gate(empty, lambda told: told)


def test_what_was_found_survives_json(bundle: Bundle) -> None:
    """It lies beside the plan."""
    found = gate(bundle, lambda told: told._replace(scores=-told.scores))
    assert found.flips and found.refusals
    assert Parity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert replace(found, refusals=()).accepted


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    """Ends with 0."""
    assert parity(DEMO_BUNDLE, engine="onnxruntime", threads=1) == 0
    out = capsys.readouterr().out
    assert "16 golden pictures: onnxruntime fp32" in out and "accepted" in out and "score difference" in out


def test_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ends with 1 and says why; as JSON too."""
    path = level_bundle(tmp_path)
    calls = 0
    real = OnnxRuntimeEngine.infer

    def later(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        nonlocal calls
        calls += 1
        told = real(self, frames)
        return told._replace(scores=told.scores * 0) if calls > 16 else told  # the reference comes first

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", later)
    assert parity(path, engine="onnxruntime", threads=1, json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["accepted"] is False and found["flips"]
    calls = 0
    assert parity(path, engine="onnxruntime", threads=1) == 1
    assert "refused" in capsys.readouterr().out
