"""Triton: the repository against the published schema, and the client against a stand-in that speaks the real protocol."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.inspect_.bundles import SIDE, golden_picture, small_manifest, small_members

from flawline_edge.inspector import Inspector
from flawline_engines import open_engine
from flawline_engines.bench import convolution_model
from flawline_engines.export_command import export
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_engines.parity import Parity
from flawline_engines.parity_command import parity
from flawline_engines.plans import PlanKey, PlanStore, plans_folder
from flawline_engines.shared import SharedEngine
from flawline_engines.triton import TritonEngine
from flawline_engines.triton_repository import (
    SHA256_PARAMETER,
    ModelSettings,
    model_name,
    model_version,
    write_repository,
)
from flawline_inspect.bundle import MODEL, Bundle, save_bundle
from flawline_inspect.config import EngineConfig, RecipeConfig
from flawline_inspect.errors import EngineError, InputError

try:
    import grpc
    from google.protobuf import text_format
    from tests.engines.triton_server import StandInServer, parsed
except ModuleNotFoundError as exc:
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise
    pytest.skip(f"{exc.name} is not installed; it comes with flawline[triton]", allow_module_level=True)

HW = (SIDE, SIDE)
ONNX = convolution_model(16, SIDE)
OTHER_ONNX = convolution_model(8, SIDE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Convolutions in place of a network; its golden scores are those of ONNX Runtime, as the self-test wants them."""
    return bundle_of(ONNX, tmp_path_factory.mktemp("bundle") / "bottle.flawline")


def bundle_of(model: bytes, path: Path) -> Bundle:
    manifest = small_manifest()
    with OnnxRuntimeEngine(model, HW, threads=1) as engine:
        for entry, (label, i) in zip(
            manifest["golden"], [(label, i) for label in ("good", "damaged") for i in range(2)], strict=True
        ):
            entry["score"] = float(engine.infer(golden_picture(i, label)[None]).scores[0])
    members = {**small_members(), MODEL: model, "model.fp16.onnx": convolution_model(16, SIDE, "fp16")}
    return save_bundle(path, manifest, members)


@pytest.fixture
def repository(bundle: Bundle, tmp_path: Path) -> Path:
    write_repository(bundle, tmp_path / "models", settings=ModelSettings(max_batch=4), state_dir=tmp_path / "state")
    return tmp_path / "models"


@pytest.fixture
def server(repository: Path) -> Iterator[StandInServer]:
    with StandInServer(repository) as running:
        yield running


def frames_of(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *HW, 3), np.uint8)


# --- the repository --------------------------------------------------------------------------------------------------


def test_the_configuration_is_what_tritons_schema_knows(bundle: Bundle, tmp_path: Path) -> None:
    """Every field and value of it, and what they say."""
    settings = ModelSettings(max_batch=32, queue_delay_us=250, instances=2)
    [model] = write_repository(bundle, tmp_path, settings=settings, state_dir=tmp_path / "state")
    assert model.name == f"{bundle.model_id}-fp32" == model.folder.name
    config = parsed(model.folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == (model.name, "onnxruntime", 32)
    [frames] = config.input
    assert (frames.name, list(frames.dims)) == ("frames", [SIDE, SIDE, 3])
    assert {output.name: list(output.dims) for output in config.output} == {
        "scores": [1],
        "heatmaps": [SIDE, SIDE],
        "expected": [SIDE, SIDE, 3],
    }
    assert config.output[0].HasField("reshape") and list(config.output[0].reshape.shape) == []
    assert config.HasField("dynamic_batching") and config.dynamic_batching.max_queue_delay_microseconds == 250
    [group] = config.instance_group
    assert (group.count, group.kind) == (2, type(group).KIND_AUTO)
    assert config.model_warmup[0].inputs["frames"].zero_data
    assert config.parameters[SHA256_PARAMETER].string_value == hashlib.sha256(ONNX).hexdigest()
    assert (model.folder / model_version(hashlib.sha256(ONNX).hexdigest()) / "model.onnx").read_bytes() == ONNX


def test_the_schema_refuses_what_it_does_not_know(repository: Path) -> None:
    """Else the test above would say nothing."""
    path = next(repository.iterdir()) / "config.pbtxt"
    for wrong in ("max_batchsize: 4", "max_batch_size: four", "instance_group [ { kind: KIND_TPU } ]"):
        path.write_text(path.read_text() + wrong)
        with pytest.raises(text_format.ParseError):
            parsed(path)


def test_each_precision_is_a_model_of_its_own(bundle: Bundle, repository: Path, tmp_path: Path) -> None:
    write_repository(bundle, repository, precision="fp16", state_dir=tmp_path / "state")
    assert sorted(folder.name for folder in repository.iterdir()) == [
        f"{bundle.model_id}-fp16",
        f"{bundle.model_id}-fp32",
    ]
    for precision, sentence in (("int8", "has no int8 graph"), ("bf16", "no precision bf16")):
        with pytest.raises(EngineError, match=sentence):
            write_repository(bundle, repository, precision=precision)  # type: ignore[arg-type]


def stored_plan(bundle: Bundle, state: Path, *, accepted: bool = True, plan: bytes = b"a plan", **key: str) -> PlanKey:
    whole = {
        "onnx_sha256": hashlib.sha256(ONNX).hexdigest(),
        "module": "tensorrt",
        "version": "11.4.0",
        "gpu": "H200",
        "compute_capability": "9.0",
        "precision": "fp32",
        "shapes": f"1-1-16x{SIDE}x{SIDE}x3",
        **key,
    }
    refusals = () if accepted else ("a reject became a pass",)
    judged = Parity(bundle.model_id, "tensorrt", "fp32", 4, 4.0, 0.0, 0.0, 0, 0, (), refusals)
    PlanStore(plans_folder(state)).save(PlanKey(**whole), plan, judged)
    return PlanKey(**whole)


def test_a_plan_that_was_built_is_exported_too(bundle: Bundle, tmp_path: Path) -> None:
    """As a second model, with no more frames than it was compiled for, and a note of what it is bound to."""
    state = tmp_path / "state"
    stored_plan(bundle, state)
    onnx, plan = write_repository(bundle, tmp_path / "models", settings=ModelSettings(max_batch=64), state_dir=state)
    config = parsed(plan.folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == (f"{onnx.name}-tensorrt", "tensorrt", 16)
    assert config.instance_group[0].kind == type(config.instance_group[0]).KIND_GPU
    assert config.parameters[SHA256_PARAMETER].string_value == hashlib.sha256(ONNX).hexdigest()
    assert [path.read_bytes() for path in plan.folder.glob("*/model.plan")] == [b"a plan"]
    assert "TensorRT 11.4.0" in plan.note and "H200" in plan.note and not onnx.note


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"onnx_sha256": "0" * 64}, id="another model's"),
        pytest.param({"module": "tensorrt_rtx"}, id="RTX, which Triton has not"),
        pytest.param({"precision": "fp16"}, id="another precision"),
        pytest.param({"accepted": False}, id="refused by the parity gate"),
    ],
)
def test_plans_that_must_not_serve_stay_out(bundle: Bundle, tmp_path: Path, other: dict[str, Any]) -> None:
    stored_plan(bundle, tmp_path / "state", **other)
    assert len(write_repository(bundle, tmp_path / "models", state_dir=tmp_path / "state")) == 1


@pytest.mark.parametrize("damage", ["plan", "sidecar", "renamed"])
def test_damaged_plans_stay_out(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    key = stored_plan(bundle, tmp_path / "state")
    path = PlanStore(plans_folder(tmp_path / "state")).path(key)
    if damage == "plan":
        path.write_bytes(b"another plan")
    elif damage == "sidecar":
        path.with_suffix(".json").write_text("[1]")
    else:
        path.with_suffix(".json").rename(path.with_name("tensorrt-fp32-0000.json"))
    assert len(write_repository(bundle, tmp_path / "models", state_dir=tmp_path / "state")) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_batch": 65}, "--max-batch is 65"),
        ({"queue_delay_us": -1}, "--queue-delay-us is -1"),
        ({"instances": 0}, "--instances is 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ModelSettings(**settings)


def test_a_folder_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        write_repository(bundle, tmp_path / "models", state_dir=tmp_path)


def test_the_command_names_what_it_wrote(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored_plan(bundle, tmp_path / "state")
    export(Path(bundle.source), triton=tmp_path / "models", state_dir=tmp_path / "state", max_batch=8)
    onnx, plan = capsys.readouterr().out.splitlines()
    assert onnx == str(tmp_path / "models" / model_name(bundle, "fp32"))
    assert "TensorRT 11.4.0" in plan and "exactly that TensorRT" in plan


# --- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 11])
def test_the_answers_are_those_of_the_same_graph_here(bundle: Bundle, server: StandInServer, n: int) -> None:
    """Bit for bit, in pieces of the server's largest batch; and they can be written."""
    frames = frames_of(n)
    with OnnxRuntimeEngine(ONNX, HW, threads=1) as local:
        expected = [local.infer(frames[i : i + 4]) for i in range(0, n, 4)]
    with open_engine(bundle, "triton", url=server.url, timeout_s=10) as engine:
        found = engine.infer(frames)
        assert (engine.kind, engine.precision) == ("triton", "fp32")
    for i, values in enumerate(found):
        assert (values == np.concatenate([part[i] for part in expected])).all()
        values[...] = 0
    assert found.scores.shape == (n,)
    assert [size for _, size in server.batches] == [min(4, n - i) for i in range(0, n, 4)]


def test_the_parity_gate_holds_for_it(
    bundle: Bundle, server: StandInServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for every engine: a server that answers wrongly is refused."""
    path = Path(bundle.source)
    assert parity(path, engine="triton", url=server.url, json=True) == 0
    assert json.loads(capsys.readouterr().out)["accepted"]
    server.spoil = lambda outputs: {name: (values * 0.5).astype(values.dtype) for name, values in outputs.items()}
    assert parity(path, engine="triton", url=server.url, json=True) == 1
    assert not json.loads(capsys.readouterr().out)["accepted"]


def test_a_station_tests_itself_with_it(bundle: Bundle, server: StandInServer) -> None:
    """From the keys in `config.yaml`; one that answers wrongly gets no part to judge."""
    recipe = RecipeConfig(bundle=Path(bundle.source))
    engine = EngineConfig(kind="triton", url=server.url, timeout_ms=10_000)
    with Inspector(1, recipe, engine, public_key=None) as inspector:
        judgement = inspector.judge(golden_picture(0, "good"))
        assert inspector.engine_kind == "triton" and np.isfinite(judgement.decision.score)
    server.spoil = lambda outputs: {name: (values * 0.5).astype(values.dtype) for name, values in outputs.items()}
    with (
        pytest.raises(EngineError, match=r"self-test failed: .* on triton fp32"),
        Inspector(1, recipe, engine, public_key=None),
    ):
        pytest.fail("it was entered")


def test_a_plan_is_taken_where_the_server_has_one(bundle: Bundle, repository: Path) -> None:
    name = model_name(bundle, "fp32")
    (repository / name).rename(repository / f"{name}-tensorrt")
    config = repository / f"{name}-tensorrt" / "config.pbtxt"
    config.write_text(config.read_text().replace(name, f"{name}-tensorrt"))
    write_repository(bundle, repository, state_dir=repository / "no plans")
    with StandInServer(repository) as server, open_engine(bundle, "triton", url=server.url, timeout_s=10) as engine:
        engine.infer(frames_of(1))
        assert server.batches == [(f"{name}-tensorrt", 1)]


def test_another_model_under_the_same_name_is_refused(bundle: Bundle, repository: Path) -> None:
    """Its verdicts would be those of another product."""
    config = next(repository.iterdir()) / "config.pbtxt"
    sha256 = hashlib.sha256(ONNX).hexdigest()
    text = config.read_text()
    for found, shown in ((hashlib.sha256(OTHER_ONNX).hexdigest(), None), (None, "none")):
        if found is None:
            config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("parameters")))
        else:
            config.write_text(text.replace(sha256, found))
        with (
            StandInServer(repository) as server,
            pytest.raises(EngineError, match=f"SHA-256 is {shown or found[:12]}"),  # type: ignore[index]
            open_engine(bundle, "triton", url=server.url),
        ):
            pytest.fail("it was opened")


def test_a_model_that_is_not_there_or_not_ready(bundle: Bundle, server: StandInServer) -> None:
    for precision, sentence in (("fp16", "it has none of that name"), ("fp32", "is UNAVAILABLE, out of memory")):
        server.states = {model_name(bundle, "fp32"): "UNAVAILABLE"}
        with (
            pytest.raises(EngineError, match=sentence),
            open_engine(bundle, "triton", url=server.url, precision=precision),  # type: ignore[arg-type]
        ):
            pytest.fail("it was opened")


@pytest.mark.parametrize("url", ["", None, "gpu", "http://gpu:8001", "gpu:port", "grpc://:8001"])
def test_addresses_that_are_none(bundle: Bundle, url: str | None) -> None:
    with pytest.raises(EngineError, match="address"):
        open_engine(bundle, "triton", url=url)


def test_what_it_refuses_before_asking(bundle: Bundle, server: StandInServer) -> None:
    with pytest.raises(EngineError, match="no precision bf16"):
        open_engine(bundle, "triton", url=server.url, precision="bf16")
    with pytest.raises(EngineError, match="expected more than 0"):
        open_engine(bundle, "triton", url=server.url, timeout_s=0)
    engine = open_engine(bundle, "triton", url=server.url)
    with pytest.raises(EngineError, match="not open"):
        engine.infer(frames_of(1))
    with engine as entered, pytest.raises(EngineError, match="expected uint8"):
        entered.infer(frames_of(1)[:, :5])
    assert server.batches == []
    with pytest.raises(EngineError, match="not open"):
        engine.infer(frames_of(1))


# --- what goes wrong on the way --------------------------------------------------------------------------------------


def test_an_answer_that_is_late_is_an_error_in_time(bundle: Bundle, server: StandInServer) -> None:
    """And the next one is not."""
    with open_engine(bundle, "triton", url=server.url, timeout_s=0.3) as engine:
        server.delay_s = 2.0
        begin = time.monotonic()
        with pytest.raises(EngineError, match=r"gave no answer in 0\.3 s"):
            engine.infer(frames_of(1))
        assert time.monotonic() - begin < 1.5
        server.delay_s = 0.0
        assert len(engine.infer(frames_of(1)).scores) == 1


def test_no_server(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline_engines.triton._OPEN_TIMEOUT_S", 0.3)
    begin = time.monotonic()
    with (
        pytest.raises(EngineError, match=r"triton at 127\.0\.0\.1:1 (cannot be reached|gave no answer)"),
        open_engine(bundle, "triton", url="127.0.0.1:1"),
    ):
        pytest.fail("it was opened")
    assert time.monotonic() - begin < 5


def test_a_restart_within_the_time_costs_no_part(bundle: Bundle, repository: Path) -> None:
    """The call that finds nobody asks again until somebody answers."""
    first = StandInServer(repository)
    with first, open_engine(bundle, "triton", url=first.url, timeout_s=20) as engine:
        expected = engine.infer(frames_of(2))
        first.__exit__(None, None, None)
        second = StandInServer(repository, first.port)
        starting = threading.Timer(0.5, second.__enter__)
        starting.start()
        found = engine.infer(frames_of(2))
        starting.join()
        assert (found.scores == expected.scores).all() and [size for _, size in second.batches] == [2]
        second.__exit__(None, None, None)


def test_a_server_that_was_exchanged_between_two_parts_is_noticed(bundle: Bundle, repository: Path) -> None:
    """One that came back with another model under this name does not judge parts, although no call saw it gone."""
    first = StandInServer(repository)
    with first, open_engine(bundle, "triton", url=first.url, timeout_s=20) as engine:
        engine.infer(frames_of(1))
        first.__exit__(None, None, None)
        [file] = repository.glob("*/*/model.onnx")
        file.write_bytes(OTHER_ONNX)
        file.parent.rename(file.parents[1] / model_version(hashlib.sha256(OTHER_ONNX).hexdigest()))
        with StandInServer(repository, first.port) as second:
            with pytest.raises(EngineError, match=r"failed: Request for unknown model: .* is not found"):
                engine.infer(frames_of(1))
            assert second.batches == []


def test_an_outage_longer_than_the_time_is_an_error_and_then_over(bundle: Bundle, repository: Path) -> None:
    first = StandInServer(repository)
    with first, open_engine(bundle, "triton", url=first.url, timeout_s=0.3) as engine:
        first.__exit__(None, None, None)
        begin = time.monotonic()
        for _ in range(2):
            with pytest.raises(EngineError, match=r"triton at .* in 0\.3 s"):
                engine.infer(frames_of(1))
        assert time.monotonic() - begin < 5
        with StandInServer(repository, first.port):
            end = time.monotonic() + 10
            while True:
                try:
                    assert len(engine.infer(frames_of(1)).scores) == 1
                    break
                except EngineError:
                    assert time.monotonic() < end, "it does not find the server again"


def test_what_the_server_says_is_told(bundle: Bundle, server: StandInServer) -> None:
    """In one sentence, with where."""
    with open_engine(bundle, "triton", url=server.url, timeout_s=5) as engine:
        server.refuse = (grpc.StatusCode.INTERNAL, "onnx runtime error 6: out of memory")
        with pytest.raises(EngineError, match=r"triton at 127.* failed: onnx runtime error 6: out of memory"):
            engine.infer(frames_of(1))


@pytest.mark.parametrize(("sha256", "version"), [("00000001", "1"), ("00000000", "1"), ("ffffffff", str(2**31 - 1))])
def test_a_version_is_a_number_that_triton_takes(sha256: str, version: str) -> None:
    assert model_version(sha256 + "0" * 56) == version


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores", lambda values: values.astype(np.float32).reshape(-1)[:0]),
        ("heatmaps", lambda values: values[:, :-1]),
        ("expected", lambda values: values[..., :2]),
    ],
)
def test_answers_of_another_shape_are_refused(bundle: Bundle, server: StandInServer, name: str, change: Any) -> None:
    with open_engine(bundle, "triton", url=server.url, timeout_s=5) as engine:
        server.spoil = lambda outputs: {key: change(v) if key == name else v for key, v in outputs.items()}
        with pytest.raises(EngineError, match=f"for {name}, expected"):
            engine.infer(frames_of(1))


def test_cameras_can_share_it(bundle: Bundle, server: StandInServer) -> None:
    """It is an engine like the others."""
    engine = open_engine(bundle, "triton", url=server.url, timeout_s=10)
    with SharedEngine(engine, HW, max_batch=2) as shared, shared.camera("top") as handle:
        assert isinstance(shared.serving, TritonEngine)
        assert len(handle.infer(frames_of(3)).scores) == 3
