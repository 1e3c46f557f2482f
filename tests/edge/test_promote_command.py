"""`flawline promote`, beside a station that serves and without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.edge.stand_ins import level_bundle
from tests.edge.test_commands import Line, line, wire

from flawline_edge import promote_command
from flawline_edge.promote_command import promote
from flawline_edge.run_command import call_on_hangup
from flawline_inspect.bundle import Bundle
from flawline_inspect.errors import BundleError, FlawlineError, InputError
from flawline_inspect.overrides import load_overrides

__all__ = ["line", "wire"]


def test_a_running_station_changes_over_and_goes_back(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """The promoted model serves at once, after a restart too, from the station's own copy; `rollback` takes it back."""
    newer = level_bundle(line.folder, "newer")
    new, old = Bundle.open(newer).model_id, Bundle.open(line.folder / "level.flawline").model_id
    with line.runs() as station, call_on_hangup(station.reload):
        assert line.judge().model == old
        assert promote(newer, config=line.folder / "config.yaml") == 0
        assert capsys.readouterr().out == f"recipe 1 serves {new}\n"
        assert line.judge().model == new
        newer.unlink()
        assert promote_again(line, new, capsys)
    with line.runs():
        assert line.judge().model == new
        assert line.ask("rollback", recipe=1)["model"] == old and line.judge().model == old


def promote_again(line: Line, model: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """The station's own copy is the same bundle: nothing is promoted twice, or `rollback` would go back to itself."""
    promote(line.folder / "state" / "models" / f"{model}.flawline", config=line.folder / "config.yaml")
    return capsys.readouterr().out == f"recipe 1 has {model} already\n"


def test_without_a_station_it_holds_from_the_next_start(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is signalled, least of all who has the number of a process that ended."""
    newer = level_bundle(line.folder, "newer")
    with line.runs():
        pass
    assert promote(newer, recipe=1, config=line.folder / "config.yaml") == 0
    assert "when the station starts" in capsys.readouterr().out
    with line.runs():
        assert line.judge().model == Bundle.open(newer).model_id


def test_what_the_station_refuses_is_taken_back(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fails on the way in leaves no trace that a restart would follow."""
    monkeypatch.setattr(promote_command, "TAKEN_S", 0.5)
    monkeypatch.setattr(os, "kill", lambda *_: None)  # the station never hears of it
    newer = level_bundle(line.folder, "newer")
    with line.runs(), pytest.raises(FlawlineError, match="is not promoted"):
        promote(newer, config=line.folder / "config.yaml")
    assert load_overrides(line.folder / "state").bundles == {}


def test_mistakes_change_nothing(line: Line, tmp_path: Path) -> None:
    """A recipe that does not exist, a bundle that is none."""
    newer = level_bundle(line.folder, "newer")
    with pytest.raises(InputError, match=r"--recipe is 9, and .* has 1, 2"):
        promote(newer, recipe=9, config=line.folder / "config.yaml")
    (tmp_path / "x.flawline").write_bytes(b"nonsense")
    with pytest.raises(BundleError):
        promote(tmp_path / "x.flawline", config=line.folder / "config.yaml")
    assert load_overrides(line.folder / "state").bundles == {}
