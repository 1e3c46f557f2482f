"""From a report's data to a page: one file, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from flawline_train.report.data import GOOD_ROLES, ReportData, Triple
from flawline_train.report.facts import FACTS_ID, json_from_report
from flawline_train.report.plots import LOOKS

__all__ = ["interactive_html", "report_path", "static_html"]

_NOTHING_FROM_OUTSIDE = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_POLICY = {
    "static": _NOTHING_FROM_OUTSIDE,
    "interactive": f"{_NOTHING_FROM_OUTSIDE}; script-src 'unsafe-inline'",
}
"""Content security policy: no script at all in the one, only the page's own in the other; no address is ever asked."""

WORST_GOOD_SHOWN, ORDINARY_SHOWN, STRONG_SHOWN = 6, 2, 4


def static_html(data: ReportData) -> str:
    """A page of pictures and SVG without any script, made to lie in a bundle. The same data give the same page.

    It leaves out when the model was made, and carries its data, from which `report_from_html` makes them again.
    """
    from flawline_train.report.static_plots import static_plots

    return _page(data, "static", static_plots(data), Markup())


def interactive_html(data: ReportData) -> str:
    """The page with plots to zoom and to hover over, about 1.3 MB larger by Bokeh's JavaScript."""
    from flawline_train.report.interactive_plots import interactive_plots

    plots, scripts = interactive_plots(data)
    return _page(data, "interactive", plots, scripts)


def report_path(bundle: Path) -> Path:
    """Where the interactive report of a bundle lies: part.report.html beside part.flawline."""
    return bundle.with_name(f"{bundle.stem}.report.html")


class _Shown:
    """Writes the pictures of a page, each with an id of its own."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    def __call__(self, address: str, alt: str) -> Markup:
        first = address not in self.ids
        name = self.ids.setdefault(address, f"picture-{len(self.ids)}")
        given = Markup(' id="{}"').format(name) if first else Markup()
        return Markup('<img{} src="{}" alt="{}">').format(given, address, alt)


def _page(data: ReportData, kind: str, plots: Mapping[str, Markup], scripts: Markup) -> str:
    shown = _Shown()
    body = _template("body.html.jinja").render(
        data=data,
        kind=kind,
        plots=plots,
        picture=shown,
        looks=LOOKS,
        groups=_groups(data.triples),
        n_rejected=sum(p.role == "held_out" and p.score > data.threshold for p in data.scored),
    )
    return _template("page.html.jinja").render(
        title=f"{data.model_id or data.name}: training report",
        policy=_POLICY[kind],
        style=Markup(_text("style.css")),  # our own file
        body=Markup(body),  # escaped by its template
        facts=json_from_report(data, shown.ids) if kind == "static" else "",
        facts_id=FACTS_ID,
        scripts=scripts,
    )


def _groups(triples: Iterable[Triple]) -> list[tuple[str, str, list[Triple]]]:
    """Heading, explanation and pictures: what nearly went wrong first."""
    good = sorted((t for t in triples if t.role in GOOD_ROLES), key=lambda t: -t.score)
    bad = sorted((t for t in triples if t.role not in GOOD_ROLES), key=lambda t: t.score)
    ordinary = min(ORDINARY_SHOWN, len(good) // 2)
    strong = min(STRONG_SHOWN, len(bad) // 2)
    groups = [
        (
            "Good parts rejected or closest to it",
            "The highest scores of good pictures.",
            good[: len(good) - ordinary][:WORST_GOOD_SHOWN],
        ),
        (
            "Defects that escape or come closest to it",
            "The lowest scores of defective pictures.",
            bad[: len(bad) - strong],
        ),
        ("Defects caught most clearly", "The highest scores of defective pictures.", bad[len(bad) - strong :][::-1]),
        ("Most ordinary good parts", "The lowest scores of good pictures.", good[len(good) - ordinary :][::-1]),
    ]
    return [group for group in groups if group[2]]


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    return environment.from_string(_text(name))


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _percent(share: float) -> str:
    """Two meaningful digits: 0.33 %, 2.5 %, 40 %, 99.95 %."""
    distance = round(min(share, 1 - share), 9)
    digits = 2 if 0 < distance < 0.01 else 1 if 0 < distance < 0.1 else 0
    return f"{100 * share:.{digits}f} %"
