"""The two pages of a training's report: neither may cost the bundle, so whatever goes wrong with them becomes a note."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flawline_inspect.bundle import Bundle
from flawline_inspect.files import write_atomic
from flawline_train.calibrate import MapCalibration
from flawline_train.graph import InspectionGraph
from flawline_train.material import Material
from flawline_train.promise import suspect_reasons
from flawline_train.report import ReportData, interactive_html, report_path, static_html
from flawline_train.report.collect import collect_training

__all__ = ["PageInside", "page_inside", "write_page_beside"]

_log = logging.getLogger(__name__)


class PageInside(NamedTuple):
    """The page that travels in the bundle, and the data that both pages are made of."""

    html: bytes
    data: ReportData


def page_inside(
    manifest: Mapping[str, Any],
    model: bytes,
    graph: InspectionGraph,
    material: Material,
    calibration: MapCalibration,
    loss: Sequence[tuple[int, float]],
    notes: list[str],
) -> PageInside | None:
    """The report of this training; None when it could not be made, with another of the `notes`."""
    try:
        data = collect_training(
            manifest,
            model,
            graph,
            material.pictures,
            material.held_out,
            calibration.scores,
            calibration.good,
            loss=loss,
            suspects={**material.suspect_reasons(), **suspect_reasons(calibration)},
            screening=material.screening,
            left_out=frozenset(material.left_out.tolist()),
            notes=notes,
        )
        return PageInside(static_html(data).encode(), data)
    except Exception as exc:  # whatever it is, it must not cost minutes of training
        notes.append(_without_report(exc))
        return None


def write_page_beside(output: Path, bundle: Bundle, data: ReportData, notes: list[str]) -> Path | None:
    """The interactive page beside the bundle at `output`; None when it could not be written, with another of the `notes`."""
    try:
        page = report_path(output)
        named = replace(data, model_id=bundle.model_id, created=bundle.manifest.created)
        write_atomic(page, interactive_html(named).encode())
        return page
    except Exception as exc:  # the bundle is there and good
        notes.append(_without_report(exc))
        return None


def _without_report(exc: Exception) -> str:
    _log.debug("the report could not be made", exc_info=exc)
    return f"the bundle is complete, but its report could not be made ({type(exc).__name__}: {exc})"
