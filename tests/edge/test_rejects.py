"""Pictures of rejected parts: three of each, written beside the verdicts and never in their way."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.edge.stand_ins import BAD_LEVEL, GOOD_LEVEL, OK_LEVEL, SPEC, THRESHOLD, inspection, wait_until

from flawline_edge import rejects as rejects_module
from flawline_edge.rejects import RejectWriter
from flawline_edge.station import Inspection
from flawline_inspect.decision import Decision
from flawline_inspect.errors import InputError
from flawline_inspect.files import write_atomic
from flawline_inspect.verdict import Reason, Result

KINDS = ("picture", "heatmap", "expected")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_rejected_part_gives_three_pictures(tmp_path: Path) -> None:
    """What was seen, the heatmap over it, what was expected: PNGs of the camera's size."""
    folder = tmp_path / "made" / "rejects"
    with RejectWriter(folder, SPEC, THRESHOLD) as writer:
        writer(inspection(42, BAD_LEVEL, part="SN7", wh=(60, 40)))
    assert (writer.written, writer.left_out) == (1, 0)
    assert names(folder) == sorted(f"000042_SN7_{kind}.png" for kind in KINDS)
    seen, heat, expected = (cv2.imread(str(folder / f"000042_SN7_{kind}.png")) for kind in KINDS)
    assert seen.shape == heat.shape == expected.shape == (40, 60, 3)
    assert (seen == BAD_LEVEL).all() and (expected == GOOD_LEVEL).all()
    assert not np.array_equal(heat, seen)


def test_the_region_of_interest_is_what_is_shown(tmp_path: Path) -> None:
    """Its size, not the camera's."""
    with RejectWriter(tmp_path, SPEC, THRESHOLD) as writer:
        writer(inspection(1, BAD_LEVEL, wh=(60, 40), roi=(10, 5, 30, 20)))
    assert all(cv2.imread(str(path)).shape == (20, 30, 3) for path in tmp_path.iterdir())
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize(
    ("part", "stem"), [("", "000007"), ("a:b:c", "000007_a-b-c"), ("..", "000007_.."), ("-rf", "000007_-rf")]
)
def test_names(tmp_path: Path, part: str, stem: str) -> None:
    """Seq and part; a colon, which some file systems refuse, becomes a dash."""
    with RejectWriter(tmp_path, SPEC, THRESHOLD) as writer:
        writer(inspection(7, BAD_LEVEL, part=part))
    assert names(tmp_path) == sorted(f"{stem}_{kind}.png" for kind in KINDS)


@pytest.mark.parametrize(
    "shown",
    [
        inspection(1, OK_LEVEL),
        inspection(1, BAD_LEVEL, decision=Decision(Result.NOT_DECIDABLE, Reason.REVIEW, 4.5)),
        inspection(1, BAD_LEVEL, decision=Decision.undefined(Reason.NOT_FINITE)),
        Inspection(inspection(1, BAD_LEVEL).verdict, None, None),
    ],
    ids=["OK", "review", "undefined", "no picture"],
)
def test_what_is_no_reject_writes_nothing(tmp_path: Path, shown: Inspection) -> None:
    """Only NotOK with a picture."""
    with RejectWriter(tmp_path, SPEC, THRESHOLD) as writer:
        writer(shown)
    assert names(tmp_path) == [] and (writer.written, writer.left_out) == (0, 0)


def test_a_full_disk_is_counted_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The part is left out with a line in the log, and once there is room the next one is written."""
    full = True

    def write(path: Path, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomic(path, data)

    monkeypatch.setattr(rejects_module, "write_atomic", write)
    with caplog.at_level(logging.WARNING), RejectWriter(tmp_path, SPEC, THRESHOLD) as writer:
        for seq in (1, 2):
            writer(inspection(seq, BAD_LEVEL))
        wait_until(lambda: writer.left_out == 2, "two parts to be left out")
        full = False
        writer(inspection(3, BAD_LEVEL))
    assert (writer.written, writer.left_out) == (1, 2)
    assert names(tmp_path) == sorted(f"000003_SN1_{kind}.png" for kind in KINDS)
    assert "No space left" in caplog.text and str(tmp_path) in caplog.text


def test_a_folder_that_vanishes_is_a_full_disk(tmp_path: Path) -> None:
    """Counted, too."""
    folder = tmp_path / "rejects"
    with RejectWriter(folder, SPEC, THRESHOLD) as writer:
        folder.rmdir()
        writer(inspection(1, BAD_LEVEL))
    assert (writer.written, writer.left_out) == (0, 1)


@pytest.fixture
def hung_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits until the event is set; the test's end sets it."""
    free = threading.Event()

    def write(path: Path, data: bytes) -> None:
        free.wait(30.0)
        write_atomic(path, data)

    monkeypatch.setattr(rejects_module, "write_atomic", write)
    yield free
    free.set()


def test_a_hung_disk_never_blocks_the_line(tmp_path: Path, hung_disk: threading.Event) -> None:
    """A queue of 32, and what does not fit is counted; a call takes no time. What was taken is written later."""
    shown = inspection(1, BAD_LEVEL)
    with RejectWriter(tmp_path, SPEC, THRESHOLD) as writer:
        began = time.monotonic()
        for _ in range(200):
            writer(shown)
        assert time.monotonic() - began < 0.5
        assert writer.left_out in (200 - 32, 200 - 33)  # one may be in the writer's hands
        hung_disk.set()
    assert writer.written + writer.left_out == 200


def test_leaving_does_not_wait_for_a_hung_disk_for_ever(
    tmp_path: Path, hung_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds at most, as for a queue with room; here a join that gives up at once."""
    monkeypatch.setattr(threading.Thread, "join", _impatient(threading.Thread.join))
    writer = RejectWriter(tmp_path, SPEC, THRESHOLD)
    writer.__enter__()
    writer(inspection(1, BAD_LEVEL))
    wait_until(writer._waiting.empty, "the writer to take the first one")
    for _ in range(40):
        writer(inspection(1, BAD_LEVEL))
    left = threading.Event()
    threading.Thread(target=lambda: (writer.__exit__(None, None, None), left.set()), daemon=True).start()
    assert left.wait(8.0)


def _impatient(join: object) -> object:
    return lambda self, timeout=None: join(self, min(timeout or 0.05, 0.05))  # type: ignore[operator]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The user's mistake, said at once and by name."""
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(InputError, match=r"file/rejects: the folder for rejected parts cannot be made \("):
        RejectWriter(tmp_path / "file" / "rejects", SPEC, THRESHOLD)
