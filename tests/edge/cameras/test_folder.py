"""The folder as camera: order, none lost, and what is in the way."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline_edge.cameras import PictureLost
from flawline_edge.cameras.folder import FolderCamera
from flawline_inspect.errors import CameraError

pytestmark = pytest.mark.timeout(20)


def _write(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 12, 3), value, np.uint8))
    return path


def _parts(camera: FolderCamera) -> list[str]:
    parts = []
    while (frame := camera.read()) is not None:
        parts.append(frame.part)
    return parts


def test_pictures_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """Every picture comes once, sorted by path with subfolders, whatever order they were written in."""
    for n, name in enumerate(["c.png", "sub/a.PNG", "a.jpg", "b.bmp", "sub/deeper/z.tif"]):
        _write(tmp_path / name, n)
    with FolderCamera(tmp_path) as camera:
        assert _parts(camera) == ["a", "b", "c", "a", "z"]
        assert camera.read() is None


def test_none_is_lost(tmp_path: Path) -> None:
    """A hundred pictures are a hundred reads, each with its own pixels."""
    for n in range(100):
        _write(tmp_path / f"part_{n:03d}.png", n)
    with FolderCamera(tmp_path) as camera:
        for n in range(100):
            frame = camera.read()
            assert frame is not None
            assert frame.part == f"part_{n:03d}"
            assert (frame.picture == n).all()
        assert camera.read() is None


def test_loop_starts_over(tmp_path: Path) -> None:
    """With loop, the first picture follows the last."""
    for name in "abc":
        _write(tmp_path / f"{name}.png")
    with FolderCamera(tmp_path, loop=True) as camera:
        frames = [camera.read() for _ in range(7)]
    assert [frame.part for frame in frames if frame] == list("abcabca")


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    """Text files, hidden files, hidden folders and folders named like pictures are no parts."""
    _write(tmp_path / "a.png")
    _write(tmp_path / ".hidden.png")
    _write(tmp_path / ".thumbnails" / "a.png")
    (tmp_path / "notes.txt").write_text("a good day")
    (tmp_path / "folder.png").mkdir()
    with FolderCamera(tmp_path) as camera:
        assert _parts(camera) == ["a"]


def test_a_part_id_is_fit_for_the_wire(tmp_path: Path) -> None:
    """Long stems keep their end, where the counter stands; other characters become a dash."""
    _write(tmp_path / "Prüfling am 2026-11-20_000417.png")
    _write(tmp_path / "a b.png")
    with FolderCamera(tmp_path) as camera:
        assert _parts(camera) == ["026-11-20_000417", "a-b"]


@pytest.mark.parametrize("case", ["missing", "file", "empty", "text only"])
def test_a_folder_without_pictures_is_the_users_mistake(tmp_path: Path, case: str) -> None:
    """No such folder, a file, an empty folder: exit code 2, with the path and what was expected."""
    path = tmp_path / "pictures"
    if case == "file":
        path.write_text("x")
    elif case != "missing":
        path.mkdir()
        if case == "text only":
            (path / "readme.txt").write_text("x")
    with pytest.raises(CameraError) as caught, FolderCamera(path):
        pass
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    assert ".png" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "gone"])
def test_a_damaged_picture_costs_its_own_part_only(tmp_path: Path, damage: str) -> None:
    """The read of an unreadable picture names file and part; the next read gives the next picture."""
    for name in "abc":
        _write(tmp_path / f"{name}.png")
    bad = tmp_path / "b.png"
    with FolderCamera(tmp_path) as camera:
        if damage == "gone":
            bad.unlink()
        else:
            whole = bad.read_bytes()
            bad.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"x" * 99}[damage])
        first = camera.read()
        with pytest.raises(PictureLost, match=r"b\.png") as caught:
            camera.read()
        last = camera.read()
        assert camera.read() is None
    assert caught.value.part == "b"
    assert first is not None
    assert last is not None
    assert (first.part, last.part) == ("a", "c")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8, 12), np.uint8), ((8, 12), np.uint16), ((8, 12, 3), np.uint16), ((8, 12, 3), np.uint8)],
    ids=["grey", "16-bit grey", "16-bit colour", "colour"],
)
def test_pictures_keep_their_depth(tmp_path: Path, shape: tuple[int, ...], dtype: type[np.uint8 | np.uint16]) -> None:
    """Grey stays grey and 16 bits stay 16 bits: bringing them to the frame is not the camera's work."""
    picture = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype)
    assert cv2.imwrite(str(tmp_path / "a.png"), picture)
    with FolderCamera(tmp_path) as camera:
        frame = camera.read()
    assert frame is not None
    assert frame.picture.dtype == dtype
    np.testing.assert_array_equal(frame.picture, picture)


def test_reading_outside_the_with_block_is_refused(tmp_path: Path) -> None:
    """A folder that is not entered is not quietly an empty one."""
    _write(tmp_path / "a.png")
    with pytest.raises(CameraError, match="not entered"):
        FolderCamera(tmp_path).read()
