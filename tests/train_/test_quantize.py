"""`quantize`: what the gate accepts is written, with a new manifest; what it refuses is not, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.train_.parts import part, write, write_parts

from flawline_edge.demo_command import DEMO_BUNDLE
from flawline_engines import open_engine
from flawline_engines.engine import MODEL_MEMBERS
from flawline_engines.parity import LIMITS, Limits, check_parity
from flawline_inspect.bundle import MODEL, Bundle, save_bundle
from flawline_inspect.errors import BundleError, InputError
from flawline_inspect.frame import FrameSpec
from flawline_train import quantize as quantize_module
from flawline_train.golden import choose_golden
from flawline_train.quantize import quantize
from flawline_train.quantize_command import quantize_command


@pytest.fixture(scope="module")
def good_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("good"), 12, (64, 48))


@pytest.fixture
def path(tmp_path: Path, exported: bytes, good_parts: Path) -> Path:
    """A bundle of the small untrained network; its threshold lies amidst what good and damaged parts score."""
    paths = sorted(good_parts.iterdir())
    golden = choose_golden(exported, FrameSpec(64, 48), 1e9, paths, np.random.default_rng(0))
    top = max(entry["score"] for entry in golden.entries)
    spec = FrameSpec(64, 48)
    chosen = choose_golden(exported, spec, 1.3 * top, paths, np.random.default_rng(0))
    manifest: dict[str, Any] = Bundle.open(DEMO_BUNDLE).manifest.model_dump(exclude={"schema_version", "members"})
    manifest["frame"] |= {"width": 64, "height": 48, "roi": None, "picture_wh": (64, 48)}
    manifest["calibration"]["threshold"] = 1.3 * top
    manifest["golden"] = chosen.entries
    out = tmp_path / "small.flawline"
    save_bundle(out, manifest, {MODEL: exported, **chosen.members})
    return out


def limit(monkeypatch: pytest.MonkeyPatch, precision: Any, score: float) -> None:
    monkeypatch.setitem(LIMITS, precision, Limits(score, 10.0, "for the test"))


@pytest.mark.timeout(300)
def test_both_precisions_are_added(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is whole, its other members are untouched, its id is new, and every engine accepts what it can run."""
    limit(monkeypatch, "int8", 0.3)
    before = Bundle.open(path)
    done = quantize(before, path)
    assert [(outcome.precision, outcome.refusal) for outcome in done.outcomes] == [("fp16", ""), ("int8", "")]
    after = Bundle.open(path)
    assert done.bundle is not None and after.model_id == done.bundle.model_id != before.model_id
    assert set(after.manifest.members) - set(before.manifest.members) == {MODEL_MEMBERS["fp16"], MODEL_MEMBERS["int8"]}
    for name in before.manifest.members:
        assert after.member(name) == before.member(name)
    unlike = {"members"}
    assert after.manifest.model_dump(exclude=unlike) == before.manifest.model_dump(exclude=unlike)
    for precision in ("fp16", "int8"):
        with open_engine(after, "onnxruntime", precision=precision, threads=1) as engine:
            assert engine.precision == precision
            assert check_parity(after, engine).accepted
    again = quantize(after, path, ["fp16"])
    assert again.bundle is not None and again.bundle.model_id == after.model_id  # the same bytes


def test_a_refused_precision_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is; with none left the file is not touched."""
    limit(monkeypatch, "fp16", 1e-9)
    limit(monkeypatch, "int8", 1e-9)
    bytes_before = path.read_bytes()
    done = quantize(Bundle.open(path), path)
    assert done.bundle is None and path.read_bytes() == bytes_before
    fp16, int8 = done.outcomes
    assert fp16.model is None and "scores differ by" in fp16.refusal
    assert int8.model is None and "of the network in int8 nothing is gained" in int8.refusal
    limit(monkeypatch, "fp16", 1.0)
    done = quantize(Bundle.open(path), path)
    assert done.bundle is not None and set(done.bundle.manifest.members) & set(MODEL_MEMBERS.values()) == {
        MODEL,
        MODEL_MEMBERS["fp16"],
    }


@pytest.mark.timeout(300)
def test_int8_takes_as_much_as_the_gate_lets_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower limit, fewer convolutions: the ones that do most harm go back to float32 first."""
    opened = Bundle.open(path)
    limit(monkeypatch, "int8", 10.0)
    (loose,) = quantize(opened, path, ["int8"]).outcomes
    assert "26 of 26 convolutions, 100% of the network's arithmetic" in loose.note
    worst = max(parity.score_difference for parity in loose.parities)
    limit(monkeypatch, "int8", 0.7 * worst)
    (narrow,) = quantize(opened, path, ["int8"]).outcomes
    if not narrow.refusal:
        n = int(narrow.note.split()[0])
        assert n < 26 and all(parity.score_difference <= 0.7 * worst for parity in narrow.parities)


def test_int8_is_calibrated_on_a_folder(path: Path, good_parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of good pictures; evenly from many, and one that cannot be read is named."""
    seen: list[int] = []

    def count(model: bytes, frames: list[NDArray[np.uint8]]) -> Any:
        seen.append(len(frames))
        raise BundleError("enough")

    monkeypatch.setattr(quantize_module, "quantizable_model", count)
    opened = Bundle.open(path)
    assert quantize(opened, path, ["int8"]).outcomes[0].refusal == "enough"
    quantize(opened, path, ["int8"], pictures=good_parts)
    monkeypatch.setattr(quantize_module, "MAX_CALIBRATION_PICTURES", 5)
    quantize(opened, path, ["int8"], pictures=good_parts)
    assert seen == [8, 12, 4]
    empty = path.parent / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="has no pictures"):
        quantize(opened, path, ["int8"], pictures=empty)
    write(empty / "a.png", part(0, (64, 48)))
    (empty / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.png: cannot be calibrated on .*take it out"):
        quantize(opened, path, ["int8"], pictures=empty)


def test_without_golden_pictures_nothing_can_be_proven(path: Path) -> None:
    """So nothing is added."""
    bundle = Bundle.open(path)
    manifest = bundle.manifest.model_dump(exclude={"schema_version", "members"}) | {"golden": []}
    out = path.with_name("none.flawline")
    save_bundle(out, manifest, {MODEL: bundle.member(MODEL)})
    with pytest.raises(BundleError, match="no golden pictures to compare precisions with"):
        quantize(Bundle.open(out), out)


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes elsewhere if asked, prints both ids, and ends with 1 when a precision was refused."""
    out = path.with_name("new.flawline")
    before = path.read_bytes()
    assert quantize_command(path, precisions="fp16", out=out) == 0
    printed = capsys.readouterr().out
    assert "fp16: added" in printed and f"(was {Bundle.open(path).model_id})" in printed
    assert path.read_bytes() == before and Bundle.open(out).model_id in printed
    limit(monkeypatch, "fp16", 1e-9)
    assert quantize_command(path, precisions="fp16") == 1
    printed = capsys.readouterr().out
    assert "fp16: refused" in printed and f"{path}: unchanged" in printed


@pytest.mark.parametrize(("precisions", "said"), [("fp8", "has 'fp8', expected fp16, int8"), (" , ", "is empty")])
def test_unknown_precisions(path: Path, precisions: str, said: str) -> None:
    """The sentence lists those there are."""
    with pytest.raises(InputError, match=said):
        quantize_command(path, precisions=precisions)


def test_check_refuses_what_the_bundle_has_not(path: Path) -> None:
    """With the command that adds it."""
    from flawline_inspect.errors import EngineError

    with pytest.raises(EngineError, match=r"has no int8 graph \(model\.int8\.onnx\); `flawline quantize"):
        open_engine(Bundle.open(path), "onnxruntime", precision="int8")
