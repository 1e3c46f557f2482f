"""`flawline demo` as a newcomer runs it: no camera, no broker, no terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline_edge.simulation import SimulatedLine

MEMORY_LIMIT_KB = 400_000
SEED = 3918
"""Of its first thirty parts, any six in a row hold one that lacks a screw or seal, or is misprinted."""
PART_LINE = re.compile(r"^ *(\d+)  (\S+) +(OK|NotOK|NotDecidable|Undefined) ")
CAMERA_HW = (240, 320)
PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
TIMEOUT_S = 40.0


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str
    peak_kb: int
    """The most memory the process ever had in RAM; 0 where it ended before anybody looked."""
    first_part_s: float
    """From the process's start to its first part's line. Said in messages, never judged: machines differ."""

    @property
    def parts(self) -> list[tuple[str, str, str]]:
        """Number, part and result of each part's line."""
        found = (PART_LINE.match(line) for line in self.stdout.splitlines())
        return [match.groups() for match in found if match]  # type: ignore[misc]

    def __str__(self) -> str:
        return (
            f"exit code {self.code}, first part after {self.first_part_s:.1f} s\n"
            f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        )


def demo(folder: Path, *arguments: str | Path) -> Ended:
    """Run it in `folder`, with files for stdout and stderr, and watch its memory."""
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "flawline_inspect.cli", "demo", *map(str, arguments)],
            cwd=folder,
            # Each line at once, so that the time of the first one can be told.
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    peak_kb, first_part_s = 0, float("nan")
    try:
        while process.poll() is None:
            assert time.monotonic() - began < TIMEOUT_S, err.read_text(encoding="utf-8")
            # A peak only grows, so the last look before the end is the one that counts; a process that has ended has none.
            if found := PEAK.search(Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")):
                peak_kb = int(found[1])
            if np.isnan(first_part_s) and b"\n    1  " in out.read_bytes():
                first_part_s = time.monotonic() - began
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return Ended(
        process.returncode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"), peak_kb, first_part_s
    )


def write_parts(folder: Path, count: int) -> list[np.ndarray]:
    folder.mkdir()
    line = SimulatedLine(seed=7)
    pictures = [line.part(i, None).picture for i in range(count)]
    for i, picture in enumerate(pictures):
        assert cv2.imwrite(str(folder / f"part-{i}.png"), picture)
    return pictures


def test_it_shows_parts_and_keeps_pictures_of_the_rejected(tmp_path: Path) -> None:
    """A line a part and a summary; of each rejected part what was seen, the heatmap over it and what was expected,
    in the camera's size. All of it within 400 MB.
    """
    rejects = tmp_path / "deep" / "rejects"
    ended = demo(tmp_path, "--parts", "6", "--out", rejects, "--seed", str(SEED))
    assert ended.code == 0, ended
    assert "Traceback" not in ended.stderr, ended
    assert "\x1b" not in ended.stdout, ended  # no terminal, so no colours and no redrawing
    assert [number for number, _, _ in ended.parts] == [str(i) for i in range(1, 7)], ended
    (summary,) = (line for line in ended.stdout.splitlines() if line.startswith("6 parts: "))
    results = [result for _, _, result in ended.parts]
    assert f"{results.count('OK')} OK" in summary and f"{results.count('NotOK')} NotOK" in summary
    assert "The simulator knows" in summary
    assert "NotOK" in results, ended

    expected = {
        f"{int(number):06d}_{part}_{what}.png"
        for number, part, result in ended.parts
        if result == "NotOK"
        for what in ("picture", "heatmap", "expected")
    }
    assert {path.name for path in rejects.iterdir()} == expected, ended
    for path in sorted(rejects.iterdir()):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert picture is not None and picture.shape == (*CAMERA_HW, 3), path.name
        assert picture.std() > 1, path.name
    for _, part, result in ended.parts:
        if result == "NotOK":
            (seen,) = rejects.glob(f"*_{part}_picture.png")
            drawn = SimulatedLine(seed=SEED, defect_rate=0.2).part(int(part.removeprefix("S"))).picture
            assert np.array_equal(cv2.imread(str(seen)), drawn)

    assert 0 < ended.peak_kb <= MEMORY_LIMIT_KB, f"{ended.peak_kb} kB\n{ended}"


def test_it_ends_after_some_seconds(tmp_path: Path) -> None:
    """`--seconds` bounds the run; however many parts that gave, they are summed up."""
    ended = demo(tmp_path, "--seconds", "2", "--fps", "20")
    assert ended.code == 0, ended
    assert "Traceback" not in ended.stderr, ended
    last = ended.stdout.splitlines()[-1]
    if ended.parts:
        assert last.startswith(f"{len(ended.parts)} parts: "), ended
    else:
        assert last == "No part was inspected.", ended  # a machine that needs two seconds to start


def test_it_takes_a_folder_as_camera(tmp_path: Path) -> None:
    """Every picture once, by name; the simulator knows nothing of them."""
    write_parts(tmp_path / "mine", 4)
    ended = demo(tmp_path, "--camera", "mine", "--fps", "20")
    assert ended.code == 0, ended
    assert [(number, part) for number, part, _ in ended.parts] == [(str(i + 1), f"part-{i}") for i in range(4)]
    assert "4 parts: " in ended.stdout and "simulator" not in ended.stdout, ended


def test_it_takes_a_video_as_camera(tmp_path: Path) -> None:
    """Every frame once."""
    pictures = write_parts(tmp_path / "mine", 4)
    video = tmp_path / "line.mkv"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"FFV1"), 20, CAMERA_HW[::-1])
    for picture in pictures:
        writer.write(picture)
    writer.release()
    ended = demo(tmp_path, "--camera", video)
    assert ended.code == 0, ended
    assert [(number, part) for number, part, _ in ended.parts] == [(str(i + 1), f"V{i:06d}") for i in range(4)]
    assert "4 parts: " in ended.stdout, ended


@pytest.mark.parametrize("camera", ["nowhere", "nowhere/line.mkv"])
def test_a_camera_that_is_not_there(tmp_path: Path, camera: str) -> None:
    """The user's mistake: 2, and one sentence that names it."""
    ended = demo(tmp_path, "--camera", camera)
    assert ended.code == 2, ended
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("flawline: ") and camera in sentence
    assert ended.parts == []
