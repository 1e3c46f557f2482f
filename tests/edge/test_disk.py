"""The disk's alarm: raised before it is full, ended when there is room, and not at every picture in between."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from flawline_edge import disk as disk_module
from flawline_edge.disk import DiskWatch

GB = 1_000_000_000


@pytest.mark.parametrize(
    ("total", "free", "told"),
    [
        pytest.param(
            500 * GB,
            [40 * GB, 0.51 * GB, 0.49 * GB, 0.2 * GB, 0.7 * GB, 0.8 * GB, 0.6 * GB],
            ["", "full", ""],
            id="half a gigabyte of a large disk",
        ),
        pytest.param(
            2 * GB, [0.11 * GB, 0.09 * GB, 0.14 * GB, 0.16 * GB], ["", "full", ""], id="a twentieth of a small one"
        ),
        pytest.param(500 * GB, [0.1 * GB, 0.1 * GB], ["full"], id="full from the start"),
    ],
)
def test_the_alarm_follows_the_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: float, free: list[float], told: list[str]
) -> None:
    """Once each, with the first look: what a crash left on is ended."""
    heard: list[str] = []
    left = iter(free)
    monkeypatch.setattr(disk_module, "CHECK_S", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=next(left)))
    watch = DiskWatch(tmp_path, heard.append)
    for _ in free:
        watch.look()
    assert ["full" if "runs full" in text else text for text in heard] == told


def test_it_is_asked_every_ten_seconds_and_may_be_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A look costs a system call, and a folder that is gone is no reason to end."""
    asked: list[Path] = []

    def gone(folder: Path) -> None:
        asked.append(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(shutil, "disk_usage", gone)
    heard: list[str] = []
    watch = DiskWatch(tmp_path, heard.append)
    for _ in range(100):
        watch.look()
    assert asked == [tmp_path] and heard == []
