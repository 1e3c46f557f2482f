"""Logs: one line each, for people or as JSON, and never a secret."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flawline_inspect.config import KEY_PASSWORD_VARIABLE, PASSWORD_VARIABLE
from flawline_inspect.logs import JsonLines, TextLines, masked
from flawline_inspect.signature import PASSPHRASE_VARIABLE

VARIABLES = (PASSWORD_VARIABLE, KEY_PASSWORD_VARIABLE, PASSPHRASE_VARIABLE)


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    about = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("flawline_edge.station", logging.WARNING, __file__, 1, message, arguments, about)


def raised(sentence: str) -> ValueError:
    try:
        raise ValueError(sentence)
    except ValueError as exc:
        return exc


def test_a_json_line_has_its_five_keys() -> None:
    """In this order, UTC with milliseconds; line breaks and quotes stay inside the string."""
    line = JsonLines("press-7").format(record('the camera "%s"\nis lost', "top"))
    assert "\n" not in line
    tree = json.loads(line)
    assert list(tree) == ["time", "level", "logger", "message", "station"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", tree.pop("time"))
    assert tree == {
        "level": "WARNING",
        "logger": "flawline_edge.station",
        "message": 'the camera "top"\nis lost',
        "station": "press-7",
    }


def test_a_traceback_is_a_key_of_its_line() -> None:
    """Not a second line that no reader understands."""
    line = JsonLines("press-7").format(record("failed", error=raised("too hot")))
    assert "\n" not in line
    tree = json.loads(line)
    assert tree["exception"].startswith("Traceback") and tree["exception"].endswith("ValueError: too hot")


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("formatter", [TextLines(), JsonLines("press-7")], ids=["text", "json"])
def test_no_secret_of_the_environment_is_ever_logged(
    formatter: logging.Formatter, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it stands in the message, in an argument or in a traceback."""
    monkeypatch.setenv(variable, 'open"sesame\\')
    line = formatter.format(record('refused open"sesame\\ by %s', 'open"sesame\\', error=raised('bad open"sesame\\')))
    assert "sesame" not in line
    assert line.count("***") == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://joe:pw@cam/1 is silent", "rtsp://***@cam/1 is silent"),
        ("http://cam/stream?user=joe&pwd=hunter2 timed out", "http://cam/stream?user=***&pwd=*** timed out"),
        ("nothing to hide at http://cam/1", "nothing to hide at http://cam/1"),
    ],
)
def test_addresses_are_logged_without_what_opens_them(text: str, shown: str) -> None:
    """As in error messages."""
    assert masked(text) == shown


def test_a_word_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password of three letters would tear holes into every line, and protects nothing."""
    monkeypatch.setenv(PASSWORD_VARIABLE, "top")
    assert masked("the camera top stops") == "the camera top stops"


def test_a_masked_json_line_is_still_json() -> None:
    """A mask that ran over the end of the string would break the line."""
    assert json.loads(JsonLines("p").format(record("token=abc")))["message"] == "token=***"


PROGRAM = """
    import logging, sys, threading, warnings
    from flawline_inspect.logs import complain, set_up_logs

    set_up_logs("json")
    set_up_logs("json", station="press-7")
    logging.getLogger("flawline_edge").warning("first")
    warnings.warn("second")
    thread = threading.Thread(target=lambda: 1 / 0, name="third")
    thread.start()
    thread.join()
    assert complain("fourth")
    raise RuntimeError("fifth")
"""


def test_all_that_a_json_program_says_is_json() -> None:
    """Its warnings, its threads' last words and its own as well: nothing else reaches stderr."""
    source = Path(logging.__file__).parent  # something that exists; the path comes from the environment
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "default"}, cwd=source, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["station"] for line in lines] == ["press-7"] * 5
    told = [line["message"] + line.get("exception", "") for line in lines]
    for word, text in zip(("first", "second", "third", "fourth", "fifth"), told, strict=True):
        assert word in text
    assert "ZeroDivisionError" in told[2]


def test_people_get_text() -> None:
    """Without the option nothing is JSON, and `complain` leaves it to the caller to print."""
    program = """
        import logging
        from flawline_inspect.logs import complain, set_up_logs
        set_up_logs()
        logging.getLogger("flawline_edge").warning("first")
        assert not complain("second")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING flawline_edge: first\n", done.stderr)
