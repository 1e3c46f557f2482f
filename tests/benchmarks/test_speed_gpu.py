"""The GPU benchmark, on stand-ins: what each contender does, what is refused, and the tables. A GPU runs it as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.accuracy.runs import Key, Machine, Measured, Run
from benchmarks.speed import gpu, gpu_cases
from benchmarks.speed.__main__ import main
from benchmarks.speed.contenders import GPU_BATCHES, Contender
from benchmarks.speed.experiments import Settings
from benchmarks.speed.gpu import opened_on_gpu, way_of
from benchmarks.speed.race import LateError, RaceError
from benchmarks.speed.tables import all_tables
from tests.engines.gpu_stand_ins import FakeMemory, FakeTensorRt, plan_bytes
from tests.inspect_.bundles import small_manifest

from flawline_engines.bench import convolution_model
from flawline_inspect.bundle import MODEL, save_bundle
from flawline_inspect.errors import EngineError

SIDE = 32


@pytest.fixture
def contender(tmp_path: Path) -> Contender:
    """Its bundle is convolutions alone."""
    made = Contender("flawline small", "tensorrt", "fp16", size=SIDE)
    path = made.file(tmp_path)
    assert path is not None
    model = convolution_model(4, SIDE)
    save_bundle(path, small_manifest(golden=[]), {MODEL: model, "model.fp16.onnx": model})
    return made


# --- a contender's process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [True, False])
def test_tensorrt_takes_every_batch(
    contender: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """Compiled once for all of them, and kept for the process that measures without graphs."""
    memory = FakeMemory(has_graphs=True)
    compiled: list[int] = []

    def compile_plan(name: str, model: bytes, *, settings: Any) -> tuple[bytes, bytes]:
        compiled.append(settings.max_batch)
        return plan_bytes((SIDE, SIDE), max_batch=settings.max_batch), b""

    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(memory))
    monkeypatch.setattr(gpu, "compile_plan", compile_plan)
    monkeypatch.setattr(gpu, "open_memory", lambda kind: memory)
    made = Contender(**{**vars_of(contender), "graphs": graphs})
    for _ in range(2):
        with opened_on_gpu(made, tmp_path) as ways:
            assert list(ways) == [way_of(batch) for batch in GPU_BATCHES]
            for batch in GPU_BATCHES:
                for _ in range(4):
                    assert ways[way_of(batch)]().scores.shape == (batch,)  # type: ignore[attr-defined]
        memory.assert_clean()
    assert compiled == [64]
    assert ("launch" in memory.calls) == graphs


def vars_of(contender: Contender) -> dict[str, Any]:
    return {name: getattr(contender, name) for name in contender.__dataclass_fields__}


def test_onnxruntime_takes_every_batch(contender: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU by its own name only: here it says that it has none."""
    made = Contender(**{**vars_of(contender), "runtime": "onnxruntime cuda", "precision": "fp32"})
    with pytest.raises(EngineError, match="no cuda backend"), opened_on_gpu(made, tmp_path):
        pass
    monkeypatch.setattr(gpu, "PROVIDER", "cpu")
    with opened_on_gpu(made, tmp_path) as ways:
        assert ways["batch-2"]().scores.shape == (2,)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("runtime", ["torch cuda", "torch cuda graph"])
def test_torch_takes_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
    """The whole graph, and its results are those of the graph."""
    import torch
    from benchmarks.speed.models import inspection_graph

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    size = 64
    with opened_on_gpu(Contender("flawline nano", runtime, size=size), tmp_path) as ways:
        for _ in range(2):
            scores, heatmaps, expected = ways["batch-2"]()  # type: ignore[misc]
    with torch.inference_mode():
        told = inspection_graph("nano", size)(torch.from_numpy(gpu.frames_of(size, 2)))
    for ours, theirs in zip((scores, heatmaps, expected), told, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1)


def test_the_cards_limits_are_the_best_of_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine says that cannot be measured is kept."""

    def peak(kind: str, *, precision: str) -> float:
        if kind == "tensorrt_rtx":
            raise EngineError("tensorrt_rtx cannot load the plan (UNSUPPORTED_CC)")
        return {"fp32": 50.0, "fp16": 500.0, "int8": 900.0}[precision]

    def copy(memory: object) -> float:
        raise EngineError("there is no NVIDIA GPU")

    monkeypatch.setattr(gpu, "peak_gflops", peak)
    monkeypatch.setattr(gpu, "_torch_peak", lambda half: 400.0 if half else 60.0)
    monkeypatch.setattr(gpu, "open_memory", lambda kind: None)
    monkeypatch.setattr(gpu, "gpu_copy_gb_per_s", copy)
    found = gpu.card_limits()
    assert found["peaks"] == {"fp32": 60.0, "fp16": 500.0, "int8": 900.0} and found["copy_gb_per_s"] is None
    assert found["said"].keys() == {"tensorrt_rtx", "copy"}


# --- the cases -----------------------------------------------------------------------------------------------------------


def test_the_cases_are_those_asked_for(tmp_path: Path) -> None:
    """TensorRT in three precisions with and without graphs, torch in three ways, ONNX Runtime, at each size; the limits first."""
    found = gpu_cases.cases(Settings(tmp_path, threads=1))
    names = {(each.size, each.name) for each in found[1:]}
    for size in (256, 512, 1024):
        for module in ("tensorrt", "tensorrt_rtx"):
            for precision in ("fp32", "fp16", "int8"):
                assert {(size, f"{module}, {precision}"), (size, f"{module}, no graph, {precision}")} <= names
        for runtime in ("torch cuda", "torch cuda compiled", "torch cuda graph", "onnxruntime cuda"):
            assert {(size, f"{runtime}, fp32"), (size, f"{runtime}, fp16")} <= names
    assert len(names) == len(found) - 1 == 3 * 21 and found[0].name == "limits"


def test_a_refusal_is_a_line_and_a_timeout_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine does not do it will not do the next time either; what was too slow is tried again."""
    case = next(each for each in gpu_cases.cases(Settings(tmp_path, threads=1)) if each.name == "tensorrt_rtx, fp16")
    errors: list[RaceError] = [RaceError("ended: UNSUPPORTED_CC"), LateError("took longer than its time")]
    monkeypatch.setattr(gpu_cases, "race", lambda *_, **__: (_ for _ in ()).throw(errors[0]))
    assert case.measure(lambda _: None, 10)["refused"] == {"all": "ended: UNSUPPORTED_CC"}
    monkeypatch.setattr(gpu_cases, "race", lambda *_, **__: (_ for _ in ()).throw(errors[1]))
    with pytest.raises(LateError):
        case.measure(lambda _: None, 10)


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases, "why_not", lambda: "torch finds no NVIDIA driver")
    assert main(["gpu"]) == 2
    assert "there is no GPU to measure: torch finds no NVIDIA driver" in " ".join(capsys.readouterr().err.split())


def test_what_the_driver_says_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, driver and clock, beside the versions of what is installed; without the program the versions alone."""
    told = SimpleNamespace(stdout="NVIDIA H200, 580.65.06, 143771 MiB, 1980 MHz\n")
    monkeypatch.setattr(gpu_cases.subprocess, "run", lambda *_, **__: told)
    found = gpu_cases.gpu_facts()
    assert (found["name"], found["driver"], found["clock"]) == ("NVIDIA H200", "580.65.06", "1980 MHz")
    assert "torch" in found

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(gpu_cases.subprocess, "run", missing)
    assert "driver" not in gpu_cases.gpu_facts()


# --- the table -----------------------------------------------------------------------------------------------------------


def line(method: str, figures: dict[str, Any], size: int = 256) -> Run:
    key = Key("gpu", "all", method, "16 threads", 0, "2 s", size, "c0de", Machine("Some CPU", 16, 16, "H200"))
    return Run(key, Measured({"gpu": {"name": "H200", "driver": "580"}, **figures}, 60.0), "abc", "2026-12-01", 0.5, {})


def ways(ms_at_1: float, ms_at_32: float) -> dict[str, Any]:
    return {
        "batch-1": {"median_ms": ms_at_1},
        "batch-32": {"median_ms": ms_at_32},
        "refused": {"batch-64": "no memory"},
    }


def test_the_table_tells_batches_goals_and_refusals() -> None:
    """32 frames of 2 GFLOP at 100 TFLOP/s are 0.64 ms; their 32 * 10 MB at 1000 GB/s are 0.32 ms: half of 1.28 ms."""
    graph = {"256 fp16": {"gflop": 2.0, "weights": 0, "picture": 4_000_000, "layers": 6_000_000}}
    limits = {
        "peaks": {"fp16": 100e3},
        "copy_gb_per_s": 1000.0,
        "said": {"tensorrt_rtx": "UNSUPPORTED_CC"},
        "graph": graph,
    }
    runs = [
        line("limits", limits),
        line("tensorrt, fp16", {"precision": "fp16", **ways(0.25, 1.28)}),
        line("torch cuda, fp16", {"precision": "fp16", **ways(2.0, 12.8)}),
        line("tensorrt_rtx, fp16", {"precision": "fp16", "refused": {"all": "UNSUPPORTED_CC"}}),
    ]
    text = all_tables([Run.from_line(each.to_line()) for each in runs])
    assert "name H200, driver 580." in text and "fp16 100 TFLOP/s" in text
    assert "| tensorrt, fp16 | 0.25 |  |  |  |  | 1.28 |  | 50% |" in text
    assert "| torch cuda, fp16 | 2.00 |  |  |  |  | 12.8 |  | 5% |" in text
    assert "One frame of 256 px in fp16: 0.25 ms (tensorrt, fp16); the goal is 0.5." in text
    assert "32 frames of 256 px: 50% of the card's limit (tensorrt, fp16); the goal is 60%." in text
    assert (
        "tensorrt_rtx, fp16, 256 px: UNSUPPORTED_CC." in text and "tensorrt, fp16, 256 px, batch-64: no memory." in text
    )
    assert json.loads(runs[0].to_line())["figures"]["peaks"]


def test_without_the_limits_there_is_no_share() -> None:
    text = all_tables([line("tensorrt, fp16", {"precision": "fp16", **ways(0.25, 1.28)})])
    assert "| tensorrt, fp16 | 0.25 |" in text and "of the card's limit (" not in text
