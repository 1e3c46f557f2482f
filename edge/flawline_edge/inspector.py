"""A recipe that is loaded and proven: bundle, engine and decision rule, ready to judge pictures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flawline_edge.engine_pool import EngineOrder, EnginePool
from flawline_edge.engine_upgrade import EngineUpgrade
from flawline_edge.self_test import self_test, self_test_batches, self_test_once
from flawline_edge.trigger import Terms
from flawline_engines import Engine, open_engine
from flawline_engines.build import build_in_child
from flawline_engines.engine import FirstThatWorks
from flawline_engines.shared import TOGETHER
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import EngineConfig, RecipeConfig
from flawline_inspect.decision import Decision
from flawline_inspect.frame import Placement, Roi

__all__ = ["Inspector", "Judgement"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One picture judged. Durations in milliseconds."""

    decision: Decision
    heatmap: NDArray[np.float32]
    expected: NDArray[np.uint8]
    placement: Placement
    fit_ms: float
    infer_ms: float
    decide_ms: float = 0.0


class Inspector:
    """A context manager; on entering, the engine is opened, warmed up and tested with the golden pictures.

    With engine `auto`, a GPU whose plan is not compiled yet takes over between two parts when it is; `on_switch` is
    then called by the thread that judges. Plans are kept below `state_dir`. `public_key` is whose signature the bundle
    must have; None asks for none.

    With a `pool` the engine is the one that all of the station's inspectors of this model share: opened, tested and taken
    over by a faster one once for all of them, on other threads than those that judge. `camera` is whose inspector this is.
    """

    def __init__(
        self,
        number: int,
        recipe: RecipeConfig,
        engine: EngineConfig,
        *,
        public_key: Path | None,
        roi: Roi | None = None,
        state_dir: Path | None = None,
        on_switch: Callable[[], None] = lambda: None,
        pool: EnginePool | None = None,
        camera: str = "",
    ) -> None:
        self.number = number
        self.bundle = Bundle.open(recipe.bundle, public_key=public_key)
        self.rule = recipe.decision_rule(recipe.threshold or self.bundle.threshold)
        self._roi, self._state_dir, self._on_switch = roi, state_dir, on_switch
        make = partial(
            open_engine,
            self.bundle,
            engine.kind,
            precision=engine.precision,
            threads=engine.threads,
            provider=engine.provider,
            hint=engine.hint,
            state_dir=state_dir,
            url=engine.url,
            timeout_s=engine.timeout_ms / 1e3,
        )
        self._opening: Engine = make()  # also where it is shared: what this machine cannot give is refused here
        self._is_shared = pool is not None
        if pool is not None:
            self._opening = pool.share(self._order(make, engine), camera, on_switch)
        self._engine: Engine | None = None
        self._camera = camera
        self._beside: ThreadPoolExecutor | None = None
        self._upgrade: EngineUpgrade | None = None
        self._is_seen = False

    @property
    def terms(self) -> Terms:
        """What a part is judged by here."""
        return Terms(self.number, self.bundle.model_id, self.rule.threshold)

    @property
    def engine_kind(self) -> str:
        engine = self._engine  # whoever asks is another thread than the one that closes it
        return engine.kind if engine is not None else ""

    @property
    def precision(self) -> str:
        engine = self._engine
        return engine.precision if engine is not None else ""

    def __enter__(self) -> Inspector:
        self._engine = self._opening.__enter__()
        self._beside = ThreadPoolExecutor(1, f"health-{self._camera}")
        if self._is_shared:  # proven, and made better, for all who share it
            return self
        try:
            self._self_test(self._engine)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        prepare = upgrade_from(self._opening, self.bundle, self._state_dir)
        if prepare is not None:
            self._upgrade = EngineUpgrade(prepare, self._self_test).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        upgrade, engine, beside = self._upgrade, self._engine, self._beside
        self._upgrade = self._engine = self._beside = None
        if beside is not None:
            beside.shutdown(wait=False)
        try:
            if upgrade is not None:
                upgrade.__exit__()
        finally:
            if engine is not None:
                engine.__exit__(kind, exc, traceback)

    def judge(self, picture: NDArray[np.generic]) -> Judgement:
        """Fit, infer, decide. Raises `PictureError`, with `HealthError` among them, and `EngineError`."""
        self._switch()
        engine, beside = self._engine, self._beside
        assert engine is not None and beside is not None, "an inspector judges only inside its `with`"
        begin = time.perf_counter()
        frame, placement = self.bundle.fit_unchecked(picture, self._roi)
        # Beside the engine, which computes outside Python's lock: on a processor a tenth of a small model's time.
        health = beside.submit(self.bundle.health.check, frame, placement)
        fitted = time.perf_counter()
        if not self._is_seen:
            self._is_seen = True
            self._note_aspect(placement)
        try:
            inference = engine.infer(frame[None])
        finally:
            inferred = time.perf_counter()
            health.result()  # what cannot be judged is that, whatever the engine makes of it
        decision = self.rule.decide(inference.scores[0], inference.heatmaps[0], placement)
        decided = time.perf_counter()
        return Judgement(
            decision,
            inference.heatmaps[0],
            inference.expected[0],
            placement,
            fit_ms=1e3 * (fitted - begin),
            infer_ms=1e3 * (inferred - fitted),
            decide_ms=1e3 * (decided - inferred),
        )

    def _order(self, make: Callable[[], Engine], engine: EngineConfig) -> EngineOrder:
        bundle, state_dir = self.bundle, self._state_dir
        return EngineOrder(
            key=(bundle.manifest_bytes, engine),  # the manifest names every member by its hash
            name=bundle.model_id,
            precision=engine.precision,
            hw=(bundle.frame.height, bundle.frame.width),
            open=make,
            prove=self._self_test_shared,
            check=lambda joined: self_test_once(bundle, joined),
            upgrade=lambda opening: upgrade_from(opening, bundle, state_dir),
            max_batch=engine.max_batch or (TOGETHER if engine.hint == "throughput" else None),
            batch_window_ms=engine.batch_window_ms,
            answer_s=engine.timeout_ms / 1e3 if engine.kind == "triton" else 0.0,
        )

    def _switch(self) -> None:
        """Take over the engine that was made ready meanwhile, if there is one: this is between two parts."""
        if self._upgrade is None or self._engine is None:
            return
        better = self._upgrade.take()
        if better is None:
            return
        before, self._engine = self._engine, better
        _log.info("%s %s takes over from %s", better.kind, better.precision, before.kind)
        self._on_switch()
        self._upgrade.retire(before)

    def _note_aspect(self, placement: Placement) -> None:
        """Another region or camera than in training makes every part NotOK, which looks like a broken line: say so."""
        frame, found_wh = self.bundle.manifest.frame, placement.roi[2:]
        if frame.is_unlike(found_wh):
            _log.warning(
                "the camera gives %dx%d pixels, %s was trained on %dx%d: expect wrong verdicts; use the region of "
                "interest that was used in training",
                *found_wh,
                self.bundle.model_id,
                *frame.trained_wh,
            )
        regions = self.rule.regions
        if regions is not None and not regions.fits(placement):
            _log.warning(
                "the mask in regions.ignore of recipe %d is not of the size of the camera's picture, %dx%d: its area rule is not "
                "applied; draw the mask on a picture of this camera",
                self.number,
                *placement.picture_wh,
            )

    def _self_test(self, engine: Engine) -> None:
        """Raises `EngineError` for an engine that must not serve."""
        self_test(self.bundle, engine)

    def _self_test_shared(self, engine: Engine, batches: Sequence[int]) -> None:
        self._self_test(engine)
        self_test_batches(self.bundle, engine, [size for size in batches if size > 1])


def upgrade_from(opening: Engine, bundle: Bundle, state_dir: Path | None) -> Callable[[threading.Event], Engine] | None:
    """What makes a faster engine than the one that was opened, if `auto` passed one over for want of a plan."""
    kind = opening.worth_building if isinstance(opening, FirstThatWorks) else None
    if kind is None or state_dir is None:
        return None
    _log.info("a plan for %s is compiled in the background; until then the station serves without the GPU", kind)
    return lambda stop: build_in_child(bundle, kind, precision=opening.precision, state_dir=state_dir, stop=stop)
