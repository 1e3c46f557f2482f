"""Choosing an engine, and what every engine keeps: its errors, its results, its being open or not."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.inspect_.bundles import small_manifest, small_members

import flawline_engines
from flawline_engines import Engine, Inference, open_engine
from flawline_engines import engine as engine_module
from flawline_engines.bench import convolution_model, has_precision
from flawline_engines.engine import installed_kinds, model_for
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.open_vino import OpenVinoEngine
from flawline_inspect.bundle import MODEL, Bundle, bundle_bytes
from flawline_inspect.errors import EngineError

SIDE = 32
HW = (SIDE, SIDE)
KINDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def model() -> bytes:
    """A graph with the contract's input and outputs; `expected` is the frame itself."""
    return convolution_model(16, SIDE)


def bundle_with(model: bytes) -> Bundle:
    return Bundle(bundle_bytes(small_manifest(), small_members() | {MODEL: model}), "test")


@pytest.fixture(scope="module")
def bundle(model: bytes) -> Bundle:
    return bundle_with(model)


def engine_from(kind: str, model: bytes) -> Engine:
    if kind not in installed_kinds():
        pytest.skip(f"{kind} does not run on this machine")
    return OpenVinoEngine(model, HW, threads=1) if kind == "openvino" else OnnxRuntimeEngine(model, HW, threads=1)


def some_frames(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """`without("openvino")`: as if it were not installed."""
    real = importlib.util.find_spec

    def pretend(*absent: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in absent else real(name, *rest)
        )

    return pretend


# --- the choice ------------------------------------------------------------------------------------------------------


def test_public_names() -> None:
    """What the package promises."""
    assert sorted(flawline_engines.__all__) == ["Engine", "EngineKind", "Inference", "Precision", "open_engine"]


def test_auto_takes_the_first_that_works(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said where there is nothing to step down from."""
    with open_engine(bundle) as engine:
        assert engine.kind == installed_kinds()[0]
        assert len(engine.infer(some_frames(2)).scores) == 2
    assert [record for record in caplog.records if "left out" in record.message] == [] or engine.kind != "openvino"


def test_auto_steps_down_and_says_why(bundle: Bundle, without, caplog: pytest.LogCaptureFixture) -> None:
    """Without OpenVINO it is ONNX Runtime, and one warning tells so."""
    without("openvino")
    with caplog.at_level(logging.WARNING), open_engine(bundle, "auto") as engine:
        assert engine.kind == "onnxruntime"
        engine.infer(some_frames(1))
        engine.infer(some_frames(1))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("flawline_engines")]
    if platform.machine() == "x86_64":
        assert said == ["engine openvino is left out: it is not installed"]
    assert len(said) == 1


def test_auto_on_another_processor(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO is for x86: elsewhere it is not even tried, and the warning names the processor."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert installed_kinds() == ["onnxruntime"]
    with caplog.at_level(logging.WARNING), open_engine(bundle) as engine:
        assert engine.kind == "onnxruntime"
    assert "aarch64" in caplog.text


def test_auto_without_any_engine(bundle: Bundle, without) -> None:
    """The error names every engine and its reason."""
    without("openvino", "onnxruntime")
    assert installed_kinds() == []
    with pytest.raises(EngineError, match=r"no engine works here .*openvino: .*onnxruntime: it is not installed"):
        open_engine(bundle).__enter__()


def test_auto_with_a_graph_that_none_can_load() -> None:
    """An engine that cannot load the graph is a reason to step down as well; what each one said is kept."""
    with pytest.raises(EngineError, match="onnxruntime: onnxruntime cannot load the graph") as caught:
        open_engine(bundle_with(b"no graph")).__enter__()
    assert "\n" not in str(caught.value)


def test_auto_before_entering(bundle: Bundle) -> None:
    """Choosing happens on entering, so there is nothing to infer with before."""
    with pytest.raises(EngineError, match="not open"):
        open_engine(bundle).infer(some_frames(1))


@pytest.mark.parametrize("kind", KINDS)
def test_named_engine_is_that_engine(bundle: Bundle, kind: str) -> None:
    """No stepping down from an engine that was asked for by name."""
    if kind not in installed_kinds():
        pytest.skip(f"{kind} does not run on this machine")
    with open_engine(bundle, kind, threads=1) as engine:
        assert (engine.kind, engine.precision) == (kind, "fp32")


def test_unknown_engine(bundle: Bundle) -> None:
    """The error lists those that there are."""
    with pytest.raises(
        EngineError, match="'abacus' is unknown; expected auto, tensorrt, tensorrt_rtx, openvino, onnxruntime"
    ):
        open_engine(bundle, "abacus")  # type: ignore[arg-type]


def test_bf16_on_onnxruntime_is_refused(bundle: Bundle) -> None:
    """It would compute in fp32 and call it bf16."""
    with pytest.raises(EngineError, match="onnxruntime computes in fp32, asked for bf16"):
        open_engine(bundle, "onnxruntime", precision="bf16")


def test_bf16_without_openvino_is_refused(bundle: Bundle, without) -> None:
    """`auto` does not trade the precision that was asked for against an engine."""
    without("openvino")
    with pytest.raises(EngineError, match="asked for bf16"):
        open_engine(bundle, precision="bf16").__enter__()


def test_openvino_knows_its_precisions(model: bytes) -> None:
    """A precision that it has not is named with those it has."""
    with pytest.raises(EngineError, match="'int3'; expected fp32, bf16, fp16, int8"):
        OpenVinoEngine(model, HW, precision="int3")  # type: ignore[arg-type]


def test_openvino_knows_its_hints(model: bytes) -> None:
    with pytest.raises(EngineError, match="'fast'; expected latency, throughput"):
        OpenVinoEngine(model, HW, hint="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_throughput_hint_changes_no_answer(
    model: bytes, precision: Any, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that come together are spread over requests, more of them than there are, and each comes back in its place."""
    if precision == "bf16" and not has_precision("openvino", "bf16"):
        pytest.skip("this processor has no bf16")
    monkeypatch.setattr(OpenVinoEngine, "_n_requests", lambda self, compiled: requests)
    frames = some_frames(8)
    engine = OpenVinoEngine(model, HW, precision=precision, threads=1, hint="throughput")
    with engine:
        together = engine.infer(frames)
        alone = [engine.infer(frames[i : i + 1]) for i in range(8)]
        for i, name in enumerate(together._fields):
            np.testing.assert_array_equal(together[i], np.concatenate([each[i] for each in alone]), err_msg=name)
        kept = [values.copy() for values in together]
        engine.infer(frames[::-1])
        for values, copied in zip(together, kept, strict=True):
            np.testing.assert_array_equal(values, copied)
        assert engine.bare_ms(frames[:1], 2).shape == (2,)
    with pytest.raises(EngineError, match="not open"):
        engine.infer(frames)


def test_a_request_that_fails_leaves_none_running(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames are the caller's again when the error comes out; the next call works."""
    monkeypatch.setattr(OpenVinoEngine, "_n_requests", lambda self, compiled: 3)
    frames = some_frames(7)
    with OpenVinoEngine(model, HW, threads=1, hint="throughput") as engine:
        expected = engine.infer(frames).scores
        second = engine._at_once[1]
        with monkeypatch.context() as patch:
            finished: list[int] = []

            def fail() -> None:
                type(second).finish(second)
                raise RuntimeError("out of luck")

            for number, request in enumerate(engine._at_once):
                if request is not second:
                    finish = request.finish
                    patch.setattr(request, "finish", lambda n=number, f=finish: (finished.append(n), f())[1])
            patch.setattr(second, "finish", fail)
            with pytest.raises(EngineError, match="openvino failed: out of luck"):
                engine.infer(frames)
            assert finished == [0, 2, 0]
        np.testing.assert_array_equal(engine.infer(frames).scores, expected)


def test_bf16_on_openvino_is_near_or_refused(model: bytes) -> None:
    """A processor without bf16 says so; one with it comes near fp32 but not to the same."""
    fp32 = engine_from("openvino", model)
    frames = some_frames(4)
    with fp32:
        wanted = fp32.infer(frames).heatmaps
    engine = OpenVinoEngine(model, HW, precision="bf16", threads=1)
    if not has_precision("openvino", "bf16"):
        with pytest.raises(EngineError, match="no bf16"):
            engine.__enter__()
        return
    with engine:
        found = engine.infer(frames).heatmaps
    difference = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 0 < difference < 0.1  # 8 bits of mantissa, over seven layers


# --- what every engine keeps -----------------------------------------------------------------------------------------

WRONG_FRAMES = {
    "float": (np.float32, (1, SIDE, SIDE, 3)),
    "signed": (np.int8, (1, SIDE, SIDE, 3)),
    "16 bit": (np.uint16, (1, SIDE, SIDE, 3)),
    "no batch": (np.uint8, (SIDE, SIDE, 3)),
    "empty batch": (np.uint8, (0, SIDE, SIDE, 3)),
    "channels first": (np.uint8, (1, 3, SIDE, SIDE)),
    "grey": (np.uint8, (1, SIDE, SIDE, 1)),
    "alpha": (np.uint8, (1, SIDE, SIDE, 4)),
    "another height": (np.uint8, (1, SIDE + 16, SIDE, 3)),
    "another width": (np.uint8, (1, SIDE, SIDE - 1, 3)),
    "a video": (np.uint8, (1, 2, SIDE, SIDE, 3)),
    "too many": (np.uint8, (65, SIDE, SIDE, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_wrong_frames_are_refused(model: bytes, kind: str, name: str) -> None:
    """Another type or shape is an error that says found and expected; the engine goes on afterwards."""
    dtype, shape = WRONG_FRAMES[name]
    with engine_from(kind, model) as engine:
        with pytest.raises(EngineError) as caught:
            engine.infer(np.zeros(shape, dtype))
        expected = f"uint8 (N, {SIDE}, {SIDE}, 3) with N from 1 to 64"
        assert str(caught.value) == f"frames are {np.dtype(dtype)} {shape}, expected {expected}"
        assert len(engine.infer(some_frames(1)).scores) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_callers_own(model: bytes, kind: str) -> None:
    """They stay as they are when the engine infers again, when the frames change and when the engine is left."""
    frames = some_frames(2)
    with engine_from(kind, model) as engine:
        first = engine.infer(frames)
        kept = Inference(*(array.copy() for array in first))
        assert not any(np.shares_memory(array, frames) for array in first)
        frames[:] = 0
        engine.infer(some_frames(2, seed=1))
        engine.infer(some_frames(5, seed=2))
    for found, wanted in zip(first, kept, strict=True):
        np.testing.assert_array_equal(found, wanted)
        found[...] = 0  # and they can be written to


@pytest.mark.parametrize("kind", KINDS)
def test_frames_need_not_be_contiguous(model: bytes, kind: str) -> None:
    """A view, mirrored or with steps, counts as what it shows."""
    frames = some_frames(4)
    with engine_from(kind, model) as engine:
        for view in (frames[:, ::-1], frames[::2], frames[..., ::-1]):
            found, wanted = engine.infer(view), engine.infer(view.copy())
            np.testing.assert_array_equal(found.expected, view)
            np.testing.assert_array_equal(found.heatmaps, wanted.heatmaps)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_only_read(model: bytes, kind: str) -> None:
    """A frame that cannot be written to is as good as any, and none is changed."""
    frames = some_frames(2)
    kept = frames.copy()
    frames.flags.writeable = False
    with engine_from(kind, model) as engine:
        np.testing.assert_array_equal(engine.infer(frames).expected, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_engine_is_open_only_inside_with(model: bytes, kind: str) -> None:
    """Before and after, `infer` says so; it can be entered again."""
    engine = engine_from(kind, model)
    with pytest.raises(EngineError, match="not open"):
        engine.infer(some_frames(1))
    for _ in range(2):
        with engine:
            engine.infer(some_frames(1))
        with pytest.raises(EngineError, match="not open"):
            engine.infer(some_frames(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_damaged_graph_is_one_line(model: bytes, kind: str, damage: str) -> None:
    """Entering with what is no graph raises an error of one line that names the engine."""
    data = {"empty": b"", "garbage": b"\x00\xff no graph" * 50, "truncated": model[: len(model) // 2]}[damage]
    with pytest.raises(EngineError) as caught:
        engine_from(kind, data).__enter__()
    assert str(caught.value).startswith(f"{kind} cannot load the graph: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > len(f"{kind} cannot load the graph: ")


# --- precisions and providers ----------------------------------------------------------------------------------------


def test_each_precision_has_its_member(model: bytes) -> None:
    """fp32 and bf16 share a graph, fp16 and int8 have their own, and one that is not there is named with its cure."""
    members = small_members() | {MODEL: model, "model.fp16.onnx": b"half", "model.int8.onnx": b"bytes"}
    whole = Bundle(bundle_bytes(small_manifest(), members), "part.flawline")
    assert model_for(whole, "fp32") == model_for(whole, "bf16") == model
    assert (model_for(whole, "fp16"), model_for(whole, "int8")) == (b"half", b"bytes")
    with pytest.raises(
        EngineError, match=r"has no fp16 graph \(model\.fp16\.onnx\); `flawline quantize test --precisions fp16`"
    ):
        open_engine(bundle_with(model), precision="fp16")


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_onnxruntime_without_a_gpu(bundle: Bundle, provider: Any) -> None:
    """`auto` is the CPU where no other backend is built in."""
    with open_engine(bundle, "onnxruntime", provider=provider, threads=1) as engine:
        assert len(engine.infer(some_frames(2)).scores) == 2


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_backend_that_is_not_built_in(bundle: Bundle, provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name it is an error that says what to install."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=f"has no {provider} backend; .*pip install onnxruntime-gpu"):
        open_engine(bundle, "onnxruntime", provider=provider).__enter__()


class FakeSession:
    """ONNX Runtime's session, as it behaves with and without a GPU."""

    asked: ClassVar[list[Any]] = []
    starts = True

    def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
        FakeSession.asked = providers

    def get_providers(self) -> list[str]:
        first = FakeSession.asked[0] if FakeSession.starts else "CPUExecutionProvider"
        return [first if isinstance(first, str) else first[0]]


@pytest.mark.parametrize(
    ("provider", "order"),
    [
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cpu", ["CPUExecutionProvider"]),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("tensorrt", ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]),
    ],
)
def test_backends_in_their_order(
    model: bytes, provider: Any, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With onnxruntime-gpu; CUDA and TensorRT without TF32. One that falls back to the CPU in silence is refused if it was named."""
    import onnxruntime

    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "TF32" not in name})
    with OnnxRuntimeEngine(model, HW, provider=provider):
        assert [name if isinstance(name, str) else name[0] for name in FakeSession.asked] == order
        assert (os.environ.get("NVIDIA_TF32_OVERRIDE") == "0") == (provider == "tensorrt")
        assert all(name[1] == {"use_tf32": "0"} for name in FakeSession.asked if not isinstance(name, str))
    monkeypatch.setattr(FakeSession, "starts", False)
    if provider in ("auto", "cpu"):
        with OnnxRuntimeEngine(model, HW, provider=provider):
            pass
    else:
        with pytest.raises(EngineError, match=f"could not start its {provider} backend and would have used the CPU"):
            OnnxRuntimeEngine(model, HW, provider=provider).__enter__()


@pytest.mark.parametrize(("driver", "kinds"), [(False, []), (True, ["tensorrt", "tensorrt_rtx"])])
def test_gpu_engines_need_a_driver(
    driver: bool, kinds: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bundle: Bundle
) -> None:
    """Installed is not enough, and a laptop without a GPU is told so in the log only where somebody looks."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name.startswith("tensorrt") or real(name, *rest)
    )
    monkeypatch.setattr(engine_module, "_has_driver", lambda: driver)
    assert [kind for kind in installed_kinds() if kind.startswith("tensorrt")] == kinds
    if not driver:
        with caplog.at_level(logging.INFO), open_engine(bundle):
            pass
        levels = {record.levelname for record in caplog.records if "no NVIDIA driver" in record.message}
        assert levels == {"INFO"}
