"""What a program writes to stderr: lines for people, or one JSON object a line for machines; never a secret.

Whatever is logged passes `masked` first, its traceback included: passwords from the environment and what stands in the
address of a camera become `***`, whoever put them into a message.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Literal

from flawline_inspect.config import KEY_PASSWORD_VARIABLE, PASSWORD_VARIABLE, masked_url
from flawline_inspect.signature import PASSPHRASE_VARIABLE
from flawline_inspect.verdict import wall_time

__all__ = ["JsonLines", "LogStyle", "TextLines", "complain", "masked", "set_up_logs"]

LogStyle = Literal["text", "json"]

_SECRET_VARIABLES = (PASSWORD_VARIABLE, KEY_PASSWORD_VARIABLE, PASSPHRASE_VARIABLE)
_MIN_SECRET = 4
"""A shorter one is no secret, and hiding it would tear holes into words."""
_log = logging.getLogger("flawline")


def masked(text: str) -> str:
    """The text without the secrets of this environment and without what opens a camera."""
    for variable in _SECRET_VARIABLES:
        secret = os.environ.get(variable, "")
        if len(secret) >= _MIN_SECRET:
            text = text.replace(secret, "***")
    return masked_url(text)


class TextLines(logging.Formatter):
    """`2026-11-20 10:07:33,123 WARNING flawline_edge.station: the camera is lost`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class JsonLines(logging.Formatter):
    """`{"time":"2026-11-20T10:07:33.123Z","level":"WARNING","logger":…,"message":…,"station":…}`, UTC, one line each.

    With an exception, also `exception`: its traceback.
    """

    def __init__(self, station: str) -> None:
        super().__init__()
        self._station = station

    def format(self, record: logging.LogRecord) -> str:
        # Masked before they become JSON: a mask that swallows a quote would leave something that is none.
        line = {
            "time": wall_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": masked(record.getMessage()),
            "station": self._station,
        }
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True)


def set_up_logs(style: LogStyle = "text", *, station: str = "") -> None:
    """Log to stderr in this style, from warnings on. May be called again, when the configuration has been read."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    formatter = JsonLines(station) if style == "json" else TextLines()
    for handler in root.handlers:
        if type(handler) is logging.StreamHandler:  # not those that somebody else has added
            handler.setFormatter(formatter)
    if style == "json":
        # Nothing may reach stderr that is no JSON: a reader would stumble over it just when it matters.
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def complain(sentence: str) -> bool:
    """Log why the program ends, if it logs JSON. Returns whether it does; else the caller prints it for people."""
    if not any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers):
        return False
    _log.critical("%s", sentence)
    return True


def _log_uncaught(kind: type[BaseException], exc: BaseException, traceback: TracebackType | None) -> None:
    _log.critical("unexpected error", exc_info=(kind, exc, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None:
        return  # the interpreter is going down
    name = arguments.thread.name if arguments.thread is not None else "a thread"
    _log.critical(
        "unexpected error in %s",
        name,
        exc_info=(arguments.exc_type, arguments.exc_value, arguments.exc_traceback),
    )
