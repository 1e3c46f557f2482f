"""The plots as SVG by matplotlib, for the report that must not run anything."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from flawline_train.report.data import Curves, ReportData
from flawline_train.report.plots import BLUE, LOOKS, VERMILION, is_logarithmic, place_on_axis, rows_of, size_of

__all__ = ["static_plots"]

_TEXT, _GRID = "#010203", "#010204"
"""Stand for the page's own colours, so that the plots follow its dark and light."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flawline",  # else each writing would have other ids, and the same training another bundle
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a folder may be called $x$
}


def static_plots(data: ReportData) -> dict[str, Markup]:
    """scores, and where there is something to show roc, pro, latent and loss."""
    plots: dict[str, Markup] = {}

    def add(name: str, size: tuple[float, float], draw: Callable[[Axes], None], says: str) -> None:
        with _drawing(size) as (figure, axes):
            draw(axes)
            plots[name] = _svg(figure, name, says)

    rows = rows_of(data)
    add("scores", (10.5, 1.1 + 0.42 * len(rows)), lambda axes: _scores(axes, data), "Scores of all pictures")
    if data.curves is not None:
        curves = data.curves
        add("roc", (5.1, 3.6), lambda axes: _roc(axes, curves), "ROC curve")
        if curves.pro:
            add("pro", (5.1, 3.6), lambda axes: _pro(axes, curves), "PRO curve")
    if any(picture.place for picture in data.scored):
        add("latent", (10.5, 4.8), lambda axes: _latent(axes, data), "Map of the latent space")
    if len(data.loss) > 1:
        add("loss", (5.1, 3.2), lambda axes: _loss(axes, data), "Loss over steps")
    return plots


def _scores(axes: Axes, data: ReportData) -> None:
    rows = rows_of(data)
    for row in rows:
        x = [place_on_axis(picture.score, data) for picture in row.pictures]
        axes.scatter(x, row.heights, s=22, c=row.look.colour, marker=row.look.marker, alpha=0.75, linewidths=0)
    if is_logarithmic(data):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(data.threshold, color=_TEXT, linewidth=1.6)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    end = axes.get_xlim()[1]
    axes.axvspan(data.threshold, max(end, data.threshold), color=VERMILION, alpha=0.06, linewidth=0)
    axes.set_xlim(right=max(end, 1.05 * data.threshold))
    axes.set_yticks([row.y for row in rows], [row.label for row in rows])
    axes.grid(axis="y", visible=False)
    axes.tick_params(length=0)
    axes.set_xlabel("score")
    axes.annotate(
        f"threshold {data.threshold:.4g}",
        (data.threshold, 1), (4, 3), ("data", "axes fraction"), "offset points", fontsize=9,
    )  # fmt: skip


def _roc(axes: Axes, curves: Curves) -> None:
    axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1, linestyle=":")
    axes.plot(*zip(*curves.roc, strict=True), color=BLUE, linewidth=2, drawstyle="default")
    axes.plot(
        [curves.false_reject_rate],
        [1 - curves.escape_rate],
        "o",
        color=VERMILION,
        markersize=8,
        label="at the threshold",
    )
    axes.legend(loc="lower right")
    axes.set(xlabel="good parts rejected", ylabel="defects caught", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")


def _pro(axes: Axes, curves: Curves) -> None:
    axes.plot(*zip(*curves.pro, strict=True), color=BLUE, linewidth=2)
    axes.set(xlabel="good pixels marked", ylabel="defect regions covered", xlim=(-0.006, 0.306), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")


def _latent(axes: Axes, data: ReportData) -> None:
    for role, look in LOOKS.items():
        dots = [picture for picture in data.scored if picture.role == role and picture.place]
        if dots:
            x, y = zip(*[picture.place for picture in dots if picture.place], strict=True)
            # matplotlib's sizes are areas in points, and 1 px is 0.75 pt.
            sizes = [(0.75 * size_of(picture.score, data)) ** 2 for picture in dots]
            axes.scatter(x, y, s=sizes, c=look.colour, marker=look.marker, alpha=0.75, linewidths=0, label=look.words)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(length=0)
    axes.set(xlabel="first principal component", ylabel="second principal component")


def _loss(axes: Axes, data: ReportData) -> None:
    axes.plot(*zip(*data.loss, strict=True), color=BLUE, linewidth=1.6)
    if min(loss for _, loss in data.loss) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.set(xlabel="step", ylabel="loss, smoothed")


@contextmanager
def _drawing(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Figure, name: str, says: str) -> Markup:
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]  # without the document type, whose address a browser might ask for
    # Several pictures share the page, and with it the ids.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = svg.replace("xlink:href", "href").replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'width="[^"]*"', f'role="img" aria-label="{says}"', svg, count=1)
    return Markup(svg)  # matplotlib escapes what it is given
