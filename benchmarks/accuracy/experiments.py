"""What is measured: each experiment is a list of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.accuracy.bench import CHANGED_PICTURES, PRODUCT, Bench, Job, Trained
from benchmarks.accuracy.changes import CHANGES, Change, changed_copy, contaminated, some_good
from benchmarks.accuracy.floors import FLOORS, GOLDEN_TEMPLATE, LINEAR, SIDE, floor_figures
from benchmarks.accuracy.product import Budget, Recipe
from benchmarks.accuracy.runs import Measured
from benchmarks.accuracy.sets import DataSet

from flawline_inspect.frame import find_pictures

__all__ = [
    "AS_IT_IS",
    "CLOSED_FORM",
    "CONTAMINATED",
    "CONTAMINATED_CLEAN",
    "DEFAULT_METHOD",
    "FEW",
    "FEW_PICTURES",
    "PEERS",
    "PRESETS",
    "RETRAIN",
    "UNTRAINED",
    "Settings",
    "all_methods",
    "floors",
    "methods",
    "presets",
    "retrain",
    "robustness",
    "sets",
]

DEFAULT_METHOD = "filtering"
CLOSED_FORM = "closed form"
"""The budget of what does not train."""
PEERS = ("anomalib:Draem", "anomalib:Ganomaly")
PRESETS = ("nano", "small", "medium")

FEW_PICTURES = 20
CONTAMINATION = 0.05
AS_IT_IS = ""
FEW = f"{FEW_PICTURES} good pictures only"
CONTAMINATED = "5 % defective among the training pictures"
CONTAMINATED_CLEAN = "none defective, the same test pictures"
"""What `CONTAMINATED` is compared with: without the defective pictures the test is another."""

UNTRAINED = "after one step"
"""A control: alignment, calibration and everything closed-form are there, and the network has learnt nothing."""

RETRAIN_SHARE = 0.8
RETRAIN_DIVISOR = 5
RETRAIN = {
    "old": "80 % of the pictures",
    "continued": "from it on all, a fifth of the budget",
    "fresh": "afresh on all",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the runs of an experiment share. `size`: None for the product's default."""

    budget: Budget
    seeds: tuple[int, ...] = (0,)
    size: int | None = None
    device: str = "auto"

    def recipe(self, method: str, seed: int) -> Recipe:
        return Recipe(method, seed, self.budget, self.size, self.device)

    def job(
        self, experiment: str, data: DataSet, method: str, seed: int, measure: Callable[[], Measured], **more: object
    ) -> Job:
        job = Job(
            experiment, data, method, seed, str(self.budget), measure, size=self.size, minutes=self.budget.minutes
        )
        return replace(job, **more)  # type: ignore[arg-type]  # the fields of Job


def floors(chosen: Sequence[DataSet], names: Sequence[str] = FLOORS) -> list[Job]:
    """Trivial ways, in closed form; seconds a set."""

    def measure(name: str, data: DataSet) -> Measured:
        return Measured(floor_figures(name, data), 0.0, frame_wh=(SIDE, SIDE))

    return [
        Job(
            "floors",
            data,
            name,
            0,
            CLOSED_FORM,
            lambda name=name, data=data: measure(name, data),  # type: ignore[misc]
            size=SIDE,
            sources=("benchmarks/accuracy/floors.py",),
        )
        for data in chosen
        for name in names
    ]


def sets(bench: Bench, chosen: Sequence[DataSet], settings: Settings) -> list[Job]:
    """The product as it comes, beside the trivial ways."""
    return floors(chosen) + [
        _plain(bench, "sets", data, settings.recipe(DEFAULT_METHOD, seed), settings)
        for seed in settings.seeds
        for data in chosen
    ]


def all_methods() -> tuple[str, ...]:
    """Every autoencoder of ours, the default first, then what they are compared with."""
    from flawline_train.autoencoders.methods import METHOD_NAMES

    return (*METHOD_NAMES, GOLDEN_TEMPLATE, LINEAR, *PEERS)


def methods(bench: Bench, chosen: Sequence[DataSet], settings: Settings, names: Sequence[str]) -> list[Job]:
    """Methods side by side at equal time, and the default after a single step: what all but its training is worth."""
    jobs = floors(chosen, [name for name in names if name in FLOORS])
    for name in names:
        for seed in settings.seeds:
            for data in chosen:
                recipe = settings.recipe(name, seed)
                if name not in FLOORS:
                    jobs.append(_plain(bench, "methods", data, recipe, settings))
                if name == DEFAULT_METHOD:
                    untrained = replace(recipe, budget=Budget(steps=1))
                    jobs.append(replace(_plain(bench, "methods", data, untrained, settings, UNTRAINED), minutes=None))
    return jobs


def presets(bench: Bench, chosen: Sequence[DataSet], settings: Settings) -> list[Job]:
    """Sizes of the network, by `--preset`."""
    return [
        _plain(
            bench,
            "presets",
            data,
            replace(settings.recipe(DEFAULT_METHOD, seed), preset=preset),
            settings,
            variant=preset,
        )
        for preset in PRESETS
        for seed in settings.seeds
        for data in chosen
    ]


def robustness(bench: Bench, chosen: Sequence[DataSet], settings: Settings) -> list[Job]:
    """Before and after: few pictures, defective ones among them, and changes between training and line."""
    jobs = []
    for seed in settings.seeds:
        for data in chosen:
            recipe = settings.recipe(DEFAULT_METHOD, seed)

            same_bundle = {name: _changed(bench, data, recipe, change) for name, change in CHANGES.items()}
            same_bundle[CONTAMINATED_CLEAN] = _contaminated(bench, data, recipe, clean=True)
            trained_anew = {
                FEW: _few(bench, data, recipe),
                CONTAMINATED: _contaminated(bench, data, recipe, clean=False),
            }
            jobs.append(_plain(bench, "robustness", data, recipe, settings))
            for variant, measure in {**same_bundle, **trained_anew}.items():
                job = settings.job("robustness", data, recipe.method, seed, measure, variant=variant)
                minutes = job.minutes if variant in trained_anew else None
                jobs.append(replace(job, sources=(*PRODUCT, CHANGED_PICTURES), minutes=minutes))
    return jobs


def retrain(bench: Bench, chosen: Sequence[DataSet], settings: Settings) -> list[Job]:
    """Continuing from an older bundle when more pictures have come, against training afresh."""
    settings.budget.part(RETRAIN_DIVISOR)  # raises at once where a fifth is too little
    jobs = []
    for seed in settings.seeds:
        for data in chosen:
            recipe = settings.recipe(DEFAULT_METHOD, seed)
            for name, measure in (
                ("old", _old(bench, data, recipe)),
                ("continued", _continued(bench, data, recipe)),
                ("fresh", _on_the_set(bench, data, recipe)),
            ):
                part = settings.budget.part(RETRAIN_DIVISOR) if name == "continued" else settings.budget
                jobs.append(
                    settings.job(
                        "retrain",
                        data,
                        recipe.method,
                        seed,
                        measure,
                        variant=RETRAIN[name],
                        sources=(*PRODUCT, CHANGED_PICTURES),
                        minutes=part.minutes,
                    )
                )
    return jobs


# --- what one run does -----------------------------------------------------------------------------------------------


def _plain(
    bench: Bench, experiment: str, data: DataSet, recipe: Recipe, settings: Settings, variant: str = AS_IT_IS
) -> Job:
    measure = _on_the_set(bench, data, recipe)
    return settings.job(experiment, data, recipe.method, recipe.seed, measure, variant=variant)


def _on_the_set(bench: Bench, data: DataSet, recipe: Recipe) -> Callable[[], Measured]:
    return lambda: bench.measure(bench.train(data, data.good, recipe), data.folder)


def _changed(bench: Bench, data: DataSet, recipe: Recipe, change: Change) -> Callable[[], Measured]:
    def measure() -> Measured:
        trained = bench.train(data, data.good, recipe)
        with bench.folder() as folder:
            return bench.measure(trained, changed_copy(data, change, folder).folder)

    return measure


def _few(bench: Bench, data: DataSet, recipe: Recipe) -> Callable[[], Measured]:
    def measure() -> Measured:
        with bench.folder() as folder:
            good = some_good(data, FEW_PICTURES, recipe.seed, folder / "good")
            return bench.measure(bench.train(data, good, recipe, FEW), data.folder)

    return measure


def _contaminated(bench: Bench, data: DataSet, recipe: Recipe, *, clean: bool) -> Callable[[], Measured]:
    def measure() -> Measured:
        with bench.folder() as folder:
            mixed = contaminated(data, CONTAMINATION, recipe.seed, folder / data.name)
            good, made_of = (data.good, "") if clean else (mixed.good, CONTAMINATED)
            trained = bench.train(data, good, recipe, made_of)
            return bench.measure(trained, mixed.folder)

    return measure


def _train_old(bench: Bench, data: DataSet, recipe: Recipe) -> Trained:
    count = round(RETRAIN_SHARE * len(find_pictures(data.good)))
    with bench.folder() as folder:
        good = some_good(data, count, recipe.seed, folder / "good")
        return bench.train(data, good, recipe, RETRAIN["old"])


def _old(bench: Bench, data: DataSet, recipe: Recipe) -> Callable[[], Measured]:
    return lambda: bench.measure(_train_old(bench, data, recipe), data.folder)


def _continued(bench: Bench, data: DataSet, recipe: Recipe) -> Callable[[], Measured]:
    def measure() -> Measured:
        base = _train_old(bench, data, recipe).bundle
        continued = replace(recipe, budget=recipe.budget.part(RETRAIN_DIVISOR), base=base)
        return bench.measure(bench.train(data, data.good, continued), data.folder)

    return measure
