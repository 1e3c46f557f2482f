"""A station whose GPU loses its context in the middle of the parts: one part is lost to it, the station goes on by itself.

On stand-ins of TensorRT and a GPU; tests/engines/test_gpu.py does the same to a real one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.edge.stand_ins import (
    BAD_LEVEL,
    GOOD_LEVEL,
    OK_LEVEL,
    PER_UNIT,
    SPEC,
    ListCamera,
    Wire,
    config,
    run_to_end,
    wire,
)
from tests.engines import gpu_stand_ins
from tests.engines.gpu_stand_ins import FakeMemory, FakeTensorRt, plan_bytes

from flawline_edge.station import Station
from flawline_engines import build as build_module
from flawline_engines.build import build_plan, open_tensorrt

__all__ = ["wire"]  # the fixture

PARTS = 30


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """A GPU that says what the level bundle's graph says."""
    made = FakeMemory(has_graphs=True)

    def answers(frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        heatmaps = (np.abs(frames.astype(np.float32).mean(3) - GOOD_LEVEL) / PER_UNIT).astype(np.float32)
        return {"scores": heatmaps.max((1, 2)), "heatmaps": heatmaps, "expected": frames}

    monkeypatch.setattr(gpu_stand_ins, "answers", answers)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(made))
    monkeypatch.setattr(
        build_module, "compile_plan", lambda *_, **__: (plan_bytes((SPEC.height, SPEC.width), max_batch=16), b"")
    )
    for function in (build_plan, open_tensorrt):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, "memory": lambda: made})
    return made


def test_the_station_goes_on_in_a_new_context(tmp_path: Path, wire: Wire, memory: FakeMemory) -> None:
    """Every part has its one verdict, in order; the one that the failure hit is 0 `engine`, and none that is wrong passes."""

    class Camera(ListCamera):
        def read(self) -> Any:
            frame = super().read()
            memory.is_lost = memory.is_lost or (frame is not None and frame.part == "P10")
            return frame

    station = Station(
        config(tmp_path, engine={"kind": "tensorrt"}), camera=Camera([OK_LEVEL, BAD_LEVEL] * (PARTS // 2))
    )
    assert run_to_end(station) == 0
    told = wire.told
    assert [verdict.part for verdict in told] == [f"P{n}" for n in range(1, PARTS + 1)]
    lost = [verdict for verdict in told if verdict.result == 0]
    assert len(lost) == 1 and lost[0].reason == "engine"
    assert all(int(verdict.result) in (0, 1 + n % 2) for n, verdict in enumerate(told))
    assert memory.calls.count("reset") == 1
    memory.assert_clean()
