"""The speed benchmark: races between small stand-ins, what is skipped and what fails, and tables of known lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.accuracy.runs import Key, Machine, Measured, Run, Runs
from benchmarks.accuracy.sets import DataSet
from benchmarks.speed import experiments
from benchmarks.speed.__main__ import main
from benchmarks.speed.contenders import BATCHED, DISK, MEMORY, Contender
from benchmarks.speed.experiments import (
    BATCHES,
    CAMERAS,
    SIZES,
    Case,
    Settings,
    engines,
    growth,
    peers,
    precisions,
    run_cases,
)
from benchmarks.speed.race import RaceError, race
from benchmarks.speed.tables import BEGIN, END, all_tables
from tests.inspect_.bundles import small_manifest

from flawline_engines.bench import convolution_model
from flawline_inspect.bundle import MODEL, save_bundle
from flawline_inspect.errors import EngineError

SIDE = 32
MACHINE = Machine("Some CPU", 2, 2)
WAYS = (MEMORY, DISK, BATCHED)


def bundle_for(contender: Contender, work: Path) -> None:
    """In place of what would be exported: convolutions alone."""
    path = contender.file(work)
    assert path is not None
    work.mkdir(parents=True, exist_ok=True)
    save_bundle(path, small_manifest(golden=[]), {MODEL: convolution_model(4, SIDE)})


@pytest.fixture
def small(tmp_path: Path) -> Contender:
    contender = Contender("flawline small", "onnxruntime", size=SIDE, batch=3)
    bundle_for(contender, tmp_path)
    return contender


# --- races -----------------------------------------------------------------------------------------------------------


def test_a_race_times_each_in_each_way(small: Contender, tmp_path: Path) -> None:
    """In processes of their own, which are gone afterwards, and so is the picture on disk."""
    nano = replace(small, system="flawline nano", runtime="openvino")
    bundle_for(nano, tmp_path)
    told: list[str] = []
    found = race([small, nano], WAYS, tmp_path, seconds=0.02, limit_s=100, say=told.append)
    assert len(found) == 2
    for figures in found:
        assert figures.keys() == {*WAYS, "refused", "peak_mib"}
        assert figures["refused"] == {} and figures["peak_mib"] > 20
        for way in WAYS:
            assert figures[way].keys() == {"median_ms", "p99_ms", "min_ms", "runs"}
            assert 0 < figures[way]["min_ms"] <= figures[way]["median_ms"] <= figures[way]["p99_ms"]
            assert figures[way]["runs"] >= 4 * 2
    assert not list(tmp_path.glob("*.png"))
    assert len([line for line in told if "opening" in line]) == 2


def test_cameras_share_one_engine(small: Contender, tmp_path: Path) -> None:
    [figures] = race([replace(small, cameras=3)], (MEMORY,), tmp_path, seconds=0.02, limit_s=100)
    assert figures[MEMORY]["runs"] >= 8


def test_what_one_cannot_do_is_told_and_left_out(small: Contender, tmp_path: Path) -> None:
    """The others go on."""
    wrong = replace(small, batch=65)  # more frames than an engine takes
    found = race([wrong, small], (MEMORY, BATCHED), tmp_path, seconds=0.01, limit_s=100)
    assert found[0]["refused"].keys() == {BATCHED} and "65" in found[0]["refused"][BATCHED]
    assert BATCHED not in found[0] and MEMORY in found[0] and BATCHED in found[1]
    with pytest.raises(RaceError, match=r"can do nothing: .*65"):
        race([wrong], (BATCHED,), tmp_path, seconds=0.01, limit_s=100)


def test_a_contender_that_cannot_be_opened(small: Contender, tmp_path: Path) -> None:
    """Its last words are in the error."""
    path = small.file(tmp_path)
    assert path is not None
    path.write_bytes(b"no bundle")
    with pytest.raises(RaceError, match=r"flawline small \(onnxruntime fp32\) ended: .*BundleError"):
        race([small], (MEMORY,), tmp_path, seconds=0.01, limit_s=100)


def test_the_time_is_limited(small: Contender, tmp_path: Path) -> None:
    """Before the process could even start."""
    with pytest.raises(RaceError, match="took longer than its time"):
        race([small], (MEMORY,), tmp_path, seconds=0.01, limit_s=0.05)


# --- cases -----------------------------------------------------------------------------------------------------------


def case(name: str, measure: Callable[[], dict[str, Any]]) -> Case:
    return Case("growth", "fp32", name, 256, lambda _say, _limit_s: measure())


def test_cases_are_measured_once(tmp_path: Path) -> None:
    """What has a line is skipped, what failed is named and tried again, `again` repeats all."""
    path, settings = tmp_path / "runs.jsonl", Settings(tmp_path, threads=2)
    done: list[str] = []

    def fail() -> dict[str, Any]:
        raise EngineError("out of luck")

    def works() -> dict[str, Any]:
        done.append("works")
        return {"contenders": []}

    cases = [case("size 1", works), case("size 2", fail)]
    for times, again in ((1, False), (1, False), (2, True)):
        failed = run_cases(cases, Runs(path), MACHINE, settings, lambda _: None, again=again)
        assert failed == ["growth · fp32 · size 2: out of luck"]
        assert len(done) == times
    run_cases(cases[:1], Runs(path), MACHINE, replace(settings, threads=1), lambda _: None, again=False)
    assert len(done) == 3, "another number of threads is another case"


def test_the_time_of_all_is_limited(tmp_path: Path) -> None:
    """The case under way gets what is left; what was not begun is named, and done by the next command."""
    path, settings = tmp_path / "runs.jsonl", Settings(tmp_path, threads=2, limit_s=100, total_s=0.2)
    limits: list[float] = []

    def slow(_say: Any, limit_s: float) -> dict[str, Any]:
        limits.append(limit_s)
        time.sleep(0.25)
        return {"contenders": []}

    cases = [Case("growth", "fp32", f"size {i}", 256, slow) for i in (1, 2)]
    failed = run_cases(cases, Runs(path), MACHINE, settings, lambda _: None, again=False)
    assert failed == ["growth · fp32 · size 2: the time was over; repeat the command"]
    assert limits == [pytest.approx(0.2, abs=0.1)]
    assert run_cases(cases, Runs(path), MACHINE, settings, lambda _: None, again=False) == []
    assert len(limits) == 2


def test_precisions_are_measured_on_a_trained_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained and quantised once, with a refusal kept; evaluated in each precision that is left, then timed."""
    said: list[list[str]] = []

    def flawline(arguments: list[Any], until: float, *, may_end_with: int = 0) -> str:
        said.append([str(word) for word in arguments])
        if arguments[0] in ("train", "quantize"):
            members = {MODEL: convolution_model(4, SIDE)}
            if arguments[0] == "quantize":
                assert may_end_with == 1
                members["model.int8.onnx"] = convolution_model(4, SIDE, "int8")
            save_bundle(Path(arguments[arguments.index("--out") + 1]), small_manifest(golden=[]), members)
        return json.dumps({"machine": {"processor": "", "cores": 1}, "engines": [], "image_auroc": 1.0})

    monkeypatch.setattr(experiments, "flawline", flawline)
    settings = Settings(tmp_path / "work", threads=1, precisions=("fp32", "bf16"))
    [case] = precisions(settings, [DataSet("toy", tmp_path / "toy")], steps=7)
    for _ in range(2):
        found = case.measure(lambda _: None, 60)
    assert list(found["evaluations"]) == ["fp32", "bf16", "int8"] and found["refused"] == ["fp16"]
    commands = [words[0] for words in said]
    assert commands == ["train", "quantize", *["eval"] * 3, "bench", *["eval"] * 3, "bench"]
    assert said[0][said[0].index("--steps") + 1] == "7"


def test_the_cases_are_those_asked_for(tmp_path: Path) -> None:
    """Every peer in OpenVINO in both precisions, in torch in fp32; every size, batch and number of cameras."""
    settings = Settings(tmp_path, threads=2, precisions=("fp32", "bf16"))
    names = [(each.precision, each.name) for each in peers(settings)]
    openvino = {f"{peer} openvino" for peer in ("EfficientAd", "Padim", "Draem", "Ganomaly")}
    torch = {name.replace("openvino", "torch") for name in openvino} | {"AE-SSIM torch"}
    assert {name for precision, name in names if precision == "fp32"} == openvino | torch
    assert {name for precision, name in names if precision == "bf16"} == openvino
    grown = {each.name for each in growth(settings)}
    expected = [("size", SIZES), ("batch", BATCHES), ("cameras", CAMERAS)]
    assert grown == {f"{what} {number}" for what, numbers in expected for number in numbers}
    assert [each.name for each in engines(settings)] == ["nano", "small", "medium"]


# --- tables ----------------------------------------------------------------------------------------------------------


def line(experiment: str, method: str, figures: dict[str, Any], precision: str = "fp32") -> Run:
    key = Key(experiment, precision, method, "2 threads", 0, "2 s", 256, "c0de", MACHINE)
    return Run(key, Measured(figures, 60.0), "abc", "2026-11-20", 0.5, {"torch": "2.15"})


def contender_row(system: str, ms: float, *, batched_ms: float | None = None, mib: float = 100.0) -> dict[str, Any]:
    def figures(value: float) -> dict[str, float]:
        return {"median_ms": value, "p99_ms": 2 * value, "min_ms": value, "runs": 9}

    row = {"system": system, "runtime": "openvino", "batch": 8, "cameras": 1, "refused": {}, "peak_mib": mib}
    row |= {MEMORY: figures(ms), DISK: figures(ms + 1)}
    return row | ({BATCHED: figures(batched_ms)} if batched_ms else {"refused": {BATCHED: "ValueError: no batch"}})


def cells(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in text.splitlines() if row.startswith("| ")]
    return rows[1:]


def test_peers_are_compared_within_their_race() -> None:
    """A race that was slow for all does not make its peer look slow: 30 ms beside 10 ms is 3 times, as 60 beside 20."""
    runs = [
        line("peers", "A", {"contenders": [contender_row("flawline small", 10, batched_ms=40),
                                           contender_row("A", 30, batched_ms=160, mib=250)]}),
        line("peers", "B", {"contenders": [contender_row("flawline small", 20, batched_ms=80),
                                           contender_row("B", 60)]}),
    ]  # fmt: skip
    text = all_tables(runs)
    ours, a, b = cells(text)
    assert ours[:6] == ["**flawline small**", "openvino", "15.0", "16.0", "150", "100"]
    assert a == ["A", "openvino", "30.0", "31.0", "50.0", "250", "3.0 ×", "4.0 ×", "2.5 ×"]
    assert b[6:] == ["3.0 ×", "", "1.0 ×"] and "B (openvino), batched: ValueError: no batch" in text
    assert "2 threads" in text and "Some CPU" in text


def test_growth_is_in_the_order_of_the_numbers() -> None:
    runs = [
        line("growth", f"size {size}", {"contenders": [contender_row("flawline small", size / 10)]})
        for size in (1024, 128)
    ]
    runs.append(line("growth", "cameras 4", {"contenders": [{**contender_row("flawline small", 8), "cameras": 4}]}))
    table = cells(all_tables(runs))
    assert [row[:2] for row in table] == [["size", "128"], ["size", "1024"], ["cameras", "4"]]
    assert table[2][2:6] == ["8.00", "16.0", "2.00", "500"]  # ms, p99, ms a frame, frames/s


def test_engines_show_the_limit() -> None:
    row = {
        "engine": "openvino", "precision": "fp32", "batch": 1, "median_ms": 12.0, "frames_per_s": 83.0,
        "peak_gflop_per_s": 500.0, "bound_ms": 9.0, "bound_by": "arithmetic", "share_of_bound": 0.75,
        "network_share_of_peak": 0.8, "tail_share_of_network": 0.1,
    }  # fmt: skip
    gpu = {**row, "engine": "tensorrt", **dict.fromkeys(("peak_gflop_per_s", "bound_ms", "share_of_bound"))}
    report = {"gflop_per_frame": {"total": 3.6}, "engines": [row, gpu]}
    first, second = cells(all_tables([line("engines", "small", report, "all")]).split("One frame")[0])
    assert first[:3] == ["small, 3.60 GFLOP", "openvino fp32", "1"]
    assert first[3:] == ["12.0", "83.0", "500", "9.00 (arithmetic)", "75%", "80%", "10%"]
    assert second[5:8] == ["", "", ""]


def engine_row(precision: str, ms: float, **figures: Any) -> dict[str, Any]:
    return {
        "engine": "openvino", "precision": precision, "batch": 1, "median_ms": ms, "frames_per_s": 1e3 / ms,
        "peak_gflop_per_s": 500.0, "bound_ms": 0.7 * ms, "bound_by": "arithmetic", "share_of_bound": 0.7,
        "network_share_of_peak": 0.81, "tail_share_of_network": 0.1, "python_ms": 0.05, "python_share": 0.01, **figures,
    }  # fmt: skip


def test_what_falls_short_of_its_limit_is_bold() -> None:
    """int8 needs 2.5 times fp32, nano in bf16 2.5 ms; on its limit a value is good."""
    rows = [
        engine_row("fp32", 5.0, network_share_of_peak=0.8, tail_share_of_network=0.251, python_ms=0.31),
        engine_row("bf16", 2.6),
        engine_row("int8", 2.1, python_share=0.11),
    ]
    report = {"gflop_per_frame": {"total": 1.6}, "engines": rows}
    text = all_tables([line("engines", "nano", report, "all")]).split("is bold:")[1]
    fp32, bf16, int8 = cells(text)
    assert fp32 == ["nano", "openvino fp32", "5.00", "80%", "**25%**", "", "**0.31**", "1%"]
    assert bf16 == ["nano", "openvino bf16", "**2.60**", "81%", "10%", "1.9 ×", "0.05", "1%"]
    assert int8 == ["nano", "openvino int8", "2.10", "81%", "10%", "**2.4 ×**", "0.05", "**11%**"]


def test_precisions_show_what_they_cost_and_gain() -> None:
    """Only int8 has limits: a change of 0.002, and 2.5 times fp32's speed."""

    def found(auroc: float) -> dict[str, Any]:
        return {"image_auroc": auroc, "false_reject_rate": 0.05, "escape_rate": 0.1, "n_good": 18, "n_bad": 60}

    evaluations = {"fp32": found(0.98), "bf16": found(0.97), "int8": found(0.9821)}
    bench = {"engines": [engine_row("fp32", 30.0), engine_row("bf16", 15.0), engine_row("int8", 10.0)]}
    figures = {"evaluations": evaluations, "refused": ["fp16"], "bench": bench}
    text = all_tables([line("precisions", "toy_alien", figures, "500 steps")])
    fp32, bf16, int8, fp16 = cells(text)
    assert fp32 == ["toy_alien, 18 good and 60 defective", "fp32", "0.9800", "", "5.0%", "10.0%", "30.0", ""]
    assert bf16[2:4] == ["0.9700", "-0.0100"] and bf16[-1] == "2.0 ×"
    assert int8[2:4] == ["0.9821", "**+0.0021**"] and int8[-1] == "3.0 ×"
    assert fp16[:2] == ["toy_alien", "fp16: refused by the parity gate"]
    assert "trained bundle, 500 steps" in text


# --- the command -----------------------------------------------------------------------------------------------------


def test_tables_go_between_their_own_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the accuracy stay as they are."""
    runs, results = tmp_path / "runs.jsonl", tmp_path / "RESULTS.md"
    Runs(runs).append(line("growth", "size 128", {"contenders": [contender_row("flawline small", 5)]}))
    results.write_text(f"# Results\n<!-- accuracy:begin -->\nkept\n<!-- accuracy:end -->\n{BEGIN}\nold\n{END}\nrest\n")
    assert main(["table", "--runs", str(runs), "--results", str(results), "--write"]) == 0
    text = results.read_text()
    assert "kept" in text and "rest" in text and "old" not in text and "| size | 128 |" in text
    assert main(["table", "--runs", str(runs)]) == 0
    assert "| size | 128 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["growth", "--seconds", "0"], "--seconds is 0"),
        (["all", "--minutes", "-1"], "--minutes -1"),
        (["precisions", "--steps", "0"], "--steps is 0"),
        (["precisions", "--sets", "no_such_set"], "no_such_set"),
        (["growth", "--precisions", "fp8"], "--precisions is 'fp8'"),
        (["peers", "--only", "Nobody", "--precisions", "fp32"], "no case has that"),
        (["race"], "race"),
    ],
)
def test_wrong_options(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 256])
def test_the_ssim_autoencoder_is_that_of_the_paper(size: int) -> None:
    """100 values at the narrowest place, whatever the size; a picture that is rebuilt exactly has no error."""
    import torch
    from benchmarks.speed.models import AeSsim

    network = AeSsim(size).eval()
    x = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        assert network.encoder(x).shape == (2, 100, 1, 1)
        assert network.decoder(network.encoder(x)).shape == x.shape
        scores, maps = network(x)
        assert scores.shape == (2,) and maps.shape == (2, size - 10, size - 10)
        network.encoder, network.decoder = torch.nn.Identity(), torch.nn.Identity()
        assert network(x)[1].abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bundles_with_random_weights_can_be_judged_with(tmp_path: Path) -> None:
    """In every precision; the graph is that of a trained bundle, with its tail."""
    from benchmarks.speed.models import write_bundle

    from flawline_engines import open_engine
    from flawline_inspect.bundle import Bundle

    path = tmp_path / "nano.flawline"
    write_bundle(path, "nano", 64, smaller=True)
    bundle = Bundle.open(path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    for precision in ("fp32", "fp16", "int8"):
        with open_engine(bundle, "onnxruntime", precision=precision) as engine:  # type: ignore[arg-type]
            found = engine.infer(frames)
        assert np.isfinite(found.heatmaps).all() and np.isfinite(found.scores).all()
    assert json.loads(bundle.manifest_bytes)["method"]["name"] == "filtering"
