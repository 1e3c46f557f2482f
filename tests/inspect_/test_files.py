"""Atomic writing: whatever goes wrong, the old file or the new one, and nothing beside it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from flawline_inspect.files import write_atomic

OLD, NEW = b"old " * 100, b"new " * 1000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="one byte"),
        pytest.param(bytes(range(256)) * 4096, id="1 MiB of every byte"),
    ],
)
@pytest.mark.parametrize("before", [pytest.param(None, id="new file"), pytest.param(OLD, id="over an old one")])
def test_the_file_holds_what_was_written(tmp_path: Path, before: bytes | None, data: bytes) -> None:
    """Afterwards the file holds the new bytes, and nothing else lies in the folder."""
    path = tmp_path / "part.flawline"
    if before is not None:
        path.write_bytes(before)
    write_atomic(path, data)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_other_users_can_read_it(tmp_path: Path) -> None:
    """The station runs as a user of its own, so the file's mode is 0644 and not that of a temporary file."""
    path = tmp_path / "part.flawline"
    write_atomic(path, NEW)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    """The old file is replaced, not overwritten: who has it open reads it to its end."""
    path = tmp_path / "part.flawline"
    path.write_bytes(OLD)
    with path.open("rb") as reader:
        start = reader.read(4)
        write_atomic(path, NEW)
        assert start + reader.read() == OLD


def test_the_data_is_on_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the data, rename, fsync of the folder: in another order a power cut leaves an empty file."""
    path = tmp_path / "part.flawline"
    path.write_bytes(OLD)
    real, seen = os.fsync, []

    def watched(descriptor: int) -> None:
        kind = "folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "file"
        seen.append((kind, path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(path, NEW)
    assert seen == [("file", OLD), ("folder", NEW)]


def _raises(error: BaseException) -> Callable[[int], None]:
    def fsync(_: int) -> None:
        raise error

    return fsync


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="disk full"),
        pytest.param(OSError(errno.EIO, "Input/output error"), id="disk broken"),
        pytest.param(KeyboardInterrupt(), id="Ctrl-C"),
    ],
)
@pytest.mark.parametrize("before", [pytest.param(None, id="new file"), pytest.param(OLD, id="over an old one")])
def test_a_failure_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None, error: BaseException
) -> None:
    """When the data cannot be made safe the error travels on, the old file stays and no temporary one remains."""
    path = tmp_path / "part.flawline"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(os, "fsync", _raises(error))
    with pytest.raises(type(error)) as caught:
        write_atomic(path, NEW)
    assert caught.value is error
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == (
        {} if before is None else {path.name: before}
    )


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A real short write (a limit on the size of files stands in for the full disk) loses nothing."""
    path = tmp_path / "part.flawline"
    path.write_bytes(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: OLD}


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    """The folder is not made: a mistyped path is the caller's to report."""
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "part.flawline", NEW)
    assert list(tmp_path.iterdir()) == []
