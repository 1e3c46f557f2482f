"""The whole life of a TensorRT engine, on stand-ins that find out every leak, every wrong order and every missing wait."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.engines import gpu_stand_ins
from tests.engines.gpu_stand_ins import GPU, JETSON, FakeMemory, FakeTensorRt, answers, plan_bytes
from tests.engines.tensorrt_surfaces import surface_from_package

from flawline_engines.gpu_memory import Gpu
from flawline_engines.tensorrt_runner import RETRY_S, TensorRtEngine
from flawline_inspect.errors import EngineError

HW = (16, 32)
MAX_BATCH = 4


def frames_of(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *HW, 3), np.uint8)


class Bench:
    """A machine with a GPU, and engines for it."""

    def __init__(self, memory: FakeMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory, self.trt = memory, FakeTensorRt(memory)
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)

    def engine(self, plan: bytes | None = None, plan_for: Callable[[Gpu], bytes] | None = None) -> TensorRtEngine:
        data = plan_bytes(HW, max_batch=MAX_BATCH) if plan is None else plan
        return TensorRtEngine("tensorrt", HW, plan_for or (lambda _: data), memory=lambda: self.memory)

    def assert_clean(self) -> None:
        gc.collect()
        self.memory.assert_clean()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("flawline-gpu")]
        order = ["context", "engine", "runtime"]
        for before, after in itertools.pairwise(self.trt.ended):
            assert order.index(after) > order.index(before) or before == "runtime", self.trt.ended


@pytest.fixture(params=["card", "card with graphs", "Jetson", "Jetson with graphs"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Each kind of machine; whatever a test does, nothing is left behind on it."""
    gpu = JETSON if "Jetson" in request.param else GPU
    made = Bench(FakeMemory(gpu, has_graphs="graphs" in request.param), monkeypatch)
    yield made
    made.memory.fail = None
    made.assert_clean()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(FakeMemory(), monkeypatch)


def assert_answers(found: tuple[NDArray[np.generic], ...], frames: NDArray[np.uint8]) -> None:
    for values, expected in zip(found, answers(frames).values(), strict=True):
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)


def test_the_bare_loop_is_the_runtimes_own(bench: Bench) -> None:
    """As many times as asked for, on frames that stay where they are; `infer` goes on as before."""
    with bench.engine() as engine:
        ms = engine.bare_ms(frames_of(2), 7)
        assert ms.shape == (7,) and (ms > 0).all()
        assert bench.memory.calls.count("execute_async_v3") + bench.memory.calls.count("launch") >= 7
        assert_answers(engine.infer(frames_of(1)), frames_of(1))
        with pytest.raises(EngineError, match="has 5 frames, this plan takes 4 at most"):
            engine.bare_ms(frames_of(5), 1)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batches", [[1], [1, 1, 1, 1, 1], [4], [1, 2, 4, 1, 3, 1], [4, 1, 1, 1, 1], [9, 1, 13]], ids=str
)
def test_every_batch_gets_its_own_answers(bench: Bench, batches: list[int]) -> None:
    """In any order of sizes, also beyond what the plan takes at once; and the answers stay as they are afterwards."""
    with bench.engine() as engine:
        assert (engine.kind, engine.precision) == ("tensorrt", "fp32")
        given = [frames_of(n, seed) for seed, n in enumerate(batches)]
        found = [engine.infer(frames) for frames in given]
    for inference, frames in zip(found, given, strict=True):
        assert_answers(inference, frames)


def test_batches_overlap_and_keep_their_order(bench: Bench) -> None:
    """`infer_each` takes the next batch before it gives the answers of the one before."""
    taken: list[int] = []

    def given() -> Iterator[NDArray[np.uint8]]:
        for n in (4, 2, 4, 1, 3):
            taken.append(n)
            yield frames_of(n, len(taken))

    with bench.engine() as engine:
        for i, inference in enumerate(engine.infer_each(given())):
            assert_answers(inference, frames_of([4, 2, 4, 1, 3][i], i + 1))
            assert len(taken) == min(5, i + 2)
        assert_answers(engine.infer(frames_of(1)), frames_of(1))
        assert list(engine.infer_each([])) == []


def test_a_consumer_that_stops_early_leaves_no_work(bench: Bench) -> None:
    """What is under way ends before its memory is used again."""
    with bench.engine() as engine:
        for inference in engine.infer_each(frames_of(4, seed) for seed in range(5)):
            assert_answers(inference, frames_of(4, 0))
            break
        gc.collect()
        assert bench.memory.pending == 0
        assert_answers(engine.infer(frames_of(2)), frames_of(2))


def test_leaving_in_the_middle_of_batches_waits_for_them(bench: Bench) -> None:
    """Memory is freed only when the GPU is done with it, and the rest of the batches is refused."""
    with bench.engine() as engine:
        batches = engine.infer_each(frames_of(4, seed) for seed in range(5))
        next(batches)
    with pytest.raises(EngineError, match="not open"):
        next(batches)


def test_a_batch_that_is_too_large_for_the_plan(bench: Bench) -> None:
    """Said with both numbers; what was under way is finished."""
    with bench.engine() as engine:
        batches = engine.infer_each([frames_of(2), frames_of(MAX_BATCH + 1)])
        with pytest.raises(EngineError, match="has 5 frames, this plan takes 4 at most"):
            list(batches)
        assert bench.memory.pending == 0


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, *HW, 3), np.float32), frames_of(65)]
)
def test_wrong_frames_are_refused(bench: Bench, wrong: NDArray[np.uint8]) -> None:
    """With found and expected, before anything reaches the GPU; then it goes on."""
    with bench.engine() as engine:
        with pytest.raises(EngineError, match=r"frames are .* expected uint8 \(N, 16, 32, 3\) with N from 1 to 64"):
            engine.infer(wrong)
        assert_answers(engine.infer(frames_of(1)), frames_of(1))


def test_a_graph_is_captured_for_a_shape_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two executions; another shape, or the other path, drops it."""
    bench = Bench(FakeMemory(has_graphs=True), monkeypatch)
    with bench.engine() as engine:
        for seed in range(6):
            assert_answers(engine.infer(frames_of(1, seed)), frames_of(1, seed))
        assert bench.memory.calls.count("launch") == 4 and bench.memory.calls.count("capture") == 1
        assert bench.memory.calls.count("execute_async_v3") == 3  # two, and the capture's
        assert_answers(engine.infer(frames_of(3)), frames_of(3))
        assert bench.memory.calls.count("launch") == 4
        list(engine.infer_each([frames_of(1)]))
        assert_answers(engine.infer(frames_of(1)), frames_of(1))
        assert bench.memory.calls.count("launch") == 4
    bench.assert_clean()


def test_without_a_graph_it_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A capture that fails is said once, and costs nothing but speed."""
    caplog.set_level(logging.INFO)
    bench = Bench(FakeMemory(has_graphs=True), monkeypatch)
    bench.memory.fail = ("capture", 0)
    with bench.engine() as engine:
        for seed in range(6):
            assert_answers(engine.infer(frames_of(1, seed)), frames_of(1, seed))
    bench.assert_clean()
    assert caplog.text.count("no CUDA graph") == 1


def test_a_jetson_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor and GPU see the same memory."""
    bench = Bench(FakeMemory(JETSON), monkeypatch)
    with bench.engine() as engine:
        assert_answers(engine.infer(frames_of(2)), frames_of(2))
        assert len(list(engine.infer_each([frames_of(2), frames_of(2)]))) == 2
    assert not {"upload", "download", "device"} & set(bench.memory.calls)
    bench.assert_clean()


# --- failures --------------------------------------------------------------------------------------------------------

OPENING = ("open", "Runtime", "deserialize_cuda_engine", "create_execution_context", "stream", "event")
RUNNING = ("host", "set_input_shape", "infer_shapes", "set_tensor_address", "execute_async_v3", "synchronize")


@pytest.mark.parametrize("nth", range(3))
@pytest.mark.parametrize("step", OPENING)
def test_opening_that_fails_leaves_nothing(bench: Bench, step: str, nth: int) -> None:
    """At each step and each time that it is taken: one `EngineError`, no memory, no thread; and it can be tried again."""
    bench.memory.fail = (step, nth)
    engine = bench.engine()
    steps = {"stream": 3, "event": 6}.get(step, 1)
    if nth >= steps:
        with engine:
            pass
        return
    with pytest.raises(EngineError, match=f"{step} fails as it was told"):
        engine.__enter__()
    bench.memory.fail = None
    bench.memory.calls.clear()
    with engine:
        assert_answers(engine.infer(frames_of(1)), frames_of(1))


@pytest.mark.parametrize("nth", range(3))
@pytest.mark.parametrize("step", RUNNING)
def test_an_inference_that_fails_leaves_the_engine_closable(bench: Bench, step: str, nth: int) -> None:
    """One `EngineError`; the next part may succeed, and closing frees everything."""
    with bench.engine() as engine:
        bench.memory.fail = (step, nth)
        failed = 0
        for seed in range(4):
            try:
                found = engine.infer(frames_of(1 + seed % 2, seed))
            except EngineError:
                failed += 1
                bench.memory.fail = None
            else:
                assert_answers(found, frames_of(1 + seed % 2, seed))
        assert failed <= 1
        assert_answers(engine.infer(frames_of(1, 9)), frames_of(1, 9))


@pytest.mark.parametrize("step", ["upload", "execute_async_v3", "download", "record", "wait"])
def test_batches_that_fail_leave_the_engine_closable(card: Bench, step: str) -> None:
    """Also in the middle of two slots."""
    with card.engine() as engine:
        card.memory.fail = (step, 4)
        with pytest.raises(EngineError):
            list(engine.infer_each(frames_of(4, seed) for seed in range(9)))
        card.memory.fail = None
        assert_answers(engine.infer(frames_of(1)), frames_of(1))
    card.assert_clean()


# --- a GPU that fails for good ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_enter", [True, False], ids=["entered", "not entered"])
def test_a_destroyed_context_costs_the_part_that_meets_it(
    bench: Bench, can_enter: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The part that finds it is an error, the next one is judged in a new context, and says what it said before."""
    bench.memory.can_enter_lost = can_enter
    with bench.engine() as engine:
        for seed in range(4):
            assert_answers(engine.infer(frames_of(1, seed)), frames_of(1, seed))
        bench.memory.is_lost = True
        with pytest.raises(EngineError, match="the context is destroyed"):
            engine.infer(frames_of(1))
        for n in (1, 1, 1, 4, 9):
            assert_answers(engine.infer(frames_of(n, n)), frames_of(n, n))
        assert (bench.memory.calls.count("reset"), bench.memory.opened) == (1, 2)
    assert "the GPU is back" in caplog.text


def test_a_gpu_that_stays_away_is_tried_now_and_then(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts meanwhile are errors at once; it is used again when it is back."""
    now = [1000.0]
    monkeypatch.setattr("flawline_engines.tensorrt_runner.time", SimpleNamespace(monotonic=lambda: now[0]))
    with bench.engine() as engine:
        engine.infer(frames_of(1))
        bench.memory.is_lost = True
        with pytest.raises(EngineError, match="the context is destroyed"):
            engine.infer(frames_of(1))
        bench.memory.fail = ("deserialize_cuda_engine", 0)
        with pytest.raises(EngineError, match="deserialize_cuda_engine fails"):
            engine.infer(frames_of(1))
        opened = bench.memory.opened
        for _ in range(3):
            with pytest.raises(EngineError, match="has failed and is not back; it is tried again every 5 s"):
                engine.infer(frames_of(1))
        assert bench.memory.opened == opened
        now[0] += RETRY_S
        bench.memory.fail = None
        assert_answers(engine.infer(frames_of(1)), frames_of(1))
    with pytest.raises(EngineError, match="not open"):
        engine.infer(frames_of(1))


def test_a_gpu_that_comes_back_with_other_answers_is_refused(card: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody proves it anew with golden pictures, so what it said first is what it has to say."""
    with card.engine() as engine:
        engine.infer(frames_of(1))
        card.memory.is_lost = True
        with pytest.raises(EngineError, match="destroyed"):
            engine.infer(frames_of(2))
        with monkeypatch.context() as patch:
            patch.setattr(gpu_stand_ins, "answers", lambda frames: answers(255 - frames))
            with pytest.raises(EngineError, match=r"is back and scores \d+\.\d+ what it scored \d+\.\d+ before"):
                engine.infer(frames_of(1))
        monkeypatch.setattr("flawline_engines.tensorrt_runner.RETRY_S", 0)
    card.assert_clean()


def test_a_lost_gpu_that_is_left_leaves_nothing(bench: Bench) -> None:
    """Closing complains and ends."""
    engine = bench.engine()
    engine.__enter__()
    engine.infer(frames_of(1))
    bench.memory.is_lost = True
    with pytest.raises(EngineError):
        engine.infer(frames_of(1))
    with contextlib.suppress(EngineError):
        engine.__exit__(None, None, None)
    assert not bench.memory.is_open
    bench.memory.is_lost = False
    bench.memory.live.clear()


def test_an_execution_that_says_no(card: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT returns False instead of raising; the error says what it was told meanwhile."""
    with card.engine() as engine:
        monkeypatch.setattr(card.trt.IExecutionContext, "execute_async_v3", lambda *_, **__: False)
        with pytest.raises(EngineError, match="TensorRT: the execution failed: it gives no reason"):
            engine.infer(frames_of(1))
    card.assert_clean()


def test_a_plan_that_cannot_be_loaded(card: Bench) -> None:
    """The reason is TensorRT's own."""
    with pytest.raises(EngineError, match="tensorrt cannot load the plan: the plan is none"):
        card.engine(b"rubbish").__enter__()
    card.assert_clean()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": ["OUTPUT", "UINT8", []]}, "scores is UINT8"),
        ({"heatmaps": ["OUTPUT", "FLOAT", [8, 8]]}, r"heatmaps is FLOAT \(8, 8\), expected float32 \(16, 32\)"),
        ({"expected": ["INPUT", "UINT8", [16, 32, 3]]}, "expected is"),
        ({"more": ["OUTPUT", "FLOAT", []]}, "has the tensors expected, frames, heatmaps, more, scores"),
    ],
    ids=["type", "shape", "direction", "one too many"],
)
def test_a_plan_of_another_graph_is_refused(card: Bench, changes: dict[str, list[object]], said: str) -> None:
    """It would read or write beyond its memory."""
    with pytest.raises(EngineError, match=said) as caught:
        card.engine(plan_bytes(HW, **changes)).__enter__()
    assert str(caught.value).endswith("compile it again with `flawline build`")
    card.assert_clean()


def test_a_plan_that_nobody_has(card: Bench) -> None:
    """What goes wrong between the GPU and the plan closes the GPU again."""

    def none(gpu: Gpu) -> bytes:
        raise EngineError(f"no plan for {gpu.name}")

    with pytest.raises(EngineError, match="no plan for Stand-in 4000"):
        card.engine(plan_for=none).__enter__()
    card.assert_clean()


def test_work_that_ends_a_thread_ends_nothing_else(card: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would end the GPU's thread reaches the caller instead, and the thread lives to free what it owns."""
    with card.engine() as engine:

        def gone(*_: object, **__: object) -> bool:
            raise SystemExit(3)

        with monkeypatch.context() as patch:
            patch.setattr(card.trt.IExecutionContext, "execute_async_v3", gone)
            with pytest.raises(SystemExit):
                engine.infer(frames_of(1))
        assert_answers(engine.infer(frames_of(1)), frames_of(1))
    card.assert_clean()


def test_a_caller_that_dies_leaves_the_engine_to_others(card: Bench) -> None:
    """The GPU belongs to its own thread, not to the one that entered the engine."""
    engine = card.engine()
    entering = threading.Thread(target=engine.__enter__)
    entering.start()
    entering.join()
    assert_answers(engine.infer(frames_of(1)), frames_of(1))
    engine.__exit__(None, None, None)
    card.assert_clean()


def test_closing_twice_and_using_it_closed(card: Bench) -> None:
    """Closing again does nothing; using it says what to do; entering again works."""
    engine = card.engine()
    with pytest.raises(EngineError, match="not open"):
        engine.infer(frames_of(1))
    for _ in range(2):
        with engine:
            assert_answers(engine.infer(frames_of(1)), frames_of(1))
        engine.__exit__(None, None, None)
        with pytest.raises(EngineError, match="not open; use it inside `with`"):
            engine.infer(frames_of(1))
    card.assert_clean()
    assert card.memory.calls.count("open") == 2


def test_a_context_is_on_the_stack_only_while_work_runs(card: Bench) -> None:
    """pycuda ends the process when a thread exits with a context on its stack: pushes and pops alternate."""
    with card.engine() as engine:
        engine.infer(frames_of(1))
    order = [call for call in card.memory.calls if call in ("push", "pop")]
    assert order == ["push", "pop"] * (len(order) // 2)


def test_the_stand_in_offers_only_what_is_real() -> None:
    """Each public name of the stand-in is one of TensorRT-RTX's, whose names `test_tensorrt_names` holds against the others."""
    pytest.importorskip("tensorrt_rtx_bindings")
    surface = surface_from_package("tensorrt_rtx")
    fake = FakeTensorRt(FakeMemory())
    for owner, made in vars(fake).items():
        if isinstance(made, type):
            public = {name for name in vars(made) if not name.startswith("_")}
            assert public <= set(surface.names[owner]), owner
