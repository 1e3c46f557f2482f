"""`flawline check`: the table, the JSON lines, the heatmaps, the exit codes, and what it refuses."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.edge.stand_ins import BAD_LEVEL, LIMIT_LEVEL, OK_LEVEL, level_bundle, level_bundle_bytes, picture
from tests.inspect_.bundles import with_health

from flawline_engines.check_command import check
from flawline_engines.engine import Inference
from flawline_engines.onnx_runtime import OnnxRuntimeEngine
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import BundleError, EngineError, InputError

KEYS = ["picture", "result", "reason", "score", "threshold", "model", "error"]
SIZE = (32, 32)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that does not fold the long paths of a test."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return level_bundle(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    return made


def save(path: Path, shown: int | NDArray[np.generic], wh: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(shown, wh) if isinstance(shown, int) else np.asarray(shown))
    return path


def truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    data = save(path, noise).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def run(bundle: Path, *paths: Path, **options: Any) -> int:
    options.setdefault("engine", "onnxruntime")
    return check(bundle, list(paths), **options)


def json_lines(capsys: pytest.CaptureFixture[str], bundle: Path, *paths: Path, **options: Any) -> tuple[int, list[Any]]:
    code = run(bundle, *paths, json=True, **options)
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- the table -------------------------------------------------------------------------------------------------------


def test_good_pictures_end_with_0(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a picture, sorted, and a sentence that counts them; nothing on stderr."""
    paths = [save(folder / name, level) for name, level in (("b.png", LIMIT_LEVEL), ("a.png", OK_LEVEL))]
    assert run(bundle, folder) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["picture", "result", "score", "of", "threshold"]
    assert lines[1].split() == [str(paths[1]), "OK", "1.0000", "25%"]
    assert lines[2].split() == [str(paths[0]), "OK", "4.0000", "100%"]
    assert lines[-1] == f"2 pictures: 2 OK, 0 NotOK at threshold 4.0000 ({Bundle.open(bundle).model_id})"
    assert err == ""


def test_one_rejected_picture_ends_with_3(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among good ones, with its share of the threshold."""
    save(folder / "good.png", OK_LEVEL)
    bad = save(folder / "worse" / "bad.png", BAD_LEVEL)
    assert run(bundle, folder) == 3
    out = capsys.readouterr().out
    assert [str(bad), "NotOK", "6.0000", "150%"] in [line.split() for line in out.splitlines()]
    assert "2 pictures: 1 OK, 1 NotOK at" in out


def test_files_and_folders_in_the_order_given(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder's subfolders are read, hidden files and what is no picture are not; a path given twice counts twice."""
    for name in ("sub/c.png", "b.jpg", "a.tif", ".hidden.png"):
        save(folder / name, OK_LEVEL)
    (folder / "notes.txt").write_text("no picture", encoding="ascii")
    single = save(folder.parent / "single.bmp", OK_LEVEL)
    code, lines = json_lines(capsys, bundle, single, folder, single)
    assert code == 0
    assert [line["picture"] for line in lines] == [
        str(path) for path in (single, folder / "a.tif", folder / "b.jpg", folder / "sub" / "c.png", single)
    ]


@pytest.mark.parametrize("name", ["part[red].png", "set [a]/part.png"])
def test_a_name_with_brackets_is_shown_as_it_is(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The table names the file that is there."""
    path = save(folder / name, OK_LEVEL)
    assert run(bundle, path) == 0
    assert str(path) in capsys.readouterr().out


def test_a_threshold_of_ones_own(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of the bundle's, in the verdict and in what is said."""
    path = save(folder / "a.png", BAD_LEVEL)
    code, lines = json_lines(capsys, bundle, path, threshold=7.5)
    assert code == 0 and (lines[0]["result"], lines[0]["threshold"]) == (1, 7.5)
    assert run(bundle, path, threshold=5.999) == 3
    assert "at threshold 5.9990" in capsys.readouterr().out


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number(bundle: Path, folder: Path, threshold: float) -> None:
    """The user's mistake."""
    with pytest.raises(InputError, match=r"threshold is (nan|inf), expected "):
        run(bundle, save(folder / "a.png", OK_LEVEL), threshold=threshold)


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_threshold_that_no_station_takes(bundle: Path, folder: Path, threshold: float) -> None:
    """A recipe's threshold is more than 0; so is this one."""
    with pytest.raises(InputError):
        run(bundle, save(folder / "a.png", OK_LEVEL), threshold=threshold)


def test_the_region_of_interest(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what lies inside is judged; one that leaves the picture makes it Undefined with the reason."""
    raw = picture(OK_LEVEL, (64, 32))
    raw[:, 40:] = 255
    path = save(folder / "a.png", raw)
    code, lines = json_lines(capsys, bundle, path, roi=(0, 0, 32, 32))
    assert code == 0 and lines[0]["result"] == 1
    code, lines = json_lines(capsys, bundle, path, roi=(40, 0, 24, 32))
    assert code == 3 and lines[0]["result"] == 2
    code, lines = json_lines(capsys, bundle, path, roi=(40, 0, 32, 32))
    assert code == 3 and (lines[0]["result"], lines[0]["reason"]) == (0, "camera")
    assert "leaves the 64x32 picture" in lines[0]["error"]


# --- JSON --------------------------------------------------------------------------------------------------------------


def test_json_is_a_line_a_picture(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These keys in this order, numbers as numbers, and nothing else on stdout."""
    good, bad = save(folder / "a ü.png", OK_LEVEL), save(folder / "b.png", BAD_LEVEL)
    code, lines = json_lines(capsys, bundle, folder)
    model = Bundle.open(bundle).model_id
    assert code == 3
    assert all(list(line) == KEYS for line in lines)
    assert lines == [
        dict(zip(KEYS, (str(good), 1, "", 1.0, 4.0, model, ""), strict=True)),
        dict(zip(KEYS, (str(bad), 2, "", 6.0, 4.0, model, ""), strict=True)),
    ]
    assert run(bundle, good, json=True) == 0


@pytest.mark.parametrize("engine", ["auto", "openvino", "onnxruntime"])
def test_every_engine_says_the_same(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    """Scores agree to a thousandth of the threshold."""
    save(folder / "a.png", OK_LEVEL)
    save(folder / "b.png", BAD_LEVEL)
    code, lines = json_lines(capsys, bundle, folder, engine=engine, threads=1)
    assert code == 3 and [line["result"] for line in lines] == [1, 2]
    assert [line["score"] for line in lines] == pytest.approx([1.0, 6.0], abs=4e-3)


def test_other_picture_types(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grey, 16 bit, alpha, another size: judged by what they show."""
    bad = picture(BAD_LEVEL)
    save(folder / "alpha.png", np.dstack([bad, np.zeros((48, 48), np.uint8)]))
    save(folder / "deep.png", np.full((32, 32), BAD_LEVEL * 257, np.uint16))
    save(folder / "grey.png", bad[:, :, 0])
    save(folder / "large.png", BAD_LEVEL, (640, 640))
    save(folder / "tiny.png", BAD_LEVEL, (1, 1))
    _, lines = json_lines(capsys, bundle, folder)
    assert [line["score"] for line in lines] == pytest.approx([6.0] * 5, abs=0.01)


# --- what cannot be judged -------------------------------------------------------------------------------------------


def test_a_truncated_picture_is_undefined(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never OK, exit code 3, the reason beside it; the pictures after it are judged."""
    cut = truncated(folder / "a.png")
    save(folder / "b.png", OK_LEVEL)
    assert run(bundle, folder) == 3
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith(f"{cut} "))
    assert "Undefined" in row and "0.0000" in row and "%" not in row
    assert "the picture is truncated; copy it again" in row
    assert "2 pictures: 1 Undefined, 1 OK, 0 NotOK" in out


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"no picture at all", "not a picture that OpenCV can read"),
        ("half.jpg", b"\xff\xd8\xff\xe0" + bytes(100), "truncated"),
    ],
)
def test_files_that_are_no_pictures(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, said: str
) -> None:
    """Undefined `camera` with one sentence that names the file."""
    path = folder / name
    path.write_bytes(data)
    code, lines = json_lines(capsys, bundle, path)
    assert code == 3
    assert (lines[0]["result"], lines[0]["reason"], lines[0]["score"]) == (0, "camera", 0.0)
    assert said in lines[0]["error"] and str(path) in lines[0]["error"] and "\n" not in lines[0]["error"]


def not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = OnnxRuntimeEngine.infer

    def spoilt(self: OnnxRuntimeEngine, frames: NDArray[np.uint8]) -> Inference:
        told = infer(self, frames)
        return told._replace(scores=told.scores * np.float32(np.nan))

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", spoilt)


def test_a_score_that_is_no_number(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 `not_finite`, and the line is still JSON."""
    not_a_number(monkeypatch)
    code, lines = json_lines(capsys, bundle, save(folder / "a.png", OK_LEVEL))
    assert code == 3 and (lines[0]["result"], lines[0]["reason"], lines[0]["score"]) == (0, "not_finite", 0.0)


def test_the_table_tells_every_reason(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Undefined without a word leaves the engineer alone."""
    not_a_number(monkeypatch)
    run(bundle, save(folder / "a.png", OK_LEVEL))
    assert "not_finite" in capsys.readouterr().out


def test_pictures_of_another_shape_are_mentioned(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another aspect ratio than in training: judged, with a warning on stderr that says how many and what to do."""
    save(folder / "a.png", OK_LEVEL, (64, 32))
    save(folder / "b.png", OK_LEVEL, (32, 64))
    save(folder / "c.png", OK_LEVEL, (640, 640))
    assert run(bundle, folder, json=True) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "2 pictures have another aspect ratio than the 32x32" in " ".join(err.split())
    assert run(bundle, folder / "a.png", roi=(0, 0, 32, 32)) == 0
    assert capsys.readouterr().err == "", "who names a region of interest knows what he does"


# --- videos --------------------------------------------------------------------------------------------------------------


def video(path: Path, *levels: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE)
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for level in levels:
        writer.write(picture(level, SIZE))
    writer.release()
    return path


def test_a_video_is_judged_frame_by_frame(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each frame has its line, named by its number from 0."""
    path = video(folder / "line.avi", OK_LEVEL, OK_LEVEL, BAD_LEVEL, OK_LEVEL)
    code, lines = json_lines(capsys, bundle, path)
    assert code == 3
    assert [line["picture"] for line in lines] == [f"{path}#{n}" for n in range(4)]
    assert [line["result"] for line in lines] == [1, 1, 2, 1]
    assert run(bundle, video(folder / "good.avi", OK_LEVEL, OK_LEVEL), save(folder / "a.png", OK_LEVEL)) == 0
    assert "3 pictures: 3 OK" in capsys.readouterr().out


def test_what_is_no_video(bundle: Path, folder: Path) -> None:
    """A file that is neither: the user's mistake, named."""
    path = folder / "notes.txt"
    path.write_text("no video", encoding="ascii")
    with pytest.raises(InputError, match=r"notes\.txt: neither a picture nor a video"):
        run(bundle, path)


# --- heatmaps ------------------------------------------------------------------------------------------------------------


def test_heatmaps_show_seen_heat_and_expected(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """A PNG a picture that could be judged, with number, folder, stem and result in its name; three pictures side by side."""
    truncated(folder / "a.png")
    save(folder / "b.png", OK_LEVEL, (40, 40))
    save(folder / "sub" / "b.png", BAD_LEVEL, (40, 40))
    made = tmp_path / "deep" / "heat"
    assert run(bundle, folder, heatmaps=made) == 3
    assert sorted(path.name for path in made.iterdir()) == [f"00001_{folder.name}_b_OK.png", "00002_sub_b_NotOK.png"]
    shown = cv2.imread(str(made / "00002_sub_b_NotOK.png"))
    assert shown.shape == (40, 3 * 40 + 2 * 4, 3)
    assert (shown[:, :40] == BAD_LEVEL).all() and (shown[:, -40:] == 90).all()


def test_heatmaps_of_a_video(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """Numbered by frame."""
    path = video(folder / "line.avi", OK_LEVEL, BAD_LEVEL)
    assert run(bundle, path, heatmaps=tmp_path / "heat") == 3
    assert sorted(p.name for p in (tmp_path / "heat").iterdir()) == [
        "00000_line_000000_OK.png", "00001_line_000001_NotOK.png",
    ]  # fmt: skip


def test_heatmaps_that_cannot_be_written(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder or a file in it: the user's mistake, by name."""
    path = save(folder / "a.png", OK_LEVEL)
    with pytest.raises(InputError, match=r"a\.png/heat: the folder cannot be made"):
        run(bundle, path, heatmaps=path / "heat")
    made = tmp_path / "heat"
    (made / f"00000_{folder.name}_a_OK.png").mkdir(parents=True)
    with pytest.raises(InputError, match=r"_a_OK\.png: cannot be written"):
        run(bundle, path, heatmaps=made)
    assert [p.name for p in made.iterdir()] == [f"00000_{folder.name}_a_OK.png"]


# --- what it refuses -----------------------------------------------------------------------------------------------------


def test_nothing_to_check(bundle: Path, folder: Path) -> None:
    """No path, a folder without pictures, a path that is not there: said before anything is judged."""
    with pytest.raises(InputError, match="nothing to check"):
        run(bundle)
    with pytest.raises(InputError, match=r"pictures: has no pictures \("):
        run(bundle, folder)
    with pytest.raises(InputError, match=r"none\.png: does not exist"):
        run(bundle, save(folder / "a.png", OK_LEVEL), folder / "none.png")


def test_bundles_and_engines_that_cannot_be_used(bundle: Path, folder: Path) -> None:
    """Each with the error of whoever has to act."""
    path = save(folder / "a.png", OK_LEVEL)
    with pytest.raises(BundleError, match="does not exist"):
        run(folder / "none.flawline", path)
    with pytest.raises(BundleError):
        run(path, path)
    with pytest.raises(EngineError, match="unknown"):
        run(bundle, path, engine="abacus")
    with pytest.raises(EngineError, match="fp32"):
        run(bundle, path, precision="bf16")


def test_the_command_line_knows_it(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`flawline check BUNDLE PICTURES --json` ends with the code and prints what the function prints."""
    from flawline_inspect.cli import main

    save(folder / "a.png", OK_LEVEL)
    save(folder / "b.png", BAD_LEVEL)
    command = ["check", str(bundle), str(folder), "--engine", "onnxruntime", "--json", "--threshold"]
    for threshold, code in (("4.5", 3), ("6.5", 0)):
        with pytest.raises(SystemExit) as ended:
            main([*command, threshold])
        assert ended.value.code == code
        assert [json.loads(line)["threshold"] for line in capsys.readouterr().out.splitlines()] == [
            float(threshold)
        ] * 2
    shutil.rmtree(folder)
    with pytest.raises(SystemExit) as ended:
        main([*command, "4.5"])
    assert ended.value.code == 2
    assert "does not exist" in capsys.readouterr().err


def test_every_option_is_documented() -> None:
    """`--help` is made from the docstring."""
    documented = inspect.getdoc(check) or ""
    assert all(f"\n{name}\n" in documented for name in inspect.signature(check).parameters)


# --- pictures that cannot be judged ----------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_judged_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NotDecidable `health` with score 0 and a sentence, no heatmap, and the exit code of what is not OK."""
    path = folder.parent / "bounded.flawline"
    path.write_bytes(with_health(level_bundle_bytes(), brightness=(60, 160)))
    dark = save(folder / "dark.png", 12)
    good = save(folder / "good.png", OK_LEVEL)
    heatmaps = folder.parent / "heatmaps"
    code, lines = json_lines(capsys, path, dark, good, heatmaps=heatmaps)
    assert code == 3
    assert [(line["result"], line["reason"], line["score"]) for line in lines] == [(3, "health", 0), (1, "", 1)]
    assert lines[0]["error"].startswith("too dark: mean 12, good pictures 81 to 130; ") and not lines[1]["error"]
    assert [shown.name for shown in heatmaps.iterdir()] == ["00001_pictures_good_OK.png"]

    assert run(path, folder) == 3
    table = capsys.readouterr().out
    assert "NotDecidable" in table and "too dark: mean 12" in table
    assert "2 pictures: 1 OK, 0 NotOK, 1 NotDecidable" in table


def test_another_shape_is_refused_where_shapes_are_bounded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of a warning that comes after the scores; by region too."""
    path = folder.parent / "bounded.flawline"
    path.write_bytes(with_health(level_bundle_bytes(), aspect=(0.98, 1.02)))
    wide = save(folder / "wide.png", OK_LEVEL, (64, 32))
    code, (line,) = json_lines(capsys, path, wide)
    assert code == 3 and line["reason"] == "health" and line["error"].startswith("too wide: width by height 2.00")
    assert json_lines(capsys, path, wide, roi=(0, 0, 32, 32))[0] == 0
