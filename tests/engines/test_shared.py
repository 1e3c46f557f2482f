"""Several cameras, one engine: batches, turns, and that nothing one of them does reaches another."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.engines.test_engine import HW as REAL_HW
from tests.engines.test_engine import KINDS, engine_from, some_frames

from flawline_engines import Engine, Inference
from flawline_engines import shared as shared_module
from flawline_engines.bench import convolution_model
from flawline_engines.engine import Precision
from flawline_engines.shared import CameraEngine, SharedEngine, batch_sizes
from flawline_inspect.config import parse_config
from flawline_inspect.errors import ConfigError, EngineError

HW = (4, 6)
BROKEN, HANGS = 254, 255
"""Grey levels at which the stand-in fails or waits."""


class StandIn:
    """Says of each frame its own first value. Keeps the first values of each batch, and may be made to wait or fail."""

    kind = "stand-in"
    precision: Precision = "fp32"

    def __init__(self, *, each_s: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.running = threading.Semaphore(0)  # released when a frame that hangs has come
        self.go_on = threading.Event()
        self.entered = self.left = 0
        self.max_working = 0  # larger batches fail
        self.surprise: Exception | None = None
        self._each_s, self._working = each_s, 0

    def __enter__(self) -> StandIn:
        self.entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert not self._working, "an engine is closed in the middle of a batch"
        self.left += 1

    def infer(self, frames: NDArray[np.uint8]) -> Inference:
        assert self.entered > self.left, "an engine is called that is not open"
        self._working += 1
        assert self._working == 1, "an engine is called by two threads"
        try:
            levels = [int(frame[0, 0, 0]) for frame in frames]
            self.batches.append(levels)
            if HANGS in levels:
                self.running.release()
                self.go_on.wait(30)
            if self._each_s:
                time.sleep(self._each_s)
            if self.surprise is not None:
                raise self.surprise
            if BROKEN in levels or (self.max_working and len(frames) > self.max_working):
                raise EngineError(f"cannot do {levels}")
            scores = np.array(levels, np.float32)
            return Inference(scores, np.broadcast_to(scores[:, None, None], (len(frames), *HW)).copy(), frames.copy())
        finally:
            self._working -= 1

    @property
    def served(self) -> list[list[int]]:
        """The batches after the warm-up."""
        return self.batches[len(batch_sizes(8)) :]


def frames_of(*levels: int) -> NDArray[np.uint8]:
    return np.stack([np.full((*HW, 3), level, np.uint8) for level in levels])


@contextmanager
def cameras(
    engine: Engine, n: int, **settings: float | Callable[[], None]
) -> Iterator[tuple[SharedEngine, list[CameraEngine]]]:
    with ExitStack() as stack:
        shared = stack.enter_context(SharedEngine(engine, HW, **{"max_batch": 8, **settings}))  # type: ignore[arg-type]
        yield shared, [stack.enter_context(shared.camera(f"camera{i}")) for i in range(n)]


@contextmanager
def engine_held(engine: StandIn, by: CameraEngine) -> Iterator[None]:
    """The engine is busy with a frame of `by` inside the `with`, and goes on behind it."""
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(by.infer, frames_of(HANGS))
        assert engine.running.acquire(timeout=10)
        try:
            yield
        finally:
            engine.go_on.set()
        held.exception(10)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen within 10 s"
        time.sleep(0.001)


def n_waiting(handles: list[CameraEngine]) -> int:
    return sum(len(handle.waiting) for handle in handles)


# --- what a handle is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_is_an_engine(kind: str) -> None:
    """The same results as from the engine itself, whatever the number of frames."""
    model = convolution_model(16, REAL_HW[0])
    with engine_from(kind, model) as alone:
        expected = alone.infer(some_frames(11))
    with (
        SharedEngine(engine_from(kind, model), REAL_HW, max_batch=4) as shared,
        shared.camera("top") as handle,
    ):
        assert (handle.kind, handle.precision) == (kind, "fp32")
        found = handle.infer(some_frames(11))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=5),
    max_batch=st.integers(1, 8),
    window_ms=st.sampled_from([0.0, 2.0]),
)
def test_everyone_gets_their_own(calls: list[list[int]], max_batch: int, window_ms: float) -> None:
    """Whatever comes together: each answer is that of the frames asked about, in their order, and no frame runs twice."""
    engine = StandIn()
    n_frames = sum(map(sum, calls))

    def run(number: int, handle: CameraEngine) -> None:
        level = 40 * number
        for n in calls[number]:
            levels = [level + i for i in range(n)]
            found = handle.infer(frames_of(*levels))
            assert found.scores.tolist() == levels
            assert (found.expected[:, 0, 0, 0] == levels).all() and (found.heatmaps[:, 1, 2] == levels).all()

    with (
        cameras(engine, len(calls), max_batch=max_batch, batch_window_ms=window_ms) as (_, handles),
        ThreadPoolExecutor(len(calls)) as pool,
    ):
        for done in [pool.submit(run, i, handle) for i, handle in enumerate(handles)]:
            done.result(30)
    served = engine.batches[len(batch_sizes(max_batch)) :]
    assert sum(map(len, served)) == n_frames
    assert {len(batch) for batch in served} <= set(batch_sizes(max_batch))


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.lists(st.lists(st.sampled_from([1, 2, 3, BROKEN]), min_size=1, max_size=4), min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    ),
    max_batch=st.integers(1, 8),
)
def test_whoever_fails_fails_alone(calls: list[list[list[int]]], max_batch: int) -> None:
    """A call fails if and only if one of its own frames does, whatever the others send at the same time."""

    def run(number: int, handle: CameraEngine) -> None:
        for levels in calls[number]:
            if BROKEN in levels:
                with pytest.raises(EngineError, match=r"cannot do \[254\]"):
                    handle.infer(frames_of(*levels))
            else:
                assert handle.infer(frames_of(*levels)).scores.tolist() == levels

    with (
        cameras(StandIn(), len(calls), max_batch=max_batch) as (_, handles),
        ThreadPoolExecutor(len(calls)) as pool,
    ):
        for done in [pool.submit(run, i, handle) for i, handle in enumerate(handles)]:
            done.result(30)


def test_results_are_the_callers_own() -> None:
    """Writing into them changes nobody else's."""
    engine = StandIn()
    with cameras(engine, 3) as (_, handles), ThreadPoolExecutor(2) as pool, engine_held(engine, handles[0]):
        both = [pool.submit(handle.infer, frames_of(i)) for i, handle in enumerate(handles[1:], 1)]
        until(lambda: n_waiting(handles) == 2)
        engine.go_on.set()
        first, second = (done.result(10) for done in both)
    assert engine.served[-1] == [1, 2] or engine.served[-1] == [2, 1]
    for values in first:
        values[...] = 77
    assert second.scores.tolist() == [2] and (second.heatmaps == 2).all() and (second.expected == 2).all()


def test_a_frame_that_does_not_fit_is_its_cameras_error() -> None:
    """It does not reach the engine, let alone a batch with others."""
    engine = StandIn()
    with cameras(engine, 2) as (_, (one, other)):
        with pytest.raises(EngineError, match=r"frames are uint8 \(1, 6, 4, 3\), expected uint8 \(N, 4, 6, 3\)"):
            one.infer(np.zeros((1, 6, 4, 3), np.uint8))
        assert other.infer(frames_of(5)).scores.tolist() == [5]
    assert engine.served == [[5]]


def test_the_engine_is_opened_warmed_up_and_closed_once() -> None:
    """Each size of batch has run before the first camera asks: OpenVINO compiles each, which takes seconds."""
    engine = StandIn()
    with cameras(engine, 1, max_batch=12) as (shared, _):
        assert [len(batch) for batch in engine.batches] == [1, 2, 4, 8, 12]
        assert shared.serving is engine
    assert (engine.entered, engine.left) == (1, 1)


def test_a_cpu_serves_one_by_one_and_a_gpu_together() -> None:
    """Unless it is asked for: also when the GPU takes over from the CPU, whose plan was being compiled."""
    cpu, gpu = StandIn(), StandIn()
    gpu.kind = "tensorrt"
    with SharedEngine(cpu, HW) as shared, gpu:
        handles = [shared.camera(f"camera{i}").__enter__() for i in range(3)]
        assert [len(batch) for batch in cpu.batches] == [1]
        with ThreadPoolExecutor(2) as pool:
            for engine in (cpu, gpu):
                if engine is gpu:
                    shared.switch(gpu).__exit__(None, None, None)
                    assert [len(batch) for batch in gpu.batches] == [1, 2, 4, 8]
                with engine_held(engine, handles[2]):
                    both = [pool.submit(handle.infer, frames_of(i)) for i, handle in enumerate(handles[:2])]
                    until(lambda: n_waiting(handles) == 2)
                assert [done.result(10).scores.tolist() for done in both] == [[0], [1]]
    assert [len(batch) for batch in cpu.batches[1:]] == [1, 1, 1]
    assert [len(batch) for batch in gpu.batches[4:]] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_batch": 0}, "max_batch is 0, expected 1 to 64"),
        ({"max_batch": 65}, "max_batch is 65, expected 1 to 64"),
        ({"batch_window_ms": -1.0}, "batch_window_ms is -1"),
        ({"timeout_s": 0.0}, "timeout_s 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        SharedEngine(StandIn(), HW, **settings)  # type: ignore[arg-type]


# --- batches and turns -----------------------------------------------------------------------------------------------


def test_what_waits_is_taken_together() -> None:
    """Without a window: seven frames that came during a batch are the next ones, in sizes that were warmed up."""
    engine = StandIn()
    with cameras(engine, 8) as (_, handles), ThreadPoolExecutor(7) as pool:
        with engine_held(engine, handles[7]):
            done = [pool.submit(handle.infer, frames_of(i)) for i, handle in enumerate(handles[:7])]
            until(lambda: n_waiting(handles) == 7)
        assert [one.result(10).scores.tolist() for one in done] == [[i] for i in range(7)]
    assert [len(batch) for batch in engine.served] == [1, 4, 2, 1]


def test_without_a_window_nobody_is_held_up() -> None:
    """One camera of two that asks is served at once."""
    engine = StandIn()
    with cameras(engine, 2) as (_, (one, _)):
        begin = time.monotonic()
        for _ in range(20):
            one.infer(frames_of(1))
        assert time.monotonic() - begin < 2
    assert engine.served == [[1]] * 20


def test_in_the_window_others_may_come() -> None:
    """A second camera that asks within the window of the first goes into the same batch, and ends the waiting at once."""
    engine = StandIn()
    with cameras(engine, 2, batch_window_ms=20_000) as (_, handles), ThreadPoolExecutor(2) as pool:
        begin = time.monotonic()
        first = pool.submit(handles[0].infer, frames_of(1))
        until(lambda: n_waiting(handles) == 1)
        second = pool.submit(handles[1].infer, frames_of(2))
        assert first.result(10).scores.tolist() == [1] and second.result(10).scores.tolist() == [2]
        assert time.monotonic() - begin < 10
    assert engine.served == [[1, 2]]


def test_the_window_ends() -> None:
    """Where nobody else comes, a frame waits for the window and no longer."""
    engine = StandIn()
    with cameras(engine, 2, batch_window_ms=50) as (_, (one, _)):
        begin = time.monotonic()
        one.infer(frames_of(1))
        assert 0.045 <= time.monotonic() - begin < 5


def test_a_full_batch_ends_the_window() -> None:
    engine = StandIn()
    with cameras(engine, 5, batch_window_ms=20_000, max_batch=2) as (_, handles), ThreadPoolExecutor(2) as pool:
        begin = time.monotonic()
        for done in [pool.submit(handle.infer, frames_of(i)) for i, handle in enumerate(handles[:2])]:
            done.result(10)
        assert time.monotonic() - begin < 10


def test_cameras_take_turns() -> None:
    """One that sends 20 frames at once does not keep others, that came later, waiting for them."""
    engine = StandIn()
    with cameras(engine, 4, max_batch=4) as (_, handles), ThreadPoolExecutor(3) as pool:
        with engine_held(engine, handles[3]):
            many = pool.submit(handles[0].infer, frames_of(*range(100, 120)))
            until(lambda: n_waiting(handles) == 20)
            later = [pool.submit(handles[i].infer, frames_of(i, 10 + i)) for i in (1, 2)]
            until(lambda: n_waiting(handles) == 24)
        assert many.result(10).scores.tolist() == list(range(100, 120))
        assert [done.result(10).scores.tolist() for done in later] == [[1, 11], [2, 12]]
    own = [[level for level in batch if level < 100] for batch in engine.batches[len(batch_sizes(4)) + 1 :]]
    assert own[0] in ([1, 2], [2, 1]) and sorted(own[0] + own[1]) == [1, 2, 11, 12]


def test_batches_serve_more_cameras_than_one_by_one() -> None:
    """An engine that takes 5 ms a call, whatever its batch: eight cameras in step need two calls a round, not eight."""
    engine = StandIn(each_s=0.005)
    with cameras(engine, 8) as (_, handles), ThreadPoolExecutor(8) as pool:

        def run(handle: CameraEngine) -> None:
            for _ in range(10):
                handle.infer(frames_of(1))

        for done in [pool.submit(run, handle) for handle in handles]:
            done.result(30)
    assert len(engine.served) < 50


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_only_the_culprit_fails() -> None:
    """A batch that fails is repeated frame by frame."""
    engine = StandIn()
    levels = [1, 2, BROKEN, 4]
    with cameras(engine, 5) as (_, handles), ThreadPoolExecutor(4) as pool:
        with engine_held(engine, handles[4]):
            done = [pool.submit(handle.infer, frames_of(level)) for handle, level in zip(handles, levels, strict=False)]
            until(lambda: n_waiting(handles) == 4)
        with pytest.raises(EngineError, match=r"cannot do \[254\]"):
            done[2].result(10)
        assert [done[i].result(10).scores.tolist() for i in (0, 1, 3)] == [[1], [2], [4]]
        assert handles[2].infer(frames_of(9)).scores.tolist() == [9]


def test_an_engine_without_memory_for_a_batch_serves_one_by_one() -> None:
    engine = StandIn()
    with cameras(engine, 5) as (_, handles), ThreadPoolExecutor(4) as pool:
        with engine_held(engine, handles[4]):
            engine.max_working = 1
            done = [pool.submit(handle.infer, frames_of(i)) for i, handle in enumerate(handles[:4])]
            until(lambda: n_waiting(handles) == 4)
        assert [one.result(10).scores.tolist() for one in done] == [[0], [1], [2], [3]]


def test_each_camera_gets_an_error_of_its_own() -> None:
    """An exception that two threads raise would collect the tracebacks of both."""
    engine = StandIn()
    with cameras(engine, 2) as (_, handles), ThreadPoolExecutor(1) as pool:
        both = pool.submit(handles[0].infer, frames_of(BROKEN, BROKEN)).exception(10)
        one = pool.submit(handles[1].infer, frames_of(BROKEN)).exception(10)
    assert isinstance(both, EngineError) and isinstance(one, EngineError) and both is not one


def test_a_surprise_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What is no `EngineError` becomes one, and the traceback is logged."""
    engine = StandIn()
    with cameras(engine, 1) as (_, (one,)):
        engine.surprise = ZeroDivisionError("of all things")
        with pytest.raises(EngineError, match="stand-in failed: ZeroDivisionError"):
            one.infer(frames_of(1))
        engine.surprise = None
        assert one.infer(frames_of(2)).scores.tolist() == [2]
    assert caplog.records[0].exc_info is not None


def test_results_for_another_number_of_frames_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong score is worse than none."""
    engine = StandIn()
    with cameras(engine, 1) as (_, (one,)):
        monkeypatch.setattr(engine, "infer", lambda frames: StandIn.infer(engine, frames_of(1, 2)))
        with pytest.raises(EngineError, match="gave 2 results for 1 frames"):
            one.infer(frames_of(1))


def test_an_engine_that_cannot_be_warmed_up_is_closed_again() -> None:
    engine = StandIn()
    engine.max_working = 2
    with pytest.raises(EngineError, match="cannot do"), SharedEngine(engine, HW, max_batch=4):
        pytest.fail("it was entered")
    assert engine.left == 1


# --- an engine that hangs --------------------------------------------------------------------------------------------


def test_a_hang_is_bounded_and_ends() -> None:
    """Who waits gets an error at its time, who comes later at once; when the engine is back, all is well."""
    engine = StandIn()
    with cameras(engine, 3, timeout_s=0.2) as (_, handles), ThreadPoolExecutor(2) as pool:
        first = pool.submit(handles[0].infer, frames_of(HANGS))
        assert engine.running.acquire(timeout=10)
        second = pool.submit(handles[1].infer, frames_of(2))
        for done in (first, second):
            with pytest.raises(EngineError, match=r"gave no answer in 0\.2 s"):
                done.result(10)
        begin = time.monotonic()
        with pytest.raises(EngineError, match=r"busy with one batch for more than 0\.2 s"):
            handles[2].infer(frames_of(3))
        assert time.monotonic() - begin < 0.2
        engine.go_on.set()
        until(lambda: _answers(handles[2]))
    assert [2] not in engine.served, "a frame that nobody waits for any more was computed"


def _answers(handle: CameraEngine) -> bool:
    try:
        return handle.infer(frames_of(3)).scores.tolist() == [3]
    except EngineError:
        return False


def test_it_comes_round_unless_it_hangs() -> None:
    """Idle or not: who watches can tell an engine that hangs, although the calls come back."""
    rounds: list[float] = []
    engine = StandIn()
    with cameras(engine, 1, timeout_s=0.2, came_round=lambda: rounds.append(time.monotonic())) as (_, (one,)):
        until(lambda: len(rounds) > 3)
        with engine_held(engine, one):
            during = len(rounds)
            time.sleep(0.5)
            assert len(rounds) == during
        until(lambda: len(rounds) > during)
    assert max(later - earlier for earlier, later in itertools.pairwise(rounds[:4])) < 1.0


@pytest.mark.parametrize(
    ("kind", "max_batch", "most", "sizes"),
    [("stand-in", None, 4, [1]), ("tensorrt", None, 3, [1, 2, 3]), ("tensorrt", 64, 64, [1, 2, 4, 8, 16, 32, 64]),
     ("stand-in", 8, 2, [1, 2]), ("triton", None, 64, [1, 2, 4, 8])],
)  # fmt: skip
def test_batches_of_at_most_as_many_as_there_are_cameras(
    monkeypatch: pytest.MonkeyPatch, kind: str, max_batch: int | None, most: int, sizes: list[int]
) -> None:
    """A larger one never occurs, and would be warmed up and take memory all the same."""
    monkeypatch.setattr(StandIn, "kind", kind)
    engine = StandIn()
    with SharedEngine(engine, HW, max_batch=max_batch, most_cameras=most) as shared:
        assert shared.batches_of(engine) == sizes
    assert [len(batch) for batch in engine.batches] == sizes


def test_leaving_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that hangs is left to its thread, which closes it when it comes back."""
    monkeypatch.setattr(shared_module, "END_S", 0.1)
    engine = StandIn()
    with ThreadPoolExecutor(1) as pool:
        with cameras(engine, 1, timeout_s=5) as (_, (one,)):
            hanging = pool.submit(one.infer, frames_of(HANGS))
            assert engine.running.acquire(timeout=10)
        assert "leaving it behind" in caplog.text and engine.left == 0
        engine.go_on.set()
        until(lambda: engine.left == 1)
        assert hanging.result(10).scores.tolist() == [HANGS]


def test_an_engine_that_cannot_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The station ends all the same."""
    engine = StandIn()
    with cameras(engine, 1) as (_, (one,)):
        assert one.infer(frames_of(1)).scores.tolist() == [1]
        engine._working = 1  # which its own __exit__ refuses
    assert "stand-in could not be closed" in caplog.text


# --- coming and going ------------------------------------------------------------------------------------------------


def test_who_waits_when_it_is_closed_is_told() -> None:
    engine = StandIn()
    stack = ExitStack()
    shared = stack.enter_context(SharedEngine(engine, HW))
    handles = [shared.camera(name).__enter__() for name in ("left", "right")]
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(handles[0].infer, frames_of(HANGS))
        assert engine.running.acquire(timeout=10)
        waits = pool.submit(handles[1].infer, frames_of(1))
        until(lambda: n_waiting(handles) == 1)
        closing = threading.Thread(target=stack.close)
        closing.start()
        with pytest.raises(EngineError, match="the engine was closed"):
            waits.result(10)
        engine.go_on.set()
        assert held.result(10).scores.tolist() == [HANGS], "the batch under way is finished"
        closing.join(10)
    assert engine.left == 1
    with pytest.raises(EngineError, match="not open"):
        handles[0].infer(frames_of(1))
    with pytest.raises(EngineError, match="not open"):
        _ = handles[0].kind


def test_a_camera_that_leaves_touches_no_other() -> None:
    """Its handle is of no use any more; the window does not wait for it."""
    engine = StandIn()
    with cameras(engine, 1, batch_window_ms=20_000) as (shared, (stays,)):
        with shared.camera("guest") as guest:
            pass
        with pytest.raises(EngineError, match="not open"):
            guest.infer(frames_of(1))
        begin = time.monotonic()
        assert stays.infer(frames_of(2)).scores.tolist() == [2]
        assert time.monotonic() - begin < 10


def test_another_engine_takes_over_between_two_batches() -> None:
    """Under load: every frame is answered by one of the two, the first is free when it is handed back."""
    before, after = StandIn(each_s=0.001), StandIn(each_s=0.001)
    stop = threading.Event()

    def run(handle: CameraEngine, level: int) -> int:
        n = 0
        while not stop.is_set():
            assert handle.infer(frames_of(level)).scores.tolist() == [level]
            n += 1
        return n

    with cameras(before, 3) as (shared, handles), ThreadPoolExecutor(3) as pool, after:
        done = [pool.submit(run, handle, i) for i, handle in enumerate(handles)]
        until(lambda: len(before.served) > 10)
        freed = shared.switch(after)
        assert freed is before
        freed.__exit__(None, None, None)  # asserts that it is not computing
        n_before = len(before.batches)
        until(lambda: len(after.served) > 10)
        stop.set()
        total = sum(one.result(10) for one in done)
        assert len(before.batches) == n_before
        assert shared.serving is after
    assert total == sum(map(len, before.served)) + sum(map(len, after.served))
    assert after.left == 2  # by the shared engine, and by the `with` above


def test_no_other_engine_takes_over_from_one_that_hangs() -> None:
    engine = StandIn()
    with cameras(engine, 1, timeout_s=0.2) as (shared, (one,)), StandIn() as other:
        with engine_held(engine, one), pytest.raises(EngineError, match="a batch under way does not end"):
            shared.switch(other)
        assert shared.serving is engine
    with StandIn() as other, pytest.raises(EngineError, match="it is not open"):
        shared.switch(other)


# --- the configuration -----------------------------------------------------------------------------------------------


def test_the_keys_of_the_configuration(tmp_path: Path) -> None:
    station = {"cameras": [{"name": "top", "source": {"kind": "simulated"}}], "recipes": {1: "part.flawline"}}
    engine = parse_config(station, base=tmp_path).engine
    assert (engine.max_batch, engine.batch_window_ms) == (None, 0.0)
    engine = parse_config({**station, "engine": {"max_batch": 16, "batch_window_ms": 2.5}}, base=tmp_path).engine
    assert (engine.max_batch, engine.batch_window_ms) == (16, 2.5)
    with pytest.raises(ConfigError, match=r"engine\.max_batch: found 65"):
        parse_config({**station, "engine": {"max_batch": 65}}, base=tmp_path)
    with pytest.raises(ConfigError, match=r"engine\.batch_window_ms: found -1"):
        parse_config({**station, "engine": {"batch_window_ms": -1}}, base=tmp_path)
