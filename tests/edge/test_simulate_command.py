"""`flawline simulate`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawline_edge.simulation import DEFECT_KINDS
from flawline_inspect.cli import main


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_writes_the_asked_numbers_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option counts the pictures of its folders; the last words are on stdout, progress is not."""
    folder = tmp_path / "deep" / "set"
    assert _run(str(folder), "--train", "3", "--good", "2", "--per-defect", "1") == 0
    names = {"train/good/000.png", "train/good/001.png", "train/good/002.png"}
    names |= {"test/good/000.png", "test/good/001.png"}
    names |= {f"test/{kind}/000.png" for kind in DEFECT_KINDS}
    names |= {f"ground_truth/{kind}/000_mask.png" for kind in DEFECT_KINDS}
    assert set(_files(folder)) == names
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(folder) in said
    assert "3 good" in said and "2 good" in said and f"{len(DEFECT_KINDS)} defective" in said


def test_the_seed_picks_the_parts(tmp_path: Path) -> None:
    """The same seed gives the same bytes, another one other pictures."""
    sets = []
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert _run(str(tmp_path / name), "--train=2", "--good=0", "--per-defect=0", "--seed", seed) == 0
        sets.append(_files(tmp_path / name))
    assert len(sets[0]) == 2 and sets[0] == sets[1]
    assert all(sets[0][name] != sets[2][name] for name in sets[0])


def test_a_folder_in_use_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 with one sentence that names the folder, and nothing in it is touched."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep", encoding="utf-8")
    assert _run(str(folder), "--train=1") == 2
    assert _files(folder) == {"notes.txt": b"keep"}
    message = capsys.readouterr().err
    assert f"{folder} is not an empty folder" in message and "Traceback" not in message


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder below a file is refused in the same way."""
    (tmp_path / "file").write_bytes(b"")
    assert _run(str(tmp_path / "file" / "set"), "--train=1") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--train", "--good", "--per-defect", "--seed"])
def test_a_negative_number_is_refused_by_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """The message names what the user wrote, and no folder is left behind."""
    assert _run(str(tmp_path / "set"), f"{option}=-1") == 2
    assert f"{option} is -1, expected" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
