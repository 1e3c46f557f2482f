"""flawline small on an NVIDIA GPU: TensorRT beside torch and ONNX Runtime, and what the card could do.

Each system is a process of its own and takes all batches of one frame size. What one cannot do, such as TensorRT-RTX on a GPU that
it does not know, is a line as well, with what it said.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

from benchmarks.speed.contenders import FLAWLINE, GPU_BATCHES, Contender, Runtime
from benchmarks.speed.experiments import Case, Say, Settings
from benchmarks.speed.gpu import way_of
from benchmarks.speed.race import LateError, RaceError, ask, make, race

from flawline_engines.bench import graph_cost
from flawline_engines.engine import model_for
from flawline_engines.roofline import traffic
from flawline_inspect.bundle import MODEL, Bundle

__all__ = ["GPU_SIZES", "cases", "why_not"]

GPU_SIZES = (256, 512, 1024)
LIMITS = "limits"
SYSTEM = f"{FLAWLINE}small"
PRECISIONS: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
TENSORRT: tuple[Runtime, ...] = ("tensorrt", "tensorrt_rtx")
TORCH: tuple[Runtime, ...] = ("torch cuda", "torch cuda compiled", "torch cuda graph")


def why_not() -> str:
    """Why this machine has nothing to measure, or nothing."""
    import torch

    if not torch.cuda.is_available():
        return "torch finds no NVIDIA driver, or is built without CUDA"
    return ""


def cases(settings: Settings) -> list[Case]:
    """The card's limits, then every system at 256 px, then at 512 and at 1024."""
    found = [Case("gpu", "all", LIMITS, GPU_SIZES[0], _limits(settings))]
    for size in GPU_SIZES:
        field: list[Contender] = []
        for runtime in TENSORRT:
            for precision in PRECISIONS:
                field += [Contender(SYSTEM, runtime, precision, graphs=graphs) for graphs in (True, False)]
        field += [Contender(SYSTEM, runtime, precision) for runtime in TORCH for precision in PRECISIONS[:2]]
        field += [Contender(SYSTEM, "onnxruntime cuda", precision) for precision in PRECISIONS]
        for each in field:
            contender = replace(each, size=size, threads=settings.threads)
            name = contender.runtime + ("" if contender.graphs else ", no graph")
            found.append(Case("gpu", "all", f"{name}, {contender.precision}", size, _measure(contender, settings)))
    return found


def _measure(contender: Contender, settings: Settings) -> Callable[[Say, float], dict[str, Any]]:
    def measure(say: Say, limit_s: float) -> dict[str, Any]:
        ways = [way_of(batch) for batch in GPU_BATCHES]
        facts = {"gpu": gpu_facts(), "precision": contender.precision}
        try:
            [figures] = race([contender], ways, settings.work, seconds=settings.seconds, limit_s=limit_s, say=say)
        except LateError:
            raise
        except RaceError as exc:
            say(f"    refused: {exc}")
            return {**facts, "refused": {"all": str(exc)}}
        return {**facts, **figures}

    return measure


def _limits(settings: Settings) -> Callable[[Say, float], dict[str, Any]]:
    def measure(say: Say, limit_s: float) -> dict[str, Any]:
        say("    large convolutions, and copies within the GPU's memory")
        found = ask("benchmarks.speed.gpu", time.monotonic() + limit_s, settings.work)
        return {"gpu": gpu_facts(), **found, "graph": _graph_of(settings, say, time.monotonic() + limit_s)}

    return measure


def _graph_of(settings: Settings, say: Say, until: float) -> dict[str, Any]:
    """What one frame takes by arithmetic and through memory, by size and precision."""
    found: dict[str, Any] = {}
    for size in GPU_SIZES:
        contender = Contender(SYSTEM, "tensorrt", size=size)
        make([contender], settings.work, until, say)
        file = contender.file(settings.work)
        assert file is not None
        bundle = Bundle.open(file)
        cost = graph_cost(bundle.member(MODEL), (size, size))
        for precision in PRECISIONS:
            moved = traffic(model_for(bundle, precision), (size, size), cost, precision)
            found[f"{size} {precision}"] = {"gflop": cost.gflop, **asdict(moved)}
    return found


def gpu_facts() -> dict[str, str]:
    """Name, driver and CUDA of the first GPU, as far as the system says them."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
        fields = "name,driver_version,memory.total,clocks.max.sm"
        command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
        names = ("name", "driver", "memory", "clock")
        found |= dict(zip(names, (word.strip() for word in told.split(",")), strict=True))
    for module in ("tensorrt", "tensorrt_rtx", "onnxruntime", "torch"):
        with contextlib.suppress(Exception):
            if importlib.util.find_spec(module):
                found[module] = str(importlib.import_module(module).__version__)
    return found
