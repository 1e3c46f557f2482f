"""The report inside a bundle carries its own data, so that the interactive one can be made again from the bundle alone.

They lie in the page as JSON in a `<template>`, which browsers neither show nor run. Pictures that the page shows are
not repeated there: a NUL, which no file name holds, and an id stand for the `src` of the `<img>` of that id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flawline_inspect.errors import BundleError
from flawline_train.report.data import ReportData

__all__ = ["FACTS_ID", "json_from_report", "report_from_html"]

FACTS_ID = "report-data"
_MARK = "\0"
_adapter = TypeAdapter(ReportData)


def json_from_report(data: ReportData, shown: Mapping[str, str]) -> str:
    """`shown`: the id of each picture that the page shows, by its address."""

    def refer(text: str) -> str:
        return f"{_MARK}{shown[text]}" if text in shown else text

    return json.dumps(_mapped(_adapter.dump_python(data, mode="json"), refer), separators=(",", ":"))


def report_from_html(html: str, source: str) -> ReportData:
    """The data of a report that `static_html` made. Raises `BundleError` naming `source` when there are none."""
    reader = _Reader()
    reader.feed(html)
    reader.close()

    def look_up(text: str) -> str:
        return reader.pictures.get(text[1:], text) if text.startswith(_MARK) else text

    try:
        return _adapter.validate_python(_mapped(json.loads("".join(reader.facts)), look_up))
    except (ValueError, ValidationError, RecursionError) as exc:
        raise BundleError(
            f"{source}: its report.html has no data that this version reads; make a report with DATASET, or train again"
        ) from exc


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.facts: list[str] = []
        self.pictures: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img" and given.get("id") and given.get("src"):
            self.pictures[str(given["id"])] = str(given["src"])
        self._inside = tag == "template" and given.get("id") == FACTS_ID

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.facts.append(data)


def _mapped(tree: Any, change: Callable[[str], str]) -> Any:
    """The JSON tree with every text but the keys changed."""
    if isinstance(tree, str):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return [_mapped(value, change) for value in tree] if isinstance(tree, list) else tree
