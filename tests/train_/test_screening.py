"""Who is a suspect among the good pictures: planted damage is found, and variety, few parts and a second kind are left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from tests.train_.parts import parts, varied_parts, write

from flawline_inspect.bundle import REPORT, Bundle
from flawline_train import train
from flawline_train.material import read_material
from flawline_train.options import TrainOptions
from flawline_train.retraining import Previous
from flawline_train.screening import FALSE_SHARE, MAX_SHARE, MIN_PARTS_TO_SCREEN, Screening, screen, standing_out
from flawline_train.training import Training

U8 = NDArray[np.uint8]
WH = (64, 48)
WHOLE = (0, 0, *WH)
SMALL: dict[str, Any] = {"steps": 5, "width": 4, "size": 64, "align": "none", "device": "cpu"}


def scratched(picture: U8, seed: int) -> U8:
    """A dark line of 20 px, anywhere."""
    rng = np.random.default_rng(seed)
    x, y, angle = rng.uniform(16, 48), rng.uniform(14, 34), rng.uniform(0, np.pi)
    dx, dy = 10 * np.cos(angle), 10 * np.sin(angle)
    out = picture.copy()
    cv2.line(out, (round(x - dx), round(y - dy)), (round(x + dx), round(y + dy)), (20, 20, 20), 2)
    return out


def without_a_corner(picture: U8, seed: int) -> U8:
    """A quarter of the picture a little darker, as a solar cell's dead corner."""
    out = picture.copy()
    out[: WH[1] // 2, : WH[0] // 2] = np.clip(out[: WH[1] // 2, : WH[0] // 2] * 0.8, 0, 255)
    return out


def weave(seed: int, wh: tuple[int, int] = WH) -> U8:
    """A texture without fixed places: the same grain, other threads each time."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (wh[1], wh[0])), (0, 0), 1.2)
    grey = 120 + 30 * grain / grain.std()
    return np.clip(np.repeat(grey[..., None], 3, 2), 0, 255).astype(np.uint8)


def screened(frames: U8, names: list[str] | None = None) -> Screening:
    return screen(frames, names or [f"{i:03d}" for i in range(len(frames))], WHOLE)


def planted(good: U8, damage: Callable[[U8, int], U8], at: tuple[int, ...]) -> U8:
    out = good.copy()
    for i in at:
        out[i] = damage(good[i], i)
    return out


# What is found


@pytest.mark.parametrize(
    ("good", "damage"),
    [
        pytest.param(parts(60, WH), scratched, id="small"),
        pytest.param(parts(60, WH), without_a_corner, id="large and faint, three times the same"),
        pytest.param(varied_parts(60, WH), scratched, id="small, on parts that vary"),
    ],
)
def test_planted_damage_is_found(good: U8, damage: Callable[[U8, int], U8]) -> None:
    """Three damaged ones of sixty lead the ranking and are the suspects."""
    at = (7, 31, 52)
    found = screened(planted(good, damage, at))
    assert set(found.ranking[:3]) == set(at)
    assert set(found.suspects) == {f"{i:03d}" for i in at}


def test_planted_damage_in_a_texture_is_found() -> None:
    """No picture has its threads where another has them; a scratch and a smooth place lead the ranking all the same."""
    frames = np.stack([weave(seed) for seed in range(60)])
    cv2.line(frames[11], (14, 10), (50, 38), (5, 5, 5), 3)
    frames[40, 10:34, 20:44] = cv2.GaussianBlur(frames[40], (0, 0), 6)[10:34, 20:44]
    found = screened(frames)
    assert set(found.ranking[:2]) == {11, 40} and "011" in found.suspects


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(parts(60, WH), id="alike"),
        pytest.param(varied_parts(60, WH), id="varied"),
        pytest.param(np.stack([weave(seed) for seed in range(60)]), id="texture"),
        pytest.param(np.repeat(parts(1, WH), 20, 0), id="copies"),
        pytest.param(np.zeros((20, 48, 64, 3), np.uint8), id="black"),
    ],
)
def test_clean_sets_have_no_suspects(frames: U8) -> None:
    """Nothing was planted, nothing is found; scores are finite whatever the pictures."""
    found = screened(frames)
    assert found.suspects == () and found.too_many == 0
    assert found.scores.shape == (len(frames),) and np.isfinite(found.scores).all()


def test_light_that_drifts_is_no_dirt() -> None:
    """From 15 % darker to 15 % brighter over the set."""
    good = parts(60, WH).astype(np.float32) * np.linspace(0.85, 1.15, 60, dtype=np.float32)[:, None, None, None]
    assert screened(np.clip(good, 0, 255).astype(np.uint8)).suspects == ()


def test_a_second_kind_of_part_is_no_dirt() -> None:
    """A quarter of the parts has a disc more: none is a suspect."""
    frames = parts(60, WH)
    for i in range(0, 60, 4):
        cv2.circle(frames[i], (12, 12), 6, (30, 30, 220), -1)
    assert screened(frames).suspects == ()


def test_too_many_that_stand_out_are_named_and_kept() -> None:
    """A fifth of the parts damaged, each in its own way: no accident. The number is told, and a note says what it may be."""
    at = tuple(range(0, 60, 5))
    found = screened(planted(parts(60, WH), scratched, at))
    assert found.suspects == () and found.too_many > MAX_SHARE * 60
    assert set(found.ranking[: len(at)]) == set(at)
    (note,) = found.notes(60)
    assert note.startswith(f"{found.too_many} of 60 parts look unlike the others") and "none was left out" in note
    assert Screening(np.zeros(3)).notes(3) == []


def test_pictures_of_a_part_are_judged_together() -> None:
    """Two of four pictures of a part show the damage: the part is the suspect, and they do not hide one another."""
    good = parts(49, WH)
    burst = planted(np.stack([good[48]] * 4), lambda picture, _: scratched(picture, 9), (2, 3))
    names = [f"{i:03d}" for i in range(48)] + ["burst"] * 4
    found = screened(np.concatenate([good[:48], burst]), names)
    assert found.suspects == ("burst",)
    assert set(found.ranking[:2]) == {50, 51}


@pytest.mark.parametrize("n", [2, 4, MIN_PARTS_TO_SCREEN - 1])
def test_too_few_parts_are_ranked_without_suspects(n: int) -> None:
    """The damaged one is still first where there is something to compare it with."""
    found = screened(planted(parts(n, WH), scratched, (1,)))
    assert found.suspects == () and np.isfinite(found.scores).all()
    if n > 2:
        assert found.ranking[0] == 1


def test_twenty_pictures_are_enough() -> None:
    """One damaged part among twenty."""
    assert screened(planted(parts(20, WH), scratched, (3,))).suspects == ("003",)


def test_the_border_is_not_looked_at() -> None:
    """What pads the frame may be anything."""
    frames = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3)).astype(np.uint8)
    frames[:, 8:56] = planted(parts(30, WH), scratched, (4,))
    found = screen(frames, [str(i) for i in range(30)], (0, 8, 64, 48))
    assert found.suspects == ("4",)


def test_large_frames_are_judged_at_a_smaller_size() -> None:
    """512 px take what 128 px take, and show the same."""
    frames = planted(parts(16, WH), scratched, (4,))
    large = np.stack([cv2.resize(frame, (512, 384), interpolation=cv2.INTER_NEAREST) for frame in frames])
    assert screen(large, [str(i) for i in range(16)], (0, 0, 512, 384)).suspects == ("4",)


# The rule


def test_the_rule_is_that_of_benjamini_and_hochberg() -> None:
    """Against scipy's own adjusted chances of Student's t, on normal values of which some are moved up."""
    rng = np.random.default_rng(0)
    for n in (12, 40, 300):
        values = rng.normal(0, 1, n)
        values[: n // 12] += 4.0
        adjusted = stats.false_discovery_control(stats.t.sf(values, 0.37 * n), method="bh")
        assert standing_out(values).tolist() == (adjusted <= FALSE_SHARE).tolist()


@pytest.mark.parametrize("n", [12, 20, 60, 300])
def test_clean_normal_scores_are_rarely_suspected(n: int) -> None:
    """With median and deviation estimated from the same n scores, at most one clean set in fifteen has a suspect."""
    rng = np.random.default_rng(n)
    wrong = 0
    for _ in range(300):
        values = rng.normal(5, 2, n)
        middle = np.median(values)
        wrong += bool(standing_out((values - middle) / (1.4826 * np.median(np.abs(values - middle)))).any())
    assert wrong / 300 <= 1 / 15


# In training


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty good parts; two more are scratched."""
    folder = tmp_path_factory.mktemp("screening") / "good"
    for i, frame in enumerate(planted(parts(42, WH), scratched, (9, 26))):
        write(folder / f"{i:03d}.png", frame)
    return folder


@pytest.fixture(scope="module")
def trained(dirty: Path) -> Training:
    return train(dirty, dirty.parent / "part.flawline", seed=1, **SMALL)


def test_suspects_are_left_out_and_listed(trained: Training, dirty: Path) -> None:
    """Who would have been learnt from is left out, who is held out counts; both are in the manifest and in the notes."""
    manifest = Bundle.open(dirty.parent / "part.flawline").manifest
    roles = {entry.file: entry.role for entry in manifest.data.pictures}
    suspects = ("009.png", "026.png")
    assert {entry.file for entry in manifest.data.suspects} == set(suspects)
    assert {roles[file] for file in suspects} <= {"left_out", "calibration"} and "left_out" in roles.values()
    left_out = [file for file, role in roles.items() if role == "left_out"]
    assert set(left_out) <= set(suspects) and f"{len(left_out)} left out as suspects" in manifest.card.data
    for file in suspects:
        (note,) = [note for note in trained.notes if note.startswith(f"{file}:")]
        assert "is it good?" in note
        assert ("It was not learnt from; take it out, or keep it with --keep-suspects" in note) is (file in left_out)
    calibration = manifest.calibration
    assert calibration.exceedances == sum(score > calibration.threshold for score in calibration.scores)
    assert ("026.png" in calibration.parts) is (roles["026.png"] == "calibration")


def test_the_reports_show_the_ranking(trained: Training) -> None:
    """In the page inside and the one beside: twelve pictures in three views, the suspects first and marked."""
    assert trained.report is not None
    for html in (trained.bundle.member(REPORT).decode(), trained.report.read_text()):
        section = html[html.index('<section id="unusual">') :]
        figures = section[: section.index("</section>")].split("<figure")[1:]
        assert [figure.count("<img") for figure in figures] == [3] * 12
        names = [figure.split("<b>")[1].split("</b>")[0] for figure in figures]
        assert set(names[:2]) == {"009.png", "026.png"} and len(set(names)) == 12
        assert ["suspect, " in figure for figure in figures] == [True] * 2 + [False] * 10
        assert "left out as suspects" in html and "009.png: unlike the other good parts by" in html


def test_what_is_left_out_is_neither_learnt_from_nor_golden(dirty: Path) -> None:
    """The network's pictures and those that golden ones are chosen from hold no suspect that was left out."""
    material = read_material(options(dirty), lambda done, of: None)
    files = [file.file for file in material.pictures.files]
    left_out = {files[i] for i in material.left_out}
    assert left_out and left_out | material.doubted == {"009.png", "026.png"}
    everything = np.concatenate([material.train, material.held_out, material.left_out])
    assert sorted(everything.tolist()) == list(range(42))
    assert not left_out & {path.name for path in material.paths_by_score(np.zeros(len(material.held_out), np.float32))}
    assert len(material.train_frames) == len(material.train)


def test_keep_suspects_leaves_nothing_out(dirty: Path) -> None:
    """They are named all the same; and the split is the same with and without."""
    kept = read_material(options(dirty, keep_suspects=True), lambda done, of: None)
    screened_out = read_material(options(dirty), lambda done, of: None)
    assert kept.left_out.size == 0 and kept.doubted == frozenset()
    assert kept.screening.suspects == screened_out.screening.suspects and len(kept.screening.suspects) == 2
    assert kept.held_out.tolist() == screened_out.held_out.tolist()
    reasons = kept.suspect_reasons()
    assert set(reasons) == {"009.png", "026.png"}
    assert all(reason.endswith("It is kept, by --keep-suspects; take it out") for reason in reasons.values())


def test_a_dry_run_names_the_suspects(dirty: Path, tmp_path: Path) -> None:
    """Before minutes are spent."""
    notes = train(dirty, tmp_path / "part.flawline", dry_run=True, **{**SMALL, "steps": 2}).notes
    assert sum("is it good?" in note for note in notes) == 2


def test_what_was_left_out_is_new_to_the_next_training(trained: Training, dirty: Path) -> None:
    """`--from` neither takes it for learnt from nor for held out."""
    roles = Previous(dirty.parent / "part.flawline").roles
    manifest = trained.bundle.manifest
    for entry in manifest.data.pictures:
        assert roles.get(entry.sha256) == (None if entry.role == "left_out" else entry.role)


def options(good: Path, **changes: Any) -> TrainOptions:
    """Those of `SMALL`, and every other at its usual value."""
    given: dict[str, Any] = {
        "good": good, "output": good.parent / "x.flawline", "method": "filtering", "minutes": None, "steps": 2, "size": 64, "width": 4,
        "seed": 1, "device": "cpu", "roi": None, "false_rejects": 0.01, "group": None, "keep_suspects": False, "defects": None,
        "costs": None, "threshold": "promised", "align": "none", "name": "x", "report": False, "weights": None, "devices": 1,
        "checkpoint": None, "resume": False, "tensorboard": None, "previous": None, "dry_run": False,
    }  # fmt: skip
    return TrainOptions(**{**given, **changes})
