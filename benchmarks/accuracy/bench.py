"""Doing what is still to be measured, one run after the other, and keeping what was trained for whoever needs it next."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.accuracy.product import Product, Recipe
from benchmarks.accuracy.runs import Key, Machine, Measured, Run, Runs, code_digest, git_commit, versions
from benchmarks.accuracy.sets import DataSet

from flawline_inspect.errors import FlawlineError

__all__ = ["CHANGED_PICTURES", "PRODUCT", "Bench", "Job", "Trained"]

PRODUCT = ("inspect/flawline_inspect", "engines/flawline_engines", "train/flawline_train")
"""The sources that figures of the product depend on."""
CHANGED_PICTURES = "benchmarks/accuracy/changes.py"


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be: `measure` is called where there is no line for it yet.

    `sources`: whose change makes the figures old. `minutes`: what it takes at most, None where that is not known.
    """

    experiment: str
    data: DataSet
    method: str
    seed: int
    budget: str
    measure: Callable[[], Measured]
    variant: str = ""
    size: int | None = None
    sources: tuple[str, ...] = PRODUCT
    minutes: float | None = None

    def __str__(self) -> str:
        size = f"{self.size} px" if self.size else ""
        words = (self.experiment, self.data.name, self.method, self.variant, f"seed {self.seed}", self.budget, size)
        return " · ".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class Trained:
    bundle: Path
    seconds: float


class Bench:
    """Runs jobs and trains for them. Bundles stay in the folder `work` under a name that says what they were made of.

    `again` repeats what is there already, trainings included, but each training once. `say` gets a line at a time.
    """

    def __init__(
        self, runs: Runs, product: Product, machine: Machine, work: Path, say: Callable[[str], None], *, again: bool
    ) -> None:
        self._runs = runs
        self._product = product
        self._machine = machine
        self._work = work
        self._say = say
        self._again = again
        self._fresh: set[Path] = set()

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Do those of `jobs` that have no line yet; what could not be measured, with the reason, a sentence each."""
        keys = [self._key(job) for job in jobs]
        missing = [self._again or self._runs.find(key) is None for key in keys]
        minutes = sum(job.minutes or 0 for job, needed in zip(jobs, missing, strict=True) if needed)
        self._say(
            f"{sum(missing)} of {len(jobs)} runs to do" + f", at most {minutes:g} min of training" * (minutes > 0)
        )
        failed = []
        for number, (job, key, needed) in enumerate(zip(jobs, keys, missing, strict=True), 1):
            title = f"[{number}/{len(jobs)}] {job}"
            if not needed:
                self._say(f"{title}: is there already")
                continue
            self._say(title)
            load = round(os.getloadavg()[0], 1)
            try:
                measured = job.measure()
            except FlawlineError as exc:
                failed.append(f"{job}: {exc}")
                self._say(f"  not measured: {exc}")
                continue
            date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
            self._runs.append(Run(key, measured, git_commit(job.sources), date, load, versions()))
            self._say(f"  image AUROC {measured.figures['image_auroc']:.4f}")
        return failed

    def train(self, data: DataSet, good: Path, recipe: Recipe, made_of: str = "") -> Trained:
        """A bundle learnt from the pictures in `good`; `made_of` tells them from the set's own training pictures."""
        sources = (*PRODUCT, CHANGED_PICTURES) if made_of else PRODUCT
        parts = (data.name, made_of, " ".join(recipe.arguments()), code_digest(sources), str(self._machine))
        self._work.mkdir(parents=True, exist_ok=True)
        stem = f"{data.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:10]}"
        bundle, took = self._work / f"{stem}.flawline", self._work / f"{stem}.seconds"
        wanted_again = self._again and bundle not in self._fresh
        if wanted_again or not (bundle.is_file() and took.is_file()):
            took.write_text(f"{self._product.train(good, bundle, recipe):.1f}", encoding="ascii")
            self._fresh.add(bundle)
        return Trained(bundle, float(took.read_text(encoding="ascii")))

    def measure(self, trained: Trained, dataset: Path) -> Measured:
        """The bundle's figures on a set."""
        figures = self._product.evaluate(trained.bundle, dataset)
        return Measured(figures, trained.seconds, **self._product.describe(trained.bundle))

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder for copies of pictures, gone afterwards."""
        self._work.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="pictures-", dir=self._work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _key(self, job: Job) -> Key:
        return Key(
            job.experiment,
            job.data.name,
            job.method,
            job.variant,
            job.seed,
            job.budget,
            job.size,
            code_digest(job.sources),
            self._machine,
        )
