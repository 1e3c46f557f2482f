"""What was changed at run time: laid over the configuration, kept whole on the disk, and never in the way of a start."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline_inspect.config import Config, parse_config
from flawline_inspect.overrides import Overrides, Promoted, load_overrides, update_overrides

FILE = "overrides.json"


def config(**changes: Any) -> Config:
    tree = {
        "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
        "recipes": {1: "a.flawline", 2: {"bundle": "b.flawline", "threshold": 3.0}},
    }
    return parse_config(tree | changes, base=Path("/stations/press7"))


def test_nothing_is_changed_without_a_file(tmp_path: Path) -> None:
    """And a state directory that is not there yet is no trouble."""
    assert load_overrides(tmp_path / "none") == Overrides()
    assert Overrides().lines(config()) == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Every kind of change, after a restart; the folder is made where needed."""
    state = tmp_path / "state"
    update_overrides(state, lambda o: o.with_recipe("top", 2))
    update_overrides(state, lambda o: o.with_threshold(2, "cap-01234567", 2.5))
    written = update_overrides(state, lambda o: o.promoting(1, Path("/models/new.flawline")))
    assert load_overrides(state) == written
    assert written.recipe == {"top": 2} and written.thresholds == {2: {"cap-01234567": 2.5}}
    assert written.bundles == {1: Promoted(bundle=Path("/models/new.flawline"))}
    assert [path.name for path in state.iterdir() if path.suffix == ".part"] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"version":2}',
        b'{"recipe":{"top":-1}}',
        b'{"recipe":{"top":"two"}}',
        b'{"thresholds":{"1":{"m":NaN}}}',
        b'{"thresholds":{"1":{"m":0}}}',
        b'{"unknown":1}',
        b"\xff\xfe",
        b" " * 2_000_000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """The station serves what its configuration says; the next change writes a whole file again."""
    (tmp_path / FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_overrides(tmp_path) == Overrides()
    (record,) = caplog.records
    assert str(tmp_path / FILE) in record.getMessage() and "the configuration holds" in record.getMessage()
    update_overrides(tmp_path, lambda o: o.with_recipe("top", 1))
    assert load_overrides(tmp_path).recipe == {"top": 1}


@given(st.binary(max_size=200))
def test_whatever_the_file_holds(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Never an exception."""
    folder = tmp_path_factory.mktemp("any")
    (folder / FILE).write_bytes(content)
    assert isinstance(load_overrides(folder), Overrides)


def test_promotions_are_undone_one_by_one() -> None:
    """To the one before, at last to the configuration's; other recipes are not touched."""
    found: Overrides | None = Overrides().promoting(2, Path("/x"))
    stages = [found]
    for path in ("/a", "/b", "/c", "/d"):
        assert found is not None
        found = found.promoting(1, Path(path))
        stages.append(found)
    assert found is not None and found.bundles[1].bundle == Path("/d") and found.bundles[1].previous == Path("/c")
    for stage in reversed(stages[:-1]):
        assert found is not None
        found = found.rolled_back(1)
        assert found == stage  # as if it had never been promoted: what a failed promotion leaves behind, too
    assert found is not None and found.rolled_back(1) is None and set(found.bundles) == {2}


def test_the_file_has_the_last_word_where_it_was_edited() -> None:
    """Recipe, threshold and bundle each give way to their own key only."""
    changed = Overrides().with_recipe("top", 2).with_threshold(1, "m", 4.0).with_threshold(2, "n", 4.0)
    changed = changed.promoting(1, Path("/a")).promoting(2, Path("/b"))
    before = config()
    assert changed.without_what_changed(before, config()) == changed
    assert changed.without_what_changed(before, config(recipe=2)).recipe == {}
    recipes = {1: "other.flawline", 2: {"bundle": "b.flawline", "threshold": 3.5}}
    kept = changed.without_what_changed(before, config(recipes=recipes))
    assert (kept.recipe, set(kept.thresholds), set(kept.bundles)) == ({"top": 2}, {1}, {2})


def test_two_who_write_lose_nothing(tmp_path: Path) -> None:
    """The station and a command beside it: read, change and write is one step."""

    def many(camera: str) -> None:
        for n in range(20):
            update_overrides(tmp_path, lambda o, n=n: o.with_recipe(f"{camera}{n}", n))

    threads = [threading.Thread(target=many, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert load_overrides(tmp_path).recipe == {f"{name}{n}": n for name in "ab" for n in range(20)}


def test_a_disk_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """To the caller, who decides whether it matters; the old file stays."""
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(OSError, match="file"):
        update_overrides(tmp_path / "file" / "state", lambda o: o)


def test_the_lines_say_what_differs() -> None:
    """What the configuration no longer knows is said to be ignored."""
    changed = Overrides().with_recipe("top", 2).with_recipe("gone", 1).with_threshold(1, "m-01", 4.25)
    lines = changed.promoting(1, Path("/a")).promoting(1, Path("/b")).lines(config())
    assert lines == [
        "camera top serves recipe 2 (configured: 1)",
        "recipe 1 of camera gone: ignored, the configuration has none such",
        "recipe 1 has the threshold 4.25 for model m-01",
        "recipe 1 serves /b (before: /a)",
    ]
    assert Overrides().with_recipe("top", 1).lines(config()) == []
