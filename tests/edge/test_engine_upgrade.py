"""A station that serves at once and takes a faster engine over between two parts, losing and repeating none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.edge.stand_ins import (
    BAD_LEVEL,
    OK_LEVEL,
    ListCamera,
    Wire,
    config,
    level_bundle,
    picture,
    run_to_end,
    wait_until,
    wire,
)

from flawline_edge import inspector as inspector_module
from flawline_edge.engine_upgrade import EngineUpgrade
from flawline_edge.inspector import Inspector
from flawline_edge.station import Inspection, Station
from flawline_engines.engine import Engine, FirstThatWorks, Inference
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.config import EngineConfig, RecipeConfig
from flawline_inspect.errors import EngineError
from flawline_inspect.verdict import Result

__all__ = ["wire"]  # the fixture

RTX = "tensorrt_rtx"


class Candidate(OnnxRuntimeEngine):
    """As if it were a GPU's: the same answers, `factor` times, under another name; `life` says what happened to it."""

    kind = RTX

    def __init__(self, bundle: Bundle, factor: float = 1.0) -> None:
        super().__init__(bundle.member(MODEL), (bundle.frame.height, bundle.frame.width), threads=1)
        self.life: list[str] = []
        self.inferred = 0
        self._factor = np.float32(factor)

    def __enter__(self) -> Candidate:
        super().__enter__()
        self.life.append("entered")
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(None, None, None)
        self.life.append("left")

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        self.inferred += 1
        told = super().infer(frames)
        return told._replace(scores=told.scores * self._factor)


class Works:
    """The preparation: waits until it may go on, as for a compiler; `asked` is how often it began."""

    def __init__(self, candidate: Engine | None = None, error: Exception | None = None) -> None:
        self.candidate, self.error = candidate, error
        self.may_go_on = threading.Event()
        self.asked = 0
        self.stopped = False

    def __call__(self, stop: threading.Event) -> Engine:
        self.asked += 1
        while not self.may_go_on.wait(0.005):
            if stop.is_set():
                self.stopped = True
                raise EngineError("the build was stopped")
        if self.error is not None:
            raise self.error
        assert self.candidate is not None
        return self.candidate


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(level_bundle(tmp_path))


def prepare_with(monkeypatch: pytest.MonkeyPatch, works: Works) -> None:
    """Inspectors find a GPU that is worth compiling for, and this is what their child process does."""
    monkeypatch.setattr(inspector_module, "upgrade_from", lambda opening, bundle, state_dir: works)


def inspector(bundle: Bundle, switched: list[str] | None = None) -> Inspector:
    made = Inspector(
        1,
        RecipeConfig(bundle=Path(bundle.source)),
        EngineConfig(kind="onnxruntime", threads=1),
        public_key=None,
        on_switch=lambda: None if switched is None else switched.append(made.engine_kind),
    )
    return made


def ready(made: Inspector) -> bool:
    upgrade = made._upgrade
    return upgrade is not None and upgrade._ready is not None


# --- the inspector ---------------------------------------------------------------------------------------------------


def test_it_switches_between_two_parts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: the fallback; after: the candidate, proven with the golden pictures; both closed in the end."""
    candidate, switched = Candidate(bundle), []
    works = Works(candidate)
    prepare_with(monkeypatch, works)
    with inspector(bundle, switched) as made:
        for _ in range(3):
            assert made.judge(picture(BAD_LEVEL)).decision.result is Result.NOT_OK
        assert made.engine_kind == "onnxruntime" and switched == []
        works.may_go_on.set()
        wait_until(lambda: ready(made), "the candidate")
        assert made.engine_kind == "onnxruntime"  # only a part makes the switch
        proven = candidate.inferred
        assert proven >= 2 * 16
        assert made.judge(picture(BAD_LEVEL)).decision.result is Result.NOT_OK
        assert (made.engine_kind, switched, candidate.inferred) == (RTX, [RTX], proven + 1)
        assert made.judge(picture(OK_LEVEL)).decision.result is Result.OK
    assert candidate.life == ["entered", "left"] and made.engine_kind == ""
    assert works.asked == 1


def test_the_old_engine_is_closed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is needed; closing it does not make a part wait."""
    closed = threading.Event()
    leave = OnnxRuntimeEngine.__exit__

    def slowly(self: OnnxRuntimeEngine, *exc: Any) -> None:
        if not isinstance(self, Candidate):
            time.sleep(0.5)
            closed.set()
        leave(self, None, None, None)

    monkeypatch.setattr(OnnxRuntimeEngine, "__exit__", slowly)
    works = Works(Candidate(bundle))
    works.may_go_on.set()
    prepare_with(monkeypatch, works)
    with inspector(bundle) as made:
        wait_until(lambda: ready(made), "the candidate")
        made.judge(picture(OK_LEVEL))
        assert made.engine_kind == RTX and not closed.is_set()
    assert closed.is_set()


@pytest.mark.parametrize(
    ("works", "said"),
    [
        (lambda b: Works(error=EngineError("the GPU is full")), "the engine that serves stays: the GPU is full"),
        (lambda b: Works(Candidate(b, 1.05)), "the engine that serves stays: self-test failed"),
        (lambda b: Works(Candidate(b, float("nan"))), "the engine that serves stays: self-test failed"),
        (lambda b: Works(error=KeyError("surprise")), "another could not be made ready"),
    ],
    ids=["cannot be built", "scores otherwise", "scores NaN", "a surprise"],
)
def test_a_candidate_that_fails_changes_nothing(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    works: Callable[[Bundle], Works],
    said: str,
) -> None:
    """Said once; what was opened is closed; every part is judged as before."""
    made_works = works(bundle)
    made_works.may_go_on.set()
    prepare_with(monkeypatch, made_works)
    with inspector(bundle) as made:
        wait_until(lambda: said in caplog.text, "the reason")
        for _ in range(3):
            assert made.judge(picture(BAD_LEVEL)).decision.result is Result.NOT_OK
        assert made.engine_kind == "onnxruntime"
    assert caplog.text.count("the engine that serves stays") == 1
    if isinstance(made_works.candidate, Candidate):
        assert made_works.candidate.life == ["entered", "left"]


def test_a_station_that_stops_does_not_wait_for_a_compiler(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The preparation is told, and its ending is no news."""
    works = Works(Candidate(bundle))
    prepare_with(monkeypatch, works)
    begin = time.monotonic()
    with inspector(bundle) as made:
        made.judge(picture(OK_LEVEL))
    assert works.stopped and time.monotonic() - begin < 5 and "stays" not in caplog.text


def test_a_candidate_that_nobody_took_is_closed(bundle: Bundle) -> None:
    """No part came after it was ready."""
    candidate = Candidate(bundle)
    works = Works(candidate)
    works.may_go_on.set()
    with EngineUpgrade(works, lambda engine: None) as upgrade:
        wait_until(lambda: upgrade._ready is not None, "the candidate")
    assert candidate.life == ["entered", "left"] and upgrade.take() is None


def test_only_auto_upgrades(bundle: Bundle, tmp_path: Path) -> None:
    """And only where a GPU was passed over for want of a plan, and a state directory keeps plans."""
    plain = OnnxRuntimeEngine(bundle.member(MODEL), (32, 32))
    auto = FirstThatWorks({}, "fp16")
    assert inspector_module.upgrade_from(plain, bundle, tmp_path) is None
    assert inspector_module.upgrade_from(auto, bundle, tmp_path) is None
    auto.worth_building = "tensorrt_rtx"
    assert inspector_module.upgrade_from(auto, bundle, None) is None
    assert inspector_module.upgrade_from(auto, bundle, tmp_path) is not None


def test_what_is_compiled_is_what_was_asked_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind, precision and state directory reach the child."""
    asked: dict[str, Any] = {}

    def built(of: Bundle, kind: str, **options: Any) -> Engine:
        asked.update(options, kind=kind, bundle=of)
        raise EngineError("enough")

    monkeypatch.setattr(inspector_module, "build_in_child", built)
    auto = FirstThatWorks({}, "fp16")
    auto.worth_building = "tensorrt"
    prepare = inspector_module.upgrade_from(auto, bundle, tmp_path)
    assert prepare is not None
    stop = threading.Event()
    with pytest.raises(EngineError, match="enough"):
        prepare(stop)
    assert asked == {"kind": "tensorrt", "bundle": bundle, "precision": "fp16", "state_dir": tmp_path, "stop": stop}


# --- the station -----------------------------------------------------------------------------------------------------


def test_a_station_switches_and_says_so(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part has its one verdict, in order; the retained state names the engine that serves, before and after."""
    bundle = Bundle.open(level_bundle(tmp_path))
    candidate = Candidate(bundle)
    works = Works(candidate)
    prepare_with(monkeypatch, works)
    levels = [OK_LEVEL, BAD_LEVEL] * 20

    class Camera(ListCamera):
        """Lets the compiler end in the middle of the parts, and waits for it there."""

        def read(self) -> Any:
            frame = super().read()
            if frame is not None and frame.part == "P20":
                works.may_go_on.set()
                wait_until(lambda: ready(made.lanes[0].inspector), "the candidate")
            return frame

    seen: list[Inspection] = []
    made = Station(
        config(tmp_path, engine={"kind": "onnxruntime", "threads": 1}),
        camera=Camera(list(levels)),
        observers=[seen.append],
    )
    assert run_to_end(made) == 0
    told = wire.told
    assert [v.part for v in told] == [f"P{n}" for n in range(1, 41)]
    assert [v.seq for v in told] == list(range(1, 41))
    assert [int(v.result) for v in told] == [1, 2] * 20
    engines = [state.engine for _, state in wire.states if state.state == "ready"]
    assert list(dict.fromkeys(engines)) == ["onnxruntime", RTX] and engines[-1] == RTX
    assert wire.state_words == ["starting", "ready", "stopped"] or wire.state_words[-1] == "stopped"
    assert candidate.life == ["entered", "left"]
    assert made.counts.by_result == [0, 20, 20, 0]


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Whatever a test does, its upgrade's threads end with it."""
    logging.getLogger("flawline_edge").setLevel(logging.INFO)
    yield
    logging.getLogger("flawline_edge").setLevel(logging.NOTSET)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("flawline-engine")]
    assert left == []
