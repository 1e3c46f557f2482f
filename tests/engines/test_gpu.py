"""On a real GPU: the same bits every time and by every way, five minutes without growth, and life after a destroyed context.

    pytest -n0 -m needs_gpu                            skipped where there is no NVIDIA driver, or no TensorRT
    FLAWLINE_GPU_REPORT=gpu.txt pytest -n0 -m needs_gpu     a line a test there, for benchmarks/RESULTS.md

`FLAWLINE_GPU_MINUTES` is how long the long run takes, 5 without it. Nobody has run these yet: what they call is held against
stand-ins by the other tests of this folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_engines.build import build_plan, open_tensorrt
from flawline_engines.engine import Inference, MissingPlanError
from flawline_engines.gpu_memory import DeviceMemory, Gpu, open_memory
from flawline_engines.parity import LIMITS
from flawline_engines.plans import plans_folder
from flawline_engines.tensorrt_runner import TensorRtEngine
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EngineError

pytestmark = [pytest.mark.needs_gpu, pytest.mark.slow, pytest.mark.timeout(900)]

MODULES = ("tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "fp16", "int8")
MINUTES = float(os.environ.get("FLAWLINE_GPU_MINUTES", "5"))
LARGEST_GROWTH_MIB = 16
"""Of the process, and of what is used of the GPU, after the first tenth of the long run."""


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Any:
    """A TensorRT that is installed and knows this GPU; the other's reason is the skip's."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped one, in every precision that its gate accepts."""
    from flawline_train.quantize import quantize

    out = tmp_path_factory.mktemp("bundle") / "demo.flawline"
    quantize(Bundle.open(DEMO_BUNDLE), out, ("fp16", "int8"))
    return Bundle.open(out) if out.is_file() else Bundle.open(DEMO_BUNDLE)


@pytest.fixture(scope="session")
def frames(bundle: Bundle) -> NDArray[np.uint8]:
    """(16, H, W, 3)"""
    return np.stack([golden.fitted for golden in bundle.golden()])


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans are compiled once for all tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`report(text)` puts a line into the file of `FLAWLINE_GPU_REPORT`, and into the test's output."""

    def tell(text: str) -> None:
        line = f"{request.node.name}: {text}"
        print(line)
        if path := os.environ.get("FLAWLINE_GPU_REPORT"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    return tell


@contextlib.contextmanager
def opened(
    bundle: Bundle, module: Any, state_dir: Path, precision: Any = "fp32", **options: Any
) -> Iterator[TensorRtEngine]:
    """Skips where this TensorRT refuses this GPU, with what it says."""
    with contextlib.ExitStack() as stack:
        try:
            engine: Any = open_tensorrt(bundle, module, precision=precision, state_dir=state_dir, **options)
            stack.enter_context(engine)
        except EngineError as exc:
            pytest.skip(str(exc))
        yield engine


def memory_of(kind: Any, **changes: Any) -> Callable[[], DeviceMemory]:
    """The backend `kind`, or a skip; `graphs` and `integrated` as if the machine were another."""

    def make() -> DeviceMemory:
        memory = open_memory(kind)
        if changes.get("graphs") is False:
            memory.has_graphs = False  # type: ignore[misc]
        if changes.get("integrated"):
            open_gpu = memory.open

            def integrated() -> Gpu:
                return replace(open_gpu(), is_integrated=True)

            memory.open = integrated  # type: ignore[method-assign]
        return memory

    try:
        make()
    except EngineError as exc:
        pytest.skip(str(exc))
    return make


def assert_same_bits(ours: Inference, theirs: Inference) -> None:
    for name, one, other in zip(Inference._fields, ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


# --- compiled and accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_parity_gate_accepts(
    module: Any, precision: Any, bundle: Bundle, state_dir: Path, report: Callable[[str], None]
) -> None:
    """Each precision on this GPU, within its limits; TensorRT's second build begins with the first one's measurements."""
    try:
        built = build_plan(bundle, module, precision=precision, state_dir=state_dir)
        again = build_plan(bundle, module, precision=precision, state_dir=state_dir)
    except EngineError as exc:
        pytest.skip(str(exc))
    found = built.parity
    report(
        f"{built.gpu.name} (compute capability {built.gpu.compute_capability}): {built.n_bytes / 1e6:.1f} MB in "
        f"{built.compile_s:.1f} s, again in {again.compile_s:.1f} s; scores differ by {found.score_difference:.4%} (limit "
        f"{LIMITS[precision].score:.2%}), heatmaps by {found.heatmap_difference:.4%}"
    )
    assert found.accepted, found.refusals
    caches = list(plans_folder(state_dir).glob(f"{module}-*.timing"))
    assert bool(caches) == (module == "tensorrt")


def test_a_plan_that_was_cut_short_is_not_loaded(module: Any, bundle: Bundle, state_dir: Path) -> None:
    """By us it is not given to TensorRT at all; TensorRT itself refuses rubbish with an error."""
    with opened(bundle, module, state_dir):
        pass
    hw = (bundle.frame.height, bundle.frame.width)
    with pytest.raises(EngineError, match="cannot load the plan"):
        TensorRtEngine(module, hw, lambda _: b"rubbish" * 1000).__enter__()
    for path in plans_folder(state_dir).glob(f"{module}-fp32-*.plan"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        with pytest.raises(MissingPlanError, match="is truncated"):
            open_tensorrt(bundle, module, state_dir=state_dir, compile_missing=False).__enter__()
        path.write_bytes(whole)


# --- the same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_frames_give_the_same_bits(
    module: Any, precision: Any, bundle: Bundle, state_dir: Path, frames: NDArray[np.uint8]
) -> None:
    """Again and again, alone and in a batch, after other batches, and in an engine that was opened anew."""
    with opened(bundle, module, state_dir, precision) as engine:
        alone, together = engine.infer(frames[:1]), engine.infer(frames)
        for _ in range(20):  # most of them from a CUDA graph, where there are any
            assert_same_bits(engine.infer(frames[:1]), alone)
        engine.infer(frames[:3])
        assert_same_bits(engine.infer(frames), together)
        assert_same_bits(engine.infer(frames[:1]), alone)
    with opened(bundle, module, state_dir, precision) as other:
        assert_same_bits(other.infer(frames[:1]), alone)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_way_gives_the_same_bits(
    module: Any, precision: Any, bundle: Bundle, state_dir: Path, frames: NDArray[np.uint8]
) -> None:
    """Graph replay, step by step, mapped memory without copies as on a Jetson, and copies behind the arithmetic."""
    batches = [frames[i : i + 4] for i in range(0, 16, 4)]
    found: dict[str, list[Inference]] = {}
    for name, changes in {"graphs": {}, "steps": {"graphs": False}, "mapped": {"integrated": True}}.items():
        memory = memory_of("cuda-bindings", **changes)
        with opened(bundle, module, state_dir, precision, memory=memory) as engine:
            found[name] = [engine.infer(batch) for batch in batches for _ in range(4)][3::4]
            found[f"{name}, overlapping"] = list(engine.infer_each(batches))
    reference = found.pop("steps")
    for others in found.values():
        for ours, theirs in zip(others, reference, strict=True):
            assert_same_bits(ours, theirs)


def test_both_backends_give_the_same_bits(
    module: Any, bundle: Bundle, state_dir: Path, frames: NDArray[np.uint8]
) -> None:
    """pycuda and cuda-bindings, one after the other in one process."""
    found = []
    for kind in ("pycuda", "cuda-bindings"):
        with opened(bundle, module, state_dir, memory=memory_of(kind)) as engine:
            found.append(engine.infer(frames))
    assert_same_bits(*found)


# --- a long run ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60 * MINUTES + 600)
def test_a_long_run_does_not_grow(
    module: Any, bundle: Bundle, state_dir: Path, frames: NDArray[np.uint8], report: Callable[[str], None]
) -> None:
    """Batches of every size, alone and overlapping, for minutes: neither the process nor the GPU's memory gets fuller."""
    runtime = pytest.importorskip("cuda.bindings.runtime")

    def used_mib() -> tuple[float, float]:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        resident = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
        _, free, total = runtime.cudaMemGetInfo()
        return resident, (total - free) / (1 << 20)

    calls = 0
    with opened(bundle, module, state_dir) as engine:
        expected = engine.infer(frames[:1]).scores[0]
        begin = time.monotonic()
        first: tuple[float, float] | None = None
        while time.monotonic() - begin < 60 * MINUTES:
            for size in (1, 1, 1, 3, 8, 16):
                engine.infer(frames[:size])
                calls += 1
            list(engine.infer_each([frames[:4]] * 4))
            assert engine.infer(frames[:1]).scores[0] == expected
            if first is None and time.monotonic() - begin > 6 * MINUTES:
                first = used_mib()
        last = used_mib()
    assert first is not None
    grown = [after - before for before, after in zip(first, last, strict=True)]
    report(
        f"{calls} calls in {MINUTES:g} min: the process grew by {grown[0]:.1f} MiB, the GPU's use by {grown[1]:.1f} MiB"
    )
    assert max(grown) < LARGEST_GROWTH_MIB, grown


def test_opening_and_closing_does_not_grow(
    module: Any, bundle: Bundle, state_dir: Path, report: Callable[[str], None]
) -> None:
    """Everything that an engine takes of the GPU is given back."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    blank = np.zeros((1, bundle.frame.height, bundle.frame.width, 3), np.uint8)
    free = []
    for _ in range(12):
        with opened(bundle, module, state_dir) as engine:
            engine.infer(blank)
        free.append(runtime.cudaMemGetInfo()[1] / (1 << 20))
    report(f"{free[1] - free[-1]:.1f} MiB less are free after ten more times")
    assert free[1] - free[-1] < LARGEST_GROWTH_MIB


# --- a destroyed context -------------------------------------------------------------------------------------------------


def in_child(what: str, how: str, module: str, state_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.engines.gpu_child", what, how, module, str(state_dir)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("how", ["reset", "assert"])
def test_an_engine_works_again_after_its_context_was_destroyed(
    module: Any, how: str, bundle: Bundle, state_dir: Path, report: Callable[[str], None]
) -> None:
    """At most two calls fail, and what it then says are the same bits."""
    with opened(Bundle.open(DEMO_BUNDLE), module, state_dir):
        pass
    found = in_child("engine", how, module, state_dir)
    report(f"{len(found['errors'])} calls failed ({'; '.join(found['errors'])})")
    assert found["same"] and len(found["errors"]) <= 2, found


@pytest.mark.parametrize("how", ["reset", "assert"])
def test_a_station_goes_on_after_its_context_was_destroyed(
    module: Any, how: str, tmp_path: Path, state_dir: Path, report: Callable[[str], None]
) -> None:
    """Every part has its verdict, in order; those that the failure hit are 0 `engine`, all later ones are judged."""
    with opened(Bundle.open(DEMO_BUNDLE), module, state_dir):
        pass
    found = in_child("station", how, module, tmp_path)
    report(f"{found['lost']} of 40 parts were 0 {', '.join(found['reasons'])}, all later ones judged")
    assert found["code"] == 0 and found["parts"], found
    assert found["lost"] <= 2 and found["reasons"] in ([], ["engine"]), found
    assert found["judged_after"] == 40 - 20 - 3, found
