"""Markdown of lines whose figures are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.accuracy.experiments import AS_IT_IS, CONTAMINATED, CONTAMINATED_CLEAN, PRESETS, RETRAIN, UNTRAINED
from benchmarks.accuracy.floors import FLOORS, GOLDEN_TEMPLATE, LINEAR, TRIVIAL
from benchmarks.accuracy.runs import ROOT, Machine, Run, Runs
from benchmarks.accuracy.sets import Bar
from benchmarks.accuracy.tables import BEGIN, END, TABLES, all_tables, one_table, write_between_markers
from tests.benchmarks.stand_ins import run

from flawline_inspect.errors import InputError


def floor(set_: str, method: str, auroc: float) -> Run:
    return run("floors", set_, method, auroc=auroc, budget="closed form", size=128, best="brightness")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row by its first."""
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def test_nothing_measured_says_so() -> None:
    assert all_tables([]) == "Nothing has been measured yet."
    assert all(one_table(name, []) == "" for name in TABLES)


def test_accuracy_is_the_mean_over_seeds_beside_floors_and_bars() -> None:
    runs = [
        run("sets", "toy_alien", auroc=0.98, seed=0),
        run("sets", "toy_alien", auroc=0.96, seed=1),
        run("sets", "screw_512", auroc=0.99, pixel_auroc=0.975, aupro=0.8),
        floor("toy_alien", LINEAR, 0.93),
        floor("toy_alien", TRIVIAL, 0.85),
    ]
    table = rows(one_table("sets", runs))
    assert table["toy_alien"] == [
        "0.970 (0.950 to 0.980)", "2: 0.960 to 0.980", "0.98 / 0.995: 0.010 short", "0.930", "0.850",
        "", "", "", "12.5 %", "25.0 %", "100 to 101",
    ]  # fmt: skip
    assert table["screw_512"][2] == "0.95 / 0.985: goal"
    assert table["screw_512"][5:8] == ["0.975", "0.97 / 0.99: must", "0.800"]
    assert table["screw_512"][3] == ""


@pytest.mark.parametrize(
    ("auroc", "expected"),
    [(0.95, "goal"), (0.9499, "must"), (0.93, "must"), (0.92999, "0.001 short"), (0.83, "0.100 short")],
)
def test_bars(auroc: float, expected: str) -> None:
    assert Bar(0.93, 0.95).judge(auroc) == expected


def test_promises_are_counted() -> None:
    runs = [
        run("sets", "toy_alien"),
        run("sets", "toy_alien", seed=1, promise_kept=False, promised_false_reject_rate=0.04),
    ]
    text = one_table("promise", runs)
    assert "| toy_alien | 0 | 10.0 % | 12.5 % (5.0 % to 25.0 %) | 40 | yes |" in text
    assert "| toy_alien | 1 | 4.0 % | 12.5 % (5.0 % to 25.0 %) | 40 | **no** |" in text
    assert "1 of 2 trainings keep their promise" in text


def test_methods_are_ranked_against_the_default() -> None:
    """A method without a figure on each set has no mean, and comes last."""
    runs = [
        run("methods", "toy_alien", auroc=0.9),
        run("methods", "elpv_mono_s", auroc=0.8),
        run("methods", "toy_alien", auroc=0.8, variant=UNTRAINED),
        run("methods", "elpv_mono_s", auroc=0.7, variant=UNTRAINED),
        run("methods", "toy_alien", "masked", auroc=0.99),
        floor("toy_alien", GOLDEN_TEMPLATE, 0.9),
        floor("elpv_mono_s", GOLDEN_TEMPLATE, 0.9),
        floor("toy_alien", TRIVIAL, 0.9),
    ]
    table = rows(one_table("methods", runs))
    assert list(table) == ["method", GOLDEN_TEMPLATE, "filtering", f"filtering {UNTRAINED}", "masked"]
    assert table[GOLDEN_TEMPLATE] == ["0.900", "0.900", "0.900", "+0.050", ""]
    assert table["filtering"] == ["0.900", "0.800", "0.850", "+0.000", "100"]
    assert table[f"filtering {UNTRAINED}"][3] == "-0.100"
    assert table["masked"] == ["0.990", "", "", "", "100"]


def test_robustness_compares_with_the_same_test() -> None:
    """Contamination with the clean bundle on the reduced test, the rest with the set as it is; equal seeds only."""
    runs = [
        run("robustness", "toy_alien", auroc=0.95, variant=AS_IT_IS),
        run("robustness", "toy_alien", auroc=0.55, variant=AS_IT_IS, seed=1),
        run("robustness", "toy_alien", auroc=0.85, variant="shift by 2 %", false_reject_rate=1.0),
        run("robustness", "toy_alien", auroc=0.75, variant=CONTAMINATED_CLEAN),
        run("robustness", "toy_alien", auroc=0.65, variant=CONTAMINATED),
    ]
    table = rows(one_table("robustness", runs))
    assert table["shift by 2 %"] == ["0.950 → 0.850; 12.5 % → 100.0 %"]
    assert table[CONTAMINATED] == ["0.750 → 0.650; 12.5 % → 12.5 %"]
    assert len(table) == 3


def test_presets_tell_their_arithmetic() -> None:
    runs = [run("presets", "toy_alien", variant=preset, size=256) for preset in PRESETS[:2]]
    table = rows(one_table("presets", runs))
    assert list(table) == ["preset", *PRESETS[:2]]
    assert table["nano"] == ["2.30 M", "1.50 (256 x 256 px)", "0.900 (0.880 to 0.910)", "100"]


def test_retrain_shows_all_three() -> None:
    runs = [
        run("retrain", "toy_alien", variant=variant, auroc=a)
        for variant, a in zip(RETRAIN.values(), (0.7, 0.8, 0.9), strict=True)
    ]
    table = rows(one_table("retrain", runs))
    assert [row[0][:5] for row in table.values()] == ["toy_a", "0.700", "0.800", "0.900"]


def test_floors_name_the_best_figure() -> None:
    runs = [floor("bottle_cap", name, 0.6) for name in FLOORS]
    assert rows(one_table("floors", runs))["bottle_cap"][2] == "0.600 (0.580 to 0.610) (brightness)"


def test_machines_budgets_and_sizes_do_not_mix() -> None:
    runs = [
        run("sets", "toy_alien"),
        run("sets", "toy_alien", budget="10 min"),
        run("sets", "toy_alien", size=256),
        run("sets", "toy_alien", machine=Machine("Abacus 9", 2, 1, "Beads 5")),
    ]
    text = one_table("sets", runs)
    assert text.count("#### ") == 4
    assert "2 min a training, default frame; Beads 5 beside Abacus 9, 2 cores, 1 torch thread, median load 0.5;" in text


def test_tables_go_between_the_markers(tmp_path: Path) -> None:
    """What stands around them stays to the letter, and writing twice is writing once."""
    path = tmp_path / "RESULTS.md"
    path.write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\nmore\n", encoding="utf-8")
    for _ in range(2):
        write_between_markers(path, "| new |")
        assert path.read_text(encoding="utf-8") == f"# Ours\n\n{BEGIN}\n\n| new |\n\n{END}\n\nmore\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_documents_without_markers_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="once each"):
        write_between_markers(path, "new")
    assert path.read_text(encoding="utf-8") == text


def test_results_show_the_lines_of_the_repository() -> None:
    """benchmarks/RESULTS.md is what `table --write` makes of benchmarks/accuracy/runs.jsonl."""
    document = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    shown = document[document.index(BEGIN) + len(BEGIN) : document.index(END)].strip()
    expected = all_tables(Runs(ROOT / "benchmarks" / "accuracy" / "runs.jsonl").newest())
    assert shown == expected, "python -m benchmarks.accuracy table --write brings it up to date"
