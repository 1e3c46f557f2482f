"""From a bundle to a plan that may serve: compile, hold against the reference, store."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flawline_engines.engine import Engine, EngineKind, Precision, model_for
from flawline_engines.gpu_memory import DeviceMemory, Gpu, GpuThread, open_memory
from flawline_engines.parity import Parity, check_parity
from flawline_engines.plans import PlanKey, PlanStore, plans_folder
from flawline_engines.tensorrt import BuildProgress, BuildSettings, ModuleName, compile_plan, load_module
from flawline_engines.tensorrt_runner import TensorRtEngine
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EngineError
from flawline_inspect.signature import KEY_VARIABLE

__all__ = ["Built", "build_in_child", "build_plan", "open_tensorrt"]

_POLL_S = 0.2
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that was compiled, judged and stored, refused ones too: so that nobody compiles them again."""

    path: Path
    gpu: Gpu
    n_bytes: int
    compile_s: float
    parity: Parity


def build_plan(
    bundle: Bundle,
    module: ModuleName,
    *,
    precision: Precision = "fp32",
    state_dir: Path | None = None,
    settings: BuildSettings | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    memory: Callable[[], DeviceMemory] = open_memory,
) -> Built:
    """Compile a bundle's graph for the GPU in this machine, run the parity gate, store both.

    Raises `EngineError` for what is missing here and for what cannot be compiled.
    """
    _check_precision(precision)
    load_module(module)
    thread = GpuThread(memory())
    gpu = thread.start()
    thread.stop()
    settings = settings or BuildSettings()
    store, key = PlanStore(plans_folder(state_dir)), _key(bundle, module, precision, gpu, settings)
    begin = time.monotonic()
    plan, timing_cache = compile_plan(
        module,
        model_for(bundle, precision),
        settings=settings,
        timing_cache=store.timing_cache(key),
        on_progress=on_progress,
    )
    compile_s = time.monotonic() - begin
    hw = (bundle.frame.height, bundle.frame.width)
    with TensorRtEngine(module, hw, lambda _: plan, precision=precision, memory=memory) as candidate:
        parity = check_parity(bundle, candidate)
    path = store.save(key, plan, parity)
    store.save_timing_cache(key, timing_cache)
    return Built(path, gpu, len(plan), compile_s, parity)


def open_tensorrt(
    bundle: Bundle,
    module: ModuleName,
    *,
    precision: Precision = "fp32",
    state_dir: Path | None = None,
    compile_missing: bool = True,
    memory: Callable[[], DeviceMemory] = open_memory,
) -> Engine:
    """A TensorRT engine that takes its plan from the store on entering.

    A plan that is missing, damaged or another machine's is compiled there and then, or is a `MissingPlanError`.
    """
    _check_precision(precision)
    settings = BuildSettings()
    store = PlanStore(plans_folder(state_dir))

    def plan_for(gpu: Gpu) -> bytes:
        stored = store.newest(_key(bundle, module, precision, gpu, settings))
        if not stored.parity.accepted:
            raise EngineError(
                f"{module} {precision} was refused for {bundle.model_id} by the parity gate: {stored.parity.refusals[0]}; "
                "use another precision or engine"
            )
        return stored.plan

    def compile_for(gpu: Gpu) -> bytes:
        build_plan(bundle, module, precision=precision, state_dir=state_dir, settings=settings, memory=memory)
        return plan_for(gpu)

    return TensorRtEngine(
        module,
        (bundle.frame.height, bundle.frame.width),
        plan_for,
        compile_for=compile_for if compile_missing else None,
        precision=precision,
        memory=memory,
    )


def build_in_child(
    bundle: Bundle, kind: EngineKind, *, precision: Precision, state_dir: Path, stop: threading.Event
) -> Engine:
    """Compile in a process of its own, behind all others, and give the engine; `stop` ends the process.

    The builder keeps a core busy for minutes and some of it holds Python's lock, which a station must not feel.
    Raises `EngineError` with the child's last words, or when it was stopped.
    """
    assert kind in ("tensorrt", "tensorrt_rtx"), kind
    command = [sys.executable, "-m", "flawline_inspect.cli", "build", bundle.source, "--engine", kind]
    command += ["--precision", precision, "--state-dir", str(state_dir), "--niceness", "10"]
    # The child reads the file again, and may not be told less about whose signature it must have.
    asked = {KEY_VARIABLE: str(bundle.public_key)} if bundle.public_key is not None else {}
    with tempfile.TemporaryFile() as said:  # not a pipe, which a talkative builder could fill
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, **asked}
        )
        try:
            while child.poll() is None and not stop.wait(_POLL_S):
                pass
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(_END_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        if stop.is_set():
            raise EngineError("the build was stopped")
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if child.returncode != 0:
        last = lines[-1].strip() if lines else "it says nothing"
        raise EngineError(f"`flawline build` for {kind} ended with {child.returncode}: {last}")
    return open_tensorrt(bundle, kind, precision=precision, state_dir=state_dir, compile_missing=False)


def _check_precision(precision: Precision) -> None:
    if precision == "bf16":
        raise EngineError("TensorRT has no precision bf16 here; use fp16, int8 or fp32")


def _key(bundle: Bundle, module: ModuleName, precision: Precision, gpu: Gpu, settings: BuildSettings) -> PlanKey:
    frame = bundle.frame
    return PlanKey(
        onnx_sha256=hashlib.sha256(model_for(bundle, precision)).hexdigest(),
        module=module,
        version=str(load_module(module).__version__),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        precision=precision,
        shapes=f"1-1-{settings.max_batch}x{frame.height}x{frame.width}x3",
    )
