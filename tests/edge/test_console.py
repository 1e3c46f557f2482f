"""The demonstration's view: a line a part without a terminal, a table with one, and a summary that counts right."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.edge.stand_ins import BAD_LEVEL, OK_LEVEL, inspection

from flawline_edge.cameras import Truth
from flawline_edge.console import ConsoleView
from flawline_edge.station import Inspection
from flawline_inspect.decision import Decision
from flawline_inspect.verdict import Reason, Result

GOOD, SCRATCH = Truth(None), Truth("scratch")
HEADING = "flawline demo · model level-01234567"


def view_of(*shown: Inspection, heading: str = HEADING) -> tuple[ConsoleView, list[str]]:
    """Without a terminal: the view after these parts, and the lines it printed."""
    out = io.StringIO()
    with ConsoleView(Console(file=out, width=200), heading) as view:
        for each in shown:
            view(each)
    return view, out.getvalue().splitlines()


def undecided(seq: int = 1, **options: object) -> Inspection:
    return inspection(seq, decision=Decision(Result.NOT_DECIDABLE, Reason.REVIEW, 4.4), **options)  # type: ignore[arg-type]


def undefined(seq: int = 1, reason: Reason = Reason.DEADLINE, **options: object) -> Inspection:
    return inspection(seq, decision=Decision.undefined(reason), **options)  # type: ignore[arg-type]


# --- without a terminal ----------------------------------------------------------------------------------------


def test_each_part_is_a_line() -> None:
    """Heading first; then seq, part, result, score against threshold, time, reason."""
    _, lines = view_of(
        inspection(1, OK_LEVEL, part="SN1"), inspection(2, BAD_LEVEL, part="SN2"), undefined(3, Reason.NOT_FINITE)
    )
    assert lines[0] == HEADING and len(lines) == 4
    assert lines[1].split() == ["1", "SN1", "OK", "1.000", "/", "4.000", "7.4", "ms"]
    assert lines[2].split() == ["2", "SN2", "NotOK", "6.000", "/", "4.000", "7.4", "ms"]
    assert lines[3].split() == ["3", "SN1", "Undefined", "0.000", "/", "4.000", "7.4", "ms", "not_finite"]


@pytest.mark.parametrize(
    ("shown", "ending"),
    [
        (inspection(1, OK_LEVEL, truth=GOOD), "  good"),
        (inspection(1, BAD_LEVEL, truth=SCRATCH), "  scratch"),
        (inspection(1, OK_LEVEL, truth=SCRATCH), "  scratch  <- escaped"),
        (inspection(1, BAD_LEVEL, truth=GOOD), "  good  <- false reject"),
        (undecided(truth=SCRATCH), "review  scratch"),
        (inspection(1, OK_LEVEL), "ms  "),
    ],
    ids=["passed", "caught", "escaped", "false reject", "undecided", "nobody knows"],
)
def test_a_line_ends_with_the_truth(shown: Inspection, ending: str) -> None:
    """What the simulator knows, and a mark where the verdict was wrong."""
    _, lines = view_of(shown)
    assert lines[1].endswith(ending)


def test_late_results_are_not_shown() -> None:
    """The part has its line from the deadline's verdict already; it counts once."""
    view, lines = view_of(undefined(1), inspection(1, BAD_LEVEL, late=True, truth=SCRATCH))
    assert len(lines) == 2 and "deadline" in lines[1]
    said = view.summary()
    assert said.startswith("1 parts: ") and "1 Undefined" in said and "0 NotOK" in said and "simulator" not in said


def test_a_part_without_a_frame_is_shown() -> None:
    """A deadline's verdict has neither picture nor truth."""
    _, lines = view_of(Inspection(undefined(5, part="").verdict, None, None))
    assert lines[1].split()[:2] == ["5", "Undefined"]


def test_part_names_and_headings_are_no_markup() -> None:
    """A camera's path may hold brackets."""
    _, lines = view_of(heading="flawline demo · /data/[1]/(2)")
    assert lines == ["flawline demo · /data/[1]/(2)"]


@pytest.mark.parametrize("path", ["/data/[red]", "/data/[/x]"])
def test_a_heading_with_brackets_is_shown_as_it_is(path: str) -> None:
    """`--camera` puts a path into the heading."""
    _, lines = view_of(heading=f"flawline demo · {path}")
    assert lines == [f"flawline demo · {path}"]


# --- the summary -------------------------------------------------------------------------------------------------


def test_nothing_inspected() -> None:
    """No division by no parts."""
    assert view_of()[0].summary() == "No part was inspected."


def test_results_are_counted() -> None:
    """Every result that came, OK and NotOK always, and the median time."""
    view, _ = view_of(
        inspection(1, OK_LEVEL, ms=1.0), inspection(2, OK_LEVEL, ms=2.0), inspection(3, BAD_LEVEL, ms=30.0),
        undefined(4, ms=1000.0), undecided(5, ms=3.0),
    )  # fmt: skip
    said = view.summary()
    assert said.startswith("5 parts: ") and said.endswith("; median 3.0 ms from trigger to decision.")
    assert set(said[len("5 parts: ") : said.index(";")].split(", ")) == {
        "2 OK", "1 NotOK", "1 NotDecidable", "1 Undefined",
    }  # fmt: skip
    assert view_of(inspection(1, OK_LEVEL))[0].summary().startswith("1 parts: 1 OK, 0 NotOK;")


def test_truth_is_counted() -> None:
    """Caught of the defective and rejected of the good; what nobody decided is in neither."""
    shown = [
        *(inspection(n, BAD_LEVEL, truth=SCRATCH) for n in range(1, 4)),
        inspection(4, OK_LEVEL, truth=SCRATCH),
        *(inspection(n, OK_LEVEL, truth=GOOD) for n in range(5, 10)),
        inspection(10, BAD_LEVEL, truth=GOOD),
        undecided(11, truth=SCRATCH),
        undefined(12, truth=GOOD),
        inspection(13, BAD_LEVEL),
    ]
    view, _ = view_of(*shown)
    assert "The simulator knows: 3 of 4 defective parts caught, 1 of 6 good parts rejected." in view.summary()


# --- with a terminal -----------------------------------------------------------------------------------------------


def rendered(*shown: Inspection, width: int = 80) -> str:
    """What a terminal showed last, without colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=40, record=True)
    with ConsoleView(console, HEADING) as view:
        for each in shown:
            view(each)
    text = console.export_text()
    return text[max(0, text.rfind("flawline demo")) :]


def row_of(text: str, part: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(part[:8]))


def test_the_table_shows_result_and_score() -> None:
    """At 80 columns, with the counts below."""
    text = rendered(inspection(1, OK_LEVEL, part="SN1"), inspection(2, BAD_LEVEL, part="SN2"))
    assert text.startswith(HEADING)
    assert row_of(text, "SN1").split()[1:3] == ["OK", "1.000"]
    assert row_of(text, "SN2").split()[1:3] == ["NotOK", "6.000"]
    assert "1 OK, 1 NotOK · median 7.4 ms" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("truth", [None, GOOD, SCRATCH], ids=["camera", "good", "scratch"])
def test_the_demonstrations_rows_fit_80_columns(truth: Truth | None) -> None:
    """Its part names, right and wrong verdicts: nothing is cut off."""
    text = rendered(
        inspection(1, BAD_LEVEL, part="S000001", truth=truth), inspection(2, OK_LEVEL, part="S000002", truth=truth)
    )
    assert "…" not in text
    assert row_of(text, "S000001").split()[1:3] == ["NotOK", "6.000"]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_widest_row_keeps_its_result_and_score(width: int) -> None:
    """The longest names and words that there are: the row may lose its end, not what matters."""
    text = rendered(
        inspection(1, 255, part="0123456789abcdef", ms=12345.6, truth=Truth("contamination")),
        undefined(2, Reason.NOT_FINITE, part="fedcba9876543210", truth=GOOD),
        inspection(3, BAD_LEVEL, part="A123456789abcdef", truth=GOOD),
        width=width,
    )
    assert "NotOK" in row_of(text, "01234567") and "16.500" in row_of(text, "01234567")
    assert "Undefined" in row_of(text, "fedcba98") and "0.000" in row_of(text, "fedcba98")
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_narrow_terminal_does_not_crash(width: int) -> None:
    """Somebody always makes the window small."""
    assert rendered(inspection(1, BAD_LEVEL), undefined(2), width=width)


def test_the_bar_has_the_threshold_in_its_middle() -> None:
    """Half full at the threshold, full from twice it, empty at and below 0."""

    def bar(score: float) -> str:
        made = Decision(Result.NOT_OK if score > 4 else Result.OK, Reason.NONE, score)
        row = row_of(rendered(inspection(1, decision=made, part="SN1"), width=120), "SN1")
        return "".join(cell for cell in row if cell in "█·│")

    assert bar(0.0) == bar(-3.0) == "·" * 8 + "│" + "·" * 7
    assert bar(4.0) == "█" * 8 + "│" + "·" * 7
    assert bar(8.0) == bar(1e6) == "█" * 8 + "│" + "█" * 7


def test_only_the_newest_rows_are_kept() -> None:
    """Months of parts fit a screen: the table has twelve rows, the counts are of all."""
    text = rendered(*(inspection(n, OK_LEVEL, part=f"SN{n:04d}") for n in range(1, 101)))
    assert [line.split()[0] for line in text.splitlines() if line.startswith("SN")] == [
        f"SN{n:04d}" for n in range(89, 101)
    ]
    assert "100 OK, 0 NotOK" in text


def test_an_empty_table_is_shown() -> None:
    """Before the first part."""
    assert "0 OK, 0 NotOK" in rendered()
