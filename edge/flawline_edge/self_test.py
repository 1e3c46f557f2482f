"""The self-test: the bundle's golden pictures score here as they did when it was made.

This is what stands between a processor, library or graph gone wrong and a line of parts judged by it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from flawline_engines import Engine
from flawline_engines.parity import LIMITS
from flawline_inspect.bundle import Bundle, Golden
from flawline_inspect.errors import BundleError, EngineError
from flawline_inspect.frame import fit_picture

__all__ = ["self_test", "self_test_batches", "self_test_once"]

_log = logging.getLogger(__name__)

_RAW_TOLERANCE = 0.01
"""Raw pictures also test the way to the frame, whose resizing may differ in the last bit between builds of OpenCV."""
_ALIGNED_TOLERANCE = 0.05
"""Where parts are aligned, the pose differs in the last bits as well; half of what golden pictures keep from the threshold."""
_WARM_UP_RUNS = 3


def self_test(bundle: Bundle, engine: Engine) -> None:
    """Every golden picture, fitted and raw, one by one. Raises `EngineError`, and `BundleError` where there are none."""
    spec = bundle.frame
    _has_golden(bundle)
    blank = np.zeros((1, spec.height, spec.width, 3), np.uint8)
    for _ in range(_WARM_UP_RUNS):
        engine.infer(blank)
    tolerance = LIMITS[engine.precision].score
    raw_tolerance = max(tolerance, _RAW_TOLERANCE if spec.alignment is None else _ALIGNED_TOLERANCE)
    for i, golden in enumerate(bundle.golden()):
        from_raw, _ = fit_picture(golden.raw, spec)
        for kind, frame, allowed in (("fitted", golden.fitted, tolerance), ("raw", from_raw, raw_tolerance)):
            score = float(engine.infer(frame[None]).scores[0])
            _compare(bundle, engine, golden, score, allowed, f"{kind} golden picture {i} ({golden.label})")
    _log.info("%s passed its self-test on %s %s", bundle.model_id, engine.kind, engine.precision)


def self_test_batches(bundle: Bundle, engine: Engine, sizes: Sequence[int]) -> None:
    """The fitted golden pictures so many at once, for an engine that is given batches. Raises `EngineError`."""
    _has_golden(bundle)
    golden = list(bundle.golden())
    for size in sizes:
        # Good and damaged in turn: results that go to a neighbour show.
        chosen = [golden[(i // 2 if i % 2 else -1 - i // 2) % len(golden)] for i in range(size)]
        scores = engine.infer(np.stack([each.fitted for each in chosen])).scores
        for i, (each, score) in enumerate(zip(chosen, scores, strict=True)):
            what = f"golden picture {i + 1} ({each.label}) of {size} at once"
            _compare(bundle, engine, each, float(score), LIMITS[engine.precision].score, what)


def self_test_once(bundle: Bundle, engine: Engine) -> None:
    """One golden picture: that an engine which was tested before still serves. Raises `EngineError`."""
    _has_golden(bundle)
    golden = next(bundle.golden())
    score = float(engine.infer(golden.fitted[None]).scores[0])
    _compare(bundle, engine, golden, score, LIMITS[engine.precision].score, f"golden picture 0 ({golden.label})")


def _has_golden(bundle: Bundle) -> None:
    if not bundle.manifest.golden:
        raise BundleError(
            f"{bundle.source}: has no golden pictures, so that no station can test itself with it; train it again"
        )


def _compare(bundle: Bundle, engine: Engine, golden: Golden, score: float, allowed: float, what: str) -> None:
    # `not <=`, so that a NaN fails too
    if not abs(score - golden.score) <= allowed * max(abs(bundle.threshold), abs(golden.score)):
        raise EngineError(
            f"self-test failed: {what} of {bundle.model_id} scores {score:.4f} on {engine.kind} {engine.precision}, "
            f"expected {golden.score:.4f}; use another engine or precision"
        )
