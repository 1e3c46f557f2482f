"""A recipe that is loaded and proven: the self-test, the threshold, the review band, pictures of every shape."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.edge.stand_ins import (
    BAD_LEVEL,
    GOOD_LEVEL,
    LIMIT_LEVEL,
    OK_LEVEL,
    SIDE,
    THRESHOLD,
    level_bundle,
    picture,
    score_of,
)

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_edge.inspector import Inspector, Judgement
from flawline_edge.simulation import SimulatedLine
from flawline_engines.engine import Inference
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import EngineConfig, RecipeConfig
from flawline_inspect.errors import BundleError, EngineError, PictureError
from flawline_inspect.frame import Roi
from flawline_inspect.verdict import Reason, Result

ORT = EngineConfig(kind="onnxruntime", threads=1)
Infer = Callable[[OnnxRuntimeEngine, NDArray[np.uint8]], Inference]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return level_bundle(tmp_path)


def inspector(
    bundle: Path,
    *,
    threshold: float | None = None,
    review_band: tuple[float, float] | None = None,
    engine: EngineConfig = ORT,
    roi: Roi | None = None,
) -> Inspector:
    recipe = RecipeConfig(bundle=bundle, threshold=threshold, review_band=review_band)
    return Inspector(3, recipe, engine, public_key=None, roi=roi)


def spoil(monkeypatch: pytest.MonkeyPatch, scores: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    """From now on ONNX Runtime gives these scores instead of its own."""
    infer: Infer = OnnxRuntimeEngine.infer

    def spoilt(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        told = infer(self, frames)
        return told._replace(scores=scores(told.scores))

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", spoilt)


# --- judging -----------------------------------------------------------------------------------------------------


def test_the_recipe_s_area_rule_is_applied(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part whose whole picture is hot, 48 x 48 camera pixels: too small a region, or one that the mask leaves out, is OK."""
    mask = np.full((48, 48), 255, np.uint8)
    cv2.imwrite(str(tmp_path / "all.png"), mask)
    mask[20:24, 20:24] = 0
    cv2.imwrite(str(tmp_path / "most.png"), mask)
    for regions, result in (
        ({"min_area_px": 48 * 48}, Result.NOT_OK),
        ({"min_area_px": 48 * 48 + 1}, Result.OK),
        ({"level": 7.0}, Result.OK),
        ({"ignore": tmp_path / "all.png"}, Result.OK),
        ({"ignore": tmp_path / "most.png"}, Result.NOT_OK),
        ({"ignore": tmp_path / "most.png", "min_area_px": 17}, Result.OK),
    ):
        recipe = RecipeConfig.model_validate({"bundle": bundle, "regions": regions})
        with Inspector(3, recipe, ORT, public_key=None) as opened:
            decision = opened.judge(picture(BAD_LEVEL)).decision
        assert (decision.result, decision.score) == (result, pytest.approx(6.0)), regions
    cv2.imwrite(str(tmp_path / "small.png"), mask[:24])
    recipe = RecipeConfig.model_validate({"bundle": bundle, "regions": {"ignore": tmp_path / "small.png"}})
    with Inspector(3, recipe, ORT, public_key=None) as opened:
        assert {opened.judge(picture(BAD_LEVEL)).decision.result for _ in range(3)} == {Result.NOT_OK}
    assert caplog.text.count("regions.ignore of recipe 3 is not of the size of the camera's picture, 48x48") == 1
    recipe = RecipeConfig.model_validate({"bundle": bundle, "regions": {"ignore": tmp_path / "gone.png"}})
    with pytest.raises(PictureError, match=r"gone\.png"):
        Inspector(3, recipe, ORT, public_key=None)


def test_a_picture_is_fitted_inferred_and_decided(bundle: Path) -> None:
    """Score, heatmap and expected picture are the graph's, and the durations are there."""
    with inspector(bundle) as opened:
        judgement = opened.judge(picture(BAD_LEVEL))
    assert (judgement.decision.result, judgement.decision.reason) == (Result.NOT_OK, Reason.NONE)
    assert judgement.decision.score == pytest.approx(6.0)
    assert judgement.heatmap.shape == (SIDE, SIDE) and judgement.heatmap == pytest.approx(6.0)
    assert judgement.expected.shape == (SIDE, SIDE, 3) and (judgement.expected == GOOD_LEVEL).all()
    assert judgement.placement.picture_wh == (48, 48)
    assert judgement.fit_ms >= 0 and judgement.infer_ms > 0


@pytest.mark.parametrize(
    ("threshold", "band", "level", "result", "reason"),
    [
        (None, None, OK_LEVEL, Result.OK, Reason.NONE),
        (None, None, LIMIT_LEVEL, Result.OK, Reason.NONE),
        (None, None, LIMIT_LEVEL + 1, Result.NOT_OK, Reason.NONE),
        (0.5, None, OK_LEVEL, Result.NOT_OK, Reason.NONE),
        (7.0, None, BAD_LEVEL, Result.OK, Reason.NONE),
        (None, (0.8, 1.5), OK_LEVEL, Result.OK, Reason.NONE),
        (None, (0.8, 1.5), LIMIT_LEVEL - 5, Result.NOT_DECIDABLE, Reason.REVIEW),
        (None, (0.8, 1.5), LIMIT_LEVEL + 10, Result.NOT_DECIDABLE, Reason.REVIEW),
        (None, (0.8, 1.5), BAD_LEVEL + 10, Result.NOT_OK, Reason.NONE),
        (1.0, (0.5, 1.0), OK_LEVEL - 2, Result.NOT_DECIDABLE, Reason.REVIEW),
    ],
    ids=["below", "equal passes", "above", "lowered", "raised", "below the band", "in it, below", "in it, above",
         "above the band", "both"],
)  # fmt: skip
def test_threshold_and_review_band(
    bundle: Path,
    threshold: float | None,
    band: tuple[float, float] | None,
    level: int,
    result: Result,
    reason: Reason,
) -> None:
    """The recipe's threshold stands in for the bundle's; between the band's factors of it nobody decides."""
    with inspector(bundle, threshold=threshold, review_band=band) as opened:
        assert opened.rule.threshold == (threshold or THRESHOLD)
        decision = opened.judge(picture(level)).decision
    assert (decision.result, decision.reason) == (result, reason)


@pytest.mark.parametrize(
    ("raw", "score"),
    [
        (picture(BAD_LEVEL, (SIDE, SIDE)), 6.0),
        (picture(BAD_LEVEL, (640, 480)), 6.0),
        (picture(BAD_LEVEL, (20, 90)), 6.0),
        (picture(BAD_LEVEL, (1, 1)), 6.0),
        (picture(BAD_LEVEL)[:, :, 0], 6.0),
        (picture(BAD_LEVEL)[:, :, :1], 6.0),
        (np.dstack([picture(BAD_LEVEL), np.zeros((48, 48), np.uint8)]), 6.0),
        (np.full((48, 48), BAD_LEVEL * 257, np.uint16), 6.0),
        (np.full((48, 48, 3), BAD_LEVEL / 255, np.float32), 6.0),
        (picture(BAD_LEVEL, (96, 96))[::2, ::-2], 6.0),
        (picture(0), 9.0),
        (picture(255), 16.5),
    ],
    ids=["as trained", "large", "tall", "one pixel", "grey", "one channel", "alpha", "16 bit", "float", "strided",
         "black", "saturated"],
)  # fmt: skip
def test_other_pictures(bundle: Path, raw: NDArray[np.generic], score: float) -> None:
    """Every shape, type and size that a camera may give is judged by what it shows."""
    with inspector(bundle) as opened:
        judgement = opened.judge(raw)
    assert judgement.decision.score == pytest.approx(score, abs=0.01)
    assert judgement.placement.picture_wh == (raw.shape[1], raw.shape[0])


@pytest.mark.parametrize(
    "raw",
    [np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), np.int32), np.full((4, 4), 2.0)],
    ids=["two channels", "no rows", "int32", "floats beyond 1"],
)
def test_pictures_that_cannot_be_judged(bundle: Path, raw: NDArray[np.generic]) -> None:
    """A `PictureError`, and the next picture is judged."""
    with inspector(bundle) as opened:
        with pytest.raises(PictureError):
            opened.judge(raw)
        assert opened.judge(picture(OK_LEVEL)).decision.result is Result.OK


def test_the_region_of_interest(bundle: Path) -> None:
    """What lies outside is not judged; a region that leaves the picture is a `PictureError`."""
    raw = picture(OK_LEVEL, (64, 48))
    raw[:, :16] = 255
    with inspector(bundle, roi=(16, 0, 48, 48)) as opened:
        judgement = opened.judge(raw)
        assert judgement.decision.result is Result.OK and judgement.placement.roi == (16, 0, 48, 48)
        with pytest.raises(PictureError, match="leaves the"):
            opened.judge(picture(OK_LEVEL))
    with inspector(bundle) as opened:
        assert opened.judge(raw).decision.result is Result.NOT_OK


@pytest.mark.parametrize("what", ["score", "heatmap"])
def test_what_is_not_finite_never_passes(bundle: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """One NaN pixel or score: Undefined `not_finite` with score 0."""
    infer: Infer = OnnxRuntimeEngine.infer

    def spoilt(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        told = infer(self, frames)
        (told.scores if what == "score" else told.heatmaps[0, 3])[0] = np.nan
        return told

    with inspector(bundle) as opened:
        monkeypatch.setattr(OnnxRuntimeEngine, "infer", spoilt)
        decision = opened.judge(picture(OK_LEVEL)).decision
    assert (decision.result, decision.reason, decision.score) == (Result.UNDEFINED, Reason.NOT_FINITE, 0.0)


def test_results_are_the_callers_own(bundle: Path) -> None:
    """The next picture does not change the judgement of the one before."""
    with inspector(bundle) as opened:
        first = opened.judge(picture(BAD_LEVEL))
        kept = first.heatmap.copy()
        second: Judgement = opened.judge(picture(OK_LEVEL))
    assert np.array_equal(first.heatmap, kept) and not np.array_equal(first.heatmap, second.heatmap)


# --- the self-test -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "auto"])
def test_the_self_test_passes_and_says_so(bundle: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """On each engine of this machine; engine and precision are known only while it is entered."""
    if kind == "openvino":
        pytest.importorskip("openvino")
    caplog.set_level(logging.INFO)
    made = inspector(bundle, engine=EngineConfig.model_validate({"kind": kind, "threads": 1}))
    assert made.number == 3 and (made.engine_kind, made.precision) == ("", "")
    with made:
        assert made.engine_kind in ("onnxruntime", "openvino") and made.precision == "fp32"
        assert kind in ("auto", made.engine_kind)
        assert made.judge(picture(BAD_LEVEL)).decision.score == pytest.approx(6.0, rel=1e-3)
    assert (made.engine_kind, made.precision) == ("", "")
    assert f"{made.bundle.model_id} passed its self-test on" in caplog.text


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (lambda s: s * 1.05, r"fitted golden picture \d+ \((good|damaged)\)"),
        (lambda s: s * 0.95, r"fitted golden picture \d+ \((good|damaged)\)"),
        (lambda s: s * 0, r"scores 0\.0000"),
        (lambda s: s * np.float32(np.nan), "scores nan"),
        (lambda s: s + np.float32(np.inf), "scores inf"),
        (lambda s: -s, "scores -"),
    ],
    ids=["5 % high", "5 % low", "zero", "NaN", "infinite", "negative"],
)
def test_an_engine_that_is_off_is_refused(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    said: str,
) -> None:
    """`EngineError` in one sentence: which picture, what it scores, what was expected, what to do."""
    spoil(monkeypatch, scores)
    made = inspector(bundle)
    with pytest.raises(EngineError, match=said) as caught, made:
        pass
    message = str(caught.value)
    assert message.startswith("self-test failed: ") and "\n" not in message
    assert made.bundle.model_id in message and "on onnxruntime fp32, expected " in message
    assert message.endswith("use another engine or precision")


def test_rounding_passes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor's last bits are no reason to stop a line."""
    spoil(monkeypatch, lambda scores: scores * np.float32(1 + 5e-5))
    with inspector(bundle) as opened:
        assert opened.judge(picture(OK_LEVEL)).decision.result is Result.OK


def test_the_way_to_the_frame_is_tested_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resize that differs by more than a last bit shows in the raw golden pictures."""
    resize = cv2.resize

    def brighter(*arguments: object, **options: object) -> NDArray[np.uint8]:
        return np.clip(resize(*arguments, **options).astype(int) + 5, 0, 255).astype(np.uint8)  # type: ignore[call-overload]

    made = inspector(bundle)
    monkeypatch.setattr(cv2, "resize", brighter)
    with pytest.raises(EngineError, match="self-test failed: raw golden picture 0"), made:
        pass


def test_an_engine_that_fails_its_self_test_is_closed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acquired on entering is released although `__exit__` is never called."""
    closed: list[OnnxRuntimeEngine] = []
    leave = OnnxRuntimeEngine.__exit__

    def noted(self: OnnxRuntimeEngine, *exc: object) -> None:
        closed.append(self)
        leave(self, None, None, None)

    monkeypatch.setattr(OnnxRuntimeEngine, "__exit__", noted)
    spoil(monkeypatch, lambda scores: scores + 1)
    with pytest.raises(EngineError), inspector(bundle):
        pass
    assert len(closed) == 1


def test_a_bundle_without_golden_pictures_has_proven_nothing(tmp_path: Path) -> None:
    """It is refused: the station could not tell a broken engine from a good one."""
    with pytest.raises(BundleError, match="no golden pictures"), inspector(level_bundle(tmp_path, golden=0)):
        pass


def test_the_golden_pictures_stand_on_both_sides(bundle: Path) -> None:
    """The stand-in model's own check: NumPy and the graph agree, good below and damaged above the threshold."""
    for golden in Bundle.open(bundle).golden():
        assert math.isclose(golden.score, score_of(golden.fitted))
        assert (golden.score < 0.9 * THRESHOLD) == (golden.label == "good")


def test_a_missing_bundle_is_refused_when_it_is_built(tmp_path: Path) -> None:
    """Before any engine is touched."""
    with pytest.raises(BundleError, match="does not exist"):
        inspector(tmp_path / "none.flawline")


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_a_trained_bundle_passes_its_self_test(kind: str) -> None:
    """The shipped one, a real network that `train` wrote: 8 good and 8 damaged pictures, and a part is judged."""
    if kind == "openvino":
        pytest.importorskip("openvino")
    engine = EngineConfig.model_validate({"kind": kind, "threads": 2})
    with inspector(DEMO_BUNDLE, engine=engine) as opened:
        assert sorted(golden.label for golden in opened.bundle.golden()) == ["damaged"] * 8 + ["good"] * 8
        judgement = opened.judge(SimulatedLine(seed=0, defect_rate=0.0).part(0).picture)
    assert judgement.decision.result is Result.OK and 0 < judgement.decision.score < opened.rule.threshold
    assert judgement.heatmap.shape == judgement.expected.shape[:2]
