"""`status.json` and `flawline status`: what a health check asks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flawline_edge.status_command import status
from flawline_edge.status_file import FILE, Status, StatusError, read_status, renew_status, write_status
from flawline_inspect.clock import wall_clock

READY = Status(
    "press-7", "ready", "", "2026-11-20T10:07:33.123Z", "001f9c21", 2, "bottle-3f9a1c2e", "openvino", "fp32", 42, 10.0
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    tree = {
        "station": "press-7",
        "state_dir": "state",
        "cameras": [{"name": "top", "source": {"kind": "simulated"}}],
        "recipes": {1: "part.flawline"},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / "state").mkdir()
    return path


def age(state_dir: Path, seconds: float) -> None:
    then = wall_clock() - seconds
    os.utime(state_dir / FILE, (then, then))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Every field."""
    write_status(tmp_path, READY)
    assert read_status(tmp_path) == READY


@pytest.mark.parametrize(
    ("state", "code"), [("ready", 0), ("paused", 0), ("starting", 1), ("fault", 1), ("stopped", 1)]
)
def test_the_exit_code_is_the_answer(config: Path, capsys: pytest.CaptureFixture[str], state: str, code: int) -> None:
    """0 where the line can rely on it, or somebody has paused it; a line for people, an object for programs."""
    written = replace(READY, state=state, reason="camera" if state == "fault" else "")
    write_status(config.parent / "state", written)
    assert status(config=config) == code
    assert f"press-7: {state}" in capsys.readouterr().out
    assert status(config=config, json=True) == code
    assert json.loads(capsys.readouterr().out)["state"] == state


def test_a_station_that_gives_no_sign_is_not_ready(config: Path) -> None:
    """Whatever its last word was: it hangs, or was killed."""
    state_dir = config.parent / "state"
    write_status(state_dir, READY)
    age(state_dir, 9.0)
    assert status(config=config) == 0
    age(state_dir, 12.0)
    with pytest.raises(
        StatusError, match=r"press-7: was ready and has given no sign for 1\d s; it hangs or is dead"
    ) as e:
        status(config=config)
    assert e.value.exit_code == 1
    renew_status(state_dir)
    assert status(config=config) == 0


def test_a_time_from_the_future_is_no_sign(config: Path) -> None:
    """The clock was set back since: until the next renewal nothing is known."""
    write_status(config.parent / "state", READY)
    age(config.parent / "state", -3600.0)
    with pytest.raises(StatusError):
        status(config=config)


def test_a_stopped_station_stays_stopped(config: Path) -> None:
    """It need not go on saying so."""
    write_status(config.parent / "state", replace(READY, state="stopped"))
    age(config.parent / "state", 1e6)
    assert status(config=config) == 1


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"station":"x"}', bytes(range(256)), b"null"])
def test_what_is_no_status_is_said_to_be_none(config: Path, data: bytes) -> None:
    """One sentence, with the file."""
    (config.parent / "state" / FILE).write_bytes(data)
    with pytest.raises(StatusError, match=r"status\.json: cannot be read as a station's status"):
        status(config=config)


def test_where_no_station_has_run(config: Path) -> None:
    """The likeliest mistake is another configuration than the station's."""
    with pytest.raises(StatusError, match=r"status\.json: does not exist; no station has run with this state_dir"):
        status(config=config)
