"""From a bundle to a plan that serves, on a stand-in GPU: compiled, judged, stored, found again, and switched to."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.engines.gpu_stand_ins import LEVEL, FakeMemory, FakeTensorRt, answers, plan_bytes
from tests.inspect_.bundles import png, small_manifest
from tests.train_.parts import level_onnx

from flawline_engines import build as build_module
from flawline_engines import engine as engine_module
from flawline_engines import open_engine
from flawline_engines.build import build_in_child, build_plan, open_tensorrt
from flawline_engines.build_command import build
from flawline_engines.engine import FirstThatWorks, MissingPlanError, installed_kinds
from flawline_engines.tensorrt import BuildSettings
from flawline_inspect.bundle import MODEL, Bundle, bundle_bytes
from flawline_inspect.errors import EngineError, InputError
from flawline_inspect.signature import new_key_pair, sign

SIDE = 32
HW = (SIDE, SIDE)
THRESHOLD = 40.0


def level_picture(level: int) -> NDArray[np.uint8]:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def level_golden() -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    entries, members = [], {}
    for label, levels in (("good", (95, 105, 110)), ("damaged", (0, 180, 255))):
        for i, level in enumerate(levels):
            name = f"golden/{label}{i}.png"
            members[name] = png(level_picture(level))
            entries.append({"raw": name, "fitted": name, "label": label, "score": float(abs(level - LEVEL))})
    return entries, members


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle whose graph says what the stand-in's plans say, but for `expected`, which nobody judges."""
    entries, members = level_golden()
    manifest = small_manifest(golden=entries)
    manifest["calibration"]["threshold"] = THRESHOLD
    made = tmp_path / "level.flawline"
    made.write_bytes(bundle_bytes(manifest, {MODEL: level_onnx(HW, level=LEVEL), **members}))
    return made


class Machine:
    """A stand-in GPU with TensorRT; `compiled` counts, `plan` is what its compiler gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = FakeMemory()
        self.trt = FakeTensorRt(self.memory)
        self.plan = plan_bytes(HW, max_batch=4)
        self.compiled = 0
        self.timing_caches: list[bytes] = []
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)
        monkeypatch.setattr(build_module, "compile_plan", self._compile)

    def _compile(self, name: str, model: bytes, *, timing_cache: bytes, **_: Any) -> tuple[bytes, bytes]:
        self.compiled += 1
        self.timing_caches.append(timing_cache)
        return self.plan, b"measured"

    def build(self, path: Path, **options: Any) -> Any:
        return build_plan(Bundle.open(path), "tensorrt", memory=lambda: self.memory, **options)

    def engine(self, path: Path, **options: Any) -> Any:
        return open_tensorrt(Bundle.open(path), "tensorrt", memory=lambda: self.memory, **options)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


# --- building and opening --------------------------------------------------------------------------------------------


def test_what_was_built_serves(machine: Machine, path: Path, tmp_path: Path) -> None:
    """Compiled once, judged, stored with its judgement; opening it compiles nothing."""
    built = machine.build(path, state_dir=tmp_path)
    assert built.parity.accepted and built.path.parent == tmp_path / "plans" and built.path.exists()
    assert (built.gpu.name, built.n_bytes) == ("Stand-in 4000", len(machine.plan))
    sidecar = json.loads(built.path.with_suffix(".json").read_text())
    assert sidecar["key"]["shapes"] == "1-1-16x32x32x3" and sidecar["parity"]["refusals"] == []
    frames = np.stack([level_picture(90), level_picture(200)])
    with machine.engine(path, state_dir=tmp_path) as engine:
        for values, expected in zip(engine.infer(frames), answers(frames).values(), strict=True):
            np.testing.assert_array_equal(values, expected)
    assert machine.compiled == 1
    machine.memory.assert_clean()


def test_the_plan_that_was_built_last_serves(machine: Machine, path: Path, tmp_path: Path) -> None:
    """Whatever its largest batch; nothing is compiled for another one."""
    machine.build(path, state_dir=tmp_path)
    for max_batch in (1, 3):
        machine.plan = plan_bytes(HW, max_batch=max_batch)
        built = machine.build(path, state_dir=tmp_path, settings=BuildSettings(max_batch=max_batch))
        os.utime(built.path.with_suffix(".json"), ns=(0, time.time_ns() + max_batch * 10**9))  # noqa: TID251 - a file's
        with machine.engine(path, state_dir=tmp_path, compile_missing=False) as engine:
            assert engine._runner.max_batch == max_batch
            assert engine.infer(np.stack([level_picture(95)] * 4)).scores.tolist() == [5.0] * 4
    assert machine.compiled == 3


def test_a_second_build_begins_with_the_first_ones_measurements(machine: Machine, path: Path, tmp_path: Path) -> None:
    """TensorRT's timing cache is kept for the GPU."""
    machine.build(path, state_dir=tmp_path)
    machine.build(path, state_dir=tmp_path, settings=BuildSettings(max_batch=8))
    assert machine.timing_caches == [b"", b"measured"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "other version"])
def test_a_plan_that_cannot_be_used_is_compiled_anew(
    machine: Machine, path: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By name at once and with a warning; `auto` leaves it alone and says so."""
    if damage != "missing":
        built = machine.build(path, state_dir=tmp_path)
        if damage == "truncated":
            built.path.write_bytes(machine.plan[:-1])
        else:
            machine.trt.__version__ = "10.16.2.10"
    before = machine.compiled
    with pytest.raises(MissingPlanError):
        machine.engine(path, state_dir=tmp_path, compile_missing=False).__enter__()
    assert machine.compiled == before
    with caplog.at_level(logging.WARNING), machine.engine(path, state_dir=tmp_path) as engine:
        assert engine.infer(level_picture(90)[None]).scores == 10
    assert machine.compiled == before + 1 and "compiling for Stand-in 4000" in caplog.text
    with machine.engine(path, state_dir=tmp_path):
        assert machine.compiled == before + 1
    machine.memory.assert_clean()


def test_a_plan_in_a_bundle_is_never_taken(machine: Machine, tmp_path: Path) -> None:
    """It is machine code, and a bundle comes from elsewhere: only what was built here runs."""
    entries, members = level_golden()
    manifest = small_manifest(golden=entries)
    manifest["calibration"]["threshold"] = THRESHOLD
    path = tmp_path / "foreign.flawline"
    path.write_bytes(
        bundle_bytes(manifest, {MODEL: level_onnx(HW, level=LEVEL), **members, "model.plan": machine.plan})
    )
    with pytest.raises(MissingPlanError, match="no plan of this model is compiled"):
        machine.engine(path, state_dir=tmp_path / "state", compile_missing=False).__enter__()
    assert not (tmp_path / "state").exists() or not list((tmp_path / "state").rglob("*.plan"))


def test_a_refused_plan_is_kept_and_never_served(
    machine: Machine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate's word is stored, so that nobody compiles it again and again."""
    from tests.engines import gpu_stand_ins

    def wrong(frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        told = answers(frames)
        return {**told, "scores": told["scores"] * 0}

    monkeypatch.setattr(gpu_stand_ins, "answers", wrong)
    built = machine.build(path, state_dir=tmp_path)
    assert not built.parity.accepted
    for _ in range(2):
        with pytest.raises(EngineError, match=r"tensorrt fp32 was refused for bottle-\w+ by the parity gate: golden"):
            machine.engine(path, state_dir=tmp_path).__enter__()
    assert machine.compiled == 1
    machine.memory.assert_clean()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_that_the_bundle_has_not(machine: Machine, path: Path, tmp_path: Path, precision: Any) -> None:
    """The command that adds it."""
    with pytest.raises(
        EngineError, match=rf"has no {precision} graph .*`flawline quantize .* --precisions {precision}`"
    ):
        machine.build(path, state_dir=tmp_path, precision=precision)
    with pytest.raises(EngineError, match="has no"):
        open_engine(Bundle.open(path), "tensorrt", precision=precision)


def test_bf16_is_not_tensorrts(machine: Machine, path: Path, tmp_path: Path) -> None:
    """It would need a graph of its own."""
    with pytest.raises(EngineError, match="no precision bf16"):
        machine.build(path, state_dir=tmp_path, precision="bf16")


# --- auto ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`auto` sees TensorRT and a driver here."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: True if name == "tensorrt" else
                        None if name == "tensorrt_rtx" else find(name, *rest))  # fmt: skip
    monkeypatch.setattr(engine_module, "_has_driver", lambda: True)
    monkeypatch.setattr(build_module, "open_memory", lambda: machine.memory)
    real = build_module.open_tensorrt

    def opened(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **{**options, "memory": lambda: machine.memory})

    monkeypatch.setattr(build_module, "open_tensorrt", opened)
    return machine


def test_auto_takes_the_gpu_when_its_plan_is_there(with_gpu: Machine, path: Path, tmp_path: Path) -> None:
    """First in the order."""
    with_gpu.build(path, state_dir=tmp_path)
    assert installed_kinds()[0] == "tensorrt"
    with open_engine(Bundle.open(path), state_dir=tmp_path) as engine:
        assert engine.kind == "tensorrt"
    with_gpu.memory.assert_clean()


def test_auto_serves_without_the_gpu_until_its_plan_is_there(
    with_gpu: Machine, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It steps down with the reason, and tells which engine is worth compiling for."""
    opening = open_engine(Bundle.open(path), state_dir=tmp_path)
    assert isinstance(opening, FirstThatWorks) and opening.worth_building is None
    with caplog.at_level(logging.WARNING), opening as engine:
        assert engine.kind in ("openvino", "onnxruntime")
    assert opening.worth_building == "tensorrt" and with_gpu.compiled == 0
    assert "engine tensorrt is left out: no plan of this model is compiled for Stand-in 4000 yet" in caplog.text
    with_gpu.memory.assert_clean()


def test_auto_does_not_wait_for_a_refused_plan(with_gpu: Machine, path: Path, tmp_path: Path) -> None:
    """It was compiled and refused: compiling it again would give the same."""
    built = with_gpu.build(path, state_dir=tmp_path)
    sidecar = built.path.with_suffix(".json")
    tree = json.loads(sidecar.read_text())
    tree["parity"]["refusals"] = ["it flips"]
    sidecar.write_text(json.dumps(tree))
    opening = open_engine(Bundle.open(path), state_dir=tmp_path)
    with opening as engine:
        assert engine.kind != "tensorrt"
    assert isinstance(opening, FirstThatWorks) and opening.worth_building is None


# --- the child process -----------------------------------------------------------------------------------------------


def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """The next child is this program instead of `flawline build`."""
    script = tmp_path / "child.py"
    script.write_text(code, encoding="utf-8")
    real = build_module.subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        assert command[1:4] == ["-m", "flawline_inspect.cli", "build"] and "--niceness" in command
        return real([sys.executable, str(script), *command[4:]], **options)

    monkeypatch.setattr(build_module.subprocess, "Popen", started)


def in_child(path: Path, tmp_path: Path, stop: threading.Event | None = None) -> Any:
    return build_in_child(
        Bundle.open(path), "tensorrt", precision="fp32", state_dir=tmp_path, stop=stop or threading.Event()
    )


def test_a_child_that_succeeds_gives_the_engine(
    with_gpu: Machine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is found where the child put it."""
    with_gpu.build(path, state_dir=tmp_path)
    child(monkeypatch, tmp_path, "import sys; assert '--state-dir' in sys.argv")
    with in_child(path, tmp_path) as engine:
        assert engine.kind == "tensorrt"
    assert with_gpu.compiled == 1


def test_a_child_asks_for_the_same_signature(
    with_gpu: Machine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the file again: what was asked of the station's bundle is asked there, too."""
    private, public = new_key_pair(None)
    (tmp_path / "plant.key").write_bytes(private)
    (tmp_path / "plant.pub").write_bytes(public)
    unsigned = Bundle.open(path)
    signed = tmp_path / "signed.flawline"
    signed.write_bytes(unsigned.signed(sign(unsigned.manifest_bytes, tmp_path / "plant.key", None)))
    child(monkeypatch, tmp_path, "import os, sys; sys.exit(os.environ.get('FLAWLINE_PUBLIC_KEY', 'none'))")
    for bundle, asked in ((Bundle.open(signed, public_key=tmp_path / "plant.pub"), "plant.pub"), (unsigned, "none")):
        with pytest.raises(EngineError, match=rf"ended with 1: .*{asked}$"):
            build_in_child(bundle, "tensorrt", precision="fp32", state_dir=tmp_path, stop=threading.Event())


def test_a_child_that_fails_is_quoted(
    with_gpu: Machine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line, whatever it said before."""
    child(monkeypatch, tmp_path, "import sys; print('x' * 200_000); sys.exit('flawline: the GPU is full')")
    with pytest.raises(EngineError, match=r"`flawline build` for tensorrt ended with 1: flawline: the GPU is full"):
        in_child(path, tmp_path)


@pytest.mark.parametrize("stubborn", [False, True], ids=["ends when asked", "has to be killed"])
def test_a_child_is_stopped(
    with_gpu: Machine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    """A station that stops leaves no compiler behind."""
    monkeypatch.setattr(build_module, "_END_S", 0.5)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""
    pid_file = tmp_path / "pid"
    child(
        monkeypatch,
        tmp_path,
        f"import os, pathlib, signal, time\n{ignore}\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(60)",
    )
    stop = threading.Event()

    def later() -> None:
        until = time.monotonic() + 20
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=later).start()
    with pytest.raises(EngineError, match="the build was stopped"):
        in_child(path, tmp_path, stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_builds_and_judges(
    machine: Machine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 and a table; a plan that the gate refuses ends with 1."""
    monkeypatch.setattr(build_module, "open_memory", lambda: machine.memory)
    defaults = dict(build_plan.__kwdefaults__)
    monkeypatch.setattr(build_plan, "__kwdefaults__", {**defaults, "memory": lambda: machine.memory})
    assert build(path, engine="tensorrt", state_dir=tmp_path) == 0
    out = capsys.readouterr().out
    assert "accepted" in out and "for Stand-in 4000 (compute capability 8.7)" in out
    from tests.engines import gpu_stand_ins

    monkeypatch.setattr(
        gpu_stand_ins, "answers", lambda frames: {**answers(frames), "heatmaps": answers(frames)["heatmaps"] * 2}
    )
    assert build(path, engine="tensorrt", state_dir=tmp_path) == 1
    assert "refused" in capsys.readouterr().out


def test_the_command_without_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence; with neither TensorRT installed, the lines that install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(
        EngineError, match=r"neither tensorrt nor tensorrt_rtx is installed; pip install 'flawline\[tensorrt\]'"
    ):
        build(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": 6}, "--level is 6, expected 0 to 5"),
        ({"level": -1}, "--level is -1"),
        ({"workspace_mb": 1}, "--workspace-mb is 1, expected 16"),
        ({"max_batch": 0}, "--max-batch is 0, expected 1 to 64"),
        ({"niceness": -5}, "--niceness is -5, expected 0 to 19"),
    ],
)
def test_wrong_options(path: Path, options: dict[str, Any], said: str) -> None:
    """Before anything is done."""
    with pytest.raises(InputError, match=said):
        build(path, **options)


def test_builder_only_needs_no_gpu(
    path: Path, capsys: pytest.CaptureFixture[str], unavailable: Callable[[str], Any]
) -> None:
    """The real compiler, each precision that the bundle has, and nothing is stored."""
    if not importlib.util.find_spec("tensorrt_rtx"):
        unavailable("tensorrt_rtx is not installed")
    assert build(path, builder_only=True) == 0
    out = capsys.readouterr().out
    assert "fp32: compiles; not run" in out and "fp16" not in out


@pytest.mark.needs_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_a_real_gpu(kind: Any, tmp_path: Path) -> None:
    """The shipped bundle on the GPU of this machine: compiled, accepted, and right for every size of batch."""
    pytest.importorskip(kind)
    from flawline_edge.demo_command import DEMO_BUNDLE
    from flawline_engines.onnx_runtime import OnnxRuntimeEngine

    bundle = Bundle.open(DEMO_BUNDLE)
    built = build_plan(bundle, kind, state_dir=tmp_path)
    assert built.parity.accepted, built.parity.refusals
    frames = np.stack([golden.fitted for golden in bundle.golden()] * 2)
    with OnnxRuntimeEngine(bundle.member(MODEL), frames.shape[1:3]) as reference:
        expected = reference.infer(frames).scores
    with open_tensorrt(bundle, kind, state_dir=tmp_path, compile_missing=False) as engine:
        np.testing.assert_allclose(engine.infer(frames).scores, expected, rtol=1e-3)
        for _ in range(6):  # the last of them from a CUDA graph, where there are any
            np.testing.assert_allclose(engine.infer(frames[:1]).scores, expected[:1], rtol=1e-3)
