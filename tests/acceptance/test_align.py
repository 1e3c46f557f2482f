"""Parts at any angle, from a folder of good pictures to verdicts: training, `check`, `eval` and the station."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.moving_parts import Pose, key, poses, scene, scenes

from flawline_edge.inspector import Inspector
from flawline_engines.check_command import check
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import MODEL, Bundle
from flawline_inspect.config import EngineConfig, RecipeConfig
from flawline_inspect.errors import PlacementError
from flawline_inspect.frame import fit_picture
from flawline_inspect.verdict import Result

train = pytest.importorskip("flawline_train.training", reason="needs the train extra").train

STEPS = 20
SPOT = (30.0, 0.0)
"""Where the defective parts are damaged, from the key's middle."""


def save(path: Path, picture: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


def damaged(pose: Pose, seed: int = 0) -> NDArray[np.uint8]:
    return scene(key(spots=(SPOT,)), pose, seed)


def empty_table() -> NDArray[np.uint8]:
    return scene(np.full((9, 9), 255, np.uint8), Pose(), 7)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of twenty keys that lie anywhere."""
    folder = tmp_path_factory.mktemp("keys")
    for i, picture in enumerate(scenes(20)):
        save(folder / "good" / f"{i:03d}.png", picture)
    out = folder / "key.flawline"
    trained = train(folder / "good", out, steps=STEPS, size=96, width=8)
    assert any(note.startswith("alignment rotate") for note in trained.notes), trained.notes
    return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and damaged keys at other poses, with masks in camera pixels, and one picture without a part."""
    folder = tmp_path_factory.mktemp("test")
    for i, pose in enumerate(poses(6, seed=50)):
        save(folder / "test" / "good" / f"{i}.png", scene(key(), pose, 60 + i))
        save(folder / "test" / "spot" / f"{i}.png", damaged(pose, 70 + i))
        mask = np.zeros((240, 240), np.uint8)
        x, y = pose.at(*SPOT)
        cv2.circle(mask, (round(x), round(y)), 4, 255, -1)
        save(folder / "ground_truth" / "spot" / f"{i}_mask.png", mask)
    save(folder / "test" / "missing" / "0.png", empty_table())
    return folder


@pytest.mark.parametrize("pose", poses(6, seed=90), ids=lambda pose: f"{pose.angle:.0f}")
def test_the_heatmap_lands_on_the_defect_in_the_camera_picture(bundle: Path, pose: Pose) -> None:
    """Whatever the part's angle, the damaged pixel is the middle of what is hot in the camera picture, to the smoothing's width.

    Its middle: patches see a defect with each of their pixels, and so all around it alike."""
    opened = Bundle.open(bundle)
    picture = damaged(pose)
    frame, placement = fit_picture(picture, opened.frame)
    good, _ = fit_picture(scene(key(), pose), opened.frame)
    with OnnxRuntimeEngine(opened.member(MODEL), (opened.frame.height, opened.frame.width)) as engine:
        # Twenty steps learn little: the defect is what differs from a good part at the same pose, in either direction.
        bad_map, good_map = (engine.infer(each[None]).heatmaps[0] for each in (frame, good))
    camera = placement.heatmap_to_camera(np.abs(bad_map - good_map))
    rows, columns = np.nonzero(camera > camera.max() / 2)
    assert math.dist((float(columns.mean()), float(rows.mean())), pose.at(*SPOT)) < 8


def test_check_tells_what_cannot_be_placed(
    bundle: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty table is NotDecidable `health` with a sentence; the others are judged, and shown with their heatmaps."""
    heatmaps = tmp_path / "heatmaps"
    assert check(bundle, [dataset / "test"], json=True, heatmaps=heatmaps, engine="onnxruntime") == 3
    lines = {Path(line["picture"]).parent.name: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (lines["missing"]["result"], lines["missing"]["reason"]) == (3, "health")
    assert "no part found" in lines["missing"]["error"] and lines["missing"]["score"] == 0
    assert lines["good"]["result"] in (1, 2) and not lines["good"]["error"]
    shown = [cv2.imread(str(path)) for path in heatmaps.iterdir()]
    assert len(shown) == 12
    assert all(picture is not None and picture.shape[0] == 240 for picture in shown)

    check(bundle, [dataset / "test" / "missing"], engine="onnxruntime")
    table = capsys.readouterr().out
    assert "NotDecidable" in table and "0%" not in table


def test_eval_counts_an_unplaced_part_as_rejected(bundle: Path, dataset: Path) -> None:
    """It ranks above all others, and masks find their way into the frame."""
    from flawline_train.evaluate import evaluate

    found = evaluate(bundle, dataset, engine="onnxruntime")
    assert (found.n_good, found.n_bad) == (6, 7) and not found.skipped
    assert found.by_defect["missing"].image_auroc == 1 and found.by_defect["missing"].escape_rate == 0
    assert found.pixel_auroc is not None


@pytest.fixture
def inspector(bundle: Path) -> Iterator[Inspector]:
    """Entering runs the self-test, raw golden pictures included."""
    with Inspector(
        1, RecipeConfig(bundle=bundle), EngineConfig(kind="onnxruntime", threads=1), public_key=None
    ) as opened:
        yield opened


def test_the_line_places_every_part(inspector: Inspector) -> None:
    """In milliseconds, and refuses what is no part."""
    judgements = [inspector.judge(picture) for picture in scenes(6, seed=30)]
    assert {judgement.decision.result for judgement in judgements} <= {Result.OK, Result.NOT_OK}
    assert min(judgement.fit_ms for judgement in judgements) < 50  # some 5 ms, on a machine that does nothing else
    with pytest.raises(PlacementError, match="no part found"):
        inspector.judge(empty_table())
    before = time.perf_counter()
    inspector.judge(scenes(1)[0])
    assert time.perf_counter() - before < 5


def test_training_without_alignment_is_still_there(tmp_path: Path) -> None:
    """`--align none` leaves the frame as the picture is."""
    for i, picture in enumerate(scenes(8)):
        save(tmp_path / "good" / f"{i}.png", picture)
    trained = train(tmp_path / "good", tmp_path / "none.flawline", steps=2, size=64, width=4, align="none")
    frame = trained.bundle.frame
    assert frame.alignment is None and (frame.width, frame.height) == (64, 64)
    align = trained.bundle.manifest.frame.align
    assert align is not None and align.kind == "none"
