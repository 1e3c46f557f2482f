"""From twelve small pictures to a bundle that the line can run, and what happens when something goes wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import safetensors.numpy
import torch
from tests.train_.parts import part, write, write_parts
from torch.utils.flop_counter import FlopCounterMode

from flawline_engines import open_engine
from flawline_inspect import __version__
from flawline_inspect.bundle import MODEL, REPORT, WEIGHTS, Bundle
from flawline_inspect.errors import BundleError, FlawlineError, HealthError, InputError
from flawline_inspect.frame import read_picture
from flawline_train import learning, reserve, train
from flawline_train.autoencoders import FilteringAutoencoder
from flawline_train.autoencoders.methods import build
from flawline_train.known_defects import CostModel
from flawline_train.options import PRESETS, name_for
from flawline_train.rehearsal import REHEARSAL
from flawline_train.report.facts import report_from_html
from flawline_train.reserve import end_of_fit
from flawline_train.threshold import threshold_from_scores
from flawline_train.training import Training, TrainProgress

STAGES = ["read", "train", "calibrate", "export", "write"]
SMALL: dict[str, Any] = {"steps": 4, "width": 4, "size": 32, "device": "cpu"}


class Case(NamedTuple):
    good: Path
    output: Path
    training: Training
    progress: list[TrainProgress]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("training")
    good, output = folder / "good parts", folder / "part.flawline"
    write_parts(good, 10)
    for seed in range(2):
        write(good / "late" / f"{seed:03d}.png", part(100 + seed))
    (good / "broken.png").write_bytes(b"not a picture")
    progress: list[TrainProgress] = []
    return Case(good, output, train(good, output, on_progress=progress.append, **SMALL), progress)


@pytest.fixture
def no_export(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds and is not what the test is about: every graph is that of `case`."""
    model = case.training.bundle.member(MODEL)
    monkeypatch.setattr(learning, "onnx_from_graph", lambda graph: model)


# The bundle


def test_the_bundle_on_disk_is_the_one_returned(case: Case) -> None:
    """What was written verifies on opening and has the returned bundle's identity."""
    opened = Bundle.open(case.output)
    assert opened.manifest_bytes == case.training.bundle.manifest_bytes
    assert opened.model_id == case.training.bundle.model_id and opened.model_id.startswith("part-")
    assert [path.name for path in case.output.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("engine", "tolerance"), [("onnxruntime", 1e-5), ("auto", 1e-2)])
def test_engines_run_it_and_reproduce_the_golden_scores(case: Case, engine: Any, tolerance: float) -> None:
    """ONNX Runtime to the digit, whatever `auto` finds within a share of the threshold that no 10 % margin notices."""
    bundle = Bundle.open(case.output)
    golden = list(bundle.golden())
    assert [picture.label for picture in golden] == ["good"] * 8 + ["damaged"] * 8
    with open_engine(bundle, engine) as runner:
        found = runner.infer(np.stack([picture.fitted for picture in golden]))
    scores = np.array([picture.score for picture in golden])
    assert np.abs(found.scores - scores).max() <= tolerance * max(bundle.threshold, scores.max())
    assert (scores[:8] <= 0.9 * bundle.threshold).all() and (scores[8:] >= 1.1 * bundle.threshold).all()
    assert found.heatmaps.shape == (16, 32, 32) and found.expected.shape == (16, 32, 32, 3)


def test_manifest_names_every_picture_with_its_hash_and_role(case: Case) -> None:
    """Twelve pictures by name below the folder, hashed as hashlib does; three calibrate, nine train, none does both."""
    data = Bundle.open(case.output).manifest.data
    names = [f"{i:03d}.png" for i in range(10)] + ["late/000.png", "late/001.png"]
    assert [entry.file for entry in data.pictures] == names
    for entry in data.pictures:
        assert entry.sha256 == hashlib.sha256((case.good / entry.file).read_bytes()).hexdigest()
    roles = [entry.role for entry in data.pictures]
    assert (roles.count("calibration"), roles.count("train")) == (3, 9)
    ((skipped),) = data.skipped
    assert skipped.file == "broken.png" and "not a picture" in skipped.reason


def test_every_member_has_the_hash_that_the_manifest_says(case: Case) -> None:
    """Recomputed from the zip itself; nothing is in it that the manifest does not list."""
    manifest = Bundle.open(case.output).manifest
    with zipfile.ZipFile(io.BytesIO(case.output.read_bytes())) as archive:
        assert set(archive.namelist()) == {"manifest.json", *manifest.members}
        for name, entry in manifest.members.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == entry.sha256, name


def test_manifest_tells_method_frame_calibration_and_versions(case: Case) -> None:
    """Enough to train the same again and to know what the threshold rests on."""
    manifest = Bundle.open(case.output).manifest
    assert manifest.name == "part" and manifest.created.endswith("Z")
    assert manifest.method.name == "filtering"
    assert {"width": 4, "steps": SMALL["steps"], "seed": 0, "size": 32}.items() <= manifest.method.parameters.items()
    frame = manifest.frame
    assert (frame.width, frame.height, frame.bit_depth, frame.roi) == (32, 32, 16, None)
    assert frame.picture_wh == (40, 40)
    calibration = manifest.calibration
    expected = threshold_from_scores(np.array(calibration.scores), 0.01)
    assert len(calibration.scores) == 3
    assert calibration.threshold == pytest.approx(expected.value)
    assert (calibration.basis, calibration.false_reject_target) == ("exponential_tail", 0.01)
    assert calibration.promised_false_reject_rate == pytest.approx(1 - 0.05 ** (1 / 3))
    assert (calibration.exceedances, calibration.confidence, calibration.suspects) == (0, 0.95, [])
    assert calibration.estimated_false_reject_rate == pytest.approx(expected.estimated)
    assert set(calibration.parts) == {entry.file for entry in manifest.data.pictures if entry.role == "calibration"}
    assert calibration.defects is None
    assert manifest.versions["flawline"] == __version__
    assert {"python", "torch", "onnx", "onnxruntime", "opencv", "numpy"} <= manifest.versions.keys()


def test_the_bundle_judges_the_good_pictures_and_refuses_damaged_ones(case: Case) -> None:
    """Bounds of all pictures' health, those learnt from and those held out, are in the bundle and bind on its pictures."""
    bundle = Bundle.open(case.output)
    assert {"aspect", "flat", "brightness", "contrast", "sharpness"} <= bundle.health.bounds.keys()
    for file in bundle.manifest.data.pictures:
        bundle.fit(read_picture(case.good / file.file))
    for damaged, sentence in ((part(0) // 9, "too dark"), (part(0)[:, :20], "too narrow")):
        with pytest.raises(HealthError, match=sentence):
            bundle.fit(damaged)
    report = report_from_html(bundle.member(REPORT).decode(), "x")
    assert [row[0] for row in report.health] == list(bundle.health.bounds)


def test_the_model_card_speaks_of_this_model(case: Case) -> None:
    """Which pictures, how many, what is promised and what is only estimated; no section is empty."""
    card = Bundle.open(case.output).manifest.card
    assert "12 pictures" in card.data and "'good parts'" in card.data and "3 of them held out" in card.data
    assert "32x32" in card.limits and "safety" in card.limits
    assert "promise a false-reject rate of at most 63.2%" in card.who_may_be_wronged
    assert "are estimated from their scores, not promised" in card.who_may_be_wronged
    assert len(card.intended_use) > 40


def test_weights_are_half_precision_and_fit_the_network(case: Case) -> None:
    """Without pickle: every tensor of the network by name and shape, floats in fp16."""
    weights = safetensors.numpy.load(case.training.bundle.member(WEIGHTS))
    state = FilteringAutoencoder(4, (32, 32)).state_dict()
    assert weights.keys() == state.keys()
    for name, tensor in state.items():
        assert weights[name].shape == tuple(tensor.shape)
        assert weights[name].dtype == (np.float16 if tensor.is_floating_point() else np.int64)
    floats = [tensor for tensor in weights.values() if tensor.dtype == np.float16]
    assert all(np.isfinite(tensor).all() for tensor in floats)


def test_training_reports_what_was_made(case: Case) -> None:
    """Steps, parameters and notes: the broken file by name, and that twelve pictures are few."""
    made = case.training
    assert made.fit.steps == SMALL["steps"] and not made.fit.interrupted and np.isfinite(made.fit.loss)
    assert made.parameters == sum(p.numel() for p in FilteringAutoencoder(4, (32, 32)).parameters())
    assert any("broken.png" in note for note in made.notes)
    assert any("only 12 good pictures" in note for note in made.notes)
    assert any("with 3 held-out parts the best that can be promised is 63.2%" in note for note in made.notes)
    assert any("299 would allow the target of 1.00%, which is only estimated" in note for note in made.notes)


def test_progress_goes_through_the_stages_in_order(case: Case) -> None:
    """read, train, calibrate, export, write; within each the share rises in 0-1; only training has a loss."""
    stages = [update.stage for update in case.progress]
    assert list(dict.fromkeys(stages)) == STAGES
    assert stages == sorted(stages, key=STAGES.index)
    for stage in STAGES:
        shares = [update.share for update in case.progress if update.stage == stage]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert all((update.loss is not None) == (update.stage == "train") for update in case.progress)
    assert [update.step for update in case.progress if update.stage == "train"] == [1, 2, 3, 4]
    assert case.progress[-1].share == 1


# Doing it again


def test_the_same_steps_and_seed_give_the_same_bundle(case: Case, tmp_path: Path) -> None:
    """Model, weights, golden pictures and manifest are equal; only the moment of making may differ."""
    again = train(case.good, tmp_path / "part.flawline", **SMALL).bundle
    first = case.training.bundle
    assert again.member(MODEL) == first.member(MODEL)
    assert again.manifest.model_dump(exclude={"created"}) == first.manifest.model_dump(exclude={"created"})


@pytest.mark.usefixtures("no_export")
def test_another_seed_holds_out_other_pictures(case: Case, tmp_path: Path) -> None:
    """The seed reaches the split and the weights."""
    other = train(case.good, tmp_path / "part.flawline", seed=5, **SMALL).bundle
    first = case.training.bundle
    assert [entry.role for entry in other.manifest.data.pictures] != [
        entry.role for entry in first.manifest.data.pictures
    ]
    assert other.member(WEIGHTS) != first.member(WEIGHTS)


@pytest.mark.usefixtures("no_export")
def test_stopping_early_still_gives_a_bundle(case: Case, tmp_path: Path) -> None:
    """Asked to stop after a hundred of a thousand steps, what has been learnt is calibrated and written."""
    answers = iter([False] * 99 + [True])
    made = train(case.good, tmp_path / "early.flawline", **{**SMALL, "steps": 1000}, should_stop=lambda: next(answers))
    assert made.fit.interrupted and made.fit.steps == 100
    assert Bundle.open(tmp_path / "early.flawline").manifest.method.parameters["steps"] == 100


def test_stopping_at_once_leaves_the_old_bundle(case: Case, tmp_path: Path) -> None:
    """A model of two steps would replace one that works: nothing is written, and the exit code is 130."""
    output = tmp_path / "early.flawline"
    output.write_bytes(b"the bundle of last week")
    answers = iter([False, True])
    with pytest.raises(FlawlineError, match="after 2 steps, too early") as caught:
        train(case.good, output, **{**SMALL, "steps": 1000}, should_stop=lambda: next(answers))
    assert caught.value.exit_code == 130 and output.read_bytes() == b"the bundle of last week"


@pytest.mark.usefixtures("no_export")
def test_region_name_and_target_reach_the_manifest(case: Case, tmp_path: Path) -> None:
    """What was asked for is what the bundle says, and a lenient target lies within the promise."""
    made = train(
        case.good, tmp_path / "x.flawline", roi=(4, 2, 32, 32), name="left-door", false_rejects=0.7, **SMALL
    ).bundle
    assert made.manifest.frame.roi == (4, 2, 32, 32) == made.frame.roi
    assert made.model_id.startswith("left-door-")
    calibration = made.manifest.calibration
    assert (calibration.basis, calibration.false_reject_target) == ("order_statistic", 0.7)
    assert calibration.threshold == pytest.approx(max(calibration.scores))
    assert "lies within that promise" in made.manifest.card.who_may_be_wronged


@pytest.mark.usefixtures("no_export")
def test_parts_are_held_out_whole(case: Case, tmp_path: Path) -> None:
    """Six parts of two pictures each, named by --group: three parts, six pictures, and a score for each part."""
    for i in range(12):
        write(tmp_path / "good" / f"SN{i // 2}_{i % 2}.png", part(i))
    made = train(tmp_path / "good", tmp_path / "x.flawline", group=r"SN\d+", **SMALL)
    calibration, pictures = made.bundle.manifest.calibration, made.bundle.manifest.data.pictures
    assert len(calibration.scores) == 3 and set(calibration.parts) < {f"SN{i}" for i in range(6)}
    held_out = [entry.file[:3] for entry in pictures if entry.role == "calibration"]
    assert sorted(held_out) == sorted([*calibration.parts, *calibration.parts])
    assert any("12 pictures of 6 parts by --group" in note for note in made.notes)


@pytest.mark.usefixtures("no_export")
def test_known_defects_are_reported_priced_and_not_learnt_from(case: Case, tmp_path: Path) -> None:
    """Escapes by kind with their interval, the cheapest threshold beside the promised one, and the same network."""
    for seed in range(3):
        damaged = part(seed)
        damaged[4:20, 4:20] = 255
        write(tmp_path / "bad" / "hole" / f"{seed}.png", damaged)
    write(tmp_path / "bad" / "none" / "0.png", part(50))
    (tmp_path / "bad" / "none" / "1.png").write_bytes(b"")
    costs = CostModel(1.0, 20.0, 0.05)
    arguments: dict[str, Any] = {"defects": tmp_path / "bad", "costs": costs, **SMALL}
    promised = train(case.good, tmp_path / "p.flawline", **arguments)
    cheapest = train(case.good, tmp_path / "c.flawline", threshold="cheapest", **arguments)
    plain = case.training.bundle
    assert promised.bundle.member(WEIGHTS) == plain.member(WEIGHTS) and promised.bundle.threshold == plain.threshold
    assert any("1.png" in note for note in promised.notes)
    found = promised.bundle.manifest.calibration
    assert found.defects is not None and [(kind.kind, kind.n) for kind in found.defects.kinds] == [
        ("hole", 3),
        ("none", 1),
    ]
    assert all(
        kind.escape_interval[0] <= kind.escaped / kind.n <= kind.escape_interval[1] for kind in found.defects.kinds
    )
    priced = found.defects.costs
    assert priced is not None and priced.cheapest_cost_per_part <= priced.cost_per_part
    assert (priced.false_reject, priced.escape, priced.defect_rate) == (1.0, 20.0, 0.05)
    applied = cheapest.bundle.manifest.calibration
    assert (applied.basis, applied.threshold) == ("cheapest", priced.cheapest_threshold)
    assert applied.promised_false_reject_rate > found.promised_false_reject_rate
    assert applied.defects is not None and applied.defects.costs is not None
    assert applied.defects.costs.cost_per_part == pytest.approx(priced.cheapest_cost_per_part)


# What goes wrong


def old_bundle(case: Case, folder: Path) -> tuple[Path, bytes]:
    path = folder / "part.flawline"
    path.write_bytes(case.output.read_bytes())
    return path, path.read_bytes()


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("there_is_an_old_one", [True, False])
def test_a_full_disk_leaves_the_old_bundle(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_is_an_old_one: bool
) -> None:
    """No space while writing: one sentence, the old bundle byte by byte as it was, and no half file beside it."""
    output, before = old_bundle(case, tmp_path)
    if not there_is_an_old_one:
        output.unlink()

    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot be written \(No space left on device\)") as caught:
        train(case.good, output, **SMALL)
    assert ("untouched" in str(caught.value)) is there_is_an_old_one
    assert [path.name for path in tmp_path.iterdir()] == ["part.flawline"] * there_is_an_old_one
    if there_is_an_old_one:
        assert output.read_bytes() == before


def test_an_interrupt_leaves_the_old_bundle(case: Case, tmp_path: Path) -> None:
    """The second Ctrl-C goes through at once and nothing is written."""
    output, before = old_bundle(case, tmp_path)

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(case.good, output, should_stop=interrupt, **SMALL)
    assert output.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["part.flawline"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"minutes": 1.0}, "either --minutes or --steps", id="two budgets"),
        pytest.param({"steps": 0}, "--steps is 0", id="no steps"),
        pytest.param({"steps": None, "minutes": 0.49}, "--minutes is 0.49, expected at least 0.5", id="too short"),
        pytest.param({"width": 3}, "--width is 3", id="too narrow"),
        pytest.param({"width": 257}, "--width is 257", id="too wide"),
        pytest.param({"false_rejects": 0.0}, "--false-rejects is 0.0", id="no false reject at all"),
        pytest.param({"false_rejects": 1.0}, "--false-rejects is 1.0", id="everything rejected"),
        pytest.param({"costs": CostModel(1, 1)}, "costs are given without --defects", id="costs of nothing"),
        pytest.param({"threshold": "cheapest"}, "--threshold cheapest needs --defects", id="cheapest without costs"),
        pytest.param({"defects": "gone"}, "gone: does not exist", id="no such defects"),
        pytest.param({"device": "tpu9"}, "--device tpu9 cannot be used", id="no such device"),
    ],
)
def test_wrong_options_are_refused_before_reading(
    case: Case, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    """Each with the option, what it was and what would do; no picture has been read by then."""
    seen: list[TrainProgress] = []
    with pytest.raises(InputError, match=sentence):
        train(case.good, tmp_path / "x.flawline", **{**SMALL, **changes}, on_progress=seen.append)
    assert seen == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 16, 33, 100])
def test_a_size_that_no_frame_has_is_refused(case: Case, tmp_path: Path, size: int) -> None:
    """Sizes are multiples of 16 from 32 up; a nearby one is proposed."""
    with pytest.raises(InputError, match=rf"--size is {size}, expected a multiple of 16.*such as \d+"):
        train(case.good, tmp_path / "x.flawline", **{**SMALL, "size": size})


@pytest.mark.parametrize(
    ("output", "sentence"), [("gone/x.flawline", "gone: does not exist"), ("folder", "folder: is a folder")]
)
def test_an_output_that_cannot_be_is_refused_before_reading(
    case: Case, tmp_path: Path, output: str, sentence: str
) -> None:
    """A missing folder, or a folder where the file should be: said at once, not after minutes of training."""
    (tmp_path / "folder").mkdir()
    seen: list[TrainProgress] = []
    with pytest.raises(InputError, match=sentence):
        train(case.good, tmp_path / output, on_progress=seen.append, **SMALL)
    assert seen == []


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("name", ["press 7", "-x", "ü", "x" * 65])
def test_a_name_that_no_model_may_have_is_refused_before_reading(case: Case, tmp_path: Path, name: str) -> None:
    """One sentence for the user, before any picture is read."""
    seen: list[TrainProgress] = []
    with pytest.raises(InputError, match="name"):
        train(case.good, tmp_path / "x.flawline", name=name, on_progress=seen.append, **SMALL)
    assert seen == []


# Smaller parts


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("part.flawline", "part"),
        ("left door (2).flawline", "left-door--2-"),
        ("v1.2_b-c.flawline", "v1.2_b-c"),
        ("-_.hidden.flawline", "hidden"),
        ("Tür.flawline", "T-r"),
        ("ü.flawline", "model"),
        ("x" * 100 + ".flawline", "x" * 64),
    ],
)
def test_default_name_is_the_files_made_fit(file: str, name: str) -> None:
    """Whatever the file is called, its name is one that a manifest accepts: ASCII, at most 64, no punctuation first."""
    assert name_for(Path("/somewhere") / file) == name


@pytest.mark.parametrize(
    ("elapsed_s", "minutes", "pictures", "reading_s", "left_for_the_rest"),
    [
        pytest.param(0, 10.0, 0, 0.0, lambda fixed, picture, reading: fixed, id="the fixed reserve"),
        pytest.param(0, 10.0, 100, 0.0, lambda fixed, picture, reading: fixed + 100 * picture, id="per picture"),
        pytest.param(0, 10.0, 0, 0.2, lambda fixed, picture, reading: fixed + 0.2 * reading, id="large pictures"),
        pytest.param(
            400, 10.0, 50, 0.1, lambda fixed, picture, reading: fixed + 50 * picture + 0.1 * reading, id="late"
        ),
        pytest.param(0, 0.5, 10_000, 9.0, lambda *_: 15.0, id="at most half of what is left"),
        pytest.param(20, 0.5, 10_000, 9.0, lambda *_: 5.0, id="half of what is left after reading"),
    ],
)
def test_end_of_fit_leaves_a_reserve(
    monkeypatch: pytest.MonkeyPatch,
    elapsed_s: float,
    minutes: float,
    pictures: int,
    reading_s: float,
    left_for_the_rest: Callable[[float, float, float], float],
) -> None:
    """Training ends early enough for what comes after it, but has at least half of the time that is left."""
    monkeypatch.setattr(reserve, "time", SimpleNamespace(monotonic=lambda: 5000.0 + elapsed_s))
    kept = left_for_the_rest(reserve._RESERVE_S, reserve._RESERVE_PER_PICTURE_S, reserve._RESERVE_PER_READING)
    end = end_of_fit(5000.0, minutes, pictures, reading_s)
    assert end == pytest.approx(5000.0 + 60 * minutes - kept)


def test_a_report_is_given_time() -> None:
    """Training ends that much earlier when a report is to follow."""
    started = time.monotonic()
    without, with_report = (end_of_fit(started, 10.0, 50, 0.01, report) for report in (False, True))
    assert without - with_report == pytest.approx(reserve._RESERVE_REPORT_S)


@pytest.mark.parametrize("late_s", [0.0, 1.0, 3600.0])
def test_a_budget_used_up_by_reading_still_trains_a_second(late_s: float) -> None:
    """When nothing is left, a moment of training is better than none: an untrained network lets everything through."""
    now = time.monotonic()
    end = end_of_fit(now - 60 - late_s, 1.0, 12, 0.001)
    assert now + 1 <= end <= time.monotonic() + 1


def test_public_names() -> None:
    """`flawline_train` offers these six names."""
    import flawline_train

    assert sorted(flawline_train.__all__) == [
        "CostModel",
        "Evaluation",
        "TrainProgress",
        "Training",
        "evaluate",
        "train",
    ]
    assert all(hasattr(flawline_train, name) for name in flawline_train.__all__)


# Options of the fit


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "magic"}, "--method is 'magic', expected one of filtering"),
        (
            {"weights": Path("x.safetensors")},
            "--weights is for anomalib:NAME; filtering learns from the pictures alone",
        ),
        ({"method": "anomalib:Padim", "devices": 2}, "--devices is for our own networks"),
        ({"method": "anomalib:Padim", "checkpoint": Path("x")}, "--checkpoint is for our own networks"),
        ({"devices": 0}, "--devices is 0, expected at least 1"),
        ({"resume": True}, "--resume needs --checkpoint DIR"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_reading(
    case: Case, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    """Each with what to do instead, and before any picture is read."""
    seen: list[TrainProgress] = []
    with pytest.raises(InputError, match=sentence):
        train(case.good, tmp_path / "x.flawline", on_progress=seen.append, **SMALL, **options)
    assert seen == []


@pytest.mark.usefixtures("no_export")
def test_a_dry_run_writes_nothing(case: Case, tmp_path: Path) -> None:
    """A few steps, then what would be trained; neither bundle nor checkpoint is there afterwards."""
    options = {**SMALL, "steps": 1000}
    made = train(case.good, tmp_path / "x.flawline", dry_run=True, checkpoint=tmp_path / "saved", **options)
    rehearsal = made.rehearsal
    assert rehearsal is not None and rehearsal.steps == 1000 and rehearsal.steps_per_second > 0
    assert 0 < rehearsal.gflop < 0.1 and made.fit.steps == REHEARSAL.steps
    assert not (tmp_path / "x.flawline").exists() and not (tmp_path / "saved").exists()
    assert case.training.rehearsal is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preset": "nano", "width": 8}, "--preset nano and --width 8 both say how wide"),
        ({"preset": "huge"}, "--preset is 'huge', expected one of nano, small, medium"),
    ],
)
def test_a_preset_is_one_of_three_and_the_only_word_on_the_width(
    case: Case, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        train(case.good, tmp_path / "x.flawline", steps=1, **options)


@pytest.mark.parametrize(
    ("preset", "gflop", "parameters"), [("nano", 1.6, 0.6e6), ("small", 3.6, 1.4e6), ("medium", 8.0, 3e6)]
)
def test_presets_cost_what_they_promise(preset: Any, gflop: float, parameters: float) -> None:
    """Of one picture of 256 x 256 px; a multiplication and an addition are two operations."""
    network = build("filtering", PRESETS[preset], (256, 256)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 1e9 <= gflop
    assert sum(p.numel() for p in network.parameters()) <= parameters
