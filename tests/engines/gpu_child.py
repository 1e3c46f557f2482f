"""What is done to a real GPU in a process of its own, since a destroyed context may take its process with it.

    python -m tests.engines.gpu_child engine|station reset|assert tensorrt|tensorrt_rtx STATE_DIR

`reset` destroys the primary context under the engine. `assert` fails in a kernel, as a faulty driver or card does: the context
stays, and everything in it fails. Prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_engines.build import open_tensorrt
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import EngineError

PARTS, LOST_AT = 40, 20


def destroy(how: str) -> None:
    if how == "reset":
        assert ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxReset_v2(0) == 0
        return
    import torch

    beyond = torch.tensor([1 << 30], device="cuda")
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="cuda")[beyond].sum().item()


def engine(how: str, module: Any, state_dir: Path) -> dict[str, Any]:
    """The same picture before and after: how many calls failed, and whether the answer is the same, bit for bit."""
    bundle = Bundle.open(DEMO_BUNDLE)
    frames = np.stack([golden.fitted for golden in bundle.golden()][:1])
    errors: list[str] = []
    with open_tensorrt(bundle, module, state_dir=state_dir) as runner:
        before = runner.infer(frames)
        destroy(how)
        for _ in range(4):
            try:
                after = runner.infer(frames)
            except EngineError as exc:
                errors.append(str(exc))
            else:
                same = all(np.array_equal(ours, theirs) for ours, theirs in zip(before, after, strict=True))
                return {"errors": errors, "same": same}
    return {"errors": errors, "same": False}


def station(how: str, module: Any, state_dir: Path) -> dict[str, Any]:
    """A whole station on golden pictures, whose context goes in the middle: how many parts were lost to it."""
    from tests.edge.stand_ins import ListCamera, Wire, config, run_to_end

    from flawline_edge import station as station_module

    pictures = [golden.raw for golden in Bundle.open(DEMO_BUNDLE).golden()]

    class Camera(ListCamera):
        def read(self) -> Any:
            frame = super().read()
            if frame is not None and frame.part == f"P{LOST_AT}":
                destroy(how)
            return frame

    with pytest.MonkeyPatch.context() as patch:
        wire = Wire()
        patch.setattr(station_module, "Publisher", wire)
        recipes = {"recipes": {1: str(DEMO_BUNDLE)}, "engine": {"kind": module}}
        shots = [pictures[i % len(pictures)] for i in range(PARTS)]
        made = station_module.Station(config(state_dir, **recipes), camera=Camera(shots))
        code = run_to_end(made)
    told = wire.told
    return {
        "code": code,
        "parts": [verdict.part for verdict in told] == [f"P{n + 1}" for n in range(PARTS)],
        "lost": sum(verdict.result == 0 for verdict in told),
        "reasons": sorted({verdict.reason.value for verdict in told if verdict.result == 0}),
        "judged_after": sum(verdict.result != 0 for verdict in told[LOST_AT + 3 :]),
    }


if __name__ == "__main__":
    what, how, module, state_dir = sys.argv[1:]
    print(json.dumps({"engine": engine, "station": station}[what](how, module, Path(state_dir))), flush=True)
