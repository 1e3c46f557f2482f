"""What is measured, what is skipped and what is trained, with a product that takes no time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.bench import Bench
from benchmarks.accuracy.changes import CHANGES
from benchmarks.accuracy.experiments import (
    CONTAMINATED,
    CONTAMINATED_CLEAN,
    FEW,
    PRESETS,
    RETRAIN,
    UNTRAINED,
    Settings,
    methods,
    presets,
    retrain,
    robustness,
    sets,
)
from benchmarks.accuracy.floors import FLOORS, LINEAR
from benchmarks.accuracy.product import Budget, Flawline, Recipe, UnavailableError
from benchmarks.accuracy.runs import Machine, Run, Runs, code_digest, this_machine
from benchmarks.accuracy.sets import DataSet, find_sets
from tests.benchmarks.stand_ins import MACHINE, StandIn, run, small_set

from flawline_inspect.errors import InputError

SETTINGS = Settings(Budget(minutes=5))


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return small_set(tmp_path / "plates")


def bench_of(tmp_path: Path, product: StandIn, *, again: bool = False) -> tuple[Bench, Runs, list[str]]:
    runs, told = Runs(tmp_path / "runs.jsonl"), []
    return Bench(runs, product, MACHINE, tmp_path / "work", told.append, again=again), runs, told


def variants(runs: Runs) -> list[str]:
    return [each.key.variant for each in runs]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs.jsonl")
    written = [run("sets", "toy_alien", seed=2, size=256), run("sets", "toy_alien", auroc=0.5)]
    for each in written:
        runs.append(each)
    assert list(Runs(tmp_path / "runs.jsonl")) == written


def test_lines_name_no_machine_and_no_path(tmp_path: Path, data: DataSet) -> None:
    """The processor's model, cores, threads and GPU are all that a line says of the machine."""
    bench, _, _ = bench_of(tmp_path, StandIn())
    bench.run(sets(bench, [data], SETTINGS))
    text = (tmp_path / "runs.jsonl").read_text()
    assert str(tmp_path) not in text and "/" not in text
    assert {frozenset(json.loads(line)["machine"]) for line in text.splitlines()} == {
        frozenset({"cpu", "cores", "threads", "gpu"})
    }


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(run("sets", "toy_alien").to_line() + "\n" + '{"experiment": "sets"')
    with pytest.raises(InputError, match="line 2 is no run"):
        Runs(path)


def test_the_newest_run_counts_whatever_its_code(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs.jsonl")
    old, other, new = run("sets", "a", code="1"), run("sets", "b", code="1"), run("sets", "a", code="2", auroc=0.7)
    for each in (old, other, new):
        runs.append(each)
    assert runs.newest() == [new, other]
    assert runs.find(old.key) == old


def test_a_closed_form_is_the_same_on_every_machine(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs.jsonl")
    other = Machine("Abacus 9", 64, 64)
    here, there = (run("floors", "a", LINEAR, budget="closed form", machine=machine) for machine in (MACHINE, other))
    trained = [run("sets", "a", machine=machine) for machine in (MACHINE, other)]
    for each in (here, there, *trained):
        runs.append(each)
    assert runs.newest() == [there, *trained]


def test_code_is_told_by_what_it_says() -> None:
    """Files and folders count, documents do not."""
    one = code_digest(["benchmarks/accuracy/floors.py"])
    assert re.fullmatch("[0-9a-f]{10}", one)
    assert one == code_digest(["benchmarks/accuracy/floors.py"])
    assert one != code_digest(["benchmarks/accuracy/floors.py", "benchmarks/accuracy/changes.py"])
    assert one != code_digest(["benchmarks/accuracy"])


def test_this_machine_is_known_by_its_kind() -> None:
    machine = this_machine("cpu")
    assert machine.cores >= 1 and machine.threads >= 1 and machine.gpu is None and machine.cpu


# --- doing what is missing -------------------------------------------------------------------------------------------


def test_what_is_there_is_not_measured_again(tmp_path: Path, data: DataSet) -> None:
    """A second command, with the lines read from the file, trains nothing and adds nothing."""
    product = StandIn()
    for _ in range(2):
        bench, runs, told = bench_of(tmp_path, product)
        assert bench.run(sets(bench, [data], SETTINGS)) == []
    assert len(product.trained) == 1
    assert len(list(runs)) == 1 + len(FLOORS)
    assert told[0].startswith("0 of 4 runs")


def test_another_seed_or_budget_is_another_run(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    for settings in (SETTINGS, replace(SETTINGS, seeds=(0, 1)), replace(SETTINGS, budget=Budget(steps=9))):
        bench.run(sets(bench, [data], settings))
    assert [(each.seed, str(each.budget)) for each in product.trained] == [(0, "5 min"), (1, "5 min"), (0, "9 steps")]
    assert len(list(runs)) == 3 + len(FLOORS)


def test_other_code_makes_a_run_old(tmp_path: Path, data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    bench.run(sets(bench, [data], SETTINGS))
    monkeypatch.setattr("benchmarks.accuracy.bench.code_digest", lambda sources: "other")
    bench.run(sets(bench, [data], SETTINGS))
    assert len(product.trained) == 2
    assert len(runs.newest()) == len(list(runs)) / 2


def test_again_repeats_each_training_once(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, _, _ = bench_of(tmp_path, product)
    bench.run(robustness(bench, [data], SETTINGS))
    trained = len(product.trained)
    bench, runs, _ = bench_of(tmp_path, product, again=True)
    bench.run(robustness(bench, [data], SETTINGS))
    assert len(product.trained) == 2 * trained == 6
    assert len(list(runs)) == 2 * len(runs.newest())


def test_an_interrupted_run_leaves_no_line_and_what_came_before(tmp_path: Path, data: DataSet) -> None:
    class Interrupted(StandIn):
        def train(self, good: Path, bundle: Path, recipe: Recipe) -> float:
            if recipe.seed == 1:
                raise KeyboardInterrupt
            return super().train(good, bundle, recipe)

    settings = replace(SETTINGS, seeds=(0, 1, 2))
    bench, _, _ = bench_of(tmp_path, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        bench.run(sets(bench, [data], settings))
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    bench.run(sets(bench, [data], settings))
    assert [recipe.seed for recipe in product.trained] == [1, 2]
    assert sorted(each.key.seed for each in runs if each.key.experiment == "sets") == [0, 1, 2]


def test_what_cannot_be_measured_is_told_and_the_rest_goes_on(tmp_path: Path, data: DataSet) -> None:
    bench, runs, told = bench_of(tmp_path, StandIn(refuses="anomalib:Draem"))
    failed = bench.run(methods(bench, [data], SETTINGS, ["anomalib:Draem", "masked", LINEAR]))
    assert len(failed) == 1 and failed[0].endswith("no method anomalib:Draem")
    assert {each.key.method for each in runs} == {"masked", LINEAR}
    assert any("not measured: no method anomalib:Draem" in line for line in told)


# --- the experiments -------------------------------------------------------------------------------------------------


def test_the_default_method_is_also_measured_untrained(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    bench.run(methods(bench, [data], SETTINGS, ["filtering", "masked"]))
    assert [(each.method, str(each.budget)) for each in product.trained] == [
        ("filtering", "5 min"),
        ("filtering", "1 step"),
        ("masked", "5 min"),
    ]
    assert variants(runs) == ["", UNTRAINED, ""]


def test_robustness_trains_three_bundles_and_changes_what_it_says(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    assert bench.run(robustness(bench, [data], SETTINGS)) == []
    assert len(product.trained) == 3
    seen = dict(zip(variants(runs), product.evaluated, strict=True))
    assert seen == {
        "": (30, 6, 8),
        **dict.fromkeys(CHANGES, (30, 6, 8)),
        CONTAMINATED_CLEAN: (30, 6, 6),
        FEW: (20, 6, 8),
        CONTAMINATED: (32, 6, 6),
    }
    assert not list((tmp_path / "work").glob("pictures-*"))


def test_robustness_shares_the_bundles_of_sets(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, _, _ = bench_of(tmp_path, product)
    bench.run(sets(bench, [data], SETTINGS))
    bench.run(robustness(bench, [data], SETTINGS))
    assert len(product.trained) == 3


def test_retrain_continues_for_a_fifth(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    bench.run(retrain(bench, [data], SETTINGS))
    assert [str(recipe.budget) for recipe in product.trained] == ["5 min", "1 min", "5 min"]
    assert [recipe.base is not None for recipe in product.trained] == [False, True, False]
    assert product.evaluated == [(24, 6, 8), (30, 6, 8), (30, 6, 8)]
    assert variants(runs) == list(RETRAIN.values())
    base = product.trained[1].base
    assert base is not None and base.read_text() == "24"


def test_a_fifth_of_too_little_is_refused_before_anything_is_trained(tmp_path: Path, data: DataSet) -> None:
    bench, _, _ = bench_of(tmp_path, StandIn())
    with pytest.raises(InputError, match=r"training of 0\.4 minutes"):
        retrain(bench, [data], Settings(Budget(minutes=2)))


def test_presets_are_told_to_the_training(tmp_path: Path, data: DataSet) -> None:
    product = StandIn()
    bench, runs, _ = bench_of(tmp_path, product)
    bench.run(presets(bench, [data], replace(SETTINGS, size=256)))
    assert [recipe.preset for recipe in product.trained] == list(PRESETS) == variants(runs)
    assert all(recipe.arguments()[-4:-2] == ["--size", "256"] for recipe in product.trained)


# --- the command line ------------------------------------------------------------------------------------------------


def test_arguments_of_a_training() -> None:
    recipe = Recipe("ssim", 3, Budget(minutes=2.5), 256, "cpu", "nano", Path("old.flawline"))
    assert " ".join(recipe.arguments()) == (
        "--method ssim --seed 3 --device cpu --minutes 2.5 --size 256 --preset nano --from old.flawline"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either"),
        ({"minutes": 1, "steps": 1}, "either"),
        ({"minutes": 0.1}, "0.1 minutes"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_budgets_that_are_none(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Budget(**given)  # type: ignore[arg-type]


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy_alien: has no folder train/good; .*--data"):
        find_sets(tmp_path, ["toy_alien"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["sets", "--seeds", "one"],
        ["sets", "--minutes", "1", "--steps", "1"],
        ["methods", "--only", "magic"],
        ["nothing"],
    ],
)
def test_the_users_mistakes_end_with_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *(["--data", str(tmp_path)] if len(arguments) > 1 else [])]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("accuracy: ") and not captured.out


def test_floors_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines are written, the table is printed, and the second time nothing is left to do."""
    small_set(tmp_path / "plates")
    arguments = ["floors", "--data", str(tmp_path), "--sets", "plates", "--runs", str(tmp_path / "runs.jsonl")]
    assert main(arguments) == 0
    assert "| plates | 1.000 (1.000 to 1.000)" in capsys.readouterr().out
    lines = (tmp_path / "runs.jsonl").read_text()
    assert [Run.from_line(line).key.method for line in lines.splitlines()] == list(FLOORS)
    assert main(arguments) == 0
    assert "0 of 3 runs to do" in capsys.readouterr().err
    assert (tmp_path / "runs.jsonl").read_text() == lines


def test_a_refusal_of_the_product_is_unavailable(tmp_path: Path, data: DataSet) -> None:
    """The real command line, with a method that will never be: its own sentence comes back."""
    told: list[str] = []
    with pytest.raises(UnavailableError, match="train ended with 2: --method is 'magic'"):
        Flawline(told.append).train(data.good, tmp_path / "x.flawline", Recipe("magic", 0, Budget(steps=1)))
    assert any("magic" in line for line in told)
    assert not (tmp_path / "x.flawline").exists()
