"""Cameras that share an engine: who opens it, who closes it, who fails with it, and what no camera does to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from tests.edge.stand_ins import (
    BAD_LEVEL,
    OK_LEVEL,
    ListCamera,
    LiveCamera,
    Wire,
    config,
    level_bundle,
    picture,
    run_to_end,
    running,
    wait_until,
    wire,
)
from tests.edge.test_engine_upgrade import RTX, Candidate, Works, prepare_with
from tests.engines.test_shared import BROKEN, HANGS, HW, StandIn, frames_of

from flawline_edge import engine_pool as pool_module
from flawline_edge import station as station_module
from flawline_edge.engine_pool import EngineOrder, EnginePool, EngineShare
from flawline_edge.inspector import Inspector
from flawline_edge.progress import Progress
from flawline_edge.self_test import self_test_batches, self_test_once
from flawline_edge.station import Station
from flawline_engines import Engine, Inference
from flawline_engines.engine import Precision
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import Bundle
from flawline_inspect.config import EngineConfig, RecipeConfig, load_config
from flawline_inspect.errors import BundleError, EngineError
from flawline_inspect.verdict import Verdict

__all__ = ["wire"]  # the fixture

MQTT = {"kind": "mqtt"}
ALL = ["trigger", "recipe", "threshold", "pause", "resume", "reload", "rollback", "overrule"]
OK, NOT_OK = (1, ""), (2, "")


class Maker:
    """Opens stand-ins and keeps them; `proven` has the sizes of batches that each had to pass."""

    def __init__(self, key: str = "part") -> None:
        self.key = key
        self.engines: list[StandIn] = []
        self.proven: list[list[int]] = []
        self.error: Exception | None = None
        self.works: Works | None = None
        self.may_open = threading.Event()
        self.may_open.set()
        self.is_opening = threading.Event()

    def order(self, precision: Precision = "fp32", **settings: Any) -> EngineOrder:
        return EngineOrder(
            key=self.key,
            name=self.key,
            precision=precision,
            hw=HW,
            open=self._open,
            prove=self._prove,
            check=self._check,
            upgrade=lambda opening: self.works,
            **settings,
        )

    def _open(self) -> Engine:
        self.is_opening.set()
        assert self.may_open.wait(10)
        if self.error is not None:
            raise self.error
        self.engines.append(StandIn())
        return self.engines[-1]

    def _prove(self, engine: Engine, sizes: Any) -> None:
        self.proven.append(list(sizes))
        assert engine.infer(frames_of(7)).scores.tolist() == [7]

    def _check(self, engine: Engine) -> None:
        assert engine.infer(frames_of(8)).scores.tolist() == [8]

    @property
    def n_open(self) -> int:
        return sum(engine.entered - engine.left for engine in self.engines)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture
def pool(progress: Progress) -> EnginePool:
    return EnginePool(4, progress)


def share(pool: EnginePool, maker: Maker, camera: str = "top", told: list[str] | None = None) -> EngineShare:
    return pool.share(maker.order(), camera, lambda: None if told is None else told.append(camera))


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Whatever a test does, its engines' threads end with it."""
    yield
    names = ("flawline-shared-engine", "flawline-engine-upgrade")
    wait_until(lambda: not any(t.name in names for t in threading.enumerate()), "the engines' threads to end")


# --- who opens, who closes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_the_first_opens_and_the_last_closes(pool: EnginePool, maker: Maker, first_to_leave: int) -> None:
    """Whichever of them that is; the one who leaves takes nothing from the other."""
    both = [share(pool, maker, name) for name in ("left", "right")]
    for each in both:
        each.__enter__()
    assert len(maker.engines) == 1 and maker.engines[0].entered == 1
    leaving, staying = both[first_to_leave], both[1 - first_to_leave]
    leaving.__exit__(None, None, None)
    leaving.__exit__(None, None, None)  # once more is no news: a lane does so at its end
    assert maker.n_open == 1 and staying.infer(frames_of(3)).scores.tolist() == [3]
    with pytest.raises(EngineError, match="not open"):
        leaving.infer(frames_of(3))
    with share(pool, maker, "third") as third:
        assert third.infer(frames_of(4)).scores.tolist() == [4] and len(maker.engines) == 1
    staying.__exit__(None, None, None)
    assert maker.n_open == 0 and len(maker.engines) == 1


def test_it_is_opened_anew_after_the_last(pool: EnginePool, maker: Maker) -> None:
    """The same share may be entered again, as that of a lane that is started again."""
    one = share(pool, maker)
    for n in (1, 2):
        with one:
            assert one.kind == "stand-in" and len(maker.engines) == n and maker.n_open == 1
        assert (one.kind, one.precision, maker.n_open) == ("", "fp32", 0)


def test_other_models_have_other_engines(pool: EnginePool, maker: Maker) -> None:
    """An engine serves one key."""
    other = Maker("cap")
    with share(pool, maker) as one, share(pool, other) as two:
        assert one.infer(frames_of(1)).scores.tolist() == two.infer(frames_of(1)).scores.tolist() == [1]
        assert (len(maker.engines), len(other.engines)) == (1, 1)


def test_who_asks_while_it_is_opened_waits(pool: EnginePool, maker: Maker) -> None:
    """It is opened and proven once."""
    maker.may_open.clear()
    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(share(pool, maker, f"camera{n}").__enter__) for n in range(4)]
        assert maker.is_opening.wait(10)
        time.sleep(0.05)
        assert not any(one.done() for one in asking)
        maker.may_open.set()
        entered = [one.result(10) for one in asking]
    assert len(maker.engines) == 1 and len(maker.proven) == 1
    for each in entered:
        assert maker.n_open == 1
        each.__exit__(None, None, None)
    assert maker.n_open == 0


def test_joining_and_leaving_at_the_same_time(pool: EnginePool, maker: Maker) -> None:
    """From six threads: every part is answered, no engine is called closed, and in the end each one is closed once."""

    def come_and_go(number: int) -> None:
        one = share(pool, maker, f"camera{number}")
        for n in range(20):
            with one:
                assert one.infer(frames_of(number)).scores.tolist() == [number]
            if n % 3 == number % 3:
                time.sleep(0.001)

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(come_and_go, number) for number in range(6)]:
            done.result(60)
    assert all((engine.entered, engine.left) == (1, 1) for engine in maker.engines)
    assert len(maker.proven) == len(maker.engines) < 120, "nobody ever joined"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (EngineError("no device"), EngineError, "^no device$"),
        (BundleError("no golden pictures"), BundleError, "^no golden pictures$"),
        (MemoryError(), RuntimeError, r"part: its engine could not be opened: MemoryError\(\)"),
    ],
    ids=["engine", "bundle", "surprise"],
)
def test_what_cannot_be_opened_fails_for_all(
    pool: EnginePool, maker: Maker, error: Exception, kind: type[Exception], said: str
) -> None:
    """Each with an error of its own; and it can be tried again."""
    maker.error = error
    maker.may_open.clear()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(share(pool, maker).__enter__)
        assert maker.is_opening.wait(10)
        others = [threads.submit(share(pool, maker).__enter__) for _ in range(2)]
        wait_until(lambda: len(pool._serving["part"].shares) == 3, "all of them to ask")
        maker.may_open.set()
        assert first.exception(10) is error
        errors = [other.exception(10) for other in others]
    for each in errors:
        with pytest.raises(kind, match=said):
            raise each or AssertionError("it was opened")
    assert errors[0] is not errors[1]
    maker.error = None
    with share(pool, maker) as again:
        assert again.infer(frames_of(5)).scores.tolist() == [5]
    assert maker.n_open == 0


def test_what_fails_its_proof_is_closed(pool: EnginePool, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has joined it, and nothing of it is left."""

    def fails(self: Maker, engine: Engine, sizes: Any) -> None:
        raise EngineError("self-test failed")

    with monkeypatch.context() as patch:
        patch.setattr(Maker, "_prove", fails)
        with pytest.raises(EngineError, match="self-test failed"):
            share(pool, maker).__enter__()
    assert maker.n_open == 0 and len(maker.engines) == 1
    with share(pool, maker):
        assert maker.n_open == 1


def test_who_finds_it_broken_gets_another(pool: EnginePool, maker: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """A recipe that is loaded anew is a way out; whoever has the broken one keeps it, and closes it in the end."""
    one, two, three = (share(pool, maker, name) for name in ("one", "two", "three"))
    with one:
        maker.engines[0].surprise = OSError("the device has fallen off the bus")
        with two:
            assert len(maker.engines) == 2 and "fallen off the bus" in caplog.text
            assert two.infer(frames_of(2)).scores.tolist() == [2]
            with pytest.raises(EngineError, match="fallen off"):
                one.infer(frames_of(1))
            with three:
                assert len(maker.engines) == 2, "the next one opens a third"
        assert maker.n_open == 1
    assert maker.n_open == 0


# --- serving together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_batch", "cameras", "sizes"), [(None, 4, [1]), (16, 3, [1, 2, 3]), (2, 4, [1, 2]), (1, 8, [1])]
)
def test_no_batch_is_larger_than_the_station(
    maker: Maker, progress: Progress, max_batch: int | None, cameras: int, sizes: list[int]
) -> None:
    """A size that cannot occur costs memory; those that do are proven."""
    with EnginePool(cameras, progress).share(maker.order(max_batch=max_batch), "top", lambda: None):
        assert maker.proven == [sizes]
        assert [len(batch) for batch in maker.engines[0].batches[: len(sizes)]] == sizes


def test_a_frame_that_fails_touches_no_other(pool: EnginePool, maker: Maker) -> None:
    """Also when they are inferred together."""

    def run(each: EngineShare, level: int) -> None:
        for _ in range(50):
            if level == BROKEN:
                with pytest.raises(EngineError, match=r"cannot do \[254\]"):
                    each.infer(frames_of(level))
            else:
                assert each.infer(frames_of(level)).scores.tolist() == [level]

    order = maker.order(max_batch=4)
    shares = [pool.share(order, f"camera{n}", lambda: None).__enter__() for n in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(run, *each) for each in zip(shares, (1, 2, BROKEN, 3), strict=True)]:
            done.result(30)
    for each in shares:
        each.__exit__(None, None, None)


def test_a_hang_shows_and_is_its_engines_own(
    pool: EnginePool, maker: Maker, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cameras' calls come back, so that nobody else could tell the watchdog; another engine's cameras do not notice."""
    monkeypatch.setattr(pool_module, "TIMEOUT_S", 0.3)
    other = Maker("cap")
    with share(pool, maker, "one") as one, share(pool, maker, "two") as two, share(pool, other, "three") as three:
        wait_until(progress.has_advanced, "both engines to come round")
        assert not progress.stuck(0.5)
        with ThreadPoolExecutor(1) as threads:
            hanging = threads.submit(one.infer, frames_of(HANGS))
            assert maker.engines[0].running.acquire(timeout=10)
            with pytest.raises(EngineError, match="gave no answer in"):
                two.infer(frames_of(1))
            wait_until(lambda: bool(progress.stuck(0.5)), "the hang to show")
            assert [loop.name for loop in progress.stuck(0.5)] == ["part (engine)"]
            assert "infer" in progress.stuck(0.5)[0].stack()
            assert three.infer(frames_of(3)).scores.tolist() == [3]
            maker.engines[0].go_on.set()
            assert isinstance(hanging.exception(10), EngineError)
        wait_until(lambda: not progress.stuck(0.5), "the engine to come round again")
        assert two.infer(frames_of(1)).scores.tolist() == [1]
    assert progress.loops == ()


# --- a faster one for all --------------------------------------------------------------------------------------------


class Faster(StandIn):
    kind = RTX


def test_one_upgrade_for_all(pool: EnginePool, maker: Maker) -> None:
    """Made once, proven, taken over without any part; all are told, by none of the threads that judge; the old is closed."""
    maker.works = Works(Faster())
    told: list[str] = []
    threads: set[str] = set()

    def tell(name: str) -> Callable[[], None]:
        def on_switch() -> None:
            told.append(name)
            threads.add(threading.current_thread().name)

        return on_switch

    shares = [pool.share(maker.order(), name, tell(name)).__enter__() for name in ("left", "right")]
    assert {each.kind for each in shares} == {"stand-in"} and told == []
    maker.works.may_go_on.set()
    wait_until(lambda: maker.n_open == 0, "the old one to be closed")
    assert {each.kind for each in shares} == {RTX} and sorted(told) == ["left", "right"]
    assert threads == {"flawline-engine-upgrade"} and maker.works.asked == 1
    faster = maker.works.candidate
    assert isinstance(faster, Faster) and maker.proven == [[1], [1, 2, 4]]  # a GPU's are batched
    with share(pool, maker, "third") as third:
        assert third.kind == RTX and third.infer(frames_of(9)).scores.tolist() == [9]
    assert faster.batches[-1] == [9] and faster.left == 0 and len(maker.engines) == 1
    for each in shares:
        each.__exit__(None, None, None)
    assert (faster.entered, faster.left) == (1, 1)


def test_parts_are_judged_all_through_the_upgrade(pool: EnginePool, maker: Maker) -> None:
    """None is lost, repeated or answered by a closed engine."""
    maker.works = Works(Faster())
    stop = threading.Event()

    def run(each: EngineShare, level: int) -> int:
        n = 0
        while not stop.is_set():
            assert each.infer(frames_of(level)).scores.tolist() == [level]
            n += 1
        return n

    shares = [share(pool, maker, f"camera{n}").__enter__() for n in range(3)]
    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(run, each, 20 + n) for n, each in enumerate(shares)]
        maker.works.may_go_on.set()
        wait_until(lambda: maker.n_open == 0, "the old one to be closed")
        time.sleep(0.05)
        stop.set()
        judged = sum(one.result(30) for one in done)
    faster = maker.works.candidate
    assert isinstance(faster, Faster)
    parts = [level for each in (maker.engines[0], faster) for batch in each.batches for level in batch if level >= 20]
    assert len(parts) == judged and any(level >= 20 for batch in faster.batches for level in batch)
    for each in shares:
        each.__exit__(None, None, None)


def test_a_candidate_that_fails_its_proof_serves_nobody(
    pool: EnginePool, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """It is closed, and the one that serves stays."""
    faster = Faster()
    maker.works = Works(faster)
    told: list[str] = []
    with share(pool, maker, "left", told) as left:
        faster.surprise = EngineError("wrong by 5 %")
        maker.works.may_go_on.set()
        wait_until(lambda: "the engine that serves stays: wrong by 5 %" in caplog.text, "the reason")
        wait_until(lambda: faster.left == 1, "the candidate to be closed")
        assert left.kind == "stand-in" and left.infer(frames_of(1)).scores.tolist() == [1]
    assert told == [] and maker.n_open == 0


def test_the_last_one_does_not_wait_for_a_compiler(pool: EnginePool, maker: Maker) -> None:
    """The preparation is told to end before the engine is closed."""
    maker.works = Works(Faster())
    begin = time.monotonic()
    with share(pool, maker), share(pool, maker):
        pass
    assert maker.works.stopped and time.monotonic() - begin < 5 and maker.n_open == 0


def test_who_cannot_be_told_stops_nothing(pool: EnginePool, maker: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """The others are told, and the faster engine stays open."""
    maker.works = Works(Faster())
    told: list[str] = []

    def fails() -> None:
        raise OSError("no broker")

    with pool.share(maker.order(), "left", fails), share(pool, maker, "right", told) as right:
        maker.works.may_go_on.set()
        wait_until(lambda: maker.n_open == 0, "the old one to be closed")
        assert told == ["right"] and "camera left: the change of engine could not be told" in caplog.text
        assert right.infer(frames_of(1)).scores.tolist() == [1]


# --- the self-test of what is shared ---------------------------------------------------------------------------------


def test_batches_are_proven(tmp_path: Path) -> None:
    """An engine that is right frame by frame and wrong for the last of a batch is refused."""
    bundle = Bundle.open(level_bundle(tmp_path))

    class WrongTogether(Candidate):
        def infer(self, frames: NDArray[np.uint8]) -> Inference:
            told = super().infer(frames)
            if len(frames) > 2:
                told.scores[-1] *= 0.9
            return told

    with WrongTogether(bundle) as engine:
        self_test_once(bundle, engine)
        self_test_batches(bundle, engine, [2])
        with pytest.raises(EngineError, match=r"self-test failed: golden picture 4 \(good\) of 4 at once"):
            self_test_batches(bundle, engine, [2, 4])
    with Candidate(bundle) as engine:
        self_test_batches(bundle, engine, [2, 3, 40])
    with Candidate(bundle, 1.05) as engine, pytest.raises(EngineError, match="golden picture 0"):
        self_test_once(bundle, engine)


def test_an_engine_that_is_wrong_in_batches_serves_no_inspector(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the configuration lets it be given batches; one by one it is as good as ever."""
    infer = OnnxRuntimeEngine.infer

    def wrong_together(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        told = infer(self, frames)
        return told._replace(scores=told.scores[::-1].copy())  # the neighbours' results

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", wrong_together)
    pool, recipe = EnginePool(4, progress), RecipeConfig(bundle=level_bundle(tmp_path))
    for max_batch, is_refused in ((None, False), (1, False), (4, True)):
        engine = EngineConfig(kind="onnxruntime", threads=1, max_batch=max_batch)
        made = Inspector(1, recipe, engine, public_key=None, pool=pool)
        if is_refused:
            with pytest.raises(EngineError, match="of 2 at once"):
                made.__enter__()
        else:
            with made:
                assert made.judge(picture(BAD_LEVEL)).decision.score == pytest.approx(6.0)


def test_inspectors_share_by_model_and_engine(tmp_path: Path, progress: Progress, opened: list[Engine]) -> None:
    """Two files of the same model are one; another setting of the engine is another engine."""
    path = level_bundle(tmp_path)
    copied = tmp_path / "copy.flawline"
    copied.write_bytes(path.read_bytes())
    pool = EnginePool(3, progress)

    def inspector(file: Path, threads: int) -> Inspector:
        engine = EngineConfig(kind="onnxruntime", threads=threads)
        return Inspector(1, RecipeConfig(bundle=file), engine, public_key=None, pool=pool)

    with inspector(path, 1) as one, inspector(copied, 1) as two:
        assert len(opened) == 1 and (one.engine_kind, two.precision) == ("onnxruntime", "fp32")
        with inspector(path, 2):
            assert len(opened) == 2


# --- stations --------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Every ONNX Runtime engine that was entered, in that order."""
    entered: list[Engine] = []
    enter = OnnxRuntimeEngine.__enter__

    def noted(self: OnnxRuntimeEngine) -> OnnxRuntimeEngine:
        entered.append(self)
        return enter(self)

    monkeypatch.setattr(OnnxRuntimeEngine, "__enter__", noted)
    return entered


def cameras_of(*recipes: int) -> list[dict[str, Any]]:
    names = ("left", "right", "third")
    return [
        {"name": name, "source": {"kind": "simulated"}, "recipe": recipe}
        for name, recipe in zip(names, recipes, strict=False)
    ]


def live(*names: str, level: int = BAD_LEVEL) -> dict[str, LiveCamera]:
    return {name: LiveCamera([level] * 1_000_000) for name in names}


def of(wire: Wire, camera: str) -> list[Verdict]:
    return [v for v, below in zip(wire.told, list(wire.below), strict=False) if below == camera]


def results(verdicts: list[Verdict]) -> list[tuple[int, str]]:
    return [(int(verdict.result), verdict.reason.value) for verdict in verdicts]


def obeying(folder: Path, recipes: tuple[int, ...], **changes: Any) -> Station:
    """From a file, triggered and commanded by MQTT; recipe 1 is `level`, recipe 2 `cap`."""
    tree: dict[str, Any] = {
        "station": "press-7",
        "state_dir": "state",
        "cameras": cameras_of(*recipes),
        "trigger": MQTT,
        "recipes": {1: str(level_bundle(folder)), 2: str(level_bundle(folder, "cap"))},
        "engine": {"kind": "onnxruntime", "threads": 1},
        "deadline_ms": 20_000,
        "mqtt": {"host": "broker.invalid", "root": "acme/press-7", "commands": ALL},
    } | changes
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    names = [camera["name"] for camera in tree["cameras"]]
    return Station(load_config(file), cameras=live(*names), reread=lambda: load_config(file))


def judged(wire: Wire, camera: str, name: str) -> Verdict:
    wire.trigger(name, camera=camera)
    found: list[Verdict] = []

    def told() -> bool:
        found[:] = [v for v in of(wire, camera) if v.trigger == name]
        return bool(found)

    wait_until(told, f"the verdict of {name}")
    return found[0]


@pytest.mark.parametrize(
    ("hint", "max_batch", "together"), [("latency", None, None), ("throughput", None, 8), ("throughput", 3, 3)]
)
def test_the_throughput_hint_takes_frames_together(
    tmp_path: Path, progress: Progress, hint: Any, max_batch: int | None, together: int | None
) -> None:
    """It would gain nothing one by one; `max_batch` says otherwise."""
    engine = EngineConfig(kind="openvino", threads=1, hint=hint, max_batch=max_batch)
    recipe = RecipeConfig(bundle=level_bundle(tmp_path))
    made = Inspector(1, recipe, engine, public_key=None, pool=EnginePool(2, progress), camera="top")
    assert made._opening.order.max_batch == together  # type: ignore[attr-defined]


def test_one_camera_has_its_engine_for_itself(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, opened: list[Engine]
) -> None:
    """No thread stands between its parts and their verdicts."""
    monkeypatch.setattr(station_module, "EnginePool", lambda *_: pytest.fail("one camera shares with nobody"))
    made = Station(config(tmp_path), camera=ListCamera([OK_LEVEL, BAD_LEVEL]))
    assert run_to_end(made) == 0
    assert results(wire.told) == [OK, NOT_OK] and len(opened) == 1


def test_lanes_of_one_recipe_share(tmp_path: Path, wire: Wire, opened: list[Engine]) -> None:
    """Three cameras, two models, two engines; every part has its own verdict."""
    tree = {
        "cameras": cameras_of(1, 2, 1),
        "recipes": {1: str(level_bundle(tmp_path)), 2: str(level_bundle(tmp_path, "cap"))},
    }
    levels = {"left": [OK_LEVEL, BAD_LEVEL] * 10, "right": [BAD_LEVEL] * 20, "third": [BAD_LEVEL, OK_LEVEL] * 10}
    made = Station(config(tmp_path, **tree), cameras={name: ListCamera(list(each)) for name, each in levels.items()})
    assert run_to_end(made) == 0
    assert len(opened) == 2
    assert results(of(wire, "left")) == [OK, NOT_OK] * 10
    assert results(of(wire, "right")) == [NOT_OK] * 20
    assert results(of(wire, "third")) == [NOT_OK, OK] * 10
    assert made.state.engine == "onnxruntime" and made.state.precision == "fp32"


def test_a_lane_that_changes_its_recipe_joins_the_other(tmp_path: Path, wire: Wire, opened: list[Engine]) -> None:
    """What serves is not opened again, what nobody needs any more is closed, and the other lane does not notice."""
    with running(obeying(tmp_path, (1, 2)), wire) as run:
        assert len(opened) == 2
        wire.command("recipe", {"id": "1", "recipe": 2}, camera="left")
        assert wire.ack("1")["ok"] and len(opened) == 2, "opened although the other lane has it"
        first, second = judged(wire, "left", "L-1"), judged(wire, "right", "R-1")
        assert (first.recipe, first.model) == (second.recipe, second.model) and first.recipe == 2
        pool = run.station._recipes.pool
        assert pool is not None
        wait_until(lambda: len(pool._serving) == 1, "the engine of recipe 1 to be closed")
        wire.command("recipe", {"id": "2", "recipe": 1}, camera="right")
        assert wire.ack("2")["ok"] and len(opened) == 3
        assert (judged(wire, "left", "L-2").recipe, judged(wire, "right", "R-2").recipe) == (2, 1)
        assert judged(wire, "left", "L-3").recipe == 2, "the one that left has taken the engine along"
    assert pool._serving == {}


def test_another_engine_is_opened_once_for_all(tmp_path: Path, wire: Wire, opened: list[Engine]) -> None:
    """`reload` with another `engine`: proven beside the parts, then every lane is on it."""
    made = obeying(tmp_path, (1, 1, 1))
    with running(made, wire):
        file = tmp_path / "config.yaml"
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        tree["engine"] |= {"max_batch": 2}
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        wire.command("reload", {"id": "1"})
        assert wire.ack("1")["ok"], wire.ack("1")
        for name in ("left", "right", "third"):
            assert results([judged(wire, name, f"{name}-1")]) == [NOT_OK]
        pool = made._recipes.pool
        assert pool is not None
        wait_until(lambda: len(pool._serving) == 1, "the one before to be closed")
        assert len(opened) == 2


def test_a_lanes_failing_part_touches_no_other(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 `engine` for it and the alarm with its name; the others' parts are judged."""
    infer = OnnxRuntimeEngine.infer

    def fails_in_the_dark(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        if (frames.max((1, 2, 3)) == 2).any():
            raise EngineError("too dark")
        return infer(self, frames)

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", fails_in_the_dark)
    made = Station(
        config(tmp_path, cameras=cameras_of(1, 1), engine={"kind": "onnxruntime", "threads": 1, "max_batch": 2}),
        cameras={"left": ListCamera([2] * 20), "right": ListCamera([BAD_LEVEL] * 20)},
    )
    assert run_to_end(made) == 0
    assert results(of(wire, "left")) == [(0, "engine")] * 20 and results(of(wire, "right")) == [NOT_OK] * 20
    assert [alarm[1:] for alarm in wire.alarms] == [("engine", True, "left: too dark")]


def test_parts_have_their_deadline_while_the_shared_engine_hangs(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its lanes', in time; the lane on another engine judges on, and so do they when it comes back."""
    free, hangs = threading.Event(), threading.Event()
    infer = OnnxRuntimeEngine.infer

    def may_hang(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        if hangs.is_set() and frames.max() == BAD_LEVEL + 1:
            free.wait(20)
        return infer(self, frames)

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", may_hang)
    made = obeying(tmp_path, (1, 1, 2), deadline_ms=400)
    made._sources[0][0]._shots = iter([BAD_LEVEL + 1] * 1_000_000)  # type: ignore[attr-defined]
    with running(made, wire):
        hangs.set()
        wire.trigger("L-1", camera="left")
        time.sleep(0.1)
        began = time.monotonic()
        assert results([judged(wire, "right", "R-1")]) == [(0, "deadline")]
        assert time.monotonic() - began < 3
        assert results(of(wire, "left")) == [(0, "deadline")]
        wait_until(lambda: results([judged(wire, "third", f"T-{time.monotonic():.4f}"[:16])]) == [NOT_OK], "the third")
        hangs.clear()
        free.set()
        for name in ("left", "right"):
            wait_until(lambda n=name: results([judged(wire, n, f"{time.monotonic():.4f}"[-16:])]) == [NOT_OK], name)


def test_an_upgrade_is_made_once_and_all_say_so(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch, opened: list[Engine]
) -> None:
    """Two lanes, one compiler, one switch, without waiting for a part; the retained state names what serves."""
    candidate = Candidate(Bundle.open(level_bundle(tmp_path)))
    works = Works(candidate)
    prepare_with(monkeypatch, works)
    made = obeying(tmp_path, (1, 1))
    with running(made, wire):
        assert results([judged(wire, "left", "L-1"), judged(wire, "right", "R-1")]) == [NOT_OK] * 2
        assert [lane.inspector.engine_kind for lane in made.lanes] == ["onnxruntime"] * 2
        works.may_go_on.set()
        wait_until(lambda: made.state.engine == RTX, "the state")
        assert [lane.inspector.engine_kind for lane in made.lanes] == [RTX] * 2
        before = candidate.inferred
        assert results([judged(wire, "left", "L-2"), judged(wire, "right", "R-2")]) == [NOT_OK] * 2
        assert candidate.inferred == before + 2
    assert works.asked == 1 and candidate.life == ["entered", "left"] and len(opened) == 2
    engines = [state.engine for _, state in wire.states if state.state == "ready"]
    assert list(dict.fromkeys(engines)) == ["onnxruntime", RTX]


def test_an_engine_that_cannot_be_had_is_every_lanes_error(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start the station says what is wrong; while it runs the recipe is refused and the old one goes on."""
    self_test = Inspector._self_test

    def fails(self: Inspector, engine: Engine) -> None:
        if self.bundle.manifest.name == "cap":
            raise EngineError("self-test failed: golden picture 3")
        self_test(self, engine)

    monkeypatch.setattr(Inspector, "_self_test", fails)
    with pytest.raises(EngineError, match="golden picture 3"):
        run_to_end(obeying(tmp_path, (2, 2)))
    assert wire.state_words[-1] == "fault engine"
    wire.states.clear()
    with running(obeying(tmp_path, (1, 1)), wire):
        wire.command("recipe", {"id": "1", "recipe": 2}, camera="right")
        assert (wire.ack("1")["ok"], wire.ack("1")["error"]) == (False, "load_failed")
        assert judged(wire, "right", "R-1").recipe == judged(wire, "left", "L-1").recipe == 1
