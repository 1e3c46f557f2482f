"""`flawline verdicts`: what was asked for, in order, in three forms, from a journal that may be in use."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flawline_edge import verdicts_command as command_module
from flawline_edge.journal import JOURNAL_FILE, Accepted, Journal, JournalError, Query, read_records
from flawline_edge.journal import query as query_module
from flawline_edge.journal.layout import open_for_reading
from flawline_edge.verdicts_command import verdicts
from flawline_inspect.clock import wall_clock
from flawline_inspect.errors import EXIT_DONE, InputError
from flawline_inspect.verdict import VERDICT_SCHEMA, Reason, Result, Verdict

BOOT = "0001aaaa"
MODEL = "bottle-3f9a1c2e"
NOW = wall_clock()
WAIT_S = 10.0

# seq, seconds ago, result, reason, trigger, part, camera
PARTS: list[tuple[int, float, Result, Reason, str, str, str]] = [
    (1, 9000, Result.OK, Reason.NONE, "T-1", "SN1", "top"),
    (2, 8000, Result.NOT_OK, Reason.NONE, "T-2", "SN2", "side"),
    (3, 7000, Result.UNDEFINED, Reason.DEADLINE, "T-3", "SN3", "top"),
    (4, 600, Result.NOT_DECIDABLE, Reason.HEALTH, "T-4", "", "side"),
    (5, 500, Result.OK, Reason.NONE, "T", "SN2", "top"),
    (6, 400, Result.UNDEFINED, Reason.CAMERA, "T", "SN6", "top"),
    (7, 300, Result.NOT_OK, Reason.NONE, "T", "SN7", "side"),
    (8, 300, Result.OK, Reason.NONE, "T-8", "SN8", "top"),
]


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are counted from when the parts were made, however long the tests take."""
    monkeypatch.setattr(command_module, "wall_clock", lambda: NOW)


def made(seq: int, ago: float, result: Result, reason: Reason, trigger: str, part: str) -> Verdict:
    score = 0.0 if result is Result.UNDEFINED else 1.5 if result is Result.NOT_OK else 0.5
    return Verdict(seq, BOOT, trigger, part, result, reason, score, 1.2101, 2, MODEL, NOW - ago, 7.4)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        for seq, ago, result, reason, trigger, part, camera in PARTS:
            journal.accept(Accepted(BOOT, seq, trigger, part, 2, MODEL, 1.2101, NOW - ago - 0.03, camera))
            journal.decide(made(seq, ago, result, reason, trigger, part)).result(WAIT_S)
        journal.delivered([(BOOT, seq) for seq in range(1, 8)])
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], state_dir: Path, **options: Any) -> list[dict[str, Any]]:
    assert verdicts(state_dir=state_dir, as_json=True, **options) == EXIT_DONE
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [1, 2, 3, 4, 5, 6, 7, 8], id="all"),
        pytest.param({"limit": 3}, [6, 7, 8], id="the newest"),
        pytest.param({"limit": 0}, [1, 2, 3, 4, 5, 6, 7, 8], id="no limit"),
        pytest.param({"since": "1h"}, [4, 5, 6, 7, 8], id="since"),
        pytest.param({"since": "8500s", "until": "450s"}, [2, 3, 4, 5], id="since until"),
        pytest.param({"until": "2h"}, [1, 2], id="until"),
        pytest.param({"result": "NotOK"}, [2, 7], id="result"),
        pytest.param({"result": "notok", "since": "30m"}, [7], id="result since"),
        pytest.param({"result": "1"}, [1, 5, 8], id="result by number"),
        pytest.param({"result": "reject"}, [2, 3, 4, 6, 7], id="rejects"),
        pytest.param({"result": "reject", "limit": 2}, [6, 7], id="newest rejects"),
        pytest.param({"result": "reject", "limit": 0}, [2, 3, 4, 6, 7], id="all rejects"),
        pytest.param({"reason": "camera"}, [6], id="reason"),
        pytest.param({"reason": "recipe"}, [], id="reason of none"),
        pytest.param({"trigger": "T"}, [5, 6, 7], id="trigger"),
        pytest.param({"trigger": "T", "result": "reject"}, [6, 7], id="trigger result"),
        pytest.param({"part": "SN2"}, [2, 5], id="part"),
        pytest.param({"part": "SN2", "trigger": "T", "reason": "camera"}, [], id="contradiction"),
        pytest.param({"camera": "side"}, [2, 4, 7], id="camera"),
        pytest.param({"camera": "side", "result": "reject", "since": "1h"}, [4, 7], id="camera result since"),
    ],
)
def test_what_is_asked_for(
    state_dir: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], expected: list[int]
) -> None:
    assert [line["seq"] for line in shown(capsys, state_dir, **options)] == expected


@pytest.mark.parametrize("page", [1, 2, 3, 500])
def test_pages_do_not_show(state_dir: Path, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """Nothing twice and nothing left out where two parts have one time of capture, whatever the size of a page."""
    monkeypatch.setattr(query_module, "_PAGE", page)
    connection = open_for_reading(state_dir / JOURNAL_FILE)
    try:
        for query, expected in (
            (Query(), [1, 2, 3, 4, 5, 6, 7, 8]),
            (Query(results=(Result.OK, Result.NOT_OK)), [1, 2, 5, 7, 8]),
        ):
            assert [record.verdict.seq for record in read_records(connection, query)] == expected
            for limit in range(1, 9):
                newest = [record.verdict.seq for record in read_records(connection, query, limit)]
                assert newest == expected[::-1][:limit]
    finally:
        connection.close()


def test_a_line_of_json_is_the_verdict_and_more(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = shown(capsys, state_dir, limit=1)[0]
    wire = {key: line.pop(key) for key in VERDICT_SCHEMA["properties"]}
    jsonschema.validate(wire, VERDICT_SCHEMA)
    assert wire == json.loads(made(*PARTS[-1][:6]).to_json())
    assert line.pop("accepted") < wire["time"]
    assert line == {
        "camera": "top", "delivered": False, "late_result": None, "late_score": None, "late_ms": None
    }  # fmt: skip


def test_csv_says_the_same(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, state_dir)
    assert verdicts(state_dir=state_dir, as_csv=True) == EXIT_DONE
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == list(lines[0])
    for row, line in zip(rows, lines, strict=True):
        assert row == {
            key: "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in line.items()
        }


def test_the_table_fits_its_terminal(
    state_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow one has fewer columns and each of them whole; below it stands what is owed and what is gone."""
    for width, last in ((80, "score"), (200, "model")):
        monkeypatch.setenv("COLUMNS", str(width))
        assert verdicts(state_dir=state_dir) == EXIT_DONE
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[-1] == last
        assert max(map(len, lines[:-1])) <= width and "…" not in "".join(lines)
        assert ["NotDecidable" in line for line in lines[1:9]] == [part[2] is Result.NOT_DECIDABLE for part in PARTS]
        assert "1 wait for the broker; 0 were removed" in " ".join(lines[9:])


@pytest.mark.parametrize(
    ("text", "ago"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("7d", 604800), ("1w", 604800)]
)
def test_ages(state_dir: Path, capsys: pytest.CaptureFixture[str], text: str, ago: float) -> None:
    expected = [part[0] for part in PARTS if part[1] <= ago]
    assert [line["seq"] for line in shown(capsys, state_dir, since=text)] == expected


def test_times_of_the_clock(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a Z or an offset, or as the clock on the wall says it here."""
    moment = datetime.fromtimestamp(NOW - 450, timezone.utc)
    elsewhere = moment.astimezone(timezone(timedelta(hours=5)))
    here = moment.astimezone().replace(tzinfo=None)
    for text in (f"{moment:%Y-%m-%dT%H:%M:%S}Z", elsewhere.isoformat(), here.isoformat(), here.isoformat(" ")):
        assert [line["seq"] for line in shown(capsys, state_dir, since=text)] == [6, 7, 8], text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"since": "yesterday"}, "--since yesterday: expected an age"),
        ({"until": "2026-13-01"}, "--until 2026-13-01"),
        ({"result": "bad"}, "expected one of Undefined, OK, NotOK, NotDecidable, reject"),
        ({"reason": "tired"}, "--reason tired: expected one of deadline"),
        ({"limit": -1}, "--limit -1"),
        ({"as_json": True, "as_csv": True}, "give one of them"),
    ],
)
def test_what_cannot_be_asked(state_dir: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        verdicts(state_dir=state_dir, **options)
    assert said in str(caught.value)


def test_a_station_without_a_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no journal"):
        verdicts(state_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).write_bytes(b"not a database at all, " * 100)
    with pytest.raises(JournalError, match="cannot be opened as a journal"):
        verdicts(state_dir=tmp_path)


def test_the_configuration_names_the_folder(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = state_dir / "press7.yaml"
    config.write_text(
        "state_dir: .\ncameras: [{name: top, source: {kind: simulated}}]\nrecipes: {1: part.flawline}\n",
        encoding="utf-8",
    )
    assert verdicts(config=config, as_json=True, limit=1) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["seq"] == 8


def test_it_reads_while_the_station_writes(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was committed a moment ago is there; the writer is not kept waiting."""
    with Journal(state_dir / JOURNAL_FILE) as journal:
        for seq in range(9, 60):
            journal.decide(made(seq, 100 - seq, Result.OK, Reason.NONE, "T", "")).result(WAIT_S)
            if seq % 10 == 0:
                assert [line["seq"] for line in shown(capsys, state_dir, limit=3)] == [seq - 2, seq - 1, seq]
                assert len(shown(capsys, state_dir, limit=0)) == seq


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as somebody else")
def test_an_operator_may_look_who_may_not_write(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As another user, while nobody runs the station and while somebody does."""
    for folder in (state_dir, *state_dir.parents):
        if folder.owner() == "root" and folder != Path("/") and "pytest" in str(folder):
            folder.chmod(0o755)
    (state_dir / JOURNAL_FILE).chmod(0o644)

    @contextlib.contextmanager
    def as_nobody() -> Iterator[None]:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    with as_nobody():
        with pytest.raises(PermissionError):
            (state_dir / "mine").touch()
        assert [line["seq"] for line in shown(capsys, state_dir, limit=1)] == [8]
    with Journal(state_dir / JOURNAL_FILE) as journal:
        journal.decide(made(9, 1, Result.OK, Reason.NONE, "T", "")).result(WAIT_S)
        with as_nobody():
            assert [line["seq"] for line in shown(capsys, state_dir, limit=1)] == [9]
