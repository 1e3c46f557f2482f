"""The roofline: what the machine could do at best, and how much of it an engine reaches.

A call cannot be faster than its operations at the rate of large convolutions, nor than its bytes at the rate of copying: the
weights, once, and each frame's picture and results. What the layers hand to each other is no part of that bound, since caches
may keep it; how long it would take through memory is told beside it. (Williams, Waterman, Patterson: Roofline, 2009,
https://doi.org/10.1145/1498765.1498785)
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flawline_engines.bench import GraphCost
from flawline_engines.engine import Precision, timed_ms
from flawline_engines.gpu_memory import DeviceMemory, GpuThread
from flawline_engines.onnx_file import weight_bytes

__all__ = ["Bound", "Traffic", "bound", "copy_gb_per_s", "gpu_copy_gb_per_s", "traffic"]

VALUE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Of a value that one convolution hands to the next."""
COPY_MIB = 128
"""Read and written at a time by all threads together: more than the caches of most machines hold."""
COPY_SECONDS = 0.5
MIN_COPIES = 10
GPU_COPY_MIB = 1024
GPU_COPIES = 10
_COPIES_AT_ONCE = 8
"""Between two waits, whose own time is then lost in theirs."""

_PICTURE_BYTES = 3 + 4 + 3  # a pixel: the frame, the heatmap in float32, the expected picture


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes: of the weights, which a call reads once; of a frame and its results; of what the layers hand on for a frame."""

    weights: int
    picture: int
    layers: int


@dataclass(frozen=True, slots=True)
class Bound:
    """Milliseconds that one call takes at least: of arithmetic, and of memory. Both go on at the same time."""

    arithmetic_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        return max(self.arithmetic_ms, self.memory_ms)

    @property
    def limited_by(self) -> Literal["arithmetic", "memory"]:
        return "arithmetic" if self.arithmetic_ms >= self.memory_ms else "memory"


def traffic(model: bytes, hw: tuple[int, int], cost: GraphCost, precision: Precision) -> Traffic:
    """Of the graph in `model`, the ONNX file of this precision; `cost` is its count of operations."""
    weights = weight_bytes(model)
    if precision == "bf16":  # no file of its own: the network's weights are rounded when the engine opens
        weights //= 2
    return Traffic(weights, hw[0] * hw[1] * _PICTURE_BYTES + 4, cost.activations * VALUE_BYTES[precision])


def bound(cost: GraphCost, moved: Traffic, batch: int, *, peak_gflops: float, copy_gb_per_s: float) -> Bound:
    """Of one call with `batch` frames, from the machine's measured rates."""
    return Bound(
        arithmetic_ms=1e3 * batch * cost.gflop / peak_gflops,
        memory_ms=1e3 * (moved.weights + batch * moved.picture) / (1e9 * copy_gb_per_s),
    )


def copy_gb_per_s(threads: int = 1, *, mib: int = COPY_MIB, seconds: float = COPY_SECONDS) -> float:
    """Thousand millions of bytes a second, read and written, that `threads` threads copy at best; 0 is one for each core."""
    if not threads:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n = (mib << 20) // 2 // threads
    # Ones, not zeros: memory that was never written is not there yet, and the first copy would fetch its pages.
    pairs = [(np.ones(n, np.uint8), np.ones(n, np.uint8)) for _ in range(threads)]
    best, copies = 0.0, 0
    with ThreadPoolExecutor(threads) as pool:
        until = time.perf_counter() + seconds
        while copies < MIN_COPIES or time.perf_counter() < until:
            begin = time.perf_counter()
            for done in [pool.submit(np.copyto, *pair) for pair in pairs]:  # lets go of Python's lock
                done.result()
            best, copies = max(best, 2 * n * threads / (time.perf_counter() - begin) / 1e9), copies + 1
    return best


def gpu_copy_gb_per_s(memory: DeviceMemory, *, mib: int = GPU_COPY_MIB, runs: int = GPU_COPIES) -> float:
    """The same of a GPU within its own memory; `memory` is not open yet. Raises `EngineError`."""
    n_bytes = (mib << 20) // 2

    def copies() -> float:
        things: list[Any] = []
        try:
            source, target = memory.device(n_bytes), memory.device(n_bytes)
            things += [source, target]
            stream = memory.stream()
            things.append(stream)

            def some() -> None:
                for _ in range(_COPIES_AT_ONCE):
                    memory.duplicate(target, source, n_bytes, stream)
                memory.synchronize(stream)

            some()
            return 2 * n_bytes * _COPIES_AT_ONCE / float(timed_ms(some, runs).min()) / 1e6
        finally:
            while things:
                memory.free(things.pop())

    thread = GpuThread(memory)
    thread.start()
    try:
        return thread.run(copies)
    finally:
        thread.stop()
