"""The plots by Bokeh: zoom, a tooltip with the picture on each dot. Its JavaScript goes into the page, nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.models.annotations import BoxAnnotation, Label, Span
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup

from flawline_train.report.data import Curves, ReportData, ScoredPicture
from flawline_train.report.plots import BLUE, LOOKS, VERMILION, is_logarithmic, place_on_axis, rows_of, size_of

__all__ = ["interactive_plots"]

_INK, _GRID = "#75808B", "#8695A4"
"""Greys that can be read on white and on the dark page: a canvas does not follow the page's colours."""
_MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond"}
_ROOM = 1.6
"""Multiple of the threshold that scores have to reach for its label to find room on the right."""
# Bokeh escapes what it puts in for @name.
_PICTURE_TOOLTIP = """
<div style="display:flex;gap:10px;max-width:340px;font:13px system-ui,sans-serif">
  <img src="@thumbnail" width="84" alt="" style="object-fit:contain">
  <div style="overflow-wrap:anywhere"><b>@name</b><br>@role<br>score @score{0.0000}<br>@verdict</div>
</div>
"""
_NO_PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def interactive_plots(data: ReportData) -> tuple[dict[str, Markup], Markup]:
    """The plots by name, as in `static_plots`, and the scripts that the page needs once, at its end."""
    plots: dict[str, Any] = {"scores": _scores(data)}
    if data.curves is not None:
        plots["roc"] = _roc(data.curves)
        if data.curves.pro:
            plots["pro"] = _pro(data.curves)
    if any(picture.place for picture in data.scored):
        plots["latent"] = _latent(data)
    if len(data.loss) > 1:
        plots["loss"] = _loss(data)
    script, divisions = components(plots)
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return {name: Markup(text) for name, text in divisions.items()}, Markup(library + script)  # Bokeh's own


def _source(pictures: Sequence[ScoredPicture], data: ReportData, **columns: Sequence[float]) -> ColumnDataSource:
    return ColumnDataSource(
        {
            **columns,
            "name": [picture.name for picture in pictures],
            "role": [picture.kind or LOOKS[picture.role].words for picture in pictures],
            "score": [picture.score for picture in pictures],
            "verdict": ["not OK" if picture.score > data.threshold else "OK" for picture in pictures],
            "thumbnail": [picture.thumbnail or _NO_PICTURE for picture in pictures],
        }
    )


def _scores(data: ReportData) -> Any:
    rows = rows_of(data)
    plot = _figure(
        height=90 + 38 * len(rows),
        x_axis_type="log" if is_logarithmic(data) else "linear",
        x_axis_label="score",
        y_range=(-0.6, len(rows) - 0.4),
        tools="xpan,xwheel_zoom,xbox_zoom,reset,save",
    )
    plot.add_layout(BoxAnnotation(left=data.threshold, fill_color=VERMILION, fill_alpha=0.06, line_color=None))
    for row in rows:
        x = [place_on_axis(picture.score, data) for picture in row.pictures]
        plot.scatter(
            "x",
            "y",
            source=_source(row.pictures, data, x=x, y=row.heights),
            size=7,
            color=row.look.colour,
            marker=_MARKERS[row.look.marker],
            alpha=0.75,
            line_color=None,
        )
    plot.add_layout(Span(location=data.threshold, dimension="height", line_color=_INK, line_width=2))
    at_the_edge = max(picture.score for picture in data.scored) < _ROOM * data.threshold
    plot.add_layout(
        Label(
            x=data.threshold,
            y=len(rows) - 0.45,
            x_offset=-6 if at_the_edge else 6,
            y_offset=-14,
            text_align="right" if at_the_edge else "left",
            text=f"threshold {data.threshold:.4g}",
            text_color=_INK,
            text_font_size="12px",
        )
    )
    plot.yaxis.ticker = [row.y for row in rows]
    plot.yaxis.major_label_overrides = {row.y: row.label for row in rows}
    plot.ygrid.visible = False
    plot.add_tools(HoverTool(tooltips=_PICTURE_TOOLTIP))
    return plot


def _roc(curves: Curves) -> Any:
    plot = _figure(height=340, x_axis_label="good parts rejected", y_axis_label="defects caught")
    plot.line([0, 1], [0, 1], color=_GRID, line_dash="dotted")
    x, y = zip(*curves.roc, strict=True)
    line = plot.line(
        "x", "y", source=ColumnDataSource({"x": x, "y": y, "level": curves.levels}), color=BLUE, line_width=2.5
    )
    plot.scatter(
        [curves.false_reject_rate], [1 - curves.escape_rate], size=11, color=VERMILION, legend_label="at the threshold"
    )
    plot.legend.location = "bottom_right"
    _quiet_legend(plot)
    _in_percent(plot)
    tips = [("rejecting from score", "@level{0.0000}"), ("good rejected", "@x{0.0%}"), ("caught", "@y{0.0%}")]
    plot.add_tools(HoverTool(renderers=[line], tooltips=tips))
    return plot


def _pro(curves: Curves) -> Any:
    plot = _figure(height=340, x_axis_label="good pixels marked", y_axis_label="defect regions covered")
    x, y = zip(*curves.pro, strict=True)
    plot.line(x, y, color=BLUE, line_width=2.5)
    _in_percent(plot)
    plot.add_tools(HoverTool(tooltips=[("good pixels marked", "@x{0.0%}"), ("covered", "@y{0.0%}")]))
    return plot


def _latent(data: ReportData) -> Any:
    plot = _figure(
        height=460,
        x_axis_label="first principal component",
        y_axis_label="second principal component",
        match_aspect=True,
    )
    for role, look in LOOKS.items():
        dots = [picture for picture in data.scored if picture.role == role and picture.place]
        if dots:
            x, y = zip(*[picture.place for picture in dots if picture.place], strict=True)
            sizes = [size_of(picture.score, data) for picture in dots]
            plot.scatter(
                "x",
                "y",
                source=_source(dots, data, x=x, y=y, size=sizes),
                size="size",
                color=look.colour,
                marker=_MARKERS[look.marker],
                alpha=0.75,
                line_color=None,
                legend_label=look.words,
            )
    _quiet_legend(plot)
    plot.legend.click_policy = "hide"
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation = "horizontal"
    plot.add_tools(HoverTool(tooltips=_PICTURE_TOOLTIP))
    return plot


def _loss(data: ReportData) -> Any:
    logarithmic = min(loss for _, loss in data.loss) > 0
    plot = _figure(
        height=300, x_axis_label="step", y_axis_label="loss, smoothed", y_axis_type="log" if logarithmic else "linear"
    )
    x, y = zip(*data.loss, strict=True)
    plot.line(x, y, color=BLUE, line_width=2)
    plot.add_tools(HoverTool(tooltips=[("step", "@x"), ("loss", "@y{0.000000}")], mode="vline"))
    return plot


def _figure(**options: Any) -> Any:
    options = {"tools": "pan,wheel_zoom,box_zoom,reset,save", **options}
    plot = figure(
        sizing_mode="stretch_width", background_fill_alpha=0, border_fill_alpha=0, outline_line_color=None, **options
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.toolbar.active_scroll = None  # the wheel scrolls the page until somebody asks for zoom
    plot.toolbar.active_drag = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_line_color = _GRID
    plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = None
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = _INK
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12px"
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = _GRID, 0.25
    return plot


def _in_percent(plot: Any) -> None:
    plot.xaxis.formatter = NumeralTickFormatter(format="0%")
    plot.yaxis.formatter = NumeralTickFormatter(format="0%")


def _quiet_legend(plot: Any) -> None:
    plot.legend.background_fill_alpha = 0
    plot.legend.border_line_color = None
    plot.legend.label_text_color = _INK
