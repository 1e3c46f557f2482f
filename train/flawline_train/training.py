"""From a folder of good pictures to a bundle, in the order in which things happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline_inspect.bundle import MODEL, REPORT, WEIGHTS, Bundle, bundle_bytes, save_bundle
from flawline_inspect.frame import Roi
from flawline_train.alignment import AlignChoice, align_members
from flawline_train.calibrate import MapCalibration
from flawline_train.fit import BATCH_SIZE, MAX_EPOCHS, Budget, FitProgress, FitResult
from flawline_train.golden import PER_LABEL, GoldenSet, choose_golden
from flawline_train.health import LearntHealth, learn_health
from flawline_train.kind import CROP, KindChoice
from flawline_train.known_defects import CostModel, DefectScores, find_defects, score_defects
from flawline_train.learning import Learnt, Listener, learn
from flawline_train.manifest import half_weights, manifest_of
from flawline_train.material import Material, read_material
from flawline_train.options import (
    DEFAULT_FALSE_REJECTS,
    DEFAULT_METHOD,
    DEFAULT_MINUTES,
    DEFAULT_WIDTH,
    Preset,
    TrainOptions,
    name_for,
    width_for,
)
from flawline_train.promise import ThresholdChoice, apply_choice, calibration_notes, suspect_reasons
from flawline_train.rehearsal import REHEARSAL, Rehearsal, rehearsal_of
from flawline_train.report.judged import JudgedPictures
from flawline_train.reserve import end_of_fit, has_time_for_report
from flawline_train.retraining import Previous
from flawline_train.training_report import page_inside, write_page_beside

__all__ = ["TrainProgress", "Training", "train"]


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """`stage` is read, train, calibrate, export or write; `share` 0-1 within it; `loss` while training."""

    stage: str
    share: float
    loss: float | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """What `train` made: the verified bundle, how the fit went, and what the engineer should know.

    `report`: the interactive report beside the bundle; None where none was asked for or could be made.
    After a dry run there is a `rehearsal`, and the bundle exists in memory only, with a model that has learnt nothing.
    """

    bundle: Bundle
    fit: FitResult
    notes: list[str]
    parameters: int
    report: Path | None = None
    rehearsal: Rehearsal | None = None


def train(
    good: Path | str,
    output: Path | str,
    *,
    method: str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    width: int | None = None,
    preset: Preset | None = None,
    seed: int = 0,
    device: str = "auto",
    roi: Roi | None = None,
    false_rejects: float = DEFAULT_FALSE_REJECTS,
    group: str | None = None,
    keep_suspects: bool = False,
    defects: Path | str | None = None,
    costs: CostModel | None = None,
    threshold: ThresholdChoice = "promised",
    align: AlignChoice = "auto",
    kind: KindChoice = "auto",
    name: str | None = None,
    report: bool = True,
    from_bundle: Path | str | None = None,
    weights: Path | None = None,
    devices: int = 1,
    checkpoint: Path | None = None,
    resume: bool = False,
    tensorboard: Path | None = None,
    dry_run: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    started: float | None = None,
) -> Training:
    """Learn what good parts look like and write the bundle.

    `good`: a folder of pictures of good parts. `method` (default filtering): one of `METHOD_NAMES`, or `anomalib:NAME`.
    `minutes` bounds the whole call (default 5), `steps` the optimiser's steps instead, which makes it reproducible. `size`
    (default 128, of textures larger): the frame's long side in pixels. `width` (default 32): channels of the network, or its
    `preset`. `align`: how parts that move are brought to one pose; see `flawline_train.alignment`. `kind`: whether parts are
    objects or a texture; see `flawline_train.kind`.

    `false_rejects`: share of good parts that may be rejected. `group`: a regular expression that names the part of a
    picture by its path; near-duplicates are looked for without. `keep_suspects`: what looks unlike the other good parts is
    learnt from too, and no held-out part is left out of the threshold. `defects`: a folder of pictures of known defects, to
    report escapes; with `costs` the cheapest threshold is reported too, and applied where `threshold` is "cheapest".
    `report`: make the report too.

    `from_bundle`: an earlier bundle, whose network is trained further; method, width, frame, kind and alignment are its own, and so
    is which of the pictures that it knows are held out. `weights`: of the backbone for a model of anomalib; see
    `flawline_train.anomalib_method`. `devices`, `checkpoint`, `resume`, `tensorboard`: see `flawline_train.fit.fit`; not
    for anomalib's models. `dry_run`: a few steps, calibration and export, and nothing is written.

    `started`: moment of the monotonic clock from which `minutes` counts, if earlier than the call. An older bundle at
    `output` survives every failure. Raises `InputError` and what derives from it for anything that the caller can mend.
    """
    started = time.monotonic() if started is None else started
    width = width_for(width, preset)
    previous = None if from_bundle is None else Previous(Path(from_bundle))
    if previous is not None:
        previous.check(method=method, width=width, size=size, align=align, kind=kind)
        method, width, size, kind = previous.method, previous.width, previous.size, previous.kind
        roi = roi or previous.roi
    options = TrainOptions(
        good=Path(good),
        output=Path(output),
        method=DEFAULT_METHOD if method is None else method,
        minutes=DEFAULT_MINUTES if minutes is None and steps is None else minutes,
        steps=steps,
        size=size,
        width=DEFAULT_WIDTH if width is None else width,
        seed=seed,
        device=device,
        roi=roi,
        false_rejects=false_rejects,
        group=group,
        keep_suspects=keep_suspects,
        defects=None if defects is None else Path(defects),
        costs=costs,
        threshold=threshold,
        align=align,
        name=name_for(Path(output)) if name is None else name,
        report=report,
        weights=weights,
        devices=devices,
        checkpoint=checkpoint,
        resume=resume,
        tensorboard=tensorboard,
        previous=previous,
        dry_run=dry_run,
        kind=kind,
    )
    return _train(options, started, _Teller(on_progress), should_stop)


def _train(options: TrainOptions, started: float, tell: _Teller, should_stop: Callable[[], bool]) -> Training:
    defects = None if options.defects is None else find_defects(options.defects, options.good)
    material = read_material(options, tell.of("read"))
    pictures, health = material.pictures, learn_health(material.pictures)

    budget, fit_began = _budget(options, started, material, len(defects or ())), time.monotonic()
    listener = Listener(tell.fit, tell.of("calibrate"), should_stop)
    learnt = learn(options, material, REHEARSAL if options.dry_run else budget, listener)

    tell("export", 0)
    model = learnt.export()

    tell("write", 0)
    shown = JudgedPictures(learnt.calibration.threshold.value)
    known = None
    if defects is not None and not options.dry_run:
        known = score_defects(model, pictures.spec, defects, health.health, on_judged=shown.add)
    calibration = apply_choice(learnt.calibration, known, options.costs, options.threshold)
    golden = _golden(options, material, model, calibration)
    align_section, references = align_members(pictures.alignment)
    members = {MODEL: model, **references, **golden.members}
    if not options.is_anomalib:  # those are trained anew; what they have learnt is in the graph
        members[WEIGHTS] = half_weights(learnt.graph.network)
    manifest = manifest_of(options, material, learnt, calibration, known, golden, align_section, health)
    notes = _notes(options, material, health, learnt, calibration, known, golden)

    if options.dry_run:
        rehearsal = rehearsal_of(learnt.graph.network, pictures.frames[0], learnt.result, budget, fit_began)
        nowhere = Bundle(bundle_bytes(manifest, members), "the dry run's bundle")
        return Training(nowhere, learnt.result, notes, learnt.parameters, rehearsal=rehearsal)

    page = None
    if _wants_report(options, started, notes):
        page = page_inside(
            manifest, model, learnt.graph, material, calibration, shown if shown.scored else None, tell.loss, notes
        )
    bundle = save_bundle(options.output, manifest, members if page is None else {**members, REPORT: page.html})
    beside = None if page is None else write_page_beside(options.output, bundle, page.data, notes)
    tell("write", 1)
    return Training(bundle, learnt.result, notes, learnt.parameters, beside)


class _Teller:
    """Tells of the stages, and keeps the loss of each step for the report."""

    def __init__(self, on_progress: Callable[[TrainProgress], None] | None) -> None:
        self._on_progress = on_progress
        self.loss: list[tuple[int, float]] = []

    def __call__(self, stage: str, share: float) -> None:
        if self._on_progress is not None:
            self._on_progress(TrainProgress(stage, share))

    def of(self, stage: str) -> Callable[[int, int], None]:
        """For those who count what is done of how much."""
        return lambda done, of: self(stage, done / max(1, of))

    def fit(self, progress: FitProgress) -> None:
        self.loss.append((progress.step, progress.loss))
        if self._on_progress is not None:
            self._on_progress(TrainProgress("train", progress.share, progress.loss, progress.step))


def _budget(options: TrainOptions, started: float, material: Material, n_defects: int) -> Budget:
    if options.minutes is None:
        return Budget(steps=options.steps)
    n_pictures = len(material.pictures.files) + n_defects
    tiles = 1.0
    if material.pictures.kind == "texture":
        height, width = material.pictures.frames.shape[1:3]
        tiles = max(1.0, height * width / CROP**2)
    until = end_of_fit(started, options.minutes, n_pictures, material.reading_s, options.report, tiles)
    steps = max(options.schedule.warm_up, MAX_EPOCHS * len(material.train) // (BATCH_SIZE * options.devices))
    return Budget(until=until, at_most=None if options.is_anomalib else steps)


def _golden(options: TrainOptions, material: Material, model: bytes, calibration: MapCalibration) -> GoldenSet:
    if options.dry_run:
        return GoldenSet([], {})
    return choose_golden(
        model,
        material.pictures.spec,
        calibration.threshold.value,
        material.paths_by_score(calibration.scores),
        np.random.default_rng((options.seed, 1)),
    )


def _notes(
    options: TrainOptions,
    material: Material,
    health: LearntHealth,
    learnt: Learnt,
    calibration: MapCalibration,
    known: DefectScores | None,
    golden: GoldenSet,
) -> list[str]:
    """What the engineer should know, a sentence each."""
    notes = [*material.pictures.notes(), *health.notes]
    if options.previous is not None:
        notes += options.previous.notes(material.pictures, set(map(int, material.held_out)))
    notes += learnt.notes
    named = set() if options.dry_run else set(suspect_reasons(calibration))
    notes += material.screening.notes(len(set(material.pictures.parts)))
    notes += [reason for part, reason in material.suspect_reasons().items() if part not in named]
    if options.dry_run:
        return notes  # what follows speaks of a model that has learnt something
    notes += calibration_notes(calibration)
    notes += [f"skipped {reason}" for reason in (known.skipped if known is not None else ())]
    for label in ("good", "damaged"):
        count = sum(entry["label"] == label for entry in golden.entries)
        if count < PER_LABEL:
            notes.append(
                f"only {count} of {PER_LABEL} {label} golden pictures keep 10 % distance from the threshold: the model separates badly"
            )
    return notes


def _wants_report(options: TrainOptions, started: float, notes: list[str]) -> bool:
    """Whether a report is asked for and there is time; where there is none, another of the `notes` says so."""
    if not options.report:
        return False
    if options.minutes is None or has_time_for_report(started, options.minutes):
        return True
    notes.append(f"no time was left for the report; `flawline report {options.output}` makes one")
    return False
